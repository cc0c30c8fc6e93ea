"""Patterns of paths, by two rules that differ: those of ``glob.glob`` and those of ``pathlib.Path.glob``."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unionfs.union.walking import DirEntry, Walking

_MAGIC = re.compile(r"[*?[]")
_SINCE_313 = sys.version_info >= (3, 13)


def _entries(fs: Walking, path: str) -> list[DirEntry[str]]:
    try:
        return list(fs.scandir(path or "/"))
    except OSError:
        return []  # A pattern matches nothing there.


def _is_dir(entry: DirEntry[str], follow: bool = True) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:
        return False


class Globber:
    """``glob.glob(recursive=True)``: ``*`` and ``**`` match no hidden names unless told; ``**`` follows links."""

    def __init__(self, fs: Walking, hidden: bool) -> None:
        self._fs = fs
        self._hidden = hidden

    def paths(self, pattern: str) -> Iterator[str]:
        """The paths that match."""
        rooted = len(pattern) - len(pattern.lstrip("/"))
        if not _MAGIC.search(pattern):
            if self._fs.isdir(pattern) if pattern.endswith("/") else self._fs.lexists(pattern):
                yield pattern
        else:
            yield from self._below(pattern[:rooted], re.split("/+", pattern[rooted:]))

    def _below(self, prefix: str, parts: list[str]) -> Iterator[str]:
        """Paths that begin with ``prefix`` (empty, or with a slash at the end) and match ``parts``."""
        part, rest = parts[0], parts[1:]
        if part == "**":
            for at, is_dir in self._deep(prefix):
                if not rest:
                    if at:
                        yield at
                elif is_dir:
                    yield from self._below(at if at == prefix else at + "/", rest)
        elif _MAGIC.search(part):
            match = re.compile(fnmatch.translate(part)).match
            for entry in _entries(self._fs, prefix):
                if match(entry.name) and (part.startswith(".") or self._shows(entry.name)):
                    if not rest:
                        yield prefix + entry.name
                    elif _is_dir(entry):
                        yield from self._below(prefix + entry.name + "/", rest)
        elif rest:
            if self._fs.isdir(prefix + part):
                yield from self._below(prefix + part + "/", rest)
        elif self._fs.lexists(prefix + part) if part else self._fs.isdir(prefix):
            yield prefix + part

    def _shows(self, name: str) -> bool:
        return self._hidden or not name.startswith(".")

    def _deep(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """``prefix`` and all paths below it, and whether they are directories."""
        yield prefix, True
        todo = [prefix]
        while todo:
            at = todo.pop()
            for entry in _entries(self._fs, at):
                if self._shows(entry.name):
                    is_dir = _is_dir(entry)
                    yield at + entry.name, is_dir
                    if is_dir:
                        todo.append(at + entry.name + "/")


def select(fs: Walking, top: str, pattern: str, case_sensitive: bool | None, follow: bool) -> Iterator[str]:
    """``pathlib.Path(top).glob(pattern)``: paths relative to ``top``, each once.

    ``ValueError``, ``NotImplementedError`` for a pattern that pathlib refuses.
    """
    if not pattern:
        raise ValueError(f"Unacceptable pattern: {pattern!r}")
    if pattern.startswith("/"):
        raise NotImplementedError("Non-relative patterns are unsupported")
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not _SINCE_313 and any("**" in part and part != "**" for part in parts):
        raise ValueError("Invalid pattern: '**' can only be an entire path component")
    if pattern.endswith("/") or (parts[-1:] == ["**"] and not _SINCE_313):
        parts.append("")
    flags = re.NOFLAG if case_sensitive in (None, True) else re.IGNORECASE
    seen: set[str] = set()
    for found in _Selector(fs, top.rstrip("/") + "/", flags, follow).below("", parts):
        path = found.rstrip("/")
        if path not in seen:
            seen.add(path)
            yield path


class _Selector:
    def __init__(self, fs: Walking, top: str, flags: re.RegexFlag, follow: bool) -> None:
        self._fs = fs
        self._top = top
        self._flags = flags
        self._follow = follow

    def below(self, prefix: str, parts: list[str]) -> Iterator[str]:
        """Paths that begin with ``prefix`` (empty, or with a slash at the end) and match ``parts``."""
        if not parts or parts == [""]:
            if self._fs.isdir(self._top + prefix) if parts else self._fs.exists(self._top + prefix):
                yield prefix
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            yield from self._deep(prefix, rest)
        elif _MAGIC.search(part) or self._flags:
            match = re.compile(fnmatch.translate(part), self._flags).match
            for entry in _entries(self._fs, self._top + prefix):
                if match(entry.name):
                    if not rest:
                        yield prefix + entry.name
                    elif _is_dir(entry):
                        yield from self.below(prefix + entry.name + "/", rest)
        elif rest:
            if self._fs.isdir(self._top + prefix + part):
                yield from self.below(prefix + part + "/", rest)
        elif self._fs.exists(self._top + prefix + part, follow_symlinks=sys.version_info < (3, 12)):
            yield prefix + part

    def _deep(self, prefix: str, rest: list[str]) -> Iterator[str]:
        todo = [prefix]
        while todo:
            at = todo.pop()
            yield from self.below(at, rest)
            for entry in _entries(self._fs, self._top + at):
                if _is_dir(entry, self._follow):
                    todo.append(at + entry.name + "/")
                elif not rest:
                    yield at + entry.name

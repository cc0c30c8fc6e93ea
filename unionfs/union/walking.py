"""Listings and walks: ``DirEntry``, ``scandir``, ``walk``, ``glob``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, AnyStr, Generic, Self

from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG
from unionfs.types import Closing
from unionfs.union.changing import Changing
from unionfs.union.naming import named, plain
from unionfs.union.node import DirNode
from unionfs.union.patterns import Globber

_ENCODING = sys.getfilesystemencoding()
_ERRORS = sys.getfilesystemencodeerrors()


class DirEntry(Generic[AnyStr]):
    """An entry of a directory, as ``os.DirEntry``. Nothing is asked of a layer before a method needs it."""

    __slots__ = ("_d", "_fs", "_ino", "_kind", "_raw", "_where", "name")

    def __init__(self, fs: Walking, d: DirNode, where: AnyStr, name: AnyStr, raw: bytes, ino: int, kind: int) -> None:
        self._fs = fs
        self._d = d
        self._where: AnyStr = where
        self._raw = raw
        self._ino = ino
        self._kind = kind
        self.name: AnyStr = name

    @property
    def path(self) -> AnyStr:
        """The directory's path as it was given to ``scandir``, and the name."""
        return os.path.join(self._where, self.name)

    def __fspath__(self) -> AnyStr:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"

    def inode(self) -> int:
        """``st_ino`` of the entry itself."""
        return self._ino or self.stat(follow_symlinks=False).st_ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is, or leads to, a directory."""
        return self._is(DT_DIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is, or leads to, a regular file."""
        return self._is(DT_REG, follow_symlinks)

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return self._kind == DT_LNK

    def is_junction(self) -> bool:
        """Never: that is a thing of Windows."""
        return False

    def _is(self, kind: int, follow: bool) -> bool:
        if self._kind != DT_LNK or not follow:
            return self._kind == kind
        try:
            return self._fs.tree.resolve(self._raw, start=self._d).kind == kind
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from None

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As ``fs.stat`` of the path."""
        tree = self._fs.tree
        with named(self._fs, self.path):
            if follow_symlinks and self._kind == DT_LNK:
                return tree.stat(tree.resolve(self._raw, start=self._d))
            return tree.stat(tree.lookup(self._d, self._raw))


class Scan(Generic[AnyStr], Closing):
    """What ``scandir`` gives: an iterator over entries, and a context manager."""

    def __init__(self, entries: Iterator[DirEntry[AnyStr]]) -> None:
        self._entries: Iterator[DirEntry[AnyStr]] = entries

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DirEntry[AnyStr]:
        return next(self._entries)

    def close(self) -> None:
        """No more entries come."""
        self._entries = iter(())


class Walking(Changing):
    """Listings of directories and of trees."""

    def scandir(self, path: AnyStr | os.PathLike[AnyStr]) -> Scan[AnyStr]:
        """As ``os.scandir``: entries that know their kind without a ``stat``."""
        where: Any = plain(self, path)
        with named(self, path):
            d = self._opendir(path)
            found = self.tree.listdir(d)
        if isinstance(where, bytes):
            entries: Any = (DirEntry(self, d, where, raw, raw, ino, kind) for raw, ino, kind in found)
        else:
            entries = (
                DirEntry(self, d, where, raw.decode(_ENCODING, _ERRORS), raw, ino, kind) for raw, ino, kind in found
            )
        return Scan(entries)

    def walk(
        self,
        top: AnyStr | os.PathLike[AnyStr],
        topdown: bool = True,
        onerror: Callable[[OSError], object] | None = None,
        followlinks: bool = False,
    ) -> Iterator[tuple[AnyStr, list[AnyStr], list[AnyStr]]]:
        """As ``os.walk``: ``(directory, names of directories, names of others)`` for each directory."""
        start: Any = plain(self, top)
        as_bytes = isinstance(start, bytes)
        todo: list[Any] = [start]
        while todo:
            where = todo.pop()
            if isinstance(where, tuple):
                yield where
                continue
            try:
                with named(self, where):
                    d = self._opendir(where)
                    found = self.tree.listdir(d)
            except OSError as error:
                if onerror is not None:
                    onerror(error)
                continue
            dirs: list[Any] = []
            others: list[Any] = []
            links = set()
            for raw, _, kind in found:
                name = raw if as_bytes else raw.decode(_ENCODING, _ERRORS)
                if kind == DT_DIR:
                    dirs.append(name)
                elif kind == DT_LNK and self._leads_to_directory(d, raw):
                    dirs.append(name)
                    links.add(name)
                else:
                    others.append(name)
            if topdown:
                yield where, dirs, others
            else:
                todo.append((where, dirs, others))
            prefix = os.path.join(where, where[:0])
            todo += [
                prefix + name
                for name in reversed(dirs)
                if followlinks or (name not in links and (not topdown or self._stays(d, name)))
            ]

    def _leads_to_directory(self, d: DirNode, name: bytes) -> bool:
        try:
            return self.tree.resolve(name, start=d).kind == DT_DIR
        except OSError:
            return False

    def _stays(self, d: DirNode, name: str | bytes) -> bool:
        """Whether it is no symbolic link: the caller may have put one there since it was listed."""
        try:
            return self.tree.lookup(d, os.fsencode(name)).kind != DT_LNK
        except OSError:
            return True  # The walk tells the error when it comes to it.

    # Patterns

    def glob(self, pattern: AnyStr, *, include_hidden: bool = False) -> list[AnyStr]:
        """As ``glob.glob(pattern, recursive=True)``: ``**`` stands for any directories; no order.

        A relative pattern starts at the root, and so do the answers. Names with a leading dot match only a pattern with
        one, unless ``include_hidden``.
        """
        return list(self.iglob(pattern, include_hidden=include_hidden))

    def rglob(self, pattern: AnyStr, *, include_hidden: bool = False) -> list[AnyStr]:
        """``glob`` at any depth: of ``**/`` and the pattern."""
        deep = os.path.join(self._like(pattern, b"**"), pattern)
        return self.glob(deep, include_hidden=include_hidden)

    def iglob(self, pattern: AnyStr, *, include_hidden: bool = False) -> Iterator[AnyStr]:
        """``glob``, one by one."""
        for found in Globber(self, include_hidden).paths(os.fsdecode(pattern)):
            yield self._like(pattern, os.fsencode(found))

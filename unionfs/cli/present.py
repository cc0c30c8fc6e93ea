"""Changes as a person reads them, and as a program does."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from unionfs.union.diff import Change

_COLOURS = {"A": "green", "C": "yellow", "D": "red"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def shown(path: str) -> str:
    """``path`` without anything that a terminal would act on."""
    return "".join(c if c.isprintable() else _escaped(c) for c in path)


def _escaped(c: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))


def size(count: int) -> str:
    """A number of bytes, in the unit that suits it."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.5 else f"{value:.1f} {_UNITS[unit]}"


def count_of(number: int, word: str) -> str:
    """``1 file``, ``2 files``, ``2 directories``."""
    plural = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"


def line_of(change: Change) -> str:
    """``A /etc/hosts``, with colours."""
    return f"{click.style(change.letter, fg=_COLOURS[change.letter])} {shown(change.path)}"


def lines(changes: Sequence[Change], *, everything: bool = False) -> Iterator[str]:
    """One line for each change, with colours (click strips them off a terminal).

    What is inside an added directory is counted on its line, unless ``everything`` is asked for.
    """
    moved = {change.renamed_from: change.path for change in changes if change.renamed_from is not None}
    i = 0
    while i < len(changes):
        change, i = changes[i], i + 1
        inside: list[Change] = []
        if not everything and _is_new_directory(change):
            start = i
            while i < len(changes) and changes[i].path.startswith(change.path + "/"):
                i += 1
            inside = list(changes[start:i])
        note = _note(change, inside, moved.get(change.path))
        slash = "/" if _is_directory(change) and change.path != "/" else ""
        path = f"{line_of(change)}{slash}"
        yield f"{path}  {click.style(note, dim=True)}" if note else path


def _is_directory(change: Change) -> bool:
    st = change.after or change.before
    return st is not None and stat.S_ISDIR(st.st_mode)


def _is_new_directory(change: Change) -> bool:
    return (change.kind == "added" or "type" in change.what) and _is_directory(change)


def _note(change: Change, inside: Sequence[Change], moved_to: str | None) -> str:
    notes = []
    if change.renamed_from is not None:
        notes.append(f"renamed from {shown(change.renamed_from)}")
    if moved_to is not None:
        notes.append(f"renamed to {shown(moved_to)}")
    if change.kind == "changed":
        notes.append(", ".join(sorted(change.what)))
        if "data" in change.what and change.before and change.after:
            notes.append(_grown(change.after.st_size - change.before.st_size))
        if "type" in change.what and change.before and change.after:
            notes.append(f"{kind_of(change.before)} to {kind_of(change.after)}")
    elif change.kind == "added" and change.after is not None and not stat.S_ISDIR(change.after.st_mode):
        regular = stat.S_ISREG(change.after.st_mode)
        notes.append(size(change.after.st_size) if regular else kind_of(change.after))
    if inside:
        entries = f"{count_of(len(inside), 'entry')} in it"
        notes.append(entries if change.renamed_from is not None else f"{entries}, {size(written(inside))}")
    return "; ".join(filter(None, notes))


def _grown(by: int) -> str:
    return "" if by == 0 else f"{'+' if by > 0 else '-'}{size(abs(by))}"


def kind_of(st: os.stat_result) -> str:
    """``file``, ``directory``, ``symlink`` …"""
    return _KINDS.get(stat.S_IFMT(st.st_mode), "file")


def written(changes: Sequence[Change]) -> int:
    """Bytes of all regular files that are new or have new content; what came with a renamed directory is neither."""
    moved = tuple(f"{change.path}/" for change in changes if change.renamed_from is not None)
    return sum(
        change.after.st_size
        for change in changes
        if change.after is not None
        and stat.S_ISREG(change.after.st_mode)
        and (change.kind == "added" or change.what & {"data", "type"})
        and not change.path.startswith(moved)
    )


def summary(changes: Sequence[Change]) -> str:
    """``3 added, 1 changed, 2 deleted, 120 KiB``, or ``nothing changed``."""
    if not changes:
        return "nothing changed"
    kinds = [change.kind for change in changes]
    parts = [f"{kinds.count(kind):,} {kind}" for kind in ("added", "changed", "deleted") if kind in kinds]
    return ", ".join([*parts, f"{size(written(changes))} written"])


def as_json(change: Change) -> dict[str, Any]:
    """A change as JSON has it; names that are not UTF-8 have surrogate escapes (PEP 383)."""
    found: dict[str, Any] = {"path": change.path, "kind": change.kind}
    st = change.after or change.before
    if st is not None:
        found["type"] = kind_of(st)
    if change.what:
        found["what"] = sorted(change.what)
    if change.renamed_from is not None:
        found["renamed_from"] = change.renamed_from
    if change.before is not None:
        found["size_before"] = change.before.st_size
    if change.after is not None:
        found["size_after"] = change.after.st_size
    return found

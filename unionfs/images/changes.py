"""Changes, from one process to another."""

from __future__ import annotations

import os
from typing import Any

from unionfs.union.diff import Change

_FIELDS = (
    "st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size",
    "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_blocks", "st_rdev",
)  # fmt: skip


def to_wire(change: Change) -> list[Any]:
    """A change as JSON has it; ``from_wire`` gives it back."""
    before, after = _packed(change.before), _packed(change.after)
    return [change.path, change.kind, sorted(change.what), change.renamed_from, before, after]


def from_wire(value: list[Any]) -> Change:
    """The change that ``to_wire`` made this of."""
    path, kind, what, renamed_from, before, after = value
    return Change(path, kind, frozenset(what), renamed_from, _unpacked(before), _unpacked(after))


def _packed(st: os.stat_result | None) -> list[int] | None:
    return None if st is None else [getattr(st, field) for field in _FIELDS]


def _unpacked(values: list[int] | None) -> os.stat_result | None:
    if values is None:
        return None
    *head, atime, mtime, ctime, blksize, blocks, rdev = values
    times = (atime, mtime, ctime)
    return os.stat_result(
        (
            *head,
            *(time // 10**9 for time in times),
            *(time / 10**9 for time in times),
            *times,
            blksize,
            blocks,
            rdev,
        )
    )

"""Owners and modes that the process may not set: kept beside the file as containers/storage does.

``user.containers.override_stat`` holds ``uid:gid:mode[:type]``, mode in octal with a leading zero, type one of
``file``, ``dir``, ``symlink``, ``pipe``, ``socket``, ``block-MAJOR-MINOR``, ``char-MAJOR-MINOR``
(containers/storage, pkg/idtools; fuse-overlayfs reads the same). It stands on the layer's root too, which tells that
the layer may hold more of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

OVERRIDE = "user.containers.override_stat"

_NOBODY = 0xFFFFFFFF  # (uid_t) -1 is no owner (chown(2)).
_TYPES = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "block": stat.S_IFBLK,
    "char": stat.S_IFCHR,
}
_NAMES = {value: key for key, value in _TYPES.items()}


def encode(st_mode: int, uid: int, gid: int, rdev: int = 0) -> bytes:
    """The attribute's value for these."""
    kind = _NAMES[stat.S_IFMT(st_mode)]
    if kind in ("block", "char"):
        kind = f"{kind}-{os.major(rdev)}-{os.minor(rdev)}"
    return f"{uid}:{gid}:0{stat.S_IMODE(st_mode):o}:{kind}".encode()


def decode(value: bytes) -> tuple[int, int, int, int | None, int | None] | None:
    """``(uid, gid, permission bits, file type or None, rdev or None)``; ``None`` for a malformed value."""
    try:
        uid, gid, mode, *rest = value.decode().split(":")
        kind, *numbers = rest[0].split("-") if rest else ("",)
        rdev = os.makedev(int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None
        if not (0 <= int(uid) < _NOBODY and 0 <= int(gid) < _NOBODY):
            return None
        return int(uid), int(gid), int(mode, 8) & 0o7777, _TYPES.get(kind), rdev
    except (ValueError, IndexError, OverflowError):
        return None


def replaced(
    st: os.stat_result,
    *,
    mode: int | None = None,
    ino: int | None = None,
    dev: int | None = None,
    nlink: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    rdev: int | None = None,
    size: int | None = None,
    blocks: int | None = None,
) -> os.stat_result:
    """``st`` with some fields replaced, nanoseconds and all."""
    return os.stat_result(
        (
            st.st_mode if mode is None else mode,
            st.st_ino if ino is None else ino,
            st.st_dev if dev is None else dev,
            st.st_nlink if nlink is None else nlink,
            st.st_uid if uid is None else uid,
            st.st_gid if gid is None else gid,
            st.st_size if size is None else size,
            *st[7:10],
            st.st_atime,
            st.st_mtime,
            st.st_ctime,
            st.st_atime_ns,
            st.st_mtime_ns,
            st.st_ctime_ns,
            st.st_blksize,
            st.st_blocks if blocks is None else blocks,
            st.st_rdev if rdev is None else rdev,
        )
    )


def apply(st: os.stat_result, value: bytes) -> os.stat_result:
    """``st`` as the override says it."""
    found = decode(value)
    if found is None:
        return st
    uid, gid, mode, kind, rdev = found
    kind = stat.S_IFMT(st.st_mode) if kind is None else kind
    size = 0 if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) else None
    return replaced(st, mode=kind | mode, uid=uid, gid=gid, rdev=rdev, size=size)


def overflow_ids(path: str) -> frozenset[int]:
    """The id under which this process sees ids that its user namespace does not map; empty where all are mapped.

    Source: user_namespaces(7), "Unmapped user and group IDs".
    """
    name = os.path.basename(path).removesuffix("_map")
    try:
        with open(path) as table:
            mapped: Iterable[list[str]] = [line.split() for line in table]
        if sum(int(row[2]) for row in mapped) >= (1 << 32) - 1:
            return frozenset()
        with open(f"/proc/sys/kernel/overflow{name}") as number:
            return frozenset({int(number.read())})
    except OSError:
        return frozenset()  # No /proc: nothing is known, nothing is changed.

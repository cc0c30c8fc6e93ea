"""System calls that Python's ``os`` leaves out, for the conformance suites: utimensat's marks, positions in
directories. Each raises ``OSError``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from unionfs._sys.libc import check, function

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_DIRENT = struct.Struct("=QqHB")  # struct linux_dirent64, up to the name (getdents(2)).

_utimensat = function("utimensat", ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_getdents64 = function("getdents64", ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_NO_CALL = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


class DirEntry(NamedTuple):
    """An entry as getdents64(2) tells it. ``after``: lseek(2) to it goes on behind this entry."""

    name: bytes
    ino: int
    kind: int
    after: int


def utimensat(
    path: str | os.PathLike[str],
    atime: tuple[int, int] | None,
    mtime: tuple[int, int] | None,
    *,
    follow: bool = True,
) -> None:
    """utimensat(2) with its two timespecs, of which the second number may be ``UTIME_NOW`` or ``UTIME_OMIT``.

    With ``None`` for both, the kernel gets no timespecs: both times are now, by the rules for that.
    """
    if _utimensat is None:
        raise _NO_CALL
    times = None if atime is None or mtime is None else struct.pack("@4l", *atime, *mtime)
    check(_utimensat(_AT_FDCWD, os.fsencode(path), times, 0 if follow else _AT_SYMLINK_NOFOLLOW), os.fsencode(path))


def getdents(fd: int, size: int = 1024) -> list[DirEntry]:
    """What one getdents64(2) with room for ``size`` bytes answers; nothing at the end."""
    if _getdents64 is None:
        raise _NO_CALL
    buffer = ctypes.create_string_buffer(size)
    end = check(_getdents64(fd, buffer, size))
    found = []
    at = 0
    while at < end:
        ino, after, length, kind = _DIRENT.unpack_from(buffer, at)
        name = buffer.raw[at + _DIRENT.size : at + length].split(b"\0", 1)[0]
        found.append(DirEntry(name, ino, kind, after))
        at += length
    return found

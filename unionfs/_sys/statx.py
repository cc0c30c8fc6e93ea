"""``statx(2)``, for the one thing that Python's ``os.stat`` does not tell: when a file was made."""

from __future__ import annotations

import ctypes
import struct

from unionfs._sys.libc import check, function

_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BTIME = 0x800
_SIZE = 256  # struct statx
_MASK = struct.Struct("=I")
_TIME = struct.Struct("=qI")
_BTIME = 80

_statx = function("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)


def birth_ns(dir_fd: int, name: bytes) -> int | None:
    """When ``name`` in the open directory was made, in nanoseconds since 1970; ``None`` where the file system does not
    tell. Raises ``OSError``."""
    if _statx is None:
        return None
    buffer = ctypes.create_string_buffer(_SIZE)
    check(_statx(dir_fd, name, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer), name)
    (mask,) = _MASK.unpack_from(buffer)
    if not mask & _STATX_BTIME:
        return None
    seconds, nanoseconds = _TIME.unpack_from(buffer, _BTIME)
    return int(seconds * 1_000_000_000 + nanoseconds)

"""``renameat2(2)``: rename with flags, and whether a file system takes them."""

from __future__ import annotations

import ctypes
import errno
import os

from unionfs._sys.libc import check, function

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

_renameat2 = function("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def renameat2(src_fd: int, src: bytes, dst_fd: int, dst: bytes, flags: int) -> None:
    """Rename ``src`` below ``src_fd`` to ``dst`` below ``dst_fd`` with ``RENAME_*`` flags (renameat2(2)).

    Raises ``OSError``; ``EINVAL`` or ``ENOSYS`` where the file system or the C library does not take the flags.
    """
    if flags == 0:
        os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)
        return
    if _renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), src)
    check(_renameat2(src_fd, src, dst_fd, dst, flags), src, dst)

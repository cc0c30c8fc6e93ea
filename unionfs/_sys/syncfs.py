"""``syncfs(2)``, which Python's ``os`` does not have."""

from __future__ import annotations

import ctypes
import os

from unionfs._sys.libc import check, function

_syncfs = function("syncfs", ctypes.c_int)


def syncfs(fd: int) -> None:
    """Bring the file system of ``fd`` to disk, and no other. ``EIO``, ``ENOSPC``.

    Where the C library does not have it: all of them, by sync(2).
    """
    if _syncfs is None:
        os.sync()
    else:
        check(_syncfs(fd))

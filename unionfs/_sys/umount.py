"""``umount2(2)``, which Python's ``os`` does not have."""

from __future__ import annotations

import ctypes
import errno
import os

from unionfs._sys.libc import check, function

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_umount2 = function("umount2", ctypes.c_char_p, ctypes.c_int)


def umount2(mountpoint: bytes, flags: int = 0) -> None:
    """Unmount what is on top at ``mountpoint``. Raises ``OSError``: ``EBUSY``, ``EPERM``, ``EINVAL`` (no mount) …."""
    if _umount2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), mountpoint)
    check(_umount2(mountpoint, flags), mountpoint)

"""The mount API in steps: ``fsopen(2)``, ``fsconfig(2)``, ``fsmount(2)``, ``move_mount(2)`` (Linux 5.2).

By syscall number, since C libraries have had these calls only of late (glibc 2.36); the numbers are the same on all
architectures but alpha (Documentation/process/adding-syscalls.rst). Sources: fs/fsopen.c, fs/fs_context.c,
include/uapi/linux/mount.h, Documentation/filesystems/mount_api.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os

from unionfs._sys.libc import check, function
from unionfs.types import Closing

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10

STRING_MAX = 255
"""Bytes of a value (fs/fsopen.c: ``strndup_user(_value, 256)``)."""

_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_F_EMPTY_PATH = 0x4
_AT_FDCWD = -100

_syscall = function("syscall", ctypes.c_long)


def _call(number: int, *args: int | bytes | None) -> int:
    if _syscall is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    words = [ctypes.c_long(arg) if isinstance(arg, int) else ctypes.c_char_p(arg) for arg in args]
    return check(_syscall(number, *words))


class Context(Closing):
    """A mount of ``fstype`` in the making: ``set`` its options, ``create`` the file system, ``mount`` it.

        with Context("overlay") as context:
            context.set("lowerdir+", "/srv/base")
            context.create()
            fd = context.mount(MOUNT_ATTR_NODEV)
        move_mount(fd, "/mnt/merged")

    What fails is an ``OSError`` with what the kernel says of it, in its own words where it has some. ``fsopen`` itself
    fails with ``EPERM`` without the right to mount, ``ENODEV`` for an unknown file system, ``ENOSYS`` before Linux 5.2.
    """

    def __init__(self, fstype: str) -> None:
        self._fd = _call(_FSOPEN, os.fsencode(fstype), _CLOEXEC)

    def set(self, key: str, value: str | bytes | None = None) -> None:
        """Set an option, or without ``value`` a flag. ``EINVAL`` for what the file system does not know, or for a value
        that is longer than ``STRING_MAX`` bytes."""
        if value is None:
            self._config(_SET_FLAG, os.fsencode(key), None)
        else:
            self._config(_SET_STRING, os.fsencode(key), os.fsencode(value))

    def create(self) -> None:
        """Make the file system, with the options set."""
        self._config(_CMD_CREATE, None, None)

    def mount(self, attributes: int = 0) -> int:
        """A descriptor of a mount that is nowhere yet. ``attributes``: ``MOUNT_ATTR_*``."""
        try:
            return _call(_FSMOUNT, self._fd, _CLOEXEC, attributes)
        except OSError as error:
            raise self._explained(error) from None

    def _config(self, command: int, key: bytes | None, value: bytes | None) -> None:
        try:
            _call(_FSCONFIG, self._fd, command, key, value, 0)
        except OSError as error:
            raise self._explained(error) from None

    def _explained(self, error: OSError) -> OSError:
        """``error`` with the errors among the context's messages; each begins with ``e``, ``w`` or ``i`` and a space
        ("The filesystem context", ``logfc``)."""
        said = []
        try:
            while message := os.read(self._fd, 4096):
                if message.startswith(b"e "):
                    said.append(os.fsdecode(message[2:].strip()))
        except OSError:
            pass  # ENODATA: that was the last.
        return OSError(error.errno, "; ".join(said) or error.strerror)

    def close(self) -> None:
        """Let go of it; a mount that was made stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def move_mount(fd: int, target: str) -> None:
    """Attach the mount of ``Context.mount`` at a directory. Raises ``OSError`` that names it."""
    try:
        _call(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), _F_EMPTY_PATH)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None

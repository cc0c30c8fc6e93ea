"""``/dev/fuse``: opening it, mounting with it, and its ioctls.

Sources: Documentation/filesystems/fuse.rst, include/uapi/linux/fuse.h, mount(2), fusermount3(1); the socket between
fusermount3 and its caller is libfuse's (lib/mount.c, util/fusermount.c).
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import stat
import struct
import subprocess

from unionfs._sys.libc import check, function

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
"""Words of mount(8) that are flags of mount(2)."""

DEVICE = "/dev/fuse"

# _IOW(229, 1, struct fuse_backing_map) and _IOW(229, 2, uint32_t)
_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = struct.Struct("=iI8x")

_mount = function(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p
)  # fmt: skip


def is_device() -> bool:
    """Whether ``/dev/fuse`` can be opened and is what it should be. ``OSError`` if it can't."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        st = os.fstat(fd)
        return stat.S_ISCHR(st.st_mode) and st.st_rdev == os.makedev(10, 229)
    finally:
        os.close(fd)


def mount(mountpoint: bytes, source: bytes, subtype: str, flags: list[str], words: list[str]) -> int:
    """Mount by mount(2) and return the connection, an open ``/dev/fuse``. The first request is INIT.

    ``flags`` are names from ``MS_FLAGS``, ``words`` options of FUSE such as ``allow_other``. Raises ``OSError``:
    ``EPERM`` without the right to mount, ``ENOENT`` or ``EACCES`` for the device.
    """
    if _mount is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), mountpoint)
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        mode = stat.S_IFMT(os.stat(mountpoint).st_mode)
        data = ",".join(
            [f"fd={fd}", f"rootmode={mode:o}", f"user_id={os.geteuid()}", f"group_id={os.getegid()}", *words]
        )
        bits = 0
        for flag in flags:
            bits |= MS_FLAGS[flag]
        check(_mount(source, mountpoint, f"fuse.{subtype}".encode(), bits, data.encode()), mountpoint)
    except BaseException:
        os.close(fd)
        raise
    return fd


def helper() -> str | None:
    """The set-user-ID program that mounts for users, or ``None`` where there is none."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def mount_by_helper(mountpoint: bytes, source: bytes, subtype: str, flags: list[str], words: list[str]) -> int:
    """Mount by ``fusermount3`` and return the connection that it hands over.

    Raises ``OSError``: ``ENOENT`` where it is not installed, ``EPERM`` with what it says when it refuses.
    """
    program = helper()
    if program is None:
        raise OSError(errno.ENOENT, "fusermount3 is not installed")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    name = source.replace(b"\\", b"\\\\").replace(b",", b"\\,")
    options = b",".join([b"fsname=" + name, f"subtype={subtype}".encode(), *map(os.fsencode, [*flags, *words])])
    with ours, theirs:
        done = subprocess.run(
            [os.fsencode(program), b"-o", options, b"--", mountpoint],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().removeprefix("fusermount3: ").removeprefix("fusermount: ")
            raise OSError(errno.EPERM, said or f"{program} failed", mountpoint)
        fds = array.array("i")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: fds.itemsize])
    if not fds:
        raise OSError(errno.EIO, f"{program} handed over no connection", mountpoint)
    return fds[0]


def backing_open(connection: int, fd: int) -> int:
    """Register the open file ``fd`` to be read and written by the kernel itself. Its number; never 0.

    ``EPERM`` without ``CAP_SYS_ADMIN``, ``ENOTTY`` before Linux 6.9, ``ELOOP`` when it is on a stacked file system.
    """
    # With a buffer that it may change, fcntl.ioctl answers the number.
    return int(fcntl.ioctl(connection, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0)), True))


def backing_close(connection: int, number: int) -> None:
    """Forget a registered file; who has it open keeps it."""
    fcntl.ioctl(connection, _BACKING_CLOSE, struct.pack("=I", number))

"""The wire format of ``/dev/fuse``: pure bytes, no kernel needed.

Structures and numbers as in ``include/uapi/linux/fuse.h``, protocol 7.45; all integers in the machine's byte order. A
request is a header, a structure that goes by the opcode, and names that end in a zero byte; an answer is a header and a
structure. Times are signed here: the kernel puts a ``time64_t`` on the wire as it is.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import Final

# Opcodes
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = 8, 9, 10, 11, 12, 13, 14, 15, 16
STATFS, RELEASE = 17, 18
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT, OPENDIR = 20, 21, 22, 23, 24, 25, 26, 27
READDIR, RELEASEDIR, FSYNCDIR, GETLK, SETLK, SETLKW, ACCESS, CREATE = 28, 29, 30, 31, 32, 33, 34, 35
INTERRUPT, BMAP, DESTROY, IOCTL, POLL, NOTIFY_REPLY, BATCH_FORGET = 36, 37, 38, 39, 40, 41, 42
FALLOCATE, READDIRPLUS, RENAME2, LSEEK, COPY_FILE_RANGE = 43, 44, 45, 46, 47
SYNCFS, TMPFILE, STATX = 50, 51, 52

OPCODES: Final = {number: name for name, number in globals().items() if isinstance(number, int)}
"""Names of opcodes, for log lines."""

MAJOR: Final = 7
MINOR: Final = 45
MINOR_MIN: Final = 36
"""Of Linux 6.1; older kernels lay out some structures in another way."""

ROOT_ID: Final = 1
MAX_WRITE: Final = 1 << 20
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
IN_BUFFER: Final = MAX_WRITE + PAGE
"""Bytes that any request fits in: header and structure of a WRITE, and its data."""

# INIT flags; above bit 31 they stand in flags2 (FUSE_INIT_EXT).
ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
WRITEBACK_CACHE = 1 << 16
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
PASSTHROUGH = 1 << 37

# SETATTR: what is valid
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME, FATTR_FH = 1, 2, 4, 8, 16, 32, 64
FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_KILL_SUIDGID = 128, 256, 2048
GETATTR_FH = 1
SETXATTR_ACL_KILL_SGID = 1

# Answers to OPEN and CREATE
FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FOPEN_PASSTHROUGH = 1 << 1, 1 << 5, 1 << 7

OPEN_KILL_SUIDGID = 1
WRITE_KILL_SUIDGID = 1 << 2
FSYNC_FDATASYNC = 1

# Messages to the kernel: the error field of an answer to nobody.
NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY = 2, 3

HEADER = Struct("=IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding"""
OUT_HEADER = Struct("=IiQ")
"""len, error (negative errno), unique"""
OUT: Final = OUT_HEADER.size

_ATTR = "QQQqqqIIIIIIIIII"
# ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
_ENTRY = "QQQQII"
# nodeid, generation, seconds to trust the name, the attributes, nanoseconds of both
ENTRY_OUT = Struct("=" + _ENTRY + _ATTR)
NEGATIVE_OUT = Struct("=" + _ENTRY + "88x")
ATTR_OUT = Struct("=QII" + _ATTR)
OPEN_OUT = Struct("=QIi")
"""fh, flags, backing_id"""
DIRENT = Struct("=QQII")
"""ino, offset of the next, length of the name, type; then the name, padded to 8 bytes"""
DIRENTPLUS = Struct("=" + _ENTRY + _ATTR + "QQII")

INIT_IN = Struct("=IIIII")
"""major, minor, max_readahead, flags, flags2"""
INIT_OUT = Struct("=IIIIHHIIHHII24x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment, flags2, max_stack_depth"""

SETATTR_IN = Struct("=I4xQQQqqqIIIIIII4x")
"""valid, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, unused, uid, gid"""
GETATTR_IN = Struct("=I4xQ")
MKNOD_IN = Struct("=IIII")
"""mode, rdev, umask, padding"""
MKDIR_IN = Struct("=II")
"""mode, umask"""
CREATE_IN = Struct("=IIII")
"""flags, mode, umask, open_flags"""
OPEN_IN = Struct("=II")
"""flags, open_flags"""
RW_IN = Struct("=QQIIQII")
"""fh, offset, size, read or write flags, lock_owner, flags, padding"""
RELEASE_IN = Struct("=QIIQ")
FSYNC_IN = Struct("=QII")
SETXATTR_IN = Struct("=IIII")
"""size, flags, setxattr_flags, padding"""
GETXATTR_IN = Struct("=II")
FALLOCATE_IN = Struct("=QQQII")
"""fh, offset, length, mode, padding"""
LSEEK_IN = Struct("=QQII")
"""fh, offset, whence, padding"""
COPY_IN = Struct("=QQQQQQQ")
"""fh_in, off_in, nodeid_out, fh_out, off_out, len, flags"""
STATX_IN = Struct("=IIQII")
"""getattr_flags, reserved, fh, sx_flags, sx_mask"""
STATX_OUT = Struct("=QII16xIIQIIIHHQQQQqIiqIiqIiqIiIIII112x")  # fmt: skip
"""attr_valid, its nanoseconds, flags; mask, blksize, attributes, nlink, uid, gid, mode, spare, ino, size, blocks,
attributes_mask; atime, btime, ctime, mtime as seconds, nanoseconds, reserved; rdev major, minor, dev major, minor"""

RENAME_IN = Struct("=Q")
RENAME2_IN = Struct("=QII")
"""newdir, flags, padding"""
U64 = Struct("=Q")
FORGET_ONE = Struct("=QQ")
"""nodeid, nlookup"""
FORGET_COUNT = Struct("=I4x")
WRITE_OUT = Struct("=I4x")
STATFS_OUT = Struct("=QQQQQIIII24x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding"""
INVAL_INODE_OUT = Struct("=Qqq")
INVAL_ENTRY_OUT = Struct("=QII")

_NS: Final = 1_000_000_000


def attributes(st: os.stat_result, ino: int, nlink: int) -> tuple[int, ...]:
    """The fields of ``fuse_attr``, for ``ENTRY_OUT``, ``ATTR_OUT`` and ``DIRENTPLUS``."""
    # As a tuple it has whole seconds, and no floats (os.stat_result).
    mode, _, _, _, uid, gid, size, atime, mtime, ctime = st
    return (  # type: ignore[return-value]
        ino, size, st.st_blocks, atime, mtime, ctime,
        st.st_atime_ns % _NS, st.st_mtime_ns % _NS, st.st_ctime_ns % _NS,
        mode, nlink, uid, gid, st.st_rdev & 0xFFFFFFFF, st.st_blksize, 0,
    )  # fmt: skip


def names(body: memoryview, count: int = 1) -> list[bytes]:
    """The names at the end of a request, each ended by a zero byte."""
    return bytes(body).split(b"\0", count)[:count]


def seconds(timeout: float) -> tuple[int, int]:
    """A time to trust something, as whole seconds and nanoseconds."""
    whole = int(timeout)
    return whole, int((timeout - whole) * _NS)


def message(code: int, *parts: bytes) -> bytes:
    """A notification to the kernel."""
    payload = b"".join(parts)
    return OUT_HEADER.pack(OUT + len(payload), code, 0) + payload

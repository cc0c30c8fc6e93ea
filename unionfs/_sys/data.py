"""Moving file data by the cheapest way that works: reflink, ``copy_file_range``, then read and write; holes are kept.

Sources: ioctl_ficlonerange(2), copy_file_range(2), lseek(2) (``SEEK_DATA``, ``SEEK_HOLE``).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from unionfs._sys.libc import check, function

FICLONE = 0x40049409
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2

_NO_CLONE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY})
_NO_RANGE = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})
_CHUNK = 1 << 20
_RANGE_CHUNK = 1 << 30
_SMALL = 1 << 16

# Pairs of devices that refused FICLONE: asked once, not once a file.
_refused: set[tuple[int, int]] = set()

_fallocate = function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """``fallocate(2)`` with its mode bits. Raises ``OSError`` (``EOPNOTSUPP`` where the file system has no such
    thing)."""
    if _fallocate is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    check(_fallocate(fd, mode, offset, length))


def copy_data(src: int, dst: int, src_stat: os.stat_result, limit: int | None = None) -> bool:
    """Make ``dst`` (a new, empty file) hold the first ``limit`` bytes of ``src`` (all of it by default).

    Answers whether bytes were written that a flush would bring to disk: a reflink waits for the source's and is
    metadata alone (ioctl_ficlonerange(2)). Neither file's offset is used; that of ``src`` moves where it has holes.
    Raises ``OSError``: ``ENOSPC``, ``EIO`` ….
    """
    size = src_stat.st_size if limit is None else min(limit, src_stat.st_size)
    if size == 0 or (limit is None and size > _SMALL and _reflink(src, dst, src_stat)):
        return False
    if src_stat.st_blocks * 512 >= size:
        _copy_range(src, dst, 0, size)
        return True
    os.ftruncate(dst, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(src, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            _copy_range(src, dst, position, size - position)
            break
        end = min(os.lseek(src, start, os.SEEK_HOLE), size)
        if start >= size:
            break
        _copy_range(src, dst, start, end - start)
        position = end
    return True


def _reflink(src: int, dst: int, src_stat: os.stat_result) -> bool:
    pair = (src_stat.st_dev, os.fstat(dst).st_dev)
    if pair in _refused:
        return False
    try:
        fcntl.ioctl(dst, FICLONE, src)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        if error.errno != errno.ETXTBSY:
            _refused.add(pair)
        return False
    return True


def _copy_range(src: int, dst: int, offset: int, length: int) -> None:
    end = offset + length
    if length > _SMALL:
        try:
            while offset < end:
                count = os.copy_file_range(src, dst, min(end - offset, _RANGE_CHUNK), offset, offset)
                if count == 0:
                    break  # Some file systems answer 0 for files they make up (procfs); read them instead.
                offset += count
        except OSError as error:
            if error.errno not in _NO_RANGE:
                raise
    while offset < end:
        block = os.pread(src, min(end - offset, _CHUNK), offset)
        if not block:
            return
        write_all(dst, block, offset)
        offset += len(block)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """``pwrite`` until all of ``data`` stands at ``offset``."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count

"""The bytes of a file in memory, in pages: what was never written takes no room and reads as zeros."""

from __future__ import annotations

import errno
import os
from bisect import bisect_left

_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_ZERO_RANGE = 16
_MAX = (1 << 63) - 1


def error(number: int, name: bytes | None = None) -> OSError:
    """The ``OSError`` for this errno, with the file name where there is one."""
    return OSError(number, os.strerror(number), name) if name is not None else OSError(number, os.strerror(number))


class Pages:
    """Sparse bytes: ``length`` of them, of which the pages that were written are kept."""

    __slots__ = ("_numbers", "_pages", "length")

    SIZE = 4096

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        # The page numbers in order, made when somebody seeks.
        self._numbers: list[int] | None = None
        self.length = 0

    @property
    def count(self) -> int:
        """How many pages are kept."""
        return len(self._pages)

    def read(self, size: int, offset: int) -> bytes:
        """As ``pread(2)``."""
        end = min(offset + size, self.length)
        if offset >= end:
            return b""
        parts: list[bytes | bytearray] = []
        while offset < end:
            number, start = divmod(offset, self.SIZE)
            wanted = min(self.SIZE - start, end - offset)
            part = self._pages.get(number, b"")[start : start + wanted]
            parts.append(part)
            if len(part) < wanted:
                parts.append(bytes(wanted - len(part)))
            offset += wanted
        return b"".join(parts)

    def write(self, data: memoryview, offset: int) -> None:
        """As ``pwrite(2)``. ``EFBIG`` beyond 2**63 - 1."""
        if offset + len(data) > _MAX:
            raise error(errno.EFBIG)
        at, end = 0, len(data)
        while at < end:
            number, start = divmod(offset + at, self.SIZE)
            part = data[at : at + self.SIZE - start]
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = bytearray(start)
                self._numbers = None
            elif len(page) < start:
                page.extend(bytes(start - len(page)))
            page[start : start + len(part)] = part
            at += len(part)
        self.length = max(self.length, offset + end)

    def truncate(self, length: int) -> None:
        """As ``truncate(2)``: ``EINVAL`` for a negative length."""
        if not 0 <= length <= _MAX:
            raise error(errno.EINVAL if length < 0 else errno.EFBIG)
        if length < self.length:
            self._drop(length, self.length)
        self.length = length

    def _drop(self, start: int, end: int) -> None:
        """Make a hole of the bytes from ``start`` to ``end``."""
        end = min(end, self.length)
        if start >= end:
            return
        whole = range(-(-start // self.SIZE), -(-end // self.SIZE) if end == self.length else end // self.SIZE)
        for edge in {start // self.SIZE, (end - 1) // self.SIZE}:
            page = self._pages.get(edge)
            if page is not None and edge not in whole:
                first = edge * self.SIZE
                low, high = max(start - first, 0), min(end - first, len(page))
                if low < high:
                    page[low:high] = bytes(high - low)
        gone = [n for n in whole if n in self._pages] if len(whole) < len(self._pages) else [
            n for n in self._pages if n in whole
        ]  # fmt: skip
        for number in gone:
            del self._pages[number]
        if gone:
            self._numbers = None

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """As ``fallocate(2)``: holes are punched and ranges zeroed; there is nothing to reserve."""
        if offset < 0 or length <= 0:
            raise error(errno.EINVAL)
        if offset + length > _MAX:
            raise error(errno.EFBIG)
        if mode not in (0, _KEEP_SIZE, _PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE, _ZERO_RANGE | _KEEP_SIZE):
            raise error(errno.EOPNOTSUPP)
        if mode & (_PUNCH_HOLE | _ZERO_RANGE):
            self._drop(offset, offset + length)
        if not mode & _KEEP_SIZE:
            self.length = max(self.length, offset + length)

    def seek(self, offset: int, whence: int) -> int:
        """As ``lseek(2)`` with ``SEEK_DATA`` and ``SEEK_HOLE``. ``ENXIO`` past the end."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise error(errno.EINVAL)
        if not 0 <= offset < self.length:
            raise error(errno.ENXIO)
        number = offset // self.SIZE
        if whence == os.SEEK_HOLE:
            while number in self._pages:
                number += 1
        else:
            if self._numbers is None:
                self._numbers = sorted(self._pages)
            index = bisect_left(self._numbers, number)
            if index == len(self._numbers):
                raise error(errno.ENXIO)
            number = self._numbers[index]
        return min(max(offset, number * self.SIZE), self.length)

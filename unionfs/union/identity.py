"""Inode numbers: one number space for objects from several file systems, the same at every mount of the stack.

The bottom layer's file system keeps its own numbers. The others get theirs below a prefix that counts the file systems
from the bottom layer up, so that a new layer on top moves nothing. (overlayfs does likewise, "xino".)
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import xxhash

from unionfs.layer.protocol import Layer

_SHIFT = 48
_MASK = (1 << _SHIFT) - 1
_FOREIGN = 1 << 14


class Numbers:
    """``number`` gives an object's inode number in the union, ``device`` is the union's ``st_dev``."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._prefix: dict[int, int] = {}
        self.home = -1
        """``st_dev`` of the file system whose numbers stay as they are."""
        first = None
        for layer in reversed(layers):
            st = layer.stat(layer.root, b".")
            if first is None:
                first = st
                self.home = st.st_dev
            self._prefix.setdefault(st.st_dev, len(self._prefix))
        if first is None:
            raise ValueError("a union needs a layer")
        seed = xxhash.xxh64_intdigest(b"%d:%d" % (first.st_dev, first.st_ino))
        # A device of no driver (major 0), as the kernel gives to file systems without one.
        self.device = os.makedev(0, 0x80000 | seed & 0x7FFFF)
        self.root = first.st_ino

    def number(self, st: os.stat_result) -> int:
        """The inode number in the union of what a layer describes as ``st``."""
        if st.st_dev == self.home:
            return st.st_ino
        prefix = self._prefix.get(st.st_dev)
        if prefix is None:
            prefix = self._prefix[st.st_dev] = self._foreign(st.st_dev)
        if st.st_ino <= _MASK:
            return prefix << _SHIFT | st.st_ino
        return 1 << 63 | xxhash.xxh64_intdigest(b"%d:%d" % (prefix, st.st_ino)) >> 1

    def _foreign(self, dev: int) -> int:
        """A prefix for a file system that is mounted somewhere below a layer's root."""
        taken = set(self._prefix.values())
        prefix = _FOREIGN | dev & (_FOREIGN - 1)
        while prefix in taken:
            prefix = _FOREIGN | (prefix + 1) & (_FOREIGN - 1)
        return prefix


def numbered(st: os.stat_result, ino: int, dev: int, nlink: int) -> os.stat_result:
    """``st`` with these in it; unpacked and written out, since every cold ``stat`` passes here."""
    mode, _, _, _, uid, gid, size, atime, mtime, ctime = st
    return os.stat_result(
        (
            mode,
            ino,
            dev,
            nlink,
            uid,
            gid,
            size,
            atime,
            mtime,
            ctime,
            st.st_atime,
            st.st_mtime,
            st.st_ctime,
            st.st_atime_ns,
            st.st_mtime_ns,
            st.st_ctime_ns,
            st.st_blksize,
            st.st_blocks,
            st.st_rdev,
        )
    )

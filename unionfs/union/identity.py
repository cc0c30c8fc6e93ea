"""Inode numbers: one number space for objects from several file systems, the same at every mount of the stack.

The bottom layer's file system keeps its own numbers. The others get theirs below a prefix that counts the file systems
from the bottom layer up, so that a new layer on top moves nothing. (overlayfs does likewise, "xino".)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import xxhash

from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR, Layer
from unionfs.union.node import DirNode, FileNode, Node

if TYPE_CHECKING:
    from unionfs.union.reader import TreeReader

_SHIFT = 48
_MASK = (1 << _SHIFT) - 1
_FOREIGN = 1 << 14


class Numbers:
    """``number`` gives an object's inode number in the union, ``device`` is the union's ``st_dev``."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._prefix: dict[int, int] = {}
        self.home = -1
        """``st_dev`` of the file system whose numbers stay as they are."""
        if not layers:
            raise ValueError("a union needs a layer")
        first = layers[-1].stat(layers[-1].root, b".")
        self.home = first.st_dev
        self.add(layers)
        seed = xxhash.xxh64_intdigest(b"%d:%d" % (first.st_dev, first.st_ino))
        # A device of no driver (major 0), as the kernel gives to file systems without one.
        self.device = os.makedev(0, 0x80000 | seed & 0x7FFFF)
        self.root = first.st_ino

    def add(self, layers: Sequence[Layer]) -> None:
        """Count the file systems of these layers, from the bottom up, after those that have a number space already."""
        for layer in reversed(layers):
            self._prefix.setdefault(identity_of(layer)[0], len(self._prefix))

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


def identity_of(layer: Layer) -> tuple[int, int]:
    """``st_dev`` and ``st_ino`` of its root: two layers that have the same are of one directory."""
    if isinstance(layer, DirectoryLayer):
        return layer.identity  # A frozen one knows it without being opened.
    st = layer.stat(layer.root, b".")
    return st.st_dev, st.st_ino


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


def settle_number(tree: TreeReader, n: Node, st: os.stat_result) -> None:
    """Give a new node its inode number; ``st``: what its layer says of it."""
    home, lname = tree.home_of(n)
    if home.layer.has_inos:
        if isinstance(n, DirNode) and n.srcs is not None:
            home, lname = n.srcs[0], b"."
        marks = home.layer.marks(home, lname)
        # readdir(3) hides what has the number 0.
        if marks.ino and not _is_above(n, marks.ino):
            n.ino = marks.ino
            return
        if marks.origin is not None:
            st = _origin(tree, n, marks.origin) or st
    n.ino = tree.numbers.number(st)


def _is_above(n: Node, ino: int) -> bool:
    """Whether a directory above ``n`` has this number: programs that walk a tree would see a loop (fts(3))."""
    at = n.parent if n.kind == DT_DIR else None
    while at is not None and at.ino != ino:
        at = at.parent
    return at is not None


def _origin(tree: TreeReader, n: Node, handle: bytes) -> os.stat_result | None:
    """What ``n`` was before overlayfs copied it up (overlayfs.rst, "inode properties"): that had the number."""
    for layer in tree.resolver.layers:
        st = layer.by_handle(handle)
        if st is not None:
            # Of a hard link without an index there may be several copies.
            alone = n.kind == DT_DIR or st.st_nlink == 1 or (isinstance(n, FileNode) and n.handle is not None)
            return st if alone and st.st_mode >> 12 == n.kind else None
    return None

"""Listings of directories in pieces, with offsets that mean the same at any time (telldir(3), seekdir(3)).

The offset of an entry is a hash of its name, and entries come in that order; so a listing can go on where it was after
names have come and gone, or after this process has forgotten it (ext4 does likewise).
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from unionfs.union.node import DirNode
    from unionfs.union.tree import Tree

DOT, DOT_DOT = 1, 2
"""The offsets after ``.`` and ``..``; all others are greater."""

_KEPT = 64  # listings
_KEPT_NAMES = 1 << 20  # names in all of them


def offset_of(name: bytes) -> int:
    """The offset of a name, but for collisions."""
    return xxh3_64_intdigest(name) >> 1 | 4


class Listing:
    """The names of a directory, and the offset of each."""

    __slots__ = ("names", "offsets")

    def __init__(self, names: list[bytes]) -> None:
        pairs = sorted([(xxh3_64_intdigest(name) >> 1 | 4, name) for name in names])
        self.names = [name for _, name in pairs]
        self.offsets = array("Q", [offset for offset, _ in pairs])
        for i in range(1, len(pairs)):
            if self.offsets[i] <= self.offsets[i - 1]:
                self.offsets[i] = self.offsets[i - 1] + 1

    def after(self, offset: int) -> int:
        """The index of the first name past ``offset``."""
        return 0 if offset <= DOT_DOT else bisect_right(self.offsets, offset)


class Listings:
    """Listings that are being read, so that each piece need not sort the names anew."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._kept: OrderedDict[DirNode, Listing] = OrderedDict()
        self._names = 0
        self._lock = threading.Lock()

    def of(self, d: DirNode, offset: int) -> Listing:
        """The listing to go on with at ``offset``; a new one at the beginning."""
        with self._lock:
            found = self._kept.get(d)
            if found is not None and offset:
                self._kept.move_to_end(d)
                return found
        with self._tree.lock:
            names = list(self._tree.entries(d))
        found = Listing(names)
        with self._lock:
            self._drop(d)
            self._kept[d] = found
            self._names += len(names)
            while len(self._kept) > _KEPT or (self._names > _KEPT_NAMES and len(self._kept) > 1):
                self._drop(next(iter(self._kept)))
        return found

    def done(self, d: DirNode) -> None:
        """Read to its end."""
        with self._lock:
            self._drop(d)

    def clear(self) -> None:
        """The directories have other names now."""
        with self._lock:
            self._kept.clear()
            self._names = 0

    def _drop(self, d: DirNode) -> None:
        found = self._kept.pop(d, None)
        if found is not None:
            self._names -= len(found.names)

"""The nodes that the kernel knows, by the numbers under which it knows them.

A listing with attributes (READDIRPLUS) makes the kernel know every file of a directory, most of which nobody will ask
for again. So such a file gets a number that says where it stands in the listing, and no node until it is asked for.
That holds while nobody but the kernel changes the tree (``sole``): before one of these files loses its name, its number
is tied to its node.
"""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from unionfs.mount.devfuse.listing import Listing, offset_of
from unionfs.mount.devfuse.wire import ROOT_ID
from unionfs.union.serving import forget

if TYPE_CHECKING:
    from unionfs.union.node import DirNode, Node
    from unionfs.union.tree import Tree

_SHELVED: Final = 1 << 62  # No address of an object has this bit.
_INDEX_BITS: Final = 32
_INDEX: Final = (1 << _INDEX_BITS) - 1


class Shelf:
    """The files of one listing that have a number by their place in it: ``base`` and the place.

    ``counts``: how many answers have named each, up to 255; ``live``: how many of them the kernel remembers.
    """

    __slots__ = ("base", "counts", "directory", "listing", "live")

    def __init__(self, directory: DirNode, listing: Listing, base: int) -> None:
        self.directory = directory
        self.listing = listing
        self.base = base
        self.counts = bytearray(len(listing.names))
        self.live = 0


class Nodes(dict[int, "Node"]):
    """Number to node, for all that the kernel may ask for. A file of a shelf gets its node here.

    ``ESTALE`` for a number that the kernel was never told, ``ENOENT`` where a file has gone from under us.
    """

    def __init__(self, table: NodeTable) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, number: int) -> Node:
        return self._table.tie(number)


class NodeTable:
    """``nodes[nodeid]`` is a node as long as the kernel remembers it: till as many FORGETs as answers have named it.

    A ``nodeid`` is the ``id`` of the node, which nothing else has while the table holds it, or a place on a shelf; 1 is
    the root.
    """

    def __init__(self, tree: Tree) -> None:
        self.nodes = Nodes(self)
        self.nodes[ROOT_ID] = tree.root
        self._tree = tree
        self._root = tree.root
        self._more: dict[int, int] = {}  # Answers beyond the first: most nodes have one.
        self._shelves: dict[int, Shelf] = {}
        self._shelf_of: dict[DirNode, Shelf] = {}
        self._next_base = _SHELVED
        self._numbers: dict[int, int] = {}
        """Of nodes that were tied to a place on a shelf: ``id`` to number."""
        self._lock = threading.Lock()

    def remember(self, n: Node) -> int:
        """The kernel is about to be told of ``n``: its number."""
        number = id(n)
        with self._lock:
            if self._numbers:
                number = self._numbers.get(number, number)
                if number & _SHELVED:
                    self._count(self._shelves[number & ~_INDEX], number)
                    return number
            if number not in self.nodes:
                if n is self._root:
                    return ROOT_ID
                self.nodes[number] = n
            else:
                self._more[number] = self._more.get(number, 0) + 1
        return number

    def number(self, n: Node) -> int | None:
        """Its number, if the kernel knows it."""
        number = self._numbers.get(id(n), id(n))
        return number if number in self.nodes else ROOT_ID if n is self._root else None

    def forget(self, number: int, count: int, gone: Callable[[int], None]) -> None:
        """The kernel takes ``count`` answers back; if it has forgotten the node, ``gone(number)`` is called before the
        number can be another's."""
        with self._lock:
            if number & _SHELVED:
                n = self._unshelve(number, count)
                if n is None:
                    return
            else:
                if number == ROOT_ID or number not in self.nodes:
                    return
                more = self._more.pop(number, 0) - count
                if more >= 0:
                    if more:
                        self._more[number] = more
                    return
                n = self.nodes.pop(number)
        gone(number)
        forget(self._tree, n)

    def clear(self) -> None:
        """The kernel is gone, and remembers nothing."""
        for number in list(self.nodes):
            if number != ROOT_ID:
                n = self.nodes.pop(number)
                forget(self._tree, n)
                del n
        with self._lock:
            self._more.clear()
            self._numbers.clear()
            self._shelves.clear()
            self._shelf_of.clear()

    # Shelves

    def shelf(self, d: DirNode, listing: Listing) -> Shelf:
        """The shelf of a directory: the one it has, or a new one for this listing."""
        with self._lock:
            found = self._shelf_of.get(d)
            if found is None:
                found = Shelf(d, listing, self._next_base)
                self._next_base += 1 << _INDEX_BITS
                self._shelf_of[d] = found
                self._shelves[found.base] = found
            return found

    def done(self, shelf: Shelf) -> None:
        """The listing has come to its end: a shelf with nothing on it goes."""
        with self._lock:
            if not shelf.live:
                self._drop(shelf)

    def place(self, shelf: Shelf, i: int) -> int | None:
        """The kernel is about to be told of the file at this place: its number; ``None`` if the place is taken by a
        file that had the name before."""
        number = shelf.base | i
        with self._lock:
            if not shelf.counts[i]:
                shelf.counts[i] = 1
                shelf.live += 1
            elif number in self.nodes:
                return None
            else:
                self._count(shelf, number)
        return number

    def known(self, d: DirNode, name: bytes) -> int | None:
        """The number of a file without a node that the kernel knows by its place on a shelf; counted once more."""
        number = self.shelved(d, name)
        if number is None:
            return None
        with self._lock:
            shelf = self._shelves.get(number & ~_INDEX)
            if shelf is None or not shelf.counts[number & _INDEX]:
                return None
            self._count(shelf, number)
        return number

    def before_change(self, d: DirNode, name: bytes) -> None:
        """The entry may lose its name: what the kernel knows by its place is tied to its node."""
        if self._shelf_of and (number := self._find(d, name)) is not None and number not in self.nodes:
            self.tie(number)

    def shelved(self, d: Node, name: bytes) -> int | None:
        """The number of a file without a node, if the kernel knows one by its place on a shelf."""
        number = self._find(d, name) if self._shelf_of else None  # type: ignore[arg-type]
        return None if number in self.nodes else number

    def tie(self, number: int) -> Node:
        """The node of a place on a shelf, from now on. ``ENOENT``, ``ESTALE``."""
        shelf = self._shelves.get(number & ~_INDEX)
        if shelf is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        n = self._tree.lookup(shelf.directory, shelf.listing.names[number & _INDEX])
        with self._lock:
            if shelf.counts[number & _INDEX] and number not in self.nodes:
                self.nodes[number] = n
                self._numbers[id(n)] = number
        return n

    def _find(self, d: DirNode, name: bytes) -> int | None:
        shelf = self._shelf_of.get(d)
        if shelf is None:
            return None
        names = shelf.listing.names
        i = bisect_left(shelf.listing.offsets, offset_of(name))
        while i < len(names) and names[i] != name:
            if shelf.listing.offsets[i] > offset_of(name):
                return None
            i += 1
        return shelf.base | i if i < len(names) and shelf.counts[i] else None

    def _count(self, shelf: Shelf, number: int) -> None:
        i = number & _INDEX
        count = shelf.counts[i]
        if not count:
            shelf.live += 1
        if count < 255:
            shelf.counts[i] = count + 1
        else:
            self._more[number] = self._more.get(number, 0) + 1

    def _unshelve(self, number: int, count: int) -> Node | None:
        """Take answers back; the node that was tied to the place, if the kernel has forgotten it."""
        shelf = self._shelves.get(number & ~_INDEX)
        if shelf is None:
            return None
        i = number & _INDEX
        left = shelf.counts[i] + self._more.pop(number, 0) - count
        if left > 255:
            self._more[number] = left - 255
            left = 255
        shelf.counts[i] = max(left, 0)
        if left > 0:
            return None
        shelf.live -= 1
        if not shelf.live:
            self._drop(shelf)
        n = self.nodes.pop(number, None)
        if n is not None:
            self._numbers.pop(id(n), None)
        return n

    def _drop(self, shelf: Shelf) -> None:
        if self._shelf_of.get(shelf.directory) is shelf:
            del self._shelf_of[shelf.directory]
            del self._shelves[shelf.base]

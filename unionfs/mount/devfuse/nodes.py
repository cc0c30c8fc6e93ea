"""The nodes that the kernel knows, by the numbers under which it knows them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from unionfs.mount.devfuse.wire import ROOT_ID
from unionfs.union.serving import forget

if TYPE_CHECKING:
    from unionfs.union.node import Node
    from unionfs.union.tree import Tree


class NodeTable:
    """``nodes[nodeid]`` is a node as long as the kernel remembers it: till as many FORGETs as answers have named it.

    A ``nodeid`` is the ``id`` of the node, which nothing else has while the table holds it; 1 is the root.
    """

    def __init__(self, tree: Tree) -> None:
        self.nodes: dict[int, Node] = {ROOT_ID: tree.root}
        self._tree = tree
        self._root = tree.root
        self._more: dict[int, int] = {}  # Answers beyond the first: most nodes have one.
        self._lock = threading.Lock()

    def remember(self, n: Node) -> int:
        """The kernel is about to be told of ``n``: its number."""
        number = id(n)
        with self._lock:
            if number not in self.nodes:
                if n is self._root:
                    return ROOT_ID
                self.nodes[number] = n
            else:
                self._more[number] = self._more.get(number, 0) + 1
        return number

    def number(self, n: Node) -> int | None:
        """Its number, if the kernel knows it."""
        number = id(n)
        return number if number in self.nodes else ROOT_ID if n is self._root else None

    def forget(self, number: int, count: int) -> bool:
        """The kernel takes ``count`` answers back; whether it has forgotten the node."""
        with self._lock:
            n = self.nodes.get(number)
            if n is None or number == ROOT_ID:
                return False
            more = self._more.pop(number, 0) - count
            if more >= 0:
                if more:
                    self._more[number] = more
                return False
            del self.nodes[number]
        forget(self._tree, n)
        return True

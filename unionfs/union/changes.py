"""The frame of a change: what holds while it happens, and what is left when it breaks off.

Classes and not generators (contextlib), since every change passes here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from unionfs.union.heal import heal

if TYPE_CHECKING:
    from unionfs.union.node import DirNode
    from unionfs.union.tree import Tree


class Whole:
    """See ``Tree.whole``."""

    __slots__ = ("names", "tree")

    def __init__(self, tree: Tree, names: tuple[tuple[DirNode, bytes], ...]) -> None:
        self.tree = tree
        self.names = names

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            heal(self.tree, *self.names)


class Moving:
    """See ``Tree.moving``."""

    __slots__ = ("_held", "_tree")

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._held: AbstractContextManager[Any] = tree.writable().moving

    def __enter__(self) -> None:
        self._held.__enter__()
        self._tree.moves += 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._tree.moves += 1
        self._held.__exit__(kind, error, trace)

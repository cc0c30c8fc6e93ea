"""Nodes: what somebody knows of the tree, with an identity for life.

An illegal state has no place to stand: whether a node is in the upper is not a flag but the question which layer its
top source belongs to; so a commit, which makes the upper a lower, needs to touch no node.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, Protocol

from unionfs.layer.protocol import DT_DIR, LayerDir

if TYPE_CHECKING:
    from unionfs.layer.protocol import LayerFile
    from unionfs.union.resolve import Code


class Unknown:
    """The type of ``UNKNOWN``."""


UNKNOWN: Final = Unknown()


class Opened(Protocol):
    """An open file as its node sees it."""

    flags: int

    def switch(self, reopen: LayerFile) -> None:
        """Go on with this file: the node was copied up."""

    @property
    def file(self) -> LayerFile: ...


class Node:
    """An object of the tree.

    ``parent`` and ``name``: one name it has (a file may have more); ``parent`` is ``None`` for the root and for what
    has no name any more. ``ino``: its number, constant for life. ``st``: its metadata, while known.
    """

    __slots__ = ("__weakref__", "ino", "keys", "kind", "name", "parent", "st")

    kind: int

    def __init__(self, parent: DirNode | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.ino = 0
        self.st: os.stat_result | None = None
        self.keys: tuple[str, ...] | None = None

    @property
    def path(self) -> bytes:
        """The path in the union now, ``b"/"`` for the root."""
        names: list[bytes] = []
        at: Node | None = self
        while at is not None and at.parent is not None:
            names.append(at.name)
            at = at.parent
        return b"/" + b"/".join(reversed(names))


class DirNode(Node):
    """A directory.

    ``srcs``: the layer directories that merge in it, topmost first; ``None`` until somebody asks below it; until then
    ``holders`` are the places of the parent's sources that have it. ``entries``: name to node, or to a code until
    somebody asks for it; ``None`` until listed. ``shadow``: names for which the upper has an entry or a whiteout *and*
    the layers below have one that would show without it; it speaks of the upper ``shadow_of``.
    """

    __slots__ = ("dead", "entries", "holders", "shadow", "shadow_of", "srcs")

    kind = DT_DIR

    def __init__(self, parent: DirNode | None, name: bytes, holders: tuple[int, ...] = ()) -> None:
        super().__init__(parent, name)
        self.srcs: list[LayerDir] | None = None
        self.holders = holders
        self.entries: dict[bytes, Node | Code] | None = None
        self.shadow: set[bytes] = set()
        self.shadow_of: object = None
        self.dead = False


class FileNode(Node):
    """Anything that is no directory.

    ``home`` and ``lname``: where its metadata are, and its bytes too unless ``data`` names another place: a metacopy
    whose bytes are in a layer below. ``data`` is ``UNKNOWN`` until somebody needs it. ``open``: its open files.
    ``dead``: it has no name left. ``kept``: the upper's object of an open metacopy that lost its name. ``unnamed``: the
    file of one that never had a name (``Tree.tmpfile``). ``uncached``: how many there are who write to it without us.

    Of hard links only: ``names``, each known name and whether the upper has it under that name; ``nlink_delta``:
    names in the union that the link count of ``home`` does not count; ``handle``: the name of its entry in the index;
    ``links_below``: the link count of the inode that it was copied up from, once known.
    """

    __slots__ = (
        "busy",
        "data",
        "dead",
        "handle",
        "home",
        "kept",
        "kind",
        "links_below",
        "lname",
        "names",
        "nlink_delta",
        "open",
        "uncached",
        "unnamed",
    )

    def __init__(self, parent: DirNode | None, name: bytes, kind: int, home: LayerDir, lname: bytes) -> None:
        super().__init__(parent, name)
        self.kind = kind
        self.home = home
        self.lname = lname
        self.data: tuple[LayerDir, bytes] | Unknown | None = UNKNOWN
        self.names: dict[tuple[DirNode, bytes], bool] | None = None
        self.nlink_delta = 0
        self.open: list[Opened] | None = None
        self.kept: LayerFile | None = None
        self.dead = False
        self.uncached = 0
        self.unnamed: LayerFile | None = None
        self.busy: threading.Lock | None = None
        self.handle: bytes | None = None
        self.links_below: int | None = None

    @property
    def nameless(self) -> bool:
        """No known name leads to it any more, only those who have it open."""
        return self.dead or (self.parent is None and self.handle is None)

    def add_name(self, parent: DirNode, name: bytes, in_upper: bool) -> None:
        """One name more, of a hard link."""
        if self.names is None:
            self.names = {}
        self.names[parent, name] = in_upper
        if self.parent is None:
            self.parent, self.name = parent, name

    def drop_name(self, parent: DirNode, name: bytes) -> None:
        """One name less; another known one takes its place."""
        if self.names is not None:
            self.names.pop((parent, name), None)
        if self.parent is parent and self.name == name:
            self.parent = None
            if self.names:
                self.parent, self.name = next(iter(self.names))

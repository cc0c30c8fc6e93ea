"""Which layers hold a name, told top-down."""

from __future__ import annotations

import os
from typing import TypeAlias

from unionfs.layer.protocol import (
    DT_BLK,
    DT_CHR,
    DT_DIR,
    DT_FIFO,
    DT_LNK,
    DT_REG,
    DT_SOCK,
    DT_WHT,
    LayerDir,
)
from unionfs.types import LayerInfo
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.tree import Tree

_WORDS = {
    DT_REG: "file",
    DT_DIR: "directory",
    DT_LNK: "symlink",
    DT_FIFO: "fifo",
    DT_SOCK: "socket",
    DT_CHR: "character device",
    DT_BLK: "block device",
    DT_WHT: "whiteout",
}


Place: TypeAlias = tuple[LayerDir, bytes]
Key: TypeAlias = tuple[int, bytes, bytes]


def layers_of(tree: Tree, d: DirNode, name: bytes) -> list[LayerInfo]:
    """What each layer has under ``name`` in ``d``, the topmost first; ``b"."``: of ``d`` itself.

    The layers that merge in ``d`` are asked, and those to which a redirect or a metacopy leads.
    """
    with tree.lock:
        node: Node | None
        try:
            node = tree.lookup(d, name)
        except FileNotFoundError:
            node = None
        places = [] if name == b"." else [(source, name) for source in tree.sources(d)]
        found = {_key(place): place for place in places if place[0].layer.kind(*place) is not None}
        shown = _shown(tree, node, found)
        found.update(shown)
        depth = {id(layer): i for i, layer in enumerate(tree.resolver.layers)}
        wins = next(iter(shown), None)
        return [
            _info(place, key == wins, key in shown)
            for key, place in sorted(found.items(), key=lambda item: depth[id(item[1][0].layer)])
        ]


def _key(place: Place) -> Key:
    return id(place[0].layer), place[0].path, place[1]


def _shown(tree: Tree, node: Node | None, found: dict[Key, Place]) -> dict[Key, Place]:
    """Where the node's metadata, then the other merged directories or its bytes, are."""
    places: list[Place] = []
    if isinstance(node, DirNode):
        places += [(source.parent or source, source.name or b".") for source in tree.sources(node)]
    elif isinstance(node, FileNode):
        # A hard link is known by its name in the upper's index; here it is told by the name asked for, if it has it.
        by_name = [place for place in found.values() if place[0].layer is node.home.layer]
        places += by_name[:1] if node.handle is not None and by_name else [(node.home, node.lname)]
        data = tree.data_of(node)
        places += [] if data is None else [data]
    return {_key(place): place for place in places}


def _info(place: Place, wins: bool, shows: bool) -> LayerInfo:
    d, name = place
    marks = d.layer.marks(d, name)
    kind = d.layer.kind(d, name)
    path = d.path + (b"" if name == b"." else b"/" + name)
    return LayerInfo(
        label=d.layer.label,
        path=os.fsdecode(path or b"/"),
        kind=_WORDS.get(kind or 0, "unknown"),
        wins=wins,
        shows=shows,
        opaque=marks.opaque,
        metacopy=marks.metacopy,
        redirect=None if marks.redirect is None else os.fsdecode(marks.redirect),
    )

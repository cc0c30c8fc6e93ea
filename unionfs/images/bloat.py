"""Bloat: what an image carries and no one can see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from unionfs.images.stacks import Stack
from unionfs.layer.protocol import DT_DIR, DT_REG, DT_WHT, Layer, LayerDir
from unionfs.store.records import LayerRecord
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.resolve import kind_of, places

if TYPE_CHECKING:
    from unionfs.images.image import Image
    from unionfs.images.points import Point
    from unionfs.images.store import Store

How = Literal["deleted", "overwritten", "replaced", "whiteout"]


@attrs.frozen
class Hidden:
    """A regular file in a layer that nobody can see, or a whiteout that hides nothing."""

    path: str
    """Its path in that layer."""
    size: int
    """Bytes on disk that it takes; of a file with several names, all hidden, only the first has them."""
    layer: LayerRecord = attrs.field(repr=False)
    """The layer that carries it."""
    how: How
    """``deleted``; ``overwritten`` by another file; ``replaced`` by what is no regular file; ``whiteout``: itself one
    that hides nothing."""
    by: LayerRecord | None = attrs.field(default=None, repr=False)
    """The layer that hides it: the first above that does. ``None`` for a whiteout."""


def bloat(store: Store, ref: str | Image | Point) -> list[Hidden]:
    """What the layers of a point carry and its tree does not show, the largest first.

    What a renamed directory or a metacopy still shows is no bloat, nor are the bytes of a file of which one name is
    shown. A container's present state is frozen for it. The whole tree is looked at, but no file's bytes.
    """
    with Stack(store.keep, store.frozen(ref)) as stack:
        search = _Search(stack)
        search.run()
    return sorted(search.found, key=lambda hidden: (-hidden.size, hidden.path, -hidden.layer.depth))


Place: TypeAlias = tuple[Layer, bytes]
"""A directory of a layer, by its path in the layer."""
Cover: TypeAlias = tuple[Layer, How]
"""Who hides something, and how."""


@attrs.frozen
class _Room:
    """A directory of a layer."""

    d: LayerDir
    above: Sequence[LayerDir]
    """The directories that merge over it, or did before it was hidden, nearest first."""
    below: Sequence[LayerDir] = ()
    """Those that merge below it, topmost first."""
    cover: Cover | None = None
    """Who hides it as a whole; ``None`` if the tree shows it."""


class _Search:
    def __init__(self, stack: Stack) -> None:
        self.tree = stack.tree()
        self.records: dict[Layer, LayerRecord] = dict(zip(stack.layers, stack.records, strict=True))
        self.merged: dict[Place, _Room] = {}
        """The directories of which the tree shows something."""
        self.shown: dict[Place, set[bytes]] = {}
        """The regular files of which the tree shows metadata or bytes, by the directory that they are in."""
        self.found: list[Hidden] = []
        self._inodes: dict[Layer, set[int]] = {}
        self._counted: set[tuple[Layer, int]] = set()

    def run(self) -> None:
        self._see()
        todo = [*self.merged.values(), *self._hidden_roots()]
        while todo:
            todo += self._search(todo.pop())

    # What is shown

    def _see(self) -> None:
        tree = self.tree
        todo = [tree.root]
        while todo:
            d = todo.pop()
            sources = tree.sources(d)
            names = [
                self._enter(_Room(source, sources[:i][::-1], sources[i + 1 :])) for i, source in enumerate(sources)
            ]
            # What stands on nothing is no metacopy.
            plain = len(sources) - 1 if sources[-1].layer is tree.resolver.layers[-1] else -1
            for name, entry in list(tree.entries(d).items()):
                kind = entry.kind if isinstance(entry, Node) else kind_of(entry)
                if kind == DT_REG and not isinstance(entry, Node) and places(entry)[0] == 0 and plain >= 0:
                    names[plain].add(name)
                elif kind in (DT_REG, DT_DIR):
                    node = tree.lookup(d, name)
                    if isinstance(node, DirNode):
                        todo.append(node)
                    elif isinstance(node, FileNode):
                        self._show(node)

    def _enter(self, room: _Room) -> set[bytes]:
        place = room.d.layer, room.d.path
        self.merged[place] = room
        return self.shown.setdefault(place, set())

    def _show(self, node: FileNode) -> None:
        for home, name in ((node.home, node.lname), self.tree.data_of(node) or (node.home, node.lname)):
            self.shown.setdefault((home.layer, home.path), set()).add(name)

    # What is not

    def _hidden_roots(self) -> list[_Room]:
        """Of layers below one whose root is opaque."""
        layers = self.tree.resolver.layers
        sources = self.tree.sources(self.tree.root)
        return [_Room(layer.root, (), cover=(sources[-1].layer, "deleted")) for layer in layers[len(sources) :]]

    def _search(self, room: _Room) -> list[_Room]:
        """One directory of a layer; those in it that are hidden are the answer."""
        d = room.d
        layer, path = d.layer, d.path
        shown = self.shown.get((layer, path), set())
        hidden = []
        for name, kind in sorted(layer.scan(d).items()):
            if kind == DT_REG:
                if name not in shown:
                    self._file(room, path, name)
            elif kind == DT_WHT:
                if room.cover is None and _hides_nothing(room, name):
                    self._add(layer, path, name, 0, "whiteout", None)
            elif kind == DT_DIR and (layer, path + b"/" + name) not in self.merged:
                hidden.append(_covered(room, name))
        return hidden

    def _file(self, room: _Room, path: bytes, name: bytes) -> None:
        layer = room.d.layer
        st = layer.stat(room.d, name)
        size = st.st_blocks * 512
        if st.st_nlink > 1:
            if st.st_ino in self._shown_inodes(layer):
                return
            if (layer, st.st_ino) in self._counted:
                size = 0
            self._counted.add((layer, st.st_ino))
        cover = room.cover
        for place in room.above:
            kind = place.layer.kind(place, name)
            if kind == DT_REG and (marks := place.layer.marks(place, name)).metacopy and marks.redirect is None:
                continue  # It shows these bytes, and is hidden itself.
            if kind is not None:
                cover = place.layer, "overwritten" if kind == DT_REG else "deleted" if kind == DT_WHT else "replaced"
                break
        self._add(layer, path, name, size, *((cover[1], cover[0]) if cover is not None else ("overwritten", None)))

    def _shown_inodes(self, layer: Layer) -> set[int]:
        """The inodes of the layer that have several names of which one is shown."""
        found = self._inodes.get(layer)
        if found is None:
            found = self._inodes[layer] = set()
            for (other, path), names in self.shown.items():
                if other is layer and names:
                    d = _directory(layer, path)
                    all_of_them = (layer.stat(d, name) for name in names)
                    found.update(st.st_ino for st in all_of_them if st.st_nlink > 1)
        return found

    def _add(self, layer: Layer, path: bytes, name: bytes, size: int, how: How, by: Layer | None) -> None:
        by_record = None if by is None else self.records[by]
        self.found.append(Hidden(os.fsdecode(path + b"/" + name), size, self.records[layer], how, by_record))


def _covered(room: _Room, name: bytes) -> _Room:
    """The directory ``name`` in ``room``, which is hidden."""
    above: list[LayerDir] = []
    cover = room.cover
    for place in room.above:
        layer = place.layer
        kind = layer.kind(place, name)
        if kind is None:
            continue
        if kind != DT_DIR:
            cover = layer, "deleted" if kind == DT_WHT else "replaced"
            break
        child = place.child(name)
        marks = layer.marks(child, b".")
        if marks.opaque or marks.redirect is not None:
            cover = layer, "deleted"  # What has its name now is another directory.
            break
        above.append(child)
    return _Room(room.d.child(name), above, cover=cover)


def _hides_nothing(room: _Room, name: bytes) -> bool:
    """Whether no layer below has anything that a whiteout of ``name`` would hide."""
    for place in room.below:
        kind = place.layer.kind(place, name)
        if kind is not None:
            return kind == DT_WHT
    return True


def _directory(layer: Layer, path: bytes) -> LayerDir:
    d = layer.root
    for name in path.split(b"/")[1:]:
        d = d.child(name)
    return d

"""Blame: which layers touched a path."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from unionfs.errors import NotFoundError
from unionfs.images.stacks import Stack
from unionfs.images.times import parsed
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR
from unionfs.store.records import LayerRecord
from unionfs.union.diff import Change, Kind, What, compare
from unionfs.union.node import DirNode, Node
from unionfs.union.tree import Tree

if TYPE_CHECKING:
    from unionfs.images.image import Image
    from unionfs.images.points import Point
    from unionfs.images.store import Store


@attrs.frozen
class Touch:
    """One layer that touched the path."""

    layer: LayerRecord = attrs.field(repr=False)
    kind: Kind
    """``added`` (which a renamed one is, under its new name), ``changed`` or ``deleted``."""
    what: frozenset[What]
    """Of a changed path: ``data``, ``mode``, ``owner``, ``times``, ``xattrs``, ``type``."""
    path: str
    """The path as that layer left it: older ones may have another, if a directory on the way was renamed."""
    renamed_from: str | None
    """The path that it had before, if this layer renamed it or a directory on the way."""
    names: tuple[str, ...] = ()
    """Names of the images that end with this layer."""

    @property
    def created(self) -> dt.datetime | None:
        return parsed(self.layer.created)

    @property
    def author(self) -> str:
        return self.layer.author

    @property
    def created_by(self) -> str:
        """The command that made the changes."""
        return self.layer.created_by

    @property
    def comment(self) -> str:
        return self.layer.comment


def blame(store: Store, ref: str | Image | Point, path: str) -> list[Touch]:
    """The layers that touched ``path``, newest first; a symbolic link at its end is not followed.

    A container's present state is frozen for it, and is its newest layer. A path that was deleted has its history too;
    that of a renamed directory, and of all in it, goes on under the old path. What it costs goes with the number of
    layers and the length of the path. ``NotFoundError`` if none of the layers ever had it.
    """
    keep = store.keep
    with Stack(keep, store.frozen(ref)) as stack:
        history = _History(stack)
        start = history.canonical(os.fsencode(path))
        touches = [
            Touch(
                layer=stack.records[i],
                kind=change.kind,
                what=change.what,
                path=change.path,
                renamed_from=change.renamed_from,
                names=tuple(keep.records.names_at(stack.records[i].same_as or stack.records[i].id)),
            )
            for i, change in history.of(start)
        ]
    if not touches:
        raise NotFoundError(f"no layer ever had {path!r}")
    return touches


class _History:
    """The states of a path, from the topmost layer down.

    What the topmost layer of a tree holds under a path is what the tree shows there; so only layers that hold the path,
    or something on the way to it that decides, can have touched it. Between two of them nothing changed.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.layers: Sequence[DirectoryLayer] = stack.layers

    def canonical(self, path: bytes) -> bytes:
        """The path without symbolic links and dots on the way, as far as that can be told."""
        tree = self.stack.tree()
        try:
            parent, name = tree.resolve_parent(path)
            path = parent.path + b"/" + name
        except OSError:
            pass  # What is gone is known by its name alone.
        return b"/" + os.path.normpath(b"/" + path).strip(b"/")

    def of(self, path: bytes) -> list[tuple[int, Change]]:
        """The layers' positions in the stack, and what each did."""
        found = []
        for i, layer in enumerate(self.layers):
            moves = _decides(layer, path)
            if moves is None:
                continue
            new, old = self.stack.tree(i), self.stack.tree(i + 1)
            change = (_renamed(new, old, path) if moves else None) or _change(new, old, path)
            if path == b"/" and i == len(self.layers) - 1:
                change = Change("/", "added")
            if change is not None:
                found.append((i, change))
                if change.renamed_from is not None:
                    path = os.fsencode(change.renamed_from)
        return found


def _decides(layer: DirectoryLayer, path: bytes) -> bool | None:
    """Whether the layer moves a directory on the way to ``path``; ``None`` if it holds neither the path nor anything on
    the way that hides or moves what is below."""
    d = layer.root
    hides, moves = layer.marks(d, b".").opaque, False
    for name in path.split(b"/")[1:]:
        kind = layer.kind(d, name) if name else DT_DIR
        if kind is None:
            return moves if hides or moves else None
        if not name or kind != DT_DIR:
            return moves
        d = d.child(name)
        marks = layer.marks(d, b".")
        hides |= marks.opaque
        moves |= marks.redirect is not None
    return moves


def _change(new: Tree, old: Tree, path: bytes) -> Change | None:
    """What happened to ``path`` itself."""
    text = os.fsdecode(path)
    now, then = _at(new, path), _at(old, path)
    if now is None or then is None:
        return None if now is then else Change(text, "added" if then is None else "deleted")
    change = next(compare(new, old, text), None)
    return change if change is not None and change.path == text else None


def _at(tree: Tree, path: bytes) -> Node | None:
    """What is at ``path``, and not at what a symbolic link makes of it: there may have been one on the way once."""
    n: Node = tree.root
    for name in path.split(b"/"):
        if not isinstance(n, DirNode):
            return None
        if name:
            try:
                n = tree.lookup(n, name)
            except FileNotFoundError:
                return None
    return n


def _renamed(new: Tree, old: Tree, path: bytes) -> Change | None:
    """``path`` as added under this name, if it or a directory on the way was renamed to it."""
    if _at(new, path) is None or _at(old, path) is not None:
        return None
    at, rest = path, b""
    while at.strip(b"/"):
        if isinstance(_at(old, at), DirNode):
            return None  # It was there before, and so was all on the way.
        try:
            change = next(compare(new, old, os.fsdecode(at)), None)
        except OSError:
            change = None  # A loop of symbolic links where now a directory is.
        if change is not None and change.renamed_from is not None:
            before = os.fsencode(change.renamed_from) + rest
            if _at(old, before) is None:
                return None
            return Change(os.fsdecode(path), "added", renamed_from=os.fsdecode(before))
        at, _, name = at.rpartition(b"/")
        rest = b"/" + name + rest
    return None

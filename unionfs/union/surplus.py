"""What a layer holds that no one would miss: traces of work that came to nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable

from unionfs.layer.protocol import DT_DIR, DT_WHT, Layer, LayerDir
from unionfs.union.diff import Change, find
from unionfs.union.node import DirNode
from unionfs.union.reader import TreeReader


def surplus(new: TreeReader, old: TreeReader, layer: Layer, changes: Iterable[Change]) -> list[str]:
    """Paths that ``layer`` holds and that no change needs, sorted.

    ``layer`` is the topmost of ``new``, ``old`` the tree without it, ``changes`` are ``compare(new, old)``. Such are
    files that equal the lower's, whiteouts that hide nothing, directories in which nothing changed, opaque ones too. A
    file that equals the lower's is needed all the same where it makes a hard link of a changed one, or the link count
    differs. The cost goes with what the layer holds.
    """
    needed: set[bytes] = set()
    for change in changes:
        _need(needed, os.fsencode(change.path))
    held: list[bytes] = []
    links: dict[tuple[int, int], list[bytes]] = {}
    todo: list[tuple[bytes, LayerDir]] = [(b"", layer.root)]
    while todo:
        above, d = todo.pop()
        for name, kind in layer.scan(d).items():
            path = above + b"/" + name
            held.append(path)
            if kind == DT_DIR:
                todo.append((path, d.child(name)))
            elif kind == DT_WHT:
                if path not in needed and _hides(new, above, name):
                    _need(needed, path)
            else:
                st = layer.stat(d, name)
                if st.st_nlink > 1:
                    links.setdefault((st.st_dev, st.st_ino), []).append(path)
                if path not in needed and _link_count(new, path) != _link_count(old, path):
                    _need(needed, path)
    for paths in links.values():
        if not needed.isdisjoint(paths):
            for path in paths:
                _need(needed, path)
    return [os.fsdecode(path) for path in sorted(held) if path not in needed]


def _need(needed: set[bytes], path: bytes) -> None:
    """This path, and the directories above it."""
    while path and path not in needed:
        needed.add(path)
        path = path.rpartition(b"/")[0]


def _hides(tree: TreeReader, above: bytes, name: bytes) -> bool:
    """Whether this whiteout, in the topmost layer's part of a directory, has something below it: a directory that moved
    has taken along what merges in it."""
    d = find(tree, above)
    if isinstance(d, DirNode):
        for place in tree.sources(d)[1:]:
            kind = place.layer.kind(place, name)
            if kind is not None:
                return kind != DT_WHT
    return False


def _link_count(tree: TreeReader, path: bytes) -> int:
    n = find(tree, path)
    return 0 if n is None else tree.stat(n).st_nlink

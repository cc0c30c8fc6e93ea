"""The index of a frozen layer, made: see ``layer.merged``."""

from __future__ import annotations

from unionfs.layer.merged import Merged
from unionfs.layer.protocol import DT_DIR, LayerDir
from unionfs.union.node import DirNode
from unionfs.union.reader import TreeReader
from unionfs.union.resolve import Code, kind_of, merge, noted, places, put_upper


def notes_of(tree: TreeReader) -> dict[bytes, Merged]:
    """What the topmost layer of ``tree``, which has no upper, shows in each directory that it has, by path.

    The cost goes with what the layer holds, if the layers below have an index.
    """
    layer = tree.resolver.layers[0]
    number = {id(one): i for i, one in enumerate(reversed(tree.resolver.layers))}
    found: dict[bytes, Merged] = {}
    roots = tree.sources(tree.root)
    held = layer.scan(roots[0])
    note = Merged(len(roots), (), _entries(roots, held, _noted_below(roots)))
    found[b""] = note
    todo = [(tree.root, roots, held, note)]
    while todo:
        d, sources, held, above = todo.pop()
        for name, kind in held.items():
            if kind != DT_DIR:
                continue
            child = tree.lookup(d, name)
            assert isinstance(child, DirNode)
            inner = tree.sources(child)
            there = places(above.entries[name])
            below = _noted_below(inner)
            if below is not None and len(there) > 1 and _same(inner[1], sources[-1 - there[1]].child(name)):
                count, elsewhere = 1 + below.count, below.elsewhere  # Nothing new above what was noted.
            else:
                count, elsewhere = _merging(inner, [sources[-1 - place].child(name) for place in there], number)
            content = layer.scan(inner[0])
            note = Merged(count, elsewhere, _entries(inner, content, below))
            found[inner[0].path] = note
            todo.append((child, inner, content, note))
    return found


def _noted_below(sources: list[LayerDir]) -> Merged | None:
    """What the layer below the topmost has noted of its directory."""
    return noted(sources[1]) if len(sources) > 1 else None


def _merging(
    inner: list[LayerDir], plain: list[LayerDir], number: dict[int, int]
) -> tuple[int, tuple[tuple[int, bytes], ...]]:
    """How many of ``inner`` are those under the same name, ``plain``, and where the others are."""
    count = 0
    while count < len(inner) and count < len(plain) and _same(inner[count], plain[count]):
        count += 1
    return count, tuple((number[id(one.layer)], one.path) for one in inner[count:])


def _entries(sources: list[LayerDir], held: dict[bytes, int], below: Merged | None) -> dict[bytes, Code]:
    """The entries of a directory in which the topmost layer has ``held``."""
    entries = merge(sources[1:]) if below is None else dict(below.entries)
    put_upper(entries, held, len(sources) - 1)
    return {name: code for name, code in entries.items() if kind_of(code)}


def _same(a: LayerDir, b: LayerDir) -> bool:
    return a.layer is b.layer and a.path == b.path

"""The index of a frozen layer, made: see ``layer.merged``."""

from __future__ import annotations

from unionfs.layer.merged import Merged
from unionfs.layer.protocol import DT_DIR, LayerDir
from unionfs.union.node import DirNode
from unionfs.union.reader import TreeReader
from unionfs.union.resolve import Code, kind_of, merge, places, put_upper


def notes_of(tree: TreeReader) -> dict[bytes, Merged]:
    """What the topmost layer of ``tree``, which has no upper, shows in each directory that it has, by path.

    The cost goes with what the layer holds, if the layers below have an index.
    """
    layer = tree.resolver.layers[0]
    number = {id(one): i for i, one in enumerate(reversed(tree.resolver.layers))}
    found: dict[bytes, Merged] = {}
    roots = tree.sources(tree.root)
    todo: list[tuple[DirNode, list[LayerDir], Merged]] = []
    entries = _merged_entries(roots)
    note = Merged(len(roots), (), entries)
    found[b""] = note
    todo.append((tree.root, roots, note))
    while todo:
        d, sources, above = todo.pop()
        for name, kind in layer.scan(sources[0]).items():
            if kind != DT_DIR:
                continue
            child = tree.lookup(d, name)
            assert isinstance(child, DirNode)
            inner = tree.sources(child)
            plain = [sources[-1 - place].child(name) for place in places(above.entries[name])]
            count = 0
            while count < len(inner) and count < len(plain) and _same(inner[count], plain[count]):
                count += 1
            elsewhere = tuple((number[id(there.layer)], there.path) for there in inner[count:])
            note = Merged(count, elsewhere, _merged_entries(inner))
            found[inner[0].path] = note
            todo.append((child, inner, note))
    return found


def _merged_entries(sources: list[LayerDir]) -> dict[bytes, Code]:
    entries = merge(sources[1:])
    put_upper(entries, sources[0].layer.scan(sources[0]), len(sources) - 1)
    return {name: code for name, code in entries.items() if kind_of(code)}


def _same(a: LayerDir, b: LayerDir) -> bool:
    return a.layer is b.layer and a.path == b.path

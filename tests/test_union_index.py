"""The index of a frozen layer: with it, a stack shows the same as without; it is a cache, whatever is in the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.arena import search
from tests.histories import History
from tests.histories import walk as walk_all
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.frozen import FrozenLayer
from unionfs.layer.merged import Index, Merged, pack
from unionfs.layer.protocol import Layer, LayerDir
from unionfs.layer.upper import UpperDirectory
from unionfs.union.commit import commit
from unionfs.union.diff import compare
from unionfs.union.indexing import notes_of
from unionfs.union.node import DirNode
from unionfs.union.tree import Tree

CASES = int(os.environ.get("UNIONFS_ORACLE_CASES", "16"))


def walk(tree: Tree) -> dict[str, dict[str, Any]]:
    """All but access times, which looking changes."""
    return {path: {**facts, "atime": None} for path, facts in walk_all(tree).items()}


def indexed(layers: Sequence[str], indices: str, plain: int = 0) -> list[Layer]:
    """These layers with their indices, but for the topmost ``plain``."""
    found: list[Layer] = [DirectoryLayer(layer) for layer in layers[:plain]]
    return found + [FrozenLayer(layer, f"{indices}/{os.path.basename(layer)}") for layer in layers[plain:]]


def make_indices(layers: Sequence[str], indices: str) -> None:
    for i in reversed(range(len(layers))):
        path = f"{indices}/{os.path.basename(layers[i])}"
        if not os.path.exists(path):
            tree = Tree(indexed(layers[i:], indices, 1))
            Path(path).write_bytes(pack(notes_of(tree)))
            tree.close()


def sources(tree: Tree) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    todo = [tree.root]
    while todo:
        d = todo.pop()
        found[os.fsdecode(d.path)] = [f"{there.layer.label}:{os.fsdecode(there.path)}" for there in tree.sources(d)]
        inner = [tree.lookup(d, name) for name, _, _ in tree.listdir(d)]
        todo += [n for n in inner if isinstance(n, DirNode)]
    return found


def check(top: Path, seed: int) -> None:
    rng = Random(seed)
    top.mkdir(exist_ok=True)
    history = History(top, rng)
    try:
        for _ in range(3):
            history.grow(rng.choice(history.points), rng.randrange(1, 25), rng.randrange(1, 4))
        indices = history.directory()
        for point in history.points:
            make_indices(point.layers, indices)
        for point in history.points:
            without = point.tree()
            for plain in {0, rng.randrange(len(point.layers) + 1)}:
                tree = Tree(indexed(point.layers, indices, plain))
                assert sources(tree) == sources(without)
                assert walk(tree) == walk(without)
                assert list(compare(tree, without)) == []
                tree.close()
            without.close()
        # With an upper on top, that changes.
        point = rng.choice(history.points)
        live = Tree(indexed(point.layers, indices), history.upper(point))
        history.work(live, point.plain, 30)
        again = Tree([DirectoryLayer(layer) for layer in point.layers], None)
        other = history.upper(point)
        both = Tree(indexed(point.layers, indices), other)
        assert walk(both).keys() == walk(again).keys()
        for tree in (live, again, both):
            tree.close()
    finally:
        history.close()


@pytest.mark.root
def test_a_stack_with_indices_shows_the_same(scratch: Path) -> None:
    search(lambda seed: check(scratch / "history", seed), CASES)


@pytest.fixture
def deep(scratch: Path) -> tuple[list[str], str]:
    """Thirty layers that all have a directory, and renamed ones, with indices."""
    layers: list[str] = []
    (scratch / "index").mkdir()
    for i in range(30):
        (scratch / f"u{i}").mkdir()
        tree = Tree([DirectoryLayer(layer) for layer in layers], UpperDirectory(scratch / f"u{i}", scratch / f"w{i}"))
        d = tree.root
        for name in (b"a", b"b"):
            inner = tree.lookup(d, name) if name in tree.entries(d) else tree.mkdir(d, name, 0o755)
            assert isinstance(inner, DirNode)
            d = inner
        tree.create(d, b"f%d" % i, 0o644, os.O_RDWR)[1].close()
        if i == 20:
            tree.rename(tree.root, b"a", tree.root, b"c")
        commit(tree, str(scratch / f"l{i}"))
        tree.close()
        layers.insert(0, str(scratch / f"l{i}"))
        make_indices(layers, str(scratch / "index"))
    return layers, str(scratch / "index")


def test_a_cold_lookup_lists_no_layer(deep: tuple[list[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    layers, indices = deep
    tree = Tree(indexed(layers, indices))
    listed: list[bytes] = []
    scan = DirectoryLayer.scan

    def counted(self: DirectoryLayer, d: LayerDir) -> dict[bytes, int]:
        listed.append(d.path)
        return scan(self, d)

    monkeypatch.setattr(DirectoryLayer, "scan", counted)
    names = [name for name, _, _ in tree.listdir(tree.resolve(b"/c/b"))]  # type: ignore[arg-type]
    assert sorted(names) == sorted(b"f%d" % i for i in range(21))
    assert tree.stat(tree.resolve(b"/a/b/f25")).st_size == 0
    with pytest.raises(FileNotFoundError):
        tree.resolve(b"/a/b/f3")
    assert listed == []
    tree.close()


def test_a_damaged_index_is_a_missing_one(deep: tuple[list[str], str], caplog: pytest.LogCaptureFixture) -> None:
    layers, indices = deep
    top = Path(indices, os.path.basename(layers[0]))
    good = top.read_bytes()
    plain = Tree([DirectoryLayer(layer) for layer in layers])
    wanted = walk(plain)
    rng = Random(1)
    for damage in ("cut", "flip", "empty", "zeros", "other"):
        for _ in range(6):
            data = bytearray(good)
            if damage == "cut":
                del data[rng.randrange(1, len(data)) :]
            elif damage == "flip":
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            elif damage == "empty":
                data.clear()
            elif damage == "zeros":
                data[16:] = bytes(len(data) - 16)
            else:
                data[15:16] = b"?"
            top.write_bytes(bytes(data))
            tree = Tree(indexed(layers, indices))
            assert walk(tree) == wanted
            tree.close()
    plain.close()


def test_packed_and_found(tmp_path: Path) -> None:
    notes = {
        b"": Merged(3, (), {b"a": 4, b"b": (2, 1, 0), b"\xff\n": 2 << 4 | 8}),
        b"/b": Merged(1, ((0, b"/x/y"), (7, b"")), {}),
        b"/b/c": Merged(2, (), {b"n%d" % i: i << 4 | 8 for i in range(5000)}),
    }
    (tmp_path / "index").write_bytes(pack(notes))
    index = Index(str(tmp_path / "index"))
    for path, note in notes.items():
        assert index.find(path) == note
    assert index.find(b"/nothing") is None

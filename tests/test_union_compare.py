"""`compare`: what turns one tree into another, against a plain comparison of all that both show; and what it costs."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.arena import search
from tests.histories import History, Point, plain_changes, walk
from unionfs import UnionFS
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.memory import MemoryLayer
from unionfs.layer.protocol import LayerDir
from unionfs.union.diff import compare
from unionfs.union.reader import TreeReader
from unionfs.union.tree import Tree

CASES = int(os.environ.get("UNIONFS_ORACLE_CASES", "24"))


def told(new: TreeReader, old: TreeReader, path: str = "/") -> list[str]:
    return [f"{change} {','.join(sorted(change.what))}".rstrip() for change in compare(new, old, path)]


def agree(new: Tree, old: Tree) -> None:
    changes = list(compare(new, old))
    found = {(change.path, change.kind, frozenset[str](change.what)) for change in changes}
    assert len(found) == len(changes)
    seen = {change.path: i for i, change in enumerate(changes)}
    assert all(seen.get(os.path.dirname(path), -1) <= i for path, i in seen.items())
    wanted = plain_changes(walk(new), walk(old))
    assert found == wanted, f"{new.resolver.layers}\n{old.resolver.layers}\n{found ^ wanted}"


def compare_points(top: Path, seed: int) -> None:
    rng = Random(seed)
    top.mkdir(exist_ok=True)
    history = History(top, rng)
    try:
        for _ in range(3):
            history.grow(rng.choice(history.points), rng.randrange(1, 25), rng.randrange(1, 4))
        points = [*history.points, Point([history.directory()], "")]
        for _ in range(8):
            trees = [rng.choice(points).tree() for _ in range(2)]
            agree(*trees)
            for tree in trees:
                tree.close()
        # With an upper in use, on either side; and the tree's own diff.
        point = rng.choice(history.points)
        live = point.tree(history.upper(point))
        history.work(live, point.plain, rng.randrange(30))
        for other in (point, rng.choice(points)):
            tree = other.tree()
            agree(live, tree)
            agree(tree, live)
            tree.close()
        live.close()
    finally:
        history.close()


@pytest.mark.root
@pytest.mark.timeout(120 if CASES <= 24 else 0)
def test_points_of_a_history(scratch: Path) -> None:
    search(lambda seed: compare_points(scratch / "history", seed), CASES)


class Counting(DirectoryLayer):
    """Counts what it is asked: call, directory and name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: Counter[tuple[str, bytes, bytes]] = Counter()

    def scan(self, d: LayerDir) -> dict[bytes, int]:
        self.asked["scan", d.path, b""] += 1
        return super().scan(d)

    def stat(self, d: LayerDir, name: bytes) -> os.stat_result:
        self.asked["stat", d.path, name] += 1
        return super().stat(d, name)

    def open(self, d: LayerDir, name: bytes, flags: int) -> Any:
        self.asked["open", d.path, name] += 1
        return super().open(d, name, flags)


@pytest.fixture
def large(scratch: Path) -> Path:
    layer = scratch / "base"
    for i in range(30):
        (layer / f"d{i}/sub").mkdir(parents=True)
        for j in range(20):
            (layer / f"d{i}/f{j}").write_text(f"{i} {j}")
            (layer / f"d{i}/sub/f{j}").write_text(f"{i} {j}")
    return layer


def layers(scratch: Path, base: Path, *works: Callable[[UnionFS], None]) -> list[Path]:
    """One layer for each of these works on the base, topmost first; the base is the last."""
    found = [base]
    for i, work in enumerate(works):
        (scratch / f"upper{i}").mkdir()
        with UnionFS(found, scratch / f"upper{i}") as fs:
            work(fs)
        found.insert(0, scratch / f"upper{i}")
    return found


def tree_of(found: list[Path]) -> TreeReader:
    return TreeReader([Counting(layer) for layer in found])


def test_of_what_did_not_change_nothing_is_asked(scratch: Path, large: Path) -> None:
    def first(fs: UnionFS) -> None:
        fs.write_text("/d3/f7", "changed")
        fs.unlink("/d4/f1")
        fs.chmod("/d9/sub/f2", 0o600)

    def other(fs: UnionFS) -> None:
        fs.write_text("/d3/f8", "more")

    top, upper, base = layers(scratch, large, first, other)
    new, old = tree_of([upper, base]), tree_of([base])
    assert told(new, old) == ["C /d3/f7 data,times", "D /d4/f1", "C /d9/sub/f2 mode"]
    for tree in (new, old):
        asked = tree.resolver.layers[-1].asked  # type: ignore[attr-defined]
        assert {d for call, d, _ in asked if call == "scan"} <= {b"", b"/d3", b"/d4", b"/d9", b"/d9/sub"}
        looked = {(d, name) for call, d, name in asked if call == "stat" and name != b"."}
        assert looked <= {
            (b"", b"d3"), (b"", b"d4"), (b"", b"d9"), (b"/d9", b"sub"),
            (b"/d3", b"f7"), (b"/d4", b"f1"), (b"/d9/sub", b"f2"),
        }  # fmt: skip
        assert not any(call == "open" for call, _, _ in asked)
        tree.close()
    # Of the layers that both have, no more; and back again.
    new, old = tree_of([top, upper, base]), tree_of([upper, base])
    assert told(new, old) == ["C /d3/f8 data,times"]
    assert told(old, new) == ["C /d3/f8 data,times"]
    for tree in (new, old):
        for layer in tree.resolver.layers[-2:]:
            assert {d for call, d, _ in layer.asked if call == "scan"} <= {b"", b"/d3"}  # type: ignore[attr-defined]
    assert told(new, old, "/d3/f8") == ["C /d3/f8 data,times"]
    assert told(new, old, "/d4") == []
    with pytest.raises(FileNotFoundError):
        told(new, old, "/none")
    new.close()
    old.close()


def test_the_same_layers_are_equal_at_once(large: Path) -> None:
    new, old = tree_of([large]), tree_of([large])
    assert told(new, old) == []
    for tree in (new, old):
        assert {call for call, _, _ in tree.resolver.layers[0].asked} <= {"stat"}  # type: ignore[attr-defined]
        tree.close()


def test_a_file_written_again_is_no_change(scratch: Path, large: Path) -> None:
    def again(fs: UnionFS) -> None:
        st = fs.stat("/d1/f1")
        fs.unlink("/d1/f1")
        fs.write_text("/d1/f1", "1 1")
        fs.utime("/d1/f1", ns=(st.st_atime_ns, st.st_mtime_ns))
        st = fs.stat("/d2/f2")
        fs.write_text("/d2/f2", "2 x")
        fs.utime("/d2/f2", ns=(st.st_atime_ns, st.st_mtime_ns))

    found = layers(scratch, large, again)
    new, old = tree_of(found), tree_of(found[1:])
    assert told(new, old) == ["C /d1 times", "C /d2/f2 data"]
    new.close()
    old.close()


def test_where_directories_came_from(scratch: Path, large: Path) -> None:
    def first(fs: UnionFS) -> None:
        fs.rename("/d1/sub", "/d1/moved")
        fs.rename("/d2", "/e2")
        fs.unlink("/d5/f0")
        fs.mkdir("/new")

    def second(fs: UnionFS) -> None:
        fs.rename("/d1", "/e1")
        fs.rename("/e2", "/new/e2")
        fs.rename("/new/e2/sub", "/sub")
        fs.unlink("/d6/f0")
        fs.rename("/d6", "/d5/f0")

    found = layers(scratch, large, first, second)

    def renamed(new: list[Path], old: list[Path]) -> dict[str, str]:
        one, other = tree_of(new), tree_of(old)
        moved = {c.path: c.renamed_from for c in compare(one, other) if c.renamed_from is not None}
        one.close()
        other.close()
        return moved

    assert renamed(found[1:], found[2:]) == {"/d1/moved": "/d1/sub", "/e2": "/d2"}
    assert renamed(found, found[1:]) == {"/e1": "/d1", "/new/e2": "/e2", "/sub": "/e2/sub", "/d5/f0": "/d6"}
    assert renamed(found, found[2:]) == {
        "/e1": "/d1", "/e1/moved": "/d1/sub", "/new/e2": "/d2", "/sub": "/d2/sub", "/d5/f0": "/d6",
    }  # fmt: skip
    # Back again they are added where they were, and no redirect says so.
    assert renamed(found[2:], found) == {}


def test_many_layers() -> None:
    def layer(i: int) -> MemoryLayer:
        return MemoryLayer.from_dict({"d": {f"f{i}": b"x", "same": b"%d" % i}, f"d{i}": {"in": b"x"}}, read_only=True)

    stack = [layer(i) for i in range(1000)]
    new, old = TreeReader(stack), TreeReader(stack[2:])
    found = {change.path: change.kind for change in compare(new, old)}
    added = ["/d/f0", "/d/f1", "/d0", "/d0/in", "/d1", "/d1/in"]
    assert found == {"/d/same": "changed", **dict.fromkeys(added, "added")}
    assert {change.path for change in compare(old, new)} == {"/d/same", "/d/f0", "/d/f1", "/d0", "/d1"}


def test_trees_deeper_than_pythons_stack() -> None:
    depth = sys.getrecursionlimit() + 500
    layers = [MemoryLayer(), MemoryLayer()]
    for layer, name in zip(layers, (b"new", b"old"), strict=True):
        d = layer.root
        for _ in range(depth):
            d = layer.mkdir(d, b"d", 0o755)
        layer.create(d, name, 0o644).close()
    both, one = TreeReader(layers), TreeReader(layers[1:])
    found = {change.path: change.kind for change in compare(both, one)}
    assert found["/d" * depth + "/new"] == "added"
    assert "deleted" not in found.values()
    assert len(list(compare(one, TreeReader([MemoryLayer()])))) == depth + 1

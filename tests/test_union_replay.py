"""`replay`: what a history of layers did, written to another upper; it shows the same, to the last time and number."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.arena import search
from tests.histories import History, Point, walk
from unionfs.union.commit import commit
from unionfs.union.diff import compare
from unionfs.union.replay import replay
from unionfs.union.surplus import surplus
from unionfs.union.tree import Tree

CASES = int(os.environ.get("UNIONFS_ORACLE_CASES", "24"))


def unlike(wanted: Tree, got: Tree) -> list[str]:
    """One line for each fact in which the trees differ."""
    one, other = walk(wanted), walk(got)
    lines = [f"{path} is {'missing' if path in one else 'too much'}" for path in one.keys() ^ other.keys()]
    for path in one.keys() & other.keys():
        for key in one[path].keys() - {"atime"}:
            if key == "ino" and path == "/":
                continue
            if one[path][key] != other[path].get(key):
                lines.append(f"{path}: {key} is {other[path].get(key)!r}, not {one[path][key]!r}"[:300])
    return lines


def brought(source: Tree, base: Point, history: History) -> Point:
    """The base with one layer more, which shows what `source` shows."""
    target = base.tree(history.upper(base))
    changes = list(compare(source, target))
    replay(source, target, changes)
    assert [str(change) for change in compare(source, target)] == []
    assert unlike(source, target) == []
    destination = history.directory()
    commit(target, destination)
    target.close()
    return Point([destination, *base.layers], "")


def replay_points(top: Path, seed: int) -> None:
    rng = Random(seed)
    top.mkdir(exist_ok=True)
    history = History(top, rng)
    try:
        for _ in range(2):
            history.grow(rng.choice(history.points), rng.randrange(1, 25), rng.randrange(1, 4))
        for _ in range(3):
            base, wanted = rng.choice(history.points), rng.choice(history.points)
            source = wanted.tree()
            result = brought(source, base, history).tree()
            assert unlike(source, result) == []
            below = base.tree()
            changes = list(compare(result, below))
            assert surplus(result, below, result.resolver.layers[0], changes) == []
            below.close()
            result.close()
            source.close()
    finally:
        history.close()


@pytest.mark.root
@pytest.mark.timeout(120 if CASES <= 24 else 0)
def test_points_of_a_history(scratch: Path) -> None:
    search(lambda seed: replay_points(scratch / "history", seed), CASES)

"""`compare`: what turns one tree into another, against a plain comparison of all that both show; and what it costs."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.arena import search
from tests.histories import History, Point, plain_changes, walk
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

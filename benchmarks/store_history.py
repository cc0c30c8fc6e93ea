"""A thousand commits in a row, and what a deep stack costs afterwards: lookups, diff, history, mount."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.runner import Bench, Case, Readings, Workload
from benchmarks.scratch import Unsupported
from benchmarks.store_peers import OURS
from benchmarks.store_trees import trees
from benchmarks.timing import time_names, timed
from benchmarks.views import unionfs_view

HOT = 1000  # names in the directory that all layers have
REPEAT = 5
TREE = [f"/dir{d:02d}/file{i:02d}" for d in range(100) for i in range(100)]
NAMES = {"tree": TREE, "hot": [f"/hot/file{i:03d}" for i in range(HOT)]}
"""The paths of the tree: a hundred directories, and one more in which each commit changes a file."""
POINTS = ("first", "last")
LOOKUPS = tuple(f"{part}: {what} {when}" for when in ("cold", "warm") for part in NAMES for what in ("hit", "miss"))


def _commits(bench: Bench) -> Iterator[Case]:
    count = trees(bench).commits

    def measure(_contender: Contender) -> Readings:
        from unionfs import Store

        with bench.scratch.temporary("store") as home:
            source = _source(home / "source")
            rng = random.Random(1)
            with Store(home / "store") as store:
                first = store.import_(source, "first")
                os.sync()
                with store.create(first, "c") as container:
                    for number in range(count):
                        _change(container.fs, number, rng)
                        name = "last" if number == count - 1 else None
                        yield "commit", timed(partial(container.commit, name, message=f"number {number}"))
                last = store.image("last")
                if len(last.layers) != count + 1:
                    raise Unsupported(f"WRONG: {len(last.layers)} layers, not {count + 1}")
            os.sync()
            for _ in range(REPEAT):
                for point in POINTS:
                    yield from _lookups(home / "store", point)
                for point in POINTS:
                    yield f"mount to ls, {point}", _mount(bench, home / "store", point)
                with Store(home / "store") as store:
                    found: list[Any] = []
                    yield "diff", timed(lambda: found.extend(store.diff("first", "last")))  # noqa: B023 - called at once
                    yield "history", timed(store.image("last").history)
                    yield "log", timed(store.log)
                    if len(found) != min(count, HOT) + len({number * 7 % len(TREE) for number in range(count)}):
                        raise Unsupported(f"WRONG: {len(found)} differences")

    yield Case(f"{count:,} commits", measure)


def _source(path: Path) -> Path:
    for name in (name for names in NAMES.values() for name in names):
        file = path / name[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return path


def _change(fs: Any, number: int, rng: random.Random) -> None:
    fs.write_bytes(NAMES["hot"][number % HOT], rng.randbytes(100))
    fs.write_bytes(TREE[number * 7 % len(TREE)], rng.randbytes(100))


def _lookups(at: Path, point: str) -> Readings:
    from unionfs import Store

    with Store(at) as store:
        for part, names in NAMES.items():
            for what, paths in (("hit", names), ("miss", [f"{name}-missing" for name in names])):
                # A fresh object; its opening is a part of what a cold lookup costs, spread over the names.
                opened: list[Any] = []
                took = timed(lambda: opened.append(store.open(point)))  # noqa: B023 - called at once
                with opened[0] as fs:
                    view = unionfs_view(fs, None)
                    found = what == "hit"
                    each = time_names(view, paths, found=found)[1]
                    yield f"{part}: {what} cold, {point}", each + took / len(paths)
                    time_names(view, paths, found=found)
                    yield f"{part}: {what} warm, {point}", time_names(view, paths, found=found)[1]
                yield f"open, {point}", took


def _mount(bench: Bench, at: Path, point: str) -> float:
    """From opening the store to the end of the first ``ls``."""
    from unionfs import Store

    with bench.scratch.temporary("mnt") as mnt:
        start = time.perf_counter()
        with Store(at) as store, store.open(point) as fs, fs.mount(mnt, "devfuse"):
            subprocess.run(["ls", mnt], check=True, capture_output=True)
            return time.perf_counter() - start


WORKLOADS = (
    Workload(
        "store/commits",
        "commits in a row on one container, two changed files each; then the last image against the first",
        dict.fromkeys(
            (
                "commit",
                *(f"{lookup}, {point}" for lookup in LOOKUPS for point in POINTS),
                *(f"open, {point}" for point in POINTS),
                *(f"mount to ls, {point}" for point in POINTS),
                "diff",
                "history",
                "log",
            ),
            "s",
        ),
        (OURS,),
        OURS,
        _commits,
    ),
)

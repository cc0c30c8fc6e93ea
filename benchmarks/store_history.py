"""A thousand commits in a row, and what a deep stack costs afterwards: lookups, diff, history, mount."""

from __future__ import annotations

import functools
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
REPEAT = 3
DIRECTORIES, FILES = 100, 1000
PARTS = ("tree", "hot")
POINTS = ("first", "last")
LOOKUPS = tuple(f"{part}: {what} {when}" for when in ("cold", "warm") for part in PARTS for what in ("hit", "miss"))


class _History:
    """A store with an image of one layer: a tree of directories, and one more in which each commit changes a file."""

    def __init__(self, bench: Bench) -> None:
        files = FILES if bench.sizes.full else 100
        self.count = trees(bench).commits
        self.tree = [f"/dir{d:02d}/file{i:03d}" for d in range(DIRECTORIES) for i in range(files)]
        self.names = {"tree": self.tree, "hot": [f"/hot/file{i:03d}" for i in range(HOT)]}
        self.at = bench.scratch.fresh("store")

    @functools.cached_property
    def store(self) -> Path:
        """Where it is."""
        from unionfs import Store

        source = self.at / "source"
        for name in (name for names in self.names.values() for name in names):
            file = source / name[1:]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(name.encode())
        with Store(self.at / "store") as store:
            store.import_(source, "first")
        os.sync()
        return self.at / "store"

    def change(self, fs: Any, number: int, rng: random.Random) -> None:
        """What a commit is of."""
        fs.write_bytes(self.names["hot"][number % HOT], rng.randbytes(100))
        fs.write_bytes(self.tree[number * 97 % len(self.tree)], rng.randbytes(100))

    def differences(self) -> int:
        """How many paths the last differs by from the first."""
        numbers = range(self.count)
        return len({number % HOT for number in numbers}) + len({number * 97 % len(self.tree) for number in numbers})


def _commits(bench: Bench) -> Iterator[Case]:
    history = _History(bench)
    count = history.count

    def measure(_contender: Contender) -> Readings:
        from unionfs import Store

        at = history.store
        rng = random.Random(os.urandom(8))
        with Store(at) as store:
            with store.create("first") as container:
                for number in range(count):
                    history.change(container.fs, number, rng)
                    name = "last" if number == count - 1 else None
                    yield "commit", timed(partial(container.commit, name, message=f"number {number}"))
            container.remove()
            last = store.image("last")
            if len(last.layers) != count + 1:
                raise Unsupported(f"WRONG: {len(last.layers)} layers, not {count + 1}")
        os.sync()
        for _ in range(REPEAT):
            for point in POINTS:
                yield from _lookups(history, point)
            for point in POINTS:
                yield f"mount to ls, {point}", _mount(bench, at, point)
            with Store(at) as store:
                found: list[Any] = []
                yield "diff", timed(lambda: found.extend(store.diff("first", "last")))  # noqa: B023 - called at once
                yield "history", timed(store.image("last").history)
                yield "log", timed(store.log)
                if len(found) != history.differences():
                    raise Unsupported(f"WRONG: {len(found)} differences")

    yield Case(f"{count:,} commits", measure, lambda: history.store)


def _lookups(history: _History, point: str) -> Readings:
    from unionfs import Store

    with Store(history.store) as store:
        for part, names in history.names.items():
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

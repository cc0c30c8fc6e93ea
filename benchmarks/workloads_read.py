"""Reading, in process and mounted: stat, first lookups against depth, listing, walking, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.contenders import IN_PROCESS, MOUNTED, OVERLAYFS, PLAIN, REPOSITORY, UNIONFS, Contender, Stack
from benchmarks.fixtures import EIGHT_DEEP
from benchmarks.memory import memory_of
from benchmarks.runner import Area, Bench, Case, Readings, Workload
from benchmarks.scratch import Unsupported, drop_caches
from benchmarks.timing import time_names, time_of_call, timed

Fixture = Callable[[Path | None], Stack]
LONG_WALK = 10
WARM_DEPTHS = (2, 10, 100, 1000)


def cold(what: int = 2) -> None:
    """Drop dentries and inodes (2), file data too (3)."""
    if not drop_caches(what):
        raise Unsupported("cold: may not write /proc/sys/vm/drop_caches")


def _stat(bench: Bench) -> Iterator[Case]:
    def measure(stack: Stack, depth: int, contender: Contender) -> Readings:
        with bench.open(contender, stack) as view:
            # Eight names, not nine: without the "." of a plain directory.
            path = f"{view.prefix}/{EIGHT_DEEP}/n{depth // 2 % bench.sizes.names}".removeprefix("./")
            view.stat(path)
            yield "hit", time_of_call(view.stat, path)
            missing = f"{view.prefix}/{EIGHT_DEEP}/missing".removeprefix("./")
            yield "miss", time_of_call(view.stat, missing, view.not_found)

    for depth in WARM_DEPTHS if bench.sizes.full else bench.sizes.depths:
        yield Case(f"{depth} layers", partial(measure, bench.fixtures.deep(depth), depth))


def warm_layers(stack: Stack) -> None:
    """Every inode of the layers, and of the plain tree, in the kernel's caches."""
    subprocess.run(["find", *stack.lowers, *([stack.plain] if stack.plain else []), "-size", "+1G"], check=True)


def _lookup(bench: Bench, *, warm: bool) -> Iterator[Case]:
    hits = [f"/{EIGHT_DEEP}/n{i}" for i in range(bench.sizes.names)]
    misses = [f"/{EIGHT_DEEP}/m{i}" for i in range(bench.sizes.names)]

    def measure(depth: int, contender: Contender) -> Readings:
        stack = bench.fixtures.deep(depth)
        for what, paths in (("hit", hits), ("miss", misses)):
            if warm:
                warm_layers(stack)
            with bench.open(contender, stack) as view:
                first, each = time_names(view, paths, found=what == "hit")
                yield f"{what} first", first
                yield f"{what} next", (each * len(paths) - first) / (len(paths) - 1)
                yield f"{what} cold", each
                time_names(view, paths, found=what == "hit")
                yield f"{what} warm", time_names(view, paths, found=what == "hit")[1]

    for depth in bench.sizes.depths:
        yield Case(f"{depth} layers", partial(measure, depth), partial(bench.fixtures.deep, depth))


def _depth(bench: Bench) -> Iterator[Case]:
    def measure(shape: str, contender: Contender) -> Readings:
        hits = bench.fixtures.cold_names(shape)
        misses = [path + "-missing" for path in hits]
        for layers in (2, 1000):
            stack = bench.fixtures.cold(shape, layers)
            for what, paths in (("hit", hits), ("miss", misses)):
                with bench.open(contender, stack) as view:
                    yield f"{what}, {layers} layers", time_names(view, paths, found=what == "hit")[1]

    for shape in ("realistic", "scattered"):
        bench.fixtures.cold(shape, 2)
        bench.fixtures.cold(shape, 1000)
        yield Case(shape, partial(measure, shape))


def _listing(bench: Bench, *, warm: bool) -> Iterator[Case]:
    stack = bench.fixtures.listing()

    def measure(contender: Contender) -> Readings:
        if warm:
            warm_layers(stack)
        with bench.open(contender, stack) as view:
            path = view.prefix + "/big"
            yield "cold", timed(view.listdir, path)
            yield "warm", min(timed(view.listdir, path) for _ in range(3))

    yield Case(f"{bench.sizes.listing} names, 10 layers", measure)


def _walk(bench: Bench) -> Iterator[Case]:
    stack = bench.fixtures.walk()

    def measure(drop: bool, contender: Contender) -> Readings:
        with bench.open(contender, stack) as view:
            if drop:
                cold()
            else:
                warm_layers(stack)
            yield "first", (first := timed(view.walk_and_stat, "/"))
            if first > LONG_WALK:
                raise Unsupported(f"not again: the first walk took more than {LONG_WALK} s")
            yield "second", timed(view.walk_and_stat, "/")

    entries = f"{bench.sizes.entries} entries, 10 layers"
    yield Case(f"{entries}, caches warm", partial(measure, False))
    yield Case(f"{entries}, caches dropped", partial(measure, True))


def _find(bench: Bench) -> Iterator[Case]:
    def find(top: str) -> None:
        with Path(os.devnull).open("wb") as sink:
            subprocess.run(["find", top, "-ls"], stdout=sink, check=True)

    def measure(fixture: Fixture, area: Area, contender: Contender) -> Readings:
        stack = fixture(area.under())
        warm_layers(stack)
        with bench.open(contender, stack, under=area.under()) as view:
            yield "cold", timed(find, view.prefix)
            yield "warm", timed(find, view.prefix)
            if view.pid is None:
                raise Unsupported("no process of its own")
            rss, pss = memory_of(view.pid)
            yield "RSS after", rss
            yield "PSS after", pss

    def prepare(fixture: Fixture, area: Area) -> None:
        fixture(area.under())

    disk, tmpfs = bench.areas()
    for layers, entries, fixture, area in (
        (3, bench.sizes.found, bench.fixtures.found, disk),
        (3, bench.sizes.found, bench.fixtures.found, tmpfs),
        (10, bench.sizes.entries, bench.fixtures.walk, disk),
    ):
        label = f"{entries} entries, {layers} layers, {area.name}"
        yield Case(label, partial(measure, fixture, area), partial(prepare, fixture, area))


def _memory(bench: Bench) -> Iterator[Case]:
    stack = bench.fixtures.walk()

    def measure(_contender: Contender) -> Readings:
        words = json.dumps([str(path) for path in stack.lowers])
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory"],
            input=words,
            capture_output=True,
            text=True,
            check=True,
            cwd=REPOSITORY,
        )
        opened, walked = json.loads(done.stdout)
        yield "RSS opened", opened
        yield "RSS walked", walked

    yield Case(f"{bench.sizes.entries} entries, 10 layers", measure)


_LOOKUPS = {f"{what} {when}": "s" for what in ("hit", "miss") for when in ("first", "next", "cold", "warm")}
_MEMORY = {"RSS after": "B", "PSS after": "B"}

WORKLOADS = (
    Workload(
        "inprocess/stat",
        "warm stat of one path, eight deep",
        {"hit": "s", "miss": "s"},
        IN_PROCESS,
        PLAIN,
        _stat,
    ),
    Workload(
        "inprocess/lookup",
        "stat of 1,000 names eight deep, on a fresh object, then again (time a name)",
        _LOOKUPS,
        IN_PROCESS,
        PLAIN,
        partial(_lookup, warm=False),
    ),
    Workload(
        "inprocess/depth",
        "first lookups of every name on a fresh object, 1,000 layers and 2 (time a name)",
        {f"{what}, {layers} layers": "s" for layers in (2, 1000) for what in ("hit", "miss")},
        (UNIONFS,),
        UNIONFS,
        _depth,
    ),
    Workload(
        "inprocess/listing",
        "listdir of one large directory, on a fresh object, then again",
        {"cold": "s", "warm": "s"},
        IN_PROCESS,
        PLAIN,
        partial(_listing, warm=False),
    ),
    Workload(
        "inprocess/walk",
        "walk and stat of a merged tree, on a fresh object, then again",
        {"first": "s", "second": "s"},
        (*IN_PROCESS, OVERLAYFS),
        PLAIN,
        _walk,
    ),
    Workload(
        "inprocess/memory",
        "memory of a Python process that opened a UnionFS and walked it",
        {"RSS opened": "B", "RSS walked": "B"},
        (UNIONFS,),
        UNIONFS,
        _memory,
    ),
    Workload(
        "mount/lookup",
        "stat of 1,000 names eight deep, on a fresh mount, then again (time a name)",
        _LOOKUPS,
        (*MOUNTED, PLAIN),
        OVERLAYFS,
        partial(_lookup, warm=True),
    ),
    Workload(
        "mount/listing",
        "listdir of one large directory, on a fresh mount, then again",
        {"cold": "s", "warm": "s"},
        (*MOUNTED, PLAIN),
        OVERLAYFS,
        partial(_listing, warm=True),
    ),
    Workload(
        "mount/find",
        "find -ls over a merged tree, on a fresh mount, then again; the daemon's memory",
        {"cold": "s", "warm": "s", **_MEMORY},
        (*MOUNTED, PLAIN),
        OVERLAYFS,
        _find,
    ),
)

"""From a store to the first look into a mount."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.contenders import DEVFUSE, KERNEL, UNIONFS, Contender
from benchmarks.runner import Bench, Case, Readings, Workload
from benchmarks.scratch import Unsupported, drop_caches, is_mounted
from benchmarks.store_trees import LAYERS, cli, contender, environment, path_of, trees

OURS_DEVFUSE = contender("unionfs devfuse", DEVFUSE.missing, UNIONFS.version, ours=True)
OURS_KERNEL = contender("unionfs kernel", KERNEL.missing, UNIONFS.version, ours=True)
OURS_COMMAND = contender("unionfs mount", DEVFUSE.missing, UNIONFS.version, ours=True)
ROOT, DEEP = "mount and ls of the root", "mount and ls of a deep directory"
INDEX, NO_INDEX, DROPPED = "with the index", "without", "with the index, caches dropped"


def _mount(bench: Bench) -> Iterator[Case]:
    entries = trees(bench).entries
    deep = os.path.dirname(path_of(entries * 9 // 10 - 1))

    def measure(kind: str, contender: Contender) -> Readings:
        at = trees(bench).unindexed() if kind == NO_INDEX else trees(bench).stacked()
        for what, inner in ((ROOT, ""), (DEEP, deep)):
            os.sync()
            if kind == DROPPED and not drop_caches(3):
                raise Unsupported("may not write /proc/sys/vm/drop_caches")
            with bench.scratch.temporary("mnt") as mnt:
                if contender is OURS_COMMAND:
                    yield what, _by_command(bench, at, mnt, inner)
                else:
                    took = _in_process(at, mnt, contender.name.rpartition(" ")[2], inner)
                    yield from zip((what, "of it the mount"), took, strict=not inner)

    for kind in (INDEX, NO_INDEX, DROPPED):
        label = f"{entries:,} files, {LAYERS} layers, {kind}"
        yield Case(label, partial(measure, kind), trees(bench).unindexed if kind == NO_INDEX else trees(bench).stacked)


def _ls(path: Path) -> None:
    done = subprocess.run(["ls", path], check=True, capture_output=True, text=True)
    if not done.stdout:
        raise Unsupported("WRONG: nothing is there")


def _in_process(at: Path, mnt: Path, engine: str, inner: str) -> tuple[float, ...]:
    from unionfs import Store

    start = time.perf_counter()
    with Store(at) as store, store.container("c") as container, container.mount(mnt, engine):
        mounted = time.perf_counter()
        _ls(mnt / inner)
        took = time.perf_counter() - start
    return (took,) if inner else (took, mounted - start)


def _by_command(bench: Bench, at: Path, mnt: Path, inner: str) -> float:
    start = time.perf_counter()
    # A file, not a pipe: the daemon that stays would keep that open.
    with open(os.devnull, "wb") as sink:
        command = cli(at, "mount", "--engine", "devfuse", "c", str(mnt))
        subprocess.run(command, check=True, env=environment(bench.scratch),
                       stdout=sink, stderr=sink)  # fmt: skip
    try:
        _ls(mnt / inner)
        return time.perf_counter() - start
    finally:
        subprocess.run(cli(None, "umount", str(mnt)), check=True, env=environment(bench.scratch), capture_output=True)
        if is_mounted(mnt):
            raise Unsupported("WRONG: it is still mounted")


WORKLOADS = (
    Workload(
        "store/mount",
        "from opening the store to the end of the first ls; by the command with the start of Python",
        dict.fromkeys((ROOT, "of it the mount", DEEP), "s"),
        (OURS_DEVFUSE, OURS_KERNEL, OURS_COMMAND),
        OURS_DEVFUSE,
        _mount,
    ),
)

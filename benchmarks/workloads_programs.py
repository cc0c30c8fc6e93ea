"""Programs that people run, on the mounts: git, a C compiler, pip."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.contenders import MERGERFS, MOUNTED_DATA, OVERLAYFS, PLAIN, Contender, Stack
from benchmarks.programs import WHEELS, git, run
from benchmarks.runner import Bench, Case, Readings, Workload
from benchmarks.scratch import Unsupported

Work = Callable[[str, Contender], Readings]


def _cases(
    bench: Bench, label: str, stack_of: Callable[[Path | None], Stack], work: Work, prepare: Callable[[], object]
) -> Iterator[Case]:
    """`work` on a fresh mount of a stack, given the mount's path and whose it is; on each file system."""

    def measure(under: Callable[[], Path | None], contender: Contender) -> Readings:
        os.sync()
        with bench.open(contender, stack_of(under()), under=under(), copy_plain=contender is PLAIN) as view:
            yield from work(os.path.realpath(view.prefix), contender)

    def ready(under: Callable[[], Path | None]) -> None:
        prepare()
        stack_of(under())

    for area in bench.areas():
        yield Case(f"{label}, {area.name}", partial(measure, area.under), partial(ready, area.under))


def _timed(*command: str, cwd: str) -> tuple[float, str]:
    start = time.perf_counter()
    output = run(*command, cwd=cwd)
    return time.perf_counter() - start, output


def _git(bench: Bench) -> Iterator[Case]:
    def status(where: str) -> float:
        seconds, output = _timed("git", "status", "--porcelain", cwd=where)
        if output:
            raise Unsupported(f"WRONG: git status tells of {output.count(chr(10))} changes; there are none")
        return seconds

    def work(top: str, contender: Contender) -> Readings:
        url = f"file://{bench.fixtures.repository()}"
        yield "clone", _timed("git", "clone", "-q", "--no-local", url, "clone", cwd=top)[0]
        git("fsck", "--no-progress", cwd=f"{top}/clone")
        yield "status", status(f"{top}/clone")
        yield "status, again", status(f"{top}/clone")
        if contender is MERGERFS:
            raise Unsupported("mergerfs has no copy-up: git's new index takes the place of the lower one")
        yield "status, lower files", status(f"{top}/checkout")
        yield "status, lower files, again", status(f"{top}/checkout")

    label = f"{bench.sizes.repository_files} files"
    yield from _cases(bench, label, bench.fixtures.checkout, work, bench.fixtures.repository)


def _gcc(bench: Bench) -> Iterator[Case]:
    def work(top: str, _contender: Contender) -> Readings:
        yield "build", _timed("make", "-s", "-j2", cwd=f"{top}/project")[0]
        run(f"{top}/project/build/program")
        yield "nothing to do", _timed("make", "-s", "-j2", cwd=f"{top}/project")[0]

    def prepare() -> None:
        for program in ("make", "gcc"):
            if shutil.which(program) is None:
                raise Unsupported(f"{program} is not installed")

    yield from _cases(bench, f"{bench.sizes.sources} sources", bench.fixtures.project, work, prepare)


def _pip(bench: Bench) -> Iterator[Case]:
    def work(top: str, _contender: Contender) -> Readings:
        run(sys.executable, "-m", "venv", "--without-pip", f"{top}/venv")
        python = f"{top}/venv/bin/python"
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", python]
        wheels = f"--find-links={bench.fixtures.wheels()}"
        last = f"bench_wheel{WHEELS - 1}"
        yield "install", _timed(*pip, "install", "--no-index", "--no-cache-dir", wheels, last, cwd=top)[0]
        run(python, "-c", f"import {last}.part0.module0")
        names = [f"bench_wheel{i}" for i in range(WHEELS)]
        yield "uninstall", _timed(*pip, "uninstall", "-y", *names, cwd=top)[0]

    yield from _cases(bench, f"{bench.sizes.modules} modules", bench.fixtures.empty, work, bench.fixtures.wheels)


WORKLOADS = (
    Workload(
        "mount/git",
        "git clone from outside, git status in it; git status in a work tree of a lower layer, and again",
        dict.fromkeys(("clone", "status", "status, again", "status, lower files", "status, lower files, again"), "s"),
        (*MOUNTED_DATA, PLAIN),
        OVERLAYFS,
        _git,
    ),
    Workload(
        "mount/gcc",
        "make -j2 of a C project in a lower layer, and again when nothing is to do",
        {"build": "s", "nothing to do": "s"},
        (*MOUNTED_DATA, PLAIN),
        OVERLAYFS,
        _gcc,
    ),
    Workload(
        "mount/pip",
        "pip install of local wheels into a virtual environment on the mount, compiled; pip uninstall",
        {"install": "s", "uninstall": "s"},
        (*MOUNTED_DATA, PLAIN),
        OVERLAYFS,
        _pip,
    ),
)

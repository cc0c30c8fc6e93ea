"""Commit against umoci and buildah; what takes no time whatever the size: create, fork, roll-back, tag."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.runner import Bench, Case, Readings, Workload
from benchmarks.scratch import Unsupported
from benchmarks.store_peers import IN_PROCESS, OURS, PROGRAMS, UMOCI, prepare, ready
from benchmarks.store_trees import BASE, cli, environment, program, trees
from benchmarks.timing import timed


def _run(bench: Bench, command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment(bench.scratch))


def _commit(bench: Bench) -> Iterator[Case]:
    def measure(files: int, contender: Contender) -> Readings:
        with ready(contender, trees(bench), files) as commit:
            if contender in IN_PROCESS:
                yield "time", timed(commit)
            else:
                yield "time", timed(_run, bench, commit() or ())

    for files in trees(bench).sizes[-2:]:
        yield Case(f"{files:,} files", partial(measure, files), partial(prepare, trees(bench), files))


def _calls(bench: Bench) -> Iterator[Case]:
    def measure(files: int, contender: Contender) -> Readings:
        reason = program("strace")()
        if reason is not None:
            raise Unsupported(reason)
        with ready(contender, trees(bench), files) as commit, bench.scratch.temporary("strace") as home:
            _run(bench, ["strace", "-f", "-qq", "-c", "-o", f"{home}/calls", *(commit() or ())])
            counts = _counted((home / "calls").read_text())
        yield "system calls", float(counts["total"])
        yield "of them listings", float(counts.get("getdents64", 0) or 1)

    for files in trees(bench).sizes[-2:]:
        yield Case(f"{files:,} files", partial(measure, files), partial(prepare, trees(bench), files))


def _counted(table: str) -> dict[str, int]:
    """Calls by name, of the table of ``strace -c``."""
    found = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+(?:\d+\s+)?(\d+)\s+(?:\d+\s+)?(\w+)$", table, re.MULTILINE)
    return {name: int(count) for count, name in found}


AT_ONCE = ("create", "tag", "fork", "rollback", "fork, mounted", "rollback, mounted")


def _constant(bench: Bench) -> Iterator[Case]:
    from unionfs import Store

    def measure(files: int, _contender: Contender) -> Readings:
        with Store(trees(bench).store(files)) as store:
            os.sync()
            container, took = _timed(store.create, BASE)
            yield "create", took
            yield "tag", timed(store.tag, BASE, "other:name")
            store.remove_image("other:name")
            change(container.fs, "1")
            container.close()
            os.sync()
            fork, took = _timed(container.fork)
            yield "fork", took
            change(container.fs, "2")
            container.close()
            os.sync()
            yield "rollback", timed(container.rollback, BASE)
            expect(store, container, "fork", fork)
            with container, bench.scratch.temporary("mnt") as mnt, container.mount(mnt, "devfuse"):
                (mnt / "new").write_bytes(b"3")
                os.sync()
                second, took = _timed(container.fork)
                yield "fork, mounted", took
                (mnt / "new").write_bytes(b"4")
                os.sync()
                yield "rollback, mounted", timed(container.rollback, BASE)
                if (mnt / "new").exists():
                    raise Unsupported("WRONG: the mount shows what was rolled back")
            for each in (fork, second, container):
                each.remove()

    def change(fs: Any, text: str) -> None:
        for name in ("/new", "/usr00/part00/file00", "/usr00/part00/new"):
            fs.write_bytes(name, text.encode())

    def expect(store: Any, container: Any, what: str, fork: Any) -> None:
        with store.open(BASE) as base:
            if container.diff() or not fork.diff() or base.exists("/new"):
                raise Unsupported(f"WRONG: {what}")

    for files in trees(bench).sizes:
        yield Case(f"{files:,} files", partial(measure, files), partial(trees(bench).store, files))


def _timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    found: list[Any] = []
    took = timed(lambda: found.append(function(*arguments)))
    return found[0], took


def _commands(bench: Bench) -> Iterator[Case]:
    """The same by the command, with the start of Python in it."""

    def measure(files: int, _contender: Contender) -> Readings:
        at = trees(bench).store(files)
        with contextlib.ExitStack() as stack:
            stack.callback(_remove, at, "c1", "c2")
            os.sync()
            yield "--version", timed(_run, bench, cli(None, "--version"))
            for what, words in (
                ("create", ("create", "--name", "c1", BASE)),
                ("tag", ("tag", BASE, "other:name")),
                ("fork", ("fork", "c1", "--name", "c2")),
                ("rollback", ("rollback", "c1", BASE)),
            ):
                yield what, timed(_run, bench, cli(at, *words))

    for files in trees(bench).sizes[-1:]:
        yield Case(f"{files:,} files", partial(measure, files), partial(trees(bench).store, files))


def _remove(at: Path, *names: str) -> None:
    from unionfs import NotFoundError, Store

    with Store(at) as store, contextlib.suppress(NotFoundError):
        for name in names:
            store.container(name).remove()
        store.remove_image("other:name")


WORKLOADS = (
    Workload(
        "store/commit",
        "an image made of a container in which 100 files changed",
        {"time": "s"},
        (*IN_PROCESS, *PROGRAMS),
        UMOCI,
        _commit,
    ),
    Workload(
        "store/commit-calls",
        "what that asks of the kernel, under strace",
        {"system calls": "1", "of them listings": "1"},
        PROGRAMS,
        UMOCI,
        _calls,
    ),
    Workload(
        "store/constant",
        "what takes the same time whatever the image's size, in process",
        dict.fromkeys(AT_ONCE, "s"),
        (OURS,),
        OURS,
        _constant,
    ),
    Workload(
        "store/commands",
        "the same as commands, with the start of Python",
        dict.fromkeys(("--version", "create", "tag", "fork", "rollback"), "s"),
        (OURS,),
        OURS,
        _commands,
    ),
)

"""Changes: chmod of a large file, rename of a large directory, copy-up by size, and of many files."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.contenders import (
    MOUNTED,
    MULTIFS,
    OVERLAYFS,
    OVERLAYFS_DEFAULTS,
    OVERLAYFS_VOLATILE,
    PLAIN,
    UNIONFS,
    UNIONFS_VOLATILE,
    Contender,
    Place,
    Stack,
)
from benchmarks.runner import Bench, Case, Readings, Workload
from benchmarks.scratch import Unsupported, disk_used, filesystem_of
from benchmarks.timing import settle, timed
from benchmarks.views import View, os_view


def _copier(name: str, *options: str, sync: bool) -> Contender:
    """``cp`` of the lower file: what a copy-up has to do at least."""

    @contextlib.contextmanager
    def opens(place: Place) -> Iterator[View]:
        def copy(path: str) -> None:
            target = f"{place.upper}/copy"
            subprocess.run(["cp", *options, path, target], check=True, capture_output=True, text=True)
            if sync:
                fd = os.open(target, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)

        with os_view(place.stack.lowers[-1], place.upper) as view:
            yield replace(view, write_byte=copy)

    def version() -> str:
        done = subprocess.run(["cp", "--version"], capture_output=True, text=True, check=True)
        return done.stdout.split("\n")[0]

    return Contender(name, opens, lambda: None, version)


CP = _copier("cp", "--reflink=never", sync=False)
CP_SYNC = _copier("cp + fsync", "--reflink=never", sync=True)
CP_REFLINK = _copier("cp --reflink", "--reflink=always", sync=False)
CP_REFLINK_SYNC = _copier("cp --reflink + fsync", "--reflink=always", sync=True)


def size_name(size: int) -> str:
    """``4 KiB``, ``1 GiB``: a size in its largest whole unit."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def _chmod(bench: Bench) -> Iterator[Case]:
    stack = bench.fixtures.big_file()

    def measure(contender: Contender) -> Readings:
        settle(*(lower / "big" for lower in stack.lowers[-1:]))
        with bench.open(contender, stack) as view:
            yield "time", timed(view.chmod, view.prefix + "/big", 0o600)
            if view.upper is not None:
                yield "upper", disk_used(view.upper)

    yield Case(size_name(bench.sizes.big_file), measure)


def _rename(bench: Bench) -> Iterator[Case]:
    stack = bench.fixtures.big_directory()

    def measure(contender: Contender) -> Readings:
        os.sync()
        with bench.open(contender, stack) as view:
            old, new = view.prefix + "/dir", view.prefix + "/renamed"
            yield "time", timed(view.rename, old, new)
            try:
                view.stat(new + "/part00/file0000")
            finally:
                if contender is PLAIN:
                    view.rename(new, old)

    yield Case(f"{bench.sizes.entries} files", measure)


def _copyup_sizes(bench: Bench) -> Iterator[Case]:
    def measure(stack: Stack, count: int, contender: Contender) -> Readings:
        settle(*((stack.lowers[-1] / "files" / str(i)) for i in range(count)))
        with bench.open(contender, stack) as view:
            paths = [f"{view.prefix}/files/{i}" for i in range(count)]
            for path in paths:
                view.stat(path)
            yield "time", sum(timed(view.write_byte, path) for path in paths) / count

    for size in bench.sizes.copyup_sizes:
        count = max(1, min(20, (64 << 20) // size))
        stack = bench.fixtures.files(size, count)
        yield Case(size_name(size), partial(measure, stack, count))


def _copyup_big(bench: Bench) -> Iterator[Case]:
    size = bench.sizes.big_file

    def refuse(reason: str, _contender: Contender) -> Readings:
        raise Unsupported(reason)

    def measure(under: Path | None, contender: Contender) -> Readings:
        stack = bench.fixtures.big_file(under)
        settle(stack.lowers[-1] / "big")
        with bench.open(contender, stack, under=under) as view:
            view.stat(view.prefix + "/big")
            yield "time", timed(view.write_byte, view.prefix + "/big")

    bench.fixtures.big_file()
    yield Case(f"{size_name(size)}, {filesystem_of(bench.scratch.root)}", partial(measure, None))
    for fstype in ("btrfs", "xfs"):
        label = f"{size_name(size)}, {fstype}"
        try:
            point = bench.scratch.mount_image(fstype, 4 * size + (1 << 30))
        except Unsupported as error:
            yield Case(label, partial(refuse, str(error)))
        else:
            bench.fixtures.big_file(point)
            yield Case(label, partial(measure, point))


def _copyup_many(bench: Bench) -> Iterator[Case]:
    count, size = bench.sizes.small_files, bench.sizes.small_size

    def measure(under: Path | None, contender: Contender) -> Readings:
        stack = bench.fixtures.files(size, count, under)
        settle()
        with bench.open(contender, stack, under=under) as view:
            paths = [f"{view.prefix}/files/{i}" for i in range(count)]
            write = view.write_byte

            def all_of_them() -> None:
                for path in paths:
                    write(path)

            yield "time a file", timed(all_of_them) / count

    what = f"{count} files of {size_name(size)}"
    bench.fixtures.files(size, count)
    yield Case(f"{what}, {filesystem_of(bench.scratch.root)}", partial(measure, None))
    yield Case(
        f"{what}, tmpfs",
        lambda contender: measure(bench.fixtures.tmpfs(), contender),
        lambda: bench.fixtures.files(size, count, bench.fixtures.tmpfs()),
    )


WORKLOADS = (
    Workload(
        "change/chmod",
        "chmod of a large lower file; bytes it takes in the upper",
        {"time": "s", "upper": "B"},
        (UNIONFS, *MOUNTED, OVERLAYFS_DEFAULTS, MULTIFS),
        OVERLAYFS,
        _chmod,
    ),
    Workload(
        "change/rename",
        "rename of a large lower directory",
        {"time": "s"},
        (UNIONFS, *MOUNTED, OVERLAYFS_DEFAULTS, MULTIFS, PLAIN),
        OVERLAYFS,
        _rename,
    ),
    Workload(
        "change/copyup-size",
        "open for writing and change one byte of a lower file, by its size (time a file)",
        {"time": "s"},
        (UNIONFS, *MOUNTED, MULTIFS),
        OVERLAYFS,
        _copyup_sizes,
    ),
    Workload(
        "change/copyup-big",
        "the same with a large file, against cp; without reflink, and with it",
        {"time": "s"},
        (
            UNIONFS,
            UNIONFS_VOLATILE,
            OVERLAYFS,
            OVERLAYFS_VOLATILE,
            CP,
            CP_SYNC,
            CP_REFLINK,
            CP_REFLINK_SYNC,
        ),
        CP_SYNC,
        _copyup_big,
    ),
    Workload(
        "change/copyup-many",
        "the same with many small files (time a file)",
        {"time a file": "s"},
        (
            UNIONFS,
            UNIONFS_VOLATILE,
            OVERLAYFS,
            OVERLAYFS_VOLATILE,
            *(one for one in MOUNTED if one is not OVERLAYFS),
            MULTIFS,
        ),
        OVERLAYFS,
        _copyup_many,
    ),
)

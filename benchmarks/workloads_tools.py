"""Real work: tar, rm and fio on the mounts; the same in process through the API."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.contenders import IN_PROCESS, MOUNTED_DATA, OVERLAYFS, PLAIN, Contender
from benchmarks.fixtures import MIB
from benchmarks.runner import Area, Bench, Case, Readings, Workload
from benchmarks.scratch import Unsupported
from benchmarks.timing import settle, timed
from benchmarks.views import View
from benchmarks.workloads_read import cold

FIO_SECONDS = 3
RANDOM_OPERATIONS = 10_000


def _run(command: str) -> None:
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True)


def _tar(bench: Bench) -> Iterator[Case]:
    def measure(area: Area, contender: Contender) -> Readings:
        stack, tarball = bench.fixtures.source_tree(area.under()), bench.fixtures.tarball()
        os.sync()
        with bench.open(contender, stack, under=area.under(), copy_plain=contender is PLAIN) as view:
            # A pipe, since tar reads no data when it sees that its output is /dev/null.
            yield "tar, lower files", timed(_run, f"cd {view.prefix} && tar -cf - src | cat >/dev/null")
            new = f"{view.prefix}/new"
            yield "untar", timed(_run, f"mkdir {new} && tar -C {new} -xf {tarball}")
            yield "tar, upper files", timed(_run, f"cd {new} && tar -cf - src | cat >/dev/null")
            yield "rm -rf, upper files", timed(_run, f"rm -rf {new}")
            yield "rm -rf, lower files", timed(_run, f"rm -rf {view.prefix}/src")

    def prepare(area: Area) -> None:
        settle(bench.fixtures.tarball())
        bench.fixtures.source_tree(area.under())

    for area in bench.areas():
        yield Case(f"{bench.sizes.tree_files} files, {area.name}", partial(measure, area), partial(prepare, area))


def _fio_job(path: Path, mode: str, block: int, size: int) -> tuple[float, float]:
    """One fio pass over `path` (stopped after `FIO_SECONDS`): bytes a second, without and with a final fsync."""
    if shutil.which("fio") is None:
        raise Unsupported("fio is not installed")
    command = [
        "fio",
        "--name=job",
        "--thread",  # No process of its own, which would outlive a run that is stopped.
        f"--filename={path}",
        f"--rw={mode}",
        f"--bs={block}",
        f"--size={size}",
        f"--runtime={FIO_SECONDS}",
        "--ioengine=psync",
        "--invalidate=0",
        "--fallocate=none",
        "--output-format=json",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = job["write" if "write" in mode else "read"]
    seconds = side["runtime"] / 1000 or 1e-3
    synced = seconds
    if "write" in mode:
        with path.open("rb") as file:  # fio's own end_fsync is not in its runtime
            synced += timed(os.fsync, file.fileno())
    return side["io_bytes"] / seconds, side["io_bytes"] / synced


def _write(bench: Bench) -> Iterator[Case]:
    size = bench.sizes.fio

    def measure(area: Area, contender: Contender) -> Readings:
        os.sync()
        stack = bench.fixtures.empty(area.under())
        with bench.open(contender, stack, under=area.under(), copy_plain=contender is PLAIN) as view:
            for what, mode, block in (("sequential", "write", MIB), ("random", "randwrite", 4096)):
                written, synced = _fio_job(Path(view.prefix, "new"), mode, block, size)
                yield what, written
                yield f"{what}, fsync", synced

    for area in bench.areas():
        yield Case(f"{size // MIB} MiB, {area.name}", partial(measure, area), area.under)


def _read(bench: Bench) -> Iterator[Case]:
    size = bench.sizes.fio

    def measure(area: Area, contender: Contender) -> Readings:
        stack = bench.fixtures.files(size, 1, area.under())
        os.sync()
        for what, mode, block in (("sequential", "read", MIB), ("random", "randread", 4096)):
            with bench.open(contender, stack, under=area.under()) as view:
                if area.name != "tmpfs":
                    cold(3)
                for when in ("cold", "warm"):
                    yield f"{what}, {when}", _fio_job(Path(view.prefix, "files", "0"), mode, block, size)[0]

    def prepare(area: Area) -> None:
        bench.fixtures.files(size, 1, area.under())

    for area in bench.areas():
        yield Case(f"{size // MIB} MiB, {area.name}", partial(measure, area), partial(prepare, area))


def _read_all(view: View) -> None:
    for directory, _, files in view.walk(view.prefix + "/src"):
        for name in files:
            with view.open(os.path.join(directory, name), "rb", 0) as file:
                file.read()


def _write_all(view: View, members: list[tuple[str, bytes | None]]) -> None:
    view.mkdir(view.prefix + "/new")
    for name, data in members:
        path = f"{view.prefix}/new/{name}"
        if data is None:
            view.mkdir(path)
        else:
            with view.open(path, "wb", 0) as file:
                file.write(data)


def _tree(bench: Bench) -> Iterator[Case]:
    stack, tarball = bench.fixtures.source_tree(), bench.fixtures.tarball()
    members: list[tuple[str, bytes | None]] = []
    with tarfile.open(tarball) as archive:
        for member in archive:
            source = archive.extractfile(member)
            members.append((member.name, source.read() if source else None))

    def measure(contender: Contender) -> Readings:
        with bench.open(contender, stack, copy_plain=contender is PLAIN) as view:
            yield "read", timed(_read_all, view)
            yield "write", timed(_write_all, view, members)
            yield "rmtree, upper files", timed(view.rmtree, view.prefix + "/new")
            yield "rmtree, lower files", timed(view.rmtree, view.prefix + "/src")

    yield Case(f"{bench.sizes.tree_files} files, {tarball.stat().st_size // MIB} MiB", measure)


def _io(bench: Bench) -> Iterator[Case]:
    size = bench.sizes.fio
    lowers = bench.fixtures.files(size, 1).lowers
    block, page = os.urandom(MIB), os.urandom(4096)
    offsets = [random.Random(1).randrange(size // 4096) * 4096 for _ in range(RANDOM_OPERATIONS)]

    def measure(contender: Contender) -> Readings:
        stack = replace(bench.fixtures.files(size, 1), plain=lowers[-1])
        with bench.open(contender, stack, copy_plain=contender is PLAIN) as view:
            old, new = view.prefix + "/files/0", view.prefix + "/new"
            with view.open(old, "rb", 0) as file:
                while file.read(MIB):
                    pass
                file.seek(0)
                start = time.perf_counter()
                while file.read(MIB):
                    pass
                yield "sequential read", size / (time.perf_counter() - start)
                start = time.perf_counter()
                for offset in offsets:
                    file.seek(offset)
                    file.read(4096)
                yield "random read", len(offsets) / (time.perf_counter() - start)
            start = time.perf_counter()
            with view.open(new, "wb", 0) as file:
                for _ in range(size // MIB):
                    file.write(block)
            yield "sequential write", size / (time.perf_counter() - start)
            with view.open(new, "r+b", 0) as file:
                start = time.perf_counter()
                for offset in offsets:
                    file.seek(offset)
                    file.write(page)
                yield "random write", len(offsets) / (time.perf_counter() - start)

    yield Case(f"{size // MIB} MiB", measure)


_IO = {"sequential read": "B/s", "random read": "1/s", "sequential write": "B/s", "random write": "1/s"}

WORKLOADS = (
    Workload(
        "inprocess/tree",
        "a source tree through the API: read all files, write them anew, rmtree of both",
        dict.fromkeys(("read", "write", "rmtree, upper files", "rmtree, lower files"), "s"),
        (*IN_PROCESS, OVERLAYFS),
        PLAIN,
        _tree,
    ),
    Workload(
        "inprocess/io",
        "an unbuffered file object: a lower file read, a new file written and then overwritten; 1 MiB and 4 KiB",
        _IO,
        (*IN_PROCESS, OVERLAYFS),
        PLAIN,
        _io,
    ),
    Workload(
        "mount/tar",
        "a source tree on a fresh mount: tar of lower files, untar into the union, tar of that, rm -rf of both",
        dict.fromkeys(
            ("tar, lower files", "untar", "tar, upper files", "rm -rf, upper files", "rm -rf, lower files"), "s"
        ),
        (*MOUNTED_DATA, PLAIN),
        OVERLAYFS,
        _tar,
    ),
    Workload(
        "mount/write",
        "fio, one pass: a new file written in blocks of 1 MiB, then overwritten in blocks of 4 KiB",
        dict.fromkeys(("sequential", "sequential, fsync", "random", "random, fsync"), "B/s"),
        (*MOUNTED_DATA, PLAIN),
        OVERLAYFS,
        _write,
    ),
    Workload(
        "mount/read",
        "fio, one pass, twice: a lower file read in blocks of 1 MiB; on another mount in blocks of 4 KiB",
        dict.fromkeys(("sequential, cold", "sequential, warm", "random, cold", "random, warm"), "B/s"),
        (*MOUNTED_DATA, PLAIN),
        OVERLAYFS,
        _read,
    ),
)

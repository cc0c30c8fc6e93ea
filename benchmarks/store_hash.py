"""Hashing: a layer's digest and fingerprints, and fsck, against the hashes alone."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from benchmarks.contenders import UNIONFS, Contender
from benchmarks.runner import Bench, Case, Readings, Workload
from benchmarks.scratch import Unsupported
from benchmarks.store_trees import BASE, Trees, contender, output, program, trees
from benchmarks.timing import settle, timed

THREADS = os.cpu_count() or 1
CHUNK = 1 << 20
BATCH = 32  # small files for a thread at a time


def _python() -> str:
    return f"Python {sys.version.split()[0]}, xxhash {importlib.metadata.version('xxhash')}"


def _program_version(name: str) -> Callable[[], str]:
    return lambda: (output("sh", "-c", f"{name} --version 2>&1").splitlines() or ["?"])[0]


LAYER = contender("unionfs layer_of", UNIONFS.missing, UNIONFS.version, ours=True)
FSCK = contender("unionfs fsck", UNIONFS.missing, UNIONFS.version, ours=True)
SHA = contender("sha256, 1 thread", lambda: None, _python)
SHA_ALL = contender(f"sha256, {THREADS} threads", lambda: None, _python)
XXH = contender("xxh3_128, 1 thread", lambda: None, _python)
XXH_ALL = contender(f"xxh3_128, {THREADS} threads", lambda: None, _python)
SHA_PROGRAM = contender("sha256sum", program("sha256sum", "coreutils"), _program_version("sha256sum"))
XXH_PROGRAM = contender("xxhsum -H2", program("xxhsum", "xxhash"), _program_version("xxhsum"))


def _hash(new: Callable[[], Any], paths: Iterable[Path]) -> None:
    buffer = memoryview(bytearray(CHUNK))
    for path in paths:
        digest = new()
        fd = os.open(path, os.O_RDONLY)
        try:
            while count := os.readv(fd, [buffer]):
                digest.update(buffer[:count])
        finally:
            os.close(fd)
        digest.hexdigest()


def _hash_all(new: Callable[[], Any], paths: list[Path]) -> None:
    size = BATCH if len(paths) > BATCH * THREADS else 1
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(partial(_hash, new), (paths[i : i + size] for i in range(0, len(paths), size))))


def _sum(*command: str) -> Callable[[list[Path]], None]:
    def run(paths: list[Path]) -> None:
        subprocess.run(["xargs", "-0", *command], input="\0".join(map(str, paths)), text=True, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    return run


_PLAIN: dict[str, Callable[[list[Path]], None]] = {
    SHA.name: partial(_hash, hashlib.sha256),
    SHA_ALL.name: partial(_hash_all, hashlib.sha256),
    XXH.name: partial(_hash, xxhash.xxh3_128),
    XXH_ALL.name: partial(_hash_all, xxhash.xxh3_128),
    SHA_PROGRAM.name: _sum("sha256sum"),
    XXH_PROGRAM.name: _sum("xxhsum", "-H2"),
}


def _throughput(bench: Bench) -> Iterator[Case]:
    def measure(count: int, size: int, contender: Contender) -> Readings:
        yield "throughput", count * size / _seconds(trees(bench), count, size, contender)

    def prepare(count: int, size: int) -> None:
        trees(bench).blocks_store(count, size)

    for count, size in (trees(bench).large, trees(bench).small):
        unit = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
        yield Case(f"{count:,} files of {unit}", partial(measure, count, size), partial(prepare, count, size))


def _seconds(tree: Trees, count: int, size: int, contender: Contender) -> float:
    paths = tree.blocks(count, size)
    if contender.name in _PLAIN:
        settle(*paths)
        return timed(_PLAIN[contender.name], paths)
    from unionfs import Store
    from unionfs.images.layering import layer_of
    from unionfs.layer.memory import MemoryLayer
    from unionfs.union.diff import compare
    from unionfs.union.tree import Tree

    with Store(tree.blocks_store(count, size)) as store:
        settle(*(path for path in Path(store.path).glob("layers/*/diff/*") if path.is_file()))
        if contender is FSCK:
            problems: list[Any] = []
            took = timed(lambda: problems.extend(store.fsck()))
            if problems:
                raise Unsupported(f"WRONG: fsck found {problems[0]}")
            return took
        with store.open(BASE) as fs:
            changes = list(compare(fs.tree, Tree([MemoryLayer()])))
            layered: list[Any] = []
            took = timed(lambda: layered.append(layer_of(fs.tree, changes, base=True)))
        if layered[0].diff_id != store.image(BASE).layers[0].diff_id:
            raise Unsupported("WRONG: not the digest that the image has")
        return took


WORKLOADS = (
    Workload(
        "store/hash",
        "bytes in the page cache hashed: a layer made a tar, with its sha256 and each file's xxh3; all checked anew",
        {"throughput": "B/s"},
        (LAYER, FSCK, SHA, SHA_ALL, XXH, XXH_ALL, SHA_PROGRAM, XXH_PROGRAM),
        SHA,
        _throughput,
    ),
)

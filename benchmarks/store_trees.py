"""What the workloads of the store stand on: trees, stores that hold them, and the same changes for everybody."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import REPOSITORY, Contender
from benchmarks.runner import Bench
from benchmarks.scratch import Scratch, Unsupported

A_DIRECTORY = 100  # files
SIZE = 500  # bytes of a small file
CHANGES = 100
BASE = "base:latest"
LAYERS = 50  # of the image that is mounted


def contender(
    name: str, missing: Callable[[], str | None], version: Callable[[], str], *, ours: bool = False
) -> Contender:
    """Somebody who takes part by name: it opens no layers as a tree, the workload knows what it does."""

    def opens(_place: object) -> Any:
        raise Unsupported("not a tree")

    return Contender(name, opens, missing, version, ours=ours)


def program(name: str, package: str | None = None) -> Callable[[], str | None]:
    """The reason why a program can't take part."""

    def missing() -> str | None:
        return None if shutil.which(name) else f"{name} is not installed (apt: {package or name})"

    return missing


def output(*command: str, **options: Any) -> str:
    """What a program prints; ``CalledProcessError`` if it fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, check=True, capture_output=True, text=True, **options
    )
    return done.stdout.strip()


def cli(store: Path | None, word: str, *words: str) -> list[str]:
    """A word of our command, as a program of its own; on `store`, if it has one."""
    options = [] if store is None else ["--store", str(store)]
    return [sys.executable, "-m", "unionfs.cli", word, *options, *words]


def environment(scratch: Scratch) -> dict[str, str]:
    """For `cli`: this checkout, whatever is installed, and compiled once, as what is installed is."""
    found = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONPYCACHEPREFIX": f"{scratch.root}/pycache"}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


@dataclass(frozen=True)
class Change:
    """One of the changes: `data` is what the file has from now on, None deletes it."""

    path: str
    data: bytes | None


def changes_of(files: int, number: int) -> list[Change]:
    """A hundred changes to a tree of `files` files: 70 rewritten, 20 new, 10 deleted, all over it.

    The paths are the same for each `number`, the bytes are not.
    """
    chosen = random.Random(files).sample(range(files), CHANGES - 20)
    rng = random.Random(f"{files} {number}")
    found = [Change(path_of(i), rng.randbytes(SIZE)) for i in chosen[:70]]
    found += [Change(path_of(i), None) for i in chosen[70:]]
    found += [Change(path_of(i) + ".new", rng.randbytes(SIZE)) for i in chosen[:20]]
    return sorted(found, key=lambda change: change.path)


def path_of(number: int) -> str:
    """The path of a file of `Trees.plain`."""
    directory = number // A_DIRECTORY
    return f"usr{directory // 50:02d}/part{directory % 50:02d}/file{number % A_DIRECTORY:02d}"


def change_directory(root: Path, changes: list[Change]) -> None:
    """Make the changes in a directory."""
    for change in changes:
        path = root / change.path
        if change.data is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(change.data)


def change_union(fs: Any, changes: list[Change]) -> None:
    """Make them through our own calls."""
    for change in changes:
        if change.data is None:
            fs.unlink(f"/{change.path}")
        else:
            fs.write_bytes(f"/{change.path}", change.data)


class Trees:
    """Builds what it is asked for once."""

    def __init__(self, bench: Bench) -> None:
        self.scratch = bench.scratch
        self.full = bench.sizes.full
        self.entries = 100_000 if self.full else 2000
        self.commits = 1000 if self.full else 30
        self.sizes = (100, 10_000, 100_000) if self.full else (100, 2000)
        self.large, self.small = ((4, 256 << 20), (20_000, 16 << 10)) if self.full else ((4, 16 << 20), (500, 16 << 10))

    @functools.cache  # noqa: B019 - as long as the run
    def plain(self, files: int) -> Path:
        """A directory of `files` small files, a hundred in each directory."""
        root = self.scratch.fresh("tree")
        rng = random.Random(files)
        made = ""
        for i in range(files):
            path = path_of(i)
            directory = os.path.dirname(path)
            if directory != made:
                (root / directory).mkdir(parents=True)
                made = directory
            (root / path).write_bytes(rng.randbytes(SIZE))
        os.sync()
        return root

    @functools.cache  # noqa: B019
    def store(self, files: int) -> Path:
        """A store with an image of that tree."""
        from unionfs import Store

        path = self.scratch.fresh("store")
        with Store(path) as store:
            store.import_(self.plain(files), BASE)
        os.sync()
        return path

    @functools.cache  # noqa: B019
    def archive(self, files: int) -> Path:
        """The tree as a tar."""
        path = self.scratch.fresh("archive") / "base.tar"
        output("tar", "-C", str(self.plain(files)), "--sort=name", "-cf", str(path), ".")
        return path

    @functools.cache  # noqa: B019
    def layout(self, files: int) -> Path:
        """The tree as an image in an OCI layout, made by umoci."""
        path = self.scratch.fresh("layout") / "layout"
        for words in (
            ("init", "--layout", str(path)),
            ("new", "--image", f"{path}:base"),
            ("raw", "add-layer", "--image", f"{path}:base", str(self.archive(files))),
        ):
            output("umoci", *words)
        return path

    @functools.cache  # noqa: B019
    def bundle(self, files: int) -> Path:
        """That image, unpacked by umoci to be worked in."""
        path = self.scratch.fresh("bundle") / "bundle"
        output("umoci", "unpack", "--image", f"{self.layout(files)}:base", str(path))
        os.sync()
        return path

    @functools.cache  # noqa: B019
    def stacked(self) -> Path:
        """A store with an image of `entries` files in 50 layers: a base of nine tenths, the rest in 49 commits, each in
        a few directories; and a container ``c`` on it."""
        from unionfs import Store

        path = self.scratch.fresh("store")
        base = self.entries * 9 // 10
        rest = (self.entries - base) // (LAYERS - 1)
        rng = random.Random(50)
        with Store(path) as store:
            store.import_(self.plain(base), BASE)
            with store.create(BASE, "builder") as builder:
                for number in range(LAYERS - 1):
                    places = [os.path.dirname(path_of(rng.randrange(base))) for _ in range(10)]
                    for i in range(rest):
                        builder.fs.write_bytes(f"/{places[i % 10]}/layer{number:02d}-{i:03d}", rng.randbytes(SIZE))
                    image = builder.commit(f"stack:{number}")
            if len(image.layers) != LAYERS:
                raise RuntimeError(f"{len(image.layers)} layers, not {LAYERS}")
            store.create(image, "c")
        os.sync()
        return path

    @functools.cache  # noqa: B019
    def unindexed(self) -> Path:
        """A copy of `stacked` whose layers have lost their indexes."""
        path = self.scratch.fresh("store") / "copy"
        output("cp", "-a", str(self.stacked()), str(path))
        for index in path.glob("layers/*/index"):
            index.unlink()
        os.sync()
        return path

    @functools.cache  # noqa: B019
    def blocks(self, count: int, size: int) -> list[Path]:
        """`count` files of `size` random bytes, all different, in one directory."""
        root = self.scratch.fresh("blocks")
        rng = random.Random(size)
        block = bytearray(rng.randbytes(min(size, 1 << 20)))
        paths = []
        for i in range(count):
            path = root / f"{i:05d}"
            with path.open("wb", buffering=0) as file:
                for part in range(0, size, len(block)):
                    block[:16] = i.to_bytes(8, "big") + part.to_bytes(8, "big")
                    file.write(block)
            paths.append(path)
        os.sync()
        return paths

    @functools.cache  # noqa: B019
    def blocks_store(self, count: int, size: int) -> Path:
        """A store with an image of these, and nothing else."""
        from unionfs import Store

        path = self.scratch.fresh("store")
        with Store(path) as store:
            store.import_(self.blocks(count, size)[0].parent, BASE)
        os.sync()
        return path


@functools.cache
def trees(bench: Bench) -> Trees:
    """The trees of a run."""
    return Trees(bench)


def rounds() -> Iterator[int]:
    """Numbers that are never the same twice in a run."""
    number = 0
    while True:
        yield number
        number += 1


ROUNDS = rounds()

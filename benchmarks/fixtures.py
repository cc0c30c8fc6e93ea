"""The trees the workloads stand on: built once a run, never changed, shared by all contenders."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks import programs
from benchmarks.contenders import Stack
from benchmarks.scratch import Scratch

T = TypeVar("T")
MIB = 1 << 20
EIGHT_DEEP = "d1/d2/d3/d4/d5/d6/d7"  # and a name in it


@dataclass(frozen=True)
class Sizes:
    """How big the workloads are. The goals hold for the full sizes only."""

    full: bool
    depths: tuple[int, ...]
    names: int
    listing: int
    entries: int
    found: int
    big_file: int
    small_files: int
    small_size: int
    copyup_sizes: tuple[int, ...]
    tree_files: int
    cold_directories: int
    fio: int
    repository_files: int
    sources: int
    modules: int
    disk: int


FULL = Sizes(
    full=True,
    depths=(2, 10, 100, 400, 1000),
    names=1000,
    listing=10_000,
    entries=100_000,
    found=138_000,
    big_file=1024 * MIB,
    small_files=10_000,
    small_size=4096,
    copyup_sizes=(4096, 65_536, MIB, 16 * MIB, 128 * MIB, 1024 * MIB),
    tree_files=5000,
    cold_directories=100,
    fio=256 * MIB,
    repository_files=10_000,
    sources=100,
    modules=1000,
    disk=15 << 30,
)

QUICK = Sizes(
    full=False,
    depths=(2, 100, 400),
    names=200,
    listing=1000,
    entries=5000,
    found=5000,
    big_file=64 * MIB,
    small_files=200,
    small_size=4096,
    copyup_sizes=(4096, MIB, 64 * MIB),
    tree_files=300,
    cold_directories=5,
    fio=16 * MIB,
    repository_files=500,
    sources=10,
    modules=40,
    disk=3 << 30,
)


def _touch(path: Path | str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))


def write_file(path: Path, size: int) -> None:
    """A file of `size` random bytes (a random MiB repeated, its number in front), on disk when this returns."""
    block = bytearray(random.Random(size).randbytes(min(size, MIB)))
    with path.open("wb") as file:
        left, number = size, 0
        while left > 0:
            block[:8] = number.to_bytes(8, "big")
            file.write(memoryview(block)[: min(left, len(block))])
            left, number = left - len(block), number + 1
        file.flush()
        os.fsync(file.fileno())


class Fixtures:
    """Builds a fixture when it is first asked for."""

    def __init__(self, scratch: Scratch, sizes: Sizes) -> None:
        self._scratch = scratch
        self._sizes = sizes
        self._built: dict[object, object] = {}
        self._roots: list[Path] = []
        self._tmpfs: Path | None = None

    def _once(self, key: object, build: Callable[[Path], T], under: Path | None = None) -> T:
        key = (key, under)
        if key not in self._built:
            root = self._scratch.fresh("fixture", under)
            self._built[key] = build(root)
            _touch(root / "built")
            self._roots.append(root)
            os.sync()
        value: T = self._built[key]  # type: ignore[assignment]
        return value

    def tmpfs(self) -> Path:
        """A tmpfs of the run's own; :exc:`Unsupported` where it can't be mounted."""
        if self._tmpfs is None:
            self._tmpfs = self._scratch.mount_tmpfs("75%")
        return self._tmpfs

    def check(self) -> None:
        """RuntimeError when a contender wrote into a lower: the numbers after that would mean nothing."""
        for root in self._roots:
            layers = [str(path) for path in root.glob("[0-9]*")]
            if not layers:
                continue
            command = ["find", *layers, "-newercm", str(root / "built"), "-print", "-quit"]
            changed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            if changed:
                raise RuntimeError(f"{changed} is in a lower layer, and a contender changed it")

    def deep(self, depth: int) -> Stack:
        """`depth` layers that all have ``d1/…/d7``; its names, ``n0`` …, go round the layers in turn."""

        def build(root: Path) -> Stack:
            layers = [root / str(i) for i in range(depth)]
            for layer in layers:
                (layer / EIGHT_DEEP).mkdir(parents=True)
            for i in range(self._sizes.names):
                _touch(layers[i % depth] / EIGHT_DEEP / f"n{i}")
            return Stack(tuple(layers), self._deep_plain())

        return self._once(("deep", depth), build)

    def _deep_plain(self) -> Path:
        def build(root: Path) -> Path:
            (root / "plain" / EIGHT_DEEP).mkdir(parents=True)
            for i in range(self._sizes.names):
                _touch(root / "plain" / EIGHT_DEEP / f"n{i}")
            return root / "plain"

        return self._once("deep plain", build)

    def listing(self) -> Stack:
        """One directory, ``big``, whose names go round ten layers."""

        def build(root: Path) -> Stack:
            layers, plain = [root / str(i) for i in range(10)], root / "plain"
            for layer in (*layers, plain):
                (layer / "big").mkdir(parents=True)
            for i in range(self._sizes.listing):
                _touch(layers[i % 10] / "big" / f"name{i:06d}")
                _touch(plain / "big" / f"name{i:06d}")
            return Stack(tuple(layers), plain)

        return self._once("listing", build)

    def walk(self, under: Path | None = None) -> Stack:
        """Ten layers that merge to a tree of `entries` entries: 1 directory in 100, three levels.

        Each file is in one of the layers by turns, and one in twenty in two of them. Every directory is
        merged from all ten.
        """

        def build(root: Path) -> Stack:
            layers, plain = [root / str(i) for i in range(10)], root / "plain"
            groups = max(1, self._sizes.entries // 1000)
            files = self._sizes.entries // groups // 10 - 1
            number = 0
            for group in range(groups):
                for part in range(10):
                    directory = f"g{group:03d}/p{part}"
                    for layer in (*layers, plain):
                        (layer / directory).mkdir(parents=True, exist_ok=True)
                    for i in range(files):
                        name = f"{directory}/file-{i:04d}.txt"
                        _touch(layers[number % 10] / name)
                        if number % 20 == 0:
                            _touch(layers[(number // 20) % 10] / name)
                        _touch(plain / name)
                        number += 1
            return Stack(tuple(layers), plain)

        return self._once("walk", build, under)

    def found(self, under: Path | None = None) -> Stack:
        """A base of `found` entries, one in ten a directory and one in fifty a symlink, below two small layers.

        Each of the two has one file in a hundred, half of them changed and half new.
        """

        def build(root: Path) -> Stack:
            layers, plain = [root / str(i) for i in range(3)], root / "plain"
            for number in range(self._sizes.found // 10):
                directory = f"usr{number // 1000}/part{number // 30 % 33:02d}/package{number % 30:02d}-{number}"
                for top in (layers[2], plain):
                    (top / directory).mkdir(parents=True)
                    for i in range(9):
                        name = top / directory / f"file{i}.txt"
                        if i == 8 and number % 5 == 0:
                            name.symlink_to("file0.txt")
                        else:
                            _touch(name)
                if number % 11 < 2:
                    for top in (layers[number % 11], plain):
                        (top / directory).mkdir(parents=True, exist_ok=True)
                        _touch(top / directory / "file1.txt" if number % 2 else top / directory / f"new{number}")
            return Stack(tuple(layers), plain)

        return self._once("found", build, under)

    def empty(self, under: Path | None = None) -> Stack:
        """One layer with nothing in it, and a plain directory likewise."""

        def build(root: Path) -> Stack:
            (root / "0").mkdir()
            (root / "plain").mkdir()
            return Stack((root / "0",), root / "plain")

        return self._once("empty", build, under)

    def repository(self) -> Path:
        """A bare git repository (:func:`programs.repository`)."""

        def build(root: Path) -> Path:
            programs.repository(root / "repository.git", self._sizes.repository_files)
            return root / "repository.git"

        return self._once("repository", build)

    def checkout(self, under: Path | None = None) -> Stack:
        """One layer with ``checkout``, a clone of `repository` with its work tree, below an empty one."""

        def build(root: Path) -> Stack:
            (root / "0").mkdir()
            (root / "1").mkdir()
            programs.git("clone", "-q", str(self.repository()), str(root / "1" / "checkout"))
            return Stack((root / "0", root / "1"), root / "1")

        return self._once("checkout", build, under)

    def project(self, under: Path | None = None) -> Stack:
        """One layer with ``project`` (:func:`programs.c_project`), below an empty one."""

        def build(root: Path) -> Stack:
            (root / "0").mkdir()
            programs.c_project(root / "1" / "project", self._sizes.sources)
            return Stack((root / "0", root / "1"), root / "1")

        return self._once("project", build, under)

    def wheels(self) -> Path:
        """A directory of wheels (:func:`programs.wheels`)."""

        def build(root: Path) -> Path:
            programs.wheels(root / "wheels", self._sizes.modules)
            return root / "wheels"

        return self._once("wheels", build)

    def cold(self, shape: str, layers: int) -> Stack:
        """Layers for first lookups of the paths `cold_names` gives.

        ``realistic``: a base of many directories of 1,000 names each; every layer above changes one name and adds
        two in each of two directories. With two layers the second holds all those changes together.
        ``scattered``: the names of every directory go round all the layers.
        """

        def build(root: Path) -> Stack:
            tops = [root / str(i) for i in range(layers)]
            for top in tops:
                top.mkdir()
            for directory, name, index in self._cold_entries(shape, 1000):
                path = tops[-1 - index % layers if shape == "scattered" else -1 - min(index, layers - 1)]
                (path / directory).mkdir(exist_ok=True)
                _touch(path / directory / name)
            return Stack(tuple(tops))

        return self._once(("cold", shape, layers), build)

    def _cold_entries(self, shape: str, layers: int) -> list[tuple[str, str, int]]:
        """``(directory, name, number of the layer counted from the base)``."""
        count = self._sizes.cold_directories if shape == "realistic" else self._sizes.cold_directories // 10 or 1
        found = []
        for d in range(count):
            for i in range(1000):
                index = i if shape == "scattered" else 0
                found.append((f"dir{d:03d}", f"name{i:04d}", index))
        if shape == "realistic":
            rng = random.Random(7)
            for layer in range(1, layers):
                for d in rng.sample(range(count), 2):
                    found.append((f"dir{d:03d}", f"name{rng.randrange(1000):04d}", layer))
                    found += [(f"dir{d:03d}", f"new{layer:04d}-{k}", layer) for k in range(2)]
        return found

    def cold_names(self, shape: str) -> list[str]:
        """The paths of all files in the stacks of `cold`, the same for any number of layers."""
        return sorted({f"/{directory}/{name}" for directory, name, _ in self._cold_entries(shape, 1000)})

    def big_file(self, under: Path | None = None) -> Stack:
        """One layer with ``big``, of `big_file` bytes, below an empty one."""

        def build(root: Path) -> Stack:
            (root / "0").mkdir()
            (root / "1").mkdir()
            write_file(root / "1" / "big", self._sizes.big_file)
            return Stack((root / "0", root / "1"))

        return self._once("big file", build, under)

    def big_directory(self) -> Stack:
        """One layer with ``dir``, a directory of `entries` files in 100 directories."""

        def build(root: Path) -> Stack:
            for top in (root / "1", root / "plain"):
                for part in range(100):
                    directory = top / "dir" / f"part{part:02d}"
                    directory.mkdir(parents=True)
                    for i in range(self._sizes.entries // 100):
                        _touch(directory / f"file{i:04d}")
            (root / "0").mkdir()
            return Stack((root / "0", root / "1"), root / "plain")

        return self._once("big directory", build)

    def files(self, size: int, count: int, under: Path | None = None) -> Stack:
        """One layer with ``files/0`` … of `size` bytes each, below an empty one."""

        def build(root: Path) -> Stack:
            (root / "0").mkdir()
            (root / "1" / "files").mkdir(parents=True)
            block = random.Random(size).randbytes(min(size, MIB))
            for i in range(count):
                with (root / "1" / "files" / str(i)).open("wb") as file:
                    for _ in range(size // len(block)):
                        file.write(block)
            return Stack((root / "0", root / "1"), root / "1")

        return self._once(("files", size, count), build, under)

    def source_tree(self, under: Path | None = None) -> Stack:
        """One layer with ``src``: files as large as a source tree's (median 4 KiB, mean 18 KiB), ten a directory."""

        def build(root: Path) -> Stack:
            rng = random.Random(5)
            data = rng.randbytes(4 * MIB)
            top = root / "plain" / "src"
            for i in range(self._sizes.tree_files):
                directory = top / f"part{i // 200:02d}" / f"module{i // 10 % 20:02d}"
                directory.mkdir(parents=True, exist_ok=True)
                size = min(int(rng.lognormvariate(8.3, 1.7)), len(data))
                start = rng.randrange(len(data) - size + 1)
                (directory / f"file{i:04d}.c").write_bytes(data[start : start + size])
            (root / "0").mkdir()
            subprocess.run(["cp", "-a", str(root / "plain"), str(root / "1")], check=True)
            return Stack((root / "0", root / "1"), root / "plain")

        return self._once("source tree", build, under)

    def tarball(self) -> Path:
        """The tree of `source_tree` as an uncompressed tar."""

        def build(root: Path) -> Path:
            plain = self.source_tree().plain
            subprocess.run(["tar", "-C", str(plain), "-cf", str(root / "src.tar"), "src"], check=True)
            return root / "src.tar"

        return self._once("tarball", build)

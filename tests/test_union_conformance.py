"""The union's suite on all kinds of layers of ours."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import make_scratch, remove_scratch
from unionfs import DirectoryLayer, MemoryLayer, UnionFS
from unionfs.layer.trees import Tree, populate
from unionfs.layer.upper import UpperDirectory
from unionfs.testing.union import MakeUnion, UnionSuite


@pytest.fixture
def top() -> Iterator[Path]:
    directory = make_scratch()
    yield directory
    remove_scratch(directory)


def directory_layer(path: Path, tree: Tree) -> DirectoryLayer:
    """A layer on disk, which no union has ever written to."""
    path.mkdir()
    maker = UpperDirectory(path, path.with_name(path.name + ".work"))
    populate(maker, tree)
    maker.close()
    for key in os.listxattr(path):
        os.removexattr(path, key)
    return DirectoryLayer(path)


def memory_layer(tree: Tree) -> MemoryLayer:
    layer = MemoryLayer()
    populate(layer, tree)
    return layer


class TestDirectories(UnionSuite):
    @pytest.fixture
    def make_union(self, top: Path) -> MakeUnion:
        numbers = itertools.count()

        def make(lowers):
            here = top / str(next(numbers))
            here.mkdir()
            (here / "upper").mkdir()
            layers = [directory_layer(here / f"lower{i}", tree) for i, tree in enumerate(lowers)]
            return UnionFS(layers, here / "upper")

        return make


class TestMemory(UnionSuite):
    is_exact = False

    @pytest.fixture
    def make_union(self) -> MakeUnion:
        return lambda lowers: UnionFS([memory_layer(tree) for tree in lowers], MemoryLayer())


class TestMemoryOverDirectories(UnionSuite):
    is_exact = False

    @pytest.fixture
    def make_union(self, top: Path) -> MakeUnion:
        numbers = itertools.count()

        def make(lowers):
            layers = [directory_layer(top / f"lower{next(numbers)}", tree) for tree in lowers]
            return UnionFS(layers, MemoryLayer())

        return make


@pytest.mark.root
class TestSeveralFileSystems(UnionSuite):
    """Each lower on a file system of its own, the upper on another."""

    @pytest.fixture
    def make_union(self, top: Path) -> MakeUnion:
        numbers = itertools.count()

        def make(lowers):
            here = top / str(next(numbers))
            here.mkdir()
            layers = []
            for i, tree in enumerate(lowers):
                disk = here / f"disk{i}"
                disk.mkdir()
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
                layers.append(directory_layer(disk / "lower", tree))
            (here / "upper").mkdir()
            return UnionFS(layers, here / "upper")

        return make

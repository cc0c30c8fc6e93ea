"""The POSIX suite on our own /dev/fuse engine: all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import unionfs.mount
from tests import support
from unionfs.mount import Mount
from unionfs.testing.engine_posix import PosixSuite
from unionfs.union.fs import UnionFS

pytestmark = pytest.mark.fuse


class TestDevfuse(PosixSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls) -> Iterator[Path]:
        directory = support.make_scratch()
        yield directory
        support.remove_scratch(directory)

    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="devfuse")


class TestDevfuseAlone(TestDevfuse):
    """As the command mounts it: the kernel may remember names and pages."""

    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="devfuse", sole=True)

"""The POSIX suite on our own /dev/fuse engine: all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import unionfs.mount
from tests.posix import PosixOnScratch
from unionfs.mount import Mount
from unionfs.union.fs import UnionFS

pytestmark = pytest.mark.fuse


class TestDevfuse(PosixOnScratch):
    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="devfuse")


class TestDevfuseAlone(TestDevfuse):
    """As the command mounts it: the kernel may remember names and pages."""

    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="devfuse", sole=True)

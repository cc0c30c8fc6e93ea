"""The engine on /dev/fuse: the suite for engines, shared with the API and alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import unionfs.mount
from unionfs.mount import Mount
from unionfs.testing.engine import EngineSuite
from unionfs.union.fs import UnionFS

pytestmark = pytest.mark.fuse


class TestDevfuse(EngineSuite):
    @pytest.fixture
    def base(self, scratch: Path) -> Path:
        return scratch

    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="devfuse")


class TestDevfuseAlone(TestDevfuse):
    """As the command mounts it: the kernel may remember names, attributes and pages."""

    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="devfuse", sole=True)

"""The engine over fusepy: the suite for engines, and what is this engine's own."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import unionfs.mount
from unionfs.mount import Mount
from unionfs.testing.engine import EngineSuite
from unionfs.testing.engine_base import fails
from unionfs.union.fs import UnionFS

pytestmark = pytest.mark.fuse


class TestFusepy(EngineSuite):
    removals_lag = 2.0  # libfuse hides what is open still, and hears late that it is closed.

    @pytest.fixture
    def base(self, scratch: Path) -> Path:
        return scratch

    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="fusepy")

    def test_open_removed_directory_is_empty(self, merged: Path) -> None:
        """libfuse 2 has no path for a removed directory: it can't be looked at any more (pathops.py)."""
        (merged / "d").mkdir()
        fd = os.open(merged / "d", os.O_RDONLY)
        try:
            os.rmdir(merged / "d")
            with fails(errno.ENOENT):
                os.fstat(fd)
        finally:
            os.close(fd)


class TestFusepyAlone(TestFusepy):
    """As the command mounts it: the kernel may remember names and pages."""

    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="fusepy", sole=True)

"""The engine on /dev/fuse: the suite for engines, shared with the API and alone."""

from __future__ import annotations

import os
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


class TestDevfuseWriteback(TestDevfuse):
    """Without passthrough: the kernel gathers writes."""

    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="devfuse", sole=True, passthrough=False)

    def test_holes_of_what_is_not_written_back_yet(self, merged: Path) -> None:
        with open(merged / "new", "w+b", buffering=0) as file:
            file.write(b"a")
            file.seek(10 << 20)
            file.write(b"b")
            fd = file.fileno()
            assert os.lseek(fd, 0, os.SEEK_DATA) == 0
            assert 0 < os.lseek(fd, 0, os.SEEK_HOLE) <= 1 << 20
            assert (9 << 20) < os.lseek(fd, 2 << 20, os.SEEK_DATA) <= 10 << 20

    @pytest.mark.root
    def test_a_capability_is_kept_over_what_was_written_before(self, merged: Path) -> None:
        value = bytes.fromhex("0100000200040000000000000000000000000000")
        with open(merged / "new", "wb", buffering=0) as file:
            file.write(b"a" * 10000)
            os.setxattr(file.fileno(), "security.capability", value)
            os.fsync(file.fileno())
        assert os.getxattr(merged / "new", "security.capability") == value

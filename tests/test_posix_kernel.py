"""The POSIX suite on the kernel's overlayfs: all but what that does its own way."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.posix import PosixOnScratch
from tests.test_mount_kernel import mounted
from unionfs.union.fs import UnionFS

pytestmark = pytest.mark.overlay


class TestKernel(PosixOnScratch):
    copy_up_keeps_mtime = False

    def mount(self, fs: UnionFS, mountpoint: Path) -> AbstractContextManager[object]:
        return mounted(fs, mountpoint)

    def test_a_file_without_a_name_takes_changes(self, here: Path, origin: str) -> None:
        if origin == "lower":
            pytest.skip("not applicable: overlayfs can't copy up what has lost its name (EEXIST from its index)")
        super().test_a_file_without_a_name_takes_changes(here, origin)

    def test_entries_tell_inode_and_type(self, here: Path, origin: str) -> None:
        if origin == "upper":
            pytest.skip("not applicable: overlayfs lists directories that we copied up with another number")
        super().test_entries_tell_inode_and_type(here, origin)

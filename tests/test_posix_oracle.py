"""The POSIX suite asks for what is right: a plain directory and the kernel's overlayfs pass it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix import PosixOnScratch
from unionfs.testing.engine_posix_base import PROGRAM, Stack, furnish, opening, outcome
from unionfs.union.fs import UnionFS


class Oracle(PosixOnScratch):
    """No union of ours is in it."""

    def mount(self, fs: UnionFS, mountpoint: Path) -> contextlib.AbstractContextManager[object]:
        raise NotImplementedError


class TestPlainDirectory(Oracle):
    """The file system of the layers, which is Linux's own."""

    links_of_merged = 2 + len({"sub", "void", "new"})  # Nothing merges here.

    def test_reading_copies_nothing_up(self, here: Path, origin: str) -> None:
        pytest.skip("not applicable: there is no layer below")

    @contextlib.contextmanager
    def shown(self, stack: Stack) -> Iterator[None]:
        for place in stack.lowers[0].iterdir():
            (stack.mountpoint / place.name).mkdir()
            if (stack.lowers[-1] / place.name / "file").exists() or (stack.upper / place.name).exists():
                furnish(stack.mountpoint / place.name)
        program = stack.mountpoint / PROGRAM
        program.parent.mkdir()
        shutil.copy(stack.lowers[-1] / PROGRAM, program)
        yield


@pytest.mark.overlay
class TestOverlayfs(Oracle):
    """The kernel's overlayfs on the same layers."""

    @contextlib.contextmanager
    def shown(self, stack: Stack) -> Iterator[None]:
        layers = ":".join(map(str, stack.lowers))
        options = f"lowerdir={layers},upperdir={stack.upper},workdir={stack.work},redirect_dir=on,metacopy=on,index=on"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", stack.mountpoint], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", stack.mountpoint], check=True)

    copy_up_keeps_mtime = False  # ovl_copy_up_data writes after the times were set.

    def test_a_file_without_a_name_takes_changes(self, here: Path, origin: str) -> None:
        """A lower file that lost its name can't be copied up any more."""
        if origin == "lower":
            with opening(here / "file", os.O_RDONLY) as fd:
                os.unlink(here / "file")
                assert outcome(os.fchmod, fd, 0o600) == "EEXIST"
        else:
            super().test_a_file_without_a_name_takes_changes(here, origin)

    def test_entries_tell_inode_and_type(self, here: Path, origin: str) -> None:
        if origin == "upper":
            pytest.skip("not applicable: what overlayfs has not copied up itself has no origin mark to tell by")
        super().test_entries_tell_inode_and_type(here, origin)

"""The POSIX suite on the engine over fusepy.

What libfuse 2 (FUSE 7.19) and its paths make impossible is overridden: each override says why, and what happens
instead.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import unionfs.mount
from tests.posix import PosixOnScratch
from unionfs._sys.data import fallocate
from unionfs._sys.rename import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.mount import Mount
from unionfs.testing.engine_base import as_root
from unionfs.testing.engine_posix_attributes import ACCESS, DEFAULT, acl, minimal, with_user
from unionfs.testing.engine_posix_base import OWNER, STRANGER, mode_of, opened, opening, outcome
from unionfs.testing.engine_posix_modes import WRITERS
from unionfs.testing.engine_posix_rename import flagged
from unionfs.testing.someone import Someone
from unionfs.union.fs import UnionFS

pytestmark = pytest.mark.fuse

RW = os.O_RDWR
WRITING = sorted(set(WRITERS) - {"fallocate"})


class TestFusepy(PosixOnScratch):
    # libfuse 2 hides the name of a file whose RELEASE is still on the way, and it counts till that comes.
    link_counts_lag = 2.0

    def mount(self, fs: UnionFS, mountpoint: Path) -> Mount:
        return unionfs.mount.mount(fs, mountpoint, engine="fusepy")

    # renameat2(2): FUSE_RENAME2 came with 7.23.

    def test_noreplace(self, here: Path) -> None:
        assert outcome(flagged, here / "file", here / "x", RENAME_NOREPLACE) == "EINVAL"
        assert outcome(flagged, here / "file", here / "empty", RENAME_NOREPLACE) == "EEXIST"

    def test_exchange(self, here: Path) -> None:
        assert outcome(flagged, here / "file", here / "empty", RENAME_EXCHANGE) == "EINVAL"

    def test_exchange_over_directories(self, here: Path) -> None:
        assert outcome(flagged, here / "sub", here / "file", RENAME_EXCHANGE) == "EINVAL"

    # FUSE_TMPFILE came with 7.37.

    def test_tmpfile(self, here: Path) -> None:
        assert outcome(opened, here / "sub", RW | os.O_TMPFILE) == "ENOTSUP"

    def test_tmpfile_for_ever_nameless(self, here: Path) -> None:
        assert outcome(opened, here / "sub", RW | os.O_TMPFILE | os.O_EXCL) == "ENOTSUP"

    @as_root
    def test_tmpfile_belongs_to_who_makes_it(self, here: Path, stranger: Someone) -> None:
        os.chmod(here / "sub", 0o777)
        assert outcome(opened, here / "sub", RW | os.O_TMPFILE, by=stranger) == "ENOTSUP"

    # fusepy 3.0.1 knows neither fallocate nor lseek, of which libfuse 2 has the first.

    def test_fallocate(self, here: Path) -> None:
        with opening(here / "file", RW) as fd:
            assert outcome(fallocate, fd, 0, 0, 100) == "ENOTSUP"

    def test_fallocate_zeroes_a_range(self, here: Path) -> None:
        with opening(here / "file", RW) as fd:
            assert outcome(fallocate, fd, 0x10, 0, 100) == "ENOTSUP"

    @as_root
    @pytest.mark.parametrize("how", WRITING)
    def test_writing_drops_set_id_bits(self, here: Path, owner: Someone, stranger: Someone, how: str) -> None:
        super().test_writing_drops_set_id_bits(here, owner, stranger, how)

    @as_root
    @pytest.mark.parametrize("how", WRITING)
    def test_writing_keeps_set_group_id_without_execution(self, here: Path, owner: Someone, how: str) -> None:
        super().test_writing_keeps_set_group_id_without_execution(here, owner, how)

    @as_root
    @pytest.mark.parametrize("how", WRITING)
    def test_root_keeps_set_id_bits_when_it_writes(self, here: Path, somebody: Someone, how: str) -> None:
        super().test_root_keeps_set_id_bits_when_it_writes(here, somebody, how)

    def test_data_and_holes(self, here: Path) -> None:
        """All is data."""
        os.truncate(here / "file", 1 << 20)
        with opening(here / "file", os.O_RDONLY) as fd:
            assert os.lseek(fd, 4096, os.SEEK_DATA) == 4096
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 1 << 20

    def test_birth_time(self, here: Path) -> None:
        pytest.skip("not applicable: struct stat, which libfuse 2 asks for, has no birth time")

    # A removed directory has no path to ask for its attributes by.

    def test_open_removed_directory(self, here: Path) -> None:
        with opening(here / "void", os.O_RDONLY) as fd:
            os.rmdir(here / "void")
            assert outcome(os.fstat, fd) == "ENOENT"
            assert outcome(os.mkdir, "x", dir_fd=fd) == "ENOENT"

    # The kernel has an inode for each name of a hard link, and counts writers and programs by inode.

    @pytest.mark.parametrize("how", ["new", "lower"])
    def test_running_programs_are_not_written(self, here: Path, somebody: Someone, how: str) -> None:
        super().test_running_programs_are_not_written(here, somebody, how)

    # FUSE_POSIX_ACL came with 7.26: till then the kernel obeys mode bits alone, and applies the umask before it asks.

    @as_root
    def test_acls_are_obeyed(self, here: Path, stranger: Someone) -> None:
        os.setxattr(here / "file", ACCESS, acl(with_user(STRANGER, 0, 7, other=6)))
        assert outcome(opened, here / "file", os.O_RDONLY, by=stranger) == "ok"

    @as_root
    def test_who_sets_acls(self, here: Path, owner: Someone, stranger: Someone) -> None:
        full = acl(with_user(STRANGER, 6, mask=6))
        os.chown(here / "file", OWNER, STRANGER)
        assert outcome(stranger.setxattr, here / "file", ACCESS, full) == "EPERM"
        owner.setxattr(here / "file", ACCESS, full)
        assert stranger.getxattr(here / "file", ACCESS) == full

    def test_default_acls_are_inherited(self, here: Path, somebody: Someone) -> None:
        self._umask_counts(here, somebody)

    def test_a_minimal_default_acl_replaces_the_umask(self, here: Path, somebody: Someone) -> None:
        self._umask_counts(here, somebody)

    def _umask_counts(self, here: Path, somebody: Someone) -> None:
        os.setxattr(here / "sub", DEFAULT, acl(minimal(0o775)))
        somebody.umask(0o027)
        somebody.mkdir(here / "sub/d", 0o777)
        assert mode_of(here / "sub/d") == 0o750
        assert os.getxattr(here / "sub/d", DEFAULT) == acl(minimal(0o775))

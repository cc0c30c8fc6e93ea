"""Modes and owners, to the letter of POSIX and Linux; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unionfs.testing.engine_base import as_root
from unionfs.testing.engine_posix_base import (
    CONTENT,
    GROUP,
    OTHER_GROUP,
    OWNER,
    STRANGER,
    PosixBase,
    mode_of,
    opened,
    opening,
    outcome,
)
from unionfs.testing.someone import Someone

# What writes into a file of the owner, by descriptor or by path.
WRITERS: dict[str, Callable[[Any, Path], object]] = {
    "write": lambda by, path: by.write(by.open(path, os.O_WRONLY), b"x"),
    "pwrite": lambda by, path: by.pwrite(by.open(path, os.O_RDWR), b"x", 3),
    "append": lambda by, path: by.write(by.open(path, os.O_WRONLY | os.O_APPEND), b"x"),
    "truncate": lambda by, path: by.truncate(path, 3),
    "ftruncate": lambda by, path: by.ftruncate(by.open(path, os.O_WRONLY), 3),
    "O_TRUNC": lambda by, path: by.open(path, os.O_WRONLY | os.O_TRUNC),
    "copy_file_range": lambda by, path: by.copy_file_range(
        by.open(path.parent / "sub/a", os.O_RDONLY), by.open(path, os.O_WRONLY), 1
    ),
    "fallocate": lambda by, path: by.call("unionfs._sys.data.fallocate", by.open(path, os.O_WRONLY), 0, 0, 100),
}


class ModesPart(PosixBase):
    """chmod, chown, the umask and set-id bits."""

    @pytest.mark.parametrize("name", ["file", "sub", "void", "fifo", "twin2"])
    def test_chmod_takes_all_twelve_bits(self, here: Path, name: str) -> None:
        kind, ino = stat.S_IFMT(os.lstat(here / name).st_mode), os.lstat(here / name).st_ino
        for mode in (0o7777, 0, 0o111, 0o1000, 0o2050, 0o4200, 0o644):
            os.chmod(here / name, mode)
            st = os.lstat(here / name)
            assert (stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), st.st_ino) == (kind, mode, ino)

    def test_chmod_of_one_link_is_chmod_of_all(self, here: Path) -> None:
        os.chmod(here / "twin1", 0o604)
        assert mode_of(here / "twin2") == 0o604

    def test_chmod_follows_links(self, here: Path) -> None:
        os.chmod(here / "sym", 0o640)
        os.chmod(here / "symdir", 0o750)
        assert (mode_of(here / "file"), mode_of(here / "sub"), mode_of(here / "sym")) == (0o640, 0o750, 0o777)
        assert outcome(os.chmod, here / "broken", 0o600) == "ENOENT"
        assert outcome(os.chmod, here / "loop", 0o600) == "ELOOP"

    def test_a_file_without_a_name_takes_changes(self, here: Path, origin: str) -> None:  # noqa: ARG002
        with opening(here / "file", os.O_RDONLY) as fd:
            os.unlink(here / "file")
            os.fchmod(fd, 0o4711)
            os.utime(fd, ns=(11, 12))
            os.setxattr(fd, "user.x", b"y")
            st = os.fstat(fd)
            assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns, st.st_nlink) == (0o4711, 12, 0)
            assert os.getxattr(fd, "user.x") == b"y"
            assert os.read(fd, 100) == CONTENT

    def test_chmod_of_a_link_whose_own_name_went(self, here: Path) -> None:
        with opening(here / "twin1", os.O_RDONLY) as fd:
            os.unlink(here / "twin1")
            os.fchmod(fd, 0o600)
        assert mode_of(here / "twin2") == 0o600

    def test_umask(self, here: Path, somebody: Someone) -> None:
        somebody.umask(0o027)
        opened(here / "f", os.O_CREAT | os.O_WRONLY, 0o7777, by=somebody)
        somebody.mkdir(here / "d", 0o3777)
        somebody.mkfifo(here / "p", 0o666)
        somebody.mknod(here / "n", stat.S_IFREG | 0o666)
        somebody.symlink("x", here / "s")
        assert [mode_of(here / name) for name in "fdpns"] == [0o7750, 0o1750, 0o640, 0o640, 0o777]

    # Owners

    @as_root
    def test_only_the_owner_changes_the_mode(self, here: Path, owner: Someone, stranger: Someone) -> None:
        for name in ("file", "sub", "fifo"):
            path = here / name
            os.chown(path, OWNER, GROUP)
            assert outcome(owner.chmod, path, 0o640) == "ok"
            assert outcome(stranger.chmod, path, 0o666) == "EPERM"
            assert mode_of(path) == 0o640

    @as_root
    def test_the_owner_may_give_to_its_own_groups_only(self, here: Path, owner: Someone, stranger: Someone) -> None:
        for name in ("file", "void", "fifo"):
            path = here / name
            os.chown(path, OWNER, GROUP)
            assert outcome(owner.chown, path, -1, OTHER_GROUP) == "ok"
            assert outcome(owner.chown, path, OWNER, GROUP) == "ok"
            assert outcome(owner.chown, path, -1, STRANGER) == "EPERM"
            assert outcome(owner.chown, path, STRANGER, -1) == "EPERM"
            assert outcome(owner.chown, path, 0, 0) == "EPERM"
            assert outcome(owner.chown, path, -1, -1) == "ok"
            assert outcome(stranger.chown, path, -1, STRANGER) == "EPERM"
            assert outcome(stranger.chown, path, STRANGER, -1) == "EPERM"
            st = os.stat(path)
            assert (st.st_uid, st.st_gid) == (OWNER, GROUP)

    @as_root
    def test_chown_of_links_and_through_them(self, here: Path) -> None:
        os.chown(here / "sym", 11, 12)
        os.lchown(here / "sym", 21, 22)
        os.lchown(here / "broken", 31, -1)
        owners = [(st.st_uid, st.st_gid) for st in (os.lstat(here / name) for name in ("file", "sym", "broken"))]
        assert owners == [(11, 12), (21, 22), (31, os.stat(here).st_gid)]
        assert os.readlink(here / "sym") == "file"
        assert outcome(os.chown, here / "broken", 1, 1) == "ENOENT"
        os.chown(here / "twin1", 41, 42)
        assert os.stat(here / "twin2").st_uid == 41
        os.chown(here / "sub", (1 << 32) - 2, 0)
        assert os.stat(here / "sub").st_uid == (1 << 32) - 2

    # Set-id bits

    @as_root
    @pytest.mark.parametrize("by_owner", [False, True])
    def test_chown_takes_set_id_bits_from_files(self, here: Path, owner: Someone, by_owner: bool) -> None:
        """Even where it changes nothing (chown(2): "it is no longer clear that this is the owner's will")."""
        by: Any = owner if by_owner else os
        for uid, gid in ((-1, OTHER_GROUP), (OWNER, -1), (-1, -1)):
            os.chown(here / "file", OWNER, GROUP)
            for before, after in ((0o6755, 0o755), (0o4600, 0o600), (0o1777, 0o1777)):
                os.chmod(here / "file", before)
                by.chown(here / "file", uid, gid)
                assert mode_of(here / "file") == after, (uid, gid, oct(before))
        # Without execution by the group the bit once meant mandatory locks.
        os.chown(here / "file", OWNER, GROUP)
        os.chmod(here / "file", 0o2640)
        by.chown(here / "file", -1, OTHER_GROUP)
        assert mode_of(here / "file") == 0o2640

    @as_root
    def test_chown_leaves_those_of_directories(self, here: Path, owner: Someone) -> None:
        for name in ("sub", "void"):
            os.chown(here / name, OWNER, GROUP)
            os.chmod(here / name, 0o7755)
            os.chown(here / name, -1, GROUP)
            owner.chown(here / name, -1, OTHER_GROUP)
            assert mode_of(here / name) == 0o7755

    @as_root
    def test_chmod_by_who_is_not_in_the_group_drops_set_group_id(self, here: Path, owner: Someone) -> None:
        for gid, kept in ((GROUP, 0o2000), (OTHER_GROUP, 0o2000), (STRANGER, 0)):
            for name in ("file", "sub"):
                os.chown(here / name, OWNER, gid)
                owner.chmod(here / name, 0o6750)
                assert mode_of(here / name) == 0o4750 | kept
        os.chmod(here / "file", 0o2750)
        assert mode_of(here / "file") == 0o2750, "root may"

    @as_root
    @pytest.mark.parametrize("how", WRITERS)
    def test_writing_drops_set_id_bits(self, here: Path, owner: Someone, stranger: Someone, how: str) -> None:
        for by in (owner, stranger):
            os.chown(here / "file", OWNER, GROUP)
            os.chmod(here / "file", 0o6777)
            with open(here / "file", "wb") as file:
                file.write(CONTENT)
            assert mode_of(here / "file") == 0o6777, "root may"
            WRITERS[how](by, here / "file")
            assert mode_of(here / "file") == 0o777

    @as_root
    @pytest.mark.parametrize("how", WRITERS)
    def test_writing_keeps_set_group_id_without_execution(self, here: Path, owner: Someone, how: str) -> None:
        os.chown(here / "file", OWNER, GROUP)
        os.chmod(here / "file", 0o6666)
        WRITERS[how](owner, here / "file")
        assert mode_of(here / "file") == 0o2666

    @as_root
    @pytest.mark.parametrize("how", WRITERS)
    def test_root_keeps_set_id_bits_when_it_writes(self, here: Path, somebody: Someone, how: str) -> None:
        os.chmod(here / "file", 0o6755)
        WRITERS[how](somebody, here / "file")
        assert mode_of(here / "file") == 0o6755

    @as_root
    def test_new_objects_in_a_set_group_id_directory(self, here: Path, owner: Someone, stranger: Someone) -> None:
        for directory in ("sub", "void"):
            top = here / directory
            os.chown(top, OWNER, OTHER_GROUP)
            os.chmod(top, 0o2777)
            for by, name, kept in ((owner, "own", 0o2000), (stranger, "strange", 0)):
                opened(top / f"{name}-file", os.O_CREAT | os.O_WRONLY, 0o2775, by=by)
                by.mkdir(top / f"{name}-dir", 0o755)
                by.mkfifo(top / f"{name}-fifo")
                by.symlink("x", top / f"{name}-sym")
                for kind in ("file", "dir", "fifo", "sym"):
                    assert os.lstat(top / f"{name}-{kind}").st_gid == OTHER_GROUP
                assert mode_of(top / f"{name}-file") == 0o755 | kept
                assert mode_of(top / f"{name}-dir") == 0o2755

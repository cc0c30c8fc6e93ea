"""Permissions of other users; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from unionfs.testing.engine_base import as_root
from unionfs.testing.engine_posix_base import (
    CONTENT,
    GROUP,
    IN_SUB,
    OTHER_GROUP,
    OWNER,
    STRANGER,
    PosixBase,
    mode_of,
    opened,
    outcome,
)
from unionfs.testing.someone import Someone

WHO = {
    # uid and gid of the object; which three bits of the mode count for owner and for stranger.
    (OWNER, 0): (6, 0),
    (0, GROUP): (3, 0),
    (0, OTHER_GROUP): (3, 0),
    (0, 0): (0, 0),
    (OWNER, STRANGER): (6, 3),
    (STRANGER, OTHER_GROUP): (3, 6),
}


class AccessPart(PosixBase):
    """Who may do what."""

    @as_root
    def test_which_bits_count(self, here: Path, owner: Someone, stranger: Someone) -> None:
        """The owner's for the owner, even if they forbid; the group's for all its members; else the others'."""
        path = here / "file"
        for (uid, gid), shifts in WHO.items():
            os.chown(path, uid, gid)
            for mode in (0o000, 0o400, 0o040, 0o004, 0o200, 0o020, 0o002, 0o754, 0o467, 0o137):
                os.chmod(path, mode)
                for who, shift in zip((owner, stranger), shifts, strict=True):
                    rights = mode >> shift & 7
                    assert who.access(path, os.R_OK) == bool(rights & 4)
                    assert who.access(path, os.W_OK) == bool(rights & 2)
                    assert who.access(path, os.X_OK) == bool(rights & 1)
                    assert outcome(opened, path, os.O_RDONLY, by=who) == ("ok" if rights & 4 else "EACCES")
                    assert outcome(opened, path, os.O_WRONLY, by=who) == ("ok" if rights & 2 else "EACCES")

    @as_root
    def test_directories(self, here: Path, owner: Someone, stranger: Someone) -> None:
        for who, (uid, gid, shift) in ((owner, (OWNER, 0, 6)), (owner, (0, OTHER_GROUP, 3)), (stranger, (OWNER, 0, 0))):
            os.chown(here / "sub", uid, gid)
            for rights in range(8):
                os.chmod(here / "sub", rights << shift)
                read, write, search = (bool(rights & bit) for bit in (4, 2, 1))

                def told(allowed: bool, error: str = "EACCES") -> str:
                    return "ok" if allowed else error

                assert outcome(who.listdir, here / "sub") == told(read)
                assert outcome(who.stat, here / "sub/a") == told(search)
                assert outcome(who.stat, here / "sub/missing") == ("ENOENT" if search else "EACCES")
                assert outcome(who.chdir, here / "sub") == told(search)
                assert outcome(opened, here / "sub/a", os.O_RDONLY, by=who) == told(search)
                assert outcome(who.mkdir, here / "sub/new") == told(write and search)
                assert outcome(who.rmdir, here / "sub/new") == told(write and search, "ENOENT" if search else "EACCES")
                assert outcome(who.unlink, here / "sub/missing") == ("ENOENT" if search else "EACCES")
                who.chdir("/")
        os.chmod(here / "sub", 0o755)
        assert set(os.listdir(here / "sub")) == IN_SUB

    @as_root
    def test_root_may(self, here: Path, somebody: Someone) -> None:
        os.chown(here / "file", OWNER, GROUP)
        os.chown(here / "sub", OWNER, GROUP)
        os.chmod(here / "file", 0)
        os.chmod(here / "sub", 0)
        assert somebody.access(here / "file", os.R_OK | os.W_OK)
        assert not somebody.access(here / "file", os.X_OK)
        assert somebody.access(here / "sub", os.R_OK | os.W_OK | os.X_OK)
        assert (here / "file").read_bytes() == CONTENT
        opened(here / "sub/new", os.O_CREAT | os.O_WRONLY)
        os.chmod(here / "file", 0o001)
        assert somebody.access(here / "file", os.X_OK)

    @as_root
    def test_what_is_not_writable_to_others(self, here: Path, stranger: Someone) -> None:
        """The directory forbids before the entry's own errors are asked for, but not before it is looked for."""
        calls = {
            "new": [stranger.mkdir, stranger.mkfifo, lambda path: stranger.symlink("x", path)],
            "file": [stranger.unlink],
            "void": [stranger.rmdir],
            "sub": [stranger.rmdir],
        }
        for name, entries in calls.items():
            for call in entries:
                assert outcome(call, here / name) == "EACCES"
        assert outcome(stranger.unlink, here / "missing") == "ENOENT"
        assert outcome(stranger.unlink, here / "void/hidden") == "ENOENT"
        assert outcome(stranger.mkdir, here / "file") == "EEXIST"
        assert outcome(stranger.unlink, here / "sub") == "EACCES"
        assert outcome(stranger.link, here / "file", here / "sub") == "EEXIST"
        assert outcome(stranger.rename, here / "file", here / "new") == "EACCES"
        assert outcome(stranger.rename, here / "missing", here / "new") == "ENOENT"
        assert outcome(stranger.truncate, here / "file", 0) == "EACCES"
        assert outcome(stranger.truncate, here / "sub", 0) == "EISDIR"
        assert outcome(stranger.truncate, here / "file", -1) == "EINVAL"

    @as_root
    def test_search_permission_on_the_way(self, here: Path, owner: Someone, stranger: Someone) -> None:
        os.mkdir(here / "sub/in")
        (here / "sub/in/leaf").write_bytes(CONTENT)
        os.symlink("sub/in/leaf", here / "way")
        os.chown(here / "sub", OWNER, GROUP)
        os.chmod(here / "sub", 0o700)
        for call in (
            lambda who: who.stat(here / "sub/in"),
            lambda who: who.stat(here / "way"),
            lambda who: who.stat(here / "sub/missing"),
            lambda who: who.stat(here / "sub/in/../in/leaf"),
            lambda who: who.chmod(here / "sub/in/leaf", 0o600),
            lambda who: who.rename(here / "sub/in/leaf", here / "x"),
            lambda who: who.link(here / "sub/in/leaf", here / "x"),
            lambda who: who.truncate(here / "symdir/in/leaf", 0),
        ):
            assert outcome(call, stranger) == "EACCES"
        assert owner.stat(here / "way").st_size == len(CONTENT)
        os.chmod(here / "sub", 0o711)
        assert stranger.stat(here / "way").st_size == len(CONTENT)
        assert outcome(stranger.listdir, here / "sub") == "EACCES"

    @as_root
    def test_a_right_is_asked_for_at_open_alone(self, here: Path, stranger: Someone) -> None:
        os.chmod(here / "file", 0o666)
        fd = stranger.open(here / "file", os.O_RDWR)
        os.chmod(here / "file", 0)
        assert stranger.pread(fd, 100, 0) == CONTENT
        assert stranger.pwrite(fd, b"t", 0) == 1
        stranger.ftruncate(fd, 3)
        assert outcome(stranger.fchmod, fd, 0o666) == "EPERM"
        assert outcome(opened, here / "file", os.O_RDONLY, by=stranger) == "EACCES"

    @as_root
    def test_owners_of_new_objects(self, here: Path, stranger: Someone) -> None:
        """Also where a whiteout was, and in a directory that was in the layers below alone."""
        for directory in ("sub", "void"):
            os.chmod(here / directory, 0o777)
            opened(here / directory / "hidden", os.O_CREAT | os.O_WRONLY, 0o666, by=stranger)
            stranger.mkdir(here / directory / "d")
            stranger.symlink("x", here / directory / "s")
            stranger.mkfifo(here / directory / "p")
            stranger.link(here / directory / "hidden", here / directory / "l")
            for name in ("hidden", "d", "s", "p", "l"):
                st = os.lstat(here / directory / name)
                assert (st.st_uid, st.st_gid) == (STRANGER, STRANGER)
            assert mode_of(here / directory / "hidden") == 0o644
            st = os.stat(here / directory)
            assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o777)

    @as_root
    def test_devices_are_roots(self, here: Path, stranger: Someone) -> None:
        os.chmod(here / "sub", 0o777)
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            assert outcome(stranger.mknod, here / "sub/dev", kind | 0o666, os.makedev(1, 3)) == "EPERM"
            os.mknod(here / "sub/dev", kind | 0o666, os.makedev(1, 3))
            st = os.lstat(here / "sub/dev")
            assert (stat.S_IFMT(st.st_mode), st.st_rdev) == (kind, os.makedev(1, 3))
            os.unlink(here / "sub/dev")
        stranger.mknod(here / "sub/socket", stat.S_IFSOCK | 0o600)
        assert stat.S_ISSOCK(os.lstat(here / "sub/socket").st_mode)
        os.mknod(here / "void/big", stat.S_IFCHR | 0o600, os.makedev(511, 1_000_000))
        assert os.lstat(here / "void/big").st_rdev == os.makedev(511, 1_000_000)

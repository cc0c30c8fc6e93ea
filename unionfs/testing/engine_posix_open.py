"""open(2), all of its flags and errors; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from unionfs.testing.engine_base import as_root
from unionfs.testing.engine_posix_base import (
    CONTENT,
    IN_SUB,
    NAMES,
    OWNER,
    PROGRAM,
    STRANGER,
    PosixBase,
    mode_of,
    opened,
    opening,
    outcome,
)
from unionfs.testing.someone import Someone

R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
CREAT, EXCL, TRUNC, APPEND = os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND
NOFOLLOW, DIRECTORY, NONBLOCK, PATH, TMPFILE = os.O_NOFOLLOW, os.O_DIRECTORY, os.O_NONBLOCK, os.O_PATH, os.O_TMPFILE

FLAGS = {
    "file": {
        R: "ok",
        W: "ok",
        RW: "ok",
        W | APPEND: "ok",
        R | CREAT: "ok",
        W | CREAT | EXCL: "EEXIST",
        R | CREAT | EXCL: "EEXIST",
        R | DIRECTORY: "ENOTDIR",
        R | NOFOLLOW: "ok",
        W | NONBLOCK: "ok",
        PATH: "ok",
        PATH | DIRECTORY: "ENOTDIR",
        RW | TMPFILE: "ENOTDIR",
        R | os.O_NOATIME: "ok",
        RW | os.O_SYNC: "ok",
        RW | os.O_DSYNC: "ok",
    },
    "sub": {
        R: "ok",
        W: "EISDIR",
        RW: "EISDIR",
        R | TRUNC: "EISDIR",
        R | CREAT: "EISDIR",
        W | CREAT: "EISDIR",
        R | CREAT | EXCL: "EEXIST",
        R | DIRECTORY: "ok",
        R | DIRECTORY | NOFOLLOW: "ok",
        W | DIRECTORY: "EISDIR",
        R | CREAT | DIRECTORY: "EINVAL",  # Linux 6.4; EISDIR before.
        PATH: "ok",
        PATH | DIRECTORY: "ok",
        R | APPEND: "ok",
    },
    "sym": {
        R: "ok",
        RW | CREAT: "ok",
        R | NOFOLLOW: "ELOOP",
        W | NOFOLLOW | CREAT: "ELOOP",
        W | CREAT | EXCL: "EEXIST",
        R | DIRECTORY: "ENOTDIR",
        R | DIRECTORY | NOFOLLOW: "ENOTDIR",
        PATH | NOFOLLOW: "ok",
    },
    "symdir": {
        R: "ok",
        R | DIRECTORY: "ok",
        R | DIRECTORY | NOFOLLOW: "ENOTDIR",
        W: "EISDIR",
        R | CREAT: "EISDIR",
        R | NOFOLLOW: "ELOOP",
        R | CREAT | EXCL: "EEXIST",
    },
    "broken": {
        R: "ENOENT",
        W | TRUNC: "ENOENT",
        W | CREAT | EXCL: "EEXIST",
        W | CREAT | NOFOLLOW: "ELOOP",
        R | NOFOLLOW: "ELOOP",
        PATH: "ENOENT",
        PATH | NOFOLLOW: "ok",
    },
    "loop": {R: "ELOOP", W | CREAT: "ELOOP", W | CREAT | EXCL: "EEXIST", PATH: "ELOOP", PATH | NOFOLLOW: "ok"},
    "fifo": {
        R | NONBLOCK: "ok",
        W | NONBLOCK: "ENXIO",
        RW | NONBLOCK: "ok",
        R | DIRECTORY: "ENOTDIR",
        W | CREAT | EXCL: "EEXIST",
        R | NONBLOCK | CREAT: "ok",
        W | NONBLOCK | TRUNC: "ENXIO",
    },
    "missing": {R: "ENOENT", W: "ENOENT", R | TRUNC: "ENOENT", PATH: "ENOENT", R | DIRECTORY: "ENOENT"},
    "void/hidden": {R: "ENOENT", W | APPEND: "ENOENT"},
    "missing/x": {R: "ENOENT", W | CREAT: "ENOENT", W | CREAT | EXCL: "ENOENT"},
    "file/x": {R: "ENOTDIR", W | CREAT: "ENOTDIR"},
    "sym/x": {R: "ENOTDIR", W | CREAT: "ENOTDIR"},
    "loop/x": {R: "ELOOP", W | CREAT: "ELOOP"},
}


class OpenPart(PosixBase):
    """open(2)."""

    def test_every_flag_on_every_kind(self, here: Path) -> None:
        for name, table in FLAGS.items():
            for flags, wanted in table.items():
                assert outcome(opened, here / name, flags) == wanted, (name, oct(flags))
        assert set(os.listdir(here)) == NAMES
        assert (here / "file").read_bytes() == CONTENT

    def test_creation_through_a_broken_link(self, here: Path) -> None:
        opened(here / "broken", W | CREAT, 0o640)
        assert mode_of(here / "nowhere") == 0o640
        assert os.readlink(here / "broken") == "nowhere"

    def test_access_modes(self, here: Path) -> None:
        with opening(here / "file", R) as fd:
            assert outcome(os.write, fd, b"x") == "EBADF"
            assert outcome(os.ftruncate, fd, 0) == "EINVAL"
            assert os.read(fd, 100) == CONTENT
        with opening(here / "file", W) as fd:
            assert outcome(os.read, fd, 1) == "EBADF"
            assert os.write(fd, b"t") == 1
        with opening(here / "file", PATH) as fd:
            for call in (lambda: os.read(fd, 1), lambda: os.write(fd, b"x"), lambda: os.fchmod(fd, 0o600)):
                assert outcome(call) == "EBADF"
            assert os.fstat(fd).st_size == len(CONTENT)
            with opening(f"/proc/self/fd/{fd}", RW) as again:
                assert os.read(again, 3) == b"the"

    def test_creation_without_permission_to_write_it(self, here: Path, owner: Someone) -> None:
        """Who makes a file may write what its mode forbids, this once."""
        fd = owner.open(here / "new", RW | CREAT | EXCL, 0)
        assert owner.write(fd, b"mine") == 4
        assert owner.pread(fd, 9, 0) == b"mine"
        assert outcome(opened, here / "new", R, by=owner) == "EACCES"
        assert mode_of(here / "new") == 0

    def test_truncation(self, here: Path) -> None:
        for name, flags in (
            ("file", W | TRUNC),
            ("twin1", RW | TRUNC),
            ("sub/a", R | TRUNC),
            ("new", W | CREAT | TRUNC),
        ):
            opened(here / name, flags)
            assert os.stat(here / name).st_size == 0
        assert os.stat(here / "twin2").st_size == 0

    @as_root
    def test_permissions(self, here: Path, owner: Someone, stranger: Someone) -> None:
        os.chown(here / "file", OWNER, 0)
        for mode, wanted in ((0o600, "ok ok"), (0o400, "ok EACCES"), (0o200, "EACCES ok"), (0o070, "EACCES EACCES")):
            os.chmod(here / "file", mode)
            found = [outcome(opened, here / "file", flags, by=owner) for flags in (R, W | APPEND)]
            assert " ".join(found) == wanted
            both = "ok" if wanted == "ok ok" else "EACCES"
            assert outcome(opened, here / "file", RW, by=owner) == both
            assert outcome(opened, here / "file", R | TRUNC, by=stranger) == "EACCES"
        assert os.stat(here / "file").st_size == len(CONTENT)
        assert outcome(opened, here / "new", W | CREAT, by=stranger) == "EACCES"
        assert outcome(opened, here / "void/hidden", W | CREAT, by=stranger) == "EACCES"
        os.chmod(here / "file", 0o666)
        assert outcome(opened, here / "file", W | CREAT, by=stranger) == "ok"
        assert outcome(opened, here / "file", R | os.O_NOATIME, by=stranger) == "EPERM"
        assert outcome(opened, here / "file", R | os.O_NOATIME, by=owner) == "ok"
        os.chmod(here / "sub", 0o600)
        assert outcome(opened, here / "sub/a", R, by=stranger) == "EACCES"
        assert outcome(opened, here / "sub/missing", R, by=stranger) == "EACCES"

    # O_TMPFILE

    def test_tmpfile(self, here: Path) -> None:
        for directory in ("sub", "void", "."):
            top = here / directory
            before = set(os.listdir(top))
            with opening(top, RW | TMPFILE, 0o640) as fd:
                assert set(os.listdir(top)) == before
                assert os.fstat(fd).st_nlink == 0
                assert mode_of(fd) == 0o640
                os.write(fd, b"nameless")
                os.link(f"/proc/self/fd/{fd}", top / "named", src_dir_fd=fd)
                assert os.fstat(fd).st_nlink == 1
                assert os.path.samestat(os.fstat(fd), os.stat(top / "named"))
                os.write(fd, b" no more")
                outcome_twice = outcome(os.link, f"/proc/self/fd/{fd}", top / "named", src_dir_fd=fd)
                assert outcome_twice == "EEXIST"
            assert (top / "named").read_bytes() == b"nameless no more"
            assert set(os.listdir(top)) == before | {"named"}

    def test_tmpfile_for_ever_nameless(self, here: Path) -> None:
        with opening(here / "sub", W | TMPFILE | EXCL) as fd:
            os.write(fd, b"x" * 100_000)
            assert os.fstat(fd).st_size == 100_000
            assert outcome(os.link, f"/proc/self/fd/{fd}", here / "x", src_dir_fd=fd) == "ENOENT"
        assert outcome(opened, here / "sub", R | TMPFILE) == "EINVAL"
        assert outcome(opened, here / "missing", RW | TMPFILE) == "ENOENT"
        assert set(os.listdir(here / "sub")) == IN_SUB

    @as_root
    def test_tmpfile_belongs_to_who_makes_it(self, here: Path, stranger: Someone) -> None:
        assert outcome(opened, here / "sub", RW | TMPFILE, by=stranger) == "EACCES"
        os.chmod(here / "sub", 0o777)
        fd = stranger.open(here / "sub", RW | TMPFILE, 0o666)
        st = stranger.fstat(fd)
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (STRANGER, STRANGER, 0o644)

    # Programs

    @pytest.mark.parametrize("how", ["new", "linked", "lower"])
    def test_running_programs_are_not_written(self, here: Path, somebody: Someone, how: str) -> None:
        program = written = here / "sub/sleep"
        if how == "lower":
            program = written = here.parent / PROGRAM
        else:
            shutil.copy(here.parent / PROGRAM, program)
        if how == "linked":
            program = here / "linked"
            os.link(written, program)
        with subprocess.Popen([program, "60"]) as running:
            try:
                for name in (program, written):
                    assert outcome(somebody.open, name, W) == "ETXTBSY"
                    assert outcome(somebody.open, name, RW | TRUNC) == "ETXTBSY"
                    assert outcome(somebody.truncate, name, 0) == "ETXTBSY"
                opened(program, R)
                os.rename(program, here / "moved")
                assert outcome(somebody.open, here / "moved", W) == "ETXTBSY"
                os.rename(here / "moved", program)
                assert running.poll() is None
            finally:
                running.kill()
        assert outcome(somebody.open, program, W) == "ok"

    def test_a_file_open_for_writing_is_not_run(self, here: Path, somebody: Someone) -> None:
        program = here / "sleep"
        shutil.copy(here.parent / PROGRAM, program)
        fd = somebody.open(program, W | APPEND)
        with pytest.raises(OSError, match="Text file busy"):
            subprocess.run([program, "0"], check=True)
        somebody.close(fd)
        subprocess.run([program, "0"], check=True)
        os.chmod(program, 0o644)
        with pytest.raises(PermissionError):
            subprocess.run([program, "0"], check=True)

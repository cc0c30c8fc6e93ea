"""Entries that move; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

import pytest

from unionfs._sys.rename import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from unionfs.testing.engine_base import as_root
from unionfs.testing.engine_posix_base import CONTENT, IN_SUB, NAMES, OWNER, PosixBase, opening, outcome
from unionfs.testing.someone import Someone

AT_FDCWD = -100

# What happens when the first is renamed onto the second.
ONTO = {
    ("file", "empty"): "ok",
    ("file", "fifo"): "ok",
    ("file", "sym"): "ok",
    ("file", "loop"): "ok",
    ("file", "twin1"): "ok",
    ("fifo", "file"): "ok",
    ("sym", "file"): "ok",
    ("broken", "fifo"): "ok",
    ("file", "sub"): "EISDIR",
    ("file", "void"): "EISDIR",
    ("fifo", "void"): "EISDIR",
    ("symdir", "void"): "EISDIR",
    ("sub", "file"): "ENOTDIR",
    ("sub", "sym"): "ENOTDIR",
    ("void", "symdir"): "ENOTDIR",
    ("void", "fifo"): "ENOTDIR",
    ("sub", "void"): "ok",
    ("void", "sub"): "ENOTEMPTY",
}


def flagged(one: Path, two: Path, flags: int) -> None:
    renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(two), flags)


def identity(path: Path) -> tuple[int, int]:
    st = os.lstat(path)
    return stat.S_IFMT(st.st_mode), st.st_ino


class RenamePart(PosixBase):
    """rename(2), renameat2(2)."""

    @pytest.mark.parametrize("place", [".", "sub", "void"])
    def test_to_a_free_name(self, here: Path, place: str) -> None:
        for name in NAMES - {place}:
            before = identity(here / name)
            content = sorted(os.listdir(here / name)) if stat.S_ISDIR(before[0]) else None
            target = here / place / "moved"
            os.rename(here / name, target)
            assert identity(target) == before
            assert outcome(os.lstat, here / name) == "ENOENT"
            assert name not in os.listdir(here)
            if content is not None:
                assert sorted(os.listdir(target)) == content
                assert os.path.samestat(os.stat(target / ".."), os.stat(target.parent))
                os.mkdir(target / "more")
            os.rename(target, here / name)
            assert identity(here / name) == before
            assert set(os.listdir(here)) == NAMES

    @pytest.mark.parametrize(("one", "two"), [pair for pair, error in ONTO.items() if error == "ok"])
    def test_onto_another(self, here: Path, one: str, two: str) -> None:
        before = identity(here / one)
        os.rename(here / one, here / two)
        assert identity(here / two) == before
        assert set(os.listdir(here)) == NAMES - {one}
        assert outcome(os.lstat, here / one) == "ENOENT"
        if one == "sub":
            assert set(os.listdir(here / two)) == IN_SUB
        if two == "twin1":
            assert os.stat(here / "twin2").st_nlink == 1

    def test_not_onto_another(self, here: Path) -> None:
        before = {name: identity(here / name) for name in NAMES}
        for (one, two), error in ONTO.items():
            if error != "ok":
                assert outcome(os.rename, here / one, here / two) == error, (one, two)
        for name in NAMES:
            os.rename(here / name, here / name)
        assert {name: identity(here / name) for name in os.listdir(here)} == before

    def test_errors(self, here: Path) -> None:
        os.mkdir(here / "sub/deep")
        for one, two, error in (
            ("missing", "x", "ENOENT"),
            ("void/hidden", "x", "ENOENT"),
            ("missing", "file", "ENOENT"),
            ("file/x", "y", "ENOTDIR"),
            ("file", "file/x", "ENOTDIR"),
            ("file", "missing/x", "ENOENT"),
            ("loop/x", "y", "ELOOP"),
            ("file", "loop/x", "ELOOP"),
            ("sub", "sub/x", "EINVAL"),
            ("sub", "sub/deep/x", "EINVAL"),
            ("sub", "sub/deep", "EINVAL"),
            ("sub", "symdir/x", "EINVAL"),
            ("sub/deep", "sub", "ENOTEMPTY"),
            ("sub/a", "sub", "ENOTEMPTY"),
            ("sub/.", "x", "EBUSY"),
            ("sub/..", "x", "EBUSY"),
            ("sub", "void/.", "EBUSY"),
            ("sub", "void/..", "EBUSY"),
            ("file", f"../../{'elsewhere'}", "EXDEV" if os.path.ismount(here.parent) else "ok"),
        ):
            assert outcome(os.rename, f"{here}/{one}", f"{here}/{two}") == error, (one, two)

    def test_onto_another_link_of_the_same_file(self, here: Path) -> None:
        """Nothing happens, and both stay (rename(2))."""
        os.rename(here / "twin1", here / "twin2")
        os.link(here / "file", here / "sub/file2")
        os.rename(here / "file", here / "sub/file2")
        assert {"twin1", "twin2", "file"} < set(os.listdir(here))
        assert os.stat(here / "twin1").st_nlink == os.stat(here / "file").st_nlink == 2

    def test_an_open_file_goes_along(self, here: Path) -> None:
        with opening(here / "file", os.O_RDWR) as fd, opening(here / "empty", os.O_RDWR) as replaced:
            os.rename(here / "file", here / "empty")
            os.pwrite(fd, b"THE", 0)
            assert (here / "empty").read_bytes() == b"THE" + CONTENT[3:]
            assert os.fstat(replaced).st_nlink == 0
            os.write(replaced, b"nameless")
            assert os.pread(replaced, 9, 0) == b"nameless"

    def test_an_open_directory_goes_along(self, here: Path) -> None:
        fd = os.open(here / "sub", os.O_RDONLY)
        try:
            os.rename(here / "sub", here / "void/moved")
            assert set(os.listdir(fd)) == IN_SUB
            os.mkdir("in", dir_fd=fd)
            assert os.path.isdir(here / "void/moved/in")
            assert os.path.samestat(os.stat("..", dir_fd=fd), os.stat(here / "void"))
        finally:
            os.close(fd)

    def test_there_and_back_through_many_names(self, here: Path) -> None:
        ino = os.stat(here / "sub").st_ino
        os.rename(here / "sub", here / "one")
        os.rename(here / "void", here / "sub")
        os.rename(here / "one", here / "sub/two")
        os.rename(here / "sub", here / "three")
        os.rename(here / "three/two", here / "sub")
        assert os.listdir(here / "three") == []
        assert set(os.listdir(here / "sub")) == IN_SUB
        assert os.stat(here / "sub").st_ino == ino
        assert {name: (here / "sub" / name).read_text() for name in IN_SUB} == {name: name for name in IN_SUB}

    # renameat2(2)

    def test_noreplace(self, here: Path) -> None:
        for name in NAMES - {"file"}:
            assert outcome(flagged, here / "file", here / name, RENAME_NOREPLACE) == "EEXIST"
        assert outcome(flagged, here / "file", here / "file", RENAME_NOREPLACE) == "EEXIST"
        assert outcome(flagged, here / "missing", here / "x", RENAME_NOREPLACE) == "ENOENT"
        for name in ("file", "sub", "sym", "fifo"):
            before = identity(here / name)
            flagged(here / name, here / "void/hidden", RENAME_NOREPLACE)
            assert identity(here / "void/hidden") == before
            flagged(here / "void/hidden", here / name, RENAME_NOREPLACE)
        assert set(os.listdir(here)) == NAMES

    def test_exchange(self, here: Path) -> None:
        names = sorted(NAMES)
        before = {name: identity(here / name) for name in names}
        for one, two in itertools.pairwise(names):
            flagged(here / one, here / two, RENAME_EXCHANGE)
            before[one], before[two] = before[two], before[one]
        assert {name: identity(here / name) for name in names} == before
        flagged(here / names[0], here / names[0], RENAME_EXCHANGE)
        assert set(os.listdir(here)) == NAMES
        (sub,) = [path for path in here.iterdir() if path.is_dir() and not path.is_symlink() and any(path.iterdir())]
        assert set(os.listdir(sub)) == IN_SUB

    def test_exchange_errors(self, here: Path) -> None:
        os.mkdir(here / "sub/deep")
        for one, two, error in (
            ("file", "missing", "ENOENT"),
            ("missing", "file", "ENOENT"),
            ("sub", "sub/deep", "EINVAL"),
            ("sub/deep", "sub", "EINVAL"),
            ("sub/a", "sub", "EINVAL"),
        ):
            assert outcome(flagged, here / one, here / two, RENAME_EXCHANGE) == error, (one, two)
        both = RENAME_EXCHANGE | RENAME_NOREPLACE
        assert outcome(flagged, here / "file", here / "x", both) == "EINVAL"
        assert outcome(flagged, here / "file", here / "x", 1 << 7) == "EINVAL"

    def test_exchange_over_directories(self, here: Path) -> None:
        flagged(here / "sub/a", here / "void", RENAME_EXCHANGE)
        assert (here / "void").read_text() == "a"
        assert os.listdir(here / "sub/a") == []
        flagged(here / "sub", here / "file", RENAME_EXCHANGE)
        assert set(os.listdir(here / "file")) == IN_SUB
        assert (here / "sub").read_bytes() == CONTENT

    # Permission

    @as_root
    def test_sticky_directories(self, here: Path, owner: Someone, stranger: Someone) -> None:
        """Entries of one go by the hand of their owner, the directory's owner and root (rename(2), EPERM)."""
        os.chmod(here / "sub", 0o1777)
        os.chmod(here / "void", 0o777)
        a, b = here / "sub/a", here / "sub/b"
        assert outcome(stranger.rename, a, here / "void/x") == "EPERM"
        assert outcome(stranger.unlink, a) == "EPERM"
        os.chown(a, 61002, 0)
        stranger.rename(a, here / "sub/a2")
        assert outcome(stranger.rename, here / "sub/a2", b) == "EPERM"
        stranger.symlink("x", here / "void/s")
        assert outcome(stranger.rename, here / "void/s", b) == "EPERM"
        assert outcome(owner.rename, here / "sub/a2", here / "void/x") == "EPERM"
        os.chown(here / "sub", OWNER, 0)
        owner.rename(here / "sub/a2", b)
        owner.unlink(b)
        os.mkdir(here / "sub/d")
        os.chown(here / "sub", 0, 0)
        assert outcome(stranger.rmdir, here / "sub/d") == "EPERM"
        os.rename(here / "sub/d", here / "void/d")

    @as_root
    def test_both_directories_must_be_writable(self, here: Path, stranger: Someone) -> None:
        os.chmod(here / "void", 0o777)
        assert outcome(stranger.rename, here / "sub/a", here / "void/a") == "EACCES"
        opened = here / "void/new"
        stranger.mkdir(opened)
        assert outcome(stranger.rename, opened, here / "sub/new") == "EACCES"
        assert outcome(stranger.rename, opened, here / "file/new") == "ENOTDIR"
        # A directory's own permission counts when it gets another parent, since its ".." changes.
        os.chmod(here / "sub", 0o777)
        os.mkdir(here / "sub/roots", 0o755)
        assert outcome(stranger.rename, here / "sub/roots", here / "void/roots") == "EACCES"
        stranger.rename(here / "sub/roots", here / "sub/renamed")

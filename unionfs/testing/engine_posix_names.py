"""Entries that come and go, and what names may be; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unionfs.testing.engine_posix_base import (
    CONTENT,
    IN_SUB,
    NAMES,
    PosixBase,
    mode_of,
    opened,
    opening,
    outcome,
)

Make = Callable[[Path], object]

# Each makes an entry of its kind, or fails.
MAKERS: dict[str, Make] = {
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o644),
    "symlink": lambda path: os.symlink("target", path),
    "open": lambda path: opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
}
KINDS = {
    "mkdir": stat.S_IFDIR,
    "mkfifo": stat.S_IFIFO,
    "mknod": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "open": stat.S_IFREG,
}


def kind_of(path: Path) -> int:
    return stat.S_IFMT(os.lstat(path).st_mode)


def links(path: Path | int) -> int:
    return os.stat(path).st_nlink


class NamesPart(PosixBase):
    """mkdir, mkfifo, mknod, symlink, link, unlink, rmdir."""

    def test_what_the_tests_begin_with(self, here: Path) -> None:
        assert set(os.listdir(here)) == NAMES
        assert set(os.listdir(here / "sub")) == IN_SUB
        assert os.listdir(here / "void") == []
        assert (here / "twin2").read_bytes() == CONTENT
        assert [mode_of(here / name) for name in ("file", "sub", "void")] == [0o644, 0o755, 0o755]

    # New entries

    @pytest.mark.parametrize("how", MAKERS)
    def test_new_entries(self, here: Path, how: str) -> None:
        make = MAKERS[how]
        for name in NAMES:
            assert outcome(make, here / name) == "EEXIST"
        for name in (".", ".."):
            assert outcome(make, here / name) == "EEXIST"
        for parent, error in (
            ("missing", "ENOENT"),
            ("broken", "ENOENT"),
            ("file", "ENOTDIR"),
            ("sym", "ENOTDIR"),
            ("fifo", "ENOTDIR"),
            ("loop", "ELOOP"),
        ):
            assert outcome(make, here / parent / "x") == error
        for place in ("x", "sub/x", "void/x", "void/hidden", "symdir/y"):
            make(here / place)
            assert kind_of(here / place) == KINDS[how]
        assert set(os.listdir(here)) == NAMES | {"x"}
        assert set(os.listdir(here / "sub")) == IN_SUB | {"x", "y"}
        assert set(os.listdir(here / "void")) == {"x", "hidden"}

    @pytest.mark.parametrize("how", MAKERS)
    def test_entries_in_place_of_what_went(self, here: Path, how: str) -> None:
        for name in NAMES - {"sub", "void"}:
            os.unlink(here / name)
        os.rmdir(here / "void")
        for name in ("a", "b", "c"):
            os.unlink(here / "sub" / name)
        os.rmdir(here / "sub")
        assert os.listdir(here) == []
        for name in NAMES:
            assert outcome(os.lstat, here / name) == "ENOENT"
            MAKERS[how](here / name)
            assert kind_of(here / name) == KINDS[how]
        assert set(os.listdir(here)) == NAMES
        if how == "mkdir":
            assert os.listdir(here / "sub") == os.listdir(here / "void") == []

    @pytest.mark.parametrize("how", MAKERS)
    def test_long_names(self, here: Path, how: str) -> None:
        longest = "n" * 255
        assert outcome(MAKERS[how], here / f"{longest}n") == "ENAMETOOLONG"
        assert outcome(MAKERS[how], here / f"{longest}n" / "x") == "ENAMETOOLONG"
        MAKERS[how](here / longest)
        assert kind_of(here / longest) == KINDS[how]
        assert longest in os.listdir(here)
        os.rename(here / longest, here / ("m" * 255))
        assert outcome(os.lstat, here / longest) == "ENOENT"

    def test_every_call_finds_a_name_too_long(self, here: Path) -> None:
        name = here / ("n" * 256)
        calls: list[Callable[[], object]] = [
            lambda: os.stat(name),
            lambda: os.lstat(name),
            lambda: os.unlink(name),
            lambda: os.rmdir(name),
            lambda: os.chmod(name, 0o600),
            lambda: os.chown(name, -1, -1),
            lambda: os.utime(name),
            lambda: os.truncate(name, 0),
            lambda: os.readlink(name),
            lambda: os.listdir(name),
            lambda: os.link(here / "file", name),
            lambda: os.link(name, here / "x"),
            lambda: os.rename(here / "file", name),
            lambda: os.rename(name, here / "x"),
            lambda: opened(name, os.O_RDONLY),
            lambda: os.getxattr(name, "user.x"),
            lambda: os.statvfs(name),
        ]
        assert {outcome(call) for call in calls} == {"ENAMETOOLONG"}

    def test_long_paths(self, here: Path) -> None:
        """A path has up to 4095 bytes (limits.h, PATH_MAX, counts the 0 at the end)."""
        path = os.fsencode(here / "void")
        while len(path) < 4095 - 256:
            path += b"/" + b"d" * 200
            os.mkdir(path)
        path += b"/"
        longest = path + b"f" * (4095 - len(path))
        for how, make in MAKERS.items():
            make(longest)  # type: ignore[arg-type]
            assert stat.S_IFMT(os.lstat(longest).st_mode) == KINDS[how]
            assert outcome(os.lstat, longest + b"x") == "ENAMETOOLONG"
            assert outcome(make, longest + b"x") == "ENAMETOOLONG"
            (os.rmdir if how == "mkdir" else os.unlink)(longest)
        assert outcome(os.lstat, longest) == "ENOENT"

    @pytest.mark.parametrize(
        "name",
        [
            b"\xff\xfe not UTF-8 \x80",
            b"new\nline\ttab",
            b" space ",
            b"\\040",
            b"...",
            b"-rf",
            b"\x01\x7f",
            b".".join((b"", b"wh", b"file")),  # It means something in an image's layer alone.
            b".fuse_hidden0000",
            "ü".encode(),
            b"u\xcc\x88",
        ],
    )
    def test_any_name(self, here: Path, name: bytes) -> None:
        top = os.fsencode(here / "sub")
        path = top + b"/" + name
        for make, remove in ((os.mkdir, os.rmdir), (os.mkfifo, os.unlink), (os.mknod, os.unlink)):
            make(path)
            assert set(os.listdir(top)) == {name, *map(os.fsencode, IN_SUB)}
            os.rename(path, path + b"2")
            os.rename(path + b"2", path)
            os.lstat(path)
            remove(path)
        os.symlink(name, path + b"3")
        assert os.readlink(path + b"3") == name
        os.link(os.fsencode(here / "file"), path)
        with open(path + b"3", "rb") as file:
            assert file.read() == CONTENT

    def test_slash_at_the_end(self, here: Path) -> None:
        at = f"{here}/"
        assert outcome(os.lstat, f"{at}file/") == "ENOTDIR"
        assert outcome(os.lstat, f"{at}sym/") == "ENOTDIR"
        assert stat.S_ISDIR(os.lstat(f"{at}symdir/").st_mode)
        assert outcome(os.unlink, f"{at}file/") == "ENOTDIR"
        assert outcome(os.unlink, f"{at}sub/") == "EISDIR"
        assert outcome(os.rmdir, f"{at}symdir/") == "ENOTDIR"
        assert outcome(os.rmdir, f"{at}file/") == "ENOTDIR"
        assert outcome(os.mkfifo, f"{at}x/") == "ENOENT"
        assert outcome(os.symlink, "t", f"{at}x/") == "ENOENT"
        assert outcome(os.link, f"{at}file", f"{at}x/") == "ENOENT"
        assert outcome(os.rename, f"{at}file", f"{at}x/") == "ENOTDIR"
        assert outcome(opened, f"{at}x/", os.O_CREAT | os.O_WRONLY) == "EISDIR"
        assert outcome(opened, f"{at}file/", os.O_RDONLY) == "ENOTDIR"
        os.mkdir(f"{at}x/")
        os.rename(f"{at}x/", f"{at}y//")
        os.rmdir(f"{at}y/")

    # Symbolic links

    def test_symlink_targets(self, here: Path) -> None:
        for target in (b"x", b"/", b"a//b/../.", b"\xff", b"t" * 255, b"u/" * 2047 + b"u"):
            path = os.fsencode(here / "sub" / str(len(target)))
            os.symlink(target, path)
            assert os.readlink(path) == target
            assert os.lstat(path).st_size == len(target)
            assert mode_of(os.fsdecode(path)) == 0o777
            os.unlink(path)
        assert outcome(os.symlink, b"t" * 4096, here / "x") == "ENAMETOOLONG"
        assert outcome(os.symlink, b"", here / "x") == "ENOENT"
        for name in ("file", "sub", "fifo"):
            assert outcome(os.readlink, here / name) == "EINVAL"
        assert outcome(os.readlink, here / "missing") == "ENOENT"
        assert os.readlink(here / "loop") == "loop"

    def test_forty_links_and_no_more(self, here: Path) -> None:
        """As many links the kernel follows on one path (path_resolution(7))."""
        os.symlink("file", here / "link0")
        for number in range(1, 41):
            os.symlink(f"link{number - 1}", here / f"link{number}")
        assert os.path.samestat(os.stat(here / "link39"), os.stat(here / "file"))
        assert outcome(os.stat, here / "link40") == "ELOOP"

    # Hard links

    def test_link_errors(self, here: Path) -> None:
        assert outcome(os.link, here / "missing", here / "x") == "ENOENT"
        assert outcome(os.link, here / "file" / "x", here / "x") == "ENOTDIR"
        assert outcome(os.link, here / "file", here / "file" / "x") == "ENOTDIR"
        assert outcome(os.link, here / "file", here / "missing" / "x") == "ENOENT"
        assert outcome(os.link, here / "loop" / "x", here / "x") == "ELOOP"
        assert outcome(os.link, here / "sub", here / "x") == "EPERM"
        assert outcome(os.link, here / "void", here / "x") == "EPERM"
        for name in NAMES:
            assert outcome(os.link, here / "file", here / name) == "EEXIST"
            assert outcome(os.link, here / "sub", here / name) == "EEXIST"
        if os.path.ismount(here.parent):
            assert outcome(os.link, here / "file", here.parents[1] / "elsewhere") == "EXDEV"
        assert links(here / "file") == 1

    @pytest.mark.parametrize("name", ["file", "fifo", "sym", "broken", "twin1", "empty"])
    def test_links_are_one_object(self, here: Path, name: str) -> None:
        before = os.lstat(here / name)
        other = here / "sub" / "other"
        os.link(here / name, other, follow_symlinks=False)
        st, st2 = os.lstat(here / name), os.lstat(other)
        assert os.path.samestat(st, st2)
        assert (st.st_ino, st.st_mode) == (before.st_ino, before.st_mode)
        assert st.st_nlink == st2.st_nlink == before.st_nlink + 1
        os.lchown(other, -1, os.getegid())
        os.utime(other, ns=(11, 12), follow_symlinks=False)
        assert os.lstat(here / name).st_mtime_ns == 12
        os.unlink(here / name)
        assert os.lstat(other).st_ino == before.st_ino
        assert os.lstat(other).st_nlink == before.st_nlink
        os.link(other, here / name, follow_symlinks=False)
        assert os.path.samestat(os.lstat(here / name), os.lstat(other))

    @pytest.mark.parametrize("how", ["write", "chmod", "truncate", "rename", "setxattr", "link", "read"])
    def test_twins_stay_twins(self, here: Path, how: str) -> None:
        ino = os.stat(here / "twin2").st_ino
        one, two = here / "twin1", here / "twin2"
        if how == "write":
            one.write_bytes(b"other")
        elif how == "chmod":
            os.chmod(one, 0o600)
        elif how == "truncate":
            os.truncate(one, 3)
        elif how == "rename":
            os.rename(one, here / "sub/moved")
            one = here / "sub/moved"
        elif how == "setxattr":
            os.setxattr(one, "user.x", b"y")
        elif how == "link":
            os.link(one, here / "triplet")
        st, st2 = os.stat(one), os.stat(two)
        assert (st.st_ino, st.st_nlink) == (ino, 3 if how == "link" else 2)
        assert st == st2
        assert one.read_bytes() == two.read_bytes()
        two.write_bytes(b"from the other side")
        assert one.read_bytes() == b"from the other side"
        os.unlink(two)
        left = 2 if how == "link" else 1
        deadline = time.monotonic() + self.link_counts_lag
        while links(one) != left and time.monotonic() < deadline:
            time.sleep(0.01)
        assert links(one) == left
        assert os.stat(one).st_ino == ino

    # What goes

    def test_unlink_errors(self, here: Path) -> None:
        assert outcome(os.unlink, here / "sub") == "EISDIR"
        assert outcome(os.unlink, here / "void") == "EISDIR"
        assert outcome(os.unlink, here / "missing") == "ENOENT"
        assert outcome(os.unlink, here / "void/hidden") == "ENOENT"
        assert outcome(os.unlink, here / "file/x") == "ENOTDIR"
        assert outcome(os.unlink, here / "loop/x") == "ELOOP"
        os.unlink(here / "symdir")
        os.unlink(here / "loop")
        os.unlink(here / "sym")
        assert set(os.listdir(here)) == NAMES - {"symdir", "loop", "sym"}
        assert set(os.listdir(here / "sub")) == IN_SUB

    def test_rmdir_errors(self, here: Path) -> None:
        for name, error in (
            ("sub", "ENOTEMPTY"),
            ("file", "ENOTDIR"),
            ("sym", "ENOTDIR"),
            ("symdir", "ENOTDIR"),
            ("broken", "ENOTDIR"),
            ("fifo", "ENOTDIR"),
            ("missing", "ENOENT"),
            ("file/x", "ENOTDIR"),
            ("loop/x", "ELOOP"),
            ("void/.", "EINVAL"),
            ("void/..", "ENOTEMPTY"),
            ("sub/../void/../.", "EINVAL"),
        ):
            assert outcome(os.rmdir, f"{here}/{name}") == error, name
        os.rmdir(here / "void")
        assert outcome(os.rmdir, here / "void") == "ENOENT"

    def test_the_mountpoint_stays(self, here: Path) -> None:
        if os.path.ismount(here.parent):
            assert outcome(os.rmdir, here.parent) == "EBUSY"
            assert outcome(os.rename, here.parent, here.parents[1] / "x") == "EBUSY"
            assert outcome(os.rename, here.parents[1] / "upper", here.parent) in ("EBUSY", "EXDEV")

    # Link counts

    def test_links_of_an_open_file(self, here: Path) -> None:
        with opening(here / "file", os.O_RDWR) as fd:
            os.link(here / "file", here / "second")
            assert links(fd) == 2
            os.unlink(here / "file")
            assert links(fd) == 1
            os.rename(here / "empty", here / "second")
            assert links(fd) == 0
            assert os.pread(fd, 100, 0) == CONTENT
            assert os.pwrite(fd, b"more", 0) == 4
            os.ftruncate(fd, 4)
            assert (os.fstat(fd).st_size, os.pread(fd, 9, 0)) == (4, b"more")
        with opening(here / "twin1", os.O_RDONLY) as fd:
            os.unlink(here / "twin1")
            assert (links(fd), links(here / "twin2")) == (1, 1)
            os.unlink(here / "twin2")
            assert links(fd) == 0

    def test_an_unlinked_file_is_not_its_successor(self, here: Path) -> None:
        with opening(here / "file", os.O_RDONLY) as old:
            os.unlink(here / "file")
            (here / "file").write_bytes(b"new")
            assert os.pread(old, 100, 0) == CONTENT
            assert os.stat(here / "file").st_ino != os.fstat(old).st_ino
            assert outcome(os.link, f"/proc/self/fd/{old}", here / "x", src_dir_fd=old) == "ENOENT"

    links_of_merged = 1

    def test_links_of_directories(self, here: Path) -> None:
        """A directory that is in the upper alone counts those in it; one that merges has 1, as in overlayfs."""
        os.mkdir(here / "new")
        assert links(here / "new") == 2
        for name in ("x", "y"):
            os.mkdir(here / "new" / name)
        opened(here / "new/f", os.O_CREAT | os.O_WRONLY)
        assert links(here / "new") == 4
        os.rename(here / "new/x", here / "new/y/x")
        assert (links(here / "new"), links(here / "new/y")) == (3, 3)
        os.rmdir(here / "new/y/x")
        assert (links(here / "new"), links(here / "new/y")) == (3, 2)
        assert links(here) == self.links_of_merged

    def test_open_removed_directory(self, here: Path) -> None:
        os.mkdir(here / "new")
        for name in ("new", "void"):
            fd = os.open(here / name, os.O_RDONLY)
            try:
                os.rmdir(here / name)
                assert stat.S_ISDIR(os.fstat(fd).st_mode)
                assert os.listdir(fd) == []
                assert outcome(os.mkdir, "x", dir_fd=fd) == "ENOENT"
                assert outcome(opened, f"/proc/self/fd/{fd}/x", os.O_CREAT | os.O_WRONLY) == "ENOENT"
                assert outcome(os.stat, "x", dir_fd=fd) == "ENOENT"
            finally:
                os.close(fd)

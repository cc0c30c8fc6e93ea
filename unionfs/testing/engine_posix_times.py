"""Times: set, and changed by what else is done; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unionfs._sys.leftout import UTIME_NOW, UTIME_OMIT, utimensat
from unionfs._sys.statx import birth_ns
from unionfs.testing.engine_base import as_root
from unionfs.testing.engine_posix_base import OWNER, PosixBase, opened, opening, outcome, tick
from unionfs.testing.someone import Someone

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
OLD = 1_200_000_000 * SECOND + 123_456_789
NOW, OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)
OBJECTS = ("file", "sub", "void", "fifo", "sym", "broken", "twin1", "sub/a")

ALL = frozenset({"atime", "mtime", "ctime"})
DATA = frozenset({"mtime", "ctime"})
META = frozenset({"ctime"})
NONE: frozenset[str] = frozenset()

Stamp = tuple[int, int]
Operation = Callable[[Path], object]


def times(path: Path | int) -> dict[str, int]:
    st = os.stat(path, follow_symlinks=isinstance(path, int))
    return {"atime": st.st_atime_ns, "mtime": st.st_mtime_ns, "ctime": st.st_ctime_ns}


def aged(*paths: Path) -> None:
    for path in paths:
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    tick()


def written(path: Path, flags: int, data: bytes) -> None:
    with opening(path, flags) as fd:
        os.write(fd, data)


class Watch:
    """Which times of these objects change in the block; they must become what the clock says."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths

    def __enter__(self) -> Watch:
        aged(*self.paths)
        self.before = [times(path) for path in self.paths]
        self.begin = time.time_ns() - SECOND // 10
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        self.after = [times(path) for path in self.paths]
        for before, after in zip(self.before, self.after, strict=True):
            for which in ALL:
                assert after[which] == before[which] or self.begin <= after[which] <= time.time_ns() + SECOND // 10

    def changed(self) -> list[frozenset[str]]:
        """For each object, the names of its times that are others now."""
        return [
            frozenset(which for which in ALL if before[which] != after[which])
            for before, after in zip(self.before, self.after, strict=True)
        ]


# What is done to ``here / name``; which times of it change, and which of its directory.
CHANGES: dict[str, tuple[str, Operation, frozenset[str], frozenset[str]]] = {
    "chmod": ("file", lambda path: os.chmod(path, 0o600), META, NONE),
    "chmod to the same": ("file", lambda path: os.chmod(path, 0o644), META, NONE),
    "chmod of a directory": ("sub", lambda path: os.chmod(path, 0o700), META, NONE),
    "chown": ("file", lambda path: os.chown(path, os.geteuid(), os.getegid()), META, NONE),
    "lchown": ("sym", lambda path: os.lchown(path, os.geteuid(), -1), META, NONE),
    "setxattr": ("file", lambda path: os.setxattr(path, "user.x", b"1"), META, NONE),
    "write": ("file", lambda path: written(path, os.O_RDWR, b"x"), DATA, NONE),
    "append": ("file", lambda path: written(path, os.O_WRONLY | os.O_APPEND, b"x"), DATA, NONE),
    "nothing written": ("file", lambda path: written(path, os.O_WRONLY, b""), NONE, NONE),
    "opened to write": ("file", lambda path: opened(path, os.O_RDWR), NONE, NONE),
    "opened to append": ("twin1", lambda path: opened(path, os.O_WRONLY | os.O_APPEND), NONE, NONE),
    "O_TRUNC": ("file", lambda path: opened(path, os.O_WRONLY | os.O_TRUNC), DATA, NONE),
    "O_TRUNC of nothing": ("empty", lambda path: opened(path, os.O_WRONLY | os.O_TRUNC), DATA, NONE),
    "O_CREAT of what is there": ("file", lambda path: opened(path, os.O_WRONLY | os.O_CREAT), NONE, NONE),
    "truncate": ("file", lambda path: os.truncate(path, 1), DATA, NONE),
    "truncate to more": ("file", lambda path: os.truncate(path, 1000), DATA, NONE),
    "link": ("file", lambda path: os.link(path, path.parent / "x"), META, DATA),
    "link elsewhere": ("file", lambda path: os.link(path, path.parent / "sub/x"), META, NONE),
    "unlink of a link": ("twin1", lambda path: os.unlink(path.parent / "twin2"), META, DATA),
    "rename": ("file", lambda path: os.link(path, path.parent / "x"), META, DATA),
    "rename over": ("twin1", lambda path: os.rename(path.parent / "file", path.parent / "twin2"), META, DATA),
    "create": ("sub", lambda path: opened(path.parent / "x", os.O_CREAT | os.O_WRONLY), NONE, DATA),
    "create in it": ("sub", lambda path: opened(path / "x", os.O_CREAT | os.O_WRONLY), DATA, NONE),
    "mkdir in it": ("void", lambda path: os.mkdir(path / "hidden"), DATA, NONE),
    "symlink in it": ("sub", lambda path: os.symlink("x", path / "x"), DATA, NONE),
    "mkfifo in it": ("sub", lambda path: os.mkfifo(path / "x"), DATA, NONE),
    "unlink in it": ("sub", lambda path: os.unlink(path / "b"), DATA, NONE),
    "rename in it": ("sub", lambda path: os.rename(path / "b", path / "x"), DATA, NONE),
    "rename into it": ("void", lambda path: os.rename(path.parent / "sub/a", path / "x"), DATA, NONE),
    "rename out of it": ("sub", lambda path: os.rename(path / "c", path.parent / "void/x"), DATA, NONE),
    "rmdir": ("file", lambda path: os.rmdir(path.parent / "void"), NONE, DATA),
    "change of a file in it": ("sub", lambda path: (path / "a").write_text("x"), NONE, NONE),
    "chmod of a file in it": ("sub", lambda path: os.chmod(path / "c", 0o600), NONE, NONE),
    "failed create": ("sub", lambda path: outcome(os.mkdir, path / "a"), NONE, NONE),
    "failed rmdir": ("sub", lambda path: outcome(os.rmdir, path), NONE, NONE),
    "stat": ("file", os.stat, NONE, NONE),
    "utime": ("file", os.utime, ALL, NONE),
}


class TimesPart(PosixBase):
    """utimensat(2), atime, mtime, ctime and the birth time."""

    @pytest.mark.parametrize(
        "stamp", [0, 1, 999_999_999, -1, -SECOND, -1_500_000_001, (1 << 31) * SECOND, (1 << 33) * SECOND + 7, OLD]
    )
    def test_any_time(self, here: Path, stamp: int) -> None:
        """Before 1970 and after 2038 too: ext4 keeps 1901 to 2446."""
        for name in OBJECTS:
            before = os.lstat(here / name)
            os.utime(here / name, ns=(stamp, OLD + 1), follow_symlinks=False)
            assert (times(here / name)["atime"], times(here / name)["mtime"]) == (stamp, OLD + 1)
            os.utime(here / name, ns=(OLD, stamp), follow_symlinks=False)
            st = os.lstat(here / name)
            assert (st.st_atime_ns, st.st_mtime_ns) == (OLD, stamp)
            assert (st.st_mode, st.st_size, st.st_ino) == (before.st_mode, before.st_size, before.st_ino)

    def test_now_and_omit(self, here: Path) -> None:
        for name in OBJECTS:
            path = here / name
            aged(path)
            before = times(path)
            utimensat(path, OMIT, OMIT, follow=False)
            assert times(path) == before, "not even ctime"
            utimensat(path, (7, 8), OMIT, follow=False)
            assert (times(path)["atime"], times(path)["mtime"]) == (7_000_000_008, OLD)
            utimensat(path, OMIT, (9, 10), follow=False)
            assert (times(path)["atime"], times(path)["mtime"]) == (7_000_000_008, 9_000_000_010)
            marks: list[tuple[Stamp | None, Stamp | None]] = [(NOW, OMIT), (OMIT, NOW), (NOW, NOW), (None, None)]
            for atime, mtime in marks:
                begin = time.time_ns() - SECOND // 10
                os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
                utimensat(path, atime, mtime, follow=False)
                found = times(path)
                assert (found["atime"] >= begin, found["mtime"] >= begin) == (atime != OMIT, mtime != OMIT)
            assert outcome(utimensat, path, (0, SECOND), OMIT) in ("EINVAL", "ENOENT")

    def test_through_links(self, here: Path) -> None:
        os.utime(here / "sym", ns=(1, 2), follow_symlinks=False)
        os.utime(here / "sym", ns=(3, 4))
        os.utime(here / "twin1", ns=(5, 6))
        found = [os.lstat(here / name) for name in ("sym", "file", "twin2")]
        assert [st.st_mtime_ns for st in found] == [2, 4, 6]
        assert outcome(os.utime, here / "broken") == "ENOENT"
        assert outcome(os.utime, here / "loop") == "ELOOP"

    @as_root
    def test_who_may_set_them(self, here: Path, owner: Someone, stranger: Someone) -> None:
        """To now, who may write; to anything else, the owner (utimensat(2))."""
        call = "unionfs._sys.leftout.utimensat"
        for name in ("file", "sub"):
            path = here / name
            os.chown(path, OWNER, 0)
            os.chmod(path, 0o444)
            aged(path)
            cases = [((5, 0), (6, 0), "EPERM"), ((5, 0), NOW, "EPERM"), (OMIT, (6, 0), "EPERM"), (NOW, OMIT, "EPERM")]
            for atime, mtime, error in cases:
                assert outcome(owner.call, call, path, atime, mtime) == "ok"
                assert outcome(stranger.call, call, path, atime, mtime) == error
            assert outcome(stranger.call, call, path, OMIT, OMIT) == "ok"
            for both in (NOW, None):
                os.chmod(path, 0o444)
                assert outcome(owner.call, call, path, both, both) == "ok"
                assert outcome(stranger.call, call, path, both, both) == "EACCES"
                os.chmod(path, 0o666)
                assert outcome(stranger.call, call, path, both, both) == "ok"

    copy_up_keeps_mtime = True

    @pytest.mark.parametrize("how", CHANGES)
    def test_which_times_change(self, here: Path, origin: str, how: str) -> None:
        name, change, of_it, of_here = CHANGES[how]
        with Watch(here / name, here) as watch:
            change(here / name)
        # Copy-up stamps the ctime of the object and of the directory it comes into: nobody can set that one.
        by_copy_up = NONE if origin == "new" else META if self.copy_up_keeps_mtime else DATA
        for found, wanted in zip(watch.changed(), (of_it, of_here), strict=True):
            assert wanted <= found <= wanted | by_copy_up

    def test_new_objects_are_of_now(self, here: Path) -> None:
        begin = time.time_ns() - SECOND // 10
        os.mkdir(here / "d")
        os.symlink("x", here / "s")
        os.mkfifo(here / "p")
        opened(here / "f", os.O_CREAT | os.O_WRONLY)
        for name in "dspf":
            found = times(here / name)
            assert all(begin <= value <= time.time_ns() + SECOND // 10 for value in found.values())

    def test_a_rename_changes_ctime_alone(self, here: Path) -> None:
        for name in ("file", "sub", "sym", "fifo"):
            aged(here / name)
            before = times(here / name)
            os.rename(here / name, here / "x")
            after = times(here / "x")
            assert after == {**before, "ctime": after["ctime"]}
            assert after["ctime"] > before["ctime"]
            os.rename(here / "x", here / name)

    def test_removexattr_changes_ctime(self, here: Path) -> None:
        os.setxattr(here / "file", "user.x", b"1")
        with Watch(here / "file") as watch:
            os.removexattr(here / "file", "user.x")
        assert watch.changed() == [META]
        with Watch(here / "file") as watch:
            assert outcome(os.removexattr, here / "file", "user.x") == "ENODATA"
        assert watch.changed() == [NONE]

    def test_times_by_descriptor(self, here: Path) -> None:
        with opening(here / "file", os.O_RDWR) as fd, opening(here / "file", os.O_RDONLY) as reader:
            os.utime(fd, ns=(OLD, OLD))
            tick()
            before = times(fd)
            os.pwrite(fd, b"x", 0)
            os.fsync(fd)
            written = times(fd)
            assert written["atime"] == before["atime"]
            assert written["mtime"] > before["mtime"]
            assert written["mtime"] == written["ctime"]
            assert times(reader) == times(here / "file") == written
            tick()
            os.ftruncate(fd, 1)
            assert times(fd)["mtime"] > written["mtime"]

    # Access times

    def _read(self, path: Path) -> None:
        if path.is_symlink():
            os.readlink(path)
        elif path.is_dir():
            os.listdir(path)
        else:
            path.read_bytes()

    def test_reading_changes_no_other_time(self, here: Path) -> None:
        for name in ("file", "sub", "sym"):
            with Watch(here / name, here) as watch:
                self._read(here / name)
            it, above = watch.changed()
            assert it <= {"atime"}
            assert above == NONE

    def test_access_times_by_relatime(self, here: Path) -> None:
        """Reading sets atime where it is no later than mtime or ctime, or a day old (mount(8), relatime)."""
        path = here / "file"
        path.write_bytes(b"in the upper")
        now = time.time_ns()
        for atime, mtime, updated in (
            (OLD, OLD, True),
            (now - 2 * DAY, OLD, True),
            (now + 3600 * SECOND, OLD, False),
            (now + 3600 * SECOND, now + 7200 * SECOND, True),
        ):
            os.utime(path, ns=(atime, mtime))
            tick()
            opened(path, os.O_RDONLY)
            assert times(path)["atime"] == atime, "opening is not reading"
            path.read_bytes()
            assert (times(path)["atime"] != atime) == updated, (atime - now, mtime - now)

    def test_reading_copies_nothing_up(self, here: Path, origin: str) -> None:
        """So of what lies in a layer below, the access time stays."""
        if origin != "lower":
            return
        before = times(here / "file")
        tick()
        (here / "file").read_bytes()
        assert times(here / "file") == before

    # The birth time

    def test_birth_time(self, here: Path) -> None:
        begin = time.time_ns() - SECOND // 10
        os.mkdir(here / "d")
        opened(here / "f", os.O_CREAT | os.O_WRONLY)
        with opening(here, os.O_RDONLY) as fd:
            for name in (b"d", b"f"):
                born = birth_ns(fd, name)
                assert born is not None
                assert begin <= born <= time.time_ns()
                tick()
                os.utime(name, ns=(OLD, OLD), dir_fd=fd)
                os.chmod(name, 0o700, dir_fd=fd)
                os.rename(name, b"renamed", src_dir_fd=fd, dst_dir_fd=fd)
                assert birth_ns(fd, b"renamed") == born
                os.rename(b"renamed", name, src_dir_fd=fd, dst_dir_fd=fd)

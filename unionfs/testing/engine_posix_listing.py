"""Directories, read; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from unionfs._sys.leftout import DirEntry, getdents
from unionfs.testing.engine_posix_base import IN_SUB, NAMES, PosixBase, opened, opening, outcome

DOTS = {b".", b".."}
KINDS = {"file": stat.S_IFREG, "sub": stat.S_IFDIR, "sym": stat.S_IFLNK, "fifo": stat.S_IFIFO}


def read_all(fd: int, size: int = 1024) -> Iterator[DirEntry]:
    while entries := getdents(fd, size):
        yield from entries


def names(fd: int, size: int = 1024) -> list[bytes]:
    return [entry.name for entry in read_all(fd, size)]


class ListingPart(PosixBase):
    """getdents64(2), and what opendir(3), telldir(3), seekdir(3), rewinddir(3) make of it."""

    def _fill(self, directory: Path, count: int = 150) -> set[bytes]:
        found = {os.fsencode(name) for name in os.listdir(directory)} | DOTS
        for number in range(count):
            os.mknod(directory / f"entry-{number:04}")
            found.add(b"entry-%04d" % number)
        return found

    def test_entries_tell_inode_and_type(self, here: Path, origin: str) -> None:  # noqa: ARG002
        with opening(here, os.O_RDONLY) as fd:
            entries = {os.fsdecode(entry.name): entry for entry in read_all(fd)}
        assert set(entries) == NAMES | {".", ".."}
        for name, entry in entries.items():
            st = os.lstat(here / name)
            assert entry.kind == stat.S_IFMT(st.st_mode) >> 12
            # What ".." of a directory below a mountpoint tells is not what stat does, as with any mount.
            if name != "..":
                assert entry.ino == st.st_ino, name

    def test_each_name_once_whatever_the_buffer(self, here: Path) -> None:
        for directory in ("sub", "void"):
            expected = self._fill(here / directory)
            for size in (280, 1000, 4096, 1 << 20):
                with opening(here / directory, os.O_RDONLY) as fd:
                    found = names(fd, size)
                assert len(found) == len(set(found))
                assert set(found) == expected
        with opening(here / "sub", os.O_RDONLY) as fd:
            assert outcome(getdents, fd, 16) == "EINVAL"
        with opening(here / "file", os.O_RDONLY) as fd:
            assert outcome(getdents, fd) == "ENOTDIR"

    def test_seek_to_any_entry(self, here: Path) -> None:
        self._fill(here / "sub", 100)
        with opening(here / "sub", os.O_RDONLY) as fd:
            entries = list(read_all(fd))
            for at in (0, 1, 2, 17, 50, 98, len(entries) - 1):
                os.lseek(fd, entries[at].after, os.SEEK_SET)
                assert names(fd) == [entry.name for entry in entries[at + 1 :]], at
            os.lseek(fd, 0, os.SEEK_SET)
            assert names(fd) == [entry.name for entry in entries]
            assert len({entry.after for entry in entries}) == len(entries)

    def test_position_is_that_of_the_open_directory(self, here: Path) -> None:
        self._fill(here / "sub", 100)
        with opening(here / "sub", os.O_RDONLY) as fd, opening(here / "sub", os.O_RDONLY) as other:
            first = [entry.name for entry in getdents(fd)]
            copy = os.dup(fd)
            rest = names(copy)
            os.close(copy)
            assert getdents(fd) == []
            assert sorted(first + rest) == sorted(names(other))

    def test_names_that_go_while_it_is_read(self, here: Path) -> None:
        """What stays is listed once; what goes, or comes, may be (readdir(3))."""
        for directory in ("sub", "void"):
            stays = self._fill(here / directory)
            with opening(here / directory, os.O_RDONLY) as fd:
                found: list[bytes] = []
                while entries := getdents(fd):
                    for entry in entries:
                        found.append(entry.name)
                        if entry.name.endswith((b"3", b"7")):
                            os.unlink(entry.name, dir_fd=fd)
                            stays.discard(entry.name)
                assert len(found) == len(set(found))
                assert stays < set(found)
                os.lseek(fd, 0, os.SEEK_SET)
                assert set(names(fd)) == stays

    def test_names_that_come_while_it_is_read(self, here: Path) -> None:
        # ext4 may skip the dots when a directory grows beyond a block meanwhile.
        stays = self._fill(here / "sub", 200) - DOTS
        with opening(here / "sub", os.O_RDONLY) as fd:
            found = []
            number = 0
            while entries := getdents(fd):
                found += [entry.name for entry in entries]
                os.mkdir(here / "sub" / f"new-{number}")
                number += 1
                assert number < 300, "it never ends"
            assert len(found) == len(set(found))
            assert stays <= set(found)
            os.lseek(fd, 0, os.SEEK_SET)
            assert set(names(fd)) == stays | DOTS | {b"new-%d" % n for n in range(number)}

    def test_everything_goes_while_it_is_read(self, here: Path) -> None:
        """As rm -r does it: read some, remove them, read on."""
        for directory in ("sub", "void"):
            self._fill(here / directory)
            with opening(here / directory, os.O_RDONLY) as fd:
                while entries := getdents(fd):
                    for entry in entries:
                        if entry.name not in DOTS:
                            os.unlink(entry.name, dir_fd=fd)
            os.rmdir(here / directory)

    def test_a_seek_while_names_come_and_go(self, here: Path) -> None:
        self._fill(here / "sub", 100)
        with opening(here / "sub", os.O_RDONLY) as fd:
            entries = list(read_all(fd))
            kept = entries[60:]
            for entry in entries[:50]:
                if entry.name not in DOTS:
                    os.unlink(entry.name, dir_fd=fd)
            opened(here / "sub/late", os.O_CREAT | os.O_WRONLY)
            os.lseek(fd, entries[59].after, os.SEEK_SET)
            assert [name for name in names(fd) if name != b"late"] == [entry.name for entry in kept]

    def test_renames_in_a_directory_lose_no_name(self, here: Path) -> None:
        for _ in range(3):
            for name in sorted(IN_SUB):
                os.rename(here / "sub" / name, here / "sub" / f"{name}2")
                assert len(os.listdir(here / "sub")) == 3
                os.rename(here / "sub" / f"{name}2", here / "void" / name)
                os.rename(here / "void" / name, here / "sub" / name)
        assert set(os.listdir(here / "sub")) == IN_SUB

    def test_listing_errors(self, here: Path) -> None:
        for name, error in (
            ("file", "ENOTDIR"),
            ("fifo", "ENOTDIR"),
            ("missing", "ENOENT"),
            ("broken", "ENOENT"),
            ("loop", "ELOOP"),
            ("file/x", "ENOTDIR"),
        ):
            assert outcome(os.listdir, here / name) == error
        assert set(os.listdir(here / "symdir")) == IN_SUB

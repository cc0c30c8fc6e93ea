"""The bytes of files: sizes, holes, ranges, maps; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unionfs._sys.data import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from unionfs.testing.engine_posix_base import CONTENT, PosixBase, opened, opening, outcome
from unionfs.testing.someone import Someone

KEEP_SIZE, PUNCH_HOLE = FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
COLLAPSE_RANGE, ZERO_RANGE = 0x08, 0x10
BLOCK = 4096
TERABYTE = 1 << 40
RW = os.O_RDWR


class DataPart(PosixBase):
    """truncate, write, fallocate, lseek, copy_file_range, mmap."""

    # Sizes

    @pytest.mark.parametrize("by_path", [True, False])
    def test_truncate(self, here: Path, by_path: bool) -> None:
        for name in ("file", "twin2"):
            path = here / name
            with opening(path, RW) as fd:
                for size in (5, 5, 10_000, 3, 0, 1):
                    old = path.read_bytes()
                    os.truncate(path if by_path else fd, size)
                    assert path.read_bytes() == old[:size].ljust(size, b"\0")
                    assert os.fstat(fd).st_size == os.stat(path).st_size == size
        assert os.stat(here / "twin1").st_size == 1

    def test_truncate_errors(self, here: Path) -> None:
        for name, error in (
            ("sub", "EISDIR"),
            ("symdir", "EISDIR"),
            ("fifo", "EINVAL"),
            ("missing", "ENOENT"),
            ("broken", "ENOENT"),
            ("loop", "ELOOP"),
            ("file/x", "ENOTDIR"),
        ):
            assert outcome(os.truncate, here / name, 0) == error, name
        assert outcome(os.truncate, here / "file", -1) == "EINVAL"
        assert outcome(os.truncate, here / "file", (1 << 63) - 1) == "EFBIG"
        with opening(here / "file", os.O_RDONLY) as fd:
            assert outcome(os.ftruncate, fd, 0) == "EINVAL"
        os.truncate(here / "sym", 3)
        assert (here / "file").read_bytes() == CONTENT[:3]

    def test_a_terabyte_of_nothing(self, here: Path) -> None:
        path = here / "file"
        os.truncate(path, TERABYTE)
        with opening(path, RW) as fd:
            assert os.pwrite(fd, b"end", TERABYTE - 1) == 3
            assert os.pread(fd, 10, TERABYTE - 3) == b"\0\0end"
            assert os.lseek(fd, 0, os.SEEK_END) == TERABYTE + 2
            assert os.pread(fd, len(CONTENT) + 1, 0) == CONTENT + b"\0"
            assert os.pread(fd, 1, TERABYTE + 2) == b""
        st = os.stat(path)
        assert st.st_size == TERABYTE + 2
        assert st.st_blocks * 512 < 1 << 20

    def test_offsets(self, here: Path) -> None:
        with opening(here / "file", RW) as fd:
            assert os.lseek(fd, 4, os.SEEK_SET) == 4
            assert os.read(fd, 7) == CONTENT[4:11]
            assert os.lseek(fd, 0, os.SEEK_CUR) == 11
            assert os.lseek(fd, -1, os.SEEK_END) == len(CONTENT) - 1
            assert outcome(os.lseek, fd, -1, os.SEEK_SET) == "EINVAL"
            assert outcome(os.pread, fd, 1, -1) == "EINVAL"
            assert os.lseek(fd, 1000, os.SEEK_SET) == 1000
            assert os.read(fd, 10) == b""
            assert os.write(fd, b"!") == 1
            assert os.fstat(fd).st_size == 1001
            assert os.preadv(fd, [bytearray(3), bytearray(5)], 0) == 8
            assert os.pwritev(fd, [b"ab", b"", b"cd"], 2) == 4
            assert os.pread(fd, 8, 0) == b"Thabcdnt"
        with opening(here / "fifo", RW) as fd:
            assert outcome(os.lseek, fd, 0, os.SEEK_CUR) == "ESPIPE"
        with opening(here / "sub", os.O_RDONLY) as fd:
            assert outcome(os.read, fd, 1) == "EISDIR"

    def test_append_goes_to_the_end(self, here: Path) -> None:
        with opening(here / "file", RW | os.O_APPEND) as fd:
            os.lseek(fd, 0, os.SEEK_SET)
            os.write(fd, b"1")
            assert os.lseek(fd, 0, os.SEEK_CUR) == len(CONTENT) + 1
            os.truncate(here / "file", 2)
            os.write(fd, b"2")
            assert os.pread(fd, 100, 0) == CONTENT[:2] + b"2"
            with opening(here / "file", os.O_WRONLY) as other:
                os.pwrite(other, b"x" * 10, 10)
            os.write(fd, b"3")
            assert os.fstat(fd).st_size == 21
            assert os.pread(fd, 2, 19) == b"x3"

    def test_append_by_two_processes(self, here: Path, somebody: Someone) -> None:
        """No line is lost or torn."""
        theirs = somebody.open(here / "file", os.O_WRONLY | os.O_APPEND)
        with opening(here / "file", os.O_WRONLY | os.O_APPEND) as fd:
            for number in range(100):
                somebody.ask("os.write", theirs, b"theirs %03d\n" % number)
                os.write(fd, b"ours %03d\n" % number)
                somebody.answer()
        lines = (here / "file").read_bytes().splitlines(keepends=True)
        assert lines[0] == CONTENT
        assert sorted(lines[1:]) == sorted(b"%s %03d\n" % (who, n) for who in (b"ours", b"theirs") for n in range(100))

    # Holes

    def test_fallocate(self, here: Path) -> None:
        with opening(here / "file", RW) as fd:
            fallocate(fd, 0, 0, 10 * BLOCK)
            assert os.fstat(fd).st_size == 10 * BLOCK
            assert os.fstat(fd).st_blocks * 512 >= 10 * BLOCK
            fallocate(fd, KEEP_SIZE, 10 * BLOCK, 5 * BLOCK)
            assert os.fstat(fd).st_size == 10 * BLOCK
            assert os.pread(fd, 100, 0) == CONTENT + bytes(100 - len(CONTENT))
            os.pwrite(fd, b"x" * 10 * BLOCK, 0)
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, BLOCK - 1, 2 * BLOCK)
            expected = b"x" * (BLOCK - 1) + bytes(2 * BLOCK) + b"x" * (7 * BLOCK + 1)
            assert os.pread(fd, 20 * BLOCK, 0) == expected
            for mode, offset, length, error in (
                (0, 0, 0, "EINVAL"),
                (0, -1, 10, "EINVAL"),
                (0, 0, -10, "EINVAL"),
                (PUNCH_HOLE, 0, BLOCK, "ENOTSUP"),
                (0, (1 << 63) - 1, 1, "EFBIG"),
                (0x4000, 0, BLOCK, "ENOTSUP"),
            ):
                assert outcome(fallocate, fd, mode, offset, length) == error
        with opening(here / "file", os.O_RDONLY) as fd:
            assert outcome(fallocate, fd, 0, 0, BLOCK) == "EBADF"
        with opening(here / "fifo", RW) as fd:
            assert outcome(fallocate, fd, 0, 0, BLOCK) == "ESPIPE"
        with opening(here / "twin1", RW) as fd:
            os.posix_fallocate(fd, 0, BLOCK)
        assert os.stat(here / "twin2").st_size == BLOCK

    def test_fallocate_zeroes_a_range(self, here: Path) -> None:
        with opening(here / "file", RW) as fd:
            fallocate(fd, ZERO_RANGE, 4, 8)
            assert os.pread(fd, 100, 0) == CONTENT[:4] + bytes(8) + CONTENT[12:]

    def test_data_and_holes(self, here: Path) -> None:
        """The end of the file is a hole's begin; past it there is ENXIO (lseek(2))."""
        with opening(here / "file", RW) as fd:
            assert os.lseek(fd, 0, os.SEEK_DATA) == 0
            assert os.lseek(fd, 0, os.SEEK_HOLE) == len(CONTENT)
            assert outcome(os.lseek, fd, len(CONTENT), os.SEEK_DATA) == "ENXIO"
            assert outcome(os.lseek, fd, len(CONTENT), os.SEEK_HOLE) == "ENXIO"
            megabyte = 1 << 20
            os.ftruncate(fd, 3 * megabyte)
            os.pwrite(fd, b"data", 2 * megabyte)
            assert os.lseek(fd, BLOCK, os.SEEK_DATA) == 2 * megabyte
            assert os.lseek(fd, 0, os.SEEK_HOLE) == BLOCK
            assert os.lseek(fd, 2 * megabyte, os.SEEK_HOLE) == 2 * megabyte + BLOCK
            assert outcome(os.lseek, fd, 2 * megabyte + BLOCK, os.SEEK_DATA) == "ENXIO"
            assert os.lseek(fd, 0, os.SEEK_CUR) == 2 * megabyte + BLOCK
        with opening(here / "empty", os.O_RDONLY) as fd:
            assert outcome(os.lseek, fd, 0, os.SEEK_DATA) == "ENXIO"

    # From file to file

    def test_copy_file_range(self, here: Path) -> None:
        with opening(here / "file", os.O_RDONLY) as src, opening(here / "sub/b", RW) as dst:
            assert os.copy_file_range(src, dst, 5, 4, 10) == 5
            assert os.pread(dst, 100, 0) == b"b" + bytes(9) + CONTENT[4:9]
            assert os.copy_file_range(src, dst, 1000, 0) == len(CONTENT)
            assert os.copy_file_range(src, dst, 10, len(CONTENT)) == 0
            assert os.lseek(dst, 0, os.SEEK_CUR) == len(CONTENT)
            assert outcome(os.copy_file_range, dst, src, 1) == "EBADF"
            assert outcome(os.copy_file_range, dst, dst, 10, 0, 5) == "EINVAL"
        assert (here / "sub/b").read_bytes() == CONTENT
        assert os.stat(here / "file").st_size == len(CONTENT)

    def test_copy_file_range_is_a_copy(self, here: Path) -> None:
        data = os.urandom(3 * BLOCK + 5)
        (here / "big").write_bytes(data)
        with opening(here / "big", RW) as src, opening(here / "file", RW) as dst:
            done = 0
            while copied := os.copy_file_range(src, dst, len(data)):
                done += copied
            assert done == len(data)
            os.pwrite(src, b"!", 0)
            assert os.pread(dst, len(data) + 1, 0) == data

    def test_sendfile_and_readv(self, here: Path) -> None:
        with opening(here / "file", os.O_RDONLY) as src, opening(here / "empty", os.O_WRONLY) as dst:
            assert os.sendfile(dst, src, 0, 1000) == len(CONTENT)
        assert (here / "empty").read_bytes() == CONTENT

    # Open files that outlive changes

    def test_every_descriptor_sees_every_write(self, here: Path, somebody: Someone) -> None:
        """A reader that opened before the copy-up too."""
        reader = somebody.open(here / "file", os.O_RDONLY)
        assert somebody.pread(reader, 3, 0) == CONTENT[:3]
        with opening(here / "file", os.O_RDONLY) as mine, opening(here / "file", RW) as writer:
            os.pwrite(writer, b"other", 0)
            assert os.pread(mine, 100, 0) == b"other" + CONTENT[5:]
            assert somebody.pread(reader, 100, 0) == b"other" + CONTENT[5:]
            os.ftruncate(writer, 2)
            assert somebody.fstat(reader).st_size == os.fstat(mine).st_size == 2
            assert somebody.read(reader, 9) == b"ot"
            (here / "file").write_bytes(b"written anew")
            assert somebody.pread(reader, 100, 0) == b"written anew"

    # Maps

    def test_shared_maps(self, here: Path, somebody: Someone) -> None:
        """What is stored in one process's map is read by another's, by descriptor and by path."""
        size = 3 * BLOCK
        os.truncate(here / "file", size)
        fd = somebody.open(here / "file", RW)
        mapped = somebody.call("__main__.map_file", fd, size)
        assert somebody.call("__main__.load", mapped, 0, len(CONTENT)) == CONTENT
        with Someone() as third:
            other = third.call("__main__.map_file", third.open(here / "file", RW), size)
            somebody.call("__main__.store", mapped, BLOCK, b"by the map")
            assert third.call("__main__.load", other, BLOCK, BLOCK + 10) == b"by the map"
            third.call("__main__.store", other, 2 * BLOCK, b"by the other")
            assert somebody.call("__main__.load", mapped, 2 * BLOCK, 2 * BLOCK + 12) == b"by the other"
            assert third.pread(third.open(here / "file", os.O_RDONLY), 10, BLOCK) == b"by the map"
            with opening(here / "file", RW) as mine:
                assert os.pread(mine, 10, BLOCK) == b"by the map"
                os.pwrite(mine, b"by a write", 0)
            assert somebody.call("__main__.load", mapped, 0, 10) == b"by a write"
        somebody.call("__main__.flush", mapped)
        somebody.tidy()
        content = (here / "file").read_bytes()
        assert content[:10] == b"by a write"
        assert content[BLOCK:].rstrip(b"\0") == b"by the map" + bytes(BLOCK - 10) + b"by the other"

    def test_a_map_outlives_its_descriptor_and_its_name(self, here: Path, somebody: Someone) -> None:
        os.truncate(here / "file", BLOCK)
        fd = somebody.open(here / "file", RW)
        mapped = somebody.call("__main__.map_file", fd, BLOCK)
        somebody.close(fd)
        somebody.call("__main__.store", mapped, 100, b"after close")
        assert (here / "file").read_bytes()[100:111] == b"after close"
        os.unlink(here / "file")
        somebody.call("__main__.store", mapped, 0, b"after unlink")
        assert somebody.call("__main__.load", mapped, 0, 12) == b"after unlink"
        opened(here / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        assert os.stat(here / "file").st_size == 0

"""What the kernel offers and Python does not: data by the cheapest way, renames with flags, file handles."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests import support
from unionfs._sys import data, filehandle
from unionfs._sys.rename import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _forget_refusals() -> Iterator[None]:
    data._refused.clear()
    yield
    data._refused.clear()


@pytest.fixture(params=["btrfs", "xfs"])
def reflink_fs(request: pytest.FixtureRequest, scratch: Path) -> Path:
    """A file system with reflinks, on a loop device."""
    kind = request.param
    if lacking := support.lacking_programs(f"mkfs.{kind}"):
        support.lacks(lacking)
    image, top = scratch / "image", scratch / "mnt"
    with open(image, "wb") as file:
        file.truncate(400 * MIB)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    top.mkdir()
    subprocess.run(["mount", "-o", "loop", image, top], check=True)
    return top


def copy(src: Path, dst: Path, limit: int | None = None) -> os.stat_result:
    with open(src, "rb") as source, open(dst, "xb") as target:
        data.copy_data(source.fileno(), target.fileno(), os.fstat(source.fileno()), limit)
        os.fsync(target.fileno())
        assert target.tell() == 0
    return dst.stat()


def fail_with(number: int, calls: list[int] | None = None) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        if calls is not None:
            calls.append(number)
        raise OSError(number, os.strerror(number))

    return fail


def islands(path: Path) -> None:
    """Data at 1 MiB and at 5 MiB, holes around, 9 MiB in all."""
    with open(path, "wb") as file:
        for at in (1, 5):
            os.pwrite(file.fileno(), os.urandom(200_000), at * MIB)
        file.truncate(9 * MIB)


# copy_data

WAYS = {"as it comes": (None, None), "no reflink": (errno.EOPNOTSUPP, None), "by hand": (errno.EXDEV, errno.EXDEV)}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    clone, range_copy = WAYS[request.param]
    if clone is not None:
        monkeypatch.setattr(fcntl, "ioctl", fail_with(clone))
    if range_copy is not None:
        monkeypatch.setattr(os, "copy_file_range", fail_with(range_copy))
    return str(request.param)


@pytest.mark.parametrize("size", [0, 1, 4096, data._SMALL, data._SMALL + 1, 3 * MIB + 17])
def test_copy(scratch: Path, way: str, size: int) -> None:
    (scratch / "a").write_bytes(os.urandom(size))
    assert copy(scratch / "a", scratch / "b").st_size == size
    assert (scratch / "b").read_bytes() == (scratch / "a").read_bytes()


def test_copy_keeps_holes(scratch: Path, way: str) -> None:
    islands(scratch / "a")
    assert copy(scratch / "a", scratch / "b").st_blocks * 512 < MIB
    assert (scratch / "b").read_bytes() == (scratch / "a").read_bytes()


def test_copy_of_nothing_but_a_hole(scratch: Path, way: str) -> None:
    with open(scratch / "a", "wb") as file:
        file.truncate(1 << 40)
    st = copy(scratch / "a", scratch / "b")
    assert (st.st_size, st.st_blocks) == (1 << 40, 0)


@pytest.mark.parametrize("limit", [0, 1, 100_000, MIB + 5, 6 * MIB, 100 * MIB])
def test_copy_of_the_beginning(scratch: Path, way: str, limit: int) -> None:
    islands(scratch / "a")
    st = copy(scratch / "a", scratch / "b", limit)
    assert st.st_size == min(limit, 9 * MIB)
    assert (scratch / "b").read_bytes() == (scratch / "a").read_bytes()[:limit]
    assert st.st_blocks * 512 < MIB


def test_copy_where_the_file_system_has_no_seek_data(scratch: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    islands(scratch / "a")
    monkeypatch.setattr(os, "lseek", fail_with(errno.EINVAL))
    assert copy(scratch / "a", scratch / "b").st_size == 9 * MIB
    assert (scratch / "b").read_bytes() == (scratch / "a").read_bytes()


def test_copy_to_another_file_system(scratch: Path) -> None:
    if os.stat("/dev/shm").st_dev == scratch.stat().st_dev:
        pytest.skip("not applicable: one file system")
    islands(scratch / "a")
    target = Path("/dev/shm") / scratch.name
    try:
        assert copy(scratch / "a", target).st_blocks * 512 < MIB
        assert target.read_bytes() == (scratch / "a").read_bytes()
    finally:
        target.unlink()


def test_copy_goes_on_where_copy_file_range_stops(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch / "a").write_bytes(os.urandom(MIB))
    real, calls = os.copy_file_range, []

    def first_only(src: int, dst: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if len(calls) > 1:
            raise OSError(errno.EXDEV, "no")
        return real(src, dst, 300_000, *offsets)

    monkeypatch.setattr(fcntl, "ioctl", fail_with(errno.ENOTTY))
    monkeypatch.setattr(os, "copy_file_range", first_only)
    copy(scratch / "a", scratch / "b")
    assert len(calls) == 2
    assert (scratch / "b").read_bytes() == (scratch / "a").read_bytes()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_copy_tells_real_failures(scratch: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    (scratch / "a").write_bytes(os.urandom(MIB))
    for module, name in ((fcntl, "ioctl"), (os, "copy_file_range"), (os, "pwrite")):
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "ioctl", fail_with(errno.EOPNOTSUPP))
            patch.setattr(os, "copy_file_range", fail_with(errno.EXDEV))
            patch.setattr(module, name, fail_with(number))
            (scratch / "b").unlink(missing_ok=True)
            data._refused.clear()
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                copy(scratch / "a", scratch / "b")
            assert caught.value.errno == number


def test_a_refused_reflink_is_asked_for_once(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch / "a").write_bytes(bytes(MIB))
    calls: list[int] = []
    monkeypatch.setattr(fcntl, "ioctl", fail_with(errno.EOPNOTSUPP, calls))
    for number in range(5):
        copy(scratch / "a", scratch / f"b{number}")
    assert len(calls) == 1


@pytest.mark.root
@pytest.mark.loop
def test_copy_by_reflink(reflink_fs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 * MIB
    (reflink_fs / "a").write_bytes(os.urandom(MIB) * 64)
    os.sync()
    free = os.statvfs(reflink_fs).f_bfree
    for name in ("copy_file_range", "pwrite"):
        monkeypatch.setattr(os, name, fail_with(errno.EIO))
    assert copy(reflink_fs / "a", reflink_fs / "b").st_size == size
    os.sync()
    taken = (free - os.statvfs(reflink_fs).f_bfree) * os.statvfs(reflink_fs).f_frsize
    assert taken < size // 8
    assert (reflink_fs / "b").read_bytes() == (reflink_fs / "a").read_bytes()


# rename


def test_renameat2(scratch: Path) -> None:
    fd = os.open(scratch, os.O_RDONLY)
    try:
        (scratch / "a").write_text("a")
        (scratch / "b").write_text("b")
        with pytest.raises(FileExistsError) as caught:
            renameat2(fd, b"a", fd, b"b", RENAME_NOREPLACE)
        assert (caught.value.filename, caught.value.filename2) == (b"a", b"b")
        renameat2(fd, b"a", fd, b"b", RENAME_EXCHANGE)
        assert (scratch / "a").read_text() == "b"
        with pytest.raises(FileNotFoundError):
            renameat2(fd, b"a", fd, b"none", RENAME_EXCHANGE)
        renameat2(fd, b"a", fd, b"c", RENAME_NOREPLACE)
        renameat2(fd, b"c", fd, b"b", 0)
        assert (os.listdir(scratch), (scratch / "b").read_text()) == (["b"], "b")
        with pytest.raises(OSError, match="Invalid") as invalid:
            renameat2(fd, b"b", fd, b"c", 1 << 20)
        assert invalid.value.errno == errno.EINVAL
        renameat2(fd, b"b", fd, b"\xff", RENAME_WHITEOUT)
        assert sorted(os.listdir(os.fsencode(scratch))) == [b"b", b"\xff"]
        assert (scratch / "b").lstat().st_rdev == 0
    finally:
        os.close(fd)


def test_fallocate(scratch: Path) -> None:
    with open(scratch / "a", "w+b") as file:
        data.fallocate(file.fileno(), 0, 0, MIB)
        assert os.fstat(file.fileno()).st_size == MIB
        with pytest.raises(OSError, match="Invalid"):
            data.fallocate(file.fileno(), 0, 0, -1)


# File handles


def overlay(scratch: Path, *options: str) -> Path:
    for name in ("lower", "upper", "work", "merged"):
        (scratch / name).mkdir()
    (scratch / "lower/dir").mkdir()
    for name in ("file", "dir/file", "one"):
        (scratch / "lower" / name).write_text(name)
    os.link(scratch / "lower/one", scratch / "lower/two")
    os.symlink("file", scratch / "lower/link")
    os.mkfifo(scratch / "lower/fifo")
    layers = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", ",".join((layers, *options)), scratch / "merged"], check=True
    )
    return scratch / "merged"


def handle_of(path: Path) -> bytes | None:
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        uuid = filehandle.filesystem_uuid(fd)
        assert uuid is not None
        return filehandle.overlay_handle(fd, os.fsencode(path.name), uuid)
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.overlay
def test_handles_are_those_that_overlayfs_writes(scratch: Path) -> None:
    fd = os.open(scratch, os.O_RDONLY)
    if filehandle.filesystem_uuid(fd) is None:
        pytest.skip("not applicable: the kernel does not tell this file system's UUID")
    os.close(fd)
    merged = overlay(scratch, "index=on", "redirect_dir=on", "metacopy=on")
    for name in ("file", "dir", "dir/file", "one", "fifo", "link"):
        os.chown(merged / name, 1, 1, follow_symlinks=False)
    for name in ("file", "dir", "dir/file", "one", "fifo", "link"):
        origin = os.getxattr(scratch / "upper" / name, "trusted.overlay.origin", follow_symlinks=False)
        assert handle_of(scratch / "lower" / name) == origin, name
    # Hard links: the index entry is the handle in hexadecimal, and the upper's root is known by its own.
    subprocess.run(["umount", merged], check=True)
    handle = handle_of(scratch / "lower/one")
    assert handle is not None
    assert os.listdir(scratch / "work/index") == [handle.hex()]
    assert handle_of(scratch / "lower/two") == handle
    assert handle_of(scratch / "lower") == os.getxattr(scratch / "upper", "trusted.overlay.origin")


def test_no_handle_of_what_is_not_there(scratch: Path) -> None:
    fd = os.open(scratch, os.O_RDONLY)
    assert filehandle.overlay_handle(fd, b"none", bytes(16)) is None
    os.close(fd)


def test_no_uuid_where_the_kernel_tells_none() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    assert filehandle.filesystem_uuid(fd) in (None, bytes(16))
    os.close(fd)


@pytest.mark.root
def test_trusted_attributes(scratch: Path, as_user: support.AsUser) -> None:
    fd = os.open(scratch, os.O_RDONLY)
    assert filehandle.can_use_trusted(fd)
    assert os.listxattr(fd) == []
    os.close(fd)
    code = "import os; from unionfs._sys.filehandle import *; print(can_use_trusted(os.open('.', os.O_RDONLY)))"
    assert as_user.python(code).stdout == "False\n"

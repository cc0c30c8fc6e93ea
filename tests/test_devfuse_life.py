"""The life of a mount through /dev/fuse: what it forgets, what waits for what, what is seen at once, how it ends."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import unionfs.mount
from tests import support
from tests.served import Served
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import LayerDir
from unionfs.testing.engine_base import elsewhere
from unionfs.testing.someone import Someone
from unionfs.union.fs import UnionFS

pytestmark = [pytest.mark.fuse, pytest.mark.root]

WAYS: dict[str, dict[str, Any]] = {
    "alone": {"sole": True},
    "alone, no passthrough": {"sole": True, "passthrough": False},
    "shared": {},
}
WITHIN = 10.0
"""Seconds, for what ought to take none, on a machine that does much else."""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def top(scratch: Path) -> Path:
    for name in ("top", "middle", "bottom", "upper", "work", "mnt"):
        (scratch / name).mkdir()
    scratch.chmod(0o755)
    (scratch / "top/t").write_bytes(b"top")
    (scratch / "middle/m").write_bytes(b"m" * 10_000)
    (scratch / "bottom/b").write_bytes(b"bottom")
    (scratch / "upper/u").write_bytes(b"u" * 10_000)
    return scratch


@pytest.fixture(params=WAYS)
def served(top: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    with Served(top, **WAYS[request.param]) as made:
        yield made


@pytest.fixture
def shared(top: Path) -> Iterator[Served]:
    with Served(top) as made:
        yield made


@contextlib.contextmanager
def opening(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


# What is forgotten

KNOWN = "len(mounted._nodes.nodes)"
OBJECTS = "sum(type(thing).__name__ == 'FileNode' for thing in gc.get_objects())"


def numbers(directory: Path) -> str:
    find = ["find", str(directory), "-printf", "%i %P\n"]
    return "\n".join(sorted(subprocess.run(find, capture_output=True, text=True, check=True).stdout.splitlines()))


def resident(pid: int) -> int:
    """KiB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


@pytest.mark.parametrize("way", ["alone", "shared"])
def test_memory_goes_with_what_the_kernel_remembers(top: Path, way: str) -> None:
    for number in range(8):
        for layer in ("top", "middle", "bottom"):
            directory = top / layer / f"d{number}"
            directory.mkdir()
            for name in range(100):
                (directory / f"{layer}-{name}").touch()
    with Served(top, **WAYS[way]) as served:
        before = numbers(served.mnt)
        assert before.count("\n") == 8 * 100 * 3 + 8 + 4
        sizes = []
        for _ in range(3):
            assert numbers(served.mnt) == before
            subprocess.run(["ls", "-lR", served.mnt], stdout=subprocess.DEVNULL, check=True)
            deadline = time.monotonic() + WITHIN
            while served.do(KNOWN) > 100 and time.monotonic() < deadline:
                Path("/proc/sys/vm/drop_caches").write_text("2")
            assert served.do(KNOWN) <= 100
            assert served.do(OBJECTS) <= 100
            sizes.append(resident(served.pid))
        assert sizes[-1] - sizes[1] < 2000, "KiB more after each walk"
        (served.mnt / "d1/top-1").write_text("changed")
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert numbers(served.mnt) == before


def test_what_is_open_or_was_changed_survives_that_the_rest_is_forgotten(served: Served) -> None:
    os.link(served.mnt / "b", served.mnt / "b2")
    with opening(served.mnt / "u", os.O_RDWR) as fd, opening(served.mnt / "t", os.O_RDONLY) as reader:
        os.unlink(served.mnt / "u")
        before = [os.fstat(fd).st_ino, os.fstat(reader).st_ino, os.stat(served.mnt / "b").st_ino]
        for _ in range(3):
            Path("/proc/sys/vm/drop_caches").write_text("2")
            os.listdir(served.mnt)
        assert before == [os.fstat(fd).st_ino, os.fstat(reader).st_ino, os.stat(served.mnt / "b2").st_ino]
        os.pwrite(fd, b"U", 0)
        assert os.pread(fd, 2, 0) == b"Uu"
        (served.mnt / "t").write_bytes(b"TOP")
        assert os.pread(reader, 3, 0) == b"TOP"
    assert os.stat(served.mnt / "b").st_nlink == 2


OPERATIONS = """
import os, sys
os.chdir(sys.argv[1])
for number in range(int(sys.argv[2])):
    name = f"n{number % 7}"
    with open(name, "wb") as file:
        file.write(b"x" * 100)
    with open(name, "rb") as file, open(name, "r+b") as other:
        other.write(file.read())
    os.link(name, "link")
    os.rename("link", "renamed")
    os.unlink("renamed")
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"x")
    os.close(fd)
    os.mkdir("dir")
    os.listdir("dir")
    os.rmdir("dir")
    os.chmod("m", 0o600 + number % 2)
    fd = os.open(name, os.O_RDWR)
    os.unlink(name)
    os.write(fd, b"x")
    os.close(fd)
    os.stat("b")
    try:
        os.open("missing/name", os.O_RDONLY)
    except FileNotFoundError:
        pass
"""


def test_no_descriptor_is_left_open(served: Served) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{served.pid}/fd"))

    elsewhere(OPERATIONS, served.mnt, "50")
    time.sleep(0.1)  # close(2) does not wait for the RELEASE.
    before = descriptors()
    elsewhere(OPERATIONS, served.mnt, "250")
    until(lambda: descriptors() <= before)
    assert served.do("len(mounted._files._handles), len(mounted._files._opens), len(tree.orphans)") == (0, 0, 0)


# What waits for what


class Waiting:
    """An open file whose bytes come when the event is set."""

    def __init__(self, file: Any, event: threading.Event) -> None:
        self._file, self._event = file, event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def fileno(self) -> int | None:
        """For who copies by descriptor."""
        self._event.wait(60)
        found: int | None = self._file.fileno()
        return found

    def readinto(self, buffer: memoryview, offset: int, wait: bool = True) -> int:
        self._event.wait(60)
        return int(self._file.readinto(buffer, offset, wait))


class SlowLayer(DirectoryLayer):
    """The bytes of `slow-…` come late."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.event = threading.Event()

    def open(self, d: LayerDir, name: bytes, flags: int) -> Any:
        file = super().open(d, name, flags)
        return Waiting(file, self.event) if name.startswith(b"slow") else file


@pytest.fixture(params=[True, False], ids=["alone", "shared"])
def slow(top: Path, request: pytest.FixtureRequest) -> Iterator[SlowLayer]:
    for name in ("slow-bytes", "slow-open"):
        (top / "bottom" / name).write_bytes(b"slow" * 200_000)
    layer = SlowLayer(top / "bottom")
    fs = UnionFS(lower=[top / "top", top / "middle", layer], upper=top / "upper", work=top / "work")
    with fs, unionfs.mount.mount(fs, top / "mnt", engine="devfuse", sole=request.param):
        try:
            yield layer
        finally:
            layer.event.set()


def the_rest_works(mnt: Path, quick: Someone) -> None:
    """All kinds of requests, in the same directory."""
    begun = time.monotonic()
    fd = quick.open(mnt / "new", os.O_RDWR | os.O_CREAT)
    assert quick.write(fd, b"quick") == 5
    assert quick.pread(fd, 5, 0) == b"quick"
    quick.fsync(fd)
    quick.close(fd)
    quick.rename(mnt / "new", mnt / "newer")
    quick.unlink(mnt / "newer")
    assert "slow-bytes" in quick.listdir(mnt)
    assert quick.stat(mnt / "slow-open").st_size == quick.stat(mnt / "slow-bytes").st_size == 800_000
    quick.chmod(mnt / "m", 0o600)  # A copy-up.
    fd = quick.open(mnt / "b", os.O_RDWR)  # Another one.
    assert quick.pread(fd, 6, 0) == b"bottom"
    quick.close(fd)
    assert time.monotonic() - begun < WITHIN


def test_a_slow_read_stalls_no_other(top: Path, slow: SlowLayer) -> None:
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Someone()) for _ in range(4)]
        quick = stack.enter_context(Someone())
        # Open first: to open a file that others may change, the kernel waits for pages of it that are on the way.
        fds = [reader.open(top / "mnt/slow-bytes", os.O_RDONLY) for reader in readers]
        for reader, fd in zip(readers, fds, strict=True):
            reader.ask("os.pread", fd, 8, 0)
        the_rest_works(top / "mnt", quick)
        assert all(reader.waits() for reader in readers)
        slow.event.set()
        assert [reader.answer() for reader in readers] == [b"slowslow"] * 4


def test_a_slow_copy_up_stalls_no_other_and_keeps_the_order(top: Path, slow: SlowLayer) -> None:
    """Two writers of the file that is being copied up: nothing of what they append is lost, nor what was there."""
    with Someone() as first, Someone() as second, Someone() as quick:
        path = top / "mnt/slow-open"
        for writer in (first, second):
            writer.ask("os.open", path, os.O_WRONLY | os.O_APPEND)
        the_rest_works(top / "mnt", quick)
        assert first.waits()
        assert second.waits()
        slow.event.set()
        fds = [first.answer(), second.answer()]
        for number in range(20):
            for writer, fd in zip((first, second), fds, strict=True):
                writer.write(fd, b"%04d" % number)
        fd = quick.open(path, os.O_RDONLY)
        assert quick.pread(fd, 400, 799_996) == b"slow" + b"".join(b"%04d" % number * 2 for number in range(20))


# What the API changes is seen through the mount


def test_changes_through_the_api_are_seen_in_open_files_and_maps(shared: Served) -> None:
    with opening(shared.mnt / "u", os.O_RDONLY) as fd, mmap.mmap(fd, 10_000, access=mmap.ACCESS_READ) as mapped:
        assert (os.pread(fd, 2, 0), mapped[:2], mapped[9998:]) == (b"uu", b"uu", b"uu")
        shared.do("fs.path('/u').open('r+b').write(b'NEW')")
        assert os.pread(fd, 4, 0) == b"NEWu"
        until(lambda: mapped[:4] == b"NEWu")
        shared.do("os.truncate(0, 0) if False else fs.truncate('/u', 4)")
        assert os.fstat(fd).st_size == 4
        shared.do("fs.unlink('/u')")
        assert not (shared.mnt / "u").exists()
        assert os.pread(fd, 4, 0) == b"NEWu"


def test_names_through_the_api_are_seen_at_once(shared: Served) -> None:
    for number in range(10):
        assert not (shared.mnt / "x").exists()
        shared.do("fs.rename('/b', '/x')")
        assert (shared.mnt / "x").read_bytes() == b"bottom"
        assert not (shared.mnt / "b").exists()
        assert sorted(os.listdir(shared.mnt)) == ["m", "t", "u", "x"]
        shared.do(f"fs.mkdir('/d{number}')")
        assert (shared.mnt / f"d{number}").is_dir()
        shared.do(f"fs.rmdir('/d{number}')")
        shared.do("fs.rename('/x', '/b')")


# Files that the kernel reads and writes past us


def frozen(served: Served, name: str) -> bytes:
    """The bytes in the newest frozen layer."""
    layers = served.top / "upper.layers"
    return (layers / max(os.listdir(layers)) / name).read_bytes()


def test_a_commit_while_a_writer_goes_on(shared: Served) -> None:
    with opening(shared.mnt / "u", os.O_RDWR) as fd:
        os.pwrite(fd, b"before", 0)
        shared.do("fs.commit() and None")
        os.pwrite(fd, b"after!", 0)
        assert os.pread(fd, 6, 0) == b"after!"
        assert frozen(shared, "u")[:7] == b"beforeu"
        assert (shared.mnt / "u").read_bytes()[:6] == b"after!"
    assert (shared.top / "upper/u").read_bytes()[:6] == b"after!"


def test_a_commit_while_only_readers_are_left(shared: Served) -> None:
    """What is open past us has one backing file as long as anybody has it open, who only reads too."""
    with contextlib.ExitStack() as stack:
        with opening(shared.mnt / "u", os.O_RDWR) as fd:
            reader = stack.enter_context(opening(shared.mnt / "u", os.O_RDONLY))
            os.pwrite(fd, b"before", 0)
        until(lambda: shared.do("len(mounted._files._handles)") == 1)
        shared.do("fs.commit() and None")
        with opening(shared.mnt / "u", os.O_RDWR) as fd:
            os.pwrite(fd, b"after!", 0)
            assert os.pread(fd, 6, 0) == os.pread(reader, 6, 0) == b"after!"
        assert frozen(shared, "u")[:7] == b"beforeu"
        assert shared.do("fs.path('/u').read_bytes()[:6]") == b"after!"


def test_the_api_knows_what_is_written_past_us(shared: Served) -> None:
    for _ in range(3):  # What is asked for twice, is kept.
        assert shared.do("fs.stat('/u').st_size") == 10_000
    with opening(shared.mnt / "u", os.O_WRONLY) as fd:
        os.pwrite(fd, b"x" * 5, 20_000)
        assert shared.do("fs.stat('/u').st_size") == 20_005
        os.ftruncate(fd, 7)
        assert shared.do("fs.stat('/u').st_size") == 7
        os.pwrite(fd, b"y", 99)
        assert shared.do("fs.path('/u').read_bytes()") == b"uuuuuuu".ljust(99, b"\0") + b"y"
    assert shared.do("fs.stat('/u').st_size") == 100


def test_direct_and_sparse(served: Served) -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[:] = b"d" * mmap.PAGESIZE
    for name in ("u", "b", "new"):
        with opening(served.mnt / name, os.O_RDWR | os.O_CREAT) as fd, \
                opening(served.mnt / name, os.O_RDWR | os.O_DIRECT) as direct:  # fmt: skip
            os.pwrite(fd, b"buffered", 8 * mmap.PAGESIZE)
            assert os.pwritev(direct, [page], 4 * mmap.PAGESIZE) == mmap.PAGESIZE
            assert os.pread(fd, 4, 4 * mmap.PAGESIZE) == b"dddd"
            assert os.preadv(direct, [page], 8 * mmap.PAGESIZE) == 8
            assert page[:8] == b"buffered"
            page[:8] = b"d" * 8
            os.fsync(fd)
            assert os.lseek(fd, 5 * mmap.PAGESIZE, os.SEEK_DATA) == 8 * mmap.PAGESIZE
            assert os.lseek(fd, 4 * mmap.PAGESIZE, os.SEEK_HOLE) == 5 * mmap.PAGESIZE


def test_set_user_id_goes_when_a_user_writes_to_what_root_has_open(served: Served) -> None:
    path = served.mnt / "u"
    with Someone(support.UNPRIVILEGED, support.UNPRIVILEGED) as user, opening(path, os.O_RDWR) as fd:
        os.chmod(path, 0o4777)
        there = user.open(path, os.O_RDWR)
        user.pwrite(there, b"x", 0)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o777
        user.close(there)
        os.chmod(path, 0o4777)
        os.pwrite(fd, b"x", 0)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o4777, "root keeps them"


def test_shared_maps_write_to_disk(served: Served) -> None:
    for name in ("u", "b"):
        with opening(served.mnt / name, os.O_RDWR) as fd, mmap.mmap(fd, 6) as mapped:
            mapped[:3] = b"MAP"
            assert os.pread(fd, 3, 0) == b"MAP"
            with opening(served.mnt / name, os.O_RDONLY) as reader:
                assert os.pread(reader, 3, 0) == b"MAP"
            mapped.flush()
        assert (served.top / "upper" / name).read_bytes()[:3] == b"MAP"


# The end


def test_killed_with_files_open_and_maps_dirty(top: Path) -> None:
    served = Served(top, sole=True)
    hang = "import os, sys; os.chdir(sys.argv[1]); print(flush=True); sys.stdin.read(); os.listdir('.')"
    with subprocess.Popen(
        [sys.executable, "-c", hang, served.mnt], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process, opening(served.mnt / "b", os.O_RDWR) as fd:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        os.pwrite(fd, b"synced", 0)
        os.fsync(fd)
        (served.mnt / "new").write_bytes(b"closed")
        served.kill()
        with pytest.raises(OSError):
            os.listdir(served.mnt)
        _, said = process.communicate(b"", timeout=30)
        assert process.returncode == 1
        assert b"OSError" in said
        command = [sys.executable, "-m", "unionfs.cli", "umount", str(served.mnt)]
        subprocess.run(command, check=True, timeout=30, cwd=support.REPO)
    assert (top / "upper/b").read_bytes() == b"synced"
    with Served(top) as again:
        assert (again.mnt / "b").read_bytes() == b"synced"
        assert (again.mnt / "new").exists()


def test_a_hundred_thousand_names(top: Path) -> None:
    for layer in ("top", "middle", "bottom"):
        (top / layer / "many").mkdir()
    with Served(top, sole=True) as served:
        code = "import os, sys\nos.chdir(sys.argv[1])\nfor i in range(33_334): os.mknod('%s-%d' % (sys.argv[2], i))"
        for layer in ("top", "middle", "bottom"):
            elsewhere(code, top / layer / "many", layer)
        names = os.listdir(served.mnt / "many")
        assert len(names) == len(set(names)) == 100_002

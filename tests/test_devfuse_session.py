"""The conversation of the /dev/fuse engine, with a kernel of the test's own: a socket in place of the device."""

from __future__ import annotations

import errno
import logging
import os
import resource
import stat
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from types import SimpleNamespace

import pytest

import unionfs.mount
from tests.fakekernel import SOON, Kernel
from unionfs.errors import MountError
from unionfs.mount import Mount
from unionfs.mount.devfuse import mounting, session, wire
from unionfs.mount.devfuse.session import LATER, Handler, Session
from unionfs.testing.engine_base import fails
from unionfs.union.fs import UnionFS

ALL = 2**64 - 1
LINUX_6_1 = 2**31 - 1 & ~wire.INIT_EXT


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    read = os.readv

    def readv(fd: int, buffers: list[memoryview]) -> int:
        count = read(fd, buffers)
        if not count and stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return count

    monkeypatch.setattr(os, "readv", readv)
    made = Kernel()
    yield made
    made.end()


# Session


class Served:
    """A session with handlers of the test's own; opcode 1 is quick, 2 blocks till ``go``, 3 says so before."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.go = threading.Event()
        self.ended = threading.Event()
        self.running = 0
        self.most = 0
        self.order: list[bytes] = []
        self._lock = threading.Lock()
        self.handlers: dict[int, Handler] = {1: self._quick, 2: self._slow, 3: self._later}
        self.session = Session(kernel.fd, self.handlers, "test session", self.ended.set)
        self.session.start()

    def _quick(self, h: object, body: memoryview, out: memoryview, wait: bool) -> int:
        self.order.append(bytes(body))
        out[: len(body)] = body
        return len(body)

    def _slow(self, h: object, body: memoryview, out: memoryview, wait: bool) -> int:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        content = bytes(body)
        self.go.wait(60)
        with self._lock:
            self.running -= 1
        assert bytes(body) == content, "another request came into this one's buffer"
        out[: len(body)] = body
        return len(body)

    def _later(self, h: object, body: memoryview, out: memoryview, wait: bool) -> int:
        return self._slow(h, body, out, wait) if wait else LATER

    def raising(self, error: BaseException) -> None:
        def handler(*_: object) -> int:
            raise error

        self.handlers[4] = handler

    def threads(self) -> int:
        return sum(thread.name == "test session" for thread in threading.enumerate())


@pytest.fixture
def served(kernel: Kernel) -> Iterator[Served]:
    made = Served(kernel)
    yield made
    made.go.set()
    kernel.end()
    assert made.session.join(SOON)
    assert made.ended.is_set()
    assert not made.threads()
    with fails(errno.EBADF):
        os.fstat(kernel.fd)


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_answers_in_the_order_of_requests(served: Served) -> None:
    asked = [(served.kernel.ask(1, body=b"%d" % number), b"%d" % number) for number in range(100)]
    assert all(served.kernel.answer(unique) == body for unique, body in asked)
    assert served.order == [body for _, body in asked]
    assert served.threads() == 1


@pytest.mark.parametrize("error", [
    RuntimeError("a bug"), KeyError(1), MemoryError(), SystemExit(1), KeyboardInterrupt(),
    OSError("without a number"), OSError(0, "none"), OSError(512, "the kernel's own"), OSError(-5, "negative"),
    OSError(2**40, "no errno at all"),
], ids=repr)  # fmt: skip
def test_a_handler_that_fails(served: Served, caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    served.raising(error)
    with fails(errno.EIO):
        served.kernel.call(4)
    assert served.kernel.call(1, body=b"alive") == b"alive"
    assert len(errors(caplog)) == 1
    assert "\n" not in errors(caplog)[0].getMessage()


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EDQUOT, 511])
def test_an_errno_is_passed_on(served: Served, caplog: pytest.LogCaptureFixture, code: int) -> None:
    served.raising(OSError(code, "as it is"))
    with pytest.raises(OSError) as caught:
        served.kernel.call(4)
    assert caught.value.errno == code
    assert not errors(caplog)


@pytest.mark.parametrize("opcode", [5, 999, 2**32 - 1])
def test_unknown_requests(served: Served, caplog: pytest.LogCaptureFixture, opcode: int) -> None:
    with fails(errno.ENOSYS):
        served.kernel.call(opcode)
    assert not errors(caplog)


@pytest.mark.parametrize("opcode", [2, 3], ids=["unforeseen", "announced"])
def test_a_slow_request_stalls_no_other(served: Served, opcode: int) -> None:
    slow = [served.kernel.ask(opcode, body=b"slow %d" % number) for number in range(5)]
    for number in range(20):
        assert served.kernel.call(1, body=b"%d" % number) == b"%d" % number
    assert all(map(served.kernel.waits, slow))
    served.go.set()
    assert [served.kernel.answer(unique) for unique in slow] == [b"slow %d" % number for number in range(5)]
    assert served.kernel.call(1, body=b"after") == b"after"


def test_a_slow_request_after_a_long_rest(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watches an idle session; whoever comes then is watched again, at whatever moment."""
    monkeypatch.setattr(session, "_MOMENT", 0.001)
    for turn in range(20):
        served.go.clear()
        served.kernel.call(1)
        time.sleep(0.04 + turn * 0.002)
        slow = served.kernel.ask(2)
        assert served.kernel.call(1, body=b"quick") == b"quick"
        served.go.set()
        served.kernel.answer(slow)


def test_threads_are_bounded(served: Served) -> None:
    slow = [served.kernel.ask(3) for _ in range(60)]
    deadline = time.monotonic() + SOON
    while served.running < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert 20 <= served.threads() <= 32
    served.go.set()
    for unique in slow:
        served.kernel.answer(unique)
    assert 20 <= served.most <= 32


def test_the_end_waits_for_what_is_being_answered(served: Served) -> None:
    served.kernel.ask(3)
    served.kernel.call(1)
    served.kernel.end()
    assert not served.session.join(0.05)
    assert not served.ended.is_set()
    served.go.set()
    assert served.session.join(SOON)


# Mounts


@pytest.fixture
def fs(scratch: Path) -> Iterator[UnionFS]:
    for name in ("top", "middle", "bottom"):
        (scratch / name / "d").mkdir(parents=True)
        (scratch / name / f"d/{name}").write_text(name)
    for name in ("upper", "work", "mnt"):
        (scratch / name).mkdir()
    lower = [scratch / name for name in ("top", "middle", "bottom")]
    with UnionFS(lower=lower, upper=scratch / "upper", work=scratch / "work") as made:
        yield made


class Mounting:
    """Mounts with the test's kernel. ``agreed`` and ``init`` are what INIT was answered."""

    def __init__(self, kernel: Kernel, fs: UnionFS, mountpoint: Path) -> None:
        self._kernel, self._fs, self._mountpoint = kernel, fs, mountpoint
        self._mounted: Mount | None = None

    def __call__(
        self, features: int = ALL, *, minor: int = wire.MINOR, major: int = wire.MAJOR, **options: object
    ) -> None:
        unique = self._kernel.offer(features, minor=minor, major=major)
        self._mounted = unionfs.mount.mount(self._fs, self._mountpoint, engine="devfuse", **options)
        self.init = wire.INIT_OUT.unpack(self._kernel.answer(unique))
        self.agreed = self.init[3] | self.init[10] << 32

    def end(self) -> None:
        self._kernel.end()
        if self._mounted is not None:
            assert self._mounted.wait(SOON)


@pytest.fixture
def mount(kernel: Kernel, fs: UnionFS, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mounting]:
    shown = SimpleNamespace(fstype="fuse.unionfs", device="0:0")
    monkeypatch.setattr(mounting, "_connect", lambda *_: kernel.fd)
    monkeypatch.setattr(mounting, "mountinfo", SimpleNamespace(mount_at=lambda _: shown))
    monkeypatch.setattr(mounting.DevfuseEngine, "lacking", lambda _: None)
    made = Mounting(kernel, fs, scratch / "mnt")
    yield made
    made.end()


def look(kernel: Kernel, name: bytes, directory: int = wire.ROOT_ID) -> int:
    """The number of what LOOKUP finds."""
    return int(wire.ENTRY_OUT.unpack(kernel.call(wire.LOOKUP, directory, name + b"\0"))[0])


def create(kernel: Kernel, name: bytes, flags: int = os.O_RDWR) -> tuple[int, int, int]:
    """Node, open file, and how it is open."""
    body = wire.CREATE_IN.pack(flags | os.O_CREAT, 0o100644, 0o022, 0) + name + b"\0"
    answer = kernel.call(wire.CREATE, wire.ROOT_ID, body)
    node = wire.ENTRY_OUT.unpack_from(answer)[0]
    fh, how, _ = wire.OPEN_OUT.unpack_from(answer, wire.ENTRY_OUT.size)
    return node, fh, how


def write(kernel: Kernel, node: int, fh: int, data: bytes, offset: int = 0) -> None:
    body = wire.RW_IN.pack(fh, offset, len(data), 0, 0, 0, 0) + data
    assert wire.WRITE_OUT.unpack(kernel.call(wire.WRITE, node, body)) == (len(data),)


def read(kernel: Kernel, node: int, fh: int, size: int = 100, offset: int = 0) -> bytes:
    return kernel.call(wire.READ, node, wire.RW_IN.pack(fh, offset, size, 0, 0, 0, 0))


def works(kernel: Kernel) -> None:
    """A round of everything."""
    node, fh, how = create(kernel, b"new")
    assert not how & wire.FOPEN_PASSTHROUGH
    write(kernel, node, fh, b"content")
    assert read(kernel, node, fh) == b"content"
    kernel.call(wire.RELEASE, node, wire.RELEASE_IN.pack(fh, 0, 0, 0))
    assert set(plain_names(kernel, wire.ROOT_ID)) == {b".", b"..", b"d", b"new"}
    for name in (b"top", b"middle", b"bottom"):
        look(kernel, name, look(kernel, b"d"))
    kernel.call(wire.UNLINK, wire.ROOT_ID, b"new\0")
    kernel.forget(node, 1)


def plain_names(kernel: Kernel, node: int) -> list[bytes]:
    """What READDIR lists."""
    found, offset = [], 0
    while data := kernel.call(wire.READDIR, node, wire.RW_IN.pack(0, offset, 128, 0, 0, 0, 0)):
        at = 0
        while at < len(data):
            _, offset, length, _ = wire.DIRENT.unpack_from(data, at)
            found.append(data[at + wire.DIRENT.size :][:length])
            at += (wire.DIRENT.size + length + 7) & ~7
    return found


def test_all_that_a_kernel_offers(kernel: Kernel, mount: Mounting) -> None:
    mount(sole=True)
    major, minor, ahead, _, background, congestion, most, grain, pages, _, _, depth = mount.init
    assert (major, minor) == (wire.MAJOR, wire.MINOR)
    assert (most, pages * wire.PAGE, grain) == (1 << 20, 1 << 20, 1)
    assert ahead >= 1 << 20
    assert 0 < congestion <= background
    wanted = (
        wire.DO_READDIRPLUS | wire.PARALLEL_DIROPS | wire.CACHE_SYMLINKS | wire.NO_OPENDIR_SUPPORT
        | wire.HANDLE_KILLPRIV_V2 | wire.POSIX_ACL | wire.MAX_PAGES | wire.DONT_MASK | wire.ATOMIC_O_TRUNC
    )  # fmt: skip
    assert mount.agreed & wanted == wanted
    if os.geteuid() == 0:
        # One excludes the other.
        assert mount.agreed & (wire.PASSTHROUGH | wire.WRITEBACK_CACHE) == wire.PASSTHROUGH
        assert depth == 1


@pytest.mark.parametrize("sole", [False, True])
@pytest.mark.parametrize(("features", "minor"), [
    (LINUX_6_1, 36), (LINUX_6_1, 37), (LINUX_6_1 | wire.INIT_EXT, 37), (ALL, 99),
    *((ALL & ~feature, wire.MINOR) for feature in (
        wire.PASSTHROUGH, wire.WRITEBACK_CACHE, wire.DO_READDIRPLUS | wire.READDIRPLUS_AUTO, wire.POSIX_ACL,
        wire.HANDLE_KILLPRIV_V2, wire.CACHE_SYMLINKS, wire.PARALLEL_DIROPS, wire.AUTO_INVAL_DATA)),
])  # fmt: skip
def test_what_a_kernel_does_not_offer(kernel: Kernel, mount: Mounting, sole: bool, features: int, minor: int) -> None:
    """It is not agreed on, and all goes on without it; the socket refuses passthrough, too."""
    mount(features, minor=minor, sole=sole)
    assert not mount.agreed & ~features
    assert mount.init[1] <= min(minor, wire.MINOR)
    if not features & wire.INIT_EXT:
        assert not mount.agreed >> 32
    assert bool(mount.init[11]) == bool(mount.agreed & wire.PASSTHROUGH)
    works(kernel)


@pytest.mark.parametrize("features", [ALL, ALL & ~wire.NO_OPENDIR_SUPPORT])
def test_opening_directories(kernel: Kernel, mount: Mounting, features: int) -> None:
    """ENOSYS means "do without" only to a kernel that says so."""
    mount(features, sole=True)
    if mount.agreed & wire.NO_OPENDIR_SUPPORT:
        with fails(errno.ENOSYS):
            kernel.call(wire.OPENDIR, wire.ROOT_ID, wire.OPEN_IN.pack(0, 0))
    else:
        kernel.call(wire.OPENDIR, wire.ROOT_ID, wire.OPEN_IN.pack(0, 0))
    works(kernel)


@pytest.mark.parametrize("offered", [True, False])
def test_writes_that_the_kernel_gathers(kernel: Kernel, mount: Mounting, offered: bool) -> None:
    """It reads the rest of a page from a file that was opened to be written only."""
    mount(ALL if offered else ALL & ~wire.WRITEBACK_CACHE, sole=True, passthrough=False)
    assert bool(mount.agreed & wire.WRITEBACK_CACHE) == offered
    assert not mount.agreed & wire.PASSTHROUGH
    node, _, _ = create(kernel, b"file")
    opened = kernel.call(wire.OPEN, node, wire.OPEN_IN.pack(os.O_WRONLY | os.O_APPEND, 0))
    fh, _, _ = wire.OPEN_OUT.unpack(opened)
    write(kernel, node, fh, b"first")
    # Appending is in the kernel's offsets.
    write(kernel, node, fh, b"F", 0)
    if offered:
        assert read(kernel, node, fh) == b"First"
    else:
        with fails(errno.EBADF):
            read(kernel, node, fh)


def test_no_writes_are_gathered_where_others_look(mount: Mounting) -> None:
    mount(ALL & ~wire.PASSTHROUGH)
    assert not mount.agreed & wire.WRITEBACK_CACHE
    assert mount.agreed & wire.AUTO_INVAL_DATA


def test_acls_go_with_the_kernels_own_checks(mount: Mounting) -> None:
    mount(default_permissions=False)
    assert not mount.agreed & wire.POSIX_ACL


@pytest.mark.parametrize(("major", "minor"), [(7, 35), (7, 0), (6, 40), (8, 0)])
def test_another_protocol(mount: Mounting, major: int, minor: int) -> None:
    with pytest.raises(MountError, match=rf"FUSE {major}\.{minor}\b.*6\.1") as caught:
        mount(major=major, minor=minor)
    assert caught.value.errno == errno.EPROTONOSUPPORT


def test_a_kernel_that_says_nothing(mount: Mounting, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "_ANSWER_WITHIN", 0.05)
    monkeypatch.setattr(kernel, "offer", lambda *_, **__: 0)
    with pytest.raises(MountError) as caught:
        mount()
    assert caught.value.errno == errno.ETIMEDOUT


def test_a_connection_with_a_high_number(mount: Mounting, kernel: Kernel) -> None:
    """A process may have thousands of files open, a union thousands of layers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip("not applicable: so many files may not be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    try:
        os.dup2(kernel.fd, 4500, inheritable=False)
        os.close(kernel.fd)
        kernel.fd = 4500
        mount(sole=True)
        works(kernel)
        mount.end()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# What the kernel knows


def known(kernel: Kernel, node: int) -> bool:
    try:
        return bool(kernel.call(wire.GETATTR, node, wire.GETATTR_IN.pack(0, 0)))
    except OSError:
        return False


@pytest.mark.parametrize("sole", [False, True])
@pytest.mark.parametrize("name", [b"top", b"bottom"])
def test_a_node_is_known_till_as_many_forgets_as_answers(
    kernel: Kernel, mount: Mounting, sole: bool, name: bytes
) -> None:
    mount(sole=sole)
    directory = look(kernel, b"d")
    numbers = {look(kernel, name, directory) for _ in range(5)}
    assert len(numbers) == 1
    (node,) = numbers
    kernel.forget(node, 2)
    one = wire.FORGET_ONE.pack(node, 1)
    kernel.ask(wire.BATCH_FORGET, 0, wire.FORGET_COUNT.pack(2) + one + one, unique=0)
    assert known(kernel, node)
    kernel.forget(node, 1)
    assert not known(kernel, node)
    assert known(kernel, look(kernel, name, directory))
    assert known(kernel, directory)


@pytest.mark.parametrize("sole", [False, True])
def test_a_listing_with_attributes_counts_as_answers(kernel: Kernel, mount: Mounting, sole: bool) -> None:
    mount(sole=sole)
    directory = look(kernel, b"d")
    nodes: dict[bytes, int] = {}
    for times in (1, 2):
        data = kernel.call(wire.READDIRPLUS, directory, wire.RW_IN.pack(0, 0, 4096, 0, 0, 0, 0))
        at = 0
        while at < len(data):
            entry = wire.DIRENTPLUS.unpack_from(data, at)
            name = data[at + wire.DIRENTPLUS.size :][: entry[-2]]
            assert nodes.setdefault(name, entry[0]) == entry[0], times
            at += (wire.DIRENTPLUS.size + entry[-2] + 7) & ~7
    assert set(nodes) == {b".", b"..", b"top", b"middle", b"bottom"}
    assert nodes[b"."] == nodes[b".."] == 0, "they are not counted"
    assert look(kernel, b"top", directory) == nodes[b"top"]
    for name, answers in ((b"top", 3), (b"middle", 2)):
        kernel.forget(nodes[name], answers - 1)
        assert known(kernel, nodes[name])
        kernel.forget(nodes[name], 1)
        # A number may say where the file stands in the listing; then it means the same as long as any of them does.
        assert sole or not known(kernel, nodes[name])
    assert known(kernel, nodes[b"bottom"])
    kernel.forget(nodes[b"bottom"], 2)
    assert not any(known(kernel, nodes[name]) for name in (b"top", b"middle", b"bottom"))


def test_the_root_is_never_forgotten(kernel: Kernel, mount: Mounting, caplog: pytest.LogCaptureFixture) -> None:
    mount()
    kernel.forget(wire.ROOT_ID, 5)
    kernel.forget(0xDEAD, 1)
    assert known(kernel, wire.ROOT_ID)
    assert not errors(caplog)
    assert not kernel.told, "a FORGET is not answered"


@pytest.mark.parametrize("sole", [False, True])
def test_missing_names(kernel: Kernel, mount: Mounting, sole: bool) -> None:
    mount(sole=sole)
    if sole:
        entry = wire.NEGATIVE_OUT.unpack(kernel.call(wire.LOOKUP, wire.ROOT_ID, b"missing\0"))
        assert entry[0] == 0
        assert entry[2] > 3600, "to be trusted for long"
    else:
        with fails(errno.ENOENT):
            look(kernel, b"missing")
    with fails(errno.ENAMETOOLONG):
        look(kernel, b"n" * 256)


def test_how_long_names_and_attributes_are_trusted(kernel: Kernel, mount: Mounting) -> None:
    mount(entry_timeout=1.5, attr_timeout=0.25, negative_timeout=2)
    entry = wire.ENTRY_OUT.unpack(kernel.call(wire.LOOKUP, wire.ROOT_ID, b"d\0"))
    assert entry[2:6] == (1, 0, 500_000_000, 250_000_000)
    assert wire.NEGATIVE_OUT.unpack(kernel.call(wire.LOOKUP, wire.ROOT_ID, b"none\0"))[:3] == (0, 0, 2)


def test_requests_about_what_is_not_open(kernel: Kernel, mount: Mounting) -> None:
    mount()
    node = look(kernel, b"top", look(kernel, b"d"))
    for call in (lambda: read(kernel, node, 77), lambda: write(kernel, node, 77, b"x")):
        with pytest.raises(OSError):
            call()
    with fails(errno.EBADF):
        kernel.call(wire.FSYNC, node, wire.FSYNC_IN.pack(77, 0, 0))
    works(kernel)


# What the kernel is told


def test_what_the_api_changes_is_told(kernel: Kernel, mount: Mounting, fs: UnionFS) -> None:
    mount()
    directory = look(kernel, b"d")
    node = look(kernel, b"top", directory)
    create(kernel, b"its own")
    assert not kernel.told, "what it did itself, it knows"
    fs.path("/d/bottom").write_text("the kernel has not heard of this file")
    fs.path("/d/top").write_text("changed")
    kernel.until_told(lambda told: (wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(node, 0, 0)) in told)
    fs.rename("/d/middle", "/moved")
    for parent, name in ((directory, b"middle"), (wire.ROOT_ID, b"moved")):
        entry = wire.INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
        kernel.until_told(lambda told, entry=entry: (wire.NOTIFY_INVAL_ENTRY, entry) in told)  # type: ignore[misc]
    about = {wire.U64.unpack_from(message)[0] for _, message in kernel.told}
    assert about <= {wire.ROOT_ID, directory, node}


def test_nothing_is_written_to_a_closed_connection(kernel: Kernel, mount: Mounting, fs: UnionFS, scratch: Path) -> None:
    """Its number may be another file's by then."""
    mount()
    look(kernel, b"d")
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            fs.path("/d").chmod(0o755)

    threads = [threading.Thread(target=change) for _ in range(3)]
    for thread in threads:
        thread.start()
    kernel.until_told(lambda told: len(told) > 20)
    mount.end()
    files: list[FileIO] = []
    while not files or files[-1].fileno() < kernel.fd:
        files.append(open(scratch / f"other-{len(files)}", "wb", buffering=0))
    time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert kernel.fd in [file.fileno() for file in files]
    for file in files:
        assert os.fstat(file.fileno()).st_size == 0
        file.close()

"""Threads that share a union: nothing is lost, nothing hangs, and memory and disk say the same afterwards."""

from __future__ import annotations

import errno
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from unionfs.layer import descriptors
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR, DT_REG, LayerFile
from unionfs.layer.upper import UpperDirectory
from unionfs.testing.oracle import Seen, snapshot
from unionfs.testing.surfaces import TreeSurface
from unionfs.types import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.union import copyup
from unionfs.union.commit import commit
from unionfs.union.fs import UnionFS
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.tree import Tree

THREADS = 8
SECONDS = 15.0
# What a race with another thread may tell; anything else is a bug.
EXPECTED = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ENXIO, errno.ELOOP,
    errno.EBUSY, errno.EPERM, errno.ENODATA, errno.EOPNOTSUPP,
}  # fmt: skip


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def layers(scratch: Path) -> list[str]:
    """Three layers of one small tree, with much of everything in each."""
    rng = Random(7)
    tops = [scratch / name for name in ("high", "middle", "low")]
    for top in tops:
        for directory in ("a", "b", "a/c", "b/c", "a/c/d", *(f"own{i}" for i in range(THREADS))):
            (top / directory).mkdir(parents=True)
            for name in "pqrs":
                if rng.random() < 0.5:
                    (top / directory / name).write_bytes(os.fsencode(f"{top.name} {directory} {name};") * 500)
        (top / "a" / f"one-{top.name}").write_text("linked")
        os.link(top / "a" / f"one-{top.name}", top / "b" / f"two-{top.name}")
        os.link(top / "a" / f"one-{top.name}", top / "b/c" / f"three-{top.name}")
    return [os.fspath(top) for top in tops]


def together(*jobs: Callable[[], None], within: float) -> None:
    """Run them at once; the first error is raised, and a hang is one."""
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    deadline = time.monotonic() + within
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        faulthandler.dump_traceback(all_threads=True)
        pytest.fail("a thread hangs")
    if failures:
        raise failures[0]


class Chaos:
    """Random operations of one thread, on nodes, anywhere in the tree."""

    NAMES = (b"a", b"b", b"c", b"d", b"p", b"q", b"r", b"one-low", b"two-middle", b"x")

    def __init__(self, tree: Tree, seed: int, end: float, count: list[int]) -> None:
        self.tree, self.end, self.count = tree, end, count
        self.rng = Random(seed)

    def __call__(self) -> None:
        steps = [
            self.create, self.create, self.write, self.write, self.append, self.read, self.read, self.unlink,
            self.unlink, self.mkdir, self.rmdir, self.rename, self.rename, self.rename, self.link, self.chmod,
            self.truncate, self.xattr, self.stat, self.stat, self.listdir, self.symlink, self.hold,
        ]  # fmt: skip
        while time.monotonic() < self.end:
            step = self.rng.choice(steps)
            try:
                step()
            except OSError as error:
                if error.errno not in EXPECTED:
                    raise AssertionError(f"{step.__name__}: {error!r}") from error
            self.count[0] += 1

    def dir(self) -> DirNode:
        d = self.tree.root
        for _ in range(self.rng.randrange(4)):
            names = [name for name, _, kind in self.tree.listdir(d) if kind == DT_DIR and not name.startswith(b"own")]
            below = self.tree.lookup(d, self.rng.choice(names)) if names else None
            if not isinstance(below, DirNode):
                break
            d = below
        return d

    def name(self) -> bytes:
        return self.rng.choice(self.NAMES)

    def file(self) -> Node:
        d = self.dir()
        names = [name for name, _, kind in self.tree.listdir(d) if kind == DT_REG]
        return self.tree.lookup(d, self.rng.choice(names) if names else self.name())

    def create(self) -> None:
        _, handle = self.tree.create(self.dir(), self.name(), 0o644, os.O_RDWR)
        handle.pwrite(b"new", 0)
        handle.close()

    def write(self) -> None:
        handle = self.tree.open(self.file(), os.O_WRONLY | (os.O_TRUNC if self.rng.random() < 0.3 else 0))
        try:
            handle.pwrite(b"w" * self.rng.randrange(5000), self.rng.randrange(3000))
        finally:
            handle.close()

    def append(self) -> None:
        handle = self.tree.open(self.file(), os.O_RDWR | os.O_APPEND)
        try:
            handle.pwrite(b"more", 0)
        finally:
            handle.close()

    def hold(self) -> None:
        """An open file keeps its number and can be asked at any time, whatever becomes of its name."""
        handle = self.tree.open(self.file(), self.rng.choice((os.O_RDONLY, os.O_RDWR)))
        try:
            number = handle.stat().st_ino
            for _ in range(20):
                assert handle.stat().st_ino == number
                handle.pread(100, 0)
        except OSError as error:
            raise AssertionError(f"an open file answers {error!r}") from error
        finally:
            handle.close()

    def read(self) -> None:
        handle = self.tree.open(self.file(), os.O_RDONLY)
        try:
            handle.pread(10_000, 0)
        finally:
            handle.close()

    def unlink(self) -> None:
        self.tree.unlink(self.dir(), self.name())

    def mkdir(self) -> None:
        self.tree.mkdir(self.dir(), self.name(), 0o755)

    def rmdir(self) -> None:
        self.tree.rmdir(self.dir(), self.name())

    def rename(self) -> None:
        flags = self.rng.choice((0, 0, 0, RENAME_EXCHANGE, RENAME_NOREPLACE))
        self.tree.rename(self.dir(), self.name(), self.dir(), self.name(), flags)

    def link(self) -> None:
        self.tree.link(self.file(), self.dir(), self.name())

    def symlink(self) -> None:
        self.tree.symlink(self.dir(), self.name(), b"p")

    def chmod(self) -> None:
        self.tree.setattr(self.file() if self.rng.random() < 0.7 else self.dir(), mode=self.rng.choice((0o600, 0o755)))

    def truncate(self) -> None:
        self.tree.setattr(self.file(), size=self.rng.randrange(4000))

    def xattr(self) -> None:
        self.tree.setxattr(self.file(), b"user.x", b"%d" % self.rng.randrange(100))

    def stat(self) -> None:
        self.tree.stat(self.tree.lookup(self.dir(), self.name()))

    def listdir(self) -> None:
        self.tree.listdir(self.dir())


class Own:
    """One thread in a directory that is its own, by paths: it must see exactly what it did itself."""

    def __init__(self, fs: UnionFS, number: int, end: float) -> None:
        self.fs, self.top, self.end = fs, f"/own{number}", end
        self.rng = Random(number)
        self.known = {name: fs.read_bytes(f"{self.top}/{name}") for name in fs.listdir(self.top)}

    def __call__(self) -> None:
        while time.monotonic() < self.end:
            name, other = self.rng.choice("pqrstu"), self.rng.choice("pqrstu")
            path = f"{self.top}/{name}"
            assert self.fs.exists(path) == (name in self.known)
            match self.rng.randrange(6):
                case 0 | 1:
                    data = self.rng.randbytes(self.rng.randrange(3000))
                    self.fs.write_bytes(path, data)
                    self.known[name] = data
                case 2 if name in self.known:
                    self.fs.remove(path)
                    del self.known[name]
                    assert not self.fs.exists(path)
                case 3 if name in self.known and name != other:
                    self.fs.rename(path, f"{self.top}/{other}")
                    self.known[other] = self.known.pop(name)
                case 4 if name in self.known:
                    with self.fs.open(path, "ab") as file:
                        file.write(b"tail")
                    self.known[name] += b"tail"
                    assert self.fs.stat(path).st_size == len(self.known[name])
                case _:
                    assert sorted(self.fs.listdir(self.top)) == sorted(self.known)
                    if name in self.known:
                        assert self.fs.read_bytes(path) == self.known[name]
                        assert self.fs.stat(path).st_size == len(self.known[name])


def seen(tree: Tree) -> dict[bytes, Seen]:
    return snapshot(TreeSurface(tree))


def same(one: dict[bytes, Seen], other: dict[bytes, Seen]) -> None:
    assert one.keys() == other.keys()
    for path, found in one.items():
        assert (path, found.facts) == (path, other[path].facts)


@pytest.mark.slow
@pytest.mark.parametrize("commits", [False, True])
def test_random_operations(scratch: Path, layers: list[str], often: None, commits: bool) -> None:
    upper, work = scratch / "up", scratch / "work"
    upper.mkdir()
    fs = UnionFS(lower=layers, upper=upper, work=work)
    end = time.monotonic() + SECONDS / 2
    count = [0]
    jobs: list[Callable[[], None]] = [Chaos(fs.tree, seed, end, count) for seed in range(THREADS - 3)]
    jobs += [Own(fs, number, end) for number in range(3)]

    def freeze() -> None:
        while time.monotonic() < end:
            time.sleep(0.3)
            commit(fs.tree)

    if commits:
        jobs.append(freeze)
    with fs:
        together(*jobs, within=SECONDS + 20)
        assert count[0] > 300
        warm = seen(fs.tree)
        lowers = [layer.label for layer in fs.tree.resolver.layers[1:]]
    with UnionFS(lower=lowers, upper=upper, work=work) as again:
        same(warm, seen(again.tree))
    assert os.listdir(work / "work") == []


@pytest.fixture
def tree(scratch: Path, layers: list[str]) -> Iterator[Tree]:
    (scratch / "up").mkdir()
    tree = Tree([DirectoryLayer(layer) for layer in layers], UpperDirectory(scratch / "up", scratch / "work"))
    yield tree
    tree.close()


class Halt:
    """Stops whoever copies data, until it is let go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there, self.go_on = threading.Event(), threading.Event()
        original = copyup.copy_file

        def copy_file(src: LayerFile, dst: LayerFile, *args: object) -> None:
            self.there.set()
            assert self.go_on.wait(20)
            original(src, dst, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(copyup, "copy_file", copy_file)


@pytest.mark.parametrize("what", ["unlink", "unlink other", "rename over", "rename", "link", "chmod", "truncate"])
def test_a_change_while_the_file_is_being_copied_up(tree: Tree, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    a, b = tree.lookup(tree.root, b"a"), tree.lookup(tree.root, b"b")
    assert isinstance(a, DirNode)
    assert isinstance(b, DirNode)
    n = tree.lookup(a, b"one-low")
    assert tree.lookup(b, b"two-low") is n
    halt = Halt(monkeypatch)

    def write() -> None:
        handle = tree.open(n, os.O_WRONLY)
        handle.pwrite(b"W", 0)
        handle.close()

    def change() -> None:
        assert halt.there.wait(20)
        threading.Timer(0.3, halt.go_on.set).start()
        match what:
            case "unlink":
                tree.unlink(a, b"one-low")
            case "unlink other":
                tree.unlink(b, b"two-low")
            case "rename over":
                tree.rename(a, b"one-middle", b, b"two-low")
            case "rename":
                tree.rename(a, b"one-low", a, b"moved")
            case "link":
                tree.link(n, a, b"linked")
            case "chmod":
                tree.setattr(n, mode=0o700)
            case "truncate":
                tree.setattr(n, size=3)

    together(write, change, within=20)
    assert isinstance(n, FileNode)
    handle = tree.open(n, os.O_RDONLY)
    assert handle.pread(100, 0) in (b"Winked", b"Win")
    handle.close()


def test_a_commit_while_a_file_is_being_copied_up(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    a = tree.lookup(tree.root, b"a")
    n = tree.lookup(a, b"one-low")
    halt = Halt(monkeypatch)

    def write() -> None:
        handle = tree.open(n, os.O_WRONLY)
        handle.pwrite(b"W", 0)
        handle.close()

    def freeze() -> None:
        assert halt.there.wait(20)
        commit(tree)
        halt.go_on.set()

    together(write, freeze, within=20)
    handle = tree.open(n, os.O_RDONLY)
    assert handle.pread(100, 0) == b"Winked"
    handle.close()


def test_a_file_that_is_replaced_is_there_at_any_time(scratch: Path, layers: list[str], often: None) -> None:
    (scratch / "up").mkdir()
    end = time.monotonic() + 2
    with UnionFS(lower=layers, upper=scratch / "up", work=scratch / "work") as fs:

        def replace() -> None:
            turn = 0
            while time.monotonic() < end:
                turn += 1
                fs.write_text("/new", f"{turn}")
                fs.replace("/new", "/a/one-low")

        def look() -> None:
            while time.monotonic() < end:
                assert fs.exists("/a/one-low")
                assert fs.stat("/a/one-low").st_size
                with fs.open("/a/one-low") as file:
                    number = os.fstat(file.fileno()).st_ino
                    assert number == os.fstat(file.fileno()).st_ino
                    assert file.read()

        together(replace, look, look, within=20)


def test_directories_that_change_places_are_never_taken_for_each_other(
    scratch: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where their descriptors were given up and are opened anew, name by name."""
    monkeypatch.setattr(descriptors, "LIMIT", 1)
    for name in "ab":
        (scratch / f"up/{name}/in/side").mkdir(parents=True)
        (scratch / f"up/{name}/in/side/file").write_text(name)
    end = time.monotonic() + 2
    with UnionFS(upper=scratch / "up", work=scratch / "work") as fs:
        tree = fs.tree
        nodes = {name: tree.resolve(b"%s/in/side" % name) for name in (b"a", b"b")}

        def exchange() -> None:
            while time.monotonic() < end:
                fs.exchange("/a", "/b")

        def look() -> None:
            while time.monotonic() < end:
                for name, d in nodes.items():
                    assert isinstance(d, DirNode)
                    handle = tree.open(tree.lookup(d, b"file"), os.O_RDONLY)
                    assert handle.pread(10, 0) == name
                    handle.close()

        together(exchange, look, look, within=20)

"""DirectoryLayer and UpperDirectory: what is on disk, hostile layers, recorded owners, locks, descriptors."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support
from unionfs._sys import filehandle
from unionfs._sys import rename as rename_module
from unionfs.errors import LayerError, UpperBusyError
from unionfs.layer import descriptors, whiteout
from unionfs.layer import upper as upper_module
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.frozen import FrozenLayer
from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG, DT_WHT, NO_MARKS, Marks
from unionfs.layer.trees import WHITEOUT, Entry, populate, symlink
from unionfs.layer.upper import UpperDirectory
from unionfs.testing.layer import check_agreement, fails, read, write


@pytest.fixture
def top(scratch: Path) -> Path:
    """The layer's directory."""
    (scratch / "upper").mkdir(mode=0o755)
    return scratch / "upper"


@pytest.fixture
def upper(top: Path) -> Iterator[UpperDirectory]:
    layer = UpperDirectory(top, top.parent / "work")
    yield layer
    layer.close()


def private(mark: bytes, space: bytes = whiteout.USER) -> str:
    return os.fsdecode(space + mark)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Layers that can't be used


def test_a_layer_is_a_directory(scratch: Path) -> None:
    (scratch / "file").write_text("")
    (scratch / "link").symlink_to("nowhere")
    for name, number in (("none", errno.ENOENT), ("file", errno.ENOTDIR), ("link", errno.ENOENT)):
        with pytest.raises(LayerError) as caught:
            DirectoryLayer(scratch / name)
        assert (caught.value.errno, caught.value.filename) == (number, str(scratch / name))


def test_vanished_layer(scratch: Path) -> None:
    (scratch / "layer").mkdir()
    layer = DirectoryLayer(scratch / "layer")
    layer.close()
    (scratch / "layer").rmdir()
    with pytest.raises(LayerError, match="vanished"):
        layer.scan(layer.root)


def test_upper_and_work_stand_side_by_side(scratch: Path) -> None:
    (scratch / "upper").mkdir()
    for path, work in (("upper", "upper"), ("upper", "upper/work"), ("upper", ".")):
        with pytest.raises(LayerError) as caught:
            UpperDirectory(scratch / path, scratch / work)
        assert caught.value.errno == errno.EINVAL
    assert os.listdir(scratch / "upper") == []


def test_work_on_another_file_system(top: Path) -> None:
    if os.stat("/dev/shm").st_dev == top.stat().st_dev:
        pytest.skip("not applicable: one file system")
    work = Path("/dev/shm") / top.parent.name
    try:
        with pytest.raises(LayerError) as caught:
            UpperDirectory(top, work)
        assert caught.value.errno == errno.EXDEV
    finally:
        subprocess.run(["rm", "-r", work], check=True)


# What is on disk


@pytest.mark.root
@pytest.mark.parametrize("space", [whiteout.TRUSTED, whiteout.USER])
def test_marks_on_disk(top: Path, space: bytes) -> None:
    upper = UpperDirectory(top, top.parent / "work", trusted=space == whiteout.TRUSTED)
    marks = Marks(opaque=True, redirect=b"/a", ino=255)
    populate(upper, {"dir": Entry(stat.S_IFDIR | 0o755, {}, marks=marks), "gone": WHITEOUT})
    populate(upper, {"meta": Entry(stat.S_IFREG | 0o644, b"", marks=Marks(metacopy=True))})
    found = {key: os.getxattr(top / "dir", key) for key in os.listxattr(top / "dir")}
    assert found == {
        private(whiteout.OPAQUE, space): b"y",
        private(whiteout.REDIRECT, space): b"/a",
        private(whiteout.INO, space): b"ff",
    }
    assert os.listxattr(top / "meta") == [private(whiteout.METACOPY, space)]
    assert whiteout.is_whiteout_device((top / "gone").lstat())
    assert os.listxattr(top) == [private(whiteout.FORMAT, space)]
    upper.set_marks(upper.root, b"dir", NO_MARKS)
    assert os.listxattr(top / "dir") == []
    upper.close()


@pytest.mark.root
def test_a_persons_attributes_are_one_level_down(upper: UpperDirectory, top: Path) -> None:
    write(upper, upper.root, b"file", b"")
    upper.setxattr(upper.root, b"file", b"trusted.overlay.x", b"1")
    upper.setxattr(upper.root, b"file", b"user.overlay.overlay.y", b"2")
    assert sorted(os.listxattr(top / "file")) == ["trusted.overlay.overlay.x", "user.overlay.overlay.overlay.y"]
    assert sorted(upper.listxattr(upper.root, b"file")) == [b"trusted.overlay.x", b"user.overlay.overlay.y"]


@pytest.mark.root
def test_both_namespaces_are_read_and_trusted_wins(top: Path) -> None:
    (top / "dir").mkdir()
    os.setxattr(top / "dir", private(whiteout.REDIRECT), b"user")
    os.setxattr(top / "dir", private(whiteout.OPAQUE), b"y")
    os.setxattr(top / "dir", private(whiteout.REDIRECT, whiteout.TRUSTED), b"trusted")
    layer = DirectoryLayer(top)
    assert layer.marks(layer.root, b"dir") == Marks(opaque=True, redirect=b"trusted")


def test_only_an_upper_of_ours_has_inos(top: Path) -> None:
    assert not DirectoryLayer(top).has_inos
    UpperDirectory(top, top.parent / "work").close()
    assert DirectoryLayer(top).has_inos


def test_record_of_a_commit(upper: UpperDirectory, top: Path) -> None:
    write(upper, upper.root, b"file", b"x")
    fresh = upper.begin_freeze(str(top.parent / "layers/base"))
    upper.finish_freeze(fresh, b'{"author": "me"}')
    assert os.listdir(top) == []
    assert os.listdir(top.parent / "layers/base") == ["file"]
    frozen = DirectoryLayer(top.parent / "layers/base")
    assert frozen.record == upper.record == b'{"author": "me"}'
    assert frozen.label == upper.label == str(top.parent / "layers/base")
    assert fresh.label == str(top)
    fresh.close()


def test_freeze_into_what_is_taken(upper: UpperDirectory, top: Path) -> None:
    write(upper, upper.root, b"file", b"x")
    (top.parent / "taken").mkdir()
    (top.parent / "taken/x").write_text("")
    for where, number in ((top.parent / "taken", errno.ENOTEMPTY), (top.parent / "taken/x/y", errno.EEXIST)):
        with pytest.raises(LayerError) as caught:
            upper.begin_freeze(str(where))
        assert caught.value.errno == number
    if os.stat("/dev/shm").st_dev != top.stat().st_dev:
        with pytest.raises(LayerError) as caught:
            upper.begin_freeze(f"/dev/shm/{top.parent.name}")
        assert caught.value.errno == errno.EXDEV
        assert not os.path.exists(f"/dev/shm/{top.parent.name}")
    upper.unlink(upper.root, b"file")


def test_freeze_numbers_layers(upper: UpperDirectory, top: Path) -> None:
    for number in range(3):
        write(upper, upper.root, b"%d" % number, b"")
        fresh = upper.begin_freeze(None)
        upper.finish_freeze(fresh, b"{}")
        assert isinstance(fresh, UpperDirectory)
        upper = fresh
    assert sorted(os.listdir(f"{top}.layers")) == ["000001", "000002", "000003"]
    assert [os.listdir(f"{top}.layers/00000{n + 1}") for n in range(3)] == [["0"], ["1"], ["2"]]
    upper.close()


# Hostile layers


def test_links_in_the_place_of_directories(top: Path) -> None:
    secret = top.parent / "secret"
    secret.mkdir()
    (secret / "x").write_text("secret")
    (top / "dir/sub").mkdir(parents=True)
    (top / "dir/sub/x").write_text("mine")
    layer = DirectoryLayer(top)
    d = layer.root.child(b"dir")
    assert layer.kind(d, b"sub") == DT_DIR
    (top / "dir/sub").rename(top / "old")
    (top / "dir/sub").symlink_to(secret)
    sub = d.child(b"sub")
    for call in (layer.scan, lambda at: layer.stat(at, b"x"), lambda at: layer.open(at, b"x", os.O_RDONLY)):
        with fails(errno.ENOTDIR):
            call(sub)
    assert layer.kind(sub, b"x") is None
    (top / "x").symlink_to(secret / "x")
    with fails(errno.ELOOP):
        layer.open(layer.root, b"x", os.O_RDONLY)
    assert layer.listxattr(layer.root, b"x") == []


def test_an_upper_never_writes_through_a_link(upper: UpperDirectory, top: Path) -> None:
    secret = top.parent / "secret"
    secret.mkdir(mode=0o755)
    (secret / "x").write_text("secret")
    before = (secret.stat(), (secret / "x").stat())
    (top / "dir").symlink_to(secret)
    (top / "x").symlink_to(secret / "x")
    d = upper.root.child(b"dir")
    for call in (
        lambda: upper.create(d, b"new", 0o644),
        lambda: upper.unlink(d, b"x"),
        lambda: upper.mkdir(d, b"new", 0o755),
        lambda: upper.setattr(d, b".", mode=0o700),
    ):
        with fails(errno.ENOTDIR):
            call()
    with fails(errno.ELOOP):
        upper.open(upper.root, b"x", os.O_WRONLY | os.O_TRUNC)
    with fails(errno.EEXIST):
        upper.create(upper.root, b"x", 0o644)
    with fails(errno.EOPNOTSUPP):
        upper.setattr(upper.root, b"x", mode=0o777)
    with fails(errno.EPERM):
        upper.setxattr(upper.root, b"x", b"user.a", b"")
    upper.setattr(upper.root, b"x", times=(1, 2))
    upper.clear(upper.root, b"dir")
    assert (secret.stat(), (secret / "x").stat()) == before


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_opened(top: Path) -> None:
    os.mkfifo(top / "fifo")
    layer = DirectoryLayer(top)
    before = open_descriptors()
    with fails(errno.ENXIO):
        layer.open(layer.root, b"fifo", os.O_RDONLY)
    with fails(errno.EISDIR):
        layer.open(layer.root, b".", os.O_RDONLY)
    assert open_descriptors() == before


def test_malformed_marks(top: Path) -> None:
    values = {
        "d1": (whiteout.OPAQUE, b"yes"),
        "d2": (whiteout.OPAQUE, b""),
        "d3": (whiteout.REDIRECT, b""),
        "d4": (whiteout.INO, b"no number"),
        "d5": (whiteout.INO, b"\xff\x00"),
        "d6": (b"unheard.of", b"1"),
        "d7": (whiteout.INO, b""),
    }
    for name, (mark, value) in values.items():
        (top / name).mkdir()
        os.setxattr(top / name, private(mark), value)
    layer = DirectoryLayer(top)
    for name in values:
        assert layer.marks(layer.root, name.encode()) == NO_MARKS
        assert layer.listxattr(layer.root, name.encode()) == []
    check_agreement(layer)


def test_exclude(top: Path) -> None:
    for name in ("a/b/c", "a/keep", "proc/1", "x/a"):
        (top / name).mkdir(parents=True)
    layer = DirectoryLayer(top, exclude=["/a/b", "/proc/", "x", "/not/there"])
    assert layer.scan(layer.root) == {b"a": DT_DIR}
    assert layer.scan(layer.root.child(b"a")) == {b"keep": DT_DIR}
    assert layer.kind(layer.root, b"proc") is None
    assert layer.kind(layer.root.child(b"a"), b"b") is None
    assert layer.kind(layer.root.child(b"a"), b"keep") == DT_DIR


def test_whiteouts_by_attribute(top: Path) -> None:
    for where in (top / "marked", top / "plain"):
        where.mkdir()
        for name in ("gone", "file"):
            (where / name).touch()
        (where / "full").write_text("x")
        for name in ("gone", "full"):
            os.setxattr(where / name, private(whiteout.WHITEOUT), b"")
    os.setxattr(top / "marked", private(whiteout.OPAQUE), b"x")
    layer = DirectoryLayer(top)
    marked, plain = layer.root.child(b"marked"), layer.root.child(b"plain")
    assert layer.scan(marked) == {b"gone": DT_WHT, b"file": DT_REG, b"full": DT_REG}
    assert layer.scan(plain) == {b"gone": DT_REG, b"file": DT_REG, b"full": DT_REG}
    for d in (marked, plain):
        assert {name: layer.kind(d, name) for name in layer.scan(d)} == layer.scan(d)
    assert not layer.marks(layer.root, b"marked").opaque


# Locks and staging


def test_one_upper_one_union(top: Path) -> None:
    first = UpperDirectory(top, top.parent / "work")
    (top.parent / "other").mkdir()
    for path, work in ((top, "work"), (top, "work2"), (top.parent / "other", "work")):
        with pytest.raises(UpperBusyError) as caught:
            UpperDirectory(path, top.parent / work)
        assert caught.value.errno == errno.EBUSY
    first.close()
    UpperDirectory(top, top.parent / "work").close()
    UpperDirectory(top.parent / "other", top.parent / "work").close()


def test_a_refused_upper_leaves_the_first_in_peace(upper: UpperDirectory, top: Path) -> None:
    write(upper, upper.staging, b"temp", b"work in progress")
    before = open_descriptors()
    for _ in range(5):
        with pytest.raises(UpperBusyError):
            UpperDirectory(top, top.parent / "work")
    assert read(upper, upper.staging, b"temp") == b"work in progress"
    assert open_descriptors() <= before + 2


HOLD = """
import sys, time
from unionfs.layer.upper import UpperDirectory
upper = UpperDirectory(sys.argv[1], sys.argv[2])
upper.mkdir(upper.staging, b"half", 0o755)
upper.create(upper.staging.child(b"half"), b"file", 0o600)
upper.begin_freeze(None)
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock_and_no_garbage(top: Path) -> None:
    work = top.parent / "work"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, top, work], stdout=subprocess.PIPE, cwd=support.REPO)
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UpperBusyError):
            UpperDirectory(top, work)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert set(os.listdir(work / "work")) == {"freeze", "half"}
    upper = UpperDirectory(top, work)
    assert os.listdir(work / "work") == []
    assert upper.scan(upper.staging) == {}
    upper.close()


def test_staging_is_cleared_of_everything(top: Path) -> None:
    work = top.parent / "work"
    upper = UpperDirectory(top, work)
    populate(upper, {"keep": b"x"})
    at = upper.mkdir(upper.staging, b"deep", 0o755)
    for _ in range(1200):
        at = upper.mkdir(at, b"d", 0o755)
    upper.whiteout(upper.staging, b"w")
    upper.symlink(upper.staging, b"out", os.fsencode(top))
    upper.close()
    upper = UpperDirectory(top, work)
    assert upper.scan(upper.staging) == {}
    assert upper.scan(upper.root) == {b"keep": DT_REG}
    upper.close()


def test_whiteout_rename_in_two_steps(upper: UpperDirectory, monkeypatch: pytest.MonkeyPatch, top: Path) -> None:
    real = rename_module.renameat2

    def refuse(*args: object) -> None:
        if args[4]:
            raise OSError(errno.EINVAL, "no flags here")
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(upper_module, "renameat2", refuse)
    populate(upper, {"a": b"1", "d": {"x": b""}})
    upper.rename(upper.root, b"a", upper.root, b"b", 4)
    assert upper.scan(upper.root) == {b"a": DT_WHT, b"b": DT_REG, b"d": DT_DIR}
    with fails(errno.EINVAL):
        upper.rename(upper.root, b"d", upper.root.child(b"d"), b"below", 4)
    assert upper.scan(upper.root) == {b"a": DT_WHT, b"b": DT_REG, b"d": DT_DIR}
    assert upper.scan(upper.staging) == {}


# Handles


@pytest.mark.root
def test_handles_stay_and_differ(upper: UpperDirectory, top: Path) -> None:
    fd = os.open(top, os.O_RDONLY)
    known = filehandle.filesystem_uuid(fd) is not None
    os.close(fd)
    if not known:
        pytest.skip("not applicable: the file system has no handles")
    populate(upper, {"a": b"", "b": b"", "l": symlink("a")})
    handles = [upper.handle(upper.root, name) for name in (b"a", b"b", b"l")]
    assert len(set(handles)) == 3
    upper.rename(upper.root, b"a", upper.root, b"c")
    upper.link(upper.root, b"c", upper.root, b"d")
    assert upper.handle(upper.root, b"c") == upper.handle(upper.root, b"d") == handles[0]
    assert upper.handle(upper.root, b"none") is None


# Descriptors


def test_descriptors_are_bounded(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "LIMIT", 50)
    (scratch / "layer").mkdir()
    for outer in range(30):
        for inner in range(20):
            (scratch / f"layer/{outer}/{inner}").mkdir(parents=True)
            (scratch / f"layer/{outer}/{inner}/x").touch()
    before = open_descriptors()
    layers = [DirectoryLayer(scratch / "layer") for _ in range(3)]
    dirs = []
    for layer in layers:
        for name in layer.scan(layer.root):
            d = layer.root.child(name)
            dirs += [d.child(below) for below in layer.scan(d)]
    for _ in range(2):
        for d in dirs:
            assert d.layer.scan(d) == {b"x": DT_REG}
        assert open_descriptors() - before <= 50 + 2
    for layer in layers:
        layer.close()
    del d, dirs
    assert open_descriptors() <= before + 50
    for kept in list(descriptors.KEPT._queue):
        assert kept.layer not in layers


@pytest.mark.slow
def test_descriptors_do_not_leak(upper: UpperDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    # About 100,000 operations. Directories that are gone are kept for a while too.
    monkeypatch.setattr(descriptors, "LIMIT", 100)
    root = upper.root
    d = upper.mkdir(root, b"dir", 0o755)
    write(upper, d, b"file", b"x")
    upper.symlink(root, b"link", b"t")
    upper.scan(d)
    before = open_descriptors()
    for number in range(8_400):
        upper.create(upper.staging, b"t", 0o600).close()
        upper.rename(upper.staging, b"t", d, b"t")
        upper.unlink(d, b"t")
        upper.open(d, b"file", os.O_RDONLY).pread(1, 0)
        upper.stat(d, b"file")
        upper.kind(d, b"none")
        upper.marks(d, b".")
        upper.mkdir(d, b"sub", 0o755)
        if number % 5 == 0:
            upper.scan(d.child(b"sub"))
            with fails(errno.EISDIR):
                upper.open(d, b"sub", os.O_RDONLY)
            with fails(errno.EEXIST):
                upper.create(d, b"file", 0o600)
        upper.rmdir(d, b"sub")
        upper.readlink(root, b"link")
    gc.collect()
    assert open_descriptors() - before <= 100
    upper.close()
    assert open_descriptors() <= before


def test_limit_follows_the_process() -> None:
    code = "from unionfs.layer.descriptors import LIMIT; print(LIMIT)"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for soft, limit in ((40, 16), (1024, 256), (20_000, 4096)):
        if hard != resource.RLIM_INFINITY and soft > hard:
            continue
        done = subprocess.run(
            ["sh", "-c", f'ulimit -Sn {soft} && exec "$@"', "sh", sys.executable, "-c", code],
            capture_output=True, text=True, cwd=support.REPO, check=True,
        )  # fmt: skip
        assert int(done.stdout) == limit


def test_a_dropped_directory_is_not_lost_to_a_reader(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "LIMIT", 3)
    for number in range(40):
        (scratch / f"layer/{number}").mkdir(parents=True)
        (scratch / f"layer/{number}/x").write_text(str(number))
    layer = DirectoryLayer(scratch / "layer")
    dirs = {number: layer.root.child(b"%d" % number) for number in range(40)}
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                for number, d in dirs.items():
                    assert read(layer, d, b"x") == b"%d" % number
                    assert layer.scan(d) == {b"x": DT_REG}
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_link_kinds_in_a_scan(top: Path) -> None:
    (top / "link").symlink_to("/etc")
    layer = DirectoryLayer(top)
    assert layer.scan(layer.root) == {b"link": DT_LNK}


def test_two_threads_look_at_a_layer_at_once(
    upper: UpperDirectory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen layer is looked at late, by any thread: none closes the directory that another is looking at."""
    upper.close()
    layer = FrozenLayer(upper.path, str(scratch / "index"))
    look = layer._list

    def late(path: int) -> list[str]:
        monkeypatch.setattr(layer, "_list", look, raising=False)
        layer.examine()  # The other thread, meanwhile.
        return look(path)

    monkeypatch.setattr(layer, "_list", late, raising=False)
    layer.examine()
    assert layer.has_inos
    layer.close()

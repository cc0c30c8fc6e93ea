"""Another stack under a mounted union: a roll-back while programs use it."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import unionfs.mount
from tests.fakekernel import Kernel
from tests.shaken import shake_mount
from tests.test_devfuse_session import kernel  # noqa: F401
from unionfs.errors import MountError
from unionfs.mount.devfuse import wire
from unionfs.mount.devfuse.session import Header, Session
from unionfs.testing.someone import Someone
from unionfs.union.fs import UnionFS

pytestmark = [pytest.mark.fuse, pytest.mark.root]

WAYS: dict[str, dict[str, Any]] = {
    "alone": {"engine": "devfuse", "sole": True},
    "alone, no passthrough": {"engine": "devfuse", "sole": True, "passthrough": False},
    "shared": {"engine": "devfuse"},
    "fusepy": {"engine": "fusepy"},
}
WITHIN = 10.0
"""Seconds, for what ought to take none, on a machine that does much else."""
KNOWING = [way for way in WAYS if way != "fusepy"]


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture
def top(scratch: Path) -> Path:
    base = scratch / "base"
    write(base / "etc/hosts", "base")
    write(base / "etc/motd", "welcome")
    write(base / "usr/share/doc/readme", "read")
    write(base / "usr/share/one", "linked")
    os.link(base / "usr/share/one", base / "usr/share/two")
    write(base / "var/log/old", "old")
    for i in range(200):
        write(base / f"many/{i:03}", f"{i}")
    (scratch / "upper0").mkdir()
    (scratch / "mnt").mkdir()
    scratch.chmod(0o755)
    return scratch


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    return WAYS[request.param]


@pytest.fixture
def fs(top: Path, way: dict[str, Any]) -> Iterator[UnionFS]:
    with UnionFS([top / "base"], top / "upper0") as fs, unionfs.mount.mount(fs, top / "mnt", **way):
        yield fs


@pytest.fixture
def mnt(top: Path, fs: UnionFS) -> Path:
    return top / "mnt"


@pytest.fixture
def somebody() -> Iterator[Someone]:
    with Someone() as someone:
        yield someone


def back(fs: UnionFS, top: Path, number: int = 1, lowers: tuple[str, ...] = ("base",)) -> None:
    """Roll back, and take what was changed away."""
    upper = top / f"upper{number}"
    upper.mkdir(exist_ok=True)
    fs.restack([top / name for name in lowers], upper)
    shutil.rmtree(top / f"upper{number - 1}")
    shutil.rmtree(top / f"upper{number - 1}.work")


def walked(top: Path) -> dict[str, object]:
    """All that shows, looked at in every way."""
    found: dict[str, object] = {}
    for parent, dirs, files in os.walk(top):
        for name in dirs + files:
            path = os.path.join(parent, name)
            st = os.lstat(path)
            relative = os.path.relpath(path, top)
            keep = (st.st_mode, st.st_mtime_ns, st.st_size if stat.S_ISREG(st.st_mode) else 0)
            found[relative] = (keep, Path(path).read_bytes() if stat.S_ISREG(st.st_mode) else None)
    return found


def change_much(mnt: Path) -> None:
    (mnt / "etc/hosts").write_text("changed, and longer")
    (mnt / "etc/new").write_text("new")
    (mnt / "etc/motd").unlink()
    (mnt / "usr/share/doc").rename(mnt / "usr/papers")
    shutil.rmtree(mnt / "var/log")
    write(mnt / "srv/www/data/index", "page")
    (mnt / "usr/share/two").write_text("written")
    (mnt / "many").chmod(0o700)
    (mnt / "many/007").chmod(0o600)
    (mnt / "many/008").write_text("x")
    for i in range(20, 30):
        (mnt / f"many/{i:03}").unlink()
        (mnt / f"many/{i:03}.new").touch()


def test_all_shows_at_once(fs: UnionFS, top: Path, mnt: Path) -> None:
    device = os.stat(mnt).st_dev
    before = walked(mnt)
    assert before == walked(top / "base")
    for number in (1, 2, 3):
        change_much(mnt)
        assert not (mnt / "etc/motd").exists()
        assert not (mnt / "var/log").exists()
        changed = walked(mnt)
        assert changed != before
        back(fs, top, number)
        assert (mnt / "etc/motd").read_text() == "welcome"
        assert (mnt / "etc/hosts").read_text() == "base"
        assert not (mnt / "etc/new").exists()
        assert walked(mnt) == before
        assert os.stat(mnt).st_dev == device
    assert (mnt / "usr/share/one").stat().st_nlink == 2
    (mnt / "etc/fresh").write_text("fresh")
    assert (top / "upper3/etc/fresh").read_text() == "fresh"
    assert not (top / "base/etc/fresh").exists()


def test_what_was_only_listed_is_as_it_was_or_not_found(fs: UnionFS, top: Path, mnt: Path, way: dict[str, Any]) -> None:
    """Files that a listing has told the kernel of, and that nobody asked us for."""
    for name in ("040", "041"):
        write(top / "other/many" / name, "longer than before")
    back(fs, top, 1, ("other", "base"))
    names = os.listdir(mnt / "many")
    fds = {name: os.open(mnt / "many" / name, os.O_PATH) for name in ("040", "041", "050")}
    try:
        assert os.fstat(fds["040"]).st_size == len("longer than before")
        back(fs, top, 2)
        for name in ("040", "041"):
            with contextlib.suppress(FileNotFoundError):
                st = os.fstat(fds[name])
                # libfuse goes by the path, and finds what has the name now.
                assert (st.st_size, st.st_nlink) == ((2, 1) if way is WAYS["fusepy"] else (18, 0))
        assert os.fstat(fds["050"]).st_size == 2
        assert sorted(os.listdir(mnt / "many")) == sorted(names)
        assert {entry.name: entry.stat().st_size for entry in os.scandir(mnt / "many")}["040"] == 2
        assert (mnt / "many/040").read_text() == "40"
        assert (mnt / "many/041").read_text() == "41"
    finally:
        for fd in fds.values():
            os.close(fd)


def test_random_roll_backs(fs: UnionFS, top: Path, mnt: Path) -> None:
    shake_mount(top, fs, mnt, 1, 30)


def test_answers_from_before_are_waited_for(kernel: Kernel) -> None:  # noqa: F811
    """What is being answered is of the old tree, and must not reach the kernel after it has been told of the new."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        begun.set()
        go_on.wait(WITHIN)
        return 0

    session = Session(kernel.fd, {wire.STATFS: slow}, "test", lambda: None)
    session.start()
    try:
        asked = kernel.ask(wire.STATFS)
        assert begun.wait(WITHIN)
        session.settle(0.05)
        assert kernel.waits(asked)
        settling = threading.Thread(target=session.settle, args=(WITHIN,))
        settling.start()
        settling.join(0.1)
        assert settling.is_alive()
        go_on.set()
        settling.join(WITHIN)
        assert not settling.is_alive()
        kernel.answer(asked)
        session.settle(WITHIN)  # Nothing to wait for.
    finally:
        go_on.set()
        kernel.end()
        assert session.join(WITHIN)


@pytest.mark.parametrize("way", [WAYS[name] for name in KNOWING], ids=KNOWING)
def test_open_files_are_the_ones_they_were(fs: UnionFS, top: Path, mnt: Path, somebody: Someone) -> None:
    (mnt / "etc/hosts").write_text("changed, and longer")
    (mnt / "etc/motd").chmod(0o600)
    (mnt / "etc/new").write_text("new")
    fds = {
        name: somebody.open(str(mnt / "etc" / name), os.O_RDWR if name != "motd" else os.O_RDONLY)
        for name in ("hosts", "motd", "new")
    }
    before = {name: somebody.fstat(fd) for name, fd in fds.items()}
    back(fs, top)
    for name, fd in fds.items():
        st = somebody.fstat(fd)
        assert (st.st_nlink, st.st_size, st.st_ino, st.st_dev) == (
            0, before[name].st_size, before[name].st_ino, before[name].st_dev,
        )  # fmt: skip
        assert st.st_mode == before[name].st_mode
    assert somebody.pread(fds["hosts"], 100, 0) == b"changed, and longer"
    assert somebody.pread(fds["motd"], 100, 0) == b"welcome"
    assert somebody.pwrite(fds["new"], b"er", 3) == 2
    assert somebody.pread(fds["new"], 100, 0) == b"newer"
    somebody.ftruncate(fds["new"], 2)
    somebody.fchmod(fds["new"], 0o640)
    somebody.fsync(fds["new"])
    assert somebody.fstat(fds["new"]).st_mode & 0o777 == 0o640
    again = somebody.open(f"/proc/self/fd/{fds['new']}", os.O_RDWR)
    assert somebody.pread(again, 100, 0) == b"ne"
    assert (mnt / "etc/hosts").read_text() == "base"
    for fd in [*fds.values(), again]:
        somebody.close(fd)
    deadline = time.monotonic() + WITHIN
    while fs.tree.orphans:  # The kernel tells of the last close(2) after it.
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sorted(os.listdir(mnt / "etc")) == ["hosts", "motd"]


def test_writing_goes_on(fs: UnionFS, top: Path, mnt: Path, somebody: Someone) -> None:
    """As a container is rolled back: the upper is committed first, which moves what is being written."""
    fd = somebody.open(str(mnt / "etc/hosts"), os.O_WRONLY | os.O_TRUNC)
    reader = somebody.open(str(mnt / "etc/hosts"), os.O_RDONLY)
    somebody.write(fd, b"first ")
    somebody.fsync(fd)
    fs.commit(top / "snapshot")
    somebody.write(fd, b"second ")
    back(fs, top)
    somebody.write(fd, b"third")
    assert somebody.pread(reader, 100, 0) == b"first second third"
    assert (mnt / "etc/hosts").read_text() == "base"
    somebody.close(fd)
    somebody.close(reader)
    assert (top / "snapshot/etc/hosts").read_text() == "first "
    back(fs, top, 2, ("snapshot", "base"))
    assert (mnt / "etc/hosts").read_text() == "first "


def test_directories_that_processes_are_in(fs: UnionFS, top: Path, mnt: Path) -> None:
    write(mnt / "usr/share/doc/more", "more")
    write(mnt / "srv/www/index", "page")
    write(mnt / "usr/share/doc/negative/gone", "gone")
    with Someone() as stays, Someone() as goes:
        stays.chdir(str(mnt / "usr/share/doc"))
        goes.chdir(str(mnt / "srv/www"))
        assert sorted(stays.listdir(".")) == ["more", "negative", "readme"]
        assert goes.listdir(".") == ["index"]
        number = stays.stat(".").st_ino
        with pytest.raises(FileNotFoundError):
            stays.stat("later")
        later = top / "later"
        write(later / "usr/share/doc/later", "later")
        back(fs, top, lowers=("later", "base"))
        assert sorted(stays.listdir(".")) == ["later", "readme"]
        assert stays.stat("later").st_size == 5
        assert stays.getcwd() == str(mnt / "usr/share/doc")
        assert stays.stat(".").st_ino == number
        assert stays.stat(str(mnt / "usr/share/doc")).st_ino == number
        with pytest.raises(FileNotFoundError):
            stays.stat("more")
        fd = stays.open("made", os.O_CREAT | os.O_WRONLY, 0o644)
        stays.close(fd)
        assert (top / "upper1/usr/share/doc/made").exists()
        for what in (lambda: goes.stat("index"), lambda: goes.open("new", os.O_CREAT | os.O_WRONLY, 0o644)):
            with pytest.raises(FileNotFoundError):
                what()
        try:
            assert goes.listdir(".") == []
        except FileNotFoundError:
            pass
        with pytest.raises(FileNotFoundError):
            os.stat(mnt / "srv")
        back(fs, top, 2)
        assert sorted(stays.listdir(".")) == ["readme"]


def test_a_program_that_runs_goes_on(fs: UnionFS, top: Path, mnt: Path) -> None:
    program = mnt / "etc/python"
    shutil.copy2(os.path.realpath(sys.executable), program)
    data = mnt / "etc/data"
    data.write_bytes(b"mapped" * 100_000)
    code = (
        "import mmap, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "mapped = mmap.mmap(file.fileno(), 0)\n"
        "print(mapped[:6], flush=True)\n"
        "input()\n"
        "mapped[300_000:300_006] = b'CHANGE'\n"
        "import decimal, json\n"
        "print(json.dumps([mapped[:6].decode(), mapped[300_000:300_006].decode(), len(mapped)]), flush=True)\n"
    )
    with subprocess.Popen(
        [program, "-c", code, data], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONHOME": sys.base_prefix},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "b'mapped'\n"
        back(fs, top)
        assert not program.exists()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == '["mapped", "CHANGE", 600000]\n'
        assert process.wait() == 0


@pytest.mark.parametrize("way", [WAYS[name] for name in KNOWING], ids=KNOWING)
def test_what_is_mounted_on_a_directory_stays(fs: UnionFS, top: Path, mnt: Path) -> None:
    (mnt / "etc/hosts").write_text("changed")
    other = top / "other"
    write(other / "inside", "inside")
    subprocess.run(["mount", "--bind", other, mnt / "usr/share"], check=True)
    try:
        back(fs, top)
        assert (mnt / "etc/hosts").read_text() == "base"
        assert os.listdir(mnt / "usr/share") == ["inside"]
    finally:
        subprocess.run(["umount", mnt / "usr/share"], check=True)
    assert (mnt / "usr/share/doc/readme").read_text() == "read"


@pytest.mark.needs("find")
def test_programs_that_walk_meanwhile(fs: UnionFS, top: Path, mnt: Path) -> None:
    """Names that are in both are always there, and lead to the one or the other."""
    other = top / "other"
    write(other / "etc/hosts", "changed, and longer")
    write(other / "usr/share/doc/readme", "read more")
    write(other / "srv/www/index", "page")
    for i in range(0, 200, 5):
        write(other / f"many/{i:03}", "other")
        write(other / f"many/x{i:03}", "extra")
    code = (
        "import os, sys\n"
        "top, both = sys.argv[1], {('base', 4), ('changed, and longer', 19)}\n"
        "print('begun', flush=True)\n"
        "rounds = 0\n"
        "while not os.path.exists(sys.argv[2]):\n"
        "    rounds += 1\n"
        "    with open(top + '/etc/hosts') as file:\n"
        "        text = file.read()\n"
        "    assert text in ('base', 'changed, and longer'), text\n"
        "    assert os.stat(top + '/etc/hosts').st_size in (4, 19)\n"
        "    for i in range(0, 200, 5):\n"
        "        path = f'{top}/many/{i:03}'\n"
        "        with open(path) as file:\n"
        "            text = file.read()\n"
        "        assert text in ('other', str(i)), (path, text)\n"
        "    names = {name for name in os.listdir(top + '/many') if not name.startswith('x')}\n"
        "    assert names == {f'{i:03}' for i in range(200)}, {f'{i:03}' for i in range(200)} - names\n"
        "    os.chmod(top + '/usr/share/doc/readme', 0o640 + rounds % 8)\n"
        "print(rounds)\n"
    )
    stop = top / "stop"
    walking = subprocess.Popen([sys.executable, "-c", code, mnt, stop], stdout=subprocess.PIPE, text=True)
    finding = subprocess.Popen(
        ["sh", "-c", 'while ! [ -e "$1" ]; do find "$0" -type f -size +100k -o -newer /nothing 2>&1; done', mnt, stop],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    with walking, finding:
        try:
            assert walking.stdout is not None
            assert walking.stdout.readline() == "begun\n"
            for number in range(1, 31):
                back(fs, top, number, ("other", "base") if number % 2 else ("base",))
                time.sleep(0.02)
        finally:
            stop.touch()
        assert int(walking.communicate()[0]) > 0
        assert walking.returncode == 0
        complaints = finding.communicate()[0].splitlines()
        assert not [line for line in complaints if "No such file" not in line]


def test_an_engine_that_can_not_tell(top: Path) -> None:
    with UnionFS([top / "base"], top / "upper0") as fs:
        (top / "upper1").mkdir()
        with unionfs.mount.mount(fs, top / "mnt", engine="fusepy", sole=True):
            with pytest.raises(MountError, match="can't tell the kernel"):
                fs.restack([top / "base"], top / "upper1")
            (top / "mnt/etc/hosts").write_text("still there")
        assert (top / "upper0/etc/hosts").read_text() == "still there"
        back(fs, top)
        assert fs.read_text("/etc/hosts") == "base"


@pytest.mark.overlay
def test_while_the_kernel_has_the_upper(top: Path) -> None:
    with UnionFS([top / "base"], top / "upper0") as fs:
        (top / "upper1").mkdir()
        with unionfs.mount.mount(fs, top / "mnt", engine="kernel"):
            with pytest.raises(OSError, match="overlayfs has the upper"):
                fs.restack([top / "base"], top / "upper1")
        back(fs, top)

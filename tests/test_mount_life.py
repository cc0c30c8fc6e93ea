"""A mount in this process: its beginning and end, what the API and the mount see of each other, what goes wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import unionfs.mount
from tests import support
from unionfs.errors import MountError
from unionfs.mount import mountinfo
from unionfs.testing.engine_base import fails
from unionfs.union.fs import UnionFS

pytestmark = pytest.mark.fuse


@pytest.fixture
def layers(scratch: Path) -> Path:
    """A directory with three lowers, `upper`, `work` and the mountpoint `mnt`."""
    for name in ("top", "middle", "bottom", "upper", "work", "mnt"):
        (scratch / name).mkdir()
    (scratch / "top/t").write_text("top")
    (scratch / "middle/m").write_text("middle")
    (scratch / "bottom/b").write_text("bottom")
    return scratch


def union(layers: Path, *, upper: bool = True) -> UnionFS:
    lower = [layers / name for name in ("top", "middle", "bottom")]
    if not upper:
        return UnionFS(lower=lower)
    return UnionFS(lower=lower, upper=layers / "upper", work=layers / "work")


@pytest.fixture
def fs(layers: Path) -> Iterator[UnionFS]:
    made = union(layers)
    yield made
    made.close()


@pytest.fixture
def mnt(layers: Path) -> Path:
    return layers / "mnt"


def refused(code: int) -> pytest.RaisesExc[MountError]:
    return pytest.raises(MountError, check=lambda error: error.errno == code)


# What the two doors see of each other


def test_changes_through_the_api_show_at_once(fs: UnionFS, mnt: Path) -> None:
    tree = fs.tree
    with unionfs.mount.mount(fs, mnt):
        for number in range(20):
            name = b"api-%d" % number
            path = mnt / os.fsdecode(name)
            with fails(errno.ENOENT):
                os.stat(path)
            _, handle = tree.create(tree.root, name, 0o644, os.O_RDWR)
            assert os.stat(path).st_size == 0
            handle.pwrite(b"first", 0)
            assert path.read_bytes() == b"first"
            handle.pwrite(b"other", 0)  # The same size, most likely within the same tick of the clock.
            assert path.read_bytes() == b"other"
            handle.close()
            tree.setattr(tree.lookup(tree.root, name), mode=0o600)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            tree.rename(tree.root, name, tree.root, name + b"-new")
            assert path.with_name(path.name + "-new").exists()
            assert not path.exists()
            tree.unlink(tree.root, name + b"-new")
            assert set(os.listdir(mnt)) == {"t", "m", "b"}


def test_changes_through_the_mount_show_in_the_api(fs: UnionFS, mnt: Path) -> None:
    tree = fs.tree
    with unionfs.mount.mount(fs, mnt):
        (mnt / "b").write_text("changed")
        os.rename(mnt / "t", mnt / "renamed")
        os.unlink(mnt / "m")
        handle = tree.open(tree.lookup(tree.root, b"b"), os.O_RDONLY)
        assert handle.pread(100, 0) == b"changed"
        handle.close()
        assert {name for name, _, _ in tree.listdir(tree.root)} == {b"b", b"renamed"}


# Beginning and end


def test_everything_is_in_the_upper_after_the_block(fs: UnionFS, layers: Path, mnt: Path) -> None:
    with unionfs.mount.mount(fs, mnt) as mounted:
        assert mounted.mountpoint == str(mnt)
        assert mounted.engine == support.best_engine()
        (mnt / "new").write_bytes(b"x" * 300_000)
    assert os.listdir(mnt) == []
    assert (layers / "upper/new").read_bytes() == b"x" * 300_000
    assert not [thread for thread in threading.enumerate() if "unionfs mount" in thread.name]


def test_a_union_can_be_mounted_again_and_again(fs: UnionFS, mnt: Path) -> None:
    for number in range(5):
        with unionfs.mount.mount(fs, mnt):
            (mnt / f"turn-{number}").touch()
            assert len(os.listdir(mnt)) == 4 + number


def test_what_proc_mounts_says(fs: UnionFS, mnt: Path) -> None:
    source = "a source, with \\ and ü"
    with unionfs.mount.mount(fs, mnt, source=source, exec=False, dev=False, flags=("noatime",)) as mounted:
        entry = mountinfo.mount_at(mounted.mountpoint)
        assert entry is not None
        assert (entry.fstype, entry.source) == ("fuse.unionfs", source)
        assert {"rw", "noexec", "nodev", "noatime"} <= set(entry.options)
    with unionfs.mount.mount(fs, mnt, read_only=True), fails(errno.EROFS):
        (mnt / "x").touch()


def test_a_union_without_upper_is_mounted_read_only(layers: Path, mnt: Path) -> None:
    fs = union(layers, upper=False)
    with unionfs.mount.mount(fs, mnt):
        assert (mnt / "m").read_text() == "middle"
        with fails(errno.EROFS):
            (mnt / "m").write_text("no")
        entry = mountinfo.mount_at(str(mnt))
        assert entry is not None
        assert "ro" in entry.options
    fs.close()


def test_two_unions_at_once(fs: UnionFS, layers: Path, mnt: Path) -> None:
    other = union(layers, upper=False)
    (layers / "mnt2").mkdir()
    with unionfs.mount.mount(other, layers / "mnt2"):
        with unionfs.mount.mount(fs, mnt):
            (mnt / "m").write_text("changed")
            assert (layers / "mnt2/m").read_text() == "middle"
        assert (layers / "mnt2/m").read_text() == "middle"
    other.close()


def test_somebody_elses_umount_ends_the_mount(fs: UnionFS, mnt: Path) -> None:
    mounted = unionfs.mount.mount(fs, mnt)
    assert not mounted.wait(0.05)
    (mnt / "new").touch()
    subprocess.run(["umount", mnt] if os.geteuid() == 0 else ["fusermount", "-u", mnt], check=True)
    assert mounted.wait(10)
    mounted.unmount()
    with unionfs.mount.mount(fs, mnt):
        assert (mnt / "new").exists()


def test_busy(fs: UnionFS, mnt: Path) -> None:
    mounted = unionfs.mount.mount(fs, mnt)
    with open(mnt / "b", "r+b", buffering=0) as file:
        with refused(errno.EBUSY) as caught:
            mounted.unmount()
        assert f"({os.getpid()})" in str(caught.value)
        mounted.unmount(lazy=True)
        assert os.listdir(mnt) == []
        assert file.read() == b"bottom"
        file.write(b"s")
        assert not mounted.wait(0.05)
    assert mounted.wait(10)
    handle = fs.tree.open(fs.tree.resolve(b"/b"), os.O_RDONLY)
    assert handle.pread(100, 0) == b"bottoms"
    handle.close()


@pytest.mark.root
def test_another_namespace_that_shows_the_mount(fs: UnionFS, mnt: Path, caplog: pytest.LogCaptureFixture) -> None:
    support.with_mounts_of_its_own(mnt)
    mnt /= "inside"
    mnt.mkdir()
    mounted = unionfs.mount.mount(fs, mnt)
    script = 'mount --make-private "${1%/*}"; echo; read line; cat "$1/b"'
    other = [*support.MOUNT_NAMESPACE, "sh", "-c", script, "sh", str(mnt)]
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (mnt / "b").write_text("changed")
        mounted.unmount()
        assert os.listdir(mnt) == []
        assert "another mount namespace" in caplog.text
        assert not mounted.wait(0)
        assert process.communicate("go\n", timeout=30)[0] == "changed"
    assert mounted.wait(10)


def test_an_error_in_the_block_is_not_hidden_by_a_busy_mount(fs: UnionFS, mnt: Path) -> None:
    with contextlib.ExitStack() as stack:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012  # The block is what is tested.
            with unionfs.mount.mount(fs, mnt):
                stack.enter_context(open(mnt / "b"))
                raise ZeroDivisionError
        assert not os.path.ismount(mnt)


def test_subprocesses_and_signals_are_as_before(fs: UnionFS, mnt: Path) -> None:
    def dispositions() -> list[str]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return [line for line in lines if line.startswith(("SigIgn", "SigCgt", "SigBlk"))]

    usual, before = subprocess._USE_VFORK, dispositions()
    with unionfs.mount.mount(fs, mnt):
        assert dispositions() == before
        # With vfork, the child's look at its directory would wait for our threads, and these for the child.
        subprocess.run(["/bin/pwd"], cwd=mnt, check=True, timeout=20, stdout=subprocess.DEVNULL)
    assert usual == subprocess._USE_VFORK
    assert dispositions() == before


def test_a_forked_child_leaves_the_mount_alone(fs: UnionFS, mnt: Path) -> None:
    with unionfs.mount.mount(fs, mnt) as mounted:
        pid = os.fork()
        if pid == 0:
            mounted.unmount()
            os._exit(0)
        os.waitpid(pid, 0)
        assert (mnt / "b").read_text() == "bottom"


PROGRAM = """
import sys, time
import unionfs.mount
from unionfs.union.fs import UnionFS
top = sys.argv[1]
fs = UnionFS(lower=[f"{top}/{name}" for name in ("top", "middle", "bottom")], upper=f"{top}/upper", work=f"{top}/work")
mounted = unionfs.mount.mount(fs, f"{top}/mnt")
print("mounted", flush=True)
"""


def start(layers: Path, then: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM + then, layers], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mounted\n"
    return process


def test_a_program_that_ends_takes_its_mount_along(layers: Path, mnt: Path) -> None:
    with start(layers, "(open(f'{top}/mnt/new', 'w')).write('kept')\n") as process:
        assert process.wait(20) == 0
    assert not os.path.ismount(mnt)
    assert (layers / "upper/new").read_text() == "kept"


def test_sigterm_still_kills_a_program_with_a_mount(layers: Path, mnt: Path) -> None:
    with start(layers, "time.sleep(60)") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
    subprocess.run([sys.executable, "-m", "unionfs.cli", "umount", mnt], check=True)


def test_a_killed_programs_mount(layers: Path, fs: UnionFS, mnt: Path) -> None:
    fs.close()
    with start(layers, "time.sleep(60)") as process:
        (mnt / "new").write_text("kept")
        process.kill()
    again = union(layers)
    with refused(errno.ENOTCONN):
        unionfs.mount.mount(again, mnt)
    subprocess.run([sys.executable, "-m", "unionfs.cli", "umount", mnt], check=True)
    with unionfs.mount.mount(again, mnt):
        assert (mnt / "new").read_text() == "kept"
    again.close()


# What goes wrong


def test_a_bug_is_eio_with_one_log_line_and_the_mount_lives_on(
    fs: UnionFS, mnt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("a bug")

    with unionfs.mount.mount(fs, mnt):
        os.symlink("x", mnt / "link")
        with monkeypatch.context() as patch:
            patch.setattr(type(fs.tree), "readlink", broken)
            with fails(errno.EIO):
                os.readlink(mnt / "link")
        assert os.readlink(mnt / "link") == "x"
    records = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(records) == 1
    assert "readlink" in records[0].getMessage().lower()
    assert "a bug" in records[0].getMessage()


def test_a_persons_own_rename_to_a_hidden_name(fs: UnionFS, mnt: Path) -> None:
    name = ".fuse_hidden0123456789abcdef"
    with unionfs.mount.mount(fs, mnt):
        os.rename(mnt / "b", mnt / name)
        assert name in os.listdir(mnt)
        assert (mnt / name).read_text() == "bottom"
        os.unlink(mnt / name)
        assert name not in os.listdir(mnt)


def test_mountpoints_that_are_refused(fs: UnionFS, layers: Path, mnt: Path) -> None:
    with refused(errno.ENOENT):
        unionfs.mount.mount(fs, layers / "missing")
    with refused(errno.ENOTDIR):
        unionfs.mount.mount(fs, layers / "bottom/b")
    with refused(errno.EINVAL):
        unionfs.mount.mount(fs, mnt, engine="no-such-engine")
    with unionfs.mount.mount(fs, mnt), refused(errno.EBUSY):
        unionfs.mount.mount(fs, mnt)
    (layers / "bottom/inside").mkdir()
    with refused(errno.ELOOP):
        unionfs.mount.mount(fs, layers / "bottom/inside")
    with refused(errno.ELOOP):
        unionfs.mount.mount(fs, layers)


def test_a_lower_that_hides_the_mountpoint_may_hold_it(layers: Path) -> None:
    (layers / "bottom/sub/inside").mkdir(parents=True)
    fs = UnionFS(lower=[layers / "top", layers / "bottom"], hide=[layers / "bottom/sub/inside"])
    with unionfs.mount.mount(fs, layers / "bottom/sub/inside"):
        assert sorted(os.listdir(layers / "bottom/sub/inside")) == ["b", "sub", "t"]
        assert os.listdir(layers / "bottom/sub/inside/sub") == []
    fs.close()


def test_mounting_over_a_layer_itself(layers: Path) -> None:
    fs = union(layers)
    with unionfs.mount.mount(fs, layers / "bottom"):
        assert sorted(os.listdir(layers / "bottom")) == ["b", "m", "t"]
        (layers / "bottom/b").write_text("changed")
    assert (layers / "bottom/b").read_text() == "bottom"
    fs.close()


def test_a_missing_libfuse_is_told_in_one_line(fs: UnionFS, mnt: Path) -> None:
    code = (
        "import sys, unionfs.mount\n"
        "from unionfs.mount import get_engine\n"
        "assert 'fuse' not in sys.modules\n"
        "try: get_engine('fusepy')\n"
        "except unionfs.mount.engine.MountError as error: print(error.strerror)\n"
    )
    environment = {**os.environ, "FUSE_LIBRARY_PATH": "/nowhere/libfuse.so.2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "apt install libfuse2" in done.stdout


def test_mount_from_a_thread(fs: UnionFS, mnt: Path) -> None:
    def work() -> None:
        with unionfs.mount.mount(fs, mnt):
            (mnt / "from-thread").touch()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert b"from-thread" in {name for name, _, _ in fs.tree.listdir(fs.tree.root)}
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    read, write = os.pipe()
    os.close(read)
    with fails(errno.EPIPE):
        os.write(write, b"x")
    os.close(write)


def test_users_of(fs: UnionFS, mnt: Path) -> None:
    with unionfs.mount.mount(fs, mnt):
        entry = mountinfo.mount_at(str(mnt))
        assert entry is not None
        assert mountinfo.users_of(entry.device) == []
        with subprocess.Popen(["sleep", "60"], cwd=mnt) as process:
            deadline = time.monotonic() + 10
            while not (users := mountinfo.users_of(entry.device)) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert users == [f"sleep ({process.pid})"]
            process.kill()


def test_on_its_own_layer_with_few_descriptors(scratch: Path) -> None:
    """A layer that the mount hides is not opened again by its path, which leads into the mount."""
    for number in range(100):
        (scratch / f"base/d{number}").mkdir(parents=True)
    code = (
        "import os, resource, sys, unionfs, unionfs.mount\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from unionfs.layer import descriptors\n"
        "descriptors.LIMIT = 16\n"
        "base = sys.argv[1]\n"
        "with unionfs.UnionFS(lower=[base]) as fs, unionfs.mount.mount(fs, base, sole=True):\n"
        "    print(sum(len(os.listdir(os.path.join(base, name))) for name in os.listdir(base)))\n"
        "    print(len(os.listdir(base)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, scratch / "base"],
        capture_output=True, text=True, timeout=60, cwd=support.REPO, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["0", "100"], "")

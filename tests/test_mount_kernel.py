"""The kernel's overlayfs as an engine: the suite for engines, and what is this engine's own."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import unionfs.mount
from tests.arena import Setting, run_seed
from tests.kernellog import quiet_kernel
from tests.support import REPO
from tests.test_union_kernel import Turns, is_foreign
from unionfs import MemoryLayer
from unionfs.errors import MountError, UnionError
from unionfs.mount import Mount, MountOptions, mountinfo
from unionfs.mount.engine import engine_names, get_engine, mount_fastest
from unionfs.testing.engine import EngineSuite
from unionfs.testing.oracle import differences, snapshot
from unionfs.testing.surfaces import HostSurface, Surface, TreeSurface
from unionfs.union.fs import UnionFS

pytestmark = pytest.mark.overlay

# Another test's process in a mount namespace of its own may have a copy of a mount for a while.
PATIENCE = 60


def linux() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


@contextlib.contextmanager
def mounted(fs: UnionFS, mountpoint: Path, **options: Any) -> Iterator[Mount]:
    """A mount that has ended, for all the world, when the block has."""
    with unionfs.mount.mount(fs, mountpoint, engine="kernel", **options) as found:
        yield found
    assert found.wait(PATIENCE)


class TestKernel(EngineSuite):
    @pytest.fixture
    def base(self, scratch: Path) -> Path:
        return scratch

    def mount(self, fs: UnionFS, mountpoint: Path) -> contextlib.AbstractContextManager[object]:
        return mounted(fs, mountpoint)

    def test_reader_sees_what_is_written_after_its_open(self, merged: Path) -> None:
        if linux() < (6, 13):
            pytest.skip("not applicable: before Linux 6.13, who opened a file before its copy-up goes on with the old")
        super().test_reader_sees_what_is_written_after_its_open(merged)

    def test_rename_over_an_open_file(self, merged: Path) -> None:
        """What was not copied up is not changed by a rename over it, and keeps its link count."""
        with open(merged / "shared/over", "rb", buffering=0) as old:
            (merged / "shared/new").write_text("new")
            os.rename(merged / "shared/new", merged / "shared/over")
            assert (merged / "shared/over").read_text() == "new"
            assert old.read() == b"from the top"
            assert os.fstat(old.fileno()).st_nlink == 1


# The union lends its upper, and gets it back


class Lending(Turns):
    """One union, open all the time; with every `remount` its subject is the kernel's mount, or again the core."""

    fs: UnionFS | None = None
    mount: Mount | None = None

    def subject(self) -> Surface:
        self.kernel = not self.kernel
        self.give_back()
        if self.fs is None:
            self.fs = UnionFS(lower=self.lowers, upper=f"{self.top}/upper", work=f"{self.top}/work")
        if not self.kernel:
            return TreeSurface(self.fs.tree)
        os.makedirs(f"{self.top}/merged", exist_ok=True)
        self.mount = unionfs.mount.mount(self.fs, f"{self.top}/merged", engine="kernel")
        return HostSurface(f"{self.top}/merged")

    def give_back(self) -> None:
        if self.mount is not None:
            self.mount.unmount()
            assert self.mount.wait(PATIENCE)
            self.mount = None

    def close(self) -> None:
        self.give_back()
        if self.fs is not None:
            self.fs.close()
        super().close()


@pytest.mark.parametrize("seed", range(4))
def test_by_turns_through_the_mount_and_the_api(scratch: Path, seed: int) -> None:
    with quiet_kernel():
        run_seed(Setting(scratch, kind=Lending, steps=80, remount_every=10, compare_every=20, skips=is_foreign), seed)


@pytest.fixture
def top(scratch: Path) -> Path:
    """Two lowers ``a`` over ``b``, and the other directories of a mount."""
    for name in ("a", "b", "up", "work", "mnt"):
        (scratch / name).mkdir()
    for name, text in {"a/d/one": "1", "b/d/two": "22", "b/d/three": "333", "b/f": "file", "b/gone": "x"}.items():
        (scratch / name).parent.mkdir(exist_ok=True)
        (scratch / name).write_text(text)
    (scratch / "b/twin1").write_text("twins")
    os.link(scratch / "b/twin1", scratch / "b/twin2")
    return scratch


def union(top: Path, **options: Any) -> UnionFS:
    return UnionFS(lower=[top / "a", top / "b"], upper=top / "up", work=top / "work", **options)


def in_memory(top: Path) -> UnionFS:
    return UnionFS(lower=[MemoryLayer.from_dict({"x": "y"}), top / "b"], upper=top / "up", work=top / "work")


def change(mnt: Path) -> None:
    os.rename(mnt / "d", mnt / "moved")
    os.chmod(mnt / "f", 0o640)
    os.unlink(mnt / "gone")
    (mnt / "new").write_text("new")
    (mnt / "twin1").write_text("changed")


CHANGES = ["D /d", "C /f", "D /gone", "A /moved", "A /moved/one", "A /moved/three", "A /moved/two", "A /new",
           "C /twin1", "C /twin2"]  # fmt: skip


def test_diff_and_commit_after_it(top: Path) -> None:
    with union(top) as fs:
        assert fs.listdir("/d")  # so that it is known, and must be forgotten
        before = fs.stat("/f")
        with mounted(fs, top / "mnt"):
            change(top / "mnt")
        assert [str(found) for found in fs.diff()] == CHANGES
        after = fs.stat("/f")
        assert (after.st_ino, stat.S_IMODE(after.st_mode)) == (before.st_ino, 0o640)
        assert not fs.exists("/d")
        assert sorted(fs.listdir("/moved")) == ["one", "three", "two"]
        assert fs.read_text("/twin2") == "changed"
        fs.write_text("/moved/one", "more")
        fs.commit(message="by the kernel")
        assert [str(found) for found in fs.diff()] == []
        with mounted(fs, top / "mnt"):
            assert (top / "mnt/moved/one").read_text() == "more"
            (top / "mnt/moved/one").write_text("again")
        assert [str(found) for found in fs.diff()] == ["C /moved/one"]


@pytest.mark.fuse
def test_the_same_tree_through_the_other_engines(top: Path) -> None:
    with union(top) as fs:
        with mounted(fs, top / "mnt"):
            change(top / "mnt")
            seen = snapshot(HostSurface(top / "mnt"))
        assert differences(seen, snapshot(TreeSurface(fs.tree))) == []
        for engine in engine_names():
            with fs_mounted(fs, top / "mnt", engine):
                assert differences(seen, snapshot(HostSurface(top / "mnt"))) == [], engine


@contextlib.contextmanager
def fs_mounted(fs: UnionFS, mountpoint: Path, engine: str) -> Iterator[None]:
    with unionfs.mount.mount(fs, mountpoint, engine=engine) as found:
        yield
    assert found.wait(PATIENCE)


def test_nothing_changes_through_the_api_meanwhile(top: Path) -> None:
    attempts: list[Callable[[UnionFS], object]] = [
        lambda fs: fs.write_text("/f", "x"),
        lambda fs: fs.write_text("/other", "x"),
        lambda fs: fs.mkdir("/dir"),
        lambda fs: fs.remove("/f"),
        lambda fs: fs.rename("/f", "/g"),
        lambda fs: fs.chmod("/f", 0o600),
        lambda fs: fs.setxattr("/f", "user.x", b""),
        lambda fs: fs.commit(),
    ]
    with union(top) as fs:
        with mounted(fs, top / "mnt") as found:
            for attempt in attempts:
                with pytest.raises(OSError, match=f"overlayfs has the upper, mounted at {top}/mnt") as caught:
                    attempt(fs)
                assert caught.value.errno == errno.EBUSY
            (top / "mnt2").mkdir()
            with pytest.raises(MountError, match="overlayfs has the upper"):
                unionfs.mount.mount(fs, top / "mnt2", engine="kernel")
            assert not found.wait(0)
        assert [str(found) for found in fs.diff()] == []
        for attempt in attempts[:-1]:
            attempt(fs)
            fs.write_text("/f", "again")


def test_files_that_are_open_in_the_union(top: Path) -> None:
    with union(top) as fs:
        with fs.open("/f", "a"):
            with pytest.raises(MountError, match="/f is open for writing"):
                unionfs.mount.mount(fs, top / "mnt", engine="kernel")
        with fs.open("/d/three", buffering=0, mode="rb") as reader:
            with mounted(fs, top / "mnt"):
                (top / "mnt/d/three").write_text("other")
                assert reader.read(1) == b"3"
            assert reader.read() == b"33"
            assert fs.read_text("/d/three") == "other"


def test_whoever_unmounts_gives_it_back(top: Path) -> None:
    with union(top) as fs:
        found = unionfs.mount.mount(fs, top / "mnt", engine="kernel")
        (top / "mnt/new").touch()
        subprocess.run(["umount", top / "mnt"], check=True)
        assert found.wait(PATIENCE)
        found.unmount()
        assert fs.exists("/new")
        fs.remove("/new")


def test_lazily_unmounted_it_is_the_kernels_to_the_last_user(top: Path) -> None:
    with union(top) as fs:
        found = unionfs.mount.mount(fs, top / "mnt", engine="kernel")
        with open(top / "mnt/f", "a") as file:
            with pytest.raises(MountError, match="in use") as caught:
                found.unmount()
            assert caught.value.errno == errno.EBUSY
            found.unmount(lazy=True)
            assert not os.path.ismount(top / "mnt")
            assert not found.wait(0.1)
            file.write(", and more")
            with pytest.raises(OSError, match="overlayfs has the upper"):
                fs.remove("/f")
        assert found.wait(PATIENCE)
        assert fs.read_text("/f") == "file, and more"
        fs.remove("/f")


def test_a_union_that_is_closed_first(top: Path) -> None:
    with union(top) as fs:
        found = unionfs.mount.mount(fs, top / "mnt", engine="kernel")
    (top / "mnt/new").write_text("new")
    found.unmount()
    assert found.wait(PATIENCE)
    with union(top) as fs:
        assert fs.read_text("/new") == "new"


def test_a_volatile_union_mounts_again(top: Path) -> None:
    note = top / "work/work/incompat/volatile"
    with union(top, volatile=True) as fs:
        for turn in range(2):
            with mounted(fs, top / "mnt"):
                assert note.exists()
                (top / f"mnt/{turn}").touch()
        assert not note.exists()
        found = unionfs.mount.mount(fs, top / "mnt", engine="kernel")
    subprocess.run(["umount", top / "mnt"], check=True)
    assert found.wait(PATIENCE)
    assert note.exists()  # The union was closed and could not clear it.
    with union(top) as fs, mounted(fs, top / "mnt"):
        assert {"0", "1"} <= set(os.listdir(top / "mnt"))


def test_our_marks_are_not_shown(top: Path) -> None:
    with union(top) as fs:
        fs.chmod("/f", 0o600)
        fs.rename("/d", "/moved")
        fs.write_text("/twin1", "changed")
        fs.commit()
        fs.chmod("/f", 0o644)
        marks = {key for path in ("up", "up/f") for key in os.listxattr(top / path)}
        assert any("unionfs.ino" in key for key in marks)
        with mounted(fs, top / "mnt"):
            for name in ("", "f", "moved", "moved/one", "twin2"):
                assert os.listxattr(top / "mnt" / name) == []


def test_options(top: Path) -> None:
    with union(top) as fs:
        options = {"read_only": True, "suid": False, "dev": False, "exec": False, "source": "some source"}
        with mounted(fs, top / "mnt", **options, flags=("noatime", "sync", "dirsync")):
            entry = mountinfo.mount_at(f"{top}/mnt")
            assert entry is not None
            assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(entry.options)
            assert {"ro", "sync", "dirsync", "redirect_dir=on", "metacopy=on", "index=on"} <= set(entry.super_options)
            assert entry.source == "some source"
            with pytest.raises(OSError, match="Read-only") as caught:
                (top / "mnt/x").touch()
            assert caught.value.errno == errno.EROFS
        with mounted(fs, top / "mnt"):
            entry = mountinfo.mount_at(f"{top}/mnt")
            assert entry is not None
            assert not {"ro", "nosuid", "nodev", "noexec"} & set(entry.options)
    with UnionFS(lower=[top / "a", top / "b"]) as fs, mounted(fs, top / "mnt"):
        assert set(os.listdir(top / "mnt/d")) == {"one", "two", "three"}
        with pytest.raises(OSError, match="Read-only"):
            (top / "mnt/x").touch()


def test_redirects_and_metacopies_that_were_not_asked_for(top: Path) -> None:
    with union(top, redirect_dir=False, metacopy=False) as fs, mounted(fs, top / "mnt"):
        with pytest.raises(OSError, match="cross-device"):
            os.rename(top / "mnt/d", top / "mnt/e")
        os.chmod(top / "mnt/f", 0o600)
        assert (top / "up/f").stat().st_blocks


# Which engine is taken


def test_auto_never_takes_it(top: Path) -> None:
    assert "kernel" in engine_names()
    assert get_engine("kernel").name == "kernel"
    if len(engine_names()) > 1:
        with contextlib.suppress(MountError):
            assert get_engine().name != "kernel"


@pytest.mark.fuse
def test_the_fastest_engine_that_works(top: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "unionfs.mount.engine")
    options = MountOptions(sole=True)
    with union(top) as fs:
        with mount_fastest(fs, f"{top}/mnt", options) as found:
            assert found.engine == "kernel"
        assert found.wait(PATIENCE)
        with mount_fastest(fs, f"{top}/mnt", options, "fusepy") as found:
            assert found.engine == "fusepy"
        assert caplog.text == ""
    with in_memory(top) as fs, mount_fastest(fs, f"{top}/mnt", options) as found:
        assert found.engine == get_engine().name
        assert "not by kernel" in caplog.text
        assert (top / "mnt/x").read_text() == "y"


# The command


UNIONFS = [sys.executable, "-m", "unionfs.cli"]


def cli(top: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run([*UNIONFS, *args], cwd=top, env=env, capture_output=True, text=True, timeout=60)


MOUNT = ["mount", "mnt", "-l", "a", "-l", "b", "-u", "up", "-w", "work", "--engine", "kernel"]


def ok(top: Path, *args: str) -> str:
    for _ in range(50):
        done = cli(top, *args)
        if "another mount namespace" not in done.stderr:
            break
        time.sleep(0.2)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_mount_and_umount_by_command(top: Path) -> None:
    for turn in range(2):
        ok(top, *MOUNT)
        assert (top / "mnt/f").read_text() == "file" * (turn + 1)
        with open(top / "mnt/f", "a") as file:
            file.write("file")
        done = cli(top, *MOUNT)
        assert done.returncode
        assert "a union is mounted here already" in done.stderr
        with pytest.raises(UnionError):
            union(top)
        if turn == 0:
            subprocess.run(["umount", top / "mnt"], check=True)
        else:
            ok(top, "umount", "mnt")
    with union(top) as fs:
        assert [str(found) for found in fs.diff()] == ["C /f"]


def test_a_killed_daemon_leaves_the_mount_working(top: Path) -> None:
    pid = int(ok(top, *MOUNT, "--json").partition('"pid": ')[2].partition(",")[0])
    os.kill(pid, 9)
    (top / "mnt/new").write_text("new")
    (top / "mnt2").mkdir()
    done = cli(top, "mount", "mnt2", "-l", "a", "-u", "up", "-w", "work")
    assert done.returncode
    assert f"already mounted for writing at {top}/mnt" in done.stderr
    done = cli(top, *MOUNT)
    assert "a union is mounted here already" in done.stderr
    ok(top, "umount", "mnt")
    assert not os.path.ismount(top / "mnt")
    with union(top) as fs:
        assert fs.read_text("/new") == "new"


def test_by_the_helper_of_mount(top: Path) -> None:
    options = f"lowerdir={top}/a:{top}/b,upperdir={top}/up,workdir={top}/work,engine=kernel,volatile,nodev"
    helper = [sys.executable, "-m", "unionfs.cli.mount_helper", "unionfs", f"{top}/mnt", "-o", options]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run(helper, check=True, env=env, timeout=60)
    entry = mountinfo.mount_at(f"{top}/mnt")
    assert entry is not None
    assert (entry.fstype, entry.source) == ("overlay", "unionfs")
    assert "nodev" in entry.options
    ok(top, "umount", "mnt")
    assert not (top / "work/work/incompat").exists()


def test_a_daemon_that_is_told_to_stop_unmounts(top: Path) -> None:
    pid = int(ok(top, *MOUNT, "--json").partition('"pid": ')[2].partition(",")[0])
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while os.path.ismount(top / "mnt"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_another_mount_namespace_that_shows_it_is_told(top: Path) -> None:
    ok(top, *MOUNT)
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "cat"], stdin=subprocess.PIPE) as other:
        while os.readlink(f"/proc/{other.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            time.sleep(0.01)
        done = cli(top, "umount", "mnt")
        assert done.returncode
        assert done.stderr.endswith("unmounted here, but another mount namespace still shows it\n")
        with pytest.raises(UnionError, match="another union writes here"):
            union(top)
        other.communicate()
    ok(top, *MOUNT)
    ok(top, "umount", "mnt")


def test_a_process_takes_its_mount_with_it(top: Path) -> None:
    code = """
import sys, unionfs
fs = unionfs.UnionFS(lower=["a", "b"], upper="up", work="work")
mounted = fs.mount("mnt", engine="kernel")
open("mnt/new", "w").close()
fs.closed = True
"""
    subprocess.run([sys.executable, "-c", code], cwd=top, check=True, env={**os.environ, "PYTHONPATH": str(REPO)})
    assert not os.path.ismount(top / "mnt")
    assert (top / "up/new").exists()

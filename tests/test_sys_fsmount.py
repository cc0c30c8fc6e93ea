"""The mount API in steps, and the end of a file system."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unionfs._sys import fsmount
from unionfs._sys.fsmount import Context, move_mount
from unionfs._sys.inotify import EndOfFilesystem

pytestmark = pytest.mark.root


@pytest.fixture
def mnt(scratch: Path) -> Iterator[Path]:
    (scratch / "mnt").mkdir()
    yield scratch / "mnt"
    subprocess.run(["umount", "--lazy", "--quiet", scratch / "mnt"], check=False)


def mount_tmpfs(mnt: Path, attributes: int = 0) -> EndOfFilesystem:
    with Context("tmpfs") as context:
        context.set("source", "some name")
        context.set("size", "1M")
        context.create()
        fd = context.mount(attributes)
    try:
        end = EndOfFilesystem(f"/proc/self/fd/{fd}")
        move_mount(fd, str(mnt))
    finally:
        os.close(fd)
    return end


def line_of(mnt: Path) -> list[str]:
    with open("/proc/self/mounts") as lines:
        return next(line.split() for line in lines if f" {mnt} " in line)


def test_a_mount_in_steps(mnt: Path) -> None:
    mount_tmpfs(mnt, fsmount.MOUNT_ATTR_NODEV | fsmount.MOUNT_ATTR_NOSUID | fsmount.MOUNT_ATTR_NOATIME).close()
    source, _, fstype, options, *_ = line_of(mnt)
    assert (source, fstype) == (r"some\040name", "tmpfs")
    assert {"rw", "nodev", "nosuid", "noatime", "size=1024k"} <= set(options.split(","))
    assert "noexec" not in options


def test_flags(mnt: Path) -> None:
    with Context("tmpfs") as context:
        context.set("ro")
        context.create()
        fd = context.mount(fsmount.MOUNT_ATTR_RDONLY | fsmount.MOUNT_ATTR_NOEXEC)
    move_mount(fd, str(mnt))
    os.close(fd)
    assert {"ro", "noexec"} <= set(line_of(mnt)[3].split(","))


def test_unknown_file_system() -> None:
    with pytest.raises(OSError, match="No such device") as caught:
        Context("unionfs-no-such-thing")
    assert caught.value.errno == errno.ENODEV


def test_errors_are_in_the_kernels_words() -> None:
    with Context("tmpfs") as context:
        with pytest.raises(OSError, match="tmpfs: Unknown parameter 'nonsense'") as caught:
            context.set("nonsense", "1")
        assert caught.value.errno == errno.EINVAL
        # Told once: the next error does not repeat it.
        with pytest.raises(OSError, match="size") as caught:
            context.set("size", "a lot")
        assert "nonsense" not in str(caught.value)


def test_an_error_without_words_has_those_of_its_errno() -> None:
    with Context("tmpfs") as context:
        with pytest.raises(OSError, match="Invalid argument") as caught:
            context.set("source", "x" * (fsmount.STRING_MAX + 1))
        assert caught.value.errno == errno.EINVAL
        context.set("source", "x" * fsmount.STRING_MAX)


def test_in_the_wrong_order(mnt: Path) -> None:
    with Context("tmpfs") as context, pytest.raises(OSError, match="Invalid argument"):
        context.mount()
    with Context("tmpfs") as context:
        context.create()
        fd = context.mount()
    with pytest.raises(OSError, match="No such file") as caught:
        move_mount(fd, f"{mnt}/missing")
    assert caught.value.filename == f"{mnt}/missing"
    os.close(fd)


def test_a_closed_context() -> None:
    context = Context("tmpfs")
    context.close()
    context.close()
    with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
        context.create()


def test_the_end_comes_with_the_unmount(mnt: Path) -> None:
    end = mount_tmpfs(mnt)
    (mnt / "file").touch()
    os.unlink(mnt / "file")
    assert not end.wait(0)
    assert not end.wait(0.05)
    subprocess.run(["umount", mnt], check=True)
    assert end.wait(60)
    end.close()


def test_the_end_of_what_is_detached_comes_with_its_last_user(mnt: Path) -> None:
    end = mount_tmpfs(mnt)
    with open(mnt / "file", "w"):
        subprocess.run(["umount", "--lazy", mnt], check=True)
        assert not end.wait(0.1)
    assert end.wait(60)
    end.close()


def test_the_end_waits_for_other_mount_namespaces(mnt: Path) -> None:
    end = mount_tmpfs(mnt)
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "cat"], stdin=subprocess.PIPE) as other:
        while os.readlink(f"/proc/{other.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            time.sleep(0.01)
        subprocess.run(["umount", mnt], check=True)
        assert not end.wait(0.1)
        other.communicate()
    assert end.wait(60)
    end.close()


def test_one_thread_waits_while_others_work(mnt: Path) -> None:
    end = mount_tmpfs(mnt)
    waiting = threading.Thread(target=end.wait)
    waiting.start()
    assert waiting.is_alive()
    subprocess.run(["umount", mnt], check=True)
    waiting.join(60)
    assert not waiting.is_alive()
    end.close()


def test_a_watch_of_nothing(scratch: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError) as caught:
        EndOfFilesystem(f"{scratch}/missing")
    assert caught.value.filename == f"{scratch}/missing".encode()
    assert len(os.listdir("/proc/self/fd")) == before

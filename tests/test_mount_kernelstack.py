"""Which stacks the kernel's overlayfs takes, and what is said of the others."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import unionfs.mount
from tests.support import AsUser
from tests.test_mount_kernel import in_memory, mounted, top, union
from unionfs import MemoryLayer
from unionfs._sys.inotify import EndOfFilesystem
from unionfs.errors import MountError
from unionfs.mount import MountOptions, kernel, kernelstack, mountinfo
from unionfs.mount.engine import get_engine
from unionfs.union.fs import UnionFS

__all__ = ["top"]  # the fixture

pytestmark = pytest.mark.overlay


# Many layers, and layers with odd names


def test_five_hundred_layers_and_no_more(top: Path) -> None:
    layers = []
    for number in range(501):
        layers.append(top / f"layer{number}")
        layers[-1].mkdir()
        (layers[-1] / f"file{number}").touch()
    with UnionFS(lower=layers[:500], upper=top / "up", work=top / "work") as fs, mounted(fs, top / "mnt"):
        assert len(os.listdir(top / "mnt")) == 500
    with UnionFS(lower=layers, upper=top / "up", work=top / "work") as fs:
        with pytest.raises(MountError, match=r"too many lower directories, limit is 500 \(there are 501 lowers\)"):
            unionfs.mount.mount(fs, top / "mnt", engine="kernel")
        fs.write_text("/x", "the union is as it was")
    assert not os.path.ismount(top / "mnt")


NAMES = ["a:b", "a,b", "a\\b", "a b\n", "\u540d", "n" * 200 + "/" + "m" * 200]


@pytest.mark.parametrize("singly", [True, False], ids=["fsconfig", "mount"])
def test_names_of_layers(top: Path, monkeypatch: pytest.MonkeyPatch, singly: bool) -> None:
    """By mount(2) as well, for kernels without ``lowerdir+``."""
    if not singly:
        monkeypatch.setattr(kernel, "_takes_layers_singly", lambda: False)
    elif not kernel._takes_layers_singly():
        pytest.skip("not applicable: this kernel takes no lowerdir+")
    for name in NAMES:
        (top / name).mkdir(parents=True)
        (top / name / "in").write_text(name)
    for name in NAMES:
        lowers = [top / name, *(top / other for other in NAMES if other != name)]
        upper, work = top / f"up-{name[:20]}", top / f"work-{name[:20]}"
        upper.mkdir()
        with UnionFS(lower=lowers, upper=upper, work=work, volatile=True) as fs:
            with mounted(fs, top / "mnt", read_only=name == "a,b", flags=("noatime", "sync")):
                assert (top / "mnt/in").read_text() == name
                entry = mountinfo.mount_at(f"{top}/mnt")
                assert entry is not None
                assert {"noatime"} <= set(entry.options)
                assert {"sync", "index=on"} <= set(entry.super_options)
                if name != "a,b":
                    (top / "mnt/new").touch()
            assert fs.exists("/new") == (name != "a,b")


@pytest.mark.parametrize("singly", [True, False], ids=["fsconfig", "mount"])
def test_options_that_the_kernel_does_not_take(
    top: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, singly: bool
) -> None:
    caplog.set_level(logging.INFO, "unionfs.mount.kernel")
    words = kernel._words

    def asked(stack: kernelstack.KernelStack, options: MountOptions) -> dict[str, str | None]:
        return {**words(stack, options), "xino": "nonsense"}

    monkeypatch.setattr(kernel, "_words", asked)
    if not singly:
        monkeypatch.setattr(kernel, "_takes_layers_singly", lambda: False)
    with union(top) as fs, mounted(fs, top / "mnt"):
        entry = mountinfo.mount_at(f"{top}/mnt")
        assert entry is not None
        assert {"redirect_dir=on", "metacopy=on", "index=on"} <= set(entry.super_options)
    assert "without xino" in caplog.text


@pytest.mark.parametrize("singly", [True, False], ids=["fsconfig", "mount"])
def test_nothing_is_left_mounted_when_its_end_can_not_be_watched(
    top: Path, monkeypatch: pytest.MonkeyPatch, singly: bool
) -> None:
    def too_many(path: str) -> EndOfFilesystem:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(kernel, "EndOfFilesystem", too_many)
    if not singly:
        monkeypatch.setattr(kernel, "_takes_layers_singly", lambda: False)
    with union(top) as fs:
        with pytest.raises(MountError, match="too many") as caught:
            unionfs.mount.mount(fs, top / "mnt", engine="kernel")
        assert caught.value.errno == errno.EMFILE
        assert not os.path.ismount(top / "mnt")
        fs.write_text("/x", "the union is as it was")


def test_names_that_fill_a_page(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_takes_layers_singly", lambda: False)
    layers = [top / f"{number:0200}" for number in range(300)]
    for layer in layers:
        layer.mkdir()
    with UnionFS(lower=layers[:100]) as fs, mounted(fs, top / "mnt"):
        pass
    with UnionFS(lower=layers) as fs, pytest.raises(MountError, match="more than a page, which takes Linux"):
        unionfs.mount.mount(fs, top / "mnt", engine="kernel")


# What it can't mount


def memory_upper(top: Path) -> UnionFS:
    return UnionFS(lower=[top / "b"], upper=MemoryLayer())


def hidden(top: Path) -> UnionFS:
    return union(top, hide=[top / "b/d"])


def upper_in_lower(top: Path) -> UnionFS:
    return UnionFS(lower=[top], upper=top / "up", work=top / "work")


def owners(top: Path) -> UnionFS:
    for name in ("", "f"):
        os.setxattr(top / "b" / name, "user.containers.override_stat", b"7:8:0644")
    return union(top)


def no_lower(top: Path) -> UnionFS:
    return UnionFS(upper=top / "up", work=top / "work")


def one_lower(top: Path) -> UnionFS:
    return UnionFS(lower=[top / "b"])


def redirect_in_user(top: Path) -> UnionFS:
    fs = union(top, userxattr=True)
    fs.rename("/d", "/moved")
    return fs


def metacopy_in_user(top: Path) -> UnionFS:
    fs = union(top, userxattr=True)
    fs.chmod("/f", 0o600)
    return fs


def metacopy_unwanted(top: Path) -> UnionFS:
    with union(top) as fs:
        fs.chmod("/f", 0o600)
    return union(top, metacopy=False)


def other_marks(top: Path) -> UnionFS:
    with UnionFS(lower=[top / "b"], upper=top / "a", work=top / "awork", userxattr=True) as fs:
        fs.remove("/f")
    return union(top)


def mounted_in_it(top: Path) -> UnionFS:
    subprocess.run(["mount", "-t", "tmpfs", "unionfs-test", top / "b/d"], check=True)
    return union(top)


@pytest.mark.parametrize(("make", "words"), [
    (in_memory, "takes directories, and this layer is a MemoryLayer"),
    (memory_upper, "takes directories, and this layer is a MemoryLayer"),
    (hidden, "/b/d in the layer is hidden"),
    (upper_in_lower, "/up in the layer is hidden"),
    (owners, "owners in this layer are kept in user.containers.override_stat"),
    (no_lower, "it takes a lower"),
    (one_lower, "two layers where there is no upper"),
    (redirect_in_user, "/moved is a redirect or a metacopy, which overlayfs does not follow with marks in user."),
    (metacopy_in_user, "/f is a redirect or a metacopy"),
    (metacopy_unwanted, "/f is a redirect or a metacopy, which overlayfs does not follow with metacopy=off"),
    (other_marks, "this layer has marks in user.overlay, and only those in trusted are read"),
    (mounted_in_it, "a file system is mounted in the layer, at"),
])  # fmt: skip
def test_what_it_can_not_mount(top: Path, make: Callable[[Path], UnionFS], words: str) -> None:
    with make(top) as fs:
        mountpoint = top.parent if make is upper_in_lower else top / "mnt"
        with pytest.raises(MountError, match="overlayfs can't show this union as it is: ") as caught:
            get_engine("kernel").mount(fs, str(mountpoint), MountOptions())
        assert words in str(caught.value.strerror)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert not os.path.ismount(top / "mnt")
        if fs.tree.upper is not None:
            fs.write_text("/x", "the union is as it was")


def test_what_the_kernel_refuses_is_told_in_its_words(top: Path) -> None:
    with union(top) as fs, mounted(fs, top / "mnt"):
        (top / "again").mkdir()
        with UnionFS(lower=[top / "mnt", top / "a"], upper=top / "again") as above:
            # An upper on overlayfs would do; three deep is too deep.
            (top / "mnt2").mkdir()
            (top / "mnt3").mkdir()
            (top / "third").mkdir()
            with mounted(above, top / "mnt2"), UnionFS(lower=[top / "mnt2"], upper=top / "third") as deepest:
                with pytest.raises(MountError, match=r"overlayfs: .*stacking depth exceeded"):
                    unionfs.mount.mount(deepest, top / "mnt3", engine="kernel")
                deepest.write_text("/x", "the union is as it was")


def test_another_lower_on_top_goes_without_the_old_index(top: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "unionfs.mount.kernel")
    with UnionFS(lower=[top / "b"], upper=top / "up", work=top / "work") as fs, mounted(fs, top / "mnt"):
        (top / "mnt/f").write_text("changed")
    with union(top) as fs:
        with mounted(fs, top / "mnt"):
            assert "without index" in caplog.text
            (top / "mnt/d/two").write_text("changed")
        assert [str(found) for found in fs.diff()] == ["C /d/two", "C /f"]
        fs.write_text("/twin1", "in the index")
        with pytest.raises(MountError, match="without an index here, in which the upper has hard links"):
            unionfs.mount.mount(fs, top / "mnt", engine="kernel")
        assert not os.path.ismount(top / "mnt")
        assert fs.read_text("/twin2") == "in the index"


# userxattr


def test_marks_in_user(top: Path) -> None:
    with union(top, userxattr=True) as fs:
        fs.write_text("/f", "ours")
        with mounted(fs, top / "mnt"):
            entry = mountinfo.mount_at(f"{top}/mnt")
            assert entry is not None
            assert "userxattr" in entry.super_options
            assert (top / "mnt/f").read_text() == "ours"
            with pytest.raises(OSError, match="cross-device"):
                os.rename(top / "mnt/d", top / "mnt/moved")
            for name in ("one", "two", "three"):
                os.unlink(top / "mnt/d" / name)
            os.rmdir(top / "mnt/d")
            (top / "mnt/d").mkdir()
        assert fs.listdir("/d") == []
        assert [str(found) for found in fs.diff()] == ["D /d/one", "D /d/three", "D /d/two", "C /f"]


NOT_FOLLOWED = "a redirect or a metacopy, which overlayfs does not follow with"

USER = """
import os, unionfs, unionfs.mount
for name in ("a", "b", "up", "mnt"):
    os.mkdir(name)
open("b/f", "w").write("from below")
os.mkdir("b/d"); open("b/d/x", "w").close()
with unionfs.UnionFS(lower=["a", "b"], upper="up") as fs:
    try:
        with unionfs.mount.mount(fs, "mnt", engine="kernel"):
            open("mnt/f", "a").write(", and more")
            os.unlink("mnt/d/x")
            print("userxattr" in open("/proc/mounts").read(), os.listdir("mnt/d"))
        print([str(change) for change in fs.diff()], fs.read_text("/f"))
        fs.write_text("/g", "g")
        fs.chmod("/f", 0o600)
        with unionfs.mount.mount(fs, "mnt", engine="kernel"):
            print(sorted(os.listdir("mnt")))
        fs.rename("/d", "/e")
        unionfs.mount.mount(fs, "mnt", engine="kernel")
    except unionfs.MountError as error:
        print(error.strerror)
        if os.geteuid():
            raise SystemExit
with unionfs.UnionFS(lower=["a", "b"], unmapped_as_root=True) as fs:
    try:
        unionfs.mount.mount(fs, "mnt", engine="kernel")
    except unionfs.MountError as error:
        print(error.strerror)
"""


@pytest.mark.userns
def test_in_a_user_namespace(as_user: AsUser) -> None:
    done = as_user.run(["unshare", "-Urm", sys.executable, "-c", USER])
    assert done.stdout.splitlines() == [
        "True []",
        "['D /d/x', 'C /f'] from below, and more",
        "['d', 'f', 'g']",
        f"overlayfs can't show this union as it is: /e is {NOT_FOLLOWED} marks in user.overlay",
        "overlayfs can't show this union as it is: owners that the user namespace does not map are shown as root",
    ]


def test_a_plain_user_is_told_what_it_takes(as_user: AsUser) -> None:
    said = as_user.python(USER).stdout
    assert said == "overlayfs is for root, or for who is root of a user and mount namespace: unshare -Urm\n"

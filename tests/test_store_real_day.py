"""A real day: a Debian from its packages, apt at work in three containers, commits, forks and roll-backs while mounted.

All that images and containers show, to the end of the day, is compared with plain copies.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import support
from unionfs import Container, Store, UnionFS

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.needs("mmdebstrap", "chroot", "rsync"),
    pytest.mark.timeout(400),
]

SUITE = "bookworm"
QUIET = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

Facts = dict[str, tuple[Any, ...]]


def facts(where: str | Path | UnionFS) -> Facts:
    """Everything that a tree shows, by path: the bytes too."""
    there: Any = where if isinstance(where, UnionFS) else os
    open_file: Any = where.open if isinstance(where, UnionFS) else builtins.open
    top = "" if isinstance(where, UnionFS) else str(where)
    found: Facts = {}
    links: dict[tuple[int, int], str] = {}
    todo = [""]
    while todo:
        path = todo.pop()
        at = top + path or "/"
        st = there.lstat(at)
        what: Any = None
        if stat.S_ISDIR(st.st_mode):
            todo += sorted((f"{path}/{name}" for name in there.listdir(at)), reverse=True)
        elif stat.S_ISLNK(st.st_mode):
            what = there.readlink(at)
        elif stat.S_ISREG(st.st_mode):
            with open_file(at, "rb") as file:
                what = (st.st_size, hashlib.file_digest(file, "sha256").digest())
        else:
            what = st.st_rdev
        linked = st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode)
        group = links.setdefault((st.st_dev, st.st_ino), path) if linked else ""
        xattrs = {
            name: there.getxattr(at, name, follow_symlinks=False)
            for name in there.listxattr(at, follow_symlinks=False)
            if not name.startswith("trusted.overlay.")
        }
        times = st.st_mtime_ns if path else 0
        found[path] = (stat.S_IFMT(st.st_mode), oct(st.st_mode), st.st_uid, st.st_gid, times, what, group, xattrs)
    return found


def same(one: Facts, other: Facts) -> None:
    differing = {path: (one.get(path), other.get(path)) for path in one.keys() | other.keys()
                 if one.get(path) != other.get(path)}  # fmt: skip
    assert not differing, dict(list(differing.items())[:10])


@pytest.fixture
def debian(scratch: Path) -> Path:
    """The smallest Debian that has apt, and knows what there is."""
    root = scratch / "debian"
    support.run_checked("mmdebstrap", "--variant=apt", "--quiet", "--mode=root", "--skip=cleanup/apt/lists",
        SUITE, root, f"deb http://deb.debian.org/debian {SUITE} main")  # fmt: skip
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", root / "etc" / name)
    for name in ("locale", "man"):  # Many files of one kind.
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    return root


@pytest.fixture
def store(scratch: Path) -> Iterator[Store]:
    with Store(scratch / "store") as store:
        yield store


class Day:
    """What was seen, by the image's name: the same has to be seen at the end."""

    def __init__(self, store: Store, scratch: Path) -> None:
        self.store = store
        self.scratch = scratch
        self.seen: dict[str, Facts] = {}

    def copy(self, mountpoint: Path) -> Facts:
        """A plain copy of what a mount shows now."""
        plain = self.scratch / f"plain-{mountpoint.name}"
        support.run_checked("rsync", "-aHAX", "--numeric-ids", "--delete", f"{mountpoint}/", f"{plain}/")
        return facts(plain)

    def commit(self, container: Container, mountpoint: Path, name: str) -> None:
        self.seen[name] = self.copy(mountpoint)
        container.commit(f"day:{name}", author="somebody", message=f"{name} is done")

    def shows(self, name: str) -> None:
        with self.store.open(f"day:{name}") as fs:
            same(self.seen[name], facts(fs))


def inside(mountpoint: Path, *command: str) -> str:
    return support.run_checked("chroot", mountpoint, *command, env=QUIET)


def test_a_day(store: Store, scratch: Path, debian: Path) -> None:
    day = Day(store, scratch)
    plain = facts(debian)
    store.import_(debian, "day:base", message=f"Debian {SUITE}", changes=['CMD ["bash"]', "ENV LC_ALL=C"])
    day.seen["base"] = plain
    began = time.monotonic()
    boxes = [store.create("day:base", name, ["apt-get", "install"]) for name in ("one", "two", "three")]
    assert time.monotonic() - began < 2
    points = []
    for box in boxes:
        points.append(scratch / box.name)
        points[-1].mkdir()
        box.mount(points[-1], "devfuse")
    one, two, three = boxes
    try:
        with subprocess.Popen(["chroot", points[0], "sleep", "300"], env=QUIET) as sleeper:
            inside(points[0], "apt-get", "install", "-y", "hello")
            day.commit(one, points[0], "hello")
            inside(points[0], "apt-get", "remove", "--purge", "-y", "hello")
            day.commit(one, points[0], "no-hello")
            inside(points[1], "apt-get", "install", "-y", "ed")
            day.commit(two, points[1], "ed")
            fork = two.fork("fork")
            # Under a running process: to a state that had more, and to one that never was this container's.
            one.rollback("day:hello")
            same(day.seen["hello"], facts(points[0]))
            assert inside(points[0], "hello") == "Hello, world!\n"
            three.rollback("day:ed")
            same(day.seen["ed"], facts(points[2]))
            inside(points[2], "apt-get", "install", "-y", "hello")
            assert inside(points[2], "dpkg", "--verify", "hello", "ed") == ""
            day.commit(three, points[2], "both")
            inside(points[0], "sh", "-c", "echo more >> /etc/motd; mv /usr/share/doc /usr/share/papers; rm -r /var/log")
            day.commit(one, points[0], "by-hand")
            two.rollback("day:base")
            same(day.seen["base"], facts(points[1]))
            assert sleeper.poll() is None
            sleeper.kill()
        inside(points[1], "dpkg", "--audit")
    finally:
        for point in points:
            subprocess.run(["umount", "--lazy", point], check=False)
        for box in boxes:
            box.close()
    with fork:
        same(day.seen["ed"], facts(fork.fs))
    # The order of the evening.
    flat = store.squash("day:no-hello", "day:flat")
    day.seen["flat"] = day.seen["no-hello"]
    assert len(flat.layers) == 1
    for box in (*boxes, fork):
        box.remove()
    store.remove_image("day:hello")
    del day.seen["hello"]
    store.gc()
    for name in day.seen:
        day.shows(name)
    assert [str(change) for change in store.diff("day:no-hello", "day:flat")] == []
    assert "A /usr/bin/hello" in {str(change) for change in store.diff("day:ed", "day:both")}
    assert [line.comment for line in store.image("day:both").history()] == [
        "both is done", "ed is done", f"Debian {SUITE}",
    ]  # fmt: skip
    assert store.image("day:both").config.run.cmd == ("bash",)
    assert not support.mounts_below(scratch)
    for image in store.images():
        store.remove_image(image.id, force=True)
    store.gc()
    assert os.listdir(f"{store.path}/layers") == os.listdir(f"{store.path}/blobs/sha256") == []

"""Layers of a store, read by the kernel's overlayfs: it shows the same tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storehouse import make_source
from unionfs import Container, Store
from unionfs.testing.oracle import differences, snapshot
from unionfs.testing.surfaces import HostSurface, PathSurface

pytestmark = [pytest.mark.root, pytest.mark.overlay]


@pytest.fixture
def store(scratch: Path) -> Iterator[Store]:
    with Store(scratch / "store") as store:
        yield store


def same(store: Store, ref: str, mountpoint: Path) -> None:
    """What overlayfs shows of a point is what the store shows."""
    layers = [store.keep.places.diff(layer.id) for layer in store.keep.records.chain(store.frozen(ref))]
    if len(layers) == 1:
        layers.append(str(mountpoint.parent / "nothing"))
        os.makedirs(layers[1], exist_ok=True)
    words = ",".join(["ro", f"lowerdir={':'.join(layers)}", "redirect_dir=on", "metacopy=on"])
    subprocess.run(["mount", "-t", "overlay", "-o", words, "overlay", mountpoint], check=True)
    try:
        with store.open(ref) as fs:
            assert not differences(snapshot(HostSurface(mountpoint)), snapshot(PathSurface(fs)))
    finally:
        subprocess.run(["umount", mountpoint], check=True)


def work(web: Container) -> None:
    fs = web.fs
    fs.rename("/etc/conf.d", "/etc/moved")
    fs.rename("/etc", "/config")
    fs.chmod("/bin/tool", 0o4711)
    fs.chown("/config/motd", 12, 34)
    fs.remove("/bin/t")


def more(web: Container) -> None:
    fs = web.fs
    fs.rename("/config/moved", "/deep")
    fs.write_text("/deep/three", "3")
    fs.remove("/deep/one")
    fs.link("/bin/tool2", "/deep/tool3")
    fs.setxattr("/deep", "user.note", b"here")
    fs.rmtree("/config")
    fs.mkdir("/config")
    fs.write_text("/config/only", "opaque")
    fs.symlink("../deep", "/config/link")


def last(web: Container) -> None:
    fs = web.fs
    fs.rename("/deep", "/config/deeper")
    fs.chmod("/config/deeper/two", 0o600)
    fs.mkfifo("/config/fifo")
    fs.truncate("/bin/tool2", 100)
    with fs.open("/sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")


def test_a_chain_of_commits(store: Store, scratch: Path) -> None:
    mountpoint = scratch / "mnt"
    mountpoint.mkdir()
    store.import_(make_source(scratch / "source"), "base")
    same(store, "base", mountpoint)
    with store.create("base", "web") as web:
        for i, act in enumerate((work, more, last)):
            act(web)
            web.commit(f"step:{i}")
        for ref in ("step:0", "step:1", "step:2", "step:2~1", "step:2~2"):
            same(store, ref, mountpoint)
        kept = {
            name.removeprefix("trusted.overlay.")
            for layer in store.image("step:2").layers
            for at, names, files in os.walk(store.keep.places.diff(layer.id))
            for path in (*names, *files)
            for name in os.listxattr(f"{at}/{path}", follow_symlinks=False)
        }
        # The chain has what a reader has to understand.
        assert {"redirect", "metacopy", "opaque"} <= kept
        # Snapshots that no commit has cleaned are layers too; and so is a clean one, replayed from several.
        web.fs.rename("/config/deeper", "/back")
        fork = web.fork("side")
        web.fs.chmod("/back/two", 0o640)
        web.fs.remove("/back/three")
        same(store, "side~1", mountpoint)
        same(store, "web", mountpoint)
        web.commit("replayed")
        same(store, "replayed", mountpoint)
        fork.remove()
        web.rollback("step:1")
        web.fs.rename("/deep", "/elsewhere")
        web.commit("branch")
        same(store, "branch", mountpoint)
        store.squash("replayed", "flat")
        same(store, "flat", mountpoint)
        store.squash("replayed", "two", base="replayed~2")
        same(store, "two", mountpoint)


def test_a_container_goes_on_in_the_kernel(store: Store, scratch: Path) -> None:
    """Its upper and work directory, mounted by overlayfs: what that writes is there for the store."""
    mountpoint = scratch / "mnt"
    mountpoint.mkdir()
    store.import_(make_source(scratch / "source"), "base")
    web = store.create("base", "web")
    work(web)
    web.close()
    keep, record = store.keep, web.record
    lowers = ":".join(keep.places.diff(layer.id) for layer in web.history())
    words = f"lowerdir={lowers},upperdir={keep.places.upper(web.id, record.upper)}"
    words += f",workdir={keep.places.work(web.id, record.upper)},redirect_dir=on,metacopy=on,xino=off"
    subprocess.run(["mount", "-t", "overlay", "-o", words, "overlay", mountpoint], check=True)
    try:
        assert (mountpoint / "config/moved/one").read_text() == "1"
        (mountpoint / "config/moved").rename(mountpoint / "kernel")
        (mountpoint / "kernel/new").write_text("by the kernel")
        (mountpoint / "kernel/two").unlink()
        os.chmod(mountpoint / "bin/tool2", 0o700)
    finally:
        subprocess.run(["umount", mountpoint], check=True)
    with web:
        assert web.fs.read_text("/kernel/new") == "by the kernel"
        assert sorted(web.fs.listdir("/kernel")) == ["new", "one"]
        web.commit("kernel")
        same(store, "kernel", mountpoint)
        found = {str(change) for change in store.diff("base", "kernel")}
        assert {"A /kernel", "A /kernel/new", "A /kernel/one", "D /etc", "C /bin/tool"} <= found

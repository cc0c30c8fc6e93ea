"""Layers from strangers, and bad luck: each gets a clear error or a bound, and memory says what the disk says."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unionfs.layer import owners, whiteout
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.memory import MemoryLayer
from unionfs.layer.protocol import LayerFile, Marks
from unionfs.layer.trees import Entry
from unionfs.layer.upper import UpperDirectory
from unionfs.testing.engine_base import fails
from unionfs.testing.oracle import snapshot
from unionfs.testing.surfaces import TreeSurface
from unionfs.union import copyup
from unionfs.union.commit import commit, history
from unionfs.union.diff import diff
from unionfs.union.fs import UnionFS
from unionfs.union.node import DirNode
from unionfs.union.tree import Tree

DIR = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644


def directory(content: dict[str, Any] | None = None, **marks: Any) -> Entry:
    return Entry(DIR, content or {}, marks=Marks(**marks))


def stack(*layers: dict[str, Any], upper: MemoryLayer | None = None) -> Tree:
    """A tree of layers in memory, topmost first."""
    return Tree([MemoryLayer.from_dict(layer, read_only=True) for layer in layers], upper)


def names(tree: Tree, path: bytes) -> set[bytes]:
    d = tree.resolve(path)
    assert isinstance(d, DirNode)
    return {name for name, _, _ in tree.listdir(d)}


def read(tree: Tree, path: bytes) -> bytes:
    handle = tree.open(tree.resolve(path), os.O_RDONLY)
    try:
        return handle.pread(1 << 20, 0)
    finally:
        handle.close()


def seen(tree: Tree) -> dict[bytes, Any]:
    return {path: found.facts for path, found in snapshot(TreeSurface(tree)).items()}


def error_of(step: Callable[[], Any]) -> int | None:
    try:
        step()
    except OSError as error:
        return error.errno
    return None


def on_disk(*layers: Path) -> dict[bytes, Any]:
    tree = Tree([DirectoryLayer(layer) for layer in layers])
    try:
        return seen(tree)
    finally:
        tree.close()


# Redirects


@pytest.mark.parametrize("redirect", [b"..", b".", b"../../etc", b"/..", b"/a/../..", b"a/b", b"/./b", b"\0", b"/x\0y"])
def test_a_redirect_out_of_the_layer_is_ignored(redirect: bytes, caplog: pytest.LogCaptureFixture) -> None:
    tree = stack({"d": directory({"own": "1"}, redirect=redirect)}, {"d": {"below": "2"}, "etc": {"secret": "3"}})
    assert names(tree, b"d") == {b"own"}
    tree.close()


def test_redirects_lead_downwards_only() -> None:
    """To each other, to themselves, to what they stand in: every step is a layer down, so every walk ends."""
    content = {
        "a": directory({"in-a": "1", "deep": directory({}, redirect=b"/a")}, redirect=b"/b"),
        "b": directory({"in-b": "2"}, redirect=b"/a"),
        "self": directory({}, redirect=b"/self"),
        "root": directory({}, redirect=b"/"),
    }
    tree = stack(content, content, {"a": {"low": "3"}, "b": {"low": "4"}, "self": {"low": "5"}})
    assert names(tree, b"a") == {b"in-a", b"in-b", b"deep", b"low"}
    assert read(tree, b"a/low") == b"3"
    assert names(tree, b"self") == {b"low"}
    assert names(tree, b"a/deep") == {b"in-a", b"deep", b"low"}
    assert names(tree, b"root/root") == {b"a", b"b", b"self"}
    tree.close()


def test_a_redirect_leads_out_of_an_opaque_directory() -> None:
    inner = directory({"in-d": "1"}, redirect=b"/there")
    layers = {"o": directory({"d": inner}, opaque=True)}, {"o": {"d": {"hidden": ""}}, "there": {"in-there": "2"}}
    assert names(stack(*layers), b"o/d") == {b"in-d", b"in-there"}
    tree = stack({"p": directory({}, redirect=b"/o/d")}, *layers)
    assert names(tree, b"p") == {b"in-d", b"in-there"}
    assert names(tree, b"o") == {b"d"}


def test_redirects_that_multiply_cost_no_more_than_their_number() -> None:
    bomb = directory({"a": directory({"a": directory({}, redirect=b"/a/a/a")}, redirect=b"/a/a/a")}, redirect=b"/a/a/a")
    layers: list[dict[str, Any]] = [{"a": bomb}] * 60
    tree = stack(*layers, {"a": {"a": {"a": {"end": "1"}}}})
    before = time.monotonic()
    assert b"end" in names(tree, b"a")
    assert time.monotonic() - before < 5
    tree.close()


@pytest.mark.parametrize("absolute", [False, True])
def test_a_directory_that_every_layer_renamed(absolute: bool) -> None:
    depth = 1500
    layers: list[dict[str, Any]] = [
        {f"d{i}": directory({f"{i}": ""}, redirect=b"%sd%d" % (b"/" * absolute, i - 1))} for i in range(depth, 0, -1)
    ]
    tree = stack(*layers, {"d0": {"0": ""}})
    assert len(names(tree, b"d%d" % depth)) == depth + 1
    tree.close()


def test_links_and_files_in_place_of_directories(tmp_path: Path) -> None:
    """A layer's symbolic link is no way into or out of its directories."""
    high, low, secret = tmp_path / "high", tmp_path / "low", tmp_path / "secret"
    for top in (high, low / "d", low / "e", secret):
        top.mkdir(parents=True)
    (secret / "key").write_text("secret")
    (low / "d/file").write_text("low")
    (low / "link").symlink_to(secret)
    (low / "up").symlink_to("../../../../../../../../../.." + os.fspath(secret))
    (high / "d").symlink_to(secret)
    (high / "e").write_text("a file")
    with UnionFS(lower=[high, low]) as fs:
        assert fs.islink("/d")
        assert fs.isfile("/e")
        for path in ("/d/key", "/link/key", "/up/key"):
            assert not fs.exists(path)
        # A directory that becomes a link while the layer is in use.
        tree = fs.tree
        layer = tree.resolver.layers[1]
        (low / "e").rmdir()
        (low / "e").symlink_to(secret)
        with pytest.raises(OSError):
            layer.scan(layer.root.child(b"e"))


# Metacopies


def test_a_metacopy_without_data_is_an_error_and_not_zeros() -> None:
    metacopy = Entry(FILE, b"\0" * 9, marks=Marks(metacopy=True))
    lost = Entry(FILE, b"\0" * 9, marks=Marks(metacopy=True, redirect=b"/nowhere/at/all"))
    out = Entry(FILE, b"\0" * 9, marks=Marks(metacopy=True, redirect=b"/../etc/passwd"))
    self_ = Entry(FILE, b"\0" * 9, marks=Marks(metacopy=True, redirect=b"/self"))
    a, b = (Entry(FILE, b"\0" * 9, marks=Marks(metacopy=True, redirect=to)) for to in (b"/b", b"/a"))
    onto_dir = Entry(FILE, b"\0" * 9, marks=Marks(metacopy=True, redirect=b"/dir"))
    layer = {"bottom": metacopy, "lost": lost, "out": out, "self": self_, "a": a, "b": b, "onto": onto_dir}
    tree = stack(layer, layer, {"dir": {}, "bottom": metacopy}, upper=MemoryLayer())
    for name in layer:
        n = tree.resolve(name.encode())
        assert tree.stat(n).st_size == 9
        with fails(errno.EIO):
            tree.open(n, os.O_RDONLY)
        with fails(errno.EIO):
            tree.open(n, os.O_RDWR)
        with fails(errno.EIO):
            tree.setattr(n, mode=0o600)
        tree.unlink(tree.root, name.encode())
    tree.close()


# Marks


@pytest.mark.parametrize("value", [b"", b"-5", b"zz", b"f" * 17, b"f" * 60_000, b" 7", b"0x7", b"1_0", b"\xff"])
def test_a_malformed_inode_number_is_no_number(value: bytes) -> None:
    assert whiteout.decode({whiteout.INO: value}).ino is None


def test_the_largest_inode_number() -> None:
    assert whiteout.decode({whiteout.INO: b"f" * 16}).ino == (1 << 64) - 1


def test_a_directory_can_not_claim_to_be_one_above_it() -> None:
    """find(1), rm(1) and their like would take it for a loop and stop."""
    bottom = MemoryLayer.from_dict({"x": ""}, read_only=True)
    number = bottom.stat(bottom.root, b".").st_ino
    claims = {
        "d": directory({"e": directory({"f": directory({}, ino=77)}, ino=77)}, ino=number),
        "n": directory({}, ino=0),
    }
    tree = Tree([MemoryLayer.from_dict(claims, read_only=True), bottom])
    inos = [tree.stat(tree.resolve(path)).st_ino for path in (b"/", b"d", b"d/e", b"d/e/f", b"n")]
    assert len(set(inos)) == 5
    assert all(inos)
    tree.close()


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"[]", b"7", b"[" * 3000, b'{"created": "yesterday"}', b'{"created": {}}', b"\xff", b'{"id": [1]}'],
)
def test_a_malformed_commit_record(record: bytes) -> None:
    layer = MemoryLayer()
    layer._record = record
    entry = history(Tree([layer]))[0]
    assert entry.created is None
    assert entry.id is None or isinstance(entry.id, str)


@pytest.mark.parametrize(
    "nlink", [b"", b"U", b"U+", b"X+1", b"U-9", b"L-9", b"U+99999999999999999999", b"U+" + b"9" * 2000]
)
def test_a_malformed_link_count(scratch: Path, nlink: bytes) -> None:
    (scratch / "low").mkdir()
    (scratch / "up").mkdir()
    (scratch / "low/a").write_text("linked")
    os.link(scratch / "low/a", scratch / "low/b")
    layers: dict[str, Any] = {"lower": [scratch / "low"], "upper": scratch / "up", "work": scratch / "work"}
    with UnionFS(**layers) as fs:
        fs.chmod("/a", 0o600)
    kept = next((scratch / "work/index").iterdir())
    key = next(key for key in os.listxattr(kept) if key.endswith("overlay.nlink"))
    os.setxattr(kept, key, nlink)
    with UnionFS(**layers) as fs:
        assert fs.read_text("/a") == "linked"
        assert fs.read_text("/b") == "linked"
        assert 1 <= fs.stat("/a").st_nlink < 1 << 32
        fs.remove("/a")
        assert fs.read_text("/b") == "linked"
        assert 1 <= fs.stat("/b").st_nlink < 1 << 32
        fs.remove("/b")
        assert fs.listdir("/") == []


@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"0:0", b"0:0:888", b"-1:-1:0644", b"99999999999999999999:0:0644", b"4294967296:0:0644",
     b"0:0:0644:char-x-y", b"0:0:0644:block-99999999999-1", b"0:0:0644:block--1-1", b"0:0:" + b"7" * 5000,
     b"\xff:0:0644"],
)  # fmt: skip
def test_a_malformed_owner_record(value: bytes) -> None:
    found = owners.decode(value)
    if found is not None:
        uid, gid, mode, _, rdev = found
        assert 0 <= uid < 0xFFFFFFFF
        assert 0 <= gid < 0xFFFFFFFF
        assert 0 <= mode <= 0o7777
        assert rdev is None or 0 <= rdev < 1 << 64


def test_nobody_writes_an_owner_record_through_the_union(scratch: Path) -> None:
    """Who may set user.* attributes of a file could give it to root, with the set-id bit."""
    (scratch / "up").mkdir()
    os.setxattr(scratch / "up", owners.OVERRIDE, b"0:0:0755:dir")
    with UnionFS(upper=scratch / "up", work=scratch / "work") as fs:
        fs.write_text("/mine", "")
        before = fs.stat("/mine")
        with fails(errno.EOPNOTSUPP):
            fs.setxattr("/mine", owners.OVERRIDE, b"0:0:04755:file")
        with fails(errno.ENODATA):
            fs.removexattr("/mine", owners.OVERRIDE)
        assert fs.stat("/mine") == before


# Sizes


DEPTH = 3000


@pytest.fixture
def deep(scratch: Path) -> Iterator[Tree]:
    """A chain of directories that no path can name, with a file at its end."""
    (scratch / "low").mkdir()
    (scratch / "up").mkdir()
    here = os.open(scratch / "low", os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    tree = Tree([DirectoryLayer(scratch / "low")], UpperDirectory(scratch / "up", scratch / "work"))
    yield tree
    tree.close()


def bottom_of(tree: Tree) -> DirNode:
    d = tree.root
    for _ in range(DEPTH):
        below = tree.lookup(d, b"d" if b"d" in tree.entries(d) else b"moved")
        assert isinstance(below, DirNode)
        d = below
    return d


def test_directories_deeper_than_any_path_and_than_pythons_stack(deep: Tree) -> None:
    assert sys.getrecursionlimit() < DEPTH
    d = bottom_of(deep)
    leaf = deep.lookup(d, b"leaf")
    handle = deep.open(leaf, os.O_RDWR)
    handle.pwrite(b"written", 0)
    assert d.parent is not None
    assert len(deep.lower_path(d)) == 2 * DEPTH
    middle = d
    for _ in range(DEPTH - 1500):
        assert middle.parent is not None
        middle = middle.parent
    assert middle.parent is not None
    deep.rename(middle.parent, b"d", middle.parent, b"moved")  # Deeper, ext4 has no room for the redirect.
    changes = list(diff(deep))
    assert [change for change in changes if change.kind == "changed"] == []
    assert {change.kind for change in changes} == {"added", "deleted"}
    commit(deep)
    handle.pwrite(b"again", 0)
    assert read_node(deep, leaf) == b"againen"
    handle.close()
    commit(deep)
    assert bottom_of(deep) is d
    top = deep.lookup(deep.root, b"d")
    deep.rename(deep.root, b"d", deep.root, b"other")
    assert deep.stat(top).st_ino == top.ino
    assert any(change.path == "/other" for change in diff(deep))


def read_node(tree: Tree, n: Any) -> bytes:
    handle = tree.open(n, os.O_RDONLY)
    try:
        return handle.pread(100, 0)
    finally:
        handle.close()


def test_a_directory_of_very_many_names(tmp_path: Path) -> None:
    count = 20_000
    low, high = tmp_path / "low", tmp_path / "high"
    low.mkdir()
    high.mkdir()
    for i in range(count):
        os.close(os.open(low / f"name-{i:06}", os.O_CREAT | os.O_WRONLY))
    before = time.monotonic()
    with UnionFS(lower=[high, low], upper=MemoryLayer()) as fs:
        assert len(fs.listdir("/")) == count
        fs.remove("/name-000007")
        assert len(fs.listdir("/")) == count - 1
        assert [str(change) for change in fs.diff()] == ["D /name-000007"]
    assert time.monotonic() - before < 10


def test_odd_names(scratch: Path) -> None:
    odd = [
        b".wh.whited",
        b".wh..wh..opq",
        b"new\nline",
        b"\xff\xfe",
        b"-rf",
        b"  ",
        b"tab\t",
        b"\\\\",
        b"\x01\x7f",
        b"n" * 255,
    ]
    for layer in ("high", "low", "up"):
        (scratch / layer).mkdir()
    for i, name in enumerate(odd):
        Path(os.fsdecode(os.fsencode(scratch) + b"/" + (b"low", b"high")[i % 2] + b"/" + name)).write_text("x")
    with UnionFS(lower=[scratch / "high", scratch / "low"], upper=scratch / "up", work=scratch / "work") as fs:
        assert sorted(fs.listdir(b"/")) == sorted(odd)
        for name in odd:
            fs.chmod(b"/" + name, 0o600)
            fs.rename(b"/" + name, b"/" + name[:-1] + b"~")
        assert sorted(fs.listdir(b"/")) == sorted(name[:-1] + b"~" for name in odd)


def test_many_and_large_attributes() -> None:
    xattrs = {f"user.key-{i:03}": os.urandom(i * 7) for i in range(100)} | {"user.large": b"x" * 65536}
    tree = stack({"file": Entry(FILE, b"data", xattrs=xattrs)}, upper=MemoryLayer())
    n = tree.resolve(b"file")
    tree.setattr(n, mode=0o600)
    assert {os.fsdecode(key): tree.getxattr(n, key) for key in tree.listxattr(n)} == xattrs
    with fails(errno.E2BIG):
        tree.setxattr(n, b"user.larger", b"x" * 65537)
    tree.close()


def test_attributes_that_do_not_fit_the_upper_lose_nothing(scratch: Path) -> None:
    (scratch / "up").mkdir()
    large = {"user.large": b"x" * 65536}
    lower = MemoryLayer.from_dict({"file": Entry(FILE, b"data", xattrs=large), "d": Entry(DIR, {}, xattrs=large)})
    with UnionFS(lower=[lower], upper=scratch / "up", work=scratch / "work") as fs:
        for path in ("/file", "/d"):
            if error := error_of(lambda path=path: fs.chmod(path, 0o700)):  # type: ignore[misc]
                assert error in (errno.ENOSPC, errno.E2BIG)
                assert fs.stat(path).st_mode & 0o7777 != 0o700
            assert fs.getxattr(path, "user.large") == large["user.large"]
        assert os.listdir(scratch / "work/work") == []


# What is in the way, and what changes under our hands


def test_nothing_hangs_on_a_fifo_or_device(scratch: Path) -> None:
    for layer in ("low", "up"):
        (scratch / layer).mkdir()
    os.mkfifo(scratch / "low/fifo")
    (scratch / "low/file").write_text("")
    with UnionFS(lower=[scratch / "low"], upper=scratch / "up", work=scratch / "work") as fs:
        for mode in ("rb", "wb", "ab", "r+b"):
            with fails(errno.ENXIO):
                fs.open("/fifo", mode)
        fs.chmod("/fifo", 0o600)
        assert stat.S_ISFIFO(fs.stat("/fifo").st_mode)
        assert stat.S_ISFIFO((scratch / "up/fifo").lstat().st_mode)
        assert [str(change) for change in fs.diff()] == ["C /fifo"]
        # Listed as a file, and a FIFO when it is opened.
        assert fs.isfile("/file")
        (scratch / "low/file").unlink()
        os.mkfifo(scratch / "low/file")
        for mode in ("rb", "ab"):
            with fails(errno.ENXIO):
                fs.open("/file", mode)


def test_a_file_that_shrinks_while_it_is_copied_up(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in ("low", "up"):
        (scratch / layer).mkdir()
    (scratch / "low/file").write_bytes(b"x" * 300_000)
    original = copyup.copy_file

    def copy_file(src: LayerFile, dst: LayerFile, limit: int | None = None, st: os.stat_result | None = None) -> None:
        os.truncate(scratch / "low/file", 1000)
        original(src, dst, limit, st)

    monkeypatch.setattr(copyup, "copy_file", copy_file)
    with UnionFS(lower=[scratch / "low"], upper=scratch / "up", work=scratch / "work") as fs:
        with fs.open("/file", "r+b") as file:
            file.write(b"y")
        assert fs.read_bytes("/file").rstrip(b"\0") == b"y" + b"x" * 999


def test_a_layer_that_vanishes(scratch: Path) -> None:
    for layer in ("low/a/b", "up"):
        (scratch / layer).mkdir(parents=True)
    (scratch / "low/a/file").write_text("1")
    (scratch / "low/a/b/file").write_text("2")
    with UnionFS(lower=[scratch / "low"], upper=scratch / "up", work=scratch / "work") as fs:
        assert fs.listdir("/a") == ["b", "file"] or fs.listdir("/a") == ["file", "b"]
        subprocess.run(["rm", "-rf", scratch / "low"], check=True)
        steps: list[Callable[[], Any]] = [
            lambda: fs.read_text("/a/file"),
            lambda: fs.write_text("/a/b/file", "3"),
            lambda: fs.chmod("/a/file", 0o600),
            lambda: fs.rename("/a/file", "/a/other"),
            lambda: fs.mkdir("/a/new"),
            fs.commit,
            lambda: list(fs.diff()),
        ]
        for step in steps:
            assert error_of(step) in (None, errno.ENOENT, errno.ESTALE)
        fs.write_text("/still", "works")
        assert fs.read_text("/still") == "works"
    assert os.listdir(scratch / "work/work") == []


@pytest.mark.root
def test_a_full_disk_loses_nothing(scratch: Path) -> None:
    (scratch / "low/d").mkdir(parents=True)
    (scratch / "low/large").write_bytes(os.urandom(3 << 20))
    (scratch / "low/d/small").write_text("small")
    (scratch / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=40", "tmpfs", scratch / "disk"], check=True)
    (scratch / "disk/up").mkdir()
    layers: dict[str, Any] = {
        "lower": [scratch / "low"], "upper": scratch / "disk/up", "work": scratch / "disk/work"
    }  # fmt: skip
    with UnionFS(**layers) as fs:
        original = fs.read_bytes("/large")
        before = seen(fs.tree)
        for _ in range(3):
            with fails(errno.ENOSPC):
                fs.open("/large", "r+b")
        assert seen(fs.tree) == before
        assert os.listdir(scratch / "disk/work/work") == []
        made = 0
        with fails(errno.ENOSPC):
            while True:
                fs.write_text(f"/{made}", "")
                made += 1
        steps: list[Callable[[], Any]] = [
            lambda: fs.mkdir("/new"),
            lambda: fs.chmod("/d/small", 0o600),
            lambda: fs.chmod("/d", 0o700),
            lambda: fs.remove("/large"),
            lambda: fs.rename("/d", "/e"),
            lambda: fs.rename("/d/small", "/moved"),
            lambda: fs.symlink("x", "/link"),
            lambda: fs.exchange("/d", "/large"),
            lambda: fs.rmtree("/d"),
        ]
        for step in steps:
            with fails(errno.ENOSPC):
                step()
            assert seen(fs.tree) == on_disk(scratch / "disk/up", scratch / "low")
        assert fs.read_bytes("/large") == original
        fs.remove("/0")
        fs.remove("/1")
        fs.remove("/2")
        fs.chmod("/d/small", 0o600)
        assert fs.read_text("/d/small") == "small"
    with UnionFS(**layers) as fs:
        assert fs.read_bytes("/large") == original
        assert fs.stat("/d/small").st_mode & 0o777 == 0o600

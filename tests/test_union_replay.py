"""`replay`: what a history of layers did, written to another upper; it shows the same, to the last time and number."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.arena import search
from tests.histories import History, Point, walk
from tests.support import AsUser
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR, DT_REG
from unionfs.testing.operations import ACL
from unionfs.testing.oracle import differences, snapshot
from unionfs.testing.surfaces import HostSurface, TreeSurface
from unionfs.union.commit import commit
from unionfs.union.diff import compare
from unionfs.union.replay import replay
from unionfs.union.surplus import surplus
from unionfs.union.tree import Tree

CASES = int(os.environ.get("UNIONFS_ORACLE_CASES", "24"))


def unlike(wanted: Tree, got: Tree, loose: Callable[[str, int], bool] = lambda key, kind: False) -> list[str]:
    """One line for each fact in which the trees differ, but for those that are `loose`: by its name and the kind."""
    one, other = walk(wanted), walk(got)
    lines = [f"{path} is {'missing' if path in one else 'too much'}" for path in one.keys() ^ other.keys()]
    for path in one.keys() & other.keys():
        for key, value in one[path].items():
            # A change of metadata is no access, and a look is not to be seen in the layers.
            if key == "atime" or (key == "ino" and path == "/") or loose(key, one[path]["kind"]):
                continue
            if key == "ino" and os.geteuid() != 0 and one[path]["kind"] not in (DT_REG, DT_DIR):
                continue  # user.* is for regular files and directories only (xattr(7)).
            if value != other[path].get(key):
                lines.append(f"{path}: {key} is {other[path].get(key)!r}, not {value!r}"[:300])
    return lines


def brought(source: Tree, base: Point, history: History, **options: Any) -> Point:
    """The base with one layer more, which shows what `source` shows."""
    target = base.tree(history.upper(base))
    replay(source, target, list(compare(source, target)))
    assert [str(change) for change in compare(source, target)] == []
    assert unlike(source, target, **options) == []
    destination = history.directory()
    commit(target, destination)
    target.close()
    return Point([destination, *base.layers], "")


def check(source: Tree, base: Point, history: History, **options: Any) -> str:
    """The same, opened anew and found to be minimal. The new layer's directory."""
    point = brought(source, base, history, **options)
    result, below = point.tree(), base.tree()
    assert unlike(source, result, **options) == []
    changes = list(compare(result, below))
    assert surplus(result, below, result.resolver.layers[0], changes) == []
    assert {change.path for change in changes} == {change.path for change in compare(source, below)}
    result.close()
    below.close()
    return point.layers[0]


def room(layer: str) -> int:
    """Bytes of data on disk, roughly, each hard link counted once; not of small files: a mark may need a block more."""
    found = {}
    for at, _, files in os.walk(layer):
        for file in files:
            st = os.lstat(f"{at}/{file}")
            found[st.st_ino] = min(st.st_blocks * 512, st.st_size) if st.st_blocks > 24 else 0
    return sum(found.values())


def replay_points(top: Path, seed: int, *, root: bool = True, **options: Any) -> None:
    rng = Random(seed)
    top.mkdir(exist_ok=True)
    history = History(top, rng, root=root)
    try:
        for _ in range(2):
            history.grow(rng.choice(history.points), rng.randrange(1, 25), rng.randrange(1, 4))
        for _ in range(3):
            base, wanted = rng.choice(history.points), rng.choice(history.points)
            source = wanted.tree()
            layer = check(source, base, history, **options)
            if wanted.layers[-len(base.layers) :] == base.layers:
                assert room(layer) <= sum(map(room, wanted.layers[: -len(base.layers)])) + 16384
            source.close()
    finally:
        history.close()


@pytest.mark.root
@pytest.mark.timeout(120 if CASES <= 24 else 0)
def test_points_of_a_history(scratch: Path) -> None:
    search(lambda seed: replay_points(scratch / "history", seed), CASES)


BIG = b"0123456789abcdef" * 65536


def grown(history: History, base: Point, *works: Callable[[Tree], None]) -> Point:
    """One commit for each of these works."""
    tree = base.tree(history.upper(base))
    for work in works:
        work(tree)
        destination = history.directory()
        commit(tree, destination)
        base = Point([destination, *base.layers], "")
    tree.close()
    return base


def plain_base(history: History) -> Point:
    layer = history.directory()
    for d in ("dir", "dir/deep", "dir2", "links", "gone", "gone/deep", "still"):
        os.mkdir(f"{layer}/{d}")
        for i in range(3):
            Path(layer, d, f"f{i}").write_text(f"{d} {i}")
    Path(layer, "dir/deep/big").write_bytes(BIG)
    Path(layer, "moves").write_bytes(BIG)
    os.link(f"{layer}/links/f0", f"{layer}/links/f0-again")
    os.link(f"{layer}/gone/deep/f0", f"{layer}/links/of-gone")
    Path(layer, "changes").write_bytes(b"file")
    for at, dirs, files in os.walk(layer):
        for name in [*dirs, *files, "."]:
            os.utime(f"{at}/{name}", ns=(1, 10**18 + 1))
    return Point([layer], "")


def first(fs: Tree) -> None:
    surface = TreeSurface(fs)
    surface.rename(b"dir", b"renamed", 0)
    surface.chmod(b"renamed/deep/big", 0o600)
    surface.write(b"renamed/f0", 0, b"DIR")
    surface.create(b"holes", 0o644, b"begin")
    surface.write(b"holes", 1 << 20, b"end")
    surface.unlink(b"changes")
    surface.mkdir(b"changes", 0o700)
    surface.create(b"changes/in", 0o4755, b"in")
    surface.rename(b"moves", b"dir2/moved", 0)
    surface.link(b"links/f1", b"links/f1-new")


def second(fs: Tree) -> None:
    surface = TreeSurface(fs)
    surface.rename(b"renamed/deep", b"deep", 0)
    surface.rename(b"renamed", b"again", 0)
    surface.write(b"links/f0-again", 0, b"LINKS")
    surface.setxattr(b"links/f0", b"user.a", b"1", 0)
    for name in (b"f0", b"f1", b"f2"):
        surface.unlink(b"gone/deep/" + name)
    surface.rmdir(b"gone/deep")
    for name in (b"f0", b"f1", b"f2"):
        surface.unlink(b"gone/" + name)
    surface.rmdir(b"gone")
    surface.symlink(b"nowhere", b"gone")
    surface.create(b"came", 0o644, b"and went")
    surface.unlink(b"came")
    surface.setxattr(b"dir2", b"system.posix_acl_default", ACL, 0)
    surface.create(b"dir2/inherits", 0o644, b"x")


def test_what_is_written_is_what_is_needed(scratch: Path) -> None:
    history = History(scratch, Random(0), root=os.geteuid() == 0)
    base = plain_base(history)
    source = grown(history, base, first, second).tree()
    layer = check(source, base, history)
    source.close()
    assert room(layer) < 65536
    names = [f"{at}/{name}" for at, dirs, files in os.walk(layer) for name in (*dirs, *files)]
    held = sorted(os.path.relpath(name, layer) for name in names)
    assert held == [
        "again",  # a redirect to dir
        "again/deep",  # a whiteout
        "again/f0",
        "changes",
        "changes/in",
        "deep",  # a redirect to dir/deep
        "deep/big",  # a metacopy
        "dir",  # a whiteout
        "dir2",
        "dir2/inherits",
        "dir2/moved",  # a metacopy
        "gone",
        "holes",
        "links",
        "links/f0",
        "links/f0-again",
        "links/f1",
        "links/f1-new",
        "links/of-gone",  # for its link count
        "moves",  # a whiteout
    ]


@pytest.mark.overlay
def test_the_kernel_shows_it_alike(scratch: Path) -> None:
    history = History(scratch, Random(0))
    base = plain_base(history)
    source = grown(history, base, first, second).tree()
    layer = check(source, base, history)
    merged = history.directory()
    options = f"lowerdir={layer}:{base.layers[0]},redirect_dir=follow,metacopy=on,ro"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    try:
        assert differences(snapshot(TreeSurface(source)), snapshot(HostSurface(merged))) == []
    finally:
        subprocess.run(["umount", merged], check=True)
    source.close()


def owned_by_others(fs: Tree) -> None:
    surface = TreeSurface(fs)
    surface.chown(b"renamed/f1", 0, 0)
    surface.chown(b"still", 33, 44)
    surface.chmod(b"still/f2", 0o6755)
    surface.create(b"setuid", 0o755, b"program")
    surface.chown(b"setuid", 0, 7)
    surface.chmod(b"setuid", 0o4755)
    surface.mknod(b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    surface.mkdir(b"closed", 0o700)
    surface.create(b"closed/in", 0o600, b"x")
    surface.chmod(b"closed", 0o000)


def as_a_user(top: str) -> None:
    """What runs as one."""

    def loose(key: str, kind: int) -> bool:
        return key == "ino" and kind not in (DT_REG, DT_DIR)  # They have no user.* attributes (xattr(7)).

    history = History(Path(top), Random(0), root=False)
    base = plain_base(history)
    source = grown(history, base, first, owned_by_others, second).tree()
    assert source.stat(source.resolve(b"/setuid")).st_uid == 0
    check(source, base, history, loose=loose)
    source.close()
    for seed in range(3):
        replay_points(Path(top, f"seed{seed}"), seed, root=False, loose=loose)


def test_as_a_user(as_user: AsUser) -> None:
    as_user.python(
        "import sys; from tests.test_union_replay import as_a_user; as_a_user(sys.argv[1])", str(as_user.scratch)
    )


def test_surplus(scratch: Path) -> None:
    history = History(scratch, Random(0), root=os.geteuid() == 0)
    base = plain_base(history)

    def work(fs: Tree) -> None:
        surface = TreeSurface(fs)
        surface.chmod(b"moves", 0o600)  # and back
        surface.chmod(b"moves", 0o644)
        surface.overwrite(b"still/f0", b"still 0")
        surface.utime(b"still/f0", 10**18 + 1, 10**18 + 1)
        for name in (b"f0", b"f1", b"f2"):
            surface.unlink(b"dir2/" + name)
        surface.rmdir(b"dir2")
        surface.mkdir(b"dir2", 0o755)  # opaque
        for i in range(3):
            surface.create(b"dir2/f%d" % i, 0o644, b"dir2 %d" % i)
            surface.utime(b"dir2/f%d" % i, 10**18 + 1, 10**18 + 1)
        surface.utime(b"dir2", 10**18 + 1, 10**18 + 1)
        surface.link(b"links/f1", b"links/new")
        surface.overwrite(b"dir/f0", b"changed")

    point = grown(history, base, work)
    layer = point.layers[0]
    os.mkdir(f"{layer}/idle")
    os.mknod(f"{layer}/idle/hides-nothing", stat.S_IFCHR)
    os.mknod(f"{layer}/hides-nothing", stat.S_IFCHR)
    new, old = point.tree(), base.tree()
    changes = list(compare(new, old))
    assert [str(change) for change in changes] == ["C /dir/f0", "A /idle", "A /links/new"]
    found = surplus(new, old, new.resolver.layers[0], changes)
    assert found == [
        "/dir2", "/dir2/f0", "/dir2/f1", "/dir2/f2", "/hides-nothing", "/idle/hides-nothing", "/moves", "/still",
        "/still/f0",
    ]  # fmt: skip
    # What was made again as it was is another file, and no change.
    check(new, base, history, loose=lambda key, kind: key == "ino")
    new.close()
    old.close()


@pytest.mark.parametrize("metacopy", [False, True])
def test_without_redirects_it_is_copied(scratch: Path, metacopy: bool) -> None:
    history = History(scratch, Random(0), root=os.geteuid() == 0)
    base = plain_base(history)
    source = grown(history, base, first, second).tree()
    layers = [DirectoryLayer(layer) for layer in base.layers]
    target = Tree(layers, history.upper(base), redirect_dir=False, metacopy=metacopy)
    replay(source, target, list(compare(source, target)))
    assert unlike(source, target) == []
    source.close()
    target.close()


def test_only_a_writable_tree_takes_it(scratch: Path) -> None:
    history = History(scratch, Random(0), root=os.geteuid() == 0)
    base = plain_base(history)
    tree = base.tree()
    with pytest.raises(OSError, match="Read-only") as caught:
        replay(tree, tree, [])
    assert caught.value.errno == errno.EROFS
    tree.close()

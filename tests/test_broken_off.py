"""A change that breaks off in the middle, by an error of the disk or by Ctrl-C: memory says what the layers say."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from unionfs.layer.memory import MemoryLayer
from unionfs.layer.protocol import DT_REG
from unionfs.layer.trees import symlink
from unionfs.testing.oracle import snapshot
from unionfs.testing.surfaces import TreeSurface
from unionfs.types import RENAME_EXCHANGE
from unionfs.union.node import DirNode, Node
from unionfs.union.tree import Tree


class Breaking(MemoryLayer):
    """An upper of which one of the next changes fails: before or after it is made."""

    fuse = 0
    """How many changes from now; 0 for never."""
    after = False
    error: Any = KeyboardInterrupt
    inside = False


def _breaking(name: str) -> Callable[..., Any]:
    original = getattr(MemoryLayer, name)

    def method(self: Breaking, *args: Any, **kwargs: Any) -> Any:
        if self.inside or not self.fuse:
            return original(self, *args, **kwargs)
        self.fuse -= 1
        if not self.fuse and not self.after:
            raise self.error
        self.inside = True
        try:
            answer = original(self, *args, **kwargs)
        finally:
            self.inside = False
        if not self.fuse:
            raise self.error
        return answer

    return method


for _name in (
    "mkdir", "create", "stage", "dress", "place", "mknod", "symlink", "link", "unlink", "rmdir", "whiteout", "rename",
    "setattr", "setxattr", "removexattr", "set_marks",
):  # fmt: skip
    setattr(Breaking, _name, _breaking(_name))


LOWERS: list[dict[str, Any]] = [
    {"d": {"f": "lower f", "g": "g"}, "e": {"x": "x"}, "gone": "", "gonedir": {"y": ""}, "empty": {}},
    {"d": {"f": "below", "deep": {"er": "er"}}, "e": {"z": "z"}, "over": "over", "own": {"low": ""}},
    {"l": symlink("d/f"), "e": {"w": "w"}},
]


def at(tree: Tree, path: bytes) -> tuple[DirNode, bytes]:
    return tree.resolve_parent(path)


def create(tree: Tree, path: bytes, uid: int | None = None) -> None:
    tree.create(*at(tree, path), 0o644, os.O_RDWR, uid, uid)[1].close()


def write(tree: Tree, path: bytes) -> None:
    handle = tree.open(tree.resolve(path), os.O_RDWR)
    handle.pwrite(b"W", 0)
    handle.close()


def read(tree: Tree, n: Node) -> bytes:
    handle = tree.open(n, os.O_RDONLY)
    try:
        return handle.pread(100, 0)
    finally:
        handle.close()


def seen(tree: Tree) -> dict[bytes, Any]:
    return {path: found.facts for path, found in snapshot(TreeSurface(tree)).items()}


STEPS: dict[str, Callable[[Tree], Any]] = {
    "create": lambda t: create(t, b"d/deep/new"),
    "create for somebody": lambda t: create(t, b"new", 7),
    "create over a whiteout": lambda t: create(t, b"gone", 7),
    "mkdir": lambda t: t.mkdir(*at(t, b"e/new"), 0o755, 7, 7),
    "mkdir over a whiteout": lambda t: t.mkdir(*at(t, b"gonedir"), 0o755),
    "mknod": lambda t: t.mknod(*at(t, b"e/new"), stat.S_IFIFO | 0o600, 0, 7, 7),
    "symlink": lambda t: t.symlink(*at(t, b"e/new"), b"x"),
    "link": lambda t: t.link(t.resolve(b"new file"), *at(t, b"e/new")),
    "unlink of a lower": lambda t: t.unlink(*at(t, b"d/f")),
    "unlink of an upper": lambda t: t.unlink(*at(t, b"new file")),
    "unlink of both": lambda t: t.unlink(*at(t, b"over")),
    "rmdir of a lower": lambda t: t.rmdir(*at(t, b"empty")),
    "rmdir of an upper": lambda t: t.rmdir(*at(t, b"newdir/empty")),
    "rmdir with whiteouts": lambda t: t.rmdir(*at(t, b"own")),
    "rename of a lower file": lambda t: t.rename(*at(t, b"d/f"), *at(t, b"e/f")),
    "rename of an upper file": lambda t: t.rename(*at(t, b"new file"), *at(t, b"e/f")),
    "rename of a link": lambda t: t.rename(*at(t, b"l"), *at(t, b"d/l")),
    "rename over a file": lambda t: t.rename(*at(t, b"d/f"), *at(t, b"over")),
    "rename of a lower directory": lambda t: t.rename(*at(t, b"d"), *at(t, b"moved")),
    "rename of an upper directory": lambda t: t.rename(*at(t, b"newdir"), *at(t, b"gonedir")),
    "rename over a directory": lambda t: t.rename(*at(t, b"d"), *at(t, b"own")),
    "rename over a lower directory": lambda t: t.rename(*at(t, b"newdir"), *at(t, b"empty")),
    "exchange of directories": lambda t: t.rename(*at(t, b"d"), *at(t, b"newdir"), RENAME_EXCHANGE),
    "exchange": lambda t: t.rename(*at(t, b"d/deep"), *at(t, b"over"), RENAME_EXCHANGE),
    "chmod": lambda t: t.setattr(t.resolve(b"d/deep/er"), mode=0o600),
    "chmod of a directory": lambda t: t.setattr(t.resolve(b"d/deep"), mode=0o700),
    "truncate": lambda t: t.setattr(t.resolve(b"d/f"), size=3),
    "write": lambda t: write(t, b"d/f"),
    "setxattr": lambda t: t.setxattr(t.resolve(b"d/f"), b"user.x", b"1"),
    "removexattr": lambda t: t.removexattr(t.resolve(b"new file"), b"user.y"),
}


def prepared(lowers: list[MemoryLayer], upper: MemoryLayer) -> Tree:
    tree = Tree(lowers, upper)
    create(tree, b"new file")
    tree.setxattr(tree.resolve(b"new file"), b"user.y", b"1")
    tree.mkdir(*at(tree, b"newdir"), 0o755)
    tree.mkdir(*at(tree, b"newdir/empty"), 0o755)
    tree.unlink(*at(tree, b"gone"))
    tree.unlink(*at(tree, b"gonedir/y"))
    tree.rmdir(*at(tree, b"gonedir"))
    tree.unlink(*at(tree, b"own/low"))
    tree.setattr(tree.resolve(b"over"), mode=0o600)
    return tree


def breaks_off(step: Callable[[Tree], Any], fuse: int, after: bool, error: Any) -> bool:
    """Whether the step comes to the change number ``fuse``, which then fails."""
    lowers = [MemoryLayer.from_dict(layer, read_only=True) for layer in LOWERS]
    upper = Breaking()
    tree = prepared(lowers, upper)
    before = seen(tree)
    readers = [tree.open(tree.resolve(name), os.O_RDONLY) for name in (b"d/f", b"over", b"d/deep/er")]
    upper.fuse, upper.after, upper.error = fuse, after, error
    try:
        step(tree)
    except (KeyboardInterrupt, OSError):
        assert not upper.fuse
    else:
        # What clears up afterwards may fail and be left to the next open.
        if upper.fuse:
            return False
    upper.fuse = 0
    assert seen(tree) == seen(Tree([upper, *lowers]))
    if not after and fuse == 1:
        assert seen(tree) == before
    for handle in readers:
        assert handle.stat().st_size == len(handle.pread(100, 0)) > 0
        if not handle.node.nameless:
            assert read(tree, handle.node) == handle.pread(100, 0)
        handle.close()
    # And all goes on.
    for name in (b"d/f", b"over", b"new file"):
        try:
            n = tree.resolve(name)
        except FileNotFoundError:
            continue
        if n.kind == DT_REG:
            write(tree, name)
    for name in (b"again", b"gone", b"e/new", b"moved", b"gonedir"):
        d, last = at(tree, name)
        if last not in tree.entries(d):
            create(tree, name)
    assert seen(tree) == seen(Tree([upper, *lowers]))
    return True


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "broken")], ids=["interrupt", "error"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", STEPS)
def test_memory_and_disk_are_alike(name: str, after: bool, error: Any) -> None:
    fuse = 1
    while breaks_off(STEPS[name], fuse, after, error):
        fuse += 1
    assert fuse > 1

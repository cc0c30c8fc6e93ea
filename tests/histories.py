"""Histories at random: scattered layers at the bottom, layers that commits made above, branches; all layers on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import attrs

from unionfs.layer import whiteout
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG
from unionfs.layer.upper import UpperDirectory
from unionfs.testing.operations import Operations
from unionfs.testing.oracle import outcome
from unionfs.testing.stacks import build, build_merged, random_stack, without_hidden_links
from unionfs.testing.surfaces import HostSurface, TreeSurface
from unionfs.union.commit import commit
from unionfs.union.copyup import copy_metadata
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.reader import TreeReader
from unionfs.union.tree import Tree


@attrs.frozen
class Point:
    """Layers, topmost first, and a plain directory that looks as they do."""

    layers: list[str]
    plain: str

    def tree(self, upper: UpperDirectory | None = None) -> Tree:
        return Tree([DirectoryLayer(layer) for layer in self.layers], upper)


class History:
    """Points at random below `top`; the first is a scattered stack. `root`: owners and devices too."""

    def __init__(self, top: Path, rng: Random, *, root: bool = True) -> None:
        self.top = top
        self.rng = rng
        self.root = root
        self._count = 0
        stack = without_hidden_links(random_stack(rng, rng.randrange(1, 4), root=root))
        layers = []
        for spec in stack:
            layers.append(self.directory())
            build(spec, layers[-1], whiteout.TRUSTED if root else whiteout.USER)
        plain = self.directory()
        build_merged(stack, plain, self.directory())
        self.points = [Point(layers, plain)]

    def directory(self) -> str:
        """A new one."""
        self._count += 1
        path = f"{self.top}/{self._count}"
        os.mkdir(path)
        return path

    def upper(self, start: Point) -> UpperDirectory:
        """An empty one, whose root is as the one that shows without it."""
        upper = UpperDirectory(self.directory(), self.directory(), trusted=self.root)
        below = DirectoryLayer(start.layers[0])
        copy_metadata(below, below.root, b".", below.stat(below.root, b"."), upper, upper.root, b".")
        below.close()
        return upper

    def grow(self, start: Point, steps: int, commits: int = 1) -> Point:
        """What stands on `start` after random operations, committed so many times; all points are kept."""
        plain = self.directory()
        subprocess.run(["cp", "-aT", start.plain, plain], check=True)
        tree = start.tree(self.upper(start))
        point = start
        for _ in range(commits):
            self.work(tree, plain, steps)
            destination = self.directory()
            commit(tree, destination)
            point = Point([destination, *point.layers], self._kept(plain))
            self.points.append(point)
        tree.close()
        return point

    def work(self, tree: Tree, plain: str, steps: int) -> None:
        """Random operations on both."""
        surfaces = HostSurface(plain), TreeSurface(tree)
        operations = Operations(self.rng, surfaces[0], root=self.root, remounts=False)
        for _ in range(steps):
            op = operations.next()
            for surface in surfaces:
                outcome(surface, op)
        for surface in surfaces:
            for slot in list(surface.files):
                surface.close(slot)

    def _kept(self, plain: str) -> str:
        kept = self.directory()
        subprocess.run(["cp", "-aT", plain, kept], check=True)
        return kept

    def close(self) -> None:
        """Everything goes."""
        for name in os.listdir(self.top):
            shutil.rmtree(self.top / name)


def walk(tree: TreeReader) -> dict[str, dict[str, Any]]:
    """All that a tree shows, read plainly: path to facts."""
    found: dict[str, dict[str, Any]] = {}
    todo: list[tuple[bytes, Node]] = [(b"", tree.root)]
    while todo:
        path, n = todo.pop()
        st = tree.stat(n)
        facts: dict[str, Any] = {"kind": n.kind, "mode": oct(st.st_mode), "owner": (st.st_uid, st.st_gid)}
        facts["times"] = st.st_mtime_ns
        facts["xattrs"] = {key: tree.getxattr(n, key) for key in tree.listxattr(n)}
        facts["ino"] = st.st_ino
        facts["atime"] = st.st_atime_ns
        if isinstance(n, DirNode):
            todo += [(path + b"/" + name, tree.lookup(n, name)) for name, _, _ in tree.listdir(n)]
        else:
            assert isinstance(n, FileNode)
            facts["nlink"] = st.st_nlink
            facts["data"] = st.st_rdev
            if n.kind == DT_LNK:
                facts["data"] = tree.readlink(n)
            elif n.kind == DT_REG:
                file = tree.open_data(n)
                facts["data"] = file.pread(st.st_size + 1, 0)
                file.close()
        found[os.fsdecode(path) or "/"] = facts
    return found


def plain_changes(
    new: dict[str, dict[str, Any]], old: dict[str, dict[str, Any]]
) -> set[tuple[str, str, frozenset[str]]]:
    """What turns one walk into another, by the rules of `compare`: the naive way."""
    found: set[tuple[str, str, frozenset[str]]] = set()
    busy = {os.path.dirname(path) for path in new.keys() ^ old.keys()}
    for path in new.keys() | old.keys():
        before, after = old.get(path), new.get(path)
        if before is None:
            found.add((path, "added", frozenset()))
        elif after is None:
            # Of a directory that went, or became something else, what was in it is not told.
            above = os.path.dirname(path)
            if new.get(above, {}).get("kind") == DT_DIR:
                found.add((path, "deleted", frozenset()))
        elif before["kind"] != after["kind"]:
            found.add((path, "changed", frozenset({"type"})))
        else:
            what = {key for key in ("data", "mode", "owner", "times", "xattrs") if before.get(key) != after.get(key)}
            if path == "/" or path in busy:
                what -= {"times"} if after["kind"] == DT_DIR else set()
            if what:
                found.add((path, "changed", frozenset(what)))
    return found

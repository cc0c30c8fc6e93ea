"""The union through the mount against a plain directory: random layers, random operations, equal answers, equal trees.

`UNIONFS_ORACLE_CASES=2000 pytest tests/test_mount_property.py` hunts for longer.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import unionfs.mount
from tests.arena import Arena, search
from unionfs.mount import Mount
from unionfs.testing.operations import Op, Operations
from unionfs.testing.stacks import random_stack, spec_code, without_hidden_links
from unionfs.testing.surfaces import HostSurface, TreeSurface
from unionfs.union.tree import Tree

pytestmark = [pytest.mark.fuse, pytest.mark.root]

CASES = int(os.environ.get("UNIONFS_ORACLE_CASES", "40"))
LONG = CASES > 40
STEPS = 80


class MountSurface(HostSurface):
    """A mount of fusepy. Renames with flags, which libfuse 2 does not pass on, go through the other door."""

    def __init__(self, root: str, tree: Tree) -> None:
        super().__init__(root)
        self.api = TreeSurface(tree)

    def rename(self, path: bytes, path2: bytes, flags: int) -> None:
        if flags:
            self.api.rename(path, path2, flags)
        else:
            super().rename(path, path2, flags)

    def lstat(self, path: bytes) -> os.stat_result:
        found = super().lstat(path)
        # A mount has a device number of its own, each time another.
        values: list[Any] = [*found[:10], found.st_atime, found.st_mtime, found.st_ctime]
        values += [found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns, found.st_blksize, found.st_blocks]
        values[2] = 0
        return os.stat_result([*values, found.st_rdev])


class MountArena(Arena):
    """An arena whose subject is a mount in this process."""

    sole = False
    _mounted: Mount | None = None

    def subject(self) -> MountSurface:
        self.close_tree()
        mountpoint = f"{self.top}/merged"
        os.makedirs(mountpoint, exist_ok=True)
        tree = self.tree()
        union: Any = SimpleNamespace(tree=tree)
        self._mounted = unionfs.mount.mount(union, mountpoint, engine="fusepy", sole=self.sole)
        return MountSurface(mountpoint, tree)

    def close_tree(self) -> None:
        if self._mounted is not None:
            self._mounted.unmount()
            self._mounted = None
        super().close_tree()


class SoleArena(MountArena):
    """One whose mount may remember, since nothing else changes the tree."""

    sole = True


class Limits:
    """What libfuse 2 can't do as a plain directory does (pathops.py); `plain` is that directory."""

    def __init__(self, plain: HostSurface, *, sole: bool) -> None:
        self._plain = plain
        self._sole = sole
        self._linked: set[int] = set()
        """Inodes that had two names."""

    def _has_nameless(self) -> bool:
        """Whether a file is open whose name went, though another may be left: libfuse 2 has it by that name's path."""
        found = [os.fstat(fd) for fd in self._plain.files.values()]
        return any(st.st_nlink == 0 or st.st_ino in self._linked for st in found)

    def _is_dir(self, path: bytes) -> bool:
        return os.path.isdir(self._plain.at(path))

    def allow(self, op: Op) -> bool:
        """Whether the mount must do this as the directory does."""
        kind = op[0]
        with contextlib.suppress(OSError):
            if kind in ("link", "open"):
                seen = self._plain.lstat(op[1 if kind == "link" else 2])
                if kind == "link" or seen.st_nlink > 1:
                    self._linked.add(seen.st_ino)
            if kind == "pread" and self._plain.fstat(op[1]).st_ino in self._linked:
                return False
        if kind in ("rmdir", "rename") and self._has_nameless() and self._is_dir(op[-2 if kind == "rename" else 1]):
            return False
        if kind == "rename" and op[3]:
            return not self._sole and not self._plain.files
        return kind != "punch" and (kind != "setxattr" or op[2] != b"system.posix_acl_default")


def run_case(kind: type[MountArena], top: Path, seed: int, *, commits: bool = False) -> None:
    """One random case. Raises AssertionError with the layers and the operations."""
    rng = Random(seed)
    stack = random_stack(rng, rng.randrange(3, 6))
    if commits:
        stack = without_hidden_links(stack)
    arena = kind(top / "arena", stack)
    duel = arena.duel()
    operations = Operations(rng, duel.reference, commits=commits)
    limits = Limits(duel.reference, sole=kind.sole)
    try:
        duel.compare()
        for step in range(STEPS):
            op = operations.next()
            if limits.allow(op):
                duel.step(op)
            if step % 20 == 0:
                duel.compare()
        duel.step(("remount",))
    except AssertionError as error:
        layers = ",\n    ".join(map(spec_code, stack))
        raise AssertionError(f"seed {seed}\nstack = [\n    {layers},\n]\n{error!s}") from error
    finally:
        duel.close()
        arena.close()


@pytest.mark.slow
@pytest.mark.timeout(0 if LONG else 120)
@pytest.mark.parametrize("commits", [False, True], ids=["plain", "commits"])
def test_mount_beside_the_api(scratch: Path, commits: bool) -> None:
    search(lambda seed: run_case(MountArena, scratch, seed, commits=commits), CASES // 2)


@pytest.mark.slow
@pytest.mark.timeout(0 if LONG else 120)
def test_mount_alone(scratch: Path) -> None:
    search(lambda seed: run_case(SoleArena, scratch, seed), CASES)

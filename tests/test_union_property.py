"""The union against a plain directory: random layers, random operations, equal answers, equal trees, numbers for life.

`UNIONFS_ORACLE_CASES=5000 pytest tests/test_union_property.py` hunts for longer. A failure prints the least layers and
operations that still fail; they go to `FOUND`.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

import unionfs
from tests.arena import Arena, Setting, replay, run_seed, search
from tests.support import AsUser
from unionfs.layer.protocol import Marks
from unionfs.layer.trees import WHITEOUT, Entry, Link
from unionfs.testing.operations import ACL, CAPABILITY, Op, Operations
from unionfs.testing.oracle import differences, snapshot
from unionfs.testing.stacks import Spec, merged, random_stack
from unionfs.testing.surfaces import HostSurface, PathSurface, Surface
from unionfs.types import RENAME_EXCHANGE, RENAME_NOREPLACE

CASES = int(os.environ.get("UNIONFS_ORACLE_CASES", "120"))
LONG = CASES > 120

OLD = 1_000_000_000 * 1_000_000_000
TOP = Entry(0o40755, {}, mtime_ns=OLD)


def directory(mode: int = 0o755, **more: Any) -> Entry:
    return Entry(0o40000 | mode, {}, mtime_ns=OLD, **more)


def file(content: bytes = b"content", mode: int = 0o644, **more: Any) -> Entry:
    return Entry(0o100000 | mode, content, mtime_ns=OLD, **more)


@pytest.mark.slow
@pytest.mark.timeout(0 if LONG else 120)
@pytest.mark.root
def test_tree(scratch: Path) -> None:
    setting = Setting(scratch)
    search(lambda seed: run_seed(setting, seed), CASES)


@pytest.mark.slow
@pytest.mark.timeout(0 if LONG else 120)
@pytest.mark.root
def test_tree_with_commits(scratch: Path) -> None:
    setting = Setting(scratch, commits=True, steps=100)
    search(lambda seed: run_seed(setting, seed), CASES // 2)


class PathArena(Arena):
    """The subject is the path API."""

    fs: unionfs.UnionFS | None = None

    def subject(self) -> Surface:
        self.close_tree()
        lowers = self.layers()
        self.fs = unionfs.UnionFS(lower=lowers, upper=f"{self.top}/upper", work=f"{self.top}/work")
        return PathSurface(self.fs)

    def commit(self) -> None:
        assert self.fs is not None
        self.fs.commit()

    def close_tree(self) -> None:
        if self.fs is not None:
            self.fs.close()
            self.fs = None


@pytest.mark.slow
@pytest.mark.timeout(0 if LONG else 120)
@pytest.mark.root
def test_path_api(scratch: Path) -> None:
    setting = Setting(scratch, kind=PathArena, commits=True)
    search(lambda seed: run_seed(setting, seed), CASES)


def unprivileged(top: str, commits: str, cases: str) -> None:
    """What the unprivileged user runs."""
    setting = Setting(Path(top), root=False, commits=bool(commits))
    search(lambda seed: run_seed(setting, seed), int(cases))


@pytest.mark.slow
@pytest.mark.timeout(0 if LONG else 120)
@pytest.mark.parametrize("commits", ["", "commits"])
def test_tree_of_a_user(as_user: AsUser, commits: str) -> None:
    code = "import sys; from tests.test_union_property import unprivileged; unprivileged(*sys.argv[1:])"
    as_user.python(code, str(as_user.scratch), commits, str(CASES // 3), timeout=100 + CASES)


# What was found, cut down. Each is one bug that was there.

FOUND: dict[str, tuple[list[Spec], list[Op]]] = {
    "removing an ACL that is not there": (
        [{b"": TOP}, {b"": TOP}, {b"": TOP, b"f": file()}],
        [("removexattr", b"f", b"system.posix_acl_access"), ("removexattr", b"", b"system.posix_acl_default")],
    ),
    "removing user attributes where there can be none": (
        [{b"": TOP}, {b"": TOP}, {b"": TOP, b"p": Entry(0o10644, mtime_ns=OLD)}],
        [("removexattr", b"p", b"user.a")],
    ),
    "link of a directory to a name that exists": (
        [{b"": TOP, b"f": file()}, {b"": TOP, b"d": directory()}, {b"": TOP}],
        [("link", b"d", b"f"), ("link", b"d", b"new")],
    ),
    "rename below and above itself": (
        [{b"": TOP, b"d": directory(), b"d/f": file()}, {b"": TOP}, {b"": TOP, b"d": directory(), b"d/g": file()}],
        [
            ("rename", b"d/f", b"d", 0),
            ("rename", b"d", b"d/g", 0),
            ("rename", b"d", b"d/new", 0),
            ("rename", b"d/f", b"d", RENAME_EXCHANGE),
            ("rename", b"d/f", b"d", RENAME_NOREPLACE),
        ],
    ),
    "the slash at the end of a symbolic link": (
        [{b"": TOP, b"s": Entry(0o120777, b"f/", mtime_ns=OLD)}, {b"": TOP, b"f": file()}, {b"": TOP}],
        [("read", b"s"), ("write", b"s", 0, b"x")],
    ),
    "metadata of a file that is open and gone": (
        [{b"": TOP, b"f": file(mode=0o4755)}, {b"": TOP, b"g": file()}, {b"": TOP}],
        [
            ("open", 0, b"f", os.O_RDONLY),
            ("open", 1, b"g", os.O_RDONLY),
            ("chmod", b"f", 0o600),
            ("unlink", b"f"),
            ("fstat", 0),
            ("pread", 0, 100, 0),
            ("chown", b"g", 1000, -1),
            ("rename", b"g", b"f", 0),
            ("unlink", b"f"),
            ("fstat", 1),
        ],
    ),
    "link count of a file that was linked, is open and gone": (
        [{b"": TOP, b"d": directory(), b"d/f": file()}, {b"": TOP}, {b"": TOP}],
        [
            ("link", b"d/f", b"g"),
            ("unlink", b"g"),
            ("open", 0, b"d/f", os.O_RDWR),
            ("unlink", b"d/f"),
            ("fstat", 0),
            ("pwrite", 0, b"more", 0),
            ("fstat", 0),
        ],
    ),
    "a capability on a metacopy that is opened for writing": (
        [{b"": TOP, b"f": file()}, {b"": TOP}, {b"": TOP}],
        [("setxattr", b"f", b"security.capability", CAPABILITY, 0), ("write", b"f", 0, b"")],
    ),
    "a commit with a writer below a default ACL": (
        [{b"": TOP, b"d": directory(), b"d/e": directory(), b"d/e/f": file()}, {b"": TOP}, {b"": TOP}],
        [
            ("open", 0, b"d/e/f", os.O_WRONLY),
            ("setxattr", b"d", b"system.posix_acl_default", ACL, 0),
            ("commit",),
            ("pwrite", 0, b"after", 0),
        ],
    ),
    "a metacopy that is cut": (
        [{b"": TOP, b"f": file(b"content;" * 1000), b"g": Link(b"f")}, {b"": TOP}, {b"": TOP}],
        [("chmod", b"f", 0o600), ("truncate", b"g", 5), ("chmod", b"f", 0o644), ("truncate", b"f", 50)],
    ),
}


@pytest.mark.root
@pytest.mark.parametrize("name", FOUND)
def test_found(scratch: Path, name: str) -> None:
    replay(Setting(scratch), *FOUND[name])


# The oracle itself can fail


def test_differences_are_seen(scratch: Path) -> None:
    one, other = HostSurface(scratch / "one"), HostSurface(scratch / "other")
    for surface in (one, other):
        os.mkdir(surface.root)
        surface.create(b"f", 0o644, b"same")
        surface.mkdir(b"d", 0o755)
        surface.create(b"d/g", 0o644, b"same")
        for path in (b"d/g", b"d", b"f", b""):
            surface.utime(path, OLD, OLD)
    assert differences(snapshot(one), snapshot(other)) == []
    changes: list[tuple[str, Op, Op]] = [
        ("mode", ("chmod", b"f", 0o600), ("chmod", b"f", 0o644)),
        ("data", ("write", b"f", 0, b"else"), ("write", b"f", 0, b"same")),
        ("xattrs", ("setxattr", b"d", b"user.a", b"1", 0), ("removexattr", b"d", b"user.a")),
        ("mtime", ("utime", b"d/g", OLD, OLD + 1), ("utime", b"d/g", OLD, OLD)),
        ("missing", ("rename", b"f", b"h", 0), ("rename", b"h", b"f", 0)),
        ("should not be there", ("symlink", b"f", b"s"), ("unlink", b"s")),
        ("nlink", ("link", b"f", b"l"), ("unlink", b"l")),
    ]
    for word, there, back in changes:
        getattr(other, there[0])(*there[1:])
        found = differences(snapshot(one), snapshot(other))
        assert any(word in line for line in found), (word, found)
        getattr(other, back[0])(*back[1:])
        for surface in (one, other):
            for path in (b"f", b"d", b""):
                surface.utime(path, OLD, OLD)
        assert differences(snapshot(one), snapshot(other)) == []


def test_torn_hard_links_are_seen(scratch: Path) -> None:
    for name, origins in (("one", (b"a", b"b")), ("other", (b"b", b"a"))):
        surface = HostSurface(scratch / name)
        os.mkdir(surface.root)
        for path in (b"a", b"b"):
            surface.create(path, 0o644, b"")
        surface.link(origins[0], b"c")
        surface.link(origins[1], b"d")
        for path in (b"a", b"b", b""):
            surface.utime(path, OLD, OLD)
    found = differences(snapshot(HostSurface(scratch / "one")), snapshot(HostSurface(scratch / "other")))
    assert any("hard links" in line for line in found)


def test_merged_by_hand() -> None:
    stack: list[Spec] = [
        {b"": TOP, b"a": directory(), b"a/x": WHITEOUT, b"o": directory(marks=Marks(opaque=True)), b"f": file(b"top")},
        {
            b"": TOP,
            b"a": directory(0o700),
            b"a/x": file(b"hidden"),
            b"a/y": file(b"y"),
            b"d": WHITEOUT,
            b"f": directory(),
        },
        {
            b"": TOP,
            b"o": directory(),
            b"o/gone": file(),
            b"d": file(),
            b"a": directory(),
            b"a/z": Link(b"d"),
            b"f": file(),
        },
    ]
    spec, hidden = merged(stack)
    assert list(spec) == [b"", b"a", b"a/y", b"a/z", b"f", b"o"]
    assert spec[b"a"] == directory()
    assert spec[b"f"] == file(b"top")
    assert hidden == {b"a/z": 1}


def test_operations_are_about_what_exists(scratch: Path) -> None:
    surface = HostSurface(scratch)
    surface.create(b"f", 0o644, b"data")
    operations = Operations(Random(1), surface)
    ops = [operations.next() for _ in range(300)]
    assert len({op[0] for op in ops}) > 20
    assert sum(b"f" in op for op in ops) > 100


def test_stacks_overlap() -> None:
    rng = Random(1)
    stacks = [random_stack(rng, 4) for _ in range(50)]
    several = sum(
        sum(path in spec for spec in stack) > 1 for stack in stacks for path in {p for spec in stack for p in spec if p}
    )
    assert several > 200

"""Operations whose every step is worth a crash or an error: copy-ups, deletions, renames, creations, commits."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import attrs

from tests.arena import Arena
from unionfs.layer.protocol import Marks
from unionfs.layer.trees import WHITEOUT, Entry, Link
from unionfs.testing.operations import ACL, CAPABILITY, Op
from unionfs.testing.oracle import Seen, snapshot
from unionfs.testing.stacks import Spec
from unionfs.testing.surfaces import Surface, TreeSurface
from unionfs.types import RENAME_EXCHANGE

OLD = 1_000_000_000 * 1_000_000_000


def _dir(mode: int = 0o755, **more: object) -> Entry:
    return Entry(stat.S_IFDIR | mode, {}, mtime_ns=OLD, **more)  # type: ignore[arg-type]


def _file(content: bytes, mode: int = 0o644, **more: object) -> Entry:
    return Entry(stat.S_IFREG | mode, content, mtime_ns=OLD, **more)  # type: ignore[arg-type]


STACK: list[Spec] = [
    {
        b"": _dir(),
        b"d": _dir(),
        b"d/f": _file(b"data;" * 2000, uid=1000, gid=1000, xattrs={"user.a": b"1"}),
        b"d/h1": _file(b"linked;" * 1000),
        b"h2": Link(b"d/h1"),
        b"h3": Link(b"d/h1"),
        b"gone": WHITEOUT,
        b"shared": _dir(0o2775, gid=1000, uid=1000, xattrs={"system.posix_acl_default": ACL}),
    },
    {
        b"": _dir(),
        b"d": _dir(0o700),
        b"d/g": _file(b"g"),
        b"d/sub": _dir(0o711, xattrs={"user.b": b"2"}),
        b"d/sub/x": _file(b"x"),
        b"big": _file(b"big;" * 100_000),
        b"empty": _dir(),
        b"only": _dir(),
        b"only/z": _file(b"z"),
        b"gone": _file(b"gone"),
        b"shared": _dir(),
        b"shared/w": _file(b"w"),
    },
    {
        b"": _dir(),
        b"d": _dir(),
        b"d/k": _file(b"k", 0o4755, xattrs={"security.capability": CAPABILITY}),
        b"d/sub": _dir(marks=Marks()),
        b"d/sub/y": _file(b"y"),
        b"s": Entry(0o120777, b"d/f", mtime_ns=OLD),
        b"p": Entry(0o10644, b"", mtime_ns=OLD),
        b"only": _dir(),
        b"only/v": _file(b"v"),
        b"gone": _file(b"below"),
    },
]


@attrs.frozen
class Scenario:
    """`op` is the one in question; `before`: what leads to it; `opened`: files that are open meanwhile."""

    op: Op
    before: tuple[Op, ...] = ()
    opened: tuple[Op, ...] = ()


def _s(*ops: Op) -> Scenario:
    return Scenario(ops[-1], ops[:-1])


COPY_UP = {
    "file": _s(("write", b"d/f", 3, b"new")),
    "big file": _s(("append", b"big", b"end")),
    "metadata": _s(("chmod", b"d/f", 0o600)),
    "metadata and capability": _s(("chown", b"d/k", 1000, -1)),
    "completion": _s(("chmod", b"d/f", 0o600), ("write", b"d/f", 0, b"new")),
    "cut": _s(("truncate", b"big", 5)),
    "cut of a metacopy": _s(("chmod", b"big", 0o600), ("truncate", b"big", 5)),
    "overwritten": _s(("overwrite", b"d/f", b"")),
    "link, metadata": _s(("chmod", b"d/h1", 0o600)),
    "link, data": _s(("write", b"h2", 0, b"new")),
    "link, completion": _s(("chmod", b"d/h1", 0o600), ("write", b"h2", 0, b"new")),
    "link, cut of a metacopy": _s(("chmod", b"d/h1", 0o600), ("truncate", b"h2", 5)),
    "symbolic link": _s(("chown", b"s", 1000, 1000)),
    "fifo": _s(("chmod", b"p", 0o600)),
    "directory": _s(("chmod", b"d/sub", 0o700)),
    "attribute": _s(("setxattr", b"d/sub/x", b"user.n", b"1", 0)),
    "attribute gone": _s(("removexattr", b"d/f", b"user.a")),
    "attribute of a directory": _s(("setxattr", b"d/sub", b"user.n", b"1", 0)),
    "times": _s(("utime", b"d/k", OLD, OLD + 5)),
}
GO = {
    "lower file": _s(("unlink", b"d/f")),
    "copied-up file": _s(("write", b"d/f", 0, b"x"), ("unlink", b"d/f")),
    "new file": _s(("create", b"d/new", 0o644, b"x"), ("unlink", b"d/new")),
    "lower link": _s(("unlink", b"d/h1")),
    "another lower link": _s(("unlink", b"d/h1"), ("unlink", b"h3")),
    "last link": _s(("unlink", b"d/h1"), ("unlink", b"h3"), ("unlink", b"h2")),
    "copied-up link": _s(("chmod", b"d/h1", 0o600), ("unlink", b"d/h1")),
    "new link": _s(("create", b"n", 0o644, b"x"), ("link", b"n", b"n2"), ("unlink", b"n")),
    "lower directory": _s(("rmdir", b"empty")),
    "new directory": _s(("mkdir", b"new", 0o755), ("rmdir", b"new")),
    "emptied directory": _s(("unlink", b"only/z"), ("unlink", b"only/v"), ("rmdir", b"only")),
    "opaque directory": _s(("rmdir", b"empty"), ("mkdir", b"empty", 0o755), ("rmdir", b"empty")),
}
COME = {
    "file": _s(("create", b"d/new", 0o640, b"")),
    "file over a whiteout": _s(("unlink", b"d/g"), ("create", b"d/g", 0o640, b"")),
    "file over a whiteout, inheriting": _s(("unlink", b"shared/w"), ("create", b"shared/w", 0o666, b"")),
    "file over a lower's whiteout": _s(("create", b"gone", 0o640, b"")),
    "directory": _s(("mkdir", b"d/new", 0o750)),
    "directory over a whiteout": _s(("unlink", b"d/g"), ("mkdir", b"d/g", 0o750)),
    "directory over a directory that went": _s(("rmdir", b"empty"), ("mkdir", b"empty", 0o750)),
    "directory over a whiteout, inheriting": _s(("unlink", b"shared/w"), ("mkdir", b"shared/w", 0o777)),
    "symbolic link over a whiteout": _s(("unlink", b"s"), ("symlink", b"d", b"s")),
    "fifo over a whiteout": _s(("unlink", b"p"), ("mknod", b"p", stat.S_IFIFO | 0o644, 0)),
    "link of a lower file": _s(("link", b"d/f", b"d/l")),
    "link of a lower link": _s(("link", b"h2", b"d/l")),
    "link of a copied-up link": _s(("chmod", b"h2", 0o600), ("link", b"h3", b"d/l")),
    "link over a whiteout": _s(("unlink", b"d/g"), ("link", b"d/k", b"d/g")),
}
MOVE = {
    "file": _s(("rename", b"d/f", b"n", 0)),
    "file over a file": _s(("rename", b"d/f", b"big", 0)),
    "file over a whiteout": _s(("unlink", b"big"), ("rename", b"d/f", b"big", 0)),
    "file over a link": _s(("rename", b"d/f", b"h2", 0)),
    "new file over a lower one": _s(("create", b"n", 0o644, b"x"), ("rename", b"n", b"d/f", 0)),
    "link": _s(("rename", b"h2", b"d/new", 0)),
    "link over a file": _s(("rename", b"h2", b"d/g", 0)),
    "symbolic link": _s(("rename", b"s", b"d/s", 0)),
    "directory": _s(("rename", b"d", b"n", 0)),
    "directory below another": _s(("rename", b"d/sub", b"only/n", 0)),
    "directory again": _s(("rename", b"d", b"n", 0), ("rename", b"n", b"m", 0)),
    "directory over a whiteout": _s(("unlink", b"big"), ("rename", b"d", b"big", 0)),
    "directory over an empty one": _s(("rename", b"d", b"empty", 0)),
    "directory over an emptied one": _s(
        ("unlink", b"only/z"),
        ("unlink", b"only/v"),
        ("setxattr", b"only", b"user.n", b"1", 0),
        ("rename", b"d", b"only", 0),
    ),
    "new directory over a whiteout": _s(("unlink", b"big"), ("mkdir", b"n", 0o755), ("rename", b"n", b"big", 0)),
    "exchange of files": _s(("rename", b"d/f", b"big", RENAME_EXCHANGE)),
    "exchange of a file and a directory": _s(("rename", b"d/sub", b"big", RENAME_EXCHANGE)),
    "exchange of directories": _s(("rename", b"d", b"only", RENAME_EXCHANGE)),
    "exchange of links": _s(("rename", b"h2", b"d/g", RENAME_EXCHANGE)),
}
_CHANGES: tuple[Op, ...] = (
    ("write", b"d/f", 0, b"new"),
    ("chmod", b"d/k", 0o600),
    ("unlink", b"d/g"),
    ("rename", b"only", b"moved", 0),
    ("chmod", b"d/h1", 0o600),
    ("create", b"d/sub/n", 0o600, b"n"),
    ("setxattr", b"d", b"system.posix_acl_default", ACL, 0),
)
COMMIT = {
    "nothing": _s(("commit",)),
    "changes": _s(*_CHANGES, ("commit",)),
    "open writers": Scenario(
        ("commit",),
        _CHANGES,
        (("open", 0, b"d/f", os.O_RDWR), ("open", 1, b"h2", os.O_WRONLY), ("open", 2, b"d/sub/n", os.O_RDWR)),
    ),
    "again": _s(*_CHANGES, ("commit",), ("write", b"d/f", 0, b"newer"), ("unlink", b"h2"), ("commit",)),
}
SCENARIOS = {
    f"{group}: {name}": scenario
    for group, scenarios in (("copy-up", COPY_UP), ("go", GO), ("come", COME), ("move", MOVE), ("commit", COMMIT))
    for name, scenario in scenarios.items()
}


def arena_before(top: Path, scenario: Scenario) -> Arena:
    """The layers, as they are before the operation in question; nothing is open."""
    arena = Arena(top, STACK)
    surface = arena.subject()
    for op in scenario.before:
        do(arena, surface, op)
    arena.close_tree()
    return arena


def do(arena: Arena, surface: Surface, op: Op) -> None:
    if op[0] == "commit":
        arena.commit()
    else:
        getattr(surface, op[0])(*op[1:])


def look(arena: Arena) -> dict[bytes, Seen]:
    """The tree as it is opened next, and its state on disk: nothing is left of unfinished work."""
    surface = arena.subject()
    assert isinstance(surface, TreeSurface)
    left = os.listdir(f"{arena.top}/work/work")
    assert left == [], f"left in work: {left}"
    seen = snapshot(surface)
    arena.close_tree()
    return seen

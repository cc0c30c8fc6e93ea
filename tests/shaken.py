"""Random roll-backs: a union's tree is changed, committed, and taken to any point there was, over and over."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unionfs.union.fs import UnionFS

_NAMES = "abc"
_PATHS = ["/".join(names) for depth in (1, 2, 3) for names in itertools.product(_NAMES, repeat=depth)]
_POINTS = 6


class Shaken:
    """``door`` and ``top``: the way to the tree of ``fs``; a door is ``os``, or a union. ``opens``: its ``open``."""

    def __init__(
        self,
        fs: UnionFS,
        home: Path,
        door: Any,
        top: str,
        opens: Callable[[str, str], Any],
        seed: int,
    ) -> None:
        self.fs, self.home, self.door, self.top, self.opens = fs, home, door, top, opens
        self.random = random.Random(seed)
        self.stack = [str(layer.label) for layer in fs.tree.resolver.layers if layer is not fs.tree.upper]
        self.points = [self.stack]
        self.count = 0

    def path(self) -> str:
        return f"{self.top}/{self.random.choice(_PATHS)}"

    def write(self, path: str) -> None:
        with self.opens(path, "wb") as file:
            file.write(b"x" * self.random.randrange(1, 50))

    def change(self) -> None:
        """One random change, which may fail."""
        door, path, other = self.door, self.path(), self.path()
        what = self.random.choice(
            [
                lambda: self.write(path),
                lambda: self.write(path),
                lambda: door.mkdir(path),
                lambda: door.mkdir(path),
                lambda: door.rename(path, other),
                lambda: door.rename(path, other),
                lambda: door.rmdir(path),
                lambda: door.remove(path),
                lambda: door.link(path, other, follow_symlinks=False),
                lambda: door.symlink("target", path),
                lambda: door.chmod(path, self.random.choice([0o700, 0o750, 0o711])),
            ]
        )
        with contextlib.suppress(OSError):
            what()

    def seen(self, door: Any, top: str, opens: Callable[[str, str], Any]) -> dict[str, object]:
        """What shows under every path that could be; and which of them are one object."""
        found: dict[str, object] = {}
        objects: dict[int, list[str]] = {}
        for path in _PATHS:
            try:
                st = door.lstat(f"{top}/{path}")
            except (FileNotFoundError, NotADirectoryError):
                continue
            objects.setdefault(st.st_ino, []).append(path)
            at = f"{top}/{path}"
            what: object
            if stat.S_ISDIR(st.st_mode):
                what = sorted(door.listdir(at))
            elif stat.S_ISLNK(st.st_mode):
                what = door.readlink(at), st.st_ino
            else:
                with opens(at, "rb") as file:
                    what = file.read(), st.st_nlink, st.st_ino, st.st_mtime_ns
            found[path] = st.st_mode, what
        return {**found, "one object": sorted(objects.values()), "root": sorted(door.listdir(f"{top}/"))}

    def restack(self) -> None:
        """To any point, with some files open."""
        self.seen(self.door, self.top, self.opens)  # So that all is known, and what is missing too.
        with contextlib.ExitStack() as stack:
            files = []
            for _ in range(4):
                with contextlib.suppress(OSError):
                    file = stack.enter_context(self.opens(self.path(), self.random.choice(["rb", "rb+"])))
                    files.append((file, file.read()))
            self.count += 1
            upper = self.home / f"u{self.count}"
            upper.mkdir()
            self.stack = self.random.choice(self.points)
            self.fs.restack(self.stack, upper)
            for file, content in files:
                file.seek(0)
                assert file.read() == content
        with UnionFS(self.stack) as plain:
            expected = self.seen(plain, "", plain.open)
        assert self.seen(self.door, self.top, self.opens) == expected

    def commit(self) -> None:
        """A point more."""
        self.count += 1
        where = self.home / f"l{self.count}"
        self.fs.commit(where)
        self.stack = [str(where), *self.stack]
        self.points.append(self.stack)
        if len(self.points) > _POINTS:
            del self.points[self.random.randrange(len(self.points))]

    def run(self, rounds: int) -> None:
        for _ in range(40):
            self.change()
        self.commit()
        for _ in range(rounds):
            for _ in range(self.random.randrange(12)):
                self.change()
            step = self.random.choice([self.commit, self.restack, self.restack])
            step()


def shake_union(home: Path, seed: int, rounds: int) -> None:
    """In process."""
    (home / "base").mkdir()
    (home / "upper").mkdir()
    with UnionFS([home / "base"], home / "upper") as fs:
        Shaken(fs, home, fs, "", fs.open, seed).run(rounds)


def shake_mount(home: Path, fs: UnionFS, mountpoint: Path, seed: int, rounds: int) -> None:
    """Through a mount."""
    Shaken(fs, home, os, str(mountpoint), open, seed).run(rounds)

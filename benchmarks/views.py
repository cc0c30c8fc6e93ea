"""What a workload sees of a contender: the same few calls, whoever answers them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scratch import Unsupported

Walk = Callable[[str], Iterable[tuple[str, list[str], list[str]]]]


@dataclass(frozen=True)
class View:
    """One opened tree.

    The functions are the contender's own, without a wrapper where there is none to need, so that hot loops
    time them and nothing else. `prefix` goes before a path of the tree (``"/a/b"``) to make their argument.
    """

    prefix: str
    stat: Callable[[str], Any]
    listdir: Callable[[str], Any]
    walk: Walk
    chmod: Callable[[str, int], Any]
    rename: Callable[[str, str], Any]
    write_byte: Callable[[str], None]
    open: Callable[..., Any]
    mkdir: Callable[[str], Any]
    rmtree: Callable[[str], Any]
    not_found: type[BaseException] = FileNotFoundError
    upper: Path | None = None
    pid: int | None = None

    def walk_and_stat(self, top: str) -> int:
        """Walk the tree and stat each entry that is not a directory; how many entries there are."""
        count = 0
        stat, join = self.stat, os.path.join
        for directory, directories, files in self.walk(self.prefix + top):
            for name in files:
                stat(join(directory, name))
            count += len(directories) + len(files)
        return count


def os_write_byte(path: str) -> None:
    """Open `path` for reading and writing, change its first byte, close it."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, b"#", 0)
    finally:
        os.close(fd)


@contextlib.contextmanager
def os_view(root: Path, upper: Path | None = None, pid: int | None = None) -> Iterator[View]:
    """The tree at `root`, through the system's own calls: a plain directory or a mount.

    The process works in `root` meanwhile, so that the names above it cost nothing in a lookup.
    """
    os.chdir(root)
    try:
        yield View(
            prefix=".",
            stat=os.stat,
            listdir=os.listdir,
            walk=os.walk,
            chmod=os.chmod,
            rename=os.rename,
            write_byte=os_write_byte,
            open=open,
            mkdir=os.mkdir,
            rmtree=shutil.rmtree,
            upper=upper,
            pid=pid,
        )
    finally:
        os.chdir("/")


def unionfs_view(fs: Any, upper: Path | None) -> View:
    """A ``unionfs.UnionFS``, in process."""

    def write_byte(path: str) -> None:
        with fs.open(path, "r+b") as file:
            file.write(b"#")

    return View(
        prefix="",
        stat=fs.stat,
        listdir=fs.listdir,
        walk=fs.walk,
        chmod=fs.chmod,
        rename=fs.rename,
        write_byte=write_byte,
        open=fs.open,
        mkdir=fs.mkdir,
        rmtree=fs.rmtree,
        upper=upper,
    )


def multifs_view(multi: Any, not_found: type[BaseException]) -> View:
    """PyFilesystem2's ``MultiFS``."""

    def stat(path: str) -> Any:
        return multi.getinfo(path, ("stat",))

    def walk(top: str) -> Iterable[tuple[str, list[str], list[str]]]:
        for step in multi.walk(top):
            yield step.path, [d.name for d in step.dirs], [f.name for f in step.files]

    def rmtree(path: str) -> None:
        if not path.startswith("/new"):
            raise Unsupported("MultiFS has no whiteouts: it removes the lower files themselves")
        multi.removetree(path)

    def refuse(*_: object) -> None:
        raise Unsupported("MultiFS has no copy-up: it changes what its write layer already holds")

    return View(
        prefix="",
        stat=stat,
        listdir=multi.listdir,
        walk=walk,
        chmod=refuse,
        rename=refuse,
        write_byte=refuse,
        open=multi.open,
        mkdir=multi.makedir,
        rmtree=rmtree,
        not_found=not_found,
    )

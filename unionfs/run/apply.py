"""A union's changes brought to the host that is its lower layer.

The lower is the very tree that changes here, and what the upper does not hold is read from it. So everything is staged
first, beside the place where it will stand; only then does the first name change, by rename; and only when all that
worked is anything deleted: a file that was moved and could not be made in its new place stays in the old one.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from unionfs._sys.rename import RENAME_EXCHANGE, renameat2
from unionfs.run.hostfiles import HostRoot, dress, make, temp_name
from unionfs.union.node import DirNode, FileNode, Node

if TYPE_CHECKING:
    from unionfs.union.diff import Change
    from unionfs.union.tree import Tree


@attrs.frozen
class Problem:
    """A path that was not brought to the host, and why."""

    path: str
    text: str


def conflicts(changes: Sequence[Change], started_ns: int, root: str = "/") -> list[Problem]:
    """Where the host changed too since ``started_ns``, in nanoseconds by the clock of its file systems (ctime).

    A directory's own times are no conflict: others may come and go beside what the union changed.
    """
    host = HostRoot(root)
    found = []
    new: set[str] = set()
    for change in changes:
        if change.kind == "added" and os.path.dirname(change.path) in new:
            new.add(change.path)
            continue
        try:
            text = _conflict(host, change, started_ns)
        except OSError as error:
            text = error.strerror
        if text:
            found.append(Problem(change.path, text))
        if change.kind == "added" or "type" in change.what:
            new.add(change.path)
    return found


def _conflict(host: HostRoot, change: Change, started_ns: int) -> str | None:
    path = _raw(change.path)
    st = host.stat(path)
    if change.kind == "added":
        if st is not None:
            return "appeared on the host meanwhile"
        parent = host.stat(path.rpartition(b"/")[0])
        return None if parent is not None and stat.S_ISDIR(parent.st_mode) else "its directory is gone from the host"
    if st is None:
        return None if change.kind == "deleted" else "gone from the host meanwhile"
    if not stat.S_ISDIR(st.st_mode):
        return "changed on the host meanwhile" if st.st_ctime_ns > started_ns else None
    if change.kind == "changed" and "type" not in change.what:
        return None
    fd, name = host.entry(path)
    inside = _changed_inside(fd.n, name, started_ns)
    return None if inside is None else f"changed on the host meanwhile: {os.fsdecode(inside)}"


def _changed_inside(fd: int, name: bytes, started_ns: int) -> bytes | None:
    """The first name in the directory whose ctime is later, itself included."""
    for _, _, files, at in os.fwalk(name, dir_fd=fd, follow_symlinks=False):
        if os.fstat(at).st_ctime_ns > started_ns:
            return name
        for file in files:
            with suppress(FileNotFoundError):
                if os.stat(file, dir_fd=at, follow_symlinks=False).st_ctime_ns > started_ns:
                    return file
    return None


def apply(tree: Tree, changes: Sequence[Change], root: str = "/") -> list[Problem]:
    """Make the host's ``root`` look as the union does, by its ``changes``. Answers what did not work.

    Data are reflinked or copied; each file takes its place in one step. Owners, modes, times, attributes, hard links,
    devices and holes are kept. What fails is told and left out, and then nothing is deleted.
    """
    return _Application(tree, changes, HostRoot(root)).run()


def _raw(path: str) -> bytes:
    """As ``HostRoot`` has it: ``b""`` for the root."""
    raw = os.fsencode(path)
    return b"" if raw == b"/" else raw


@attrs.frozen
class _Staged:
    """What stands ready under a temporary name, to be renamed into its place."""

    change: Change
    parent: bytes
    temp: bytes


class _Application:
    def __init__(self, tree: Tree, changes: Sequence[Change], host: HostRoot) -> None:
        self.tree = tree
        self.host = host
        self.changes = changes
        self.touched = {_raw(change.path) for change in changes}
        self.problems: list[Problem] = []
        self.staged: list[_Staged] = []
        self.places: dict[bytes, bytes] = {}
        """Directories that are being made: path to where they stand now."""
        self.failed: set[bytes] = set()
        self.links: dict[int, bytes] = {}
        """Inode numbers of hard links: where the first of them stands now."""

    def run(self) -> list[Problem]:
        try:
            for change in self.changes:
                if change.kind != "deleted" and not _is_metadata(change):
                    self._try(change, self._stage)
            for path in reversed(self.places):
                self._try(path, self._dress_directory)
            os.sync()  # A crash after the renames must not find empty files.
            while self.staged:
                self._try(self.staged[0].change, lambda _: self._publish(self.staged[0]))
                self._discard(self.staged.pop(0))
            for change in reversed(self.changes):
                if change.kind == "deleted":
                    self._try(change, self._delete)
            for change in reversed(self.changes):
                if _is_metadata(change):
                    self._try(change, self._dress)  # Last, since what comes and goes changes a directory's times.
        finally:
            for staged in self.staged:
                self._discard(staged)
        return self.problems

    def _try(self, what: Change | bytes, step: Callable[[Change], None] | Callable[[bytes], None]) -> None:
        try:
            step(what)  # type: ignore[arg-type]
        except OSError as error:
            path = what if isinstance(what, bytes) else _raw(what.path)
            self.failed.add(path)
            self.problems.append(Problem(os.fsdecode(path) or "/", error.strerror or str(error)))

    # Staging

    def _stage(self, change: Change) -> None:
        path = _raw(change.path)
        parent, _, name = path.rpartition(b"/")
        if parent in self.failed and parent not in self.places:
            self.failed.add(path)
            return  # Told already, for the directory.
        n = self.tree.resolve(path, follow=False)
        if parent in self.places:
            self._make(n, path, self.places[parent], name)
            return
        temp = temp_name()
        staged = _Staged(change, parent, temp)
        self.staged.append(staged)
        try:
            self._make(n, path, parent, temp)
        except OSError:
            self.staged.remove(staged)
            self._discard(staged)
            raise

    def _make(self, n: Node, path: bytes, parent: bytes, name: bytes) -> None:
        """Make ``n``, which is to be ``path``, as ``name`` in the host's directory ``parent``, or link it."""
        d = self.host.directory(parent)
        here = parent + b"/" + name
        if isinstance(n, DirNode):
            make(self.tree, n, d, name)
            self.places[path] = here
            return
        for other in self._links_of(n):
            fd, other_name = self.host.entry(other)
            try:
                os.link(other_name, name, src_dir_fd=fd.n, dst_dir_fd=d.n, follow_symlinks=False)
                return
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EMLINK, errno.ENOENT):
                    raise
        make(self.tree, n, d, name)
        if self.tree.stat(n).st_nlink > 1:
            self.links[n.ino] = here

    def _links_of(self, n: Node) -> Iterator[bytes]:
        """Where the host has ``n`` under another name: made here before, or there all the time."""
        assert isinstance(n, FileNode)
        if self.tree.stat(n).st_nlink < 2:
            return
        if n.ino in self.links:
            yield self.links[n.ino]
        for d, name in list(n.names or ()):
            path = d.path.rstrip(b"/") + b"/" + name
            if not self._is_touched(path):
                yield path

    def _is_touched(self, path: bytes) -> bool:
        """Whether ``path`` or a directory above it is among the changes."""
        while path:
            if path in self.touched:
                return True
            path = path.rpartition(b"/")[0]
        return False

    def _dress_directory(self, path: bytes) -> None:
        fd, name = self.host.entry(self.places[path])
        dress(self.tree, self.tree.resolve(path, follow=False), fd, name)

    def _discard(self, staged: _Staged) -> None:
        """Remove what is left under the temporary name, if anything is."""
        with suppress(OSError):
            fd = self.host.directory(staged.parent)
            try:
                os.unlink(staged.temp, dir_fd=fd.n)
            except IsADirectoryError:
                shutil.rmtree(staged.temp, dir_fd=fd.n)

    # The host changes

    def _publish(self, staged: _Staged) -> None:
        fd = self.host.directory(staged.parent)
        name = _raw(staged.change.path).rpartition(b"/")[2]
        if "type" in staged.change.what:
            # One of the two is a directory, maybe; what was there is discarded after.
            renameat2(fd.n, staged.temp, fd.n, name, RENAME_EXCHANGE)
            return
        os.rename(staged.temp, name, src_dir_fd=fd.n, dst_dir_fd=fd.n)

    def _dress(self, change: Change) -> None:
        path = _raw(change.path)
        fd, name = self.host.entry(path)
        dress(self.tree, self.tree.resolve(path or b"/", follow=False), fd, name)

    def _delete(self, change: Change) -> None:
        if self.problems:
            raise OSError(errno.ECANCELED, "not deleted, since not everything else could be applied")
        fd, name = self.host.entry(_raw(change.path))
        try:
            os.unlink(name, dir_fd=fd.n)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            shutil.rmtree(name, dir_fd=fd.n)


def _is_metadata(change: Change) -> bool:
    """Whether an object that stays in its place gets other metadata, and nothing else."""
    return change.kind == "changed" and not change.what & {"data", "type"}

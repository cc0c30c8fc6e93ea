"""Copies of files and trees: inside a union, and between a union and the host. Nothing is lost on the way.

Modes, owners, nanosecond times, extended attributes, holes, devices, hard links among what is copied, symbolic links as
links. Nothing is written through a symbolic link, whatever a layer holds.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import attrs

from unionfs.layer.protocol import LayerDir, LayerFile
from unionfs.union.copyup import copy_file, tolerated
from unionfs.union.host import HostTree
from unionfs.union.node import DirNode, Node
from unionfs.union.tree import Tree

Attributes = list[tuple[bytes, bytes]]


class Side(Protocol):
    """A tree to copy from or to. ``at`` is an object of it, ``d`` a directory of it, whatever that is for the side."""

    # As a source.
    def stat(self, at: Any) -> os.stat_result: ...
    def children(self, at: Any) -> list[tuple[bytes, Any]]: ...
    def open(self, at: Any) -> AbstractContextManager[LayerFile]: ...
    def readlink(self, at: Any) -> bytes: ...
    def xattrs(self, at: Any) -> Attributes: ...

    # As a target: what is made is answered.
    def find(self, d: Any, name: bytes) -> Any | None: ...
    def file(self, d: Any, name: bytes, data: LayerFile, st: os.stat_result) -> Any: ...
    def directory(self, d: Any, name: bytes) -> Any: ...
    def symlink(self, d: Any, name: bytes, target: bytes) -> Any: ...
    def special(self, d: Any, name: bytes, st: os.stat_result) -> Any: ...
    def link(self, at: Any, d: Any, name: bytes) -> None: ...
    def unlink(self, d: Any, name: bytes) -> None: ...
    def inside(self, at: Any) -> Any:
        """The directory ``at`` as a ``d``."""

    def dress(self, at: Any, st: os.stat_result, xattrs: Attributes) -> None:
        """Give owner, permissions, attributes and times, in the order that keeps them."""


class UnionSide:
    """The tree of a union; its objects are nodes."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def stat(self, at: Node) -> os.stat_result:
        return self._tree.stat(at)

    def children(self, at: DirNode) -> list[tuple[bytes, Node]]:
        return [(name, self._tree.lookup(at, name)) for name, _, _ in self._tree.listdir(at)]

    @contextmanager
    def open(self, at: Node) -> Iterator[LayerFile]:
        handle = self._tree.open(at, os.O_RDONLY)
        try:
            yield handle.file
        finally:
            handle.close()

    def readlink(self, at: Node) -> bytes:
        return self._tree.readlink(at)

    def xattrs(self, at: Node) -> Attributes:
        return [(key, self._tree.getxattr(at, key)) for key in self._tree.listxattr(at)]

    def find(self, d: DirNode, name: bytes) -> Node | None:
        try:
            return self._tree.lookup(d, name)
        except FileNotFoundError:
            return None

    def file(self, d: DirNode, name: bytes, data: LayerFile, st: os.stat_result) -> Node:
        node, handle = self._tree.create(d, name, 0o600, os.O_RDWR)
        try:
            copy_file(data, handle.file, st=st)
        finally:
            self._tree.touched(node)
            handle.close()
        return node

    def directory(self, d: DirNode, name: bytes) -> Node:
        return self._tree.mkdir(d, name, 0o700)

    def symlink(self, d: DirNode, name: bytes, target: bytes) -> Node:
        return self._tree.symlink(d, name, target)

    def special(self, d: DirNode, name: bytes, st: os.stat_result) -> Node:
        return self._tree.mknod(d, name, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev)

    def link(self, at: Node, d: DirNode, name: bytes) -> None:
        self._tree.link(at, d, name)

    def unlink(self, d: DirNode, name: bytes) -> None:
        self._tree.unlink(d, name)

    @staticmethod
    def inside(at: DirNode) -> DirNode:
        return at

    def dress(self, at: Node, st: os.stat_result, xattrs: Attributes) -> None:
        mode = None if stat.S_ISLNK(st.st_mode) else stat.S_IMODE(st.st_mode)
        self._tree.setattr(at, uid=st.st_uid, gid=st.st_gid)
        self._tree.setattr(at, mode=mode)
        for key, value in xattrs:
            with tolerated(key):
                self._tree.setxattr(at, key, value)
        self._tree.setattr(at, atime_ns=st.st_atime_ns, mtime_ns=st.st_mtime_ns)


@attrs.frozen
class HostEntry:
    """An object of the host: a name in a directory."""

    d: LayerDir
    name: bytes


class HostSide:
    """A tree of the host; its objects are entries of directories."""

    def __init__(self, tree: HostTree) -> None:
        self._tree = tree

    @staticmethod
    def inside(at: HostEntry) -> LayerDir:
        return at.d.child(at.name)

    def stat(self, at: HostEntry) -> os.stat_result:
        return self._tree.stat(at.d, at.name)

    def children(self, at: HostEntry) -> list[tuple[bytes, HostEntry]]:
        d = self.inside(at)
        return [(name, HostEntry(d, name)) for name in self._tree.names(d)]

    @contextmanager
    def open(self, at: HostEntry) -> Iterator[LayerFile]:
        file = self._tree.open(at.d, at.name, os.O_RDONLY)
        try:
            yield file
        finally:
            file.close()

    def readlink(self, at: HostEntry) -> bytes:
        return self._tree.readlink(at.d, at.name)

    def xattrs(self, at: HostEntry) -> Attributes:
        return [(key, self._tree.getxattr(at.d, at.name, key)) for key in self._tree.listxattr(at.d, at.name)]

    def find(self, d: LayerDir, name: bytes) -> HostEntry | None:
        try:
            self._tree.stat(d, name)
        except FileNotFoundError:
            return None
        return HostEntry(d, name)

    def file(self, d: LayerDir, name: bytes, data: LayerFile, st: os.stat_result) -> HostEntry:
        file = self._tree.create(d, name)
        try:
            copy_file(data, file, st=st)
        finally:
            file.close()
        return HostEntry(d, name)

    def directory(self, d: LayerDir, name: bytes) -> HostEntry:
        self._tree.mkdir(d, name)
        return HostEntry(d, name)

    def symlink(self, d: LayerDir, name: bytes, target: bytes) -> HostEntry:
        self._tree.symlink(d, name, target)
        return HostEntry(d, name)

    def special(self, d: LayerDir, name: bytes, st: os.stat_result) -> HostEntry:
        self._tree.mknod(d, name, st.st_mode, st.st_rdev)
        return HostEntry(d, name)

    def link(self, at: HostEntry, d: LayerDir, name: bytes) -> None:
        self._tree.link(at.d, at.name, d, name)

    def unlink(self, d: LayerDir, name: bytes) -> None:
        self._tree.unlink(d, name)

    def dress(self, at: HostEntry, st: os.stat_result, xattrs: Attributes) -> None:
        self._tree.setattr(at.d, at.name, st)
        for key, value in xattrs:
            with tolerated(key):
                self._tree.setxattr(at.d, at.name, key, value)
        self._tree.utime(at.d, at.name, st)


@attrs.frozen
class Copy:
    """One copy from ``source`` to ``target``.

    ``exist_ok``: directories that are there already merge with what comes, and other things are replaced; otherwise
    ``EEXIST``. ``paths``: what to call the two ends in errors. After a failure, what was copied stays.
    """

    source: Side
    target: Side
    paths: tuple[bytes, bytes]
    exist_ok: bool = False
    _links: dict[tuple[int, int], Any] = attrs.field(factory=dict, init=False)

    def run(self, at: Any, d: Any, name: bytes) -> None:
        """Copy ``at``, with all that is below it, to the name in ``d``."""
        todo: list[tuple[Any, Any, bytes, bytes]] = [(at, d, name, b"")]
        dressing: list[tuple[Any, os.stat_result, Attributes, bytes]] = []
        while todo:
            at, d, name, rest = todo.pop()
            try:
                if name in (b"", b".", b"..") or b"/" in name:
                    raise OSError(errno.EINVAL, f"{name!r} is no name of a file")
                st = self.source.stat(at)
                xattrs = self.source.xattrs(at)
                if stat.S_ISDIR(st.st_mode):
                    made = self._directory(d, name)
                    inside = self.target.inside(made)
                    todo += [(child, inside, below, rest + b"/" + below) for below, child in self.source.children(at)]
                    # In the end: what is made in it changes its times, and it may not let us in any more.
                    dressing.append((made, st, xattrs, rest))
                else:
                    self._leaf(at, d, name, st, xattrs)
            except OSError as error:
                raise self._told(error, rest) from None
        for made, st, xattrs, rest in reversed(dressing):
            try:
                self.target.dress(made, st, xattrs)
            except OSError as error:
                raise self._told(error, rest) from None

    def _told(self, error: OSError, rest: bytes) -> OSError:
        here, there = (os.fsdecode(path.rstrip(b"/") + rest) for path in self.paths)
        return OSError(error.errno, error.strerror, here, None, there)

    def _directory(self, d: Any, name: bytes) -> Any:
        there = self.target.find(d, name)
        if there is None or not self.exist_ok:
            return self.target.directory(d, name)
        if not stat.S_ISDIR(self.target.stat(there).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return there

    def _leaf(self, at: Any, d: Any, name: bytes, st: os.stat_result, xattrs: Attributes) -> None:
        if self.exist_ok and self.target.find(d, name) is not None:
            self.target.unlink(d, name)
        key = st.st_dev, st.st_ino
        known = self._links.get(key)
        if known is not None:
            self.target.link(known, d, name)
            return
        if stat.S_ISREG(st.st_mode):
            with self.source.open(at) as data:
                made = self.target.file(d, name, data, st)
        elif stat.S_ISLNK(st.st_mode):
            made = self.target.symlink(d, name, self.source.readlink(at))
        else:
            made = self.target.special(d, name, st)
        self.target.dress(made, st, xattrs)
        if st.st_nlink > 1:
            self._links[key] = made

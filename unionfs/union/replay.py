"""A difference brought to another upper: what many layers did, written once, and nothing more than that."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Hashable, Iterable, Sequence

import attrs

from unionfs.layer.protocol import DT_LNK, DT_REG
from unionfs.types import RENAME_EXCHANGE
from unionfs.union import removal
from unionfs.union.copyup import copy_file, tolerated
from unionfs.union.diff import Change, Places, compare, find
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.reader import TreeReader
from unionfs.union.transfer import UnionSide
from unionfs.union.tree import Tree


def replay(source: TreeReader, target: Tree, changes: Sequence[Change]) -> None:
    """Make ``target`` show what ``source`` shows; ``changes`` are ``compare(source, target)``.

    Only the target's upper is written to, and only where something differs: what moved is moved (a redirect, no copy),
    other metadata make a metacopy, data are reflinked or copied with their holes. Hard links, attributes, owners, the
    times of all files and directories, and inode numbers are the source's. Nothing is flushed to disk: ``Tree.sync``
    does it. ``source`` must not change meanwhile, and nobody else may use ``target``.

    Raises ``OSError``, ``EROFS`` without an upper. A failure leaves the target half way.
    """
    target.writable()
    _Replay(source, target).run(changes)


class _Replay:
    def __init__(self, source: TreeReader, target: Tree) -> None:
        self.source = source
        self.target = target
        self.side = UnionSide(target)
        self.places = Places()
        self.changes: dict[bytes, Change] = {}
        self.touched: set[bytes] = {b""}
        """Directories in which entries came, went or changed."""
        self.done: set[FileNode] = set()
        """The source's hard links that the target has."""

    def run(self, changes: Sequence[Change]) -> None:
        self._take(changes)
        if self._move():
            self._take(list(compare(self.source, self.target)))
        kept = {path: change for path, change in self.changes.items() if change.kind != "deleted"}
        for path in reversed(self.changes):
            if path not in kept or "type" in kept[path].what:
                self._remove(path)
        nodes = {path: self.source.resolve(path or b"/", follow=False) for path in kept}
        directories = [path for path, n in nodes.items() if isinstance(n, DirNode)]
        for path in directories:
            self._directory(path)
        files = {path: n for path, n in nodes.items() if isinstance(n, FileNode)}
        self._know_links(files.values())
        for path, n in files.items():
            self._file(path, n)
        for path in sorted(self.touched.union(directories), key=lambda path: path.count(b"/"), reverse=True):
            self._settle(path, dress=path in kept)

    def _take(self, changes: Sequence[Change]) -> None:
        self.changes = {_raw(change.path): change for change in changes}
        for path in self.changes:
            at = path
            while at:
                at = at.rpartition(b"/")[0]
                if at in self.touched:
                    break
                self.touched.add(at)

    # What moves

    def _move(self) -> bool:
        """Move what only has another path: directories, and files whose bytes are in a layer that both trees have."""
        lowers = self.places.common(self.source, self.target)
        origins = {}
        for path, change in self.changes.items():
            place = self._origin(path, change, lowers)
            if place is not None and self._goes(place):
                n = find(self.target, place)
                if n is not None and n not in origins:
                    origins[n] = (path, *self.target.resolve_parent(place))
        return sum(self._move_to(path, n, d, name) for n, (path, d, name) in origins.items()) > 0

    def _origin(self, path: bytes, change: Change, lowers: set[Hashable]) -> bytes | None:
        """Where the target has the same directory, or the same bytes, if it can be told."""
        if change.renamed_from is not None:
            return _raw(change.renamed_from)
        if not _has_new_data(change):
            return None
        n = self.source.resolve(path, follow=False)
        assert isinstance(n, FileNode)
        bytes_at = self.source.data_of(n) or (n.home, n.lname)
        if self.places.layer(bytes_at[0].layer) not in lowers:
            return None
        for place in (n.home.layer.marks(n.home, n.lname).redirect, bytes_at[0].path + b"/" + bytes_at[1]):
            if place is not None and place.startswith(b"/"):
                there = find(self.target, place)
                if isinstance(there, FileNode) and self.places.same(
                    self.target.data_of(there) or (there.home, there.lname), bytes_at
                ):
                    return place
        return None

    def _goes(self, path: bytes) -> bool:
        """Whether something else is under this path in the source, or nothing."""
        change = self.changes.get(path)
        if change is not None and _has_new_data(change):
            return True
        while path:
            change = self.changes.get(path)
            if change is not None and (change.kind == "deleted" or "type" in change.what):
                return True
            path = path.rpartition(b"/")[0]
        return False

    def _move_to(self, path: bytes, n: Node, d: DirNode, name: bytes) -> bool:
        there = find(self.target, path)
        if self.target.entries(d).get(name) is not n and n.parent is not None:
            d, name = n.parent, n.name  # Something else has changed places with it.
        if n is there or d.dead or self.target.entries(d).get(name) is not n:
            return False
        parent, _, name2 = path.rpartition(b"/")
        # What is there may have to move too.
        flags = 0 if there is None else RENAME_EXCHANGE
        try:
            self.target.rename(d, name, self._directory(parent), name2, flags)
        except OSError as error:
            # Into itself; or without redirects. Then it is copied.
            if error.errno not in (errno.EINVAL, errno.EXDEV):
                raise
            return False
        self._touch(d.path)
        return True

    # What goes and comes

    def _remove(self, path: bytes) -> None:
        n = find(self.target, path)
        if n is None:
            return
        d, name = self.target.resolve_parent(path)
        if isinstance(n, DirNode):
            _remove_tree(self.target, n, d, name)
        else:
            self.target.unlink(d, name)

    def _directory(self, path: bytes) -> DirNode:
        """The target's directory, made if need be with those above it."""
        missing: list[bytes] = []
        while not isinstance(n := find(self.target, path), DirNode):
            missing.append(path)
            if n is not None:
                self._remove(path)
            path = path.rpartition(b"/")[0]
        for path in reversed(missing):
            n = self.target.mkdir(n, path.rpartition(b"/")[2], 0o700)
        return n

    def _know_links(self, files: Iterable[FileNode]) -> None:
        """Find all names of the hard links that changed, in either tree."""
        linked = {n for n in files if n.names is not None}
        with self.source.lock:
            self.source.links.know(linked)
        paths = {path for n in files for path in _names(n)}
        known = {n for path in paths if isinstance(n := find(self.target, path), FileNode) and n.names is not None}
        with self.target.lock:
            self.target.links.know(known)

    def _file(self, path: bytes, n: FileNode) -> None:
        """A file of the source, under all the names that it has there."""
        if n in self.done:
            return
        self.done.add(n)
        names = _names(n)
        there = self._base(n, names)
        if there is None:
            for name in names:
                self._remove(name)
            there = self._make(path, n)
            self._dress(there, n)
        else:
            what = {what for name in _names(there) for what in self._what(name)}
            if "data" in what:
                self._write(there, n)
            if what:
                self._dress(there, n)
        for name in names:
            other = find(self.target, name)
            if other is there:
                continue
            if other is not None:
                self._remove(name)
            self.target.link(there, *self.target.resolve_parent(name))
            self._touch(name.rpartition(b"/")[0])
        self._number(there, n)

    def _what(self, path: bytes) -> Iterable[str]:
        change = self.changes.get(path)
        return () if change is None else change.what

    def _base(self, n: FileNode, names: set[bytes]) -> FileNode | None:
        """A file of the target that can become ``n``: it has no other names, and at most its data have to change."""
        for path in sorted(names, key=lambda path: (path in self.changes, path)):
            found = find(self.target, path)
            if not isinstance(found, FileNode) or found.kind != n.kind:
                continue
            if n.kind != DT_REG and "data" in self._what(path):
                continue
            if _names(found) <= names:
                return found
        return None

    def _make(self, path: bytes, n: FileNode) -> FileNode:
        parent, _, name = path.rpartition(b"/")
        d = self._directory(parent)
        st = self.source.stat(n)
        made: Node
        if n.kind == DT_REG:
            data = self.source.open_data(n)
            made = self.side.file(d, name, data, st)
            data.close()
        elif n.kind == DT_LNK:
            made = self.side.symlink(d, name, self.source.readlink(n))
        else:
            made = self.side.special(d, name, st)
        assert isinstance(made, FileNode)
        return made

    def _write(self, there: FileNode, n: FileNode) -> None:
        """Other bytes: those there are not copied up."""
        handle = self.target.open(there, os.O_RDWR | os.O_TRUNC)
        data = self.source.open_data(n)
        try:
            copy_file(data, handle.file, st=self.source.stat(n))
        finally:
            data.close()
            self.target.touched(there)
            handle.close()

    # Metadata

    def _touch(self, path: bytes) -> None:
        self.touched.add(b"" if path == b"/" else path)

    def _dress(self, there: Node, n: Node) -> None:
        """Owner, permissions, attributes and times, in the order that keeps them; only what differs."""
        target, wanted = self.target, self.source.stat(n)
        now = target.stat(there)
        if (now.st_uid, now.st_gid) != (wanted.st_uid, wanted.st_gid):
            target.setattr(there, uid=wanted.st_uid, gid=wanted.st_gid)
        self._permit(there, wanted)
        have = {key: target.getxattr(there, key) for key in target.listxattr(there)}
        keys = self.source.listxattr(n)
        for key in have.keys() - keys:
            with tolerated(key):
                target.removexattr(there, key)
        for key in keys:
            value = self.source.getxattr(n, key)
            if have.get(key) != value:
                with tolerated(key):
                    target.setxattr(there, key, value)
        self._permit(there, wanted)  # An ACL that came or went has changed it (acl(5)).
        self._time(there, wanted)

    def _permit(self, there: Node, wanted: os.stat_result) -> None:
        mode = stat.S_IMODE(wanted.st_mode)
        if there.kind != DT_LNK and stat.S_IMODE(self.target.stat(there).st_mode) != mode:
            self.target.setattr(there, mode=mode)

    def _time(self, there: Node, wanted: os.stat_result) -> None:
        now = self.target.stat(there)
        if (now.st_atime_ns, now.st_mtime_ns) != (wanted.st_atime_ns, wanted.st_mtime_ns):
            self.target.setattr(there, atime_ns=wanted.st_atime_ns, mtime_ns=wanted.st_mtime_ns)

    def _number(self, there: Node, n: Node) -> None:
        """The inode number that the source shows."""
        ino = self.source.stat(n).st_ino
        if there.ino != ino and there.parent is not None and self.target.in_upper(there):
            home, name = self.target.home_of(there)
            upper = self.target.writable()
            upper.set_marks(home, name, attrs.evolve(upper.marks(home, name), ino=ino))
            there.ino = ino
            self.target.touched(there)

    def _settle(self, path: bytes, *, dress: bool) -> None:
        """A directory in which nothing happens any more."""
        there = find(self.target, path)
        if not isinstance(there, DirNode) or not (dress or self.target.in_upper(there)):
            return
        n = self.source.resolve(path or b"/", follow=False)
        if dress:
            self._dress(there, n)
        self._time(there, self.source.stat(n))
        self._number(there, n)


def _remove_tree(tree: Tree, n: DirNode, d: DirNode, name: bytes) -> None:
    """Remove a directory with all that is in it by one whiteout; only the hard links in it go one by one, since others
    of their names may stay."""
    todo = [n]
    while todo:
        at = todo.pop()
        for inside, _, _ in tree.listdir(at):
            child = tree.lookup(at, inside)
            if isinstance(child, DirNode):
                todo.append(child)
            elif isinstance(child, FileNode) and child.names is not None:
                tree.unlink(at, inside)
    with tree.lock, tree.moving(), tree.whole((d, name)):
        removal.remove(tree, d, name, tree.in_upper(n), directory=True)
        removal.lost_dir(tree, n, d, name, None)


def _has_new_data(change: Change) -> bool:
    """A regular file whose bytes the old tree does not have under this path."""
    after = change.after
    if after is None or not stat.S_ISREG(after.st_mode):
        return False
    return change.kind == "added" or not change.what.isdisjoint({"data", "type"})


def _names(n: FileNode) -> set[bytes]:
    """The paths of a file; of a hard link, those that are known."""
    if n.names is None:
        return {n.path}
    return {d.path.rstrip(b"/") + b"/" + name for d, name in n.names}


def _raw(path: str) -> bytes:
    """``b""`` for the root."""
    return b"" if path == "/" else os.fsencode(path)

"""A layer's archive, unpacked into a tree."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import IO

from unionfs.images.publishing import Report
from unionfs.images.stacks import StoreFS
from unionfs.layer.protocol import DT_BLK, DT_CHR, DT_DIR, DT_FIFO, DT_LNK, DT_REG, DT_SOCK, DT_WHT, LayerFile
from unionfs.oci.entry import Entry, refuse
from unionfs.oci.tarread import read_layer
from unionfs.union.copyup import tolerated
from unionfs.union.node import DirNode, FileNode, Node

_CHUNK = 1 << 20
_HOLE = 1 << 16
_ZEROS = bytes(_HOLE)
_TYPES = {
    DT_REG: stat.S_IFREG,
    DT_CHR: stat.S_IFCHR,
    DT_BLK: stat.S_IFBLK,
    DT_FIFO: stat.S_IFIFO,
    DT_SOCK: stat.S_IFSOCK,
}


def unpack(fs: StoreFS, stream: IO[bytes], report: Report | None = None) -> None:
    """Unpack an archive into an empty union: what it holds, with owners, modes, times, attributes and hard links.

    Symbolic links are followed inside the union, as a tar unpacked in a chroot follows them, and never out of it. Long
    runs of zeros become holes. Whiteouts have nothing to hide here, and are left out. Raises ``UnionError`` for what
    breaks a rule, naming the entry; ``OSError``.
    """
    unpacking = _Unpacking(fs)
    for count, (entry, data) in enumerate(read_layer(stream), 1):
        if report is not None and count % 100 == 0:
            report("unpacking", count, 0)
        try:
            unpacking.put(entry, data)
        except OSError as error:
            path = os.fsdecode(b"/" + entry.path)
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), path) from error
    unpacking.end()


class _Unpacking:
    def __init__(self, fs: StoreFS) -> None:
        self.fs = fs
        self.tree = fs.tree
        self.directories: dict[bytes, tuple[DirNode, int]] = {}
        """Directories of the archive and their times, which are set when nothing more comes."""
        self.implied: list[DirNode] = []
        self.parent: tuple[bytes, DirNode] = (b"", self.tree.root)

    def put(self, entry: Entry, data: IO[bytes] | None) -> None:
        if entry.kind == DT_WHT:
            return
        if not entry.path:
            if entry.kind != DT_DIR:
                raise refuse(entry.path, "the root must be a directory")
            self._dress(self.tree.root, entry)
            self.directories[b""] = (self.tree.root, entry.mtime_ns)
            return
        above, _, name = entry.path.rpartition(b"/")
        d = self._directory(above, entry)
        self._clear(d, name, entry)
        if entry.kind == DT_DIR:
            found = self.tree.entries(d).get(name)
            node = self.tree.lookup(d, name) if found is not None else self.tree.mkdir(d, name, 0o700)
            assert isinstance(node, DirNode)
            self._dress(node, entry)
            self.directories[entry.path] = (node, entry.mtime_ns)
            return
        if entry.hardlink is not None:
            target = self._linked(entry)
            if target is not None:
                self.tree.link(target, d, name)
            return
        made: Node
        if entry.kind == DT_REG:
            made = self._file(d, name, entry, data)
        elif entry.kind == DT_LNK:
            made = self.tree.symlink(d, name, entry.target)
        elif entry.kind == DT_CHR and not entry.rdev:
            raise refuse(entry.path, "a character device 0:0 would be a whiteout")
        elif entry.kind in _TYPES:
            made = self.tree.mknod(d, name, _TYPES[entry.kind] | 0o600, entry.rdev)
        else:
            raise refuse(entry.path, f"entries of kind {entry.kind} are not known")
        self._dress(made, entry)
        self.tree.setattr(made, atime_ns=entry.mtime_ns, mtime_ns=entry.mtime_ns)

    def _directory(self, path: bytes, entry: Entry) -> DirNode:
        """The directory of an entry; what is missing on the way is made."""
        if path == self.parent[0]:
            return self.parent[1]
        d: DirNode = self.tree.root
        done = b""
        for name in path.split(b"/") if path else ():
            done = done + b"/" + name if done else name
            try:
                node = self.tree.resolve(b"/" + done)
            except FileNotFoundError:
                if name in self.tree.entries(d):
                    raise refuse(entry.path, "a symbolic link on the way leads nowhere") from None
                node = self.tree.mkdir(d, name, 0o755)
                self.tree.setattr(node, mode=0o755, uid=0, gid=0)
                self.implied.append(node)
            if not isinstance(node, DirNode):
                raise refuse(entry.path, f"{done.decode('utf-8', 'backslashreplace')!r} is no directory")
            d = node
        self.parent = (path, d)
        return d

    def _clear(self, d: DirNode, name: bytes, entry: Entry) -> None:
        """A later entry takes the place of an earlier one."""
        if name not in self.tree.entries(d):
            return
        old = self.tree.lookup(d, name)
        if not isinstance(old, DirNode):
            if entry.hardlink is not None and old is self._linked(entry):
                raise refuse(entry.path, "a hard link to itself")
            self.tree.unlink(d, name)
        elif entry.kind != DT_DIR:
            for path in [path for path in self.directories if (path + b"/").startswith(entry.path + b"/")]:
                del self.directories[path]
            self.parent = (b"", self.tree.root)
            self.fs.rmtree(old.path)

    def _linked(self, entry: Entry) -> FileNode | None:
        assert entry.hardlink is not None
        above, _, name = entry.hardlink.rpartition(b"/")
        try:
            d = self.tree.resolve(b"/" + above)
            target = self.tree.lookup(d, name)
        except OSError:
            raise refuse(entry.path, "a hard link to something that the archive does not have") from None
        if not isinstance(target, FileNode):
            raise refuse(entry.path, "a hard link to a directory")
        return target

    def _file(self, d: DirNode, name: bytes, entry: Entry, data: IO[bytes] | None) -> FileNode:
        node, handle = self.tree.create(d, name, 0o600, os.O_RDWR)
        file = handle.file
        try:
            at = 0
            hole = False
            while data is not None and (piece := data.read(_CHUNK)):
                hole = _write(file, piece, at)
                at += len(piece)
            if at != entry.size:
                raise refuse(entry.path, f"has {at} bytes, not {entry.size}")
            if hole:
                file.truncate(at)
        finally:
            handle.close()
            self.tree.touched(node)
        return node

    def _dress(self, node: Node, entry: Entry) -> None:
        self.tree.setattr(node, uid=entry.uid, gid=entry.gid)
        if entry.kind != DT_LNK:
            self.tree.setattr(node, mode=entry.mode)
        for key, value in entry.xattrs:
            with tolerated(key):
                self.tree.setxattr(node, key, value)

    def end(self) -> None:
        """The times of directories, the deepest first."""
        for node in reversed(self.implied):
            self.tree.setattr(node, atime_ns=0, mtime_ns=0)
        for _, (node, mtime) in sorted(self.directories.items(), reverse=True):
            with contextlib.suppress(FileNotFoundError):
                self.tree.setattr(node, atime_ns=mtime, mtime_ns=mtime)


def _write(target: LayerFile, piece: bytes, at: int) -> bool:
    """Write at ``at``, all but long runs of zeros; whether the end was left out."""
    left_out = False
    view = memoryview(piece)
    for start in range(0, len(piece), _HOLE):
        part = view[start : start + _HOLE]
        left_out = len(part) == _HOLE and part == _ZEROS
        if not left_out:
            done = 0
            while done < len(part):
                done += target.pwrite(part[done:], at + start + done)
    return left_out

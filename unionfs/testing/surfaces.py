"""Ways to a tree, all with the same methods: ``os`` below a directory, the core, the path API."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, TYPE_CHECKING, Protocol

from unionfs._sys.data import fallocate
from unionfs._sys.rename import renameat2
from unionfs.types import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.union.handle import Handle
from unionfs.union.node import DirNode, Node
from unionfs.union.tree import Tree

if TYPE_CHECKING:
    from unionfs.union.fs import UnionFS

SLOTS = 4
"""How many files a surface may have open for ``open`` … ``close``."""


class Surface(Protocol):
    """One way to a tree. Each method raises ``OSError`` where its system call would."""

    def create(self, path: bytes, mode: int, data: bytes) -> None: ...
    def write(self, path: bytes, offset: int, data: bytes) -> None: ...
    def append(self, path: bytes, data: bytes) -> None: ...
    def overwrite(self, path: bytes, data: bytes) -> None: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def read(self, path: bytes) -> bytes: ...
    def readlink(self, path: bytes) -> bytes: ...
    def listdir(self, path: bytes) -> dict[bytes, int]: ...
    def lstat(self, path: bytes) -> os.stat_result: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int) -> None: ...
    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None: ...
    def xattrs(self, path: bytes) -> dict[bytes, bytes]: ...
    def setxattr(self, path: bytes, key: bytes, value: bytes, flags: int) -> None: ...
    def removexattr(self, path: bytes, key: bytes) -> None: ...
    def mkdir(self, path: bytes, mode: int) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def link(self, path: bytes, path2: bytes) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def mknod(self, path: bytes, mode: int, rdev: int) -> None: ...
    def rename(self, path: bytes, path2: bytes, flags: int) -> None: ...
    def open(self, slot: int, path: bytes, flags: int) -> None: ...
    def pread(self, slot: int, size: int, offset: int) -> bytes: ...
    def pwrite(self, slot: int, data: bytes, offset: int) -> int: ...
    def ftruncate(self, slot: int, size: int) -> None: ...
    def punch(self, slot: int, offset: int, length: int) -> None: ...
    def fstat(self, slot: int) -> os.stat_result: ...
    def close(self, slot: int) -> None: ...


def _error(number: int, *names: bytes) -> OSError:
    return OSError(number, os.strerror(number), *names)


class HostSurface:
    """``os`` below a directory. What has no bytes of its own (FIFO, device) is ``ENXIO`` to open, as in ``Tree``."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fsencode(root)
        self.files: dict[int, int] = {}

    def at(self, path: bytes) -> bytes:
        """The host's path."""
        return self.root + b"/" + path if path else self.root

    def _fd(self, path: bytes, flags: int, mode: int = 0) -> int:
        where = self.at(path)
        if not flags & os.O_CREAT:
            kind = stat.S_IFMT(os.stat(where).st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR):
                raise _error(errno.ENXIO, path)
        return os.open(where, flags | os.O_CLOEXEC, mode)

    def create(self, path: bytes, mode: int, data: bytes) -> None:
        fd = self._fd(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            os.pwrite(fd, data, 0)
        finally:
            os.close(fd)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        fd = self._fd(path, os.O_RDWR)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def append(self, path: bytes, data: bytes) -> None:
        fd = self._fd(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def overwrite(self, path: bytes, data: bytes) -> None:
        fd = self._fd(path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.pwrite(fd, data, 0)
        finally:
            os.close(fd)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.at(path), size)

    def read(self, path: bytes) -> bytes:
        fd = self._fd(path, os.O_RDONLY)
        try:
            return os.pread(fd, 1 << 24, 0)
        finally:
            os.close(fd)

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.at(path))

    def listdir(self, path: bytes) -> dict[bytes, int]:
        with os.scandir(self.at(path)) as found:
            return {entry.name: entry.stat(follow_symlinks=False).st_mode >> 12 for entry in found}

    def lstat(self, path: bytes) -> os.stat_result:
        return os.lstat(self.at(path))

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self.at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        where = self.at(path)
        keys = os.listxattr(where, follow_symlinks=False)
        return {os.fsencode(key): os.getxattr(where, key, follow_symlinks=False) for key in keys}

    def setxattr(self, path: bytes, key: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self.at(path), key, value, flags, follow_symlinks=False)

    def removexattr(self, path: bytes, key: bytes) -> None:
        os.removexattr(self.at(path), key, follow_symlinks=False)

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self.at(path))

    def link(self, path: bytes, path2: bytes) -> None:
        os.link(self.at(path), self.at(path2), follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self.at(path))

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        os.mknod(self.at(path), mode, rdev)

    def rename(self, path: bytes, path2: bytes, flags: int) -> None:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            renameat2(fd, path, fd, path2, flags)
        finally:
            os.close(fd)

    def open(self, slot: int, path: bytes, flags: int) -> None:
        fd = self._fd(path, flags)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise _error(errno.EISDIR, path)
        self.close(slot)
        self.files[slot] = fd

    def _slot(self, slot: int) -> int:
        fd = self.files.get(slot)
        if fd is None:
            raise _error(errno.EBADF)
        return fd

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        return os.pread(self._slot(slot), size, offset)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self._slot(slot), data, offset)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._slot(slot), size)

    def punch(self, slot: int, offset: int, length: int) -> None:
        fallocate(self._slot(slot), 3, offset, length)

    def fstat(self, slot: int) -> os.stat_result:
        return os.fstat(self._slot(slot))

    def close(self, slot: int) -> None:
        fd = self.files.pop(slot, None)
        if fd is not None:
            os.close(fd)


class TreeSurface:
    """The core: paths walked by ``Tree.resolve``, then the operations on (directory, name)."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.files: dict[int, Handle] = {}

    def node(self, path: bytes, follow: bool = False) -> Node:
        """The node at ``path``."""
        return self.tree.resolve(b"/" + path, follow)

    def place(self, path: bytes) -> tuple[DirNode, bytes]:
        """The directory and the name."""
        return self.tree.resolve_parent(b"/" + path)

    def _opened(self, path: bytes, flags: int) -> Handle:
        return self.tree.open(self.node(path, True), flags)

    def create(self, path: bytes, mode: int, data: bytes) -> None:
        _, handle = self.tree.create(*self.place(path), mode, os.O_WRONLY)
        handle.pwrite(data, 0)
        handle.close()

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        handle = self._opened(path, os.O_RDWR)
        try:
            handle.pwrite(data, offset)
        finally:
            handle.close()

    def append(self, path: bytes, data: bytes) -> None:
        handle = self._opened(path, os.O_WRONLY | os.O_APPEND)
        try:
            handle.pwrite(data, 0)
        finally:
            handle.close()

    def overwrite(self, path: bytes, data: bytes) -> None:
        handle = self._opened(path, os.O_WRONLY | os.O_TRUNC)
        try:
            handle.pwrite(data, 0)
        finally:
            handle.close()

    def truncate(self, path: bytes, size: int) -> None:
        self.tree.setattr(self.node(path, True), size=size)

    def read(self, path: bytes) -> bytes:
        handle = self._opened(path, os.O_RDONLY)
        try:
            return handle.pread(1 << 24, 0)
        finally:
            handle.close()

    def readlink(self, path: bytes) -> bytes:
        return self.tree.readlink(self.node(path))

    def listdir(self, path: bytes) -> dict[bytes, int]:
        node = self.node(path, True)
        if not isinstance(node, DirNode):
            raise _error(errno.ENOTDIR, path)
        listed = {}
        for name, ino, kind in self.tree.listdir(node):
            found = self.tree.lookup(node, name)
            if ino not in (0, found.ino) or kind != found.kind:
                raise AssertionError(f"listdir says {ino}, {kind} of {name!r}, lookup {found.ino}, {found.kind}")
            listed[name] = kind
        return listed

    def lstat(self, path: bytes) -> os.stat_result:
        return self.tree.stat(self.node(path))

    def chmod(self, path: bytes, mode: int) -> None:
        self.tree.setattr(self.node(path, True), mode=mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self.tree.setattr(self.node(path), uid=None if uid < 0 else uid, gid=None if gid < 0 else gid)

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self.tree.setattr(self.node(path), atime_ns=atime_ns, mtime_ns=mtime_ns)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        node = self.node(path)
        return {key: self.tree.getxattr(node, key) for key in self.tree.listxattr(node)}

    def setxattr(self, path: bytes, key: bytes, value: bytes, flags: int) -> None:
        self.tree.setxattr(self.node(path), key, value, flags)

    def removexattr(self, path: bytes, key: bytes) -> None:
        self.tree.removexattr(self.node(path), key)

    def mkdir(self, path: bytes, mode: int) -> None:
        self.tree.mkdir(*self.place(path), mode)

    def rmdir(self, path: bytes) -> None:
        self.tree.rmdir(*self.place(path))

    def unlink(self, path: bytes) -> None:
        self.tree.unlink(*self.place(path))

    def link(self, path: bytes, path2: bytes) -> None:
        self.tree.link(self.node(path), *self.place(path2))

    def symlink(self, target: bytes, path: bytes) -> None:
        self.tree.symlink(*self.place(path), target)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        self.tree.mknod(*self.place(path), mode, rdev)

    def rename(self, path: bytes, path2: bytes, flags: int) -> None:
        self.tree.rename(*self.place(path), *self.place(path2), flags)

    def open(self, slot: int, path: bytes, flags: int) -> None:
        handle = self._opened(path, flags)
        self.close(slot)
        self.files[slot] = handle

    def _slot(self, slot: int) -> Handle:
        handle = self.files.get(slot)
        if handle is None:
            raise _error(errno.EBADF)
        return handle

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        return self._slot(slot).pread(size, offset)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return self._slot(slot).pwrite(data, offset)

    def ftruncate(self, slot: int, size: int) -> None:
        self._slot(slot).truncate(size)

    def punch(self, slot: int, offset: int, length: int) -> None:
        self._slot(slot).fallocate(3, offset, length)

    def fstat(self, slot: int) -> os.stat_result:
        return self._slot(slot).stat()

    def close(self, slot: int) -> None:
        handle = self.files.pop(slot, None)
        if handle is not None:
            handle.close()


class PathSurface(TreeSurface):
    """The path API. Files that stay open are the core's."""

    def __init__(self, fs: UnionFS) -> None:
        super().__init__(fs.tree)
        self.fs = fs

    @staticmethod
    def _at(path: bytes) -> bytes:
        return b"/" + path

    def _whole(self, path: bytes, mode: str) -> IO[bytes]:
        kind = stat.S_IFMT(self.fs.stat(self._at(path)).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise _error(errno.ENXIO, path)
        return self.fs.open(self._at(path), mode, buffering=0)

    def create(self, path: bytes, mode: int, data: bytes) -> None:
        with self.fs.open(self._at(path), "xb", permissions=mode) as file:
            file.write(data)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        with self._whole(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def append(self, path: bytes, data: bytes) -> None:
        with self._whole(path, "ab") as file:
            file.write(data)

    def overwrite(self, path: bytes, data: bytes) -> None:
        with self._whole(path, "wb") as file:
            file.write(data)

    def truncate(self, path: bytes, size: int) -> None:
        self.fs.truncate(self._at(path), size)

    def read(self, path: bytes) -> bytes:
        with self._whole(path, "rb") as file:
            return file.read()

    def readlink(self, path: bytes) -> bytes:
        return self.fs.readlink(self._at(path))

    def listdir(self, path: bytes) -> dict[bytes, int]:
        names = self.fs.listdir(self._at(path))
        with self.fs.scandir(self._at(path)) as found:
            listed = {entry.name: entry.stat(follow_symlinks=False).st_mode >> 12 for entry in found}
        if sorted(listed) != sorted(map(os.fsencode, names)):
            raise AssertionError(f"listdir says {names}, scandir {sorted(listed)}")
        return listed

    def lstat(self, path: bytes) -> os.stat_result:
        return self.fs.lstat(self._at(path))

    def chmod(self, path: bytes, mode: int) -> None:
        self.fs.chmod(self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self.fs.lchown(self._at(path), uid, gid)

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self.fs.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        where = self._at(path)
        keys = self.fs.listxattr(where, follow_symlinks=False)
        return {os.fsencode(key): self.fs.getxattr(where, key, follow_symlinks=False) for key in keys}

    def setxattr(self, path: bytes, key: bytes, value: bytes, flags: int) -> None:
        self.fs.setxattr(self._at(path), key, value, flags, follow_symlinks=False)

    def removexattr(self, path: bytes, key: bytes) -> None:
        self.fs.removexattr(self._at(path), key, follow_symlinks=False)

    def mkdir(self, path: bytes, mode: int) -> None:
        self.fs.mkdir(self._at(path), mode)

    def rmdir(self, path: bytes) -> None:
        self.fs.rmdir(self._at(path))

    def unlink(self, path: bytes) -> None:
        self.fs.unlink(self._at(path))

    def link(self, path: bytes, path2: bytes) -> None:
        self.fs.link(self._at(path), self._at(path2), follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        self.fs.symlink(target, self._at(path))

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        self.fs.mknod(self._at(path), mode, rdev)

    def rename(self, path: bytes, path2: bytes, flags: int) -> None:
        if flags == RENAME_EXCHANGE:
            self.fs.exchange(self._at(path), self._at(path2))
        else:
            self.fs.rename(self._at(path), self._at(path2), noreplace=flags == RENAME_NOREPLACE)

"""A layer in memory: an ephemeral upper, or a lower made from a dictionary.

It behaves as a file system of Linux does (tmpfs is the model): errnos, link counts, times (``relatime``), set-group-id
directories, the process's umask. It checks no permissions: who holds the layer may do all. Memory is proportional to
the data; holes cost nothing.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import time
from typing import Self

from unionfs._sys.rename import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from unionfs.errors import LayerError
from unionfs.layer.objects import (
    NAME_MAX,
    PAGE,
    DirObject,
    FileObject,
    Object,
    SymlinkObject,
    check_key,
    check_replaceable,
    inherit,
    kind_of,
    remove_xattr,
    set_attributes,
    set_xattr,
)
from unionfs.layer.pages import error
from unionfs.layer.protocol import LayerDir, Marks, WritableLayer
from unionfs.layer.staging import StagedByName
from unionfs.layer.trees import Tree, populate

_SELF = (b".", b"..")
_DAY = 86_400_000_000_000
_SPECIAL = frozenset({stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK})

# Device numbers of layers: the kernel counts its own, for file systems without a block device, from 0:1 up.
_devices = itertools.count(1 << 19)


class MemoryFile:
    """An open file of a memory layer (``LayerFile``)."""

    __slots__ = ("_flags", "_layer", "_node", "staged")

    def __init__(self, layer: MemoryLayer, node: FileObject, flags: int) -> None:
        self._layer = layer
        self._node: FileObject | None = node
        self._flags = flags
        self.staged: bytes | None = None

    def _held(self, access: int | None = None, refusal: int = errno.EBADF) -> FileObject:
        node = self._node
        if node is None:
            raise error(errno.EBADF)
        if access is not None:
            if self._flags & os.O_ACCMODE not in (access, os.O_RDWR):
                raise error(refusal)
            if access == os.O_WRONLY:
                self._check_changeable(node)
        return node

    def _check_changeable(self, node: FileObject) -> None:
        """``EROFS`` for a file of a frozen layer; one that a commit has moved to the fresh upper goes on."""
        self._layer.check_changeable(0 if node.moved else node.nlink)

    def fileno(self) -> int | None:
        return None

    def reopen(self, flags: int) -> MemoryFile:
        file = MemoryFile(self._layer, self._held(), flags)
        if flags & os.O_TRUNC:
            file.truncate(0)
        return file

    def close(self) -> None:
        self._node = None

    def stat(self) -> os.stat_result:
        with self._layer.lock:
            return self._held().stat(self._layer.device)

    def pread(self, size: int, offset: int) -> bytes:
        with self._layer.lock:
            node = self._held(os.O_RDONLY)
            if size < 0 or offset < 0:
                raise error(errno.EINVAL)
            if not self._flags & os.O_NOATIME:
                self._layer.accessed(node)
            return node.pages.read(size, offset)

    def readinto(self, buffer: memoryview, offset: int, wait: bool = True) -> int:  # noqa: ARG002
        data = self.pread(len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int) -> int:
        with self._layer.lock:
            return self._held().pages.seek(offset, whence)

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        view = memoryview(data).cast("B")
        with self._layer.lock:
            node = self._held(os.O_WRONLY)
            if offset < 0:
                raise error(errno.EINVAL)
            if not view:
                return 0
            node.pages.write(view, node.size if self._flags & os.O_APPEND else offset)
            node.drop_privileges(by_write=True)
            node.changed(data=True)
            return len(view)

    def truncate(self, size: int) -> None:
        with self._layer.lock:
            node = self._held(os.O_WRONLY, errno.EINVAL)
            node.pages.truncate(size)
            node.drop_privileges(by_write=True)
            node.changed(data=True)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        with self._layer.lock:
            node = self._held(os.O_WRONLY)
            node.pages.allocate(mode, offset, length)
            node.drop_privileges(by_write=True)
            node.changed(data=True)

    def fsync(self, datasync: bool = False) -> None:  # noqa: ARG002
        self._held()

    def setattr(
        self,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        times: tuple[int, int] | None = None,
    ) -> None:
        with self._layer.lock:
            node = self._held()
            self._check_changeable(node)
            set_attributes(node, mode, uid, gid, times)

    def listxattr(self) -> list[bytes]:
        return list(self._held().xattrs)

    def getxattr(self, key: bytes) -> bytes:
        try:
            return self._held().xattrs[key]
        except KeyError:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None

    def setxattr(self, key: bytes, value: bytes, flags: int = 0) -> None:
        with self._layer.lock:
            node = self._held()
            self._check_changeable(node)
            set_xattr(node, key, value, flags)

    def removexattr(self, key: bytes) -> None:
        with self._layer.lock:
            node = self._held()
            self._check_changeable(node)
            remove_xattr(node, key)


class MemoryLayer(StagedByName):
    """A layer in memory (``WritableLayer``). Threads may share it.

    ::

        lower = MemoryLayer.from_dict({"etc": {"hosts": "127.0.0.1 localhost\\n"}, "bin/sh": trees.symlink("dash")})

    ``label`` is what messages call it.
    """

    def __init__(self, label: str = "memory") -> None:
        self.label = label
        self.lock = threading.RLock()
        self.device = os.makedev(0, next(_devices))
        self.has_inos = True
        self.volatile = True
        self._frozen = False
        self._record: bytes | None = None
        self._counter = itertools.count()
        self.root = LayerDir(self, None, b"")
        self.root.ref = DirObject(0o755, None)
        self.staging = LayerDir(self, None, b"work")
        self.staging.ref = DirObject(0o700, None)
        self.index: LayerDir | None = LayerDir(self, None, b"index")
        self.index.ref = DirObject(0o700, None)

    @classmethod
    def from_dict(cls, tree: Tree, *, label: str = "memory", read_only: bool = False) -> Self:
        """A layer that holds ``tree`` (see ``populate``). ``read_only``: every change is refused with ``EROFS``."""
        layer = cls(label)
        populate(layer, tree)
        layer._frozen = read_only
        return layer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label!r})"

    @property
    def moving(self) -> threading.RLock:
        return self.lock

    # What files of this layer ask it

    def check_changeable(self, nlink: int = 1) -> None:
        """``EROFS`` in a frozen layer, but for a file that has no name there any more."""
        if self._frozen and nlink:
            raise error(errno.EROFS)

    def accessed(self, node: Object) -> None:
        """Set the access time as the mount option ``relatime`` does (mount(8))."""
        if not self._frozen:
            now = time.time_ns()
            if node.atime <= node.mtime or node.atime <= node.ctime or now - node.atime >= _DAY:
                node.atime = now

    # From names to objects. The caller holds the lock.

    def _dir(self, d: LayerDir) -> DirObject:
        below: list[LayerDir] = []
        while d.ref is None:
            if d.parent is None:
                raise error(errno.ENOENT, d.name)
            below.append(d)
            d = d.parent
        node: DirObject = d.ref
        for d in reversed(below):
            found = self._entry(node, d.name)
            if not isinstance(found, DirObject):
                raise error(errno.ENOTDIR, d.name)
            node = d.ref = found
        return node

    @staticmethod
    def _entry(node: DirObject, name: bytes) -> Object:
        found = node.entries.get(name)
        if found is None:
            if name == b".":
                return node
            raise error(errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.ENOENT, name)
        return found

    def _find(self, d: LayerDir, name: bytes) -> Object:
        return self._entry(self._dir(d), name)

    def _find_to_change(self, d: LayerDir, name: bytes) -> Object:
        node = self._find(d, name)
        self.check_changeable()
        return node

    def _place(self, d: LayerDir, name: bytes) -> DirObject:
        """The directory in which ``name`` can be made."""
        node = self._dir(d)
        if len(name) > NAME_MAX:
            raise error(errno.ENAMETOOLONG, name)
        if name in node.entries or name in _SELF:
            raise error(errno.EEXIST, name)
        if not name or not node.nlink:
            raise error(errno.ENOENT, name)
        self.check_changeable()
        return node

    @staticmethod
    def _put(into: DirObject, name: bytes, node: Object) -> None:
        into.entries[name] = node
        if isinstance(node, DirObject):
            node.parent = into
            into.nlink += 1
        into.changed(data=True)

    @staticmethod
    def _take(out_of: DirObject, name: bytes) -> Object:
        node = out_of.entries.pop(name)
        if isinstance(node, DirObject):
            out_of.nlink -= 1
        out_of.changed(data=True)
        return node

    @staticmethod
    def _lost(node: Object) -> None:
        """``node`` has one name less."""
        if isinstance(node, DirObject):
            node.nlink = 0
            node.parent = None
        else:
            node.nlink -= 1
        node.changed()

    def _add(self, d: LayerDir, name: bytes, node: Object) -> None:
        """Give a new object its first name."""
        self._put_new(self._place(d, name), name, node)

    def _put_new(self, into: DirObject, name: bytes, node: Object) -> None:
        inherit(node, into)
        self._put(into, name, node)

    # Reading

    def scan(self, d: LayerDir) -> dict[bytes, int]:
        with self.lock:
            node = self._dir(d)
            self.accessed(node)
            return {name: kind_of(found) for name, found in node.entries.items()}

    def kind(self, d: LayerDir, name: bytes) -> int | None:
        with self.lock:
            try:
                return kind_of(self._find(d, name))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def stat(self, d: LayerDir, name: bytes) -> os.stat_result:
        with self.lock:
            return self._find(d, name).stat(self.device)

    def birth_ns(self, d: LayerDir, name: bytes) -> int | None:  # noqa: ARG002
        return None

    def marks(self, d: LayerDir, name: bytes) -> Marks:
        with self.lock:
            return self._find(d, name).marks

    def readlink(self, d: LayerDir, name: bytes) -> bytes:
        with self.lock:
            node = self._find(d, name)
            if not isinstance(node, SymlinkObject):
                raise error(errno.EINVAL, name)
            self.accessed(node)
            return node.target

    def open(self, d: LayerDir, name: bytes, flags: int) -> MemoryFile:
        with self.lock:
            node = self._find(d, name)
            if isinstance(node, DirObject):
                raise error(errno.EISDIR, name)
            if isinstance(node, SymlinkObject):
                raise error(errno.ELOOP, name)
            if not isinstance(node, FileObject):
                raise error(errno.ENXIO, name)
            if flags & (os.O_ACCMODE | os.O_TRUNC):
                self.check_changeable()
            if flags & os.O_TRUNC:
                node.pages.truncate(0)
                node.changed(data=True)
            return MemoryFile(self, node, flags)

    def listxattr(self, d: LayerDir, name: bytes) -> list[bytes]:
        with self.lock:
            return list(self._find(d, name).xattrs)

    def getxattr(self, d: LayerDir, name: bytes, key: bytes) -> bytes:
        with self.lock:
            node = self._find(d, name)
            check_key(node, key, changing=False)
            value = node.xattrs.get(key)
            if value is None:
                raise error(errno.ENODATA, name)
            return value

    def handle(self, d: LayerDir, name: bytes) -> bytes | None:  # noqa: ARG002
        return None

    def by_handle(self, handle: bytes) -> os.stat_result | None:  # noqa: ARG002
        return None

    @property
    def record(self) -> bytes | None:
        return self._record

    def statvfs(self) -> os.statvfs_result:
        total, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
        page = os.sysconf("SC_PAGE_SIZE")
        flags = os.ST_RDONLY if self._frozen else 0
        return os.statvfs_result((page, page, total, free, free, 0, 0, 0, flags, NAME_MAX))

    def close(self) -> None:
        """Nothing: the content lives as long as the layer does."""

    # New names

    def temp_name(self) -> bytes:
        return b"#%x" % next(self._counter)

    def mkdir(self, d: LayerDir, name: bytes, mode: int) -> LayerDir:
        node = DirObject(mode & 0o1777, None)
        with self.lock:
            self._add(d, name, node)
            child = d.child(name)
            child.ref = node
            return child

    def create(self, d: LayerDir, name: bytes, mode: int) -> MemoryFile:
        node = FileObject(stat.S_IFREG | stat.S_IMODE(mode))
        with self.lock:
            self._add(d, name, node)
            return MemoryFile(self, node, os.O_RDWR)

    def mknod(self, d: LayerDir, name: bytes, mode: int, rdev: int) -> None:
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        mode = kind | stat.S_IMODE(mode)
        device = kind in (stat.S_IFCHR, stat.S_IFBLK)
        node = FileObject(mode) if kind == stat.S_IFREG else Object(mode, rdev if device else 0)
        with self.lock:
            self._dir(d)
            if kind not in _SPECIAL:
                raise error(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL, name)
            self._add(d, name, node)

    def symlink(self, d: LayerDir, name: bytes, target: bytes) -> None:
        with self.lock:
            self._dir(d)
            if not target or len(target) >= PAGE:
                raise error(errno.ENAMETOOLONG if target else errno.ENOENT, name)
            self._add(d, name, SymlinkObject(target))

    def link(self, d: LayerDir, name: bytes, d2: LayerDir, name2: bytes) -> None:
        with self.lock:
            source, _ = self._dir(d), self._dir(d2)
            node = self._entry(source, name)
            into = self._place(d2, name2)
            if isinstance(node, DirObject):
                raise error(errno.EPERM, name)
            if isinstance(node, FileObject) and d.layer is not d2.layer:
                node.moved = True
            node.nlink += 1
            node.changed()
            self._put(into, name2, node)

    def whiteout(self, d: LayerDir, name: bytes) -> None:
        with self.lock:
            self._add(d, name, Object(stat.S_IFCHR))

    # Names that go and move

    def unlink(self, d: LayerDir, name: bytes) -> None:
        with self.lock:
            node = self._find_to_change(d, name)
            if isinstance(node, DirObject):
                raise error(errno.EISDIR, name)
            self._lost(self._take(self._dir(d), name))

    def rmdir(self, d: LayerDir, name: bytes) -> None:
        with self.lock:
            node = self._find_to_change(d, name)
            if name == b".":
                raise error(errno.EINVAL, name)
            if not isinstance(node, DirObject):
                raise error(errno.ENOTDIR, name)
            if node.entries:
                raise error(errno.ENOTEMPTY, name)
            self._lost(self._take(self._dir(d), name))

    def rename(self, d: LayerDir, name: bytes, d2: LayerDir, name2: bytes, flags: int = 0) -> None:
        with self.lock:
            src, dst = self._dir(d), self._dir(d2)
            if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT) or (
                flags & RENAME_EXCHANGE and flags != RENAME_EXCHANGE
            ):
                raise error(errno.EINVAL, name)
            if name in _SELF or name2 in _SELF:
                taken = name not in _SELF and flags & RENAME_NOREPLACE
                raise error(errno.EEXIST if taken else errno.EBUSY, name)
            node = self._find_to_change(d, name)
            if len(name2) > NAME_MAX:
                raise error(errno.ENAMETOOLONG, name2)
            other = dst.entries.get(name2)
            if not name2 or not dst.nlink or (other is None and flags & RENAME_EXCHANGE):
                raise error(errno.ENOENT, name2)
            if other is not None and flags & RENAME_NOREPLACE:
                raise error(errno.EEXIST, name2)
            if dst.within(node):
                raise error(errno.EINVAL, name)
            if other is not None and src.within(other):
                raise error(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY, name2)
            if other is node:
                return
            if flags & RENAME_EXCHANGE:
                self._exchange(src, name, dst, name2)
                return
            if other is not None:
                check_replaceable(node, other, name2)
                self._lost(self._take(dst, name2))
            self._put(dst, name2, self._take(src, name))
            node.changed()
            if flags & RENAME_WHITEOUT:
                self._put_new(src, name, Object(stat.S_IFCHR))

    def _exchange(self, src: DirObject, name: bytes, dst: DirObject, name2: bytes) -> None:
        node, other = self._take(src, name), self._take(dst, name2)
        self._put(dst, name2, node)
        self._put(src, name, other)
        node.changed()
        other.changed()

    def clear(self, d: LayerDir, name: bytes) -> None:
        with self.lock:
            self._find_to_change(d, name)
            top = self._take(self._dir(d), name)
            nodes = [top]
            while nodes:
                node = nodes.pop()
                if isinstance(node, DirObject):
                    nodes.extend(node.entries.values())
                    node.entries.clear()
                self._lost(node)

    # Metadata

    def setattr(
        self,
        d: LayerDir,
        name: bytes,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        times: tuple[int, int] | None = None,
    ) -> None:
        with self.lock:
            set_attributes(self._find_to_change(d, name), mode, uid, gid, times)

    def setxattr(self, d: LayerDir, name: bytes, key: bytes, value: bytes, flags: int = 0) -> None:
        with self.lock:
            set_xattr(self._find_to_change(d, name), key, value, flags)

    def removexattr(self, d: LayerDir, name: bytes, key: bytes) -> None:
        with self.lock:
            remove_xattr(self._find_to_change(d, name), key)

    def set_marks(self, d: LayerDir, name: bytes, marks: Marks) -> None:
        with self.lock:
            self._find_to_change(d, name).marks = marks

    def sync(self) -> None:
        """Nothing: memory has no disk."""

    # Commit

    def begin_freeze(self, destination: str | None) -> WritableLayer:
        """See ``WritableLayer``. ``destination`` must be ``None``. Raises ``LayerError``."""
        if destination is not None:
            raise LayerError(errno.EINVAL, "a layer in memory can't be frozen into a directory", destination)
        with self.lock:
            self.check_changeable()
            fresh = type(self)(self.label)
            here: DirObject = self.root.ref
            root: DirObject = fresh.root.ref
            for field in ("mode", "uid", "gid", "atime", "mtime", "ctime"):
                setattr(root, field, getattr(here, field))
            root.xattrs = dict(here.xattrs)
            return fresh

    def drop_freeze(self, fresh: WritableLayer) -> None:
        """Nothing: the fresh layer goes with its last user."""

    def finish_freeze(self, fresh: WritableLayer, record: bytes) -> None:
        assert isinstance(fresh, MemoryLayer)
        with self.lock:
            self.check_changeable()
            self._record = record
            self._frozen = True

"""The objects of a layer in memory, with what POSIX asks of each: times, link counts, attributes."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time

from unionfs._sys.umask import umask
from unionfs.layer import acl
from unionfs.layer.pages import Pages, error
from unionfs.layer.protocol import DT_CHR, DT_WHT, NO_MARKS

NAME_MAX = 255
PAGE = Pages.SIZE

_SPACES = (b"user.", b"trusted.", b"security.")
_ACLS = frozenset({acl.ACCESS, acl.DEFAULT})
_XATTR_SIZE_MAX = 65536
_CAPABILITY = b"security.capability"

# Over all layers of the process, so that an inode number tells one object from every other.
_inos = itertools.count(2)


class Object:
    """An object that is not a directory, a regular file or a symbolic link; and what those have in common."""

    __slots__ = ("atime", "ctime", "gid", "ino", "marks", "mode", "mtime", "nlink", "rdev", "uid", "xattrs")

    def __init__(self, mode: int, rdev: int = 0) -> None:
        self.ino = next(_inos)
        self.mode = mode
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.nlink = 1
        self.rdev = rdev
        self.atime = self.mtime = self.ctime = time.time_ns()
        self.xattrs: dict[bytes, bytes] = {}
        self.marks = NO_MARKS

    @property
    def size(self) -> int:
        return 0

    @property
    def blocks(self) -> int:
        return 0

    def changed(self, data: bool = False) -> None:
        self.ctime = time.time_ns()
        if data:
            self.mtime = self.ctime

    def drop_privileges(self, by_write: bool) -> None:
        """Who writes a file, or gives it away, takes its power from it (chown(2), capabilities(7))."""
        self.xattrs.pop(_CAPABILITY, None)
        if by_write and os.geteuid() == 0:
            return
        self.mode &= ~stat.S_ISUID
        if self.mode & stat.S_IXGRP:
            self.mode &= ~stat.S_ISGID

    def stat(self, dev: int) -> os.stat_result:
        times = (self.atime, self.mtime, self.ctime)
        return os.stat_result(
            (
                self.mode,
                self.ino,
                dev,
                self.nlink,
                self.uid,
                self.gid,
                self.size,
                *[at // 1_000_000_000 for at in times],
                *[at // 1_000_000_000 + 1e-9 * (at % 1_000_000_000) for at in times],
                *times,
                PAGE,
                self.blocks,
                self.rdev,
            )
        )


class DirObject(Object):
    __slots__ = ("entries", "parent")

    def __init__(self, mode: int, parent: DirObject | None) -> None:
        super().__init__(stat.S_IFDIR | stat.S_IMODE(mode))
        self.nlink = 2
        self.entries: dict[bytes, Object] = {}
        self.parent = parent

    @property
    def size(self) -> int:
        return PAGE

    def within(self, other: Object) -> bool:
        """Whether this directory is ``other`` or stands below it."""
        at: DirObject | None = self
        while at is not None:
            if at is other:
                return True
            at = at.parent
        return False


class SymlinkObject(Object):
    __slots__ = ("target",)

    def __init__(self, target: bytes) -> None:
        super().__init__(stat.S_IFLNK | 0o777)
        self.target = target

    @property
    def size(self) -> int:
        return len(self.target)


class FileObject(Object):
    __slots__ = ("moved", "pages")

    def __init__(self, mode: int) -> None:
        super().__init__(mode)
        self.pages = Pages()
        self.moved = False  # into another layer than it was made in

    @property
    def size(self) -> int:
        return self.pages.length

    @property
    def blocks(self) -> int:
        return self.pages.count * (PAGE // 512)


def set_attributes(
    node: Object, mode: int | None, uid: int | None, gid: int | None, times: tuple[int, int] | None
) -> None:
    if mode is not None and isinstance(node, SymlinkObject):
        raise error(errno.EOPNOTSUPP)
    if uid is not None or gid is not None:
        node.uid = node.uid if uid is None else uid
        node.gid = node.gid if gid is None else gid
        if not isinstance(node, DirObject):
            node.drop_privileges(by_write=False)
    if mode is not None:
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        if acl.ACCESS in node.xattrs:
            node.xattrs[acl.ACCESS] = acl.encode(acl.with_mode(acl.decode(node.xattrs[acl.ACCESS]), mode))
    if times is not None:
        node.atime, node.mtime = times
    node.changed()


def kind_of(node: Object) -> int:
    dt = node.mode >> 12
    return DT_WHT if dt == DT_CHR and not node.rdev else dt


def check_key(node: Object, key: bytes, changing: bool) -> None:
    """The rules of xattr(7) for names, in the kernel's order."""
    if key.startswith(b"user.") and not isinstance(node, (DirObject, FileObject)):
        raise error(errno.EPERM if changing else errno.ENODATA, key)
    if key in _ACLS and not isinstance(node, SymlinkObject):
        return
    if not key.startswith(_SPACES):
        raise error(errno.EOPNOTSUPP, key)
    if key in _SPACES:
        raise error(errno.EINVAL, key)
    if len(key) > NAME_MAX:
        raise error(errno.ERANGE, key)


def check_replaceable(node: Object, other: Object, name: bytes) -> None:
    if isinstance(node, DirObject):
        if not isinstance(other, DirObject):
            raise error(errno.ENOTDIR, name)
        if other.entries:
            raise error(errno.ENOTEMPTY, name)
    elif isinstance(other, DirObject):
        raise error(errno.EISDIR, name)


def set_xattr(node: Object, key: bytes, value: bytes, flags: int = 0) -> None:
    """As ``setxattr(2)``."""
    if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
        raise error(errno.EINVAL, key)
    if len(value) > _XATTR_SIZE_MAX:
        raise error(errno.E2BIG, key)
    entries = acl.decode(value) if value and key in _ACLS else []
    check_key(node, key, changing=True)
    if key in _ACLS:
        _set_acl(node, key, entries)
        return
    if flags & os.XATTR_CREATE and key in node.xattrs:
        raise error(errno.EEXIST, key)
    if flags & os.XATTR_REPLACE and key not in node.xattrs:
        raise error(errno.ENODATA, key)
    node.xattrs[key] = bytes(value)
    node.changed()


def remove_xattr(node: Object, key: bytes) -> None:
    """As ``removexattr(2)``."""
    check_key(node, key, changing=True)
    if key in _ACLS:
        _set_acl(node, key, [])
        return
    if key not in node.xattrs:
        raise error(errno.ENODATA, key)
    del node.xattrs[key]
    node.changed()


def _set_acl(node: Object, key: bytes, entries: acl.Entries) -> None:
    if key == acl.DEFAULT and entries and not isinstance(node, DirObject):
        raise error(errno.EACCES, key)
    if entries:
        acl.check(entries)
    if key == acl.ACCESS and entries:
        node.mode = node.mode & ~0o777 | acl.mode_of(entries)
    if not entries or (key == acl.ACCESS and acl.is_mode(entries)):
        node.xattrs.pop(key, None)
    else:
        node.xattrs[key] = acl.encode(entries)
    node.changed()


def inherit(node: Object, parent: DirObject) -> None:
    """What a new object has from its directory: a group, and the permissions that a default ACL or the umask leaves."""
    if parent.mode & stat.S_ISGID:
        node.gid = parent.gid
        if isinstance(node, DirObject):
            node.mode |= stat.S_ISGID
    if isinstance(node, SymlinkObject):
        return
    default = parent.xattrs.get(acl.DEFAULT)
    if default is None:
        node.mode &= ~umask()
        return
    _set_acl(node, acl.ACCESS, acl.inherited(acl.decode(default), node.mode))
    if isinstance(node, DirObject):
        node.xattrs[acl.DEFAULT] = default

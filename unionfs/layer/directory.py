"""A layer that is a directory of the host, in overlayfs's own on-disk format."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
import threading
from collections.abc import Iterable

from unionfs._sys.data import fallocate
from unionfs._sys.filehandle import filesystem_uuid, overlay_handle, stat_by_handle
from unionfs._sys.statx import birth_ns
from unionfs.errors import LayerError
from unionfs.layer import owners, whiteout
from unionfs.layer.descriptors import KEPT, Fd
from unionfs.layer.protocol import DT_CHR, DT_DIR, DT_LNK, DT_REG, DT_WHT, NO_MARKS, LayerDir, Marks

log = logging.getLogger(__name__)

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENCODING = sys.getfilesystemencoding()
_ERRORS = sys.getfilesystemencodeerrors()
# Attributes: none is set, or the file system has none at all.
_NO_XATTRS = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


class FdFile:
    """An open file of a directory layer. The descriptor is a ``Fd``: it stays open as long as somebody reads."""

    __slots__ = ("_fd", "_layer", "n", "staged")

    def __init__(self, layer: DirectoryLayer, fd: int) -> None:
        self.n = fd
        self.staged: bytes | None = None
        """The name in staging of a file that has no other yet."""
        self._fd: Fd | None = Fd(fd)
        self._layer = layer

    def _hold(self) -> Fd:
        fd = self._fd
        if fd is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return fd

    def fileno(self) -> int | None:
        return self._hold().n

    def reopen(self, flags: int) -> FdFile:
        fd = self._hold()
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self._layer.check_writable(fd.n)
        return FdFile(self._layer, os.open(f"/proc/self/fd/{fd.n}", flags | os.O_CLOEXEC))

    def close(self) -> None:
        self._fd = None

    def pread(self, size: int, offset: int) -> bytes:
        fd = self._hold()
        return os.pread(fd.n, size, offset)

    def readinto(self, buffer: memoryview, offset: int, wait: bool = True) -> int:
        fd = self._hold()
        flags = 0 if wait or not self._layer.has_nowait else os.RWF_NOWAIT
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(fd.n, [buffer[done:]], offset + done, flags)
            except OSError as error:
                if not flags or error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                self._layer.has_nowait = False  # A file system without, or Linux before 4.14.
                flags = 0
                continue
            if not count:
                break
            done += count
        return done

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        fd = self._hold()
        return os.pwrite(fd.n, data, offset)

    def truncate(self, size: int) -> None:
        fd = self._hold()
        os.ftruncate(fd.n, size)

    def fsync(self, datasync: bool = False) -> None:
        fd = self._hold()
        if datasync:
            os.fdatasync(fd.n)
        else:
            os.fsync(fd.n)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        fd = self._hold()
        fallocate(fd.n, mode, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        fd = self._hold()
        return os.lseek(fd.n, offset, whence)

    def stat(self) -> os.stat_result:
        fd = self._hold()
        return self._layer.owned(fd.n, os.fstat(fd.n))

    def setattr(
        self,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        times: tuple[int, int] | None = None,
    ) -> None:
        fd = self._hold()
        self._layer.set_attributes(fd.n, mode, uid, gid)
        if times is not None:
            os.utime(fd.n, ns=times)

    def listxattr(self) -> list[bytes]:
        fd = self._hold()
        return self._layer.shown(fd.n)

    def getxattr(self, key: bytes) -> bytes:
        fd = self._hold()
        if key == owners.OVERRIDE.encode():
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return os.getxattr(fd.n, whiteout.escape(key))

    def setxattr(self, key: bytes, value: bytes, flags: int = 0) -> None:
        fd = self._hold()
        if key == owners.OVERRIDE.encode():
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        os.setxattr(fd.n, whiteout.escape(key), value, flags)

    def removexattr(self, key: bytes) -> None:
        fd = self._hold()
        os.removexattr(fd.n, whiteout.escape(key))


class DirectoryLayer:
    """A directory of the host, read as a layer.

    Every directory is opened from its parent, one name at a time, and never through a symbolic link; so nothing in the
    layer can lead out of it. Other file systems mounted below the directory are part of it.

    ``exclude``: paths inside the layer (``"/a/b"``) that are not shown. ``unmapped_as_root``: ids that this
    user namespace does not map show as 0. Raises ``LayerError`` when the directory is missing or can't be read.
    """

    immutable = True
    has_nowait = True

    def __init__(
        self, path: str | os.PathLike[str], *, exclude: Iterable[str] = (), unmapped_as_root: bool = False
    ) -> None:
        self.begin(os.path.realpath(path), exclude, unmapped_as_root)
        self.examine(os.fspath(path))

    def begin(self, path: str, exclude: Iterable[str] = (), unmapped_as_root: bool = False) -> None:
        """What there is to a layer before its directory was looked at."""
        self.path = path
        self.root = LayerDir(self, None, b"")
        self._hidden: dict[bytes, set[bytes]] = {}
        for hidden in exclude:
            parent, name = os.path.split(os.path.normpath(os.fsencode(hidden)))
            self._hidden.setdefault(b"" if parent == b"/" else parent, set()).add(name)
        self._lost_uids = owners.overflow_ids("/proc/self/uid_map") if unmapped_as_root else frozenset[int]()
        self._lost_gids = owners.overflow_ids("/proc/self/gid_map") if unmapped_as_root else frozenset[int]()
        self._listing = threading.Lock()
        self.moving = threading.RLock()
        self._loses_ids = bool(self._lost_uids or self._lost_gids)
        self._uuid: bytes | None = None
        self._uuid_known = False
        self._held: Fd | None = None
        # Without CAP_FOWNER, O_NOATIME is for one's own files only (open(2)), as those of an upper are.
        self._quiet = os.geteuid() == 0 or not self.immutable

    def examine(self, called: str | None = None) -> None:
        """Look at the directory: whose marks and owners count in it. Raises ``LayerError``, with the path as it was
        ``called``."""
        try:
            root = Fd(os.open(self.path, _OPEN_DIR))  # Held: another thread that looks too puts its own in its place.
        except OSError as error:
            raise LayerError(error.errno, f"layer is not usable: {error.strerror}", called or self.path) from error
        KEPT.keep(self.root, root)
        keys = self._list(root.n)
        rooted = os.fstat(root.n).st_uid == 0
        # Who is root for others makes no owners, set-user-ID programs and devices of what a stranger wrote.
        self.overrides = owners.OVERRIDE in keys and (rooted or os.geteuid() != 0)
        names = whiteout.mark_names(keys)
        self.has_inos = whiteout.FORMAT in names
        ours = rooted and names.get(whiteout.FORMAT) == os.fsdecode(whiteout.USER + whiteout.FORMAT)
        self._guarded = os.geteuid() == 0 and not ours

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    @property
    def label(self) -> str:
        return self.path

    def fd(self, d: LayerDir) -> Fd:
        """The open directory. Hold the answer for as long as its number is in use."""
        found: Fd | None = d.ref
        if found is not None:
            return found
        if d.layer is not self:
            # A hard link between an upper and the one that takes its place.
            assert isinstance(d.layer, DirectoryLayer)
            return d.layer.fd(d)
        # What does not change has no chain of names that could move meanwhile.
        with contextlib.nullcontext() if self.immutable else self.moving:
            below = [d]
            while d.parent is not None:
                d = d.parent
                found = d.ref
                if found is not None:
                    break
                below.append(d)
            for d in reversed(below):
                found = self._open_dir(d, found)
                KEPT.keep(d, found)
        assert found is not None
        return found

    @property
    def identity(self) -> tuple[int, int]:
        """``st_dev`` and ``st_ino`` of its root: two layers that have the same are of one directory."""
        st = os.fstat(self.fd(self.root).n)
        return st.st_dev, st.st_ino

    def shows_as(self, other: DirectoryLayer) -> bool:
        """Whether ``other``, of the same directory, hides the same and tells the same owners."""
        return (self._hidden, self._lost_uids, self._lost_gids) == (other._hidden, other._lost_uids, other._lost_gids)

    def hold(self) -> None:
        """Keep the root open for good: its path is about to lead elsewhere, for something is mounted there."""
        self._held = self.fd(self.root)

    def _open_dir(self, d: LayerDir, parent: Fd | None) -> Fd:
        if parent is None:
            if self._held is not None:
                return self._held
            try:
                return Fd(os.open(self.path, _OPEN_DIR))
            except OSError as error:
                raise LayerError(error.errno, f"layer has vanished: {error.strerror}", self.path) from error
        try:
            return Fd(self._open(parent, d.name, _OPEN_DIR))
        except PermissionError:
            # Search permission only: enough for all but listing.
            return Fd(os.open(d.name, (_OPEN_DIR & ~os.O_RDONLY) | os.O_PATH, dir_fd=parent.n))

    # Entries

    def scan(self, d: LayerDir) -> dict[bytes, int]:
        fd = self.fd(d)
        entries: dict[bytes, int] = {}
        odd = False
        try:
            # Threads that list one directory at once would share its position (fdopendir(3)).
            with self._listing, os.scandir(fd.n) as found:
                for entry in found:
                    name = entry.name.encode(_ENCODING, _ERRORS)
                    if entry.is_file(follow_symlinks=False):
                        entries[name] = DT_REG
                    elif entry.is_dir(follow_symlinks=False):
                        entries[name] = DT_DIR
                    elif entry.is_symlink():
                        entries[name] = DT_LNK
                    else:
                        entries[name] = 0
                        odd = True
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # Opened with O_PATH: it may be searched but not read.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error
        if odd:
            for name in [name for name, dt in entries.items() if not dt]:
                kind = self.kind(d, name)
                if kind is None:
                    del entries[name]
                else:
                    entries[name] = kind
        if self._hidden:
            for name in self._hidden.get(d.path, ()):
                entries.pop(name, None)
        self._decode_files(d, fd, entries)
        return entries

    def _decode_files(self, d: LayerDir, fd: Fd, entries: dict[bytes, int]) -> None:
        """Regular files that stand for something else: whiteouts by attribute, and devices of an unprivileged owner."""
        if not self.overrides and not self._has_xwhiteouts(fd):
            return
        for name, dt in entries.items():
            if dt == DT_REG:
                entries[name] = self.kind(d, name) or DT_REG

    def kind(self, d: LayerDir, name: bytes) -> int | None:
        if self._hidden and name in self._hidden.get(d.path, ()):
            return None
        try:
            st = self.stat(d, name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        dt = st.st_mode >> 12
        if dt == DT_CHR and st.st_rdev == 0:
            return DT_WHT
        if dt == DT_REG and st.st_size == 0 and self._is_xwhiteout(d, name):
            return DT_WHT
        return dt

    def _is_xwhiteout(self, d: LayerDir, name: bytes) -> bool:
        fd = self.fd(d)
        return self._has_xwhiteouts(fd) and whiteout.WHITEOUT in whiteout.mark_names(self._list(self.proc(fd, name)))

    def stat(self, d: LayerDir, name: bytes) -> os.stat_result:
        fd: Fd = d.ref or self.fd(d)
        st = os.stat(name, dir_fd=fd.n, follow_symlinks=False)
        if self.overrides or self._loses_ids:
            return self.owned(self.proc(fd, name), st)
        return st

    def owned(self, path: int | bytes, st: os.stat_result) -> os.stat_result:
        """``st``, of the object at ``path``, with the owner and the mode that this layer tells."""
        if self.overrides and stat.S_ISLNK(st.st_mode):
            return self._owned_as_root(st)
        if self.overrides:
            try:
                value = os.getxattr(path, owners.OVERRIDE, follow_symlinks=isinstance(path, int))
                return owners.apply(st, value)
            except OSError as error:
                if error.errno not in _NO_XATTRS:
                    raise
        uid = 0 if st.st_uid in self._lost_uids else None
        gid = 0 if st.st_gid in self._lost_gids else None
        return st if uid is None and gid is None else owners.replaced(st, uid=uid, gid=gid)

    def _owned_as_root(self, st: os.stat_result) -> os.stat_result:
        """A symbolic link has no room for a record. It has the root's owner, if it belongs to who has the root on disk:
        else an image that a user made would tell the user's own number.
        """
        root = self.fd(self.root)
        found = owners.decode(os.getxattr(root.n, owners.OVERRIDE))
        if found is None or st.st_uid != os.fstat(root.n).st_uid:
            return st
        return owners.replaced(st, uid=found[0], gid=found[1])

    def birth_ns(self, d: LayerDir, name: bytes) -> int | None:
        fd = self.fd(d)
        return birth_ns(fd.n, name)

    def readlink(self, d: LayerDir, name: bytes) -> bytes:
        fd = self.fd(d)
        return os.readlink(name, dir_fd=fd.n)

    def open(self, d: LayerDir, name: bytes, flags: int) -> FdFile:
        fd = self.fd(d)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self.check_writable()
        n = self._open(fd, name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, read=not self.immutable)
        file = FdFile(self, n)
        mode = os.fstat(n).st_mode
        if not stat.S_ISREG(mode):
            file.close()
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
            raise OSError(number, os.strerror(number), name)
        return file

    def _open(self, fd: Fd, name: bytes, flags: int, *, read: bool = False) -> int:
        """``read``: who reads from it leaves an access time, by the rules of the mount (mount(8), relatime)."""
        if self._quiet and not read:
            try:
                return os.open(name, flags | os.O_NOATIME, dir_fd=fd.n)
            except PermissionError:
                pass  # root of a user namespace and a file of somebody it does not map
        return os.open(name, flags, dir_fd=fd.n)

    def check_writable(self, fd: int | None = None) -> None:  # noqa: ARG002
        """Raise ``EROFS``, unless this is a writable layer, or the open file ``fd`` is no part of it any more."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def set_attributes(self, path: int | bytes, mode: int | None, uid: int | None, gid: int | None) -> None:  # noqa: ARG002
        """Change owner and permission bits of the object at ``path``, or of the open file; ``EROFS`` here."""
        self.check_writable()

    # Attributes

    @staticmethod
    def proc(fd: Fd, name: bytes) -> bytes:
        """A path for the calls that take no directory descriptor (proc(5), ``/proc/self/fd``)."""
        return b"/proc/self/fd/%d/%s" % (fd.n, name)

    @staticmethod
    def _list(path: int | bytes | str) -> list[str]:
        try:
            if isinstance(path, int):
                return os.listxattr(path)
            return os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_XATTRS or error.errno == errno.EBADF:  # EBADF: opened with O_PATH
                return []
            raise

    def _keys(self, fd: Fd) -> list[str]:
        """The names of all attributes of an open directory; of a layer that does not change, asked for once."""
        keys = fd.keys
        if keys is None:
            keys = self._list(fd.n)
            if self.immutable:
                fd.keys = keys
        return keys

    def _has_xwhiteouts(self, fd: Fd) -> bool:
        return bool(self._keys(fd)) and self._value(fd.n, whiteout.OPAQUE) == b"x"

    @staticmethod
    def _value(fd: int, mark: bytes) -> bytes | None:
        for key in DirectoryLayer._list(fd):
            if whiteout.mark_names([key]).keys() == {mark}:
                return os.getxattr(fd, key)
        return None

    def marks(self, d: LayerDir, name: bytes) -> Marks:
        fd = self.fd(d)
        path: int | bytes = fd.n if name == b"." else self.proc(fd, name)
        keys = self._keys(fd) if isinstance(path, int) else self._list(path)
        if not keys:
            return NO_MARKS
        names = whiteout.mark_names(keys)
        if not names:
            return NO_MARKS
        if self._guarded and any(map(whiteout.leads_elsewhere, names.values())):
            self._refuse_strangers(path)
        follow = {} if isinstance(path, int) else {"follow_symlinks": False}
        return whiteout.decode({mark: os.getxattr(path, key, **follow) for mark, key in names.items()})

    def _refuse_strangers(self, path: int | bytes) -> None:
        """Who is root for others is not led to other layers' files by what any owner of a file may write.

        overlayfs takes no redirect and no metacopy from ``user.*`` at all; here root takes them from root, and in
        layers that root wrote with ``userxattr``.
        """
        owner = os.stat(path, follow_symlinks=isinstance(path, int)).st_uid
        # Root of a user namespace is led nowhere where the user could not go.
        if owner != 0 and not owners.overflow_ids("/proc/self/uid_map"):
            log.warning("%s: a redirect or metacopy in user.overlay by uid %d is not followed", self.path, owner)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def listxattr(self, d: LayerDir, name: bytes) -> list[bytes]:
        fd = self.fd(d)
        return self.shown(self.proc(fd, name))

    def shown(self, path: int | bytes) -> list[bytes]:
        """The attributes at ``path``, or of an open file, that are a person's."""
        seen = [whiteout.unescape(os.fsencode(key)) for key in self._list(path)]
        return [key for key in seen if key is not None and key != owners.OVERRIDE.encode()]

    def getxattr(self, d: LayerDir, name: bytes, key: bytes) -> bytes:
        fd = self.fd(d)
        if key == owners.OVERRIDE.encode():
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return os.getxattr(self.proc(fd, name), whiteout.escape(key), follow_symlinks=False)

    def handle(self, d: LayerDir, name: bytes) -> bytes | None:
        fd = self.fd(d)
        uuid = self._filesystem(fd)
        return None if uuid is None else overlay_handle(fd.n, name, uuid)

    def by_handle(self, handle: bytes) -> os.stat_result | None:
        fd = self.fd(self.root)
        uuid = self._filesystem(fd)
        return None if uuid is None else stat_by_handle(fd.n, handle, uuid)

    def _filesystem(self, fd: Fd) -> bytes | None:
        if not self._uuid_known:
            self._uuid = filesystem_uuid(fd.n)
            self._uuid_known = True
        return self._uuid

    @property
    def record(self) -> bytes | None:
        return self.root_attribute(whiteout.RECORD)

    def root_attribute(self, mark: bytes) -> bytes | None:
        """The value of one of overlayfs's or our own attributes on the layer's root."""
        return self._value(self.fd(self.root).n, mark)

    def statvfs(self) -> os.statvfs_result:
        fd = self.fd(self.root)
        return os.fstatvfs(fd.n)

    def close(self) -> None:
        self._held = None
        KEPT.forget(self)

"""A directory of the host as the writable layer, with a work directory beside it as overlayfs has it.

``work/work`` is for staging, ``work/index`` holds copied-up hard links by the handle of their origin
(Documentation/filesystems/overlayfs.rst, "index"). Both directories are locked (flock(2)) while in use: the lock goes
with the process, so a killed one leaves none behind.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import stat
from typing import Self

from unionfs._sys.filehandle import can_use_trusted
from unionfs._sys.rename import RENAME_EXCHANGE, RENAME_WHITEOUT, renameat2
from unionfs._sys.syncfs import syncfs
from unionfs._sys.umask import umask
from unionfs.errors import LayerError, UpperBusyError
from unionfs.layer import owners, whiteout
from unionfs.layer.descriptors import Fd
from unionfs.layer.directory import DirectoryLayer, FdFile
from unionfs.layer.protocol import LayerDir, LayerFile, Marks, WritableLayer
from unionfs.layer.staging import StagedByName

log = logging.getLogger(__name__)

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DENIED = frozenset({errno.EPERM, errno.EINVAL, errno.EOVERFLOW})
_FREEZE = b"freeze"
# One for all uppers: who clears what he staged may find another upper under the tree, and takes nothing away there.
_NUMBERS = itertools.count()
# Rights that an unprivileged owner keeps, to do what root could do without.
_NEEDED = {stat.S_IFDIR: 0o700, stat.S_IFREG: 0o600}


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UpperBusyError(errno.EBUSY, "another union writes here", path) from None


def _make(path: str) -> int:
    os.makedirs(path, mode=0o755, exist_ok=True)  # A daemon has no umask.
    return os.open(path, _OPEN_DIR)


def _make_own(path: str) -> int:
    """A directory for ourselves alone. overlayfs leaves its own without any permission (``ovl_workdir_create``)."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    try:
        return os.open(path, _OPEN_DIR)
    except PermissionError:
        os.chmod(path, 0o700)
        return os.open(path, _OPEN_DIR)


class UpperDirectory(StagedByName, DirectoryLayer):
    """The writable layer on disk. See ``WritableLayer`` for what each call promises.

    ``work`` must be on the same file system as ``path``. ``volatile``: nothing is flushed, as overlayfs's mount option
    of that name. ``trusted``: the namespace of the marks; by default ``trusted.`` where this process may write it.
    Raises ``LayerError`` and ``UpperBusyError``.
    """

    immutable = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        work: str | os.PathLike[str],
        *,
        volatile: bool = False,
        trusted: bool | None = None,
        unmapped_as_root: bool = False,
    ) -> None:
        self.volatile = volatile
        self.work = os.path.realpath(work)
        places = os.path.realpath(path), self.work
        if os.path.commonpath(places) in places:
            raise LayerError(
                errno.EINVAL, "the work directory and the upper directory must stand side by side", self.work
            )
        super().__init__(path, unmapped_as_root=unmapped_as_root)
        self._privileged = os.geteuid() == 0
        self._ids = (os.geteuid(), os.getegid())
        self._tmpfile = True
        try:
            self._start(trusted)
        except BaseException:
            # Who catches the error keeps this object alive for a while; it must not keep the locks.
            self._let_go()
            raise

    def _start(self, trusted: bool | None) -> None:
        try:
            self._work_lock = Fd(_make(self.work))
            self._upper_lock = Fd(os.open(self.path, _OPEN_DIR))
            _lock(self._upper_lock.n, self.path)
            _lock(self._work_lock.n, self.work)
            if not os.path.samestat(os.fstat(self._upper_lock.n), os.stat(self.path)):
                raise UpperBusyError(errno.EBUSY, "just frozen by another union", self.path)
            staging = Fd(_make_own(os.path.join(self.work, "work")))
            index = Fd(_make_own(os.path.join(self.work, "index")))
        except UpperBusyError:
            raise
        except OSError as error:
            raise LayerError(error.errno, f"upper or work is not writable: {error.strerror}", self.work) from error
        if os.fstat(staging.n).st_dev != os.fstat(self._upper_lock.n).st_dev:
            raise LayerError(errno.EXDEV, "the work directory must be on the upper's file system", self.work)
        self._set_areas(staging, index)
        self._prefix = (
            whiteout.TRUSTED if (can_use_trusted(self._upper_lock.n) if trusted is None else trusted) else whiteout.USER
        )
        self._undo_freeze()
        for name in self.scan(self.staging):
            self.clear(self.staging, name)
        self._sign(self._upper_lock.n)

    def _set_areas(self, staging: Fd, index: Fd) -> None:
        # Held for good: they have no parent to be opened from again.
        self.staging = LayerDir(self, None, b"work")
        self.staging.ref = staging
        self.index: LayerDir | None = LayerDir(self, None, b"index")
        self.index.ref = index

    def _sign(self, fd: int) -> None:
        if self.has_inos:
            return
        try:
            os.setxattr(fd, self._key(whiteout.FORMAT), b"1")
        except OSError as error:
            raise LayerError(
                error.errno, f"the upper's file system keeps no extended attributes: {error.strerror}", self.path
            ) from error
        self.has_inos = True
        if self._prefix == whiteout.USER:
            self._guarded = False

    def _key(self, mark: bytes) -> bytes:
        return self._prefix + mark

    @property
    def trusted(self) -> bool:
        """Whether marks are written in the ``trusted.`` namespace."""
        return self._prefix == whiteout.TRUSTED

    def temp_name(self) -> bytes:
        return b"#%x" % next(_NUMBERS)

    # New entries

    def check_writable(self, fd: int | None = None) -> None:
        """Raise ``EROFS`` once this layer is frozen; but not for an open file that has no name."""
        if self.immutable and (fd is None or os.fstat(fd).st_nlink):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.path)

    def _into(self, d: LayerDir) -> Fd:
        """The open directory, in order to change what it holds."""
        self.check_writable()
        return self.fd(d)

    def mkdir(self, d: LayerDir, name: bytes, mode: int) -> LayerDir:
        fd = self._into(d)
        real = mode if self._privileged else mode | 0o700
        os.mkdir(name, real, dir_fd=fd.n)
        if real != mode:
            self._narrow(self.proc(fd, name), mode)
        return d.child(name)

    def create(self, d: LayerDir, name: bytes, mode: int) -> FdFile:
        fd = self._into(d)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        real = mode if self._privileged else mode | 0o600
        file = FdFile(self, os.open(name, flags, real, dir_fd=fd.n))
        if real != mode:
            self._narrow(self.proc(fd, name), mode)
        return file

    def stage(self, like: LayerDir | None = None, mode: int = 0o600) -> LayerFile:
        self.check_writable()
        if self._tmpfile:
            fd = self.fd(like or self.staging)
            real = mode if self._privileged else mode | 0o600
            try:
                file = FdFile(self, os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, real, dir_fd=fd.n))
                if real != mode:
                    file.setattr(mode=mode & ~umask())
                return file
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                    raise
                log.info("%s: no O_TMPFILE here, staged by name", self.path)
                self._tmpfile = False
        return StagedByName.stage(self, like, mode)

    def dress(self, file: LayerFile, st: os.stat_result, marks: Marks) -> None:
        n = file.fileno()
        assert n is not None
        if self.overrides or not self._privileged:
            self.set_attributes(n, None, st.st_uid, st.st_gid)
            self.set_attributes(n, stat.S_IMODE(st.st_mode), None, None)
        else:
            if (st.st_uid, st.st_gid) != self._ids:
                self.set_attributes(n, None, st.st_uid, st.st_gid)
            os.fchmod(n, stat.S_IMODE(st.st_mode))
        for mark, value in whiteout.encode(marks).items():
            self._set_mark(n, mark, value)

    def place(self, file: LayerFile, d: LayerDir, name: bytes) -> None:
        assert isinstance(file, FdFile)
        if file.staged is not None:
            StagedByName.place(self, file, d, name)
            return
        fd = self._into(d)
        # An open file without a name gets one (open(2), O_TMPFILE).
        os.link(b"/proc/self/fd/%d" % file.n, name, dst_dir_fd=fd.n, follow_symlinks=True)

    def _narrow(self, path: bytes, mode: int) -> None:
        """Record that a new object has less rights than we need for ourselves."""
        st = os.stat(path, follow_symlinks=False)
        self._override(path, st, mode=stat.S_IFMT(st.st_mode) | stat.S_IMODE(st.st_mode) & mode)

    def mknod(self, d: LayerDir, name: bytes, mode: int, rdev: int) -> None:
        fd = self._into(d)
        try:
            os.mknod(name, mode, rdev, dir_fd=fd.n)
        except PermissionError:
            if not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)):
                raise
            log.debug("%s: no right to make a device, recorded in %s", name, owners.OVERRIDE)
            self.create(d, name, 0o600).close()
            path = self.proc(fd, name)
            self._override(path, os.stat(path, follow_symlinks=False), mode=mode & ~umask(), rdev=rdev)

    def symlink(self, d: LayerDir, name: bytes, target: bytes) -> None:
        fd = self._into(d)
        os.symlink(target, name, dir_fd=fd.n)

    def link(self, d: LayerDir, name: bytes, d2: LayerDir, name2: bytes) -> None:
        fd, fd2 = self._into(d), self.fd(d2)
        os.link(name, name2, src_dir_fd=fd.n, dst_dir_fd=fd2.n, follow_symlinks=False)

    def whiteout(self, d: LayerDir, name: bytes) -> None:
        fd = self._into(d)
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=fd.n)

    # Names that go and move

    def unlink(self, d: LayerDir, name: bytes) -> None:
        fd = self._into(d)
        os.unlink(name, dir_fd=fd.n)

    def rmdir(self, d: LayerDir, name: bytes) -> None:
        fd = self._into(d)
        os.rmdir(name, dir_fd=fd.n)

    def rename(self, d: LayerDir, name: bytes, d2: LayerDir, name2: bytes, flags: int = 0) -> None:
        fd, fd2 = self._into(d), self.fd(d2)
        try:
            renameat2(fd.n, name, fd2.n, name2, flags)
        except OSError as error:
            if flags != RENAME_WHITEOUT or error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            log.info("%s: no RENAME_WHITEOUT here, done in two steps", self.path)
            temp = self.temp_name()
            self.whiteout(self.staging, temp)
            try:
                os.rename(name, name2, src_dir_fd=fd.n, dst_dir_fd=fd2.n)
            except OSError:
                self.unlink(self.staging, temp)
                raise
            os.rename(temp, name, src_dir_fd=self.fd(self.staging).n, dst_dir_fd=fd.n)

    def clear(self, d: LayerDir, name: bytes) -> None:
        self.check_writable()
        pending = [(d, name, False)]
        while pending:
            d, name, emptied = pending.pop()
            fd = self.fd(d)
            if emptied:
                os.rmdir(name, dir_fd=fd.n)
                continue
            try:
                os.unlink(name, dir_fd=fd.n)
                continue
            except IsADirectoryError:
                pass
            if not self._privileged:
                os.chmod(name, 0o700, dir_fd=fd.n)
            pending.append((d, name, True))
            child = d.child(name)
            # Not through scan: here a file is a file, whatever it stands for.
            with os.scandir(self.fd(child).n) as found:
                pending.extend((child, os.fsencode(entry.name), False) for entry in found)

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
        fd = self._into(d)
        if (mode is not None or uid is not None or gid is not None) and not self._simply(fd, name, mode, uid, gid):
            self.set_attributes(self.proc(fd, name), mode, uid, gid)
        if times is not None:
            os.utime(name, ns=times, dir_fd=fd.n, follow_symlinks=False)

    def _simply(self, fd: Fd, name: bytes, mode: int | None, uid: int | None, gid: int | None) -> bool:
        """Owner and permission bits where nothing has to be recorded; whether that was enough."""
        if not self._privileged or self.overrides:
            return False
        if mode is not None and stat.S_ISLNK(os.stat(name, dir_fd=fd.n, follow_symlinks=False).st_mode):
            return False  # chmod(2) would follow it.
        try:
            if uid is not None or gid is not None:
                os.chown(
                    name, -1 if uid is None else uid, -1 if gid is None else gid, dir_fd=fd.n, follow_symlinks=False
                )
        except OSError as error:
            if error.errno not in _DENIED:
                raise
            return False
        if mode is not None:
            os.chmod(name, stat.S_IMODE(mode), dir_fd=fd.n)
        return True

    def set_attributes(self, path: int | bytes, mode: int | None, uid: int | None, gid: int | None) -> None:
        """Change owner and permission bits of the object at ``path``, or of the open file.

        What this process may not set is recorded. ``EOPNOTSUPP`` for the mode of a symbolic link: it has none.
        """
        if mode is uid is gid is None:
            return
        follow = isinstance(path, int)
        now = self.owned(path, os.stat(path, follow_symlinks=follow))
        link = stat.S_ISLNK(now.st_mode)
        if link and mode is not None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        recorded = self.overrides or not self._privileged
        refused = False
        if recorded or uid is not None or gid is not None:
            uid = now.st_uid if uid is None else uid
            gid = now.st_gid if gid is None else gid
            try:
                os.chown(path, uid, gid, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in _DENIED:
                    raise
                refused = True
        if link:
            if refused and (uid, gid) != (now.st_uid, now.st_gid):
                log.info("%s: the owner of a symbolic link can't be kept without root", path)
            return
        wanted = stat.S_IMODE(now.st_mode if mode is None else mode)
        if recorded or mode is not None:
            needed = 0 if self._privileged else _NEEDED.get(stat.S_IFMT(now.st_mode), 0)
            os.chmod(path, wanted | needed)
        if recorded or refused:
            real = os.stat(path, follow_symlinks=follow)
            if refused or real.st_mode != stat.S_IFMT(now.st_mode) | wanted:
                self._override(path, now, mode=stat.S_IFMT(now.st_mode) | wanted, uid=uid, gid=gid)
            elif self.overrides and os.path.samestat(real, os.fstat(self.fd(self.root).n)):
                # The root's own tells that there are others.
                self._override(path, now, mode=real.st_mode, uid=uid, gid=gid)
            else:
                self._drop_override(path)

    def _drop_override(self, path: int | bytes) -> None:
        try:
            os.removexattr(path, owners.OVERRIDE, follow_symlinks=isinstance(path, int))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                raise

    def _override(
        self,
        path: int | bytes,
        now: os.stat_result,
        *,
        mode: int,
        uid: int | None = None,
        gid: int | None = None,
        rdev: int | None = None,
    ) -> None:
        """Record what the object at ``path``, of which a person sees ``now``, shall look like."""
        if not self.overrides:
            root = self.stat(self.root, b".")
            os.setxattr(self.fd(self.root).n, owners.OVERRIDE, owners.encode(root.st_mode, root.st_uid, root.st_gid))
            self.overrides = True
        value = owners.encode(
            mode,
            now.st_uid if uid is None else uid,
            now.st_gid if gid is None else gid,
            now.st_rdev if rdev is None else rdev,
        )
        try:
            os.setxattr(path, owners.OVERRIDE, value, follow_symlinks=isinstance(path, int))
        except PermissionError:
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                raise
            # user.* is for regular files and directories only (xattr(7)).
            log.info("%s: the owner of a special file can't be kept without root", path)

    def setxattr(self, d: LayerDir, name: bytes, key: bytes, value: bytes, flags: int = 0) -> None:
        fd = self._into(d)
        if key == owners.OVERRIDE.encode():
            # Who owns a file could give it to root, with the set-id bits.
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), name)
        os.setxattr(self.proc(fd, name), whiteout.escape(key), value, flags, follow_symlinks=False)

    def removexattr(self, d: LayerDir, name: bytes, key: bytes) -> None:
        fd = self._into(d)
        os.removexattr(self.proc(fd, name), whiteout.escape(key), follow_symlinks=False)

    def set_marks(self, d: LayerDir, name: bytes, marks: Marks) -> None:
        fd = self._into(d)
        path = self.proc(fd, name)
        old = whiteout.encode(self.marks(d, name))
        new = whiteout.encode(marks)
        for mark in old.keys() - new.keys():
            for prefix in (whiteout.TRUSTED, whiteout.USER):
                try:
                    os.removexattr(path, prefix + mark, follow_symlinks=False)
                except OSError as error:
                    if error.errno not in (errno.ENODATA, errno.EPERM, errno.EOPNOTSUPP):
                        raise
        for mark, value in new.items():
            if old.get(mark) != value:
                self._set_mark(path, mark, value)

    def _set_mark(self, path: int | bytes, mark: bytes, value: bytes) -> None:
        try:
            os.setxattr(path, self._key(mark), value, follow_symlinks=isinstance(path, int))
        except OSError as error:
            # user.* is for regular files and directories only (xattr(7)); only our inode number ever stands elsewhere.
            if mark != whiteout.INO or error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                raise
            log.debug("%s: no room for an inode number, it changes at the next mount", path)

    def sync(self) -> None:
        if not self.volatile:
            syncfs(self.fd(self.root).n)

    # Commit

    def begin_freeze(self, destination: str | None) -> WritableLayer:
        """See ``WritableLayer``. ``destination``: a path that does not exist yet, or an empty directory, on the upper's
        file system; by default the next free number in ``<upper>.layers``. Raises ``LayerError``."""
        self.check_writable()
        self._undo_freeze()
        if destination is None:
            base = self.path + ".layers"
            os.makedirs(base, mode=0o755, exist_ok=True)
            taken = [int(name) for name in os.listdir(base) if name.isdigit()]
            destination = os.path.join(base, f"{max(taken, default=0) + 1:06d}")
        destination = os.path.abspath(destination)
        try:
            os.makedirs(os.path.dirname(destination), mode=0o755, exist_ok=True)
            if os.path.isdir(destination) and os.listdir(destination):
                raise LayerError(errno.ENOTEMPTY, "a layer is frozen into a new or empty directory", destination)
            # Who opens the upper after a crash knows by this where to clean up.
            os.symlink(os.fsencode(destination), _FREEZE, dir_fd=self.fd(self.staging).n)
            if not os.path.isdir(destination):
                os.mkdir(destination, 0o700)
            if os.stat(destination).st_dev != os.stat(self.path).st_dev:
                raise LayerError(errno.EXDEV, "a layer is frozen on its upper's file system", destination)
            return self._twin(destination)
        except OSError as error:
            self._undo_freeze()
            if isinstance(error, LayerError):
                raise
            raise LayerError(error.errno, f"the frozen layer can't be made: {error.strerror}", destination) from error

    def _twin(self, path: str) -> Self:
        fresh = type(self).__new__(type(self))
        DirectoryLayer.__init__(fresh, path)
        fresh._lost_uids, fresh._lost_gids = self._lost_uids, self._lost_gids
        fresh._loses_ids, fresh._guarded = self._loses_ids, self._guarded
        fresh.volatile, fresh.work, fresh._prefix = self.volatile, self.work, self._prefix
        fresh._privileged, fresh._work_lock = self._privileged, self._work_lock
        fresh._ids, fresh._tmpfile = self._ids, self._tmpfile
        try:
            self._prepare(fresh, path)
        except BaseException:
            fresh._let_go()
            raise
        return fresh

    def _prepare(self, fresh: Self, path: str) -> None:
        """Lock the waiting upper, and give it this one's areas and the metadata of its root."""
        fresh._upper_lock = Fd(os.open(path, _OPEN_DIR))
        _lock(fresh._upper_lock.n, path)
        assert self.index is not None
        fresh._set_areas(self.staging.ref, self.index.ref)
        root = self.fd(self.root)
        st = os.fstat(root.n)
        os.fchown(fresh._upper_lock.n, st.st_uid, st.st_gid)
        os.fchmod(fresh._upper_lock.n, stat.S_IMODE(st.st_mode))
        for key in os.listxattr(root.n):
            raw = os.fsencode(key)
            if not (whiteout.is_private(raw) and whiteout.unescape(raw) is None):
                os.setxattr(fresh._upper_lock.n, key, os.getxattr(root.n, key))
        fresh.overrides = self.overrides
        fresh._sign(fresh._upper_lock.n)
        os.utime(fresh._upper_lock.n, ns=(st.st_atime_ns, st.st_mtime_ns))

    def drop_freeze(self, fresh: WritableLayer) -> None:
        assert isinstance(fresh, UpperDirectory)
        fresh._let_go()
        self._undo_freeze()

    def finish_freeze(self, fresh: WritableLayer, record: bytes) -> None:
        assert isinstance(fresh, UpperDirectory)
        self.check_writable()
        os.setxattr(self._upper_lock.n, self._key(whiteout.RECORD), record)
        here, there = os.path.split(os.fsencode(self.path)), os.path.split(os.fsencode(fresh.path))
        fd, fd2 = Fd(os.open(here[0], _OPEN_DIR)), Fd(os.open(there[0], _OPEN_DIR))
        renameat2(fd.n, here[1], fd2.n, there[1], RENAME_EXCHANGE)
        if not self.volatile:
            try:
                os.fsync(fd.n)
                os.fsync(fd2.n)
            except OSError:
                renameat2(fd.n, here[1], fd2.n, there[1], RENAME_EXCHANGE)
                raise
        self.path, fresh.path = fresh.path, self.path
        self._unbind_index()
        try:
            os.unlink(_FREEZE, dir_fd=self.fd(self.staging).n)
        except OSError as error:
            log.warning("%s: the next open will clear what the commit left: %s", fresh.path, error.strerror)
        self.immutable = True
        del self._upper_lock, self._work_lock

    def _unbind_index(self) -> None:
        """overlayfs notes in the index which upper it belongs to (``ovl_get_indexdir``); it is another's now."""
        assert self.index is not None
        fd = self.fd(self.index)
        for key in self._list(fd.n):
            if whiteout.is_private(os.fsencode(key)):
                os.removexattr(fd.n, key)

    def _undo_freeze(self) -> None:
        """What waited to become the upper goes, after a failure or, at the next open, a kill in a commit."""
        staging = self.fd(self.staging)
        try:
            destination = os.readlink(_FREEZE, dir_fd=staging.n)
            owner = os.stat(_FREEZE, dir_fd=staging.n, follow_symlinks=False).st_uid
        except FileNotFoundError:
            return
        if owner != os.geteuid():
            log.warning("%s: a note of a commit by uid %d is not followed", self.work, owner)
            return
        path = os.fsdecode(destination)
        try:
            if os.path.isdir(path):
                left = DirectoryLayer(path)
                mine, committed = left.has_inos, left.record is not None
                left.close()
                if mine and not committed:
                    import shutil  # Heavy, and seldom needed.

                    self._take_back(destination)
                    shutil.rmtree(path)
                elif not committed:
                    os.rmdir(path)
            if self.record is not None:
                os.removexattr(self._upper_lock.n, self._key(whiteout.RECORD))
            os.unlink(_FREEZE, dir_fd=self.fd(self.staging).n)
        except OSError as error:
            log.warning("%s: left by a commit that did not end: %s", path, error.strerror)

    def _take_back(self, waiting: bytes) -> None:
        """The inodes of open writers, which were given names there, take their places here again."""
        for top, _, names in os.walk(waiting):
            here = os.path.join(os.fsencode(self.path), os.path.relpath(top, waiting))
            for name in names:
                st = os.stat(here)
                os.rename(os.path.join(top, name), os.path.join(here, name))
                os.utime(here, ns=(st.st_atime_ns, st.st_mtime_ns))

    def _let_go(self) -> None:
        super().close()
        self.__dict__.pop("_upper_lock", None)
        self.__dict__.pop("_work_lock", None)

    def close(self) -> None:
        self._let_go()
        self.staging.ref = None
        self.index = None

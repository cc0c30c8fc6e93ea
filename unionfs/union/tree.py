"""The tree: every operation on (directory node, name) or on an open handle. All doors come through here."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import TypeVar

from unionfs.layer.protocol import DT_CHR, DT_DIR, DT_LNK, DT_REG, LayerDir, LayerFile, Marks, WritableLayer
from unionfs.types import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.union import removal, rename, restack, unnamed
from unionfs.union.changes import Moving, Whole
from unionfs.union.copyup import afterwards, copy_up_dir, copy_up_file, is_copied_up, stage_area
from unionfs.union.handle import Handle
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.reader import NAME_MAX, TreeReader, fail

T = TypeVar("T")

_ACLS = b"system.posix_acl_"


class Tree(TreeReader):
    """One tree from many layers, with changes in the upper: what every door of a union opens on.

    See ``TreeReader`` for nodes and reading. Without an upper, every change raises ``EROFS``. A change holds
    ``lock``; data are copied up without it. Each change is on disk in one step: a process that is killed leaves the
    old state or the new.

        node, handle = tree.create(etc, b"motd", 0o644, os.O_WRONLY)
        handle.pwrite(b"hello", 0)
        handle.close()
        tree.rename(etc, b"motd", tree.root, b"motd")
        tree.unlink(tree.root, b"motd")

    ``uid`` and ``gid``: the owner of a new object and, with them, its exact mode; without, it belongs to this process
    and the umask applies, as for ``os.open``.
    """

    def writable(self) -> WritableLayer:
        """The upper. ``EROFS`` if there is none, ``EBUSY`` while it is lent."""
        if self.upper is None:
            raise fail(errno.EROFS)
        if self.lent is not None:
            raise OSError(errno.EBUSY, self.lent)
        return self.upper

    def whole(self, *names: tuple[DirNode, bytes]) -> Whole:
        """A change of these names, with the lock held: when it breaks off, what the layers say counts."""
        return Whole(self, names)

    # New entries

    def create(
        self, d: DirNode, name: bytes, mode: int, flags: int, uid: int | None = None, gid: int | None = None
    ) -> tuple[FileNode, Handle]:
        """A new regular file, open. ``flags``: the handle's access mode and ``O_APPEND``. ``EEXIST`` if the name
        is taken."""
        self.writable()
        mode &= 0o7777

        def make(parent: LayerDir, at: bytes) -> LayerFile:
            return self.writable().create(parent, at, mode)

        with self.lock:
            self.check_new(d, name)
            with self.whole((d, name)):
                home, file, st = self.new_entry(d, name, make, mode, uid, gid)
                node = FileNode(d, name, DT_REG, home, name)
                node.data = None
                self._enter(d, name, node, st)
                if flags & os.O_APPEND:
                    file = self.writable().open(home, name, flags & (os.O_ACCMODE | os.O_APPEND))
                return node, Handle(self, node, flags, file)

    def mkdir(self, d: DirNode, name: bytes, mode: int, uid: int | None = None, gid: int | None = None) -> DirNode:
        """A new directory. ``EEXIST``."""
        self.writable()
        mode &= 0o7777

        def make(parent: LayerDir, at: bytes) -> None:
            self.writable().mkdir(parent, at, mode)

        with self.lock:
            self.check_new(d, name)
            with self.whole((d, name)):
                home, _, st = self.new_entry(d, name, make, mode, uid, gid, directory=True)
                node = DirNode(d, name)
                node.srcs = [home.child(name)]
                node.entries = {}
                node.shadow_of = self.upper
                self._enter(d, name, node, st)
                return node

    def mknod(
        self, d: DirNode, name: bytes, mode: int, rdev: int = 0, uid: int | None = None, gid: int | None = None
    ) -> FileNode:
        """A new regular file, FIFO, socket or device. ``EEXIST``; ``EPERM`` for a device 0:0, which is a whiteout."""
        self.writable()
        kind = (stat.S_IFMT(mode) or stat.S_IFREG) >> 12
        if kind in (DT_DIR, DT_LNK):
            raise fail(errno.EINVAL, name)
        if kind == DT_CHR and rdev == 0:
            raise fail(errno.EPERM, name)

        def make(parent: LayerDir, at: bytes) -> None:
            upper = self.writable()
            if kind == DT_REG:
                upper.create(parent, at, mode & 0o7777).close()
            else:
                upper.mknod(parent, at, mode, rdev)

        with self.lock:
            self.check_new(d, name)
            with self.whole((d, name)):
                home, _, st = self.new_entry(d, name, make, mode & 0o7777, uid, gid)
                node = FileNode(d, name, kind, home, name)
                node.data = None
                self._enter(d, name, node, st)
                return node

    def symlink(
        self, d: DirNode, name: bytes, target: bytes, uid: int | None = None, gid: int | None = None
    ) -> FileNode:
        """A new symbolic link. ``EEXIST``, ``ENAMETOOLONG``."""
        self.writable()

        def make(parent: LayerDir, at: bytes) -> None:
            self.writable().symlink(parent, at, target)

        with self.lock:
            self.check_new(d, name)
            with self.whole((d, name)):
                home, _, st = self.new_entry(d, name, make, None, uid, gid)
                node = FileNode(d, name, DT_LNK, home, name)
                node.data = None
                self._enter(d, name, node, st)
                return node

    def link(self, n: Node, d: DirNode, name: bytes) -> None:
        """One name more for ``n``. ``EEXIST``; ``EPERM`` for a directory; ``ENOENT`` if it has no name left."""
        self.writable()
        self.check_new(d, name)
        if not isinstance(n, FileNode):
            raise fail(errno.EPERM, n.name)
        with self._in_upper(n) as upper:
            self.check_new(d, name)
            if n.dead and n.unnamed is not None:
                unnamed.name_first(self, n, d, name)
                return
            if n.dead or n.parent is None:
                raise fail(errno.ENOENT, name)
            with self.whole((d, name)):
                rename.in_upper_by_name(self, n, n.parent, n.name)
                rename.fix_metacopy(self, n)
                self.links.before_change(n)
                self.links.new_link(n)
                self.new_entry(d, name, lambda parent, at: upper.link(n.home, n.lname, parent, at), None, None, None)
                n.add_name(d, name, True)
                self.put(d, name, n)
                self.touched(n)

    def tmpfile(
        self, d: DirNode, mode: int, flags: int, uid: int | None = None, gid: int | None = None
    ) -> tuple[FileNode, Handle]:
        """A new regular file without a name, open (open(2), ``O_TMPFILE``); ``link`` may give it one in any directory.

        It goes with its last handle. ``d`` gives it the group and the default ACL that a new entry would get.
        """
        with self.lock:
            return unnamed.create(self, d, mode & 0o7777, flags, uid, gid)

    def check_new(self, d: DirNode, name: bytes) -> None:
        if d.dead:
            raise fail(errno.ENOENT, name)
        if name in (b"", b".", b".."):
            raise fail(errno.EEXIST, name)
        if len(name) > NAME_MAX:
            raise fail(errno.ENAMETOOLONG, name)
        if name in self.entries(d):
            raise fail(errno.EEXIST, name)

    def new_entry(
        self,
        d: DirNode,
        name: bytes,
        make: Callable[[LayerDir, bytes], T],
        mode: int | None,
        uid: int | None,
        gid: int | None,
        *,
        directory: bool = False,
    ) -> tuple[LayerDir, T, os.stat_result | None]:
        """Let ``make`` make the entry, in place or, over a whiteout, in staging.

        Answers the upper's directory, what ``make`` answered and, if it is known, what the layer says of the entry.
        """
        upper = self.writable()
        home = copy_up_dir(self, d)
        if name not in self.shadow(d):
            made = make(home, name)
            try:
                st = self._own(home, home, name, mode, uid, gid)
            except BaseException:
                self._discard(home, name)
                raise
            return home, made, st
        area, extra = stage_area(upper, home)
        temp = upper.temp_name()
        try:
            made = make(area, temp)
            st = self._own(home, area, temp, mode, uid, gid)
            if directory:
                upper.set_marks(area, temp, Marks(opaque=True))
                upper.rename(area, temp, home, name, RENAME_EXCHANGE)
                with afterwards("a whiteout in staging"):
                    upper.unlink(area, temp)
            else:
                upper.rename(area, temp, home, name)
        except OSError:
            self._discard(area, temp)
            raise
        finally:
            if extra is not None:
                with afterwards("a directory in staging"):
                    self._discard(upper.staging, extra)
        return home, made, st

    def _discard(self, d: LayerDir, name: bytes) -> None:
        upper = self.writable()
        try:
            upper.clear(d, name)
        except FileNotFoundError:
            pass

    def _own(
        self, parent: LayerDir, d: LayerDir, name: bytes, mode: int | None, uid: int | None, gid: int | None
    ) -> os.stat_result | None:
        """Owner and exact mode for a door that speaks for others."""
        if uid is None:
            return None
        upper = self.writable()
        st = upper.stat(d, name)
        if gid is not None and st.st_gid != gid and upper.stat(parent, b".").st_mode & stat.S_ISGID:
            gid = None
        now = st.st_mode
        if st.st_uid != uid or (gid is not None and st.st_gid != gid):
            upper.setattr(d, name, uid=uid, gid=gid)
            now = upper.stat(d, name).st_mode
        if mode is None:
            return st
        if stat.S_ISDIR(now):
            mode |= upper.stat(parent, b".").st_mode & stat.S_ISGID
        made = st.st_mode & 0o777
        if made != mode & 0o777 and b"system.posix_acl_default" in upper.listxattr(parent, b"."):
            mode = mode & 0o7000 | made  # The ACL has decided, not the umask (acl(5), "Object creation").
        if stat.S_IMODE(now) != mode:
            upper.setattr(d, name, mode=mode)
        return st

    def _enter(self, d: DirNode, name: bytes, node: Node, st: os.stat_result | None) -> None:
        """A new object stands in ``d``; ``st``: what the layer says of it, if that is known."""
        if st is None:
            home, lname = self.home_of(node)
            st = home.layer.stat(home, lname)
        node.ino = self.numbers.number(st)
        self.put(d, name, node)

    def put(self, d: DirNode, name: bytes, node: Node) -> None:
        self.entries(d)[name] = node
        # First counted, then dropped: an answer that is kept just now is seen to be old (``Reading._stat``).
        self.changes += 1
        self.cache.appeared()
        self.entry_changed(d, name)

    def paths_changed(self) -> None:
        """A directory or symbolic link has gone or moved."""
        self.changes += 1
        self.cache.clear()

    def entry_changed(self, d: DirNode, name: bytes) -> None:
        self.touched(d)
        for tell in self.subscribers:
            tell(d, name)

    # Entries that go

    def unlink(self, d: DirNode, name: bytes) -> None:
        """One name less. ``EISDIR`` for a directory."""
        self.writable()
        with self.lock:
            n = self.lookup(d, name)
            if not isinstance(n, FileNode):
                raise fail(errno.EISDIR, name)
            loss = removal.prepare(self, n, d, name)
            with self.moving(), self.whole((d, name)):
                removal.remove(self, d, name, removal.has_name_in_upper(self, n, d, name))
                removal.lost(self, n, d, name, loss)

    def rmdir(self, d: DirNode, name: bytes) -> None:
        """Remove an empty directory. ``ENOTDIR``, ``ENOTEMPTY``; ``EINVAL`` for ``.``."""
        self.writable()
        with self.lock:
            if name == b".":
                raise fail(errno.EINVAL, name)
            if name == b"..":
                raise fail(errno.ENOTEMPTY, name)
            n = self.lookup(d, name)
            if not isinstance(n, DirNode):
                raise fail(errno.ENOTDIR, name)
            if self.entries(n):
                raise fail(errno.ENOTEMPTY, name)
            left = removal.last_word(self, n)
            with self.moving(), self.whole((d, name)):
                removal.remove(self, d, name, self.in_upper(n), directory=True)
                removal.lost_dir(self, n, d, name, left)

    # Entries that move

    def moving(self) -> Moving:
        """While names change, on disk and then here, who reads without the lock is warned (``TreeReader.steadily``)."""
        return Moving(self)

    def rename(self, d: DirNode, name: bytes, d2: DirNode, name2: bytes, flags: int = 0) -> None:
        """rename(2), with ``RENAME_NOREPLACE`` or ``RENAME_EXCHANGE``. No tree is copied: a merged directory gets a
        redirect.

        ``EXDEV`` only where ``redirect_dir`` is off and the directory has something in the layers below.
        """
        self.writable()
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise fail(errno.EINVAL, name)
        first = self.lookup(d, name)
        if isinstance(first, FileNode):
            copy_up_file(self, first, data=not self.metacopy)
        with self.lock:
            n = self.lookup(d, name)
            if name in (b".", b"..") or name2 in (b".", b".."):
                raise fail(errno.EBUSY, name)
            if d2.dead:
                raise fail(errno.ENOENT, name2)
            if len(name2) > NAME_MAX:
                raise fail(errno.ENAMETOOLONG, name2)
            n2 = self.lookup(d2, name2) if name2 in self.entries(d2) else None
            rename.check(n, d, n2, d2, name2, flags)
            if n is n2:
                return
            if flags != RENAME_EXCHANGE and isinstance(n2, DirNode) and self.entries(n2):
                raise fail(errno.ENOTEMPTY, name2)
            with self.moving(), self.whole((d, name), (d2, name2)):
                if flags == RENAME_EXCHANGE:
                    assert n2 is not None
                    rename.exchange(self, n, d, name, n2, d2, name2)
                else:
                    rename.move(self, n, d, name, n2, d2, name2)

    # Metadata and data

    def setattr(
        self,
        n: Node,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> None:
        """Change permission bits, owner, size, times in nanoseconds; what is ``None`` stays. Only ``size`` copies data.

        ``EOPNOTSUPP`` for the mode of a symbolic link; ``EISDIR``, ``EINVAL`` for the size of what is no file.
        """
        self.writable()
        if size is not None:
            self._resize(n, size)
        if mode is None and uid is None and gid is None and atime_ns is None and mtime_ns is None:
            return
        if mode is not None and n.kind == DT_LNK:
            raise fail(errno.EOPNOTSUPP, n.name)
        if isinstance(n, FileNode) and n.home.layer is self.upper and not n.dead:
            with self.lock:
                if n.home.layer is self.upper and not n.nameless:
                    self._set_attributes(n, mode, uid, gid, atime_ns, mtime_ns)
                    return
        with self._in_upper(n):
            self._set_attributes(n, mode, uid, gid, atime_ns, mtime_ns)

    def _set_attributes(
        self, n: Node, mode: int | None, uid: int | None, gid: int | None, atime_ns: int | None, mtime_ns: int | None
    ) -> None:
        """The upper has ``n``, and this thread the lock."""
        times = None
        if atime_ns is not None or mtime_ns is not None:
            st = self.attributes(n)[0] if atime_ns is None or mtime_ns is None else None
            times = (
                st.st_atime_ns if st is not None and atime_ns is None else atime_ns,
                st.st_mtime_ns if st is not None and mtime_ns is None else mtime_ns,
            )
        try:
            if isinstance(n, FileNode) and n.nameless:
                self.open_file(n).setattr(mode, uid, gid, times)  # type: ignore[arg-type]
            else:
                self.writable().setattr(*self.home_of(n), mode, uid, gid, times)  # type: ignore[arg-type]
        finally:
            self.touched(n)

    def _resize(self, n: Node, size: int) -> None:
        if isinstance(n, DirNode):
            raise fail(errno.EISDIR, n.name)
        assert isinstance(n, FileNode)
        if n.kind != DT_REG or size < 0:
            raise fail(errno.EINVAL, n.name)
        if n.nameless:
            for opened in n.open or ():
                if opened.flags & os.O_ACCMODE != os.O_RDONLY:
                    opened.file.truncate(size)
                    self.touched(n)
                    return
            raise fail(errno.ENOENT, n.name)
        while True:
            upper = self.writable()
            copy_up_file(self, n, limit=size)
            with self.lock:
                if n.nameless:
                    raise fail(errno.ENOENT, n.name)
                if upper is self.upper and is_copied_up(self, n, True):
                    file = upper.open(n.home, n.lname, os.O_WRONLY)
                    file.truncate(size)
                    file.close()
                    self.touched(n)
                    return

    def setxattr(self, n: Node, key: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute (setxattr(2): ``XATTR_CREATE``, ``XATTR_REPLACE``). No data are copied."""
        self.writable()
        with self._in_upper(n) as upper:
            if isinstance(n, FileNode) and n.nameless:
                self.open_file(n).setxattr(key, value, flags)
            else:
                upper.setxattr(*self.home_of(n), key, value, flags)
            self.touched(n)

    def removexattr(self, n: Node, key: bytes) -> None:
        """Remove an extended attribute. ``ENODATA``, but not for an ACL (acl(5)), which is there in the mode at
        least."""
        self.writable()
        if key.startswith(b"user.") and n.kind not in (DT_REG, DT_DIR):
            raise fail(errno.EPERM, n.name)
        try:
            self.getxattr(n, key)  # Nothing to remove is no reason to copy up.
        except OSError as error:
            if error.errno != errno.ENODATA or not key.startswith(_ACLS):
                raise
            return
        with self._in_upper(n) as upper:
            if isinstance(n, FileNode) and n.nameless:
                self.open_file(n).removexattr(key)
            else:
                upper.removexattr(*self.home_of(n), key)
            self.touched(n)

    def name_in_upper(self, n: FileNode, d: DirNode, name: bytes) -> None:
        """Make the upper have this name of a hard link that it has under another."""
        rename.in_upper_by_name(self, n, d, name)

    @contextlib.contextmanager
    def _in_upper(self, n: Node) -> Iterator[WritableLayer]:
        """The upper, while it holds ``n`` and this thread the lock."""
        while True:
            upper = self.writable()
            if isinstance(n, FileNode):
                copy_up_file(self, n, data=not self.metacopy)
            with self.lock:
                if upper is not self.upper or (isinstance(n, FileNode) and not is_copied_up(self, n, False)):
                    continue  # Frozen in between.
                if isinstance(n, DirNode):
                    if n.dead:
                        raise fail(errno.ENOENT, n.name)
                    copy_up_dir(self, n)
                yield upper
                return

    def _open_to_write(self, n: FileNode, flags: int) -> Handle:
        while True:
            upper = self.writable()
            left_open = copy_up_file(self, n, limit=0 if flags & os.O_TRUNC else None)
            with self.lock:
                if upper is not self.upper or not is_copied_up(self, n, True):
                    continue  # Frozen in between.
                if n.dead:
                    return self.reopen(n, flags)
                access = flags & (os.O_ACCMODE | os.O_APPEND)
                if access & os.O_ACCMODE == os.O_RDONLY:
                    access |= os.O_RDWR  # O_TRUNC alone truncates all the same.
                reuse = left_open if access == os.O_RDWR else None
                file = reuse or upper.open(n.home, n.lname, access)
                if flags & os.O_TRUNC:
                    file.truncate(0)
                    self.touched(n)
                return Handle(self, n, flags, file)

    def reread(self) -> None:
        """The upper was lent, and is ours again: see ``union.restack.reread``."""
        restack.reread(self)

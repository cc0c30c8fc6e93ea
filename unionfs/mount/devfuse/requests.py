"""Requests about names and metadata, as operations on nodes of ``Tree``: what is decided is decided there."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import attrs

from unionfs._sys.clock import coarse_ns
from unionfs.layer.protocol import DT_DIR
from unionfs.mount.devfuse import wire
from unionfs.mount.devfuse.listing import DOT, DOT_DOT, Listings
from unionfs.mount.devfuse.nodes import NodeTable
from unionfs.mount.devfuse.openfiles import OpenFiles
from unionfs.mount.devfuse.session import LATER, Handler, Header
from unionfs.union.node import FileNode
from unionfs.union.reader import fail
from unionfs.union.serving import (
    attributes_shown,
    birth_ns,
    glance,
    has_default_acl,
    is_quick,
    kill_privileges,
    look_up,
    number_of,
)

if TYPE_CHECKING:
    from unionfs.union.handle import Handle
    from unionfs.union.node import DirNode, Node
    from unionfs.union.tree import Tree

_PLUS = wire.DIRENTPLUS.size
_PLAIN = wire.DIRENT.size
_PADDING = bytes(8)
_CAPABILITY = b"security.capability"
_BASIC_STATS, _BTIME = 0x7FF, 0x800  # statx(2)
_NUMBERLESS = 0xFFFFFFFF  # What libfuse gives an entry whose number is not known.


@attrs.frozen(kw_only=True)
class Trust:
    """How long the kernel may trust what it is told, in seconds."""

    names: float
    missing: float
    attributes: float


class Requests:
    """The handlers of one mount. ``handlers`` is what ``Session`` takes.

    ``sole``: nobody else changes the tree; so the kernel keeps listings, and need not ask when a directory is opened.
    """

    def __init__(self, tree: Tree, nodes: NodeTable, files: OpenFiles, trust: Trust, *, sole: bool) -> None:
        self._tree = tree
        self._table = nodes
        self._nodes = nodes.nodes
        self._files = files
        self._listings = Listings(tree)
        self._sole = sole
        self._masked: dict[Node, bool] = {}
        self._plain: set[int] = set()
        """Files made here, which have no capabilities; the kernel asks at every chown(2)."""
        names, names_ns = wire.seconds(trust.names)
        known, known_ns = wire.seconds(trust.attributes)
        self._valid = names, known, names_ns, known_ns
        self._attr_valid = known, known_ns, 0
        missing, missing_ns = wire.seconds(trust.missing)
        self._negative = wire.NEGATIVE_OUT.pack(0, 0, missing, 0, missing_ns, 0)
        self._keep_missing = trust.missing > 0

    @property
    def handlers(self) -> dict[int, Handler]:
        """By opcode. What is not here gets ``ENOSYS``, and the kernel does without."""
        files = self._files
        found: dict[int, Handler] = {
            wire.LOOKUP: self.lookup,
            wire.FORGET: self.forget,
            wire.BATCH_FORGET: self.batch_forget,
            wire.GETATTR: self.getattr,
            wire.STATX: self._again(self.statx),
            wire.SETATTR: self._again(self.setattr),
            wire.READLINK: self._again(self.readlink),
            wire.SYMLINK: self.symlink,
            wire.MKNOD: self.mknod,
            wire.MKDIR: self.mkdir,
            wire.UNLINK: self.unlink,
            wire.RMDIR: self.rmdir,
            wire.RENAME: self.rename,
            wire.RENAME2: self.rename,
            wire.LINK: self.link,
            wire.CREATE: self.create,
            wire.TMPFILE: self.tmpfile,
            wire.OPEN: self._again(files.open),
            wire.READ: files.read,
            wire.WRITE: files.write,
            wire.RELEASE: files.release,
            wire.FSYNC: files.fsync,
            wire.FALLOCATE: files.fallocate,
            wire.LSEEK: files.lseek,
            wire.COPY_FILE_RANGE: files.copy_file_range,
            wire.STATFS: self.statfs,
            wire.SYNCFS: self.sync,
            wire.FSYNCDIR: self.sync,
            wire.GETXATTR: self._again(self.getxattr),
            wire.LISTXATTR: self._again(self.listxattr),
            wire.SETXATTR: self._again(self.setxattr),
            wire.REMOVEXATTR: self._again(self.removexattr),
            wire.READDIR: self.readdir,
            wire.READDIRPLUS: self.readdirplus,
            wire.INTERRUPT: self.nothing,
            wire.DESTROY: self.destroy,
        }
        if not self._sole:
            found[wire.OPENDIR] = self.opendir
            found[wire.RELEASEDIR] = self.destroy
        return found

    def restacked(self) -> None:
        """The tree is another's: what is kept of it goes."""
        self._masked.clear()
        self._listings.clear()

    def _again(self, handler: Handler) -> Handler:
        """With ``_nameless`` for what fails because the file has lost its name."""

        def handle(h: Header, body: memoryview, out: memoryview, wait: bool) -> int | None:
            try:
                return handler(h, body, out, wait)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                return self._nameless(h[3])

        return handle

    def _nameless(self, number: int) -> int:
        """What to answer who found the file by its name, which it has no more: ``ESTALE`` makes the kernel look the
        name up once more, and it may be another file's by now (fs/namei.c, ``retry_estale``)."""
        n = self._nodes.get(number)
        return -errno.ESTALE if isinstance(n, FileNode) and n.dead else -errno.ENOENT

    # Names

    def _directory(self, number: int) -> DirNode:
        found: DirNode = self._nodes[number]  # type: ignore[assignment]  # Tree answers ENOTDIR where it is none.
        return found

    def lookup(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        d, name = self._nodes[h[3]], bytes(body[:-1])
        if self._sole and (number := self._table.known(d, name)) is not None:  # type: ignore[arg-type]
            seen = glance(self._tree, d, name)  # type: ignore[arg-type]
            if seen is not None:
                return self._answer(out, number, seen[1], seen[0], 1)
            self._table.forget(number, 1, self._gone)
        found = look_up(self._tree, d, name)
        if found is None:
            if not self._keep_missing:
                return -errno.ENOENT
            out[: len(self._negative)] = self._negative
            return len(self._negative)
        n, st, nlink = found
        return self._entry(out, n, st, nlink)

    def _entry(self, out: memoryview, n: Node, st: os.stat_result, nlink: int) -> int:
        return self._answer(out, self._table.remember(n), st, n.ino, nlink)

    def _answer(self, out: memoryview, number: int, st: os.stat_result, ino: int, nlink: int) -> int:
        wire.ENTRY_OUT.pack_into(out, 0, number, 0, *self._valid, *wire.attributes(st, ino, nlink))
        return wire.ENTRY_OUT.size

    def forget(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> None:
        (count,) = wire.U64.unpack_from(body)
        self._forgotten(h[3], count)

    def batch_forget(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> None:
        (many,) = wire.FORGET_COUNT.unpack_from(body)
        for i in range(many):
            self._forgotten(*wire.FORGET_ONE.unpack_from(body, wire.FORGET_COUNT.size + i * wire.FORGET_ONE.size))

    def _forgotten(self, number: int, count: int) -> None:
        self._table.forget(number, count, self._gone)

    def _gone(self, number: int) -> None:
        self._plain.discard(number)
        self._files.forgotten(number)

    def _created(self, out: memoryview, n: Node) -> int:
        st, nlink = self._tree.attributes(n)
        return self._entry(out, n, st, nlink)

    def _mode(self, d: Node, mode: int, umask: int) -> int:
        """The mode that a new entry asks for: the umask counts where no default ACL does (acl(5))."""
        mode = stat.S_IMODE(mode)
        if mode & umask and not self._has_default_acl(d):
            mode &= ~umask
        return mode

    def _has_default_acl(self, d: Node) -> bool:
        if not self._sole:
            return has_default_acl(self._tree, d)  # Others may change it.
        found = self._masked.get(d)
        if found is None:
            if len(self._masked) > 1000:
                self._masked.clear()
            found = self._masked[d] = has_default_acl(self._tree, d)
        return found

    def mkdir(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        mode, umask = wire.MKDIR_IN.unpack_from(body)
        (name,) = wire.names(body[wire.MKDIR_IN.size :])
        d = self._directory(h[3])
        return self._created(out, self._tree.mkdir(d, name, self._mode(d, mode, umask), h[4], h[5]))

    def mknod(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        mode, rdev, umask, _ = wire.MKNOD_IN.unpack_from(body)
        (name,) = wire.names(body[wire.MKNOD_IN.size :])
        d = self._directory(h[3])
        bits = self._mode(d, mode, umask)
        return self._created(out, self._tree.mknod(d, name, stat.S_IFMT(mode) | bits, rdev, h[4], h[5]))

    def symlink(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        name, target = wire.names(body, 2)
        return self._created(out, self._tree.symlink(self._directory(h[3]), name, target, h[4], h[5]))

    def link(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        n = self._nodes[wire.U64.unpack_from(body)[0]]
        if not wait and not is_quick(self._tree, n):
            return LATER
        (name,) = wire.names(body[wire.U64.size :])
        self._tree.link(n, self._directory(h[3]), name)
        return self._created(out, n)

    def unlink(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        d, name = self._directory(h[3]), bytes(body[:-1])
        self._table.before_change(d, name)
        self._tree.unlink(d, name)
        return 0

    def rmdir(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        d = self._directory(h[3])
        self._tree.rmdir(d, bytes(body[:-1]))
        return 0

    def rename(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        flags = 0
        if h[1] == wire.RENAME2:
            new, flags, _ = wire.RENAME2_IN.unpack_from(body)
            old_name, new_name = wire.names(body[wire.RENAME2_IN.size :], 2)
        else:
            (new,) = wire.RENAME_IN.unpack_from(body)
            old_name, new_name = wire.names(body[wire.RENAME_IN.size :], 2)
        d, d2 = self._directory(h[3]), self._directory(new)
        self._table.before_change(d, old_name)
        self._table.before_change(d2, new_name)
        self._tree.rename(d, old_name, d2, new_name, flags)
        return 0

    def readlink(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        target = self._tree.readlink(self._nodes[h[3]])
        out[: len(target)] = target
        return len(target)

    # New files, open

    def create(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
        (name,) = wire.names(body[wire.CREATE_IN.size :])
        d = self._directory(h[3])
        access = self._files.access(flags)
        try:
            n, handle = self._tree.create(d, name, self._mode(d, mode, umask), access, h[4], h[5])
        except FileExistsError:
            # open(2) with O_CREAT: without O_EXCL, a file that came up meanwhile is opened.
            if flags & os.O_EXCL:
                raise
            n = self._tree.lookup(d, name)  # type: ignore[assignment]
            return self._opened(out, n, self._tree.open(n, access | flags & os.O_TRUNC), flags, h[4])
        if self._sole:
            self._plain.add(id(n))
        return self._opened(out, n, handle, flags, h[4])

    def _opened(self, out: memoryview, n: Node, handle: Handle, flags: int, uid: int) -> int:
        """The answer to CREATE and TMPFILE: an entry and an open file."""
        try:
            st, nlink = self._tree.attributes(n)
            number = self._table.remember(n)
        except BaseException:
            handle.close()
            raise
        length = self._answer(out, number, st, n.ino, nlink)
        return length + self._files.add(out[length:], number, handle, flags, uid)

    def tmpfile(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
        d = self._directory(h[3])
        n, handle = self._tree.tmpfile(d, self._mode(d, mode, umask), self._files.access(flags), h[4], h[5])
        return self._opened(out, n, handle, flags, h[4])

    # Metadata

    def _attributes(self, out: memoryview, n: Node) -> int:
        st, nlink = self._tree.attributes(n)
        wire.ATTR_OUT.pack_into(out, 0, *self._attr_valid, *wire.attributes(st, n.ino, nlink))
        return wire.ATTR_OUT.size

    def getattr(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        try:
            return self._attributes(out, self._nodes[h[3]])
        except FileNotFoundError:
            return self._nameless(h[3])

    def statx(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        n = self._nodes[h[3]]
        st, nlink = self._tree.attributes(n)
        known, known_ns, _ = self._attr_valid
        ino, size, blocks, at, mt, ct, at_ns, mt_ns, ct_ns, mode, _, uid, gid, _, blksize, _ = wire.attributes(
            st, n.ino, nlink
        )
        born = birth_ns(self._tree, n)
        born_s, born_ns = divmod(born or 0, 1_000_000_000)
        mask = _BASIC_STATS if born is None else _BASIC_STATS | _BTIME
        wire.STATX_OUT.pack_into(
            out, 0, known, known_ns, 0,
            mask, blksize, 0, nlink, uid, gid, mode, 0, ino, size, blocks, 0,
            at, at_ns, 0, born_s, born_ns, 0, ct, ct_ns, 0, mt, mt_ns, 0,
            os.major(st.st_rdev), os.minor(st.st_rdev), 0, 0,
        )  # fmt: skip
        return wire.STATX_OUT.size

    def setattr(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        valid, fh, size, _, at, mt, _, at_ns, mt_ns, _, mode, _, uid, gid = wire.SETATTR_IN.unpack_from(body)
        tree = self._tree
        n = self._nodes[h[3]]
        if valid & wire.FATTR_SIZE:
            if not wait and not is_quick(tree, n, size):
                return LATER
            self._files.truncate(n, fh if valid & wire.FATTR_FH else None, size)
            if valid & wire.FATTR_KILL_SUIDGID:
                kill_privileges(tree, n)
        changes: dict[str, int] = {}
        if valid & wire.FATTR_MODE:
            changes["mode"] = stat.S_IMODE(mode)
        if valid & wire.FATTR_UID:
            changes["uid"] = uid
        if valid & wire.FATTR_GID:
            changes["gid"] = gid
        if valid & wire.FATTR_ATIME:
            changes["atime_ns"] = coarse_ns() if valid & wire.FATTR_ATIME_NOW else at * 1_000_000_000 + at_ns
        if valid & wire.FATTR_MTIME:
            changes["mtime_ns"] = coarse_ns() if valid & wire.FATTR_MTIME_NOW else mt * 1_000_000_000 + mt_ns
        if changes:
            tree.setattr(n, **changes)
        elif not valid & wire.FATTR_SIZE and n.kind != DT_DIR:
            # chown(2) to nobody else takes the set-id bits too, which HANDLE_KILLPRIV_V2 leaves to us.
            kill_privileges(tree, n)
        return self._attributes(out, n)

    def statfs(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        f = self._tree.statvfs()
        wire.STATFS_OUT.pack_into(
            out, 0, f.f_blocks, f.f_bfree, f.f_bavail, f.f_files, f.f_ffree, f.f_bsize, f.f_namemax, f.f_frsize, 0
        )
        return wire.STATFS_OUT.size

    def sync(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        if not wait:
            return LATER
        self._tree.sync()
        return 0

    # Extended attributes

    def getxattr(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        key = bytes(body[wire.GETXATTR_IN.size : -1])
        if h[3] in self._plain and key == _CAPABILITY:
            return -errno.ENODATA
        return _sized(out, self._tree.getxattr(self._nodes[h[3]], key), size)

    def listxattr(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        keys = attributes_shown(self._tree, self._nodes[h[3]], h[4])
        return _sized(out, b"".join(key + b"\0" for key in keys), size)

    def setxattr(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        size, flags, more, _ = wire.SETXATTR_IN.unpack_from(body)
        key = wire.names(body[wire.SETXATTR_IN.size :])[0]
        if key == _CAPABILITY and not self._files.settled(h[3], wait):
            return LATER  # A write that comes after it would take it away.
        start = wire.SETXATTR_IN.size + len(key) + 1
        n = self._nodes[h[3]]
        self._masked.pop(n, None)
        self._plain.discard(h[3])
        self._tree.setxattr(n, key, bytes(body[start : start + size]), flags)
        if more & wire.SETXATTR_ACL_KILL_SGID:
            mode = self._tree.attributes(n)[0].st_mode
            if mode & stat.S_ISGID:
                self._tree.setattr(n, mode=stat.S_IMODE(mode & ~stat.S_ISGID))
        return 0

    def removexattr(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        n = self._nodes[h[3]]
        self._masked.pop(n, None)
        self._tree.removexattr(n, bytes(body[:-1]))
        return 0

    # Directories

    def opendir(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        wire.OPEN_OUT.pack_into(out, 0, 0, 0, 0)
        return wire.OPEN_OUT.size

    def readdir(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        _, offset, size, *_ = wire.RW_IN.unpack_from(body)
        d = self._directory(h[3])
        out = out[:size]
        listing = self._listings.of(d, offset)
        at = 0
        for number, after, name in self._dots(d, offset):
            at = _plain(out, at, number, after, name, stat.S_IFDIR >> 12)
        for i in range(listing.after(offset), len(listing.names)):
            name = listing.names[i]
            if at + _PLAIN + len(name) + 8 > size:
                break
            found = number_of(self._tree, d, name)
            if found is not None:
                at = _plain(out, at, found[0], listing.offsets[i], name, found[1])
        if not at:
            self._listings.done(d)
        return at

    def _dots(self, d: DirNode, offset: int) -> list[tuple[int, int, bytes]]:
        if offset >= DOT_DOT:
            return []
        parent = d if d.parent is None else d.parent
        dots = [(d.ino, DOT, b"."), (parent.ino, DOT_DOT, b"..")]
        return dots[1:] if offset == DOT else dots

    def readdirplus(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        _, offset, size, *_ = wire.RW_IN.unpack_from(body)
        d = self._directory(h[3])
        tree, remember, valid = self._tree, self._table.remember, self._valid
        attributes, pack_into = wire.attributes, wire.DIRENTPLUS.pack_into
        listing = self._listings.of(d, offset)
        names, offsets = listing.names, listing.offsets
        at = 0
        for ino, after, name in self._dots(d, offset):
            pack_into(out, at, *[0] * 22, ino, after, len(name), stat.S_IFDIR >> 12)
            out[at + _PLUS : at + _PLUS + 8] = name.ljust(8, b"\0")
            at += _PLUS + 8
        shelf = self._table.shelf(d, listing) if self._sole else None
        place = self._table.place
        for i in range(listing.after(offset), len(names)):
            name = names[i]
            length = len(name)
            end = at + _PLUS + length
            if end + 8 > size:
                break
            try:
                number: int | None = None
                if shelf is not None and (seen := glance(tree, d, name)) is not None:
                    ino, st = seen
                    nlink, kind = 1, st.st_mode >> 12
                    number = place(shelf, i) if shelf.listing is listing else self._table.known(d, name)
                if number is None:
                    found = look_up(tree, d, name)
                    if found is None:
                        continue
                    n, st, nlink = found
                    ino, kind = n.ino, n.kind
                    number = remember(n)
            except OSError:
                # It is there, but can't be looked at: that is for who asks for it.
                pack_into(out, at, *[0] * 22, _NUMBERLESS, offsets[i], length, 0)
            else:
                pack_into(out, at, number, 0, *valid, *attributes(st, ino, nlink), ino, offsets[i], length, kind)
            out[at + _PLUS : end] = name
            at = (end + 7) & ~7
            out[end:at] = _PADDING[: at - end]
        if not at:
            self._listings.done(d)
            if shelf is not None:
                self._table.done(shelf)
        return at

    # The rest

    def nothing(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> None:
        """No answer is due: INTERRUPT, of what is being answered already."""

    def destroy(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        return 0


def _sized(out: memoryview, value: bytes, size: int) -> int:
    """A value, or its size for who asked with room for 0 bytes (getxattr(2))."""
    if not size:
        wire.GETXATTR_IN.pack_into(out, 0, len(value), 0)
        return wire.GETXATTR_IN.size
    if len(value) > size:
        raise fail(errno.ERANGE)
    out[: len(value)] = value
    return len(value)


def _plain(out: memoryview, at: int, number: int, offset: int, name: bytes, kind: int) -> int:
    """One entry of READDIR; where the next one goes."""
    wire.DIRENT.pack_into(out, at, number, offset, len(name), kind)
    end = at + _PLAIN + len(name)
    following = (end + 7) & ~7
    out[at + _PLAIN : following] = name + _PADDING[: following - end]
    return following

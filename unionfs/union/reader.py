"""The tree, read: nodes, lookups, metadata, data."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from unionfs.errors import LayerError
from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG, Layer, LayerDir, LayerFile, WritableLayer
from unionfs.union.handle import Handle
from unionfs.union.identity import Numbers, numbered, settle_number
from unionfs.union.links import Links
from unionfs.union.node import DirNode, FileNode, Node, Opened, Unknown
from unionfs.union.pathcache import PathCache
from unionfs.union.resolve import Code, Resolver, kind_of, merge, places, put_upper

if TYPE_CHECKING:
    from unionfs.union.restack import Follower

N = TypeVar("N", bound=Node)
T = TypeVar("T")

NAME_MAX = 255
MAX_SYMLINKS = 40

_PEEK_NOT = frozenset({DT_DIR, DT_LNK})


def _nothing() -> Layer:
    """A layer without entries: what is below an upper that stands alone."""
    from unionfs.layer.memory import MemoryLayer

    return MemoryLayer()


def fail(number: int, *names: bytes) -> OSError:
    """The ``OSError`` of this errno."""
    return OSError(number, os.strerror(number), *names)


class TreeReader:
    """Lookup, metadata, reading: what a read-only tree can do. ``Tree`` adds the changes.

    The lifecycle of a node: ``lookup`` makes it the first time somebody asks for the name, and every later ``lookup``
    of any of its names answers the same object; it keeps its ``ino`` through copy-up, rename and commit. An
    ``unlink`` of the last name leaves it ``dead``, alive only for those who have it open.

        root = tree.root
        etc = tree.lookup(root, b"etc")
        hosts = tree.lookup(etc, b"hosts")
        tree.stat(hosts).st_size
        handle = tree.open(hosts, os.O_RDONLY)
        handle.pread(100, 0)
        handle.close()

    Names are bytes. Errors are ``OSError``. Threads may share a tree: what changes the tree holds ``lock``, what only
    reads goes without where it can.
    """

    def __init__(
        self,
        lowers: Sequence[Layer],
        upper: WritableLayer | None = None,
        *,
        redirect_dir: bool = True,
        metacopy: bool = True,
    ) -> None:
        layers: list[Layer] = [*([upper] if upper is not None else []), *lowers]
        self.lock = threading.RLock()
        self.upper = upper
        self.redirect_dir = redirect_dir
        self.metacopy = metacopy
        self.resolver = Resolver(layers)
        self.numbers = Numbers(layers)
        self.cache = PathCache()
        self.changes = 0
        self.moves = 0
        self.links = Links(self)
        self.writers: set[FileNode] = set()
        self.orphans: set[FileNode] = set()
        self.lent: str | None = None
        """Who changes the upper instead of us, in words; changes then raise ``EBUSY``, until ``reread``."""
        self.remembered = False
        """Whether somebody goes on asking for what lost its last name without being open, as the kernel does."""
        self._below: TreeReader | None = None
        self.subscribers: list[Callable[[Node, bytes | None], None]] = []
        self.followers: list[Follower] = []
        self.root = DirNode(None, b"")
        self.root.srcs = self.resolver.roots()
        self.root.ino = self.numbers.root

    # What is known of a node

    def sources(self, d: DirNode) -> list[LayerDir]:
        """The layer directories that merge in ``d``, topmost first."""
        found = d.srcs
        if found is None:
            with self.lock:
                if d.srcs is None:
                    assert d.parent is not None
                    parents = self.sources(d.parent)
                    d.srcs = self.resolver.children(parents, d.name, d.holders)
                found = d.srcs
        return found

    def home_of(self, n: Node) -> tuple[LayerDir, bytes]:
        """Where the node's metadata are: a directory of a layer and a name in it."""
        if isinstance(n, FileNode):
            return n.home, n.lname
        assert isinstance(n, DirNode)
        if n.srcs is None and n.parent is not None:
            return self.sources(n.parent)[-1 - n.holders[0]], n.name
        top = self.sources(n)[0]
        return (top, b".") if top.parent is None else (top.parent, top.name)

    def in_upper(self, n: Node) -> bool:
        """Whether the upper has the object."""
        return self.home_of(n)[0].layer is self.upper

    def entries(self, d: DirNode) -> dict[bytes, Node | Code]:
        """All entries of ``d``, listed on the first call."""
        found = d.entries
        if found is None:
            with self.lock:
                if d.entries is None:
                    self.list_entries(d)
                found = d.entries
                assert found is not None
        return found

    def list_entries(self, d: DirNode) -> None:
        """Fill ``entries`` from the layers. The lock is held."""
        sources = self.sources(d)
        entries: dict[bytes, Code]
        if sources[0].layer is self.upper:
            entries = merge(sources[1:])
            d.shadow = put_upper(entries, sources[0].layer.scan(sources[0]), len(sources) - 1)
        else:
            entries = merge(sources)
            d.shadow = set()
        d.shadow_of = self.upper
        d.entries = entries  # type: ignore[assignment]

    def shadow(self, d: DirNode) -> set[bytes]:
        """Names that the present upper has something for, and the layers below too."""
        if d.shadow_of is not self.upper:
            d.shadow = set()
            d.shadow_of = self.upper
        return d.shadow

    # Lookup

    def lookup(self, d: Node, name: bytes) -> Node:
        """The node of ``name`` in ``d``. ``ENOENT``, ``ENOTDIR``, ``ENAMETOOLONG``."""
        if not isinstance(d, DirNode):
            raise fail(errno.ENOTDIR, name)
        found = self.entries(d).get(name)
        if isinstance(found, Node):
            return found
        if found is None:
            if name == b".":
                return d
            if name == b"..":
                return d if d.parent is None else d.parent
            raise fail(errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.ENOENT, name)
        return self.known(d, name, True)[0]

    def known(self, d: DirNode, name: bytes, keep: bool) -> tuple[Node, os.stat_result | None]:
        """The node of an entry; and its layer's word of it, if nobody asked for it before and it has one name.

        ``keep``: the node keeps that as its metadata. ``ENOENT``.
        """
        with self.lock:
            entries = self.entries(d)
            code = entries.get(name)
            if code is None:
                raise fail(errno.ENOENT, name)
            if isinstance(code, Node):
                return code, None
            if kind_of(code) == DT_DIR:
                directory = DirNode(d, name, places(code))
                home, lname = self.home_of(directory)
                settle_number(self, directory, home.layer.stat(home, lname))
                entries[name] = directory
                return directory, None
            home = self.sources(d)[-1 - places(code)[0]]
            changes = self.changes
            st = home.layer.stat(home, name)
            if st.st_nlink > 1:
                entries[name] = link = self.links.node(d, name, kind_of(code), home, name, st)
                return link, None
            node = FileNode(d, name, kind_of(code), home, name)
            settle_number(self, node, st)
            if st.st_size and not st.st_blocks:
                st = self._with_blocks(node, st)
            if keep and changes == self.changes:
                node.st = numbered(st, node.ino, self.numbers.device, 1)
            entries[name] = node
            return node, st

    def peek(self, d: DirNode, name: bytes) -> os.stat_result | None:
        """What ``stat(lookup(d, name))`` would answer, without a node to remember.

        ``None`` for directories and symbolic links, for what a node is known of, and for what takes one to know.
        """
        moves = self.moves
        entries = d.entries
        if entries is None:
            entries = self.entries(d)
        code = entries.get(name)
        if type(code) is not int:
            return None
        kind = code & 15
        if kind in _PEEK_NOT:
            return None
        sources = d.srcs
        if moves != self.moves or moves & 1 or sources is None:
            return None  # The entry may be of other sources.
        home = sources[-1 - (code >> 4)]
        layer = home.layer
        if layer.has_inos:
            return None
        try:
            st = layer.stat(home, name)
        except OSError:
            if moves == self.moves:
                raise
            return None
        if st.st_nlink > 1 or (not st.st_blocks and st.st_size):
            return None
        numbers = self.numbers
        ino = st.st_ino if st.st_dev == numbers.home else numbers.number(st)
        return numbered(st, ino, numbers.device, 1)

    def resolve(self, path: bytes, follow: bool = True, start: Node | None = None) -> Node:
        """The node at ``path``, symbolic links resolved inside the union; the last one only where ``follow``.

        ``start``: where a relative path begins; the root by default. ``ENOENT``, ``ENOTDIR``, ``ELOOP``,
        ``ENAMETOOLONG``.
        """
        if not path:
            raise fail(errno.ENOENT, path)
        node = self.root if start is None or path.startswith(b"/") else start
        todo = path.split(b"/")[::-1]
        links = 0
        must_be_dir = not todo[0]
        while todo:
            name = todo.pop()
            if not name:
                continue
            child = self.lookup(node, name)
            if child.kind == DT_LNK and (follow or any(todo) or must_be_dir):
                links += 1
                if links > MAX_SYMLINKS:
                    raise fail(errno.ELOOP, path)
                target = self.readlink(child)
                if target.startswith(b"/"):
                    node = self.root
                must_be_dir |= target.endswith(b"/") and not any(todo)
                todo += target.split(b"/")[::-1]
                continue
            node = child
        if must_be_dir and node.kind != DT_DIR:
            raise fail(errno.ENOTDIR, path)
        return node

    def resolve_parent(self, path: bytes) -> tuple[DirNode, bytes]:
        """The directory that ``path`` names an entry of, and that name, which may not exist. Slashes at the end go.

        ``EBUSY`` for the root, ``EINVAL`` where the last name is ``.``, ``ENOTEMPTY`` where it is ``..``.
        """
        if not path:
            raise fail(errno.ENOENT, path)
        parent, _, name = path.rstrip(b"/").rpartition(b"/")
        if not name:
            raise fail(errno.EBUSY, path)
        if name == b".":
            raise fail(errno.EINVAL, path)
        if name == b"..":
            raise fail(errno.ENOTEMPTY, path)
        node = self.resolve(parent) if parent else self.root
        if not isinstance(node, DirNode):
            raise fail(errno.ENOTDIR, path)
        return node, name

    # Metadata

    def stat(self, n: Node) -> os.stat_result:
        """Metadata of ``n`` as ``lstat`` gives them. ``st_nlink`` of a merged directory is 1, as overlayfs has it."""
        known = n.st
        if known is not None:
            return known
        changes = self.changes
        found, nlink = self.attributes(n)
        st = numbered(found, n.ino, self.numbers.device, nlink)
        keep = not (isinstance(n, FileNode) and n.uncached)
        if keep and changes == self.changes:
            n.st = st
            if changes != self.changes:
                n.st = None  # Who changed it may have looked before it was set.
        return st

    def attributes(self, n: Node) -> tuple[os.stat_result, int]:
        """A layer's word of ``n`` and the link count in the union; ``st_ino`` and ``st_dev`` are not the union's, and
        nothing is kept."""
        known = n.st
        if known is not None:
            return known, known.st_nlink
        if isinstance(n, FileNode) and n.names is None and n.parent is not None and not self.moves & 1:
            # The usual case of what follows.
            moves = self.moves
            try:
                st = n.home.layer.stat(n.home, n.lname)
            except OSError:
                pass
            else:
                if moves == self.moves and (st.st_blocks or not st.st_size or n.kind != DT_REG):
                    return st, 1
        return self.steadily(self._file_attributes if isinstance(n, FileNode) else self._dir_attributes, n)

    def steadily(self, look: Callable[[N], T], n: N) -> T:
        """``look(n)``, which goes by the place where ``n`` stands: once more, with the lock, if something moved
        meanwhile."""
        moves = self.moves
        if not moves & 1:
            try:
                found = look(n)
            except (OSError, IndexError):  # IndexError: a place in the sources of another stack.
                if moves == self.moves:
                    raise
            else:
                if moves == self.moves:
                    return found
        with self.lock:
            try:
                return look(n)
            except LayerError:
                if isinstance(n, DirNode | FileNode) and n.dead:
                    raise fail(errno.ENOENT, n.name) from None  # With its layer, after a restack.
                raise

    def _file_attributes(self, n: Node) -> tuple[os.stat_result, int]:
        assert isinstance(n, FileNode)
        if n.nameless:
            with self.lock:
                st = self.open_file(n).stat()
            return st, 0 if n.dead else st.st_nlink + n.nlink_delta
        st = n.home.layer.stat(n.home, n.lname)
        if st.st_size and not st.st_blocks and n.kind == DT_REG:
            st = self._with_blocks(n, st)
        return st, st.st_nlink + n.nlink_delta if n.names is not None else 1

    def open_file(self, n: FileNode) -> LayerFile:
        """What is left of a file without a name: an open file of it. ``ENOENT``. The lock is held."""
        if n.kept is not None:
            return n.kept
        for opened in n.open or ():
            try:
                return opened.file
            except OSError:
                continue  # Just being closed.
        raise fail(errno.ENOENT, n.name)

    def _with_blocks(self, n: FileNode, st: os.stat_result) -> os.stat_result:
        """A metacopy takes the room that its bytes take below."""
        try:
            data = self.data_of(n)
            if data is None:
                return st
            blocks = data[0].layer.stat(*data).st_blocks
        except OSError:
            return st  # Bytes that can't be found are an error where they are read.
        return os.stat_result((*st[:7], *st[7:10], st.st_atime, st.st_mtime, st.st_ctime, st.st_atime_ns,
                               st.st_mtime_ns, st.st_ctime_ns, st.st_blksize, blocks, st.st_rdev))  # fmt: skip

    def _dir_attributes(self, n: Node) -> tuple[os.stat_result, int]:
        assert isinstance(n, DirNode)
        if n.dead:
            raise fail(errno.ENOENT, n.name)
        home, lname = self.home_of(n)
        sources = n.srcs
        if sources is None and (len(n.holders) > 1 or (home.layer.has_inos and n.parent is not None)):
            sources = self.sources(n)  # Several have it, or it may have a redirect: does it merge?
        st = home.layer.stat(home, lname)
        merged = sources is not None and len(sources) > 1
        return st, 1 if merged else st.st_nlink

    def touched(self, n: Node) -> None:
        """The metadata of ``n`` have changed."""
        self.changes += 1
        n.st = None
        if n.keys is not None:
            self.cache.drop(n)
        for tell in self.subscribers:
            tell(n, None)

    def accessed(self, n: Node) -> None:
        """The access time of ``n`` may have changed."""
        self.changes += 1
        n.st = None
        if n.keys is not None:
            self.cache.drop(n)

    def listdir(self, d: DirNode) -> list[tuple[bytes, int, int]]:
        """``(name, inode number or 0, DT_*)`` of all entries, without ``.`` and ``..``."""
        with self.lock:
            return [
                (name, entry.ino, entry.kind) if isinstance(entry, Node) else (name, 0, kind_of(entry))
                for name, entry in self.entries(d).items()
            ]

    def readlink(self, n: Node) -> bytes:
        """The target of a symbolic link. ``EINVAL`` for anything else."""
        if not isinstance(n, FileNode) or n.kind != DT_LNK:
            raise fail(errno.EINVAL, n.name)
        return self.steadily(lambda n: n.home.layer.readlink(n.home, n.lname), n)

    def listxattr(self, n: Node) -> list[bytes]:
        """Names of extended attributes, overlayfs's own not among them."""

        def look(n: Node) -> list[bytes]:
            if isinstance(n, FileNode) and n.nameless:
                with self.lock:
                    return self.open_file(n).listxattr()
            home, name = self.home_of(n)
            return home.layer.listxattr(home, name)

        return self.steadily(look, n)

    def getxattr(self, n: Node, key: bytes) -> bytes:
        """The value of an extended attribute. ``ENODATA``, ``EOPNOTSUPP``."""

        def look(n: Node) -> bytes:
            if isinstance(n, FileNode) and n.nameless:
                with self.lock:
                    return self.open_file(n).getxattr(key)
            home, name = self.home_of(n)
            return home.layer.getxattr(home, name, key)

        return self.steadily(look, n)

    def statvfs(self) -> os.statvfs_result:
        """Room and limits, of the upper or else the topmost layer."""
        return self.resolver.layers[0].statvfs()

    def lower_path(self, d: DirNode) -> bytes:
        """The path of ``d`` in the layers below the upper: what a redirect says."""
        names: list[bytes] = []
        while d.parent is not None:
            top = self.sources(d)[0]
            redirect = top.layer.marks(top, b".").redirect if top.layer is self.upper else None
            names.append(redirect or d.name)
            if redirect is not None and redirect.startswith(b"/"):
                return b"/".join(reversed(names))
            d = d.parent
        return b"".join(b"/" + name for name in reversed(names))

    # Data

    def data_of(self, n: FileNode) -> tuple[LayerDir, bytes] | None:
        """Where the bytes of a metacopy are; ``None`` for a file that has its own. ``EIO`` when no layer has them."""
        found = n.data
        if isinstance(found, Unknown):
            with self.lock:
                found = n.data = self._find_data(n)
        return found

    def _find_data(self, n: FileNode) -> tuple[LayerDir, bytes] | None:
        if n.kind != DT_REG:
            return None
        names = [(n.parent, n.name), *(n.names or ())]
        for d, name in names:
            below: list[LayerDir] = []
            if d is not None:
                below = self.sources(d)
                for i, source in enumerate(below):
                    if source.layer is n.home.layer:
                        below = below[i + 1 :]
                        break
            try:
                return self.resolver.data_of(n.home, n.lname, below, name)
            except LookupError as error:
                missing = error
        raise OSError(errno.EIO, str(missing), n.name) from missing

    def open_data(self, n: FileNode) -> LayerFile:
        """Open the bytes of ``n``, where they are now, for reading. ``ENOENT`` when it has no name any more."""
        if n.nameless and n.home.layer is self.upper:
            raise fail(errno.ENOENT, n.name)
        home, name = self.data_of(n) or (n.home, n.lname)
        return home.layer.open(home, name, os.O_RDONLY)

    def open(self, n: Node, flags: int) -> Handle:
        """Open a regular file; for writing, it is copied up first. Flags as open(2): access mode, ``O_TRUNC``,
        ``O_APPEND``.

        ``EISDIR``, ``ELOOP`` (a symbolic link), ``ENXIO`` (a device, FIFO or socket: they have no bytes here),
        ``EROFS``.
        """
        if isinstance(n, DirNode):
            raise fail(errno.EISDIR, n.name)
        assert isinstance(n, FileNode)
        if n.kind != DT_REG:
            raise fail(errno.ELOOP if n.kind == DT_LNK else errno.ENXIO, n.name)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            return self._open_to_write(n, flags)
        while True:
            if n.dead:
                with self.lock:
                    return self.reopen(n, flags)
            home, data = n.home, self.data_of(n)
            handle = Handle(self, n, flags, self.steadily(self.open_data, n))
            if n.home is home and n.data is data:
                return handle
            handle.close()  # Copied up in between.

    def reopen(self, n: FileNode, flags: int) -> Handle:
        """Open once more what has no name but is open (``/proc/PID/fd``, proc(5)). ``ENOENT``. The lock is held."""
        for opened in n.open or ():
            try:
                file = opened.file
            except OSError:
                continue  # Just being closed.
            return Handle(self, n, flags, file.reopen(flags & (os.O_ACCMODE | os.O_TRUNC)))
        raise fail(errno.ENOENT, n.name)

    def _open_to_write(self, n: FileNode, flags: int) -> Handle:  # noqa: ARG002
        raise fail(errno.EROFS, n.name)

    def opened(self, n: FileNode, opened: Opened) -> None:
        """``opened`` reads or writes ``n`` from now on."""
        with self.lock:
            n.open = [*(n.open or ()), opened]
            if opened.flags & os.O_ACCMODE != os.O_RDONLY:
                self.writers.add(n)

    def released(self, n: FileNode, opened: Opened) -> None:
        """``opened`` does so no more."""
        with self.lock:
            n.open = [other for other in n.open or () if other is not opened] or None
            if not any(other.flags & os.O_ACCMODE != os.O_RDONLY for other in n.open or ()):
                self.writers.discard(n)
            if n.open is None:
                n.kept = None
                self.orphans.discard(n)
                if n.unnamed is not None and self.upper is not None:
                    self.upper.discard(n.unnamed)
            if opened.flags & os.O_ACCMODE != os.O_RDONLY:
                self.touched(n)

    # The tree without its upper

    def below(self) -> TreeReader:
        """The layers below the upper as a tree of their own, to compare with."""
        with self.lock:
            if self._below is None:
                lowers = [layer for layer in self.resolver.layers if layer is not self.upper]
                self._below = TreeReader(lowers or [_nothing()])
            return self._below

    def forget_below(self) -> None:
        """The layers below are others now."""
        self._below = None

    # Life

    def subscribe(self, tell: Callable[[Node, bytes | None], None]) -> None:
        """Call ``tell(node, None)`` when a node's metadata or bytes change, ``tell(directory, name)`` when an entry
        does.

        Called with the tree's lock held or not; it must not change the tree.
        """
        self.subscribers.append(tell)

    def unsubscribe(self, tell: Callable[[Node, bytes | None], None]) -> None:
        """Call ``tell`` no more."""
        self.subscribers = [other for other in self.subscribers if other != tell]

    def follow(self, follower: Follower) -> None:
        """Tell ``follower`` when the tree becomes that of another stack (``union.restack``)."""
        self.followers = [*self.followers, follower]

    def unfollow(self, follower: Follower) -> None:
        """Tell it no more."""
        self.followers = [other for other in self.followers if other is not follower]

    def sync(self) -> None:
        """Everything of the upper to disk."""
        if self.upper is not None:
            self.upper.sync()

    def close(self) -> None:
        """Let go of all layers; nothing works after it."""
        for layer in self.resolver.layers:
            layer.close()

"""The path API over the tree, its reading half."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import AnyStr, overload

from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG
from unionfs.types import DiskUsage
from unionfs.union.naming import AnyPath, encoded, named, plain, told
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.reader import MAX_SYMLINKS, fail
from unionfs.union.tree import Tree

_ENCODING = sys.getfilesystemencoding()
_ERRORS = sys.getfilesystemencodeerrors()
_NO_ENTRY = os.strerror(errno.ENOENT)
# What os.path.exists and its like take for "no" (genericpath).
_NO = (OSError, ValueError)


def replaced(n: Node) -> bool:
    """Whether what was found under a path has lost its name since; perhaps another has the name now."""
    return isinstance(n, FileNode) and n.nameless


class Reading:
    """What can be asked about paths. Errors are ``OSError`` with the path as it was given."""

    tree: Tree
    """The core: every operation on (directory node, name) or an open handle; what mount engines work on."""

    # From paths to nodes

    def node(self, path: AnyPath, *, follow_symlinks: bool = True) -> Node:
        """The node at ``path``, for use with ``tree``."""
        with named(self, path):
            return self._node(path, follow_symlinks)

    def _node(self, path: AnyPath, follow: bool = True) -> Node:
        tree = self.tree
        if type(path) is str:
            head, _, tail = path.rpartition("/")
            if tail:
                d = tree.cache.dirs.get(head)
                if d is None:
                    encoded(self, path)
                    d = self._directory(head)
                name = tail.encode(_ENCODING, _ERRORS)
                n = tree.lookup(d, name)
                return tree.resolve(name, start=d) if follow and n.kind == DT_LNK else n
        return tree.resolve(encoded(self, path), follow)

    def _directory(self, path: str) -> DirNode:
        """The directory at ``path``, ``""`` for the root; kept, so that its entries are one step away."""
        tree = self.tree
        cache = tree.cache
        found = cache.dirs.get(path)
        if found is not None:
            return found
        changes = tree.changes
        n: Node = tree.root
        if path:
            head, _, tail = path.rpartition("/")
            above = cache.dirs.get(head) if tail else None
            raw = (tail if above is not None else path).encode(_ENCODING, _ERRORS)
            n = tree.resolve(raw, start=above)
        if not isinstance(n, DirNode):
            raise fail(errno.ENOTDIR)
        if changes == tree.changes:
            cache.dirs[path] = n
            if changes != tree.changes:
                cache.dirs.pop(path, None)
        return n

    def _entry(self, path: AnyPath, special: int) -> tuple[DirNode, bytes, bool]:
        """The directory that ``path`` names an entry of, the name, and whether a slash ends the path.

        ``special``: the errno for what is no name: the root, ``.`` and ``..``; with 0 they are names too.
        """
        return self._entry_from(None, encoded(self, path), special)

    def _entry_from(self, start: DirNode | None, path: bytes, special: int) -> tuple[DirNode, bytes, bool]:
        """The same for a path that begins at ``start``, unless it is absolute."""
        bare = path.rstrip(b"/")
        head, _, name = bare.rpartition(b"/")
        if not name:
            if special or not path:
                raise fail(special or errno.ENOENT)
            return self.tree.root, b".", True
        d: Node
        if start is None or path.startswith(b"/"):
            d = self._directory(os.fsdecode(head))
        else:
            d = self.tree.resolve(head, start=start) if head else start
        if not isinstance(d, DirNode):
            raise fail(errno.ENOTDIR)
        if special and name in (b".", b".."):
            raise fail(special)
        return d, name, len(bare) < len(path)

    # Metadata

    def stat(self, path: AnyPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """As ``os.stat``. ``st_ino`` and ``st_dev`` stay for life; a merged directory's ``st_nlink`` is 1."""
        if follow_symlinks:
            tree = self.tree
            cache = tree.cache
            known = cache.hits.get(path)  # type: ignore[arg-type]
            if known is not None:
                return known
            if path in cache.missing:
                raise FileNotFoundError(errno.ENOENT, _NO_ENTRY, path)
            if path not in cache.seen and type(path) is str:
                # Asked for the first time: answered, if that is easy, and forgotten.
                cache.see(path)
                head, _, tail = path.rpartition("/")
                d = cache.dirs.get(head)
                if d is not None:
                    try:
                        glimpse = tree.peek(d, tail.encode(_ENCODING, _ERRORS))
                    except OSError as error:
                        raise told(self, error, path) from None
                    if glimpse is not None:
                        return glimpse
        return self._stat(path, follow_symlinks)

    def lstat(self, path: AnyPath) -> os.stat_result:
        """As ``os.lstat``: of a symbolic link itself."""
        return self._stat(path, False)

    def _stat(self, path: AnyPath, follow: bool) -> os.stat_result:
        tree = self.tree
        changes = tree.changes
        try:
            while True:
                n = self._node(path, follow)
                try:
                    st = n.st or tree.stat(n)
                    break
                except FileNotFoundError:
                    if not replaced(n):
                        raise
        except OSError as error:
            if error.errno == errno.ENOENT and follow and type(path) is str and changes == tree.changes:
                tree.cache.keep_missing(path)
                if changes != tree.changes:
                    tree.cache.missing.discard(path)
            raise told(self, error, path) from None
        if follow and type(path) is str and n.st is not None and changes == tree.changes:
            tree.cache.keep(path, n, st)
            if changes != tree.changes:
                tree.cache.drop(n)
        return st

    def exists(self, path: AnyPath, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such a path; for a symbolic link, what it leads to."""
        try:
            self.stat(path, follow_symlinks=follow_symlinks)
        except _NO:
            return False
        return True

    def lexists(self, path: AnyPath) -> bool:
        """Whether there is such a path, be it a symbolic link that leads nowhere."""
        return self.exists(path, follow_symlinks=False)

    def isfile(self, path: AnyPath) -> bool:
        """Whether ``path`` is, or leads to, a regular file."""
        return self._kind(path) == DT_REG

    def isdir(self, path: AnyPath) -> bool:
        """Whether ``path`` is, or leads to, a directory."""
        return self._kind(path) == DT_DIR

    def islink(self, path: AnyPath) -> bool:
        """Whether ``path`` is a symbolic link."""
        return self._kind(path, follow=False) == DT_LNK

    def _kind(self, path: AnyPath, follow: bool = True) -> int | None:
        if follow:
            known = self.tree.cache.hits.get(path)  # type: ignore[arg-type]
            if known is not None:
                return known.st_mode >> 12
        try:
            return self._node(path, follow).kind
        except _NO:
            return None

    def samefile(self, path: AnyPath, path2: AnyPath) -> bool:
        """Whether both lead to the same object."""
        first, second = self.stat(path), self.stat(path2)
        return os.path.samestat(first, second)

    def access(self, path: AnyPath, mode: int, *, follow_symlinks: bool = True) -> bool:
        """Whether permission bits let this process do ``mode`` (``os.F_OK``, ``os.R_OK`` …); as ``os.access``.

        It is what the mode and owner say: the union itself does not check them (see ``UnionFS``).
        """
        try:
            st = self.stat(path, follow_symlinks=follow_symlinks)
        except OSError:
            return False
        if mode & os.W_OK and self.tree.upper is None:
            return False
        bits = st.st_mode & 0o777
        if os.geteuid() == 0:
            return not mode & os.X_OK or stat.S_ISDIR(st.st_mode) or bits & 0o111 != 0
        if st.st_uid == os.geteuid():
            bits >>= 6
        elif st.st_gid == os.getegid() or st.st_gid in os.getgroups():
            bits >>= 3
        return mode & bits & 7 == mode

    def readlink(self, path: AnyStr | os.PathLike[AnyStr]) -> AnyStr:
        """The target of a symbolic link. ``EINVAL`` for anything else."""
        with named(self, path):
            return self._like(path, self.tree.readlink(self._node(path, False)))

    def realpath(self, path: AnyStr | os.PathLike[AnyStr], *, strict: bool = False) -> AnyStr:
        """The canonical absolute path: no symbolic links, ``.`` or ``..``; they are resolved inside the union.

        Without ``strict``, what does not exist stays as it is, and so does a loop; with it, they are errors.
        """
        with named(self, path):
            return self._like(path, self._realpath(encoded(self, path), strict))

    def _realpath(self, path: bytes, strict: bool) -> bytes:
        n: Node = self.tree.root
        missing: list[bytes] = []
        todo = path.split(b"/")[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name == b".." and missing:
                missing.pop()
            elif missing and name not in (b"", b"."):
                missing.append(name)
            elif name:
                try:
                    child = self.tree.lookup(n, name)
                    if child.kind == DT_LNK:
                        links += 1
                        if links > MAX_SYMLINKS:
                            raise fail(errno.ELOOP)
                        target = self.tree.readlink(child)
                        n = self.tree.root if target.startswith(b"/") else n
                        todo += target.split(b"/")[::-1]
                    else:
                        n = child
                except OSError:
                    if strict:
                        raise
                    missing.append(name)
        return os.path.join(n.path, *missing)

    def _like(self, path: AnyStr | os.PathLike[AnyStr], answer: bytes) -> AnyStr:
        """``answer`` in the type of ``path``."""
        return answer if isinstance(plain(self, path), bytes) else os.fsdecode(answer)  # type: ignore[return-value]

    # Listings

    @overload
    def listdir(self) -> list[str]: ...
    @overload
    def listdir(self, path: AnyStr | os.PathLike[AnyStr]) -> list[AnyStr]: ...
    def listdir(self, path: AnyPath = "/") -> list[str] | list[bytes]:  # type: ignore[misc]
        """The names in a directory, in no order; ``bytes`` if ``path`` is."""
        with named(self, path):
            names = [name for name, _, _ in self.tree.listdir(self._opendir(path))]
        if isinstance(plain(self, path), bytes):
            return names
        return [name.decode(_ENCODING, _ERRORS) for name in names]

    def _opendir(self, path: AnyPath) -> DirNode:
        if type(path) is str and path:
            encoded(self, path)
            return self._directory(path)
        n = self._node(path)
        if not isinstance(n, DirNode):
            raise fail(errno.ENOTDIR)
        return n

    # Attributes and room

    def getxattr(self, path: AnyPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """The value of an extended attribute. ``ENODATA``. overlayfs's own attributes are not shown."""
        with named(self, path):
            return self.tree.getxattr(self._node(path, follow_symlinks), os.fsencode(attribute))

    def listxattr(self, path: AnyPath = "/", *, follow_symlinks: bool = True) -> list[str]:
        """The names of the extended attributes."""
        with named(self, path):
            return [os.fsdecode(key) for key in self.tree.listxattr(self._node(path, follow_symlinks))]

    def statvfs(self, path: AnyPath = "/") -> os.statvfs_result:
        """Room and limits, of the upper or else the topmost layer (statvfs(3))."""
        with named(self, path):
            self._node(path)
            return self.tree.statvfs()

    def disk_usage(self, path: AnyPath = "/") -> DiskUsage:
        """Total, used and free bytes, as ``shutil.disk_usage``."""
        st = self.statvfs(path)
        used = (st.f_blocks - st.f_bfree) * st.f_frsize
        return DiskUsage(st.f_blocks * st.f_frsize, used, st.f_bavail * st.f_frsize)

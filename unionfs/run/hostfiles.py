"""Objects of a union made on the host: one at a time, beneath a root, never through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from unionfs._sys.data import copy_data, write_all
from unionfs.layer.descriptors import Fd

if TYPE_CHECKING:
    from unionfs.union.node import FileNode, Node
    from unionfs.union.tree import Tree

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_NO_XATTRS = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


class HostRoot:
    """Directories below a root of the host, each opened from its parent."""

    def __init__(self, root: str) -> None:
        self.path = root
        self._root = Fd(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._last: tuple[bytes, Fd] = (b"", self._root)

    def directory(self, path: bytes) -> Fd:
        """``path`` (``b""`` or ``b"/a/b"``), open. Hold the answer for as long as its number is in use.

        Raises ``OSError``; ``ENOTDIR`` or ``ELOOP`` where a symbolic link stands in the way.
        """
        if path == self._last[0]:
            return self._last[1]
        at = self._root
        for name in path.split(b"/")[1:]:
            at = Fd(os.open(name, _OPEN_DIR, dir_fd=at.n))
        self._last = (path, at)
        return at

    def entry(self, path: bytes) -> tuple[Fd, bytes]:
        """The directory that ``path`` is in, open, and its name there; the root is ``b"."`` in itself."""
        parent, _, name = path.rpartition(b"/")
        return self.directory(parent), name or b"."

    def stat(self, path: bytes) -> os.stat_result | None:
        """``lstat`` of ``path``; ``None`` where there is nothing."""
        try:
            fd, name = self.entry(path)
            return os.stat(name, dir_fd=fd.n, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise


def temp_name() -> bytes:
    """A name for what is being made, that says whose it is."""
    return b".unionfs-apply-" + os.urandom(6).hex().encode()


def make(tree: Tree, n: Node, d: Fd, name: bytes) -> None:
    """Make ``n`` as a new entry of the host's directory ``d``, metadata and all; a directory is made empty and closed
    to others, to be dressed when it is full. Raises ``OSError``."""
    st = tree.stat(n)
    kind = stat.S_IFMT(st.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=d.n)
        return
    if kind == stat.S_IFREG:
        _copy(tree, n, d, name)
    elif kind == stat.S_IFLNK:
        os.symlink(tree.readlink(n), name, dir_fd=d.n)
    else:
        os.mknod(name, kind | 0o600, st.st_rdev, dir_fd=d.n)
    dress(tree, n, d, name)


def _copy(tree: Tree, n: Node, d: Fd, name: bytes) -> None:
    node: FileNode = n  # type: ignore[assignment]  # a regular file
    source = tree.open_data(node)
    target = Fd(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=d.n))
    try:
        number = source.fileno()
        st = source.stat()
        if number is not None:
            copy_data(number, target.n, st)
        else:
            for offset in range(0, st.st_size, _CHUNK):
                write_all(target.n, source.pread(_CHUNK, offset), offset)
    finally:
        source.close()


def dress(tree: Tree, n: Node, d: Fd, name: bytes) -> None:
    """Give the host's entry the owner, mode, attributes and times of ``n``, in the order that keeps them."""
    st = tree.stat(n)
    now = os.stat(name, dir_fd=d.n, follow_symlinks=False)
    if (now.st_uid, now.st_gid) != (st.st_uid, st.st_gid):
        os.chown(name, st.st_uid, st.st_gid, dir_fd=d.n, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(name, stat.S_IMODE(st.st_mode), dir_fd=d.n)
    path = b"/proc/self/fd/%d/%s" % (d.n, name)
    wanted = {key: tree.getxattr(n, key) for key in tree.listxattr(n)}
    for key in _attributes(path):
        if key not in wanted:
            os.removexattr(path, key, follow_symlinks=False)
    for key, value in wanted.items():
        if _attribute(path, key) != value:
            os.setxattr(path, key, value, follow_symlinks=False)
    os.utime(name, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=d.n, follow_symlinks=False)


def _attributes(path: bytes) -> list[bytes]:
    try:
        return [os.fsencode(key) for key in os.listxattr(path, follow_symlinks=False)]
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return []
        raise


def _attribute(path: bytes, key: bytes) -> bytes | None:
    try:
        return os.getxattr(path, key, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return None
        raise

"""libfuse 2's path-based requests, translated into operations on nodes and handles of ``Tree``.

One method for each request, in the form fusepy calls it with ``raw_fi``. Paths and names arrive as text in latin-1,
one character a byte, so that any file name comes through; ``Tree`` gets the bytes.

**Open files that lose their name.** libfuse finds a file by its path, so by itself it can't ``fstat``, ``fchmod`` or
``fsetxattr`` an open file that was unlinked. Instead of ``unlink`` it asks for a rename to ``.fuse_hidden`` and 16 hex
digits ("hard_remove" in libfuse's documentation). Here that rename *is* the unlink, and the hidden name stays known to
this object alone, for the node: nothing shows in the directory or on disk, the link count is right, and the open file
can do all it could before. What libfuse 2 leaves out of reach:

- a rename over a file that somebody has open is two requests, hide and rename: the mount shows no gap, since the
  kernel holds the directory, but a rename that fails for want of space, or a crash, finds the old file gone;
- after ``rmdir`` of its directory, an open unlinked file can be read, written and truncated only; an open directory
  that was removed can't be asked for its attributes;
- each name of a hard link is a file of its own to the kernel, with its own cached pages: who has read from one name
  and keeps the file open may miss what is written by another name, until it is opened again;
- an open file whose name the Python API gives to another, itself or by another stack (``UnionFS.restack``): reading and
  writing go to the right file, but ``fstat`` and ``fchmod`` go by the name; and the kernel gives the file up if the
  name is then of another type;
- POSIX ACLs are kept and shown, but the kernel checks mode bits alone, and the umask applies where a default ACL is;
- ``fallocate(2)``, ``SEEK_HOLE``, ``renameat2(2)`` flags and ``O_TMPFILE`` are not passed on (fusepy 3.0.1, FUSE 7.19).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from unionfs.mount.failing import told
from unionfs.union.serving import attributes_shown, kill_privileges

if TYPE_CHECKING:
    from unionfs.union.handle import Handle
    from unionfs.union.node import DirNode, FileNode, Node
    from unionfs.union.tree import Tree

log = logging.getLogger(__name__)

_HIDDEN = re.compile(r"\.fuse_hidden[0-9a-f]{16}\Z")
_FORWARDED = os.O_ACCMODE | os.O_TRUNC  # The kernel does O_APPEND, O_DIRECT and O_SYNC itself, in offsets and fsyncs.
_ID_UNCHANGED = -1
_DT_DIR = stat.S_IFDIR >> 12
# utimensat(2)'s marks in tv_nsec, with the tv_sec of 0 that libfuse gives them, as fusepy's one number. An honest
# time of exactly 1.073741822 or ...823 seconds after 1970 can't be told from them.
_UTIME_NOW = 0x3FFFFFFF
_UTIME_OMIT = 0x3FFFFFFE
_CLOCK_REALTIME_COARSE = 5  # The clock that the kernel stamps files with; Python's time module does not name it.


def _fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _time(value: int) -> int | None:
    if value == _UTIME_OMIT:
        return None
    if value == _UTIME_NOW:
        return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
    return value


def _attributes(st: os.stat_result, extra_links: int = 0) -> dict[str, int]:
    return {
        "st_mode": st.st_mode,
        "st_ino": st.st_ino,
        "st_nlink": st.st_nlink + extra_links,
        "st_uid": st.st_uid,
        "st_gid": st.st_gid,
        "st_rdev": st.st_rdev,
        "st_size": st.st_size,
        "st_blksize": st.st_blksize,
        "st_blocks": st.st_blocks,
        "st_atime": st.st_atime_ns,
        "st_mtime": st.st_mtime_ns,
        "st_ctime": st.st_ctime_ns,
    }


class _Hiding(NamedTuple):
    """Who has hidden what; ``parent``: the directory's metadata before."""

    thread: int
    node: Node
    parent: os.stat_result


class PathOperations:
    """The operations object that fusepy calls.

    ``caller`` returns the requesting process's ``(uid, gid, pid)``. ``sole``: nobody changes the tree but through this
    mount, so the kernel may keep a file's pages from one open to the next. ``on_init`` is called when the kernel has
    begun to talk to us.
    """

    use_ns = True  # fusepy: times are integers, in nanoseconds.
    # fuse_operations' flags (fuse.h): requests on open files carry no path, and utimens gets UTIME_NOW and UTIME_OMIT.
    flag_nullpath_ok = 1
    flag_nopath = 1
    flag_utime_omit_ok = 1

    def __init__(
        self,
        tree: Tree,
        caller: Callable[[], tuple[int, int, int]],
        *,
        sole: bool,
        on_init: Callable[[], None],
    ) -> None:
        self._tree = tree
        self._caller = caller
        self._sole = sole
        self._on_init = on_init
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._handles: dict[int, Handle] = {}
        self._directories: dict[int, DirNode] = {}
        self._open_count: dict[Node, int] = {}
        self._hidden: dict[str, Node] = {}
        self._just_hidden: dict[str, _Hiding] = {}
        self._linked: set[int] = set()

    def __call__(self, operation: str, *args: Any) -> Any:
        resolver = self._tree.resolver
        try:
            return getattr(self, operation)(*args)
        except OSError as error:
            if error.errno == errno.ENOENT and self._tree.resolver is not resolver:
                raise _fail(errno.ESTALE) from None  # The kernel looks again in the other stack (``retry_estale``).
            if error.errno:
                raise
            failure: BaseException = error
        except BaseException as error:  # noqa: BLE001  # One bad request must not take the mount down.
            failure = error
        told(operation, args[:1], failure)
        raise _fail(errno.EIO)

    def init(self, _path: str) -> int:
        self._on_init()
        return 0

    def close(self) -> None:
        """Close what the kernel did not release before the mount ended."""
        with self._lock:
            handles = list(self._handles.values())
            self._handles.clear()
            self._directories.clear()
            self._open_count.clear()
            self._hidden.clear()
            self._just_hidden.clear()
        for handle in handles:
            handle.close()

    # Names

    def _node(self, path: str) -> Node:
        if self._hidden and (node := self._hidden.get(path.rpartition("/")[2])) is not None:
            return node
        return self._tree.resolve(path.encode("latin-1"), follow=False)

    def _directory(self, path: str) -> DirNode:
        node: Any = self._node(path)
        return node  # type: ignore[no-any-return]  # Tree answers ENOTDIR where it is none.

    def _parent(self, path: str) -> tuple[DirNode, bytes]:
        return self._tree.resolve_parent(path.encode("latin-1"))

    def link(self, new: str, old: str) -> int:
        node = self._node(old)
        self._linked.add(self._tree.stat(node).st_ino)
        self._tree.link(node, *self._parent(new))
        return 0

    def unlink(self, path: str) -> int:
        name = path.rpartition("/")[2]
        with self._lock:
            if self._hidden.pop(name, None) is not None:
                return 0
        self._tree.unlink(*self._parent(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        if self._hide(old, new):
            return 0
        hiding = self._just_hidden.pop(new, None)
        if hiding is not None and hiding.thread == threading.get_ident() and self._node(old) is hiding.node:
            # Both names are of one file: rename(2) does nothing then. libfuse did not know, and had the new one hidden.
            d, name = self._parent(new)
            self._tree.link(hiding.node, d, name)
            self._tree.setattr(d, atime_ns=hiding.parent.st_atime_ns, mtime_ns=hiding.parent.st_mtime_ns)
            return 0
        self._tree.rename(*self._parent(old), *self._parent(new))
        return 0

    def _hide(self, old: str, new: str) -> bool:
        directory, _, name = new.rpartition("/")
        if not _HIDDEN.match(name) or directory != old.rpartition("/")[0]:
            return False
        node = self._node(old)
        if not self._open_count.get(node):
            return False  # A person's own rename to such a name.
        d, old_name = self._parent(old)
        before = self._tree.stat(d)
        self._tree.unlink(d, old_name)
        with self._lock:
            self._hidden[name] = node
            self._just_hidden[old] = _Hiding(threading.get_ident(), node, before)
        return True

    def mkdir(self, path: str, mode: int) -> int:
        uid, gid, _ = self._caller()
        self._tree.mkdir(*self._parent(path), stat.S_IMODE(mode), uid, gid)
        return 0

    def rmdir(self, path: str) -> int:
        self._tree.rmdir(*self._parent(path))
        return 0

    def mknod(self, path: str, mode: int, rdev: int) -> int:
        uid, gid, _ = self._caller()
        self._tree.mknod(*self._parent(path), mode, rdev, uid, gid)
        return 0

    def symlink(self, path: str, target: str) -> int:
        uid, gid, _ = self._caller()
        d, name = self._parent(path)
        self._tree.symlink(d, name, target.encode("latin-1"), uid, gid)
        return 0

    def readlink(self, path: str) -> str:
        return self._tree.readlink(self._node(path)).decode("latin-1")

    # Metadata

    def getattr(self, path: str | None, fi: Any = None) -> dict[str, int]:
        if fi is not None and (handle := self._handles.get(fi.fh)) is not None:
            return _attributes(handle.stat())
        assert path is not None
        if self._hidden:
            # Between hiding a name and renaming another to it, libfuse asks for nothing.
            self._just_hidden.pop(path, None)
            if path.rpartition("/")[2] in self._hidden:
                # libfuse takes one link off a hidden name before it answers.
                return _attributes(self._tree.stat(self._node(path)), extra_links=1)
        return _attributes(self._tree.stat(self._node(path)))

    def chmod(self, path: str, mode: int) -> int:
        self._tree.setattr(self._node(path), mode=stat.S_IMODE(mode))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        self._tree.setattr(
            self._node(path),
            uid=None if uid == _ID_UNCHANGED else uid,
            gid=None if gid == _ID_UNCHANGED else gid,
        )
        return 0

    def utimens(self, path: str, times: tuple[int, int]) -> int:
        atime, mtime = map(_time, times)
        self._tree.setattr(self._node(path), atime_ns=atime, mtime_ns=mtime)
        return 0

    def truncate(self, path: str | None, length: int, fi: Any = None) -> int:
        if fi is not None:
            self._handles[fi.fh].truncate(length)
        else:
            assert path is not None
            self._tree.setattr(self._node(path), size=length)
        return 0

    def getxattr(self, path: str, name: str) -> bytes:
        return self._tree.getxattr(self._node(path), name.encode("latin-1"))

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> int:
        self._tree.setxattr(self._node(path), name.encode("latin-1"), value, flags)
        return 0

    def listxattr(self, path: str) -> list[str]:
        keys = attributes_shown(self._tree, self._node(path), self._caller()[0])
        return [key.decode("latin-1") for key in keys]

    def removexattr(self, path: str, name: str) -> int:
        self._tree.removexattr(self._node(path), name.encode("latin-1"))
        return 0

    def statfs(self, _path: str) -> dict[str, int]:
        found = self._tree.statvfs()
        fields = "bsize frsize blocks bfree bavail files ffree favail namemax"
        return {f"f_{field}": getattr(found, f"f_{field}") for field in fields.split()}

    # Open files

    def create(self, path: str, mode: int, fi: Any) -> int:
        d, name = self._parent(path)
        uid, gid, _ = self._caller()
        flags = fi.flags & _FORWARDED
        try:
            node, handle = self._tree.create(d, name, stat.S_IMODE(mode), flags, uid, gid)
        except FileExistsError:
            # FUSE's create is open(2) with O_CREAT: without O_EXCL, a file that came up meanwhile is opened.
            if fi.flags & os.O_EXCL:
                raise
            return self.open(path, fi)
        self._register(node, handle, fi)
        return 0

    def open(self, path: str, fi: Any) -> int:
        node: Any = self._node(path)
        handle = self._tree.open(node, fi.flags & _FORWARDED)
        if fi.flags & os.O_TRUNC and self._caller()[0] != 0:
            kill_privileges(self._tree, node)  # The kernel does it for all that changes a file but this.
        self._register(node, handle, fi)
        return 0

    def _register(self, node: FileNode, handle: Handle, fi: Any) -> None:
        if self._sole:
            # For libfuse each name of a hard link is a file of its own, with its own pages in the kernel's cache.
            # What was ever seen with two names is read anew at each open.
            seen = self._tree.stat(node)
            if seen.st_nlink > 1:
                self._linked.add(seen.st_ino)
            fi.keep_cache = seen.st_ino not in self._linked
        with self._lock:
            fi.fh = next(self._numbers)
            self._handles[fi.fh] = handle
            self._open_count[node] = self._open_count.get(node, 0) + 1

    def release(self, _path: str | None, fi: Any) -> int:
        with self._lock:
            handle = self._handles.pop(fi.fh)
            node = handle.node
            self._open_count[node] -= 1
            if not self._open_count[node]:
                del self._open_count[node]
                for name in [name for name, hidden in self._hidden.items() if hidden is node]:
                    del self._hidden[name]
                for path in [path for path, hiding in self._just_hidden.items() if hiding.node is node]:
                    del self._just_hidden[path]
        try:
            handle.close()
        except OSError as error:
            log.error("closing %s: %s", os.fsdecode(node.name), error)  # close(2) has returned long ago.
        return 0

    def read(self, _path: str | None, size: int, offset: int, fi: Any) -> bytes:
        return self._handles[fi.fh].pread(size, offset)

    def write(self, _path: str | None, data: bytes, offset: int, fi: Any) -> int:
        return self._handles[fi.fh].pwrite(data, offset)

    def fsync(self, _path: str | None, datasync: int, fi: Any) -> int:
        self._handles[fi.fh].fsync(bool(datasync))
        return 0

    # Open directories

    def opendir(self, path: str) -> int:
        number = next(self._numbers)
        self._directories[number] = self._directory(path)
        return number

    def readdir(self, _path: str | None, number: int) -> Iterator[tuple[str, dict[str, int], int]]:
        tree, d = self._tree, self._directories[number]
        for key, ino, kind in ((b".", 0, _DT_DIR), (b"..", 0, _DT_DIR), *tree.listdir(d)):
            if not ino:
                try:
                    ino = tree.stat(tree.lookup(d, key)).st_ino
                except FileNotFoundError:
                    continue  # Gone since it was listed; or all of an open directory that was removed.
            yield key.decode("latin-1"), {"st_ino": ino, "st_mode": kind << 12}, 0

    def releasedir(self, _path: str | None, number: int) -> int:
        self._directories.pop(number, None)
        return 0

    def fsyncdir(self, _path: str | None, _datasync: int, _number: int) -> int:
        self._tree.sync()
        return 0

"""Requests about open files, and which of them the kernel reads and writes without asking (passthrough).

The kernel's rule (fs/fuse/iomode.c): while a file is open for passthrough, every open of it must be, with the same
backing file; and a file with cached opens can't be. So passthrough is for files whose bytes are in the upper for good,
opened for writing while nobody has them open otherwise; on a read-only union, for large files. A write past us by the
kernel does not take the set-user-ID bit away, so it is for root's opens.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from typing import TYPE_CHECKING

from unionfs._sys.fusedev import backing_close, backing_open
from unionfs.mount.devfuse import wire
from unionfs.mount.devfuse.session import LATER, Header
from unionfs.union.node import Node
from unionfs.union.reader import fail
from unionfs.union.serving import access_due, is_quick, kill_privileges

if TYPE_CHECKING:
    from unionfs.union.handle import Handle
    from unionfs.union.tree import Tree

log = logging.getLogger(__name__)

_LARGE = 1 << 17
"""Bytes from which on a file that is only read is worth an ioctl."""


class _Opens:
    """How a file is open: through the cache ``cached`` times, past us ``passed`` times with ``backing``."""

    __slots__ = ("backing", "cached", "passed")

    def __init__(self) -> None:
        self.cached = 0
        self.passed = 0
        self.backing = 0


class OpenFiles:
    """The open files of one mount. ``keeps``: the kernel may keep pages from one open to the next.

    ``writeback``: the kernel gathers writes, and may have to read what was opened only to be written.
    """

    def __init__(self, tree: Tree, nodes: dict[int, Node], connection: int, *, keeps: bool) -> None:
        self._tree = tree
        self._nodes = nodes
        self._connection = connection
        self._keeps = keeps
        self.writeback = False
        self.passthrough = False
        self._numbers = itertools.count(1)
        self._handles: dict[int, tuple[Handle, int, bool]] = {}
        self._opens: dict[int, _Opens] = {}
        self._outdated: set[int] = set()
        """Files whose pages in the kernel's cache may be older than the file: it was written past it."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close what the kernel did not release before the mount ended."""
        with self._lock:
            handles, self._handles = list(self._handles.values()), {}
        for handle, _, passed in handles:
            if passed:
                handle.node.uncached -= 1
            handle.close()

    def forgotten(self, number: int) -> None:
        """The kernel has forgotten the node, and its pages with it."""
        self._outdated.discard(number)

    def access(self, flags: int) -> int:
        """The access mode to open with: appending is done by the kernel, in offsets."""
        mode = flags & os.O_ACCMODE
        return os.O_RDWR if self.writeback and mode == os.O_WRONLY else mode

    def open(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        flags, more = wire.OPEN_IN.unpack_from(body)
        tree = self._tree
        n = self._nodes[h[3]]
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            size = 0 if flags & os.O_TRUNC else None
            if not wait and not is_quick(tree, n, size):
                return LATER
        handle = tree.open(n, self.access(flags) | flags & os.O_TRUNC)
        try:
            if flags & os.O_TRUNC and more & wire.OPEN_KILL_SUIDGID:
                kill_privileges(tree, n)
            return self.add(out, h[3], handle, flags, h[4])
        except BaseException:
            handle.close()
            raise

    def add(self, out: memoryview, number: int, handle: Handle, flags: int, uid: int) -> int:
        """Answer with an open file: ``number`` is its node's."""
        backing = 0
        with self._lock:
            opens = self._opens.get(number)
            if opens is None:
                opens = self._opens[number] = _Opens()
            if opens.passed or (self.passthrough and not opens.cached and self._may_pass(handle, flags, uid)):
                backing = opens.backing or self._register(handle)
            if backing:
                opens.backing = backing
                opens.passed += 1
                handle.node.uncached += 1
                self._tree.touched(handle.node)  # Nothing that is known of it is sure from now on.
                self._outdated.add(number)
                answer = wire.FOPEN_PASSTHROUGH
            else:
                opens.cached += 1
                answer = wire.FOPEN_NOFLUSH
                if number in self._outdated:
                    self._outdated.discard(number)
                elif self._keeps and not (flags & os.O_ACCMODE == os.O_RDONLY and access_due(self._tree, handle.node)):
                    answer |= wire.FOPEN_KEEP_CACHE
            fh = next(self._numbers)
            self._handles[fh] = handle, number, bool(backing)
        wire.OPEN_OUT.pack_into(out, 0, fh, answer, backing)
        return wire.OPEN_OUT.size

    def _may_pass(self, handle: Handle, flags: int, uid: int) -> bool:
        n = handle.node
        tree = self._tree
        if tree.upper is None:
            fits = tree.attributes(n)[0].st_size >= _LARGE
        else:
            fits = uid == 0 and flags & os.O_ACCMODE != os.O_RDONLY and n.home.layer is tree.upper
        return fits and handle.file.fileno() is not None

    def _register(self, handle: Handle) -> int:
        fd = handle.file.fileno()
        assert fd is not None
        try:
            return backing_open(self._connection, fd)
        except OSError as error:
            # EPERM: root of a user namespace; ELOOP: a layer on a stacked file system.
            log.debug("no passthrough: %s", error)
            self.passthrough = False
            return 0

    def release(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        fh = wire.U64.unpack_from(body)[0]
        with self._lock:
            handle, number, passed = self._handles.pop(fh)
            opens = self._opens[number]
            if passed:
                opens.passed -= 1
                handle.node.uncached -= 1
            else:
                opens.cached -= 1
            if not opens.passed and opens.backing:
                backing_close(self._connection, opens.backing)
                opens.backing = 0
            if not opens.passed and not opens.cached:
                del self._opens[number]
        tree = self._tree
        try:
            if passed:
                with tree.lock:
                    handle.close()
                    if opens.passed:
                        # Its next writer will write to this very inode: at a commit it moves as one with a writer.
                        tree.writers.add(handle.node)
            else:
                handle.close()
        except OSError as error:
            log.error("closing %s: %s", os.fsdecode(handle.node.name), error)  # close(2) has returned long ago.
        return 0

    def _handle(self, fh: int) -> Handle:
        try:
            return self._handles[fh][0]
        except KeyError:
            raise fail(errno.EBADF) from None

    def read(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        fh, offset, size, *_ = wire.RW_IN.unpack_from(body)
        try:
            return self._handles[fh][0].readinto(out[:size], offset, wait)
        except BlockingIOError:
            return LATER

    def write(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        fh, offset, size, flags, *_ = wire.RW_IN.unpack_from(body)
        handle = self._handles[fh][0]
        if flags & wire.WRITE_KILL_SUIDGID:
            kill_privileges(self._tree, handle.node)
        start = wire.RW_IN.size
        wire.WRITE_OUT.pack_into(out, 0, handle.pwrite(body[start : start + size], offset))
        return wire.WRITE_OUT.size

    def truncate(self, n: Node, fh: int | None, size: int) -> None:
        """Change the size, through the open file if the kernel names one."""
        found = None if fh is None else self._handles.get(fh)
        if found is not None and found[0].writable:
            found[0].truncate(size)
        else:
            self._tree.setattr(n, size=size)

    def fsync(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        if not wait:
            return LATER
        fh, flags, _ = wire.FSYNC_IN.unpack_from(body)
        self._handle(fh).fsync(bool(flags & wire.FSYNC_FDATASYNC))
        return 0

    def fallocate(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        if not wait:
            return LATER
        fh, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
        handle = self._handle(fh)
        if h[4] != 0:
            kill_privileges(self._tree, handle.node)  # As for a write, but no flag tells.
        handle.fallocate(mode, offset, length)
        return 0

    def settled(self, number: int, wait: bool) -> bool:
        """Whether the file has all that was written to it; if not, and with ``wait``, the kernel brings it now."""
        if not self.writeback or not any(handle.writable for handle in self._of(number)):
            return True
        if wait:
            message = wire.message(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(number, 0, 0))
            try:
                os.write(self._connection, message)
            except FileNotFoundError:
                pass  # It knows nothing of the file, and so has nothing of it.
        return wait

    def _of(self, number: int) -> list[Handle]:
        with self._lock:
            return [handle for handle, of, _ in self._handles.values() if of == number]

    def lseek(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        if not self.settled(h[3], wait):
            return LATER
        fh, offset, whence, _ = wire.LSEEK_IN.unpack_from(body)
        wire.U64.pack_into(out, 0, self._handle(fh).seek(offset, whence))
        return wire.U64.size

    def copy_file_range(self, h: Header, body: memoryview, out: memoryview, wait: bool) -> int:
        if not wait:
            return LATER
        fh_in, off_in, _, fh_out, off_out, length, _ = wire.COPY_IN.unpack_from(body)
        source, target = self._handle(fh_in), self._handle(fh_out)
        here, there = source.file.fileno(), target.file.fileno()
        if here is None or there is None:
            raise fail(errno.EOPNOTSUPP)  # The kernel copies by reading and writing.
        if h[4] != 0:
            kill_privileges(self._tree, target.node)  # As for a write, but no flag tells.
        try:
            count = os.copy_file_range(here, there, min(length, 1 << 30), off_in, off_out)
        finally:
            self._tree.touched(target.node)
        wire.WRITE_OUT.pack_into(out, 0, count)
        return wire.WRITE_OUT.size

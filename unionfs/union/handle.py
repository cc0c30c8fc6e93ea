"""Open files of the union."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from unionfs.layer.protocol import LayerFile

if TYPE_CHECKING:
    from unionfs.union.node import FileNode
    from unionfs.union.reader import TreeReader


class Handle:
    """An open regular file.

    It outlives the unlink of its file, the copy-up of its file (a reader then reads what is written), and a commit (a
    writer goes on in the fresh upper; see ``union.commit``). Offsets are the caller's; ``O_APPEND`` appends.
    All methods raise ``OSError``; ``EBADF`` for a use that ``flags`` do not allow and after ``close``.
    """

    __slots__ = ("_file", "flags", "node", "tree")

    def __init__(self, tree: TreeReader, node: FileNode, flags: int, file: LayerFile) -> None:
        self.tree = tree
        self.node = node
        self.flags = flags
        self._file: LayerFile | None = file
        tree.opened(node, self)

    @property
    def file(self) -> LayerFile:
        """The layer's file behind the handle at this moment."""
        file = self._file
        if file is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return file

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    def switch(self, reopen: LayerFile) -> None:
        """Read from here from now on: the file was copied up."""
        self._file = reopen

    def pread(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer at the end of the file (pread(2))."""
        data = self.file.pread(size, offset)
        if self.node.home.layer is self.tree.upper:
            self.tree.accessed(self.node)
        return data

    def readinto(self, buffer: memoryview, offset: int, wait: bool = True) -> int:
        """Fill ``buffer`` from ``offset``; how many bytes, fewer at the end of the file only.

        ``BlockingIOError`` unless ``wait``, where the bytes would have to come from a disk.
        """
        count = self.file.readinto(buffer, offset, wait)
        if self.node.home.layer is self.tree.upper:
            self.tree.accessed(self.node)
        return count

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write at ``offset``; how many bytes were written (pwrite(2))."""
        try:
            return self.file.pwrite(data, offset)
        finally:
            self.tree.touched(self.node)

    def truncate(self, size: int) -> None:
        """Make the file ``size`` bytes long (ftruncate(2))."""
        try:
            self.file.truncate(size)
        finally:
            self.tree.touched(self.node)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Allocate or punch (fallocate(2))."""
        try:
            self.file.fallocate(mode, offset, length)
        finally:
            self.tree.touched(self.node)

    def fsync(self, datasync: bool = False) -> None:
        """To disk (fsync(2)), unless the union is volatile."""
        upper = self.tree.upper
        if upper is not None and not upper.volatile:
            self.file.fsync(datasync)

    def seek(self, offset: int, whence: int) -> int:
        """The next data or hole: ``os.SEEK_DATA``, ``os.SEEK_HOLE`` (lseek(2)). ``ENXIO`` past the end."""
        return self.file.seek(offset, whence)

    def stat(self) -> os.stat_result:
        """Metadata of the file, also after its unlink."""
        return self.tree.stat(self.node)

    def close(self) -> None:
        """Let go of the file. Closing twice does nothing."""
        file, self._file = self._file, None
        if file is not None:
            self.tree.released(self.node, self)
            file.close()

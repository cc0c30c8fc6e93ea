"""Real file objects: what ``open`` gives, for files of the union."""

from __future__ import annotations

import errno
import io
import os
import threading
import warnings
from typing import IO, TYPE_CHECKING, Any

from unionfs.layer.directory import DirectoryLayer, FdFile

if TYPE_CHECKING:
    from unionfs.layer.protocol import LayerFile
    from unionfs.union.handle import Handle
    from unionfs.union.node import FileNode
    from unionfs.union.tree import Tree

_ACCESS = {"r": os.O_RDONLY, "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND}
_ACCESS["x"] = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def flags_of(mode: str) -> int:
    """The flags of open(2) for a mode of ``open``. ``ValueError`` for what is no mode."""
    letters = set(mode)
    if letters - set("rwxabt+") or len(letters) < len(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    if len(letters & set("rwxa")) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    if {"t", "b"} <= letters:
        raise ValueError("can't have text and binary mode at once")
    flags = _ACCESS[(letters & set("rwxa")).pop()]
    return flags & ~os.O_ACCMODE | os.O_RDWR if "+" in letters else flags


def check_arguments(mode: str, buffering: int, encoding: str | None, errors: str | None, newline: str | None) -> None:
    """``ValueError`` for what ``open`` refuses too."""
    if "b" in mode:
        for word, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise ValueError(f"binary mode doesn't take {_article(word)} {word} argument")
    elif buffering == 0:
        raise ValueError("can't have unbuffered text I/O")


def _article(word: str) -> str:
    return "an" if word.startswith("e") else "a"


class _Opening:
    """A descriptor as its node sees it (``node.Opened``). The node holds this and not the file object, which may go."""

    __slots__ = ("fd", "flags", "layer", "lock", "node", "shared", "tree")

    def __init__(self, tree: Tree, node: FileNode, flags: int, layer: DirectoryLayer, fd: int) -> None:
        self.tree = tree
        self.node = node
        self.flags = flags
        self.layer = layer
        self.fd = fd
        self.lock = threading.Lock()
        self.shared = False

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def file(self) -> LayerFile:
        return FdFile(self.layer, os.dup(self.fd))

    def switch(self, reopen: LayerFile) -> None:
        """Go on with this file, under the same descriptor number and at the same offset."""
        there = reopen.fileno()
        layer = _layer_of(self.tree, self.node)
        assert there is not None
        assert layer is not None
        self.layer = layer
        with self.lock:
            if self.fd >= 0:
                position = os.lseek(self.fd, 0, os.SEEK_CUR)
                os.dup2(there, self.fd, inheritable=os.get_inheritable(self.fd))
                os.lseek(self.fd, position, os.SEEK_SET)
        reopen.close()

    def enter(self) -> None:
        """The tree's lock is held."""
        self.tree.opened(self.node, self)
        if self.writable:
            # What goes through the descriptor is not seen here, so nothing about the file may be kept.
            self.node.uncached += 1
            self.tree.touched(self.node)

    def share(self) -> None:
        """The descriptor may be in other hands from now on: a child's, a memory map's."""
        self.shared = True

    def leave(self) -> None:
        with self.tree.lock:
            if self.writable and not self.shared:
                self.node.uncached -= 1
            self.tree.released(self.node, self)


def _layer_of(tree: Tree, node: FileNode) -> DirectoryLayer | None:
    """The layer that has the node's bytes, if it is a directory of the host."""
    layer = (tree.data_of(node) or (node.home,))[0].layer
    return layer if isinstance(layer, DirectoryLayer) else None


class DescriptorFile(io.FileIO):
    """A file of the union with a descriptor of its own: a real one, for ``mmap``, ``subprocess`` and the like."""

    _opening: _Opening | None = None

    def __init__(self, name: str | bytes, mode: str, opening: _Opening) -> None:
        super().__init__(name, mode, opener=lambda _name, _flags: opening.fd)
        self._opening = opening

    def _held(self) -> _Opening:
        if self._opening is None:
            raise ValueError("I/O operation on closed file")
        return self._opening

    # With the lock, since a copy-up puts another file under the descriptor; offset and bytes must be of one file.

    def readinto(self, buffer: Any, /) -> int:
        opening = self._held()
        with opening.lock:
            count = super().readinto(buffer)
        self._accessed(opening)
        return count

    def readall(self) -> bytes:
        opening = self._held()
        if not self.readable():  # FileIO leaves that to the descriptor, which may allow more.
            raise io.UnsupportedOperation("File not open for reading")
        with opening.lock:
            data = super().readall()
        self._accessed(opening)
        return data

    def read(self, size: int | None = -1, /) -> bytes:
        opening = self._held()
        if size is None or size < 0:
            return self.readall()
        with opening.lock:
            data = super().read(size)
        self._accessed(opening)
        return data

    @staticmethod
    def _accessed(opening: _Opening) -> None:
        if opening.node.home.layer is opening.tree.upper:
            opening.tree.accessed(opening.node)

    def write(self, data: Any, /) -> int:
        with self._held().lock:
            return super().write(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with self._held().lock:
            return super().seek(offset, whence)

    def tell(self) -> int:
        with self._held().lock:
            return super().tell()

    def truncate(self, size: int | None = None, /) -> int:
        with self._held().lock:
            return super().truncate(super().tell() if size is None else size)

    def fileno(self) -> int:
        fd = super().fileno()
        self._held().share()
        return fd

    def close(self) -> None:
        opening, self._opening = self._opening, None
        if opening is None:
            super().close()
            return
        try:
            with opening.lock:
                opening.fd = -1
                super().close()
        finally:
            opening.leave()


class HandleFile(io.RawIOBase):
    """A file of the union over a ``Handle``: for layers that give no descriptors. It keeps its own position.

    ``fileno`` answers where the layer's file has a descriptor all the same, placed where this file stands; a copy-up
    changes the number.
    """

    def __init__(self, name: str | bytes, mode: str, handle: Handle) -> None:
        super().__init__()
        self._handle = handle
        self._position = 0
        self._shared = False
        self.name = name
        letters = set(mode)
        self._append = "a" in letters
        self._reads = bool(letters & {"r", "+"})
        first = next(letter for letter in "rwxa" if letter in letters)
        self.mode = "rb+" if first in "rw" and "+" in letters else first + "b" + "+" * ("+" in letters)
        if self._append:
            self.seek(0, os.SEEK_END)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} mode={'closed' if self.closed else self.mode!r}>"

    def _open(self) -> Handle:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._handle

    def readable(self) -> bool:
        self._open()
        return self._reads

    def writable(self) -> bool:
        return self._open().writable

    def seekable(self) -> bool:
        self._open()
        return True

    def readinto(self, buffer: Any, /) -> int:
        handle = self._open()
        if not self._reads:
            raise io.UnsupportedOperation("File not open for reading")
        view = memoryview(buffer).cast("B")
        data = handle.pread(len(view), self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        if not self.readable():
            raise io.UnsupportedOperation("File not open for reading")
        blocks = []
        while block := self.read(max(1 << 16, self._size() - self._position)):
            blocks.append(block)
        return b"".join(blocks)

    def write(self, data: Any, /) -> int:
        handle = self._open()
        if not handle.writable:
            raise io.UnsupportedOperation("File not open for writing")
        count = handle.pwrite(memoryview(data).cast("B"), self._position)
        self._position = self._size() if self._append else self._position + count
        return count

    def _size(self) -> int:
        return self._handle.file.stat().st_size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        handle = self._open()
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            offset = handle.seek(offset, whence)
        elif whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._size()
        elif whence != os.SEEK_SET:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = offset
        return offset

    def tell(self) -> int:
        self._open()
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        handle = self._open()
        if not handle.writable:
            raise io.UnsupportedOperation("File not open for writing")
        size = self._position if size is None else size
        handle.truncate(size)
        return size

    def fileno(self) -> int:
        handle = self._open()
        fd = handle.file.fileno()
        if fd is None:
            raise io.UnsupportedOperation("a file of this layer has no descriptor")
        os.lseek(fd, self._position, os.SEEK_SET)
        if handle.writable and not self._shared:
            self._shared = True
            with handle.tree.lock:
                handle.node.uncached += 1
                handle.tree.touched(handle.node)
        return fd

    def isatty(self) -> bool:
        self._open()
        return False

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                self._handle.close()

    def _dealloc_warn(self, source: object) -> None:
        # Called by the buffer around this file when it goes unclosed, as on FileIO.
        if not self.closed:
            warnings.warn(f"unclosed file {source!r}", ResourceWarning, stacklevel=2, source=source)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._dealloc_warn(self)
        super().__del__()


def raw_file(tree: Tree, handle: Handle, name: str | bytes, mode: str) -> DescriptorFile | HandleFile:
    """The unbuffered file object over ``handle``, which it takes."""
    with tree.lock:
        layer = _layer_of(tree, handle.node)
        there = handle.file.fileno()
        # A copy-up may put the file into the upper: only there, where it is sure to have a descriptor too.
        if layer is not None and there is not None and (tree.upper is None or isinstance(tree.upper, DirectoryLayer)):
            opening = _Opening(tree, handle.node, handle.flags, layer, os.dup(there))
            opening.enter()
            handle.close()
            return DescriptorFile(name, mode, opening)
    return HandleFile(name, mode, handle)


def wrapped(
    raw: DescriptorFile | HandleFile,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> IO[Any]:
    """``raw`` with the buffer and the text layer that ``open`` would give it."""
    file: Any = raw
    try:
        if buffering == 0:
            return file  # type: ignore[no-any-return]
        size = buffering if buffering > 1 else getattr(raw, "_blksize", io.DEFAULT_BUFFER_SIZE)
        if "+" in mode:
            file = io.BufferedRandom(raw, size)
        elif "r" in mode:
            file = io.BufferedReader(raw, size)
        else:
            file = io.BufferedWriter(raw, size)
        if "b" not in mode:
            file = io.TextIOWrapper(file, encoding, errors, newline, buffering == 1)
            file.mode = mode
    except BaseException:
        file.close()
        raise
    return file  # type: ignore[no-any-return]

"""What a layer is.

A layer answers about itself alone: what a directory of its own lists, what an entry's metadata and bytes are, which
entries are whiteouts, and which marks overlayfs would keep on them. Which layer *wins* is not its business.

All calls take a directory of the layer and a name, never a path; ``b"."`` names the directory itself. All errors are
``OSError`` with the errno that Linux gives for the same call on a plain directory.

A read-only layer never changes while it is in use; so answers about it may be kept.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import attrs

DT_FIFO, DT_CHR, DT_DIR, DT_BLK, DT_REG, DT_LNK, DT_SOCK, DT_WHT = 1, 2, 4, 6, 8, 10, 12, 14
"""Kinds of entries, as in readdir(3); ``mode >> 12`` of ``st_mode``. ``DT_WHT`` is a whiteout."""


class LayerDir:
    """A directory of one layer: a chain of names in that layer's own space. ``ref`` belongs to the layer."""

    __slots__ = ("__weakref__", "layer", "name", "parent", "ref")

    def __init__(self, layer: Layer, parent: LayerDir | None, name: bytes) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        self.ref: Any = None

    def child(self, name: bytes) -> LayerDir:
        """The directory ``name`` in this one; whether it exists is for the layer to say."""
        return LayerDir(self.layer, self, name)

    @property
    def path(self) -> bytes:
        """The path inside the layer: ``b""`` for its root, else ``b"/a/b"``."""
        names: list[bytes] = []
        at: LayerDir | None = self
        while at is not None and at.parent is not None:
            names.append(at.name)
            at = at.parent
        return b"".join(b"/" + name for name in reversed(names))

    def __repr__(self) -> str:
        return f"<{self.path.decode('utf-8', 'backslashreplace') or '/'} in {self.layer!r}>"


@attrs.frozen(slots=True)
class Marks:
    """What overlayfs keeps in ``overlay.*`` attributes of one entry (Documentation/filesystems/overlayfs.rst)."""

    opaque: bool = False
    """A directory that merges with nothing below it ("whiteouts and opaque directories")."""
    redirect: bytes | None = None
    """The name (or, with a leading slash, the path) to look for in the layers below ("redirect_dir")."""
    metacopy: bool = False
    """A regular file that has metadata only; its data are in a layer below ("metadata only copy up")."""
    ino: int | None = None
    """The inode number that this object had before its copy-up (ours; see docs/format.md)."""
    nlink: bytes | None = None
    """overlayfs's record of the union's link count ("index")."""
    origin: bytes | None = None
    """The file handle of the lower object that this is a copy of; written for hard links ("index")."""


NO_MARKS = Marks()


class LayerFile(Protocol):
    """An open regular file of a layer. Closed when the last reference goes, or by ``close``."""

    def pread(self, size: int, offset: int) -> bytes: ...
    def readinto(self, buffer: memoryview, offset: int, wait: bool = True) -> int:
        """Fill ``buffer`` from ``offset``; how many bytes, fewer at the end of the file only (preadv(2)).

        ``BlockingIOError`` unless ``wait``, where the bytes are not in memory.
        """

    def stat(self) -> os.stat_result: ...
    def seek(self, offset: int, whence: int) -> int:
        """``SEEK_DATA`` or ``SEEK_HOLE`` from ``offset`` (lseek(2)). ``ENXIO`` past the end."""

    def reopen(self, flags: int) -> LayerFile:
        """Open the same file once more (open(2): access mode, ``O_TRUNC``), whether or not it has a name."""

    def fileno(self) -> int | None:
        """The descriptor, or ``None`` for a file that has none."""

    def close(self) -> None: ...

    # Of a file opened for writing, in a writable layer.
    def pwrite(self, data: bytes | memoryview, offset: int) -> int: ...
    def truncate(self, size: int) -> None: ...
    def fsync(self, datasync: bool = False) -> None: ...
    def fallocate(self, mode: int, offset: int, length: int) -> None: ...
    def setattr(
        self,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        times: tuple[int, int] | None = None,
    ) -> None:
        """Change metadata of the open file, also when it has no name any more."""

    def listxattr(self) -> list[bytes]:
        """As ``Layer.listxattr``, of the open file."""

    def getxattr(self, key: bytes) -> bytes: ...
    def setxattr(self, key: bytes, value: bytes, flags: int = 0) -> None: ...
    def removexattr(self, key: bytes) -> None: ...


@runtime_checkable
class Layer(Protocol):
    """One layer, read."""

    root: LayerDir

    @property
    def label(self) -> str:
        """What to call the layer in messages: its directory, or what else it is."""

    @property
    def has_inos(self) -> bool:
        """Whether entries here may carry ``Marks.ino``; a layer that never was an upper of ours says no."""

    @property
    def record(self) -> bytes | None:
        """What ``finish_freeze`` recorded; ``None`` for a layer that no commit made."""

    def scan(self, d: LayerDir) -> dict[bytes, int]:
        """All entries of ``d``: name to ``DT_*``, whiteouts as ``DT_WHT``. The caller may keep and change it."""

    def kind(self, d: LayerDir, name: bytes) -> int | None:
        """``DT_*`` of one entry (``DT_WHT`` for a whiteout), ``None`` if there is none."""

    def stat(self, d: LayerDir, name: bytes) -> os.stat_result:
        """Metadata as ``lstat`` gives them, ``st_dev`` and ``st_ino`` of this layer's own numbering."""

    def birth_ns(self, d: LayerDir, name: bytes) -> int | None:
        """When the entry was made, in nanoseconds since 1970 (statx(2), ``stx_btime``); ``None`` where nobody knows."""

    def marks(self, d: LayerDir, name: bytes) -> Marks:
        """The marks of one entry."""

    def readlink(self, d: LayerDir, name: bytes) -> bytes: ...

    def open(self, d: LayerDir, name: bytes, flags: int) -> LayerFile:
        """Open a regular file: ``O_RDONLY``, or for writing where the layer is writable."""

    def listxattr(self, d: LayerDir, name: bytes) -> list[bytes]:
        """Names of the extended attributes a person set; marks are not among them."""

    def getxattr(self, d: LayerDir, name: bytes, key: bytes) -> bytes: ...

    def handle(self, d: LayerDir, name: bytes) -> bytes | None:
        """overlayfs's file handle of the entry, or ``None`` where there is no such thing."""

    def by_handle(self, handle: bytes) -> os.stat_result | None:
        """Metadata of the object with this handle; ``None`` where the layer can't tell."""

    def statvfs(self) -> os.statvfs_result: ...

    def close(self) -> None: ...


@runtime_checkable
class WritableLayer(Layer, Protocol):
    """The upper: a layer with changes, a place to stage them, and an index for hard links.

    Each call is one step that either happens or does not. ``staging`` is a directory for unfinished work: it is empty
    when the layer is opened, and a name moves from there into the tree by ``rename``.
    """

    staging: LayerDir
    index: LayerDir | None
    """Where copied-up hard links are kept by the handle of their origin ("index" in overlayfs.rst)."""
    volatile: bool
    """``fsync`` and ``sync`` do nothing."""

    @property
    def moving(self) -> AbstractContextManager[Any]:
        """To be held by who moves a directory, until the ``LayerDir`` too has its new name: meanwhile no chain of names
        is followed."""

    def temp_name(self) -> bytes:
        """A name that is not in ``staging`` yet."""

    def mkdir(self, d: LayerDir, name: bytes, mode: int) -> LayerDir: ...
    def create(self, d: LayerDir, name: bytes, mode: int) -> LayerFile:
        """A new regular file, open for reading and writing. ``EEXIST``."""

    def stage(self, like: LayerDir | None = None, mode: int = 0o600) -> LayerFile:
        """A new regular file, open for reading and writing, that has no name in the tree yet.

        ``like``: a directory whose group and default ACL it inherits, where files without any name are to be had.
        """

    def dress(self, file: LayerFile, st: os.stat_result, marks: Marks) -> None:
        """Give a staged file the owner and the permission bits of ``st``, and its first marks."""

    def place(self, file: LayerFile, d: LayerDir, name: bytes) -> None:
        """Give a staged file its name, in one step. ``EEXIST`` if the name is taken."""

    def discard(self, file: LayerFile) -> None:
        """A staged file is not needed."""

    def mknod(self, d: LayerDir, name: bytes, mode: int, rdev: int) -> None: ...
    def symlink(self, d: LayerDir, name: bytes, target: bytes) -> None: ...
    def link(self, d: LayerDir, name: bytes, d2: LayerDir, name2: bytes) -> None: ...
    def unlink(self, d: LayerDir, name: bytes) -> None: ...
    def rmdir(self, d: LayerDir, name: bytes) -> None: ...
    def whiteout(self, d: LayerDir, name: bytes) -> None:
        """A whiteout under a name that this layer does not have. ``EEXIST``."""

    def rename(self, d: LayerDir, name: bytes, d2: LayerDir, name2: bytes, flags: int = 0) -> None:
        """rename(2) with ``RENAME_*`` flags; ``RENAME_WHITEOUT`` leaves a whiteout behind in the same step."""

    def clear(self, d: LayerDir, name: bytes) -> None:
        """Remove an entry of any kind with all that is below it (for ``staging``)."""

    def setattr(
        self,
        d: LayerDir,
        name: bytes,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        times: tuple[int, int] | None = None,
    ) -> None:
        """Change permission bits, owner, and ``(atime, mtime)`` in nanoseconds, in that order of safety."""

    def setxattr(self, d: LayerDir, name: bytes, key: bytes, value: bytes, flags: int = 0) -> None: ...
    def removexattr(self, d: LayerDir, name: bytes, key: bytes) -> None: ...
    def set_marks(self, d: LayerDir, name: bytes, marks: Marks) -> None:
        """Make the entry's marks these: what differs is written or removed, ``nlink`` and ``ino`` too."""

    def sync(self) -> None:
        """Everything to disk."""

    def begin_freeze(self, destination: str | None) -> WritableLayer:
        """An empty upper that waits, with this root's metadata, to take this one's place."""

    def drop_freeze(self, fresh: WritableLayer) -> None:
        """Undo ``begin_freeze``: the empty upper was not needed."""

    def finish_freeze(self, fresh: WritableLayer, record: bytes) -> None:
        """In one step: ``fresh`` is the upper, and this layer stands frozen at the destination, with ``record``
        on it."""

"""Layers of the store, opened as one tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from unionfs.api import UnionFS
from unionfs.errors import NotFoundError
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.frozen import FrozenLayer
from unionfs.layer.protocol import Layer, WritableLayer
from unionfs.layer.upper import UpperDirectory
from unionfs.store.durable import make_directory
from unionfs.store.keep import Keep
from unionfs.store.leases import Lease
from unionfs.store.records import LayerRecord
from unionfs.types import Closing
from unionfs.union.tree import Tree


class StoreFS(UnionFS):
    """A union of a store's layers; ``UnionFS`` in all respects, and before it ends whoever opened it is told."""

    def __init__(self, lower: Sequence[Layer], upper: WritableLayer | None, at_end: Callable[[], None]) -> None:
        self._at_end = at_end
        super().__init__(lower=lower, upper=upper)

    def close(self) -> None:
        if not self.closed:
            try:
                self._at_end()
            finally:
                super().close()


def open_layers(keep: Keep, chain: Sequence[LayerRecord]) -> list[DirectoryLayer]:
    """The directories of these layers. Raises ``LayerError`` for one that is missing; then none stays open."""
    opened: list[DirectoryLayer] = []
    try:
        opened.extend(FrozenLayer(keep.places.diff(layer.id), keep.places.index(layer.id)) for layer in chain)
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened


class Stack(Closing):
    """A layer and all that it stands on, open to be read, and kept from collection meanwhile. A context manager.

    ``records`` and ``layers`` stand side by side, topmost first.
    """

    def __init__(self, keep: Keep, top: str | None) -> None:
        self._lease = Lease(keep.places, keep.database)
        try:
            with keep.database.transaction("lease"):
                self.records = keep.records.chain(top)
                if top is not None:
                    if not self.records:
                        raise NotFoundError(f"layer {top[:12]} is gone")
                    self._lease.hold(top)
            self.layers = open_layers(keep, self.records)
        except BaseException:
            self._lease.release()
            raise

    def tree(self, skip: int = 0) -> Tree:
        """The tree that these layers show without the topmost ``skip``."""
        from unionfs.layer.memory import MemoryLayer

        return Tree(self.layers[skip:] or [MemoryLayer()])

    def union(self) -> StoreFS:
        """The read-only union of them, which has this stack from now on."""
        from unionfs.layer.memory import MemoryLayer

        return StoreFS(self.layers or [MemoryLayer()], None, self._lease.release)

    def close(self) -> None:
        for layer in self.layers:
            layer.close()
        self._lease.release()


def new_upper(keep: Keep, directory: str, top: str | None, **options: Any) -> UpperDirectory:
    """An empty writable layer in ``directory`` (``upper`` and ``work`` are made there), whose root looks as that of the
    layer ``top``."""
    upper_path, work = f"{directory}/upper", f"{directory}/work"
    make_directory(upper_path, 0o755)
    make_directory(work)
    upper = UpperDirectory(upper_path, work, **options)
    try:
        dress_root(upper, None if top is None else keep.places.diff(top))
    except BaseException:
        upper.close()
        raise
    return upper


def dress_root(upper: UpperDirectory, like: str | None) -> None:
    """Give the writable layer's root the metadata of the layer's at ``like``."""
    if like is None:
        upper.setattr(upper.root, b".", mode=0o755, times=(0, 0))
        return
    layer = DirectoryLayer(like)
    try:
        st = layer.stat(layer.root, b".")
        upper.setattr(upper.root, b".", mode=st.st_mode & 0o7777, uid=st.st_uid, gid=st.st_gid)
        for key in layer.listxattr(layer.root, b"."):
            upper.setxattr(upper.root, b".", key, layer.getxattr(layer.root, b".", key))
        upper.setattr(upper.root, b".", times=(st.st_atime_ns, st.st_mtime_ns))
    finally:
        layer.close()


def is_untouched(upper: WritableLayer, below: Layer | None) -> bool:
    """Whether the writable layer holds nothing, and its root is as that of the layer below. Constant time."""
    if upper.scan(upper.root):
        return False
    if below is None:
        return True
    here, there = upper.stat(upper.root, b"."), below.stat(below.root, b".")
    if (here.st_mode, here.st_uid, here.st_gid) != (there.st_mode, there.st_uid, there.st_gid):
        return False
    return _xattrs(upper) == _xattrs(below)


def _xattrs(layer: Layer) -> dict[bytes, bytes]:
    return {key: layer.getxattr(layer.root, b".", key) for key in layer.listxattr(layer.root, b".")}

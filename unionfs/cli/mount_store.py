"""``unionfs mount CONTAINER DIR``: what a store has, mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unionfs.cli.storecli import open_store
from unionfs.errors import InUseError
from unionfs.mount import daemon
from unionfs.mount.engine import AUTO, MountOptions, get_engine

if TYPE_CHECKING:
    from unionfs.images.container import Container
    from unionfs.images.store import Store
    from unionfs.mount.engine import Mount
    from unionfs.union.fs import UnionFS

_SHARED_ONLY = ("fusepy",)
"""Engines that can't tell the kernel of a roll-back while it remembers names."""


class _Served:
    """A container or a point, opened in the process that serves its mount."""

    def __init__(self, path: str, container: str | None, layer: str | None) -> None:
        self._path, self._container, self._layer = path, container, layer
        self._opened: Container | None = None

    def open(self) -> UnionFS:
        from unionfs.images.points import Point
        from unionfs.images.store import Store

        store = Store(self._path)  # It lasts as long as the process.
        if self._container is None:
            return store.open(Point("", self._layer))
        self._opened = store.container(self._container)
        return self._opened.fs

    def mounted(self, mount: Mount) -> None:
        if self._opened is not None:
            self._opened.mounted_by(mount)


def find(store: Store, ref: str) -> tuple[Container | None, str | None]:
    """The container of this name, or else the topmost layer of the point. ``NotFoundError``."""
    point = store.point(ref)
    return (None if point.container is None else store.container(point.container)), point.layer


def request_for(ref: str, mountpoint: str, engine: str | None, fields: dict[str, Any]) -> daemon.Request:
    """A checked request to mount what ``ref`` stands for; a container for writing, anything else read-only.

    Raises ``UnionError`` and its kinds.
    """
    with open_store() as store:
        container, layer = find(store, ref)
        upper, source = None, ref
        if container is not None:
            status = container.status
            if status.startswith("mounted"):
                raise InUseError(f"container {container.name!r} is {status}")
            record = container.record
            upper, source = store.keep.places.upper(record.id, record.upper), record.name
        served = _Served(store.path, None if container is None else container.id, layer)
    chosen = engine or AUTO
    sole = container is None or get_engine(chosen).name not in _SHARED_ONLY
    options = {"source": source, **fields, "sole": sole}
    return daemon.Request(
        mountpoint=mountpoint,
        open_union=served.open,
        upper=upper,
        engine=chosen,
        options=MountOptions(**options),
        mounted=served.mounted,
    )

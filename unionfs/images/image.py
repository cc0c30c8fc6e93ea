"""An image: what a container starts from."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from unionfs.images.documents import read_config, read_manifest
from unionfs.images.times import parsed
from unionfs.oci.model import ImageConfig, Manifest
from unionfs.store.records import ImageRecord, LayerRecord

if TYPE_CHECKING:
    from unionfs.images.stacks import StoreFS
    from unionfs.images.store import Store
    from unionfs.union.diff import Change


@attrs.frozen
class HistoryLine:
    """One entry of an image's history: a layer, or a change of the config alone."""

    id: str | None
    """The layer's id in this store; ``None`` where only the config changed."""
    diff_id: str | None
    chain_id: str | None
    created: dt.datetime | None
    created_by: str
    author: str
    comment: str
    size: int
    """Bytes on disk."""
    names: tuple[str, ...]
    """Names of images that end here."""


class Image:
    """An OCI image in a store: a config, and layers that are frozen.

    Values that don't change: an image is what its id, the config's digest, says. Only its names come and go.
    """

    def __init__(self, store: Store, record: ImageRecord) -> None:
        self._store = store
        self._keep = store.keep
        self.record = record
        self.id = record.id
        """Digest of the config, as Docker has it."""
        self.digest = record.manifest
        """Digest of the manifest."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id[:19]}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def names(self) -> list[str]:
        """``repository:tag``, all that point at it now."""
        return self._keep.records.names_of(self.id)

    @property
    def config(self) -> ImageConfig:
        """``NotFoundError`` once the image is removed; ``StoreError`` if the blob is missing or damaged."""
        return read_config(self._keep, self.id)

    @property
    def manifest(self) -> Manifest:
        """Its layers as uncompressed tars. Raises as ``config``."""
        return read_manifest(self._keep, self.id, self.digest)

    @property
    def created(self) -> dt.datetime | None:
        return parsed(self.config.created)

    @property
    def layers(self) -> list[LayerRecord]:
        """Topmost first."""
        return self._keep.records.chain(self.record.layer)

    @property
    def size(self) -> int:
        """Bytes on disk of its layers, shared ones included."""
        return sum(layer.size or 0 for layer in self.layers)

    def history(self) -> list[HistoryLine]:
        """Newest first, as its config tells it, with what this store knows of each layer."""
        config = self.config
        layers = self.layers[::-1]
        entries = config.history
        lines: list[HistoryLine] = []
        at = 0
        for entry in entries:
            layer = None
            if not entry.empty_layer and at < len(layers):
                layer = layers[at]
                at += 1
            lines.append(
                HistoryLine(
                    id=None if layer is None else layer.id,
                    diff_id=None if layer is None else layer.diff_id,
                    chain_id=None if layer is None else layer.chain_id,
                    created=parsed(entry.created),
                    created_by=entry.created_by,
                    author=entry.author,
                    comment=entry.comment,
                    size=0 if layer is None else layer.size or 0,
                    names=() if layer is None else tuple(self._keep.records.names_at(layer.id)),
                )
            )
        return lines[::-1]

    def open(self) -> StoreFS:
        """Its tree, read-only, until it is closed."""
        from unionfs.images.stacks import Stack

        return Stack(self._keep, self.record.layer).union()

    def diff(self, other: str | Image) -> Iterator[Change]:
        """What turns ``other`` into this image."""
        return self._store.diff(other, self)

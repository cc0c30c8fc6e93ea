"""From a tree's difference to a layer, from a layer to an image: what commit, import and squash have in common."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

import attrs

from unionfs.images.documents import remember
from unionfs.images.layering import CHANGES, Layered
from unionfs.images.stacks import open_layers
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.merged import pack
from unionfs.oci.model import (
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_LAYER,
    Descriptor,
    History,
    ImageConfig,
    Manifest,
    chain_ids,
)
from unionfs.store.collect import size_on_disk
from unionfs.store.durable import flush_tree, put_file, write_file
from unionfs.store.keep import Keep
from unionfs.store.places import new_id
from unionfs.store.records import ImageRecord, LayerRecord
from unionfs.union.indexing import notes_of
from unionfs.union.reader import TreeReader

INDEX = "index"

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: not known)."""


@attrs.frozen(kw_only=True)
class Provenance:
    """Where a layer comes from."""

    created: str
    author: str = ""
    comment: str = ""
    created_by: str = ""

    def history(self) -> History:
        """As an OCI history entry."""
        return History(created=self.created, author=self.author, created_by=self.created_by, comment=self.comment)


@attrs.frozen(kw_only=True)
class NewLayer:
    """A layer that is about to be an image's."""

    parent: LayerRecord | None
    layered: Layered
    provenance: Provenance
    epoch: int | None
    staged: str | None = None
    """The directory with ``diff`` in it that stands ready; ``None`` for a snapshot that becomes the layer."""
    snapshot: LayerRecord | None = None
    """The snapshot that becomes the layer, or that shows the same tree."""
    index: bytes | None = None
    """Its index, where somebody made it already."""

    def chain_id(self) -> str:
        below = () if self.parent is None or self.parent.chain_id is None else (self.parent.chain_id,)
        return chain_ids((*below, self.layered.diff_id))[-1]


def manifest_of(config: bytes, layers: Sequence[LayerRecord], parent: ImageRecord | None) -> bytes:
    """The manifest of an image with these layers, lowest first, uncompressed."""
    annotations = {} if parent is None else {"org.opencontainers.image.base.digest": parent.manifest}
    found = [Descriptor(MEDIA_TYPE_LAYER, layer.diff_id or "", layer.tar_size) for layer in layers]
    return Manifest(Descriptor.to(config, MEDIA_TYPE_CONFIG), tuple(found), annotations=annotations).to_bytes()


def publish(
    keep: Keep,
    config: ImageConfig,
    top: LayerRecord | None,
    new: NewLayer | None,
    *,
    name: str | None,
    parent: ImageRecord | None,
    container: str | None = None,
    below: Sequence[LayerRecord] | None = None,
) -> str:
    """Make the image of ``config``, its layers flushed and named; its id.

    ``top``: its topmost layer, or what ``new`` stands on; ``below``: that and all that it stands on, topmost first, if
    it was read already. ``container``: it stands on the image from now on. Where a layer with the same content is there
    already on the same layers, that one is the image's.
    """
    raw = config.to_bytes()
    key = new.snapshot.id if new is not None and new.staged is None and new.snapshot is not None else new_id()
    index, size = (b"", 0) if new is None else _prepared(keep, new)
    with keep.places.publishing(), _or_nothing(keep, key):
        layer = None if new is None else _placed(keep, new, key, index, size)
        if below is None:
            below = keep.records.chain(None if top is None else top.id)
        before = below[::-1]
        layers = [*before, *([layer] if layer is not None else [])]
        image = keep.blobs.put(raw)
        manifest = keep.blobs.put(manifest_of(raw, layers, parent))
        spare = None
        with keep.database.transaction("image"):
            if new is not None and layer is not None:
                layer, spare = _record(keep, new, layer)
            above = layer if layer is not None else top
            keep.records.add_image(
                ImageRecord(
                    image,
                    manifest,
                    None if above is None else above.id,
                    None if parent is None else parent.id,
                    container,
                    time.time(),
                )
            )
            if name is not None:
                keep.records.set_tag(name, image)
            if container is not None and keep.records.container(container) is not None:
                keep.records.set_container(container, image=image)
        remember(image, config)
    if spare is not None:
        keep.collector.discard([spare])
    return image


@contextlib.contextmanager
def _or_nothing(keep: Keep, key: str) -> Iterator[None]:
    """A layer's directory that no row came to tell of goes: it may be what has filled the disk."""
    try:
        yield
    except BaseException:
        if keep.records.layer(key) is None:
            keep.collector.discard([key])
        raise


def _prepared(keep: Keep, new: NewLayer) -> tuple[bytes, int]:
    """The layer's index and its bytes on disk. What is staged is complete then, and flushed: that may take long, and
    nobody should have to wait for it with a sweep."""
    at = new.staged
    if at is None:
        assert new.snapshot is not None
        at = keep.places.layer(new.snapshot.id)
    index = new.index if new.index is not None else index_of(keep, os.path.join(at, "diff"), new.parent)
    if new.staged is not None:
        write_file(os.path.join(at, CHANGES), new.layered.changes)
        write_file(os.path.join(at, INDEX), index)
        flush_tree(at)
    return index, size_on_disk(os.path.join(at, "diff"))


def _placed(keep: Keep, new: NewLayer, key: str, index: bytes, size: int) -> LayerRecord:
    """The layer's directory, with its list of changes and its index, in its place."""
    at = keep.places.layer(key)
    if new.staged is not None:
        keep.places.publish(new.staged, at)
    else:
        put_file(os.path.join(at, CHANGES), new.layered.changes, keep.places.tmp)
        put_file(os.path.join(at, INDEX), index, keep.places.tmp)
    said = new.provenance
    return LayerRecord(
        id=key,
        parent=None if new.parent is None else new.parent.id,
        depth=0 if new.parent is None else new.parent.depth + 1,
        container=None if new.snapshot is None else new.snapshot.container,
        diff_id=new.layered.diff_id,
        chain_id=new.chain_id(),
        tar_size=new.layered.size,
        epoch=new.epoch,
        size=size,
        created=said.created,
        author=said.author,
        comment=said.comment,
        created_by=said.created_by,
    )


def index_of(keep: Keep, path: str, parent: LayerRecord | None) -> bytes:
    """The index of the layer at ``path``, which stands on ``parent``."""
    chain = [] if parent is None else keep.records.chain(parent.id)
    layers = [DirectoryLayer(path), *open_layers(keep, chain)]
    try:
        return pack(notes_of(TreeReader(layers)))
    finally:
        for layer in layers:
            layer.close()


def _record(keep: Keep, new: NewLayer, layer: LayerRecord) -> tuple[LayerRecord, str | None]:
    """The layer's row, in a transaction: the layer that counts, and one whose directory is not needed."""
    records = keep.records
    assert layer.chain_id is not None
    same = records.layer_by_chain(layer.chain_id)
    adopted = new.staged is None
    if same is not None:  # Perhaps the snapshot itself, which another commit was quicker to make an image of.
        if new.snapshot is not None and new.snapshot.id != same.id:
            records.set_layer(new.snapshot.id, same_as=same.id)
        return same, None if adopted else layer.id
    if adopted:
        columns = ("diff_id", "chain_id", "tar_size", "epoch", "size", "created", "author", "comment", "created_by")
        records.set_layer(layer.id, **{column: getattr(layer, column) for column in columns})
        return layer, None
    records.add_layer(layer)
    if new.snapshot is not None:
        records.set_layer(new.snapshot.id, same_as=layer.id)
    return layer, None

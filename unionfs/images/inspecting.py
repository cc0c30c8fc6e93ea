"""Inspect: all that is known of an image, a container or a layer, as JSON has it; the keys are Docker's where it has
them."""

from __future__ import annotations

import collections
import datetime as dt
import os
from typing import TYPE_CHECKING, Any

from unionfs.errors import NotFoundError, StoreError
from unionfs.images import points
from unionfs.images.layering import CHANGES, read_changes
from unionfs.images.times import rfc3339
from unionfs.store.collect import size_on_disk
from unionfs.store.keep import Keep
from unionfs.store.records import LayerRecord, PointRecord

if TYPE_CHECKING:
    from unionfs.images.container import Container
    from unionfs.images.image import Image
    from unionfs.images.store import Store


def inspect(store: Store, ref: str) -> dict[str, Any]:
    """A container, an image or a layer, by whatever it is called; sizes in bytes, times as in RFC 3339.

    ``NotFoundError``; ``StoreError`` if what describes an image is missing or damaged.
    """
    point = points.find_point(store.keep, ref)
    if point.container is not None:
        return _container(store, store.container(point.container))
    if point.image is not None and "~" not in ref:
        return _image(store, store.image(point.image))
    found = None if point.layer is None else store.keep.records.layer(point.layer)
    if found is None:
        raise NotFoundError(f"{ref!r} is the empty tree")
    return _layer(store.keep, found)


def _image(store: Store, image: Image) -> dict[str, Any]:
    config, manifest = image.config, image.manifest
    layers = image.layers[::-1]
    names = image.names
    repositories = dict.fromkeys(name.rpartition(":")[0] for name in names)
    return {
        "Type": "image",
        "Id": image.id,
        "Digest": image.digest,
        "RepoTags": names,
        "RepoDigests": [f"{name}@{image.digest}" for name in repositories],
        "Parent": image.record.parent,
        "Container": image.record.container,
        "Created": config.created,
        "Author": config.author,
        "Comment": config.history[-1].comment if config.history else "",
        "Architecture": config.architecture,
        "Variant": config.variant,
        "Os": config.os,
        "Config": config.run.value(),
        "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
        "Size": sum(layer.size or 0 for layer in layers),
        "History": [entry.value() for entry in config.history],
        "Manifest": {
            "MediaType": manifest.media_type,
            "Config": manifest.config.value(),
            "Layers": [descriptor.value() for descriptor in manifest.layers],
            "Annotations": dict(manifest.annotations),
        },
        "Layers": [_brief(store.keep, layer) for layer in layers],
        "Containers": [record.name for record in store.keep.records.containers_of(image.id)],
    }


def _container(store: Store, container: Container) -> dict[str, Any]:
    keep = store.keep
    record = container.record
    upper = keep.places.upper(record.id, record.upper)
    return {
        "Type": "container",
        "Id": record.id,
        "Name": record.name,
        "Image": record.image,
        "ImageNames": [] if record.image is None else keep.records.names_of(record.image),
        "Created": rfc3339(container.created),
        "Status": container.status,
        "Command": list(record.command),
        "Upper": upper,
        "Work": keep.places.work(record.id, record.upper),
        "Size": size_on_disk(upper),
        "Layers": [_brief(keep, layer) for layer in reversed(container.history())],
        "Points": [_point(point) for point in container.points()],
    }


def _layer(keep: Keep, layer: LayerRecord) -> dict[str, Any]:
    return {
        "Type": "layer" if layer.chain_id is not None else "snapshot",
        **_brief(keep, layer),
        "Parent": layer.parent,
        "Depth": layer.depth,
        "SameAs": layer.same_as,
        "TarSize": layer.tar_size if layer.diff_id is not None else None,
        "SourceDateEpoch": layer.epoch,
        "Container": layer.container,
        "Changes": _counts(keep, layer),
        "ChangesFile": _changes(keep, layer) if layer.diff_id is not None else None,
        "RepoTags": keep.records.names_at(layer.id),
    }


def _brief(keep: Keep, layer: LayerRecord) -> dict[str, Any]:
    return {
        "Id": layer.id,
        "DiffId": layer.diff_id,
        "ChainId": layer.chain_id,
        "Directory": keep.places.diff(layer.id),
        "Size": layer.size,
        "Created": layer.created or None,
        "Author": layer.author,
        "Comment": layer.comment,
        "CreatedBy": layer.created_by,
    }


def _point(point: PointRecord) -> dict[str, Any]:
    return {"Layer": point.layer, "At": rfc3339(dt.datetime.fromtimestamp(point.at, dt.UTC)), "Why": point.why}


def _changes(keep: Keep, layer: LayerRecord) -> str:
    return os.path.join(keep.places.layer(layer.id), CHANGES)


def _counts(keep: Keep, layer: LayerRecord) -> dict[str, int] | None:
    """How many paths the layer added, changed and deleted; ``None`` if its list can't be read, or if it has none."""
    if layer.diff_id is None:
        return None
    try:
        kinds = collections.Counter(str(line.get("kind")) for line in read_changes(_changes(keep, layer)))
    except (OSError, StoreError):
        return None
    return {kind: kinds[kind] for kind in ("added", "changed", "deleted")}

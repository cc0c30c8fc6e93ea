"""What takes room: own bytes, and bytes that others use too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import attrs

from unionfs.images.points import short
from unionfs.store.collect import size_on_disk
from unionfs.store.keep import Keep
from unionfs.store.records import READY, LayerRecord

if TYPE_CHECKING:
    from unionfs.images.store import Store

Kind = Literal["image", "container", "layer", "snapshot"]


@attrs.frozen
class Usage:
    """The room that one thing takes, in bytes on disk. A file with several names in a layer counts once."""

    kind: Kind
    """``layer``: of images; ``snapshot``: one that no image has."""
    id: str
    name: str
    """An image's or a container's name; of a layer the beginning of its id."""
    size: int
    """All that it needs, with the layers that it stands on; of a layer its own bytes."""
    own: int
    """What would be freed if this alone were removed."""
    shared: int
    """The rest: others use it too."""
    active: bool = True
    """Whether anything uses it: a container an image, an image or a container a layer."""


@attrs.frozen
class Total:
    """All things of one kind."""

    kind: Kind
    count: int
    active: int
    size: int
    """Bytes on disk, what is shared counted once: of images that of their layers, which are told as ``layer`` again, of
    containers that of their writable layers."""
    reclaimable: int
    """Own bytes of those that nothing uses."""


_MANY = "*"


def usage(store: Store) -> list[Usage]:
    """Images, containers, layers and snapshots, each kind with the largest own bytes first."""
    return measure(store)[0]


def measure(store: Store) -> tuple[list[Usage], list[Total]]:
    """The same, and what each kind takes together. Snapshots that were never measured are measured now."""
    keep = store.keep
    _measure_layers(keep)
    with keep.database.reading():
        layers = {layer.id: layer for layer in keep.records.layers() if layer.state == READY}
        images = keep.records.images()
        containers = keep.records.containers()
        points = keep.records.points()
        tags = keep.records.tags()
        leased = [str(row[0]) for row in keep.database.rows("SELECT layer FROM leases")]
    used: dict[str, str] = {}
    for image in images:
        _use(used, image.layer, image.id)
    for container in containers:
        _use(used, container.layer, container.id)
    for point in points:
        _use(used, point.layer, point.container)
    for layer in leased:
        _use(used, layer, _MANY)
    _spread(used, layers)
    own: dict[str, int] = {}
    for key, layer_record in layers.items():
        own[used.get(key, "")] = own.get(used.get(key, ""), 0) + (layer_record.size or 0)
    names: dict[str, list[str]] = {}
    for name, image_id in tags:
        names.setdefault(image_id, []).append(name)
    depth = summed(layers)
    found: list[Usage] = []
    in_use = {container.image for container in containers}
    for image in images:
        size = _size_of([image.layer], layers, depth)
        mine = own.get(image.id, 0)
        label = ", ".join(names.get(image.id, ())) or short(image.id)
        found.append(Usage("image", image.id, label, size, mine, size - mine, image.id in in_use))
    uppers = 0
    for container in containers:
        upper = size_on_disk(keep.places.upper(container.id, container.upper))
        uppers += upper
        stood_on = [point.layer for point in points if point.container == container.id]
        size = upper + _size_of([container.layer, *stood_on], layers, depth)
        mine = upper + own.get(container.id, 0)
        found.append(Usage("container", container.id, container.name, size, mine, size - mine))
    for key, layer_record in layers.items():
        size = layer_record.size or 0
        alone = used.get(key) != _MANY
        kind: Kind = "snapshot" if layer_record.chain_id is None else "layer"
        found.append(
            Usage(kind, key, short(key), size, size if alone else 0, 0 if alone else size, used.get(key) is not None)
        )
    order: Sequence[Kind] = ("image", "container", "layer", "snapshot")
    found.sort(key=lambda each: (order.index(each.kind), -each.own, -each.size, each.name))
    together = {"container": uppers, "image": sum(each.size for each in found if each.kind == "layer")}
    return found, [_total(kind, [each for each in found if each.kind == kind], together.get(kind)) for kind in order]


def _total(kind: Kind, each: Sequence[Usage], size: int | None) -> Total:
    idle = [one for one in each if not one.active]
    total = sum(one.size for one in each) if size is None else size
    return Total(kind, len(each), len(each) - len(idle), total, sum(one.own for one in idle))


def _measure_layers(keep: Keep) -> None:
    """Give each layer of the metadata its size."""
    for layer in keep.records.layers():
        if layer.size is None and layer.state == READY:
            size = size_on_disk(keep.places.diff(layer.id))
            with keep.database.transaction("size"):
                keep.records.set_layer(layer.id, size=size)


def _use(used: dict[str, str], layer: str | None, by: str) -> None:
    if layer is not None:
        used[layer] = by if used.get(layer, by) == by else _MANY


def _links(layer: LayerRecord) -> list[str]:
    return [key for key in (layer.parent, layer.same_as) if key is not None]


def _spread(used: dict[str, str], layers: dict[str, LayerRecord]) -> None:
    """Who uses a layer uses what it stands on, and what shows the same."""
    waiting = dict.fromkeys(layers, 0)
    for layer in layers.values():
        for key in _links(layer):
            if key in waiting:
                waiting[key] += 1
    ready = [key for key, count in waiting.items() if not count]
    while ready:
        key = ready.pop()
        for below in _links(layers[key]):
            if below not in waiting:
                continue
            if key in used:
                _use(used, below, used[key])
            waiting[below] -= 1
            if not waiting[below]:
                ready.append(below)


def summed(layers: dict[str, LayerRecord]) -> dict[str, int]:
    """The bytes of each layer and all that it stands on."""
    found: dict[str, int] = {}
    for layer in sorted(layers.values(), key=lambda layer: layer.depth):
        found[layer.id] = (layer.size or 0) + found.get(layer.parent or "", 0)
    return found


def _size_of(tops: Iterable[str | None], layers: dict[str, LayerRecord], summed: dict[str, int]) -> int:
    """The bytes of these layers and all that they stand on, each counted once."""
    keys = list(dict.fromkeys(key for key in tops if key in layers))
    if len(keys) <= 1:
        return sum(summed[key] for key in keys)
    seen: set[str] = set()
    total = 0
    for key in keys:
        at: str | None = key
        while at is not None and at in layers and at not in seen:
            seen.add(at)
            total += layers[at].size or 0
            at = layers[at].parent
    return total


__all__ = ["Kind", "Total", "Usage", "measure", "usage"]

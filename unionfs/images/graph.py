"""The tree of layers: in order, and as a drawing."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import attrs

from unionfs.images.times import parsed
from unionfs.store.records import READY, LayerRecord

if TYPE_CHECKING:
    from unionfs.images.store import Store


@attrs.frozen
class Node:
    """A layer, and what points at it."""

    layer: LayerRecord
    names: tuple[str, ...] = ()
    """Names of images that end here."""
    containers: tuple[str, ...] = ()
    """Names of containers whose writable layer stands here."""
    images: tuple[str, ...] = ()
    """Ids of images that end here."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of all that points here."""
        return (*self.names, *self.containers)


@attrs.frozen
class Row:
    """One line of a drawing."""

    graph: str
    """The columns: ``* | ``, ``|/``."""
    node: Node | None = None
    """The layer that stands in this line; ``None`` where branches only join."""
    below: str = ""
    """The columns of further lines about that layer."""


def log(store: Store) -> list[Node]:
    """All layers, each before what it stands on, and among those that may come next the newest first."""
    keep = store.keep
    with keep.database.reading():
        layers = [layer for layer in keep.records.layers() if layer.state == READY]
        names, images, containers = (
            _grouped(keep.database.rows(question))
            for question in (
                "SELECT images.layer, tags.name FROM tags JOIN images ON tags.image = images.id ORDER BY tags.name",
                "SELECT layer, id FROM images ORDER BY made DESC, id",
                "SELECT layer, name FROM containers ORDER BY name",
            )
        )
    return [
        Node(layer, names.get(layer.id, ()), containers.get(layer.id, ()), images.get(layer.id, ()))
        for layer in _ordered(layers)
    ]


def _grouped(rows: Iterable[tuple[str | None, str]]) -> dict[str | None, tuple[str, ...]]:
    found: dict[str | None, tuple[str, ...]] = {}
    for layer, value in rows:
        found[layer] = (*found.get(layer, ()), value)
    return found


def _ordered(layers: list[LayerRecord]) -> Iterator[LayerRecord]:
    by_id = {layer.id: layer for layer in layers}
    children = dict.fromkeys(by_id, 0)
    for layer in layers:
        if layer.parent in children:
            children[layer.parent] += 1
    # Of one time the one that was recorded last is the newest.
    ages = {layer.id: (-_seconds(layer), -i) for i, layer in enumerate(layers)}
    ready = [(ages[key], key) for key, count in children.items() if not count]
    heapq.heapify(ready)
    while ready:
        layer = by_id[heapq.heappop(ready)[1]]
        yield layer
        parent = layer.parent
        if parent in children:
            children[parent] -= 1
            if not children[parent]:
                heapq.heappush(ready, (ages[parent], parent))


def _seconds(layer: LayerRecord) -> float:
    created = parsed(layer.created)
    return 0.0 if created is None else created.timestamp()


def draw(nodes: Iterable[Node]) -> Iterator[Row]:
    """The nodes, each before its parent, as ``git log --graph`` draws them.

    * |   what is newest, at the tip of one branch
    | *   the other branch
    |/    both stand on what comes next
    *
    """
    columns: list[str] = []  # of the layers that come further down
    for node in nodes:
        key, parent = node.layer.id, node.layer.parent
        if key not in columns:
            columns.append(key)
        at = columns.index(key)
        graph = "".join("* " if i == at else "| " for i in range(len(columns)))
        below = "".join("  " if i == at and parent is None else "| " for i in range(len(columns)))
        yield Row(graph.rstrip(), node, below.rstrip())
        if parent is None:
            del columns[at]
            if at < len(columns):
                yield Row("| " * at + " /" * (len(columns) - at))
        elif parent in columns:
            first, last = sorted((at, columns.index(parent)))
            columns[first] = parent
            del columns[last]
            joined = "|_" * (last - first - 1) + "|/"
            yield Row("| " * first + joined + " /" * (len(columns) - last))
        else:
            columns[at] = parent

"""Freezing a container's writable layer: the one step by which commit, fork and roll-back begin.

1. A row tells what is about to happen (``pending``), on disk before anything does.
2. The writable layer and the new layer's directory exchange names (``union.commit``), whatever is in them.
3. One transaction: the layer is there, and the container stands on it.

Whoever is killed after 1 leaves a row that the next who has the container, or a collection, settles: the directory
carries a commit's record if step 2 happened.
"""

from __future__ import annotations

import os
import time

from unionfs.errors import NotFoundError, UpperBusyError
from unionfs.images.publishing import Provenance
from unionfs.images.stacks import StoreFS, is_untouched
from unionfs.images.times import parsed
from unionfs.layer.upper import UpperDirectory
from unionfs.store.durable import flush_directory, make_directory
from unionfs.store.keep import Keep
from unionfs.store.places import new_id
from unionfs.store.records import PENDING, READY, ContainerRecord, LayerRecord, PointRecord
from unionfs.store.steps import step

_MAX_COMMENT = 500
_GLANCE = 0.1  # seconds, for who has the lock only to see whether anybody has it


def freeze(keep: Keep, container: ContainerRecord, fs: StoreFS, said: Provenance, why: str) -> str | None:
    """Freeze the writable layer of ``container``, which ``fs`` has open, unless it holds nothing; the layer that the
    container stands on now. ``OSError``: ``EBUSY`` while the kernel's overlayfs has it.
    """
    keep.collector.settle(container.id)  # A freezing before this one that could not be noted, on a full disk.
    container = keep.records.container(container.id) or container
    upper = fs.tree.writable()
    layers = fs.tree.resolver.layers
    if is_untouched(upper, layers[1] if len(layers) > 1 and container.layer is not None else None):
        return container.layer
    parent = None if container.layer is None else keep.records.layer(container.layer)
    layer = LayerRecord(
        id=new_id(),
        parent=container.layer,
        depth=0 if parent is None else parent.depth + 1,
        state=PENDING,
        container=container.id,
        created=said.created,
        author=said.author,
        comment=said.comment,
        created_by=said.created_by,
    )
    with keep.database.transaction("freeze"):
        keep.records.add_layer(layer)
    try:
        make_directory(keep.places.layer(layer.id))
        step("exchange")
        fs.commit(
            keep.places.diff(layer.id),
            message=said.comment[:_MAX_COMMENT],
            author=said.author[:_MAX_COMMENT],
            created_by=said.created_by,
            created=parsed(said.created),
        )
        flush_directory(keep.places.layers)
        with keep.database.transaction("frozen"):
            keep.records.set_layer(layer.id, state=READY)
            keep.records.set_container(container.id, layer=layer.id)
            keep.records.add_point(PointRecord(container.id, layer.id, time.time(), why))
    except BaseException:
        # Either the exchange happened or it did not; what the directory says counts.
        keep.collector.settle(container.id)
        raise
    return layer.id


def discard_upper(keep: Keep, container: str, upper: str) -> None:
    """A writable layer that no container has any more goes."""
    keep.places.discard(os.path.join(keep.places.containers, container, upper))


def open_upper(keep: Keep, container: ContainerRecord) -> tuple[UpperDirectory, ContainerRecord]:
    """The writable layer of ``container``, locked, and the container's row as it is with that lock.

    Raises ``UpperBusyError`` while another has it, ``LayerError`` if it is missing.
    """
    deadline = time.monotonic() + _GLANCE
    while True:
        try:
            upper = UpperDirectory(
                keep.places.upper(container.id, container.upper), keep.places.work(container.id, container.upper)
            )
        except UpperBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
            continue
        except OSError:
            now = keep.records.container(container.id)
            if now is not None and now.upper == container.upper:
                raise
            if now is None:
                raise NotFoundError(f"container {container.name!r} is gone") from None
            container = now
            continue
        try:
            keep.collector.settle(container.id)
            now = keep.records.container(container.id)
            if now is not None and now.upper == container.upper:
                return upper, now
        except BaseException:
            upper.close()
            raise
        upper.close()  # Rolled back, or removed, just before we had the lock.
        if now is None:
            raise NotFoundError(f"container {container.name!r} is gone")
        container = now

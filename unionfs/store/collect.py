"""What nothing refers to any more goes: from the metadata first, from the disk second, and what a process that was
killed has left at last. Safe beside all other work on the store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable

import attrs

from unionfs.errors import LayerError
from unionfs.layer.directory import DirectoryLayer
from unionfs.store.blobs import Blobs
from unionfs.store.database import Database
from unionfs.store.leases import drop_dead
from unionfs.store.places import Places
from unionfs.store.records import READY, LayerRecord, PointRecord, Records
from unionfs.store.reserve import Reserve

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@attrs.define
class Freed:
    """What a collection removed."""

    images: list[str] = attrs.field(factory=list)
    layers: list[str] = attrs.field(factory=list)
    blobs: list[str] = attrs.field(factory=list)
    left: list[str] = attrs.field(factory=list)
    """What processes that were killed had left."""
    size: int = 0
    """Bytes on disk."""


_LIVE = """
WITH RECURSIVE live (id) AS (
    SELECT layer FROM images WHERE layer IS NOT NULL
    UNION SELECT layer FROM containers WHERE layer IS NOT NULL
    UNION SELECT layer FROM points
    UNION SELECT layer FROM leases
    UNION SELECT id FROM layers WHERE state = 'pending'
    UNION SELECT link.target FROM live JOIN (
        SELECT id, parent AS target FROM layers WHERE parent IS NOT NULL
        UNION ALL SELECT id, same_as FROM layers WHERE same_as IS NOT NULL
    ) AS link ON link.id = live.id
)
SELECT id, size FROM layers WHERE id NOT IN live ORDER BY depth DESC
"""


class Collector:
    """Collection over one store."""

    def __init__(self, places: Places, database: Database, records: Records, blobs: Blobs, reserve: Reserve) -> None:
        self._places = places
        self._database = database
        self._records = records
        self._blobs = blobs
        self.reserve = reserve

    def drop_unused(self, freed: Freed, *, images: bool) -> list[str]:
        """Rows that nothing refers to, in a transaction of the caller's: layers, and with ``images`` images that have
        no name and no container. What ``discard`` has to take from the disk."""
        drop_dead(self._places, self._database)
        if images:
            rows = self._database.rows(
                "SELECT id FROM images WHERE id NOT IN (SELECT image FROM tags)"
                " AND id NOT IN (SELECT image FROM containers WHERE image IS NOT NULL)"
            )
            for (image,) in rows:
                self._records.drop_image(image)
                freed.images.append(image)
        gone = []
        for layer, size in self._database.rows(_LIVE):
            # A row of the same tree may go before the one that names it.
            self._database.execute("UPDATE layers SET same_as = NULL WHERE same_as = ?", (layer,))
            self._records.drop_layer(layer)
            freed.layers.append(layer)
            freed.size += size or 0
            gone.append(layer)
        return gone

    def discard(self, layers: list[str]) -> None:
        """Take layers without a row from the disk."""
        for layer in layers:
            self._places.discard(self._places.layer(layer))
        self._places.empty_trash()

    def collect(self, progress: Progress | None = None) -> Freed:
        """Everything that can go, goes."""
        freed = Freed()
        self.reserve.give()
        for begun in self._records.pending():
            with contextlib.suppress(BlockingIOError):
                self.settle_alone(begun)
        with self._database.transaction("collect"):
            gone = self.drop_unused(freed, images=True)
        for i, layer in enumerate(gone):
            if progress is not None:
                progress("removing layers", i, len(gone))
            self._places.discard(self._places.layer(layer))
        with self._places.sweeping():
            self._sweep(freed)
        self._places.empty_trash()
        self.reserve.fill()
        return freed

    def sweep(self) -> None:
        """What killed processes left; to be called when a store is opened. ``BlockingIOError`` while somebody is
        publishing: there will be another time."""
        with self._places.sweeping(wait=False):
            self._sweep(Freed())
        self._places.empty_trash()

    def _sweep(self, freed: Freed) -> None:
        places = self._places
        freed.left += places.sweep_left(places.tmp)
        places.sweep_left(places.leases)
        # Who freezes makes the row first and publishes nothing: a directory seen before the rows are read has its row.
        rooms = {room: os.listdir(room) for room in (places.layers, places.containers)}
        with self._database.reading():
            layers = {str(row[0]) for row in self._database.rows("SELECT id FROM layers")}
            containers = {str(row[0]) for row in self._database.rows("SELECT id FROM containers")}
            uppers = {(c.id, c.upper) for c in self._records.containers()}
            blobs = {
                str(row[0]) for row in self._database.rows("SELECT id FROM images UNION SELECT manifest FROM images")
            }
        for room, known in ((places.layers, layers), (places.containers, containers)):
            for name in rooms[room]:
                if name not in known:
                    freed.left.append(name)
                    places.discard(os.path.join(room, name))
        for container in containers:
            at = os.path.join(places.containers, container)
            for name in _names(at):
                if name.isdigit() and (container, name) not in uppers:
                    places.discard(os.path.join(at, name))
        for digest in self._blobs.all():
            if digest not in blobs:
                freed.blobs.append(digest)
                freed.size += self._blobs.size(digest)
                places.discard(self._blobs.path(digest))

    # A freezing that was begun

    def settle_alone(self, layer: LayerRecord) -> None:
        """Bring a freezing that somebody began to its end or its beginning. ``BlockingIOError`` while that somebody, or
        anybody, has the container's writable layer."""
        container = None if layer.container is None else self._records.container(layer.container)
        if container is None:
            self._settle(layer)
            return
        try:
            # Not upper: that is another directory after each commit.
            fd = os.open(self._places.work(container.id, container.upper), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._settle(layer)
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = self._records.container(container.id)
            if now is not None and now.upper != container.upper:
                raise BlockingIOError  # Rolled back meanwhile: this is not its lock any more.
            self._settle(layer)
        finally:
            os.close(fd)

    def settle(self, container: str) -> None:
        """The same for all that was begun with this container, by who has its writable layer locked."""
        for layer in self._records.pending(container):
            self._settle(layer)

    def _settle(self, layer: LayerRecord) -> None:
        """Its directory has a commit's record if it took the writable layer's place, and has none if it did not."""
        try:
            found = DirectoryLayer(self._places.diff(layer.id))
        except LayerError as error:
            if error.errno != errno.ENOENT:  # Not known is not broken off.
                raise
            done = False
        else:
            done = found.record is not None
            found.close()
        with self._database.transaction("settle"):
            now = self._records.layer(layer.id)
            if now is None or now.state == READY:
                return
            container = None if layer.container is None else self._records.container(layer.container)
            if done and container is not None and container.layer == layer.parent:
                self._records.set_layer(layer.id, state=READY)
                self._records.set_container(container.id, layer=layer.id)
                self._records.add_point(PointRecord(container.id, layer.id, time.time(), "recovered"))
                return
            self._records.drop_layer(layer.id)
        log.warning("layer %s: what froze it was broken off", layer.id[:12])
        self._places.discard(self._places.layer(layer.id))


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def size_on_disk(path: str) -> int:
    """Bytes that a tree takes (``st_blocks``), a file with several names counted once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    todo = [path]
    while todo:
        at = todo.pop()
        try:
            st = os.lstat(at)
            key = (st.st_dev, st.st_ino)
            if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
                if key in seen:
                    continue
                seen.add(key)
            total += st.st_blocks * 512
            if stat.S_ISDIR(st.st_mode):
                todo += [os.path.join(at, name) for name in os.listdir(at)]
        except FileNotFoundError:
            continue
    return total

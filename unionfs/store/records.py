"""The rows of the metadata, as values, and the questions that are asked of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

import attrs

from unionfs.store.database import Database

PENDING, READY = "pending", "ready"


def _command(value: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(json.loads(value) if isinstance(value, str) else value)


@attrs.frozen(slots=True)
class LayerRecord:
    """A frozen layer. Valid on its parents only: redirects and metacopies point into them."""

    id: str
    parent: str | None
    depth: int
    """How many layers it stands on."""
    state: str = READY
    container: str | None = None
    """Whose writable layer it was."""
    diff_id: str | None = None
    """Digest of the layer as an uncompressed tar (image-spec, config.md); ``None`` for a snapshot."""
    chain_id: str | None = None
    same_as: str | None = None
    """Of a snapshot: the image layer that shows the same tree on the image layers that it stands on."""
    tar_size: int = 0
    """Bytes of that tar."""
    epoch: int | None = None
    """``SOURCE_DATE_EPOCH`` when it was made: later times are this time in the tar."""
    size: int | None = None
    """Bytes on disk, once measured."""
    created: str = ""
    author: str = ""
    comment: str = ""
    created_by: str = ""


@attrs.frozen(slots=True)
class ImageRecord:
    id: str
    """Digest of the config."""
    manifest: str
    layer: str | None
    parent: str | None
    container: str | None
    made: float
    """Seconds since 1970."""


@attrs.frozen(slots=True)
class ContainerRecord:
    id: str
    name: str
    image: str | None
    layer: str | None
    """What its writable layer stands on."""
    upper: str
    """The directory's name of its writable layer."""
    made: float
    command: tuple[str, ...] = attrs.field(converter=_command)


@attrs.frozen(slots=True)
class PointRecord:
    """A state that a container was in."""

    container: str
    layer: str
    at: float
    why: str


_R = TypeVar("_R", LayerRecord, ImageRecord, ContainerRecord, PointRecord)


def _columns(kind: type[Any]) -> str:
    return ", ".join(field.name for field in attrs.fields(kind))


_LAYER, _IMAGE, _CONTAINER, _POINT = map(_columns, (LayerRecord, ImageRecord, ContainerRecord, PointRecord))


class Records:
    """Questions and single changes. Changes are for within a ``Database.transaction``."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def _all(self, kind: type[_R], statement: str, values: Iterable[Any] = ()) -> list[_R]:
        return [kind(*row) for row in self.database.rows(statement, tuple(values))]

    # Layers

    def layer(self, key: str) -> LayerRecord | None:
        found = self._all(LayerRecord, f"SELECT {_LAYER} FROM layers WHERE id = ?", (key,))
        return found[0] if found else None

    def layers(self) -> list[LayerRecord]:
        return self._all(LayerRecord, f"SELECT {_LAYER} FROM layers")

    def layer_by_chain(self, chain_id: str) -> LayerRecord | None:
        found = self._all(LayerRecord, f"SELECT {_LAYER} FROM layers WHERE chain_id = ?", (chain_id,))
        return found[0] if found else None

    def chain(self, top: str | None) -> list[LayerRecord]:
        """A layer and all that it stands on, topmost first."""
        if top is None:
            return []
        columns = ", ".join(f"layers.{name}" for name in _LAYER.split(", "))
        return self._all(
            LayerRecord,
            "WITH RECURSIVE chain (id) AS (SELECT ? UNION ALL SELECT layers.parent FROM layers JOIN chain USING (id)"
            f" WHERE layers.parent IS NOT NULL) SELECT {columns} FROM chain JOIN layers USING (id)"
            " ORDER BY layers.depth DESC",
            (top,),
        )

    def pending(self, container: str | None = None) -> list[LayerRecord]:
        """Layers whose freezing began and was not reported as done."""
        where, values = ("", ()) if container is None else (" AND container = ?", (container,))
        return self._all(LayerRecord, f"SELECT {_LAYER} FROM layers WHERE state = '{PENDING}'{where}", values)

    def add_layer(self, layer: LayerRecord) -> None:
        values = attrs.astuple(layer)
        self.database.execute(f"INSERT INTO layers ({_LAYER}) VALUES ({', '.join('?' * len(values))})", values)

    def set_layer(self, key: str, **columns: object) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        self.database.execute(f"UPDATE layers SET {names} WHERE id = ?", (*columns.values(), key))

    def drop_layer(self, key: str) -> None:
        self.database.execute("DELETE FROM layers WHERE id = ?", (key,))

    # Images and tags

    def image(self, key: str) -> ImageRecord | None:
        found = self._all(ImageRecord, f"SELECT {_IMAGE} FROM images WHERE id = ?", (key,))
        return found[0] if found else None

    def images(self) -> list[ImageRecord]:
        """Newest first."""
        return self._all(ImageRecord, f"SELECT {_IMAGE} FROM images ORDER BY made DESC, id")

    def images_of(self, layer: str) -> list[ImageRecord]:
        """Those whose topmost layer this is, newest first."""
        return self._all(ImageRecord, f"SELECT {_IMAGE} FROM images WHERE layer = ? ORDER BY made DESC, id", (layer,))

    def add_image(self, image: ImageRecord) -> None:
        """One that is there already stays as it is: the same id is the same content."""
        values = attrs.astuple(image)
        self.database.execute(
            f"INSERT INTO images ({_IMAGE}) VALUES ({', '.join('?' * len(values))}) ON CONFLICT DO NOTHING", values
        )

    def drop_image(self, key: str) -> None:
        self.database.execute("DELETE FROM images WHERE id = ?", (key,))

    def tags(self) -> list[tuple[str, str]]:
        """All names and the images that they point at."""
        return [
            (str(name), str(image)) for name, image in self.database.rows("SELECT name, image FROM tags ORDER BY name")
        ]

    def tagged(self, name: str) -> str | None:
        """The image of a name."""
        row = self.database.row("SELECT image FROM tags WHERE name = ?", (name,))
        return None if row is None else str(row[0])

    def names_of(self, image: str) -> list[str]:
        return [
            str(row[0]) for row in self.database.rows("SELECT name FROM tags WHERE image = ? ORDER BY name", (image,))
        ]

    def names_at(self, layer: str) -> list[str]:
        """Names of the images whose topmost layer this is."""
        rows = self.database.rows(
            "SELECT name FROM tags JOIN images ON image = images.id WHERE images.layer = ? ORDER BY name", (layer,)
        )
        return [str(row[0]) for row in rows]

    def set_tag(self, name: str, image: str) -> None:
        self.database.execute(
            "INSERT INTO tags (name, image) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET image = excluded.image",
            (name, image),
        )

    def drop_tag(self, name: str) -> bool:
        return self.database.execute("DELETE FROM tags WHERE name = ?", (name,)) > 0

    # Containers and their points

    def container(self, key: str) -> ContainerRecord | None:
        found = self._all(ContainerRecord, f"SELECT {_CONTAINER} FROM containers WHERE id = ?", (key,))
        return found[0] if found else None

    def container_by_name(self, name: str) -> ContainerRecord | None:
        found = self._all(ContainerRecord, f"SELECT {_CONTAINER} FROM containers WHERE name = ?", (name,))
        return found[0] if found else None

    def containers(self) -> list[ContainerRecord]:
        """Newest first."""
        return self._all(ContainerRecord, f"SELECT {_CONTAINER} FROM containers ORDER BY made DESC, id")

    def containers_of(self, image: str) -> list[ContainerRecord]:
        return self._all(ContainerRecord, f"SELECT {_CONTAINER} FROM containers WHERE image = ?", (image,))

    def add_container(self, container: ContainerRecord) -> None:
        values = (*attrs.astuple(container)[:-1], json.dumps(container.command))
        self.database.execute(f"INSERT INTO containers ({_CONTAINER}) VALUES ({', '.join('?' * len(values))})", values)

    def set_container(self, key: str, **columns: object) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        self.database.execute(f"UPDATE containers SET {names} WHERE id = ?", (*columns.values(), key))

    def drop_container(self, key: str) -> None:
        self.database.execute("DELETE FROM containers WHERE id = ?", (key,))

    def points(self, container: str | None = None) -> list[PointRecord]:
        """The states that containers were in, latest first."""
        where, values = ("", ()) if container is None else (" WHERE container = ?", (container,))
        return self._all(PointRecord, f"SELECT {_POINT} FROM points{where} ORDER BY at DESC, rowid DESC", values)

    def add_point(self, point: PointRecord) -> None:
        self.database.execute(f"INSERT INTO points ({_POINT}) VALUES (?, ?, ?, ?)", attrs.astuple(point))

    # By prefix

    def matching(self, table: str, column: str, prefix: str) -> list[str]:
        """Ids in ``table`` whose ``column`` begins with ``prefix``, at most three. Both names are the caller's own."""
        last = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        rows = self.database.rows(
            f"SELECT DISTINCT id FROM {table} WHERE {column} >= ? AND {column} < ? LIMIT 3", (prefix, last)
        )
        return [str(row[0]) for row in rows]

"""fsck: hash everything again, and name what is wrong. Nothing is changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import attrs

from unionfs.errors import StoreError, UnionError
from unionfs.images.hashing import hash_file, in_parallel
from unionfs.images.layercheck import check_layers
from unionfs.images.points import short
from unionfs.images.problems import Problem, wrong_permissions
from unionfs.images.publishing import Report
from unionfs.layer.directory import DirectoryLayer
from unionfs.oci.model import ImageConfig, Manifest, chain_ids
from unionfs.store.blobs import Blobs
from unionfs.store.keep import Keep
from unionfs.store.places import ROOMS, Places, is_locked
from unionfs.store.records import READY, ContainerRecord, ImageRecord, LayerRecord

if TYPE_CHECKING:
    from unionfs.images.store import Store

T = TypeVar("T")


def check(store: Store, *, report: Report | None = None) -> list[Problem]:
    """All that is wrong in a store, the worst first. Safe beside other work on it."""
    return _Check(store.keep.places, store.keep, report).run()


def check_path(path: str | os.PathLike[str], *, report: Report | None = None) -> list[Problem]:
    """The same of a store that may be too damaged to be opened: what can be looked at is looked at."""
    places = Places(os.fspath(path), make=False)
    if not os.path.isdir(places.root):
        return [Problem("store", "there is no such directory", path=places.root)]
    keep = None
    found = []
    try:
        keep = Keep(places.root, as_is=True)
    except StoreError as error:
        found.append(Problem("database", _without(str(error), places.database), path=places.database))
    try:
        return found + _Check(places, keep, report).run()
    finally:
        if keep is not None:
            keep.close()


@attrs.define
class _Rows:
    """What the metadata tell; empty where they can't be read."""

    layers: list[LayerRecord] = attrs.field(factory=list)
    pending: list[LayerRecord] = attrs.field(factory=list)
    images: list[ImageRecord] = attrs.field(factory=list)
    containers: list[ContainerRecord] = attrs.field(factory=list)
    tags: list[tuple[str, str]] = attrs.field(factory=list)
    complete: bool = False
    """Whether all could be read."""


class _Check:
    def __init__(self, places: Places, keep: Keep | None, report: Report | None) -> None:
        self.places = places
        self.keep = keep
        self.report = report or (lambda what, done, total: None)  # noqa: ARG005
        self.owner = os.stat(places.root).st_uid
        self.rows = _Rows()
        self.found: list[Problem] = []
        self.good_blobs: set[str] = set()

    def run(self) -> list[Problem]:
        self.database()
        self.rooms()
        self.blobs()
        self.images()
        for problem in check_layers(
            self.places, self.rows.layers, self.owner, lambda done, total: self.report("checking layers", done, total)
        ):
            self.found.append(attrs.evolve(problem, images=self.standing_on(problem.id)))
        self.containers()
        self.left()
        kept = [problem for problem in self.found if not self.is_gone(problem)]
        return sorted(kept, key=lambda problem: problem.note)

    def add(self, *values: str, **more: object) -> None:
        """Note a problem."""
        self.found.append(Problem(*values, **more))  # type: ignore[arg-type]

    # Metadata

    def database(self) -> None:
        """Whether SQLite can read it all, and its rows fit each other."""
        keep = self.keep
        if keep is None:
            return
        path = self.places.database
        self.report("checking the database", 0, 0)
        for text in self.asked(keep.database.damage):
            self.add("database", text, path=path)
        rows = self.rows
        rows.complete = True
        records = keep.records
        layers: list[LayerRecord] = []

        def read() -> list[None]:
            with keep.database.reading():  # All of one moment.
                layers.extend(self.asked(records.layers))
                rows.images = self.asked(records.images)
                rows.containers = self.asked(records.containers)
                rows.tags = self.asked(records.tags)
            return []

        self.asked(read)
        rows.layers = [layer for layer in layers if layer.state == READY]
        rows.pending = [layer for layer in layers if layer.state != READY]
        known = {image.id for image in rows.images}
        for name, image in rows.tags:
            if image not in known:
                self.add("tag", f"points at image {short(image)}, which is not there", name, path)

    def asked(self, question: Callable[[], list[T]]) -> list[T]:
        """An answer of the database; nothing from a damaged one, which is told once."""
        try:
            return question()
        except StoreError as error:
            problem = Problem("database", _without(str(error), self.places.database), path=self.places.database)
            if problem not in self.found:
                self.found.append(problem)
        except (ValueError, TypeError) as error:
            self.add("database", f"a row can't be read: {error}", path=self.places.database)
        self.rows.complete = False
        return []

    def names(self, images: Iterator[ImageRecord]) -> tuple[str, ...]:
        """What these images are called."""
        found: list[str] = []
        for image in images:
            found += [name for name, key in self.rows.tags if key == image.id] or [short(image.id)]
        return tuple(found)

    def standing_on(self, layer: str) -> tuple[str, ...]:
        """The images that have this layer."""
        children: dict[str | None, list[str]] = {}
        for record in self.rows.layers:
            children.setdefault(record.parent, []).append(record.id)
        above: set[str | None] = set()
        todo = [layer]
        while todo:
            at = todo.pop()
            if at not in above:
                above.add(at)
                todo += children.get(at, ())
        return self.names(image for image in self.rows.images if image.layer in above)

    def is_gone(self, problem: Problem) -> bool:
        """Whether the thing was removed while it was looked at."""
        keep = self.keep
        if keep is None or not self.rows.complete or problem.note:
            return False
        match problem.what:
            case "layer":
                return problem.id not in {layer.id for layer in self.asked(keep.records.layers)}
            case "container":
                # One that was rolled back meanwhile has another writable layer.
                now = {(container.id, container.upper) for container in self.asked(keep.records.containers)}
                then = (container for container in self.rows.containers if container.id == problem.id)
                return not any((container.id, container.upper) in now for container in then)
            case "image":
                return problem.id not in {image.id for image in self.asked(keep.records.images)}
            case "blob" if problem.images:
                images = self.asked(keep.records.images)
                return not any(problem.id in (image.id, image.manifest) for image in images)
        return False

    # Files

    def rooms(self) -> None:
        """The store's own directories and its database."""
        for room in ["", "blobs", *ROOMS, "lock", "metadata.db"]:
            path = os.path.join(self.places.root, room) if room else self.places.root
            try:
                for text in wrong_permissions(path, self.owner):
                    self.add("store", f"{room or 'its directory'} {text}", path=path)
            except FileNotFoundError:
                if room != "metadata.db":
                    self.add("store", f"{room} is missing", path=path)
            except OSError as error:
                self.add("store", f"{room} can't be used: {error.strerror}", path=path)

    def blobs(self) -> None:
        """All bytes of all blobs."""
        room = self.places.blobs
        users: dict[str, list[ImageRecord]] = {}
        for image in self.rows.images:
            for digest in (image.id, image.manifest):
                users.setdefault(digest, []).append(image)
        there = self.listed(room)
        for digest in users.keys() - {f"sha256:{name}" for name in there}:
            path = os.path.join(room, digest.removeprefix("sha256:"))
            self.add("blob", "is missing", digest, path, images=self.names(iter(users[digest])))

        def look(name: str) -> tuple[str, list[str]]:
            path = os.path.join(room, name)
            try:
                texts = list(wrong_permissions(path, self.owner))
                if hash_file(path, hashlib.sha256()) != name:
                    texts.append("is damaged: its bytes have another digest")
            except FileNotFoundError:
                return name, []
            except OSError as error:
                texts = [f"can't be read: {error.strerror}"]
            return name, texts

        for i, (name, texts) in enumerate(in_parallel(look, there, batch=8)):
            digest = f"sha256:{name}"
            self.report("checking blobs", i + 1, len(there))
            if not texts:
                self.good_blobs.add(digest)
            if not Blobs.is_digest(digest):
                self.add("store", f"{name} is no blob, and nothing of ours", path=os.path.join(room, name), note=True)
                continue
            for text in texts:
                self.add("blob", text, digest, os.path.join(room, name), images=self.names(iter(users.get(digest, ()))))

    def listed(self, room: str) -> list[str]:
        """The names in one of the store's directories."""
        try:
            return sorted(os.listdir(room))
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self.add("store", f"can't be listed: {error.strerror}", path=room)
            return []

    # What rows, blobs and directories say of each other

    def images(self) -> None:
        """Each config and manifest against the layers' rows."""
        keep = self.keep
        if keep is None:
            return
        by_id = {layer.id: layer for layer in self.rows.layers}
        for i, image in enumerate(self.rows.images):
            self.report("checking images", i + 1, len(self.rows.images))
            if image.id not in self.good_blobs or image.manifest not in self.good_blobs:
                continue  # Told with the blob.
            try:
                for text in _wrong_documents(keep, image, by_id):
                    self.add("image", text, image.id, images=self.names(iter([image])))
            except UnionError as error:
                self.add("image", str(error), image.id, images=self.names(iter([image])))

    def containers(self) -> None:
        """The directories of containers."""
        for container in self.rows.containers:
            for path, text in self.wrong_container(container):
                self.add("container", text, container.id, path)

    def wrong_container(self, container: ContainerRecord) -> Iterator[tuple[str, str]]:
        named = f"{container.name!r}: "
        at = os.path.join(self.places.containers, container.id)
        place = os.path.join(at, container.upper)
        upper = self.places.upper(container.id, container.upper)
        for path in (at, place, upper, self.places.work(container.id, container.upper)):
            try:
                if path in (at, place):
                    for text in wrong_permissions(path, self.owner):
                        yield path, named + text
                if not os.path.isdir(path):
                    os.stat(path)
                    yield path, f"{named}what should be a directory is none"
                    return
                if path == upper:
                    DirectoryLayer(path).close()
            except FileNotFoundError:
                yield path, f"{named}its {'directory' if path == at else 'writable layer'} is missing"
                return
            except (OSError, UnionError) as error:
                yield path, f"{named}can't be opened: {error}"

    def left(self) -> None:
        """What killed processes left: no damage, and gone with the next collection."""
        places, rows = self.places, self.rows
        for room in (places.tmp, places.leases):
            for name in self.listed(room):
                path = os.path.join(room, name)
                if not is_locked(path):
                    self.add("store", "left by a process that ended", path=path, note=True)
        for name in self.listed(places.trash):
            self.add("store", "was to be removed", path=os.path.join(places.trash, name), note=True)
        for layer in rows.pending:
            self.add("layer", "was just being frozen", layer.id, places.layer(layer.id), note=True)
        if not rows.complete:
            return
        blobs = {digest.removeprefix("sha256:") for image in rows.images for digest in (image.id, image.manifest)}
        for room, known in (
            (places.layers, {layer.id for layer in (*rows.layers, *rows.pending)}),
            (places.containers, {container.id for container in rows.containers}),
            (places.blobs, blobs),
        ):
            for name in self.listed(room):
                if name not in known:
                    self.add("store", "nothing refers to it", path=os.path.join(room, name), note=True)


def _wrong_documents(keep: Keep, image: ImageRecord, layers: dict[str, LayerRecord]) -> Iterator[str]:
    """How an image's config, its manifest and the rows of its layers do not fit. ``UnionError`` for what is none."""
    config_bytes = keep.blobs.get(image.id)
    config, manifest = ImageConfig.parse(config_bytes), Manifest.parse(keep.blobs.get(image.manifest))
    chain: list[LayerRecord] = []
    at = image.layer
    while at is not None and at in layers and len(chain) <= len(layers):
        chain.append(layers[at])
        at = layers[at].parent
    chain.reverse()
    if at is not None:
        yield f"layer {short(at)}, which it stands on, is not in the database"
        return
    if config.diff_ids != tuple(layer.diff_id for layer in chain):
        yield "its config and the database name different layers"
    elif chain_ids(config.diff_ids) != tuple(layer.chain_id for layer in chain):
        yield "the chain IDs of its layers are wrong in the database"
    if (manifest.config.digest, manifest.config.size) != (image.id, len(config_bytes)):
        yield "its manifest has another config"
    told = [(descriptor.digest, descriptor.size) for descriptor in manifest.layers]
    if told != [(layer.diff_id, layer.tar_size) for layer in chain]:
        yield "its manifest and the database name different layers"


def _without(text: str, path: str) -> str:
    """An error's text without what the reader of a check knows."""
    return text.removeprefix(f"{path}: ").removesuffix("; see `unionfs fsck`")

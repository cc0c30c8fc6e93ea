"""The store as people use it: images, containers, and what is done with them."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from unionfs.errors import InUseError, NotFoundError
from unionfs.images import points
from unionfs.images.image import Image
from unionfs.images.points import Point
from unionfs.oci.reference import parse_name
from unionfs.store.collect import Freed
from unionfs.store.durable import flush_path, make_directory
from unionfs.store.keep import Keep
from unionfs.store.places import default_path, new_id
from unionfs.store.records import ContainerRecord
from unionfs.types import Closing

if TYPE_CHECKING:
    from unionfs.images.blame import Touch
    from unionfs.images.bloat import Hidden
    from unionfs.images.container import Container
    from unionfs.images.graph import Node
    from unionfs.images.problems import Problem
    from unionfs.images.publishing import Report
    from unionfs.images.stacks import StoreFS
    from unionfs.images.usage import Usage
    from unionfs.union.diff import Change


class Store(Closing):
    """Images and containers in a directory: layers that last, without a daemon and without root.

        import unionfs

        with unionfs.Store() as store:
            store.import_("rootfs.tar", "debian:13")
            with store.create("debian:13", name="web") as web:         # constant time, whatever the image's size
                web.fs.write_text("/etc/motd", "hello")
                image = web.commit("web:1", author="ann", message="a greeting")
                print(*web.diff())                                     # nothing: the container stands on the image
                other = web.fork("try")                                # constant time
                web.rollback("debian:13")
            for line in image.history():
                print(line.created, line.author, line.comment, line.size)

    ``path``: the store's directory, made if need be; by default ``$UNIONFS_STORE``, else ``unionfs`` below
    ``$XDG_DATA_HOME`` or ``~/.local/share``. It wants a file system for upper directories (extended attributes,
    whiteouts). Processes and threads may share a store. What a call reported as done is on disk; a process that is
    killed leaves nothing that a person has to clear.

    Images, containers and layers are called by name, digest, id, or the beginning of an id if it is the only one;
    ``REF~2`` is two layers below. Raises ``UnionError`` and its kinds (``StoreError`` for a store that can't be used,
    ``NotFoundError``, ``InUseError``), and ``OSError``, a full disk for one; then nothing has changed.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.keep = Keep(default_path() if path is None else os.fspath(path))

    @property
    def path(self) -> str:
        """The store's directory."""
        return self.keep.places.root

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def close(self) -> None:
        """Let go of the metadata. Containers that are open stay so until they are closed."""
        self.keep.close()

    # Looking things up

    def images(self) -> list[Image]:
        """All images, those without a name too, newest first."""
        return [Image(self, record) for record in self.keep.records.images()]

    def containers(self) -> list[Container]:
        """All containers, newest first."""
        from unionfs.images.container import Container

        return [Container(self, record) for record in self.keep.records.containers()]

    def image(self, ref: str) -> Image:
        """``NotFoundError`` for none, or for a beginning that several ids have."""
        return Image(self, points.find_image(self.keep, ref))

    def container(self, ref: str) -> Container:
        """``NotFoundError`` for none, or for a beginning that several ids have."""
        from unionfs.images.container import Container

        return Container(self, points.find_container(self.keep, ref))

    def point(self, ref: str) -> Point:
        """A state: of a container (its present one), an image, a layer; with ``~N`` so many layers below."""
        return points.find_point(self.keep, ref)

    def open(self, ref: str | Image | Point) -> StoreFS:
        """The tree at a point, read-only, until it is closed. A container's is that of the moment."""
        from unionfs.images.stacks import Stack

        return Stack(self.keep, self.frozen(ref)).union()

    def frozen(self, ref: str | Image | Point | Container) -> str | None:
        """The topmost layer of a point; a container's present state is frozen for it, in constant time."""
        if isinstance(ref, Image):
            return ref.record.layer
        if isinstance(ref, str):
            ref = self.point(ref)
        if not isinstance(ref, Point):
            ref = Point(ref.id, None, None, ref.id)
        if ref.container is not None:
            from unionfs.images.publishing import Provenance
            from unionfs.images.times import creation_time, rfc3339

            return self.container(ref.container).freeze("snapshot", Provenance(created=rfc3339(creation_time())))
        return ref.layer

    # Names

    def tag(self, ref: str | Image, name: str) -> None:
        """``name`` points at the image from now on, whatever it pointed at before. Nothing is copied."""
        tag = str(parse_name(name))
        with self.keep.database.transaction("tag"):
            image = points.find_image(self.keep, ref if isinstance(ref, str) else ref.id)
            self.keep.records.set_tag(tag, image.id)

    def remove_image(self, ref: str, *, force: bool = False) -> list[str]:
        """Take the name ``ref`` away, or, with its last name, or called by its id, the image, and the layers that
        nothing else uses. ``InUseError`` while a container uses it, or, by its id, while it has several names;
        ``force`` takes the names away anyway. What was done: ``Untagged: …``, ``Deleted: …``.
        """
        from unionfs.images.removing import remove_image

        return remove_image(self, ref, force=force)

    # Containers

    def create(self, ref: str | Image | Point, name: str | None = None, command: Sequence[str] = ()) -> Container:
        """A container on an image, or on any other point. Constant time. ``InUseError`` if the name is taken.

        ``command``: what it is for; a commit notes it as what made the changes.
        """
        from unionfs.images.container import check_name

        if name is not None:
            check_name(name)
        if isinstance(ref, Image):
            return self.create_on(ref.record.layer, ref.id, name, command)
        point = self.point(ref) if isinstance(ref, str) else ref
        if point.container is not None:
            return self.container(point.container).fork(name)
        return self.create_on(point.layer, point.image, name, command)

    def create_on(
        self, layer: str | None, image: str | None, name: str | None, command: Sequence[str] = ()
    ) -> Container:
        """The same, on a layer."""
        from unionfs.images.container import Container, check_name
        from unionfs.images.stacks import new_upper

        keep = self.keep
        key = new_id()
        if name is not None:
            check_name(name)
        record = ContainerRecord(key, name or _some_name(key), image, layer, "1", time.time(), tuple(command))
        directory = os.path.join(keep.places.containers, key)
        with keep.places.publishing():
            try:
                make_directory(directory)
                make_directory(f"{directory}/1")
                if layer is not None and keep.records.layer(layer) is None:
                    raise NotFoundError(f"layer {layer[:12]} is gone")
                new_upper(keep, f"{directory}/1", layer).close()
                flush_path(f"{directory}/1/upper", keep.places.containers)
                with keep.database.transaction("create"):
                    if keep.records.container_by_name(record.name) is not None:
                        raise InUseError(f"the name {record.name!r} is in use by a container")
                    if layer is not None and keep.records.layer(layer) is None:
                        raise NotFoundError(f"layer {layer[:12]} is gone")
                    if image is not None and keep.records.image(image) is None:
                        record = ContainerRecord(key, record.name, None, layer, "1", record.made, record.command)
                    keep.records.add_container(record)
            except BaseException as error:
                if keep.records.container(key) is None:
                    keep.places.discard(directory)
                if isinstance(error, OSError) and layer is not None and keep.records.layer(layer) is None:
                    raise NotFoundError(f"layer {layer[:12]} is gone") from error
                raise
        return Container(self, record)

    # Images out of something

    def import_(
        self,
        source: str | os.PathLike[str] | IO[bytes],
        name: str | None = None,
        *,
        message: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        created: dt.datetime | None = None,
        report: Report | None = None,
    ) -> Image:
        """An image of one layer: a directory, or a tar (a path, or a file open for reading; gzip, bzip2, xz and zstd
        are recognised). ``changes``: to its config, as ``docker import --change`` has them."""
        from unionfs.images.importing import import_tree

        return import_tree(
            self, source, name, message=message, author=author, changes=changes, created=created, report=report
        )

    def squash(
        self,
        ref: str | Image,
        name: str | None = None,
        *,
        base: str | Point | None = None,
        message: str = "",
        author: str = "",
        created: dt.datetime | None = None,
        report: Report | None = None,
    ) -> Image:
        """An image that shows the same tree with one layer in place of those above ``base``, of all by default.

        What nobody could see in them any more is left out; that the merged tree is the same is checked, file by file.
        """
        from unionfs.images.squashing import squash

        return squash(self, ref, name, base=base, message=message, author=author, created=created, report=report)

    # Questions

    def diff(
        self, a: str | Image | Point, b: str | Image | Point, path: str | os.PathLike[str] = "/"
    ) -> Iterator[Change]:
        """What turns point ``a`` into point ``b``, at and below ``path``; only layers that they don't share are looked
        at."""
        from unionfs.images.stacks import Stack
        from unionfs.union.diff import compare

        with Stack(self.keep, self.frozen(a)) as old, Stack(self.keep, self.frozen(b)) as new:
            yield from compare(new.tree(), old.tree(), os.fsdecode(path))

    def blame(self, ref: str | Image | Point, path: str | os.PathLike[str]) -> list[Touch]:
        """Which layers touched ``path``, newest first: when, by whom, why, and what they did to it."""
        from unionfs.images.blame import blame

        return blame(self, ref, os.fsdecode(path))

    def bloat(self, ref: str | Image | Point) -> list[Hidden]:
        """What an image carries and no one can see, deleted or overwritten in a higher layer; the largest first."""
        from unionfs.images.bloat import bloat

        return bloat(self, ref)

    def log(self) -> list[Node]:
        """The tree of layers, each before what it stands on, and what points at each."""
        from unionfs.images.graph import log

        return log(self)

    def inspect(self, ref: str) -> dict[str, Any]:
        """All that is known of an image, a container or a layer, as JSON has it."""
        from unionfs.images.inspecting import inspect

        return inspect(self, ref)

    def du(self) -> list[Usage]:
        """What images and containers take on disk, their own and what they share."""
        from unionfs.images.usage import usage

        return usage(self)

    # Order

    def gc(self, *, report: Report | None = None) -> Freed:
        """Remove what nothing refers to: images without a name and a container, layers without an image, a container or
        a reader, and what killed processes left. Safe beside all other work."""
        return self.keep.collector.collect(report)

    def fsck(self, *, report: Report | None = None) -> list[Problem]:
        """Hash everything again, and name what is wrong. Nothing is changed."""
        from unionfs.images.fsck import check

        return check(self, report=report)


def _some_name(key: str) -> str:
    """A name for who gave none: two words that can be said, and are rarely taken."""
    first = ("able", "bold", "calm", "deft", "easy", "fair", "glad", "keen", "kind", "loud", "mild", "neat", "pale",
             "quick", "rare", "safe", "tall", "vast", "warm", "wise")  # fmt: skip
    second = ("ash", "bay", "cliff", "dune", "elm", "fern", "glen", "hill", "isle", "lake", "moor", "oak", "pine",
              "reed", "shore", "tarn", "vale", "wood", "yew", "brook")  # fmt: skip
    number = int(key[:8], 16)
    return f"{first[number % 20]}_{second[number // 20 % 20]}_{os.urandom(3).hex()}"

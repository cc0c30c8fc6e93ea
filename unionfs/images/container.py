"""A container: a writable layer on an image."""

from __future__ import annotations

import datetime as dt
import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from unionfs._sys.syncfs import syncfs
from unionfs.errors import InUseError, NotFoundError, StoreError, UnionError, UpperBusyError
from unionfs.images.changes import from_wire, to_wire
from unionfs.images.control import Gone, Server, ask
from unionfs.images.freezing import discard_upper, freeze, open_upper
from unionfs.images.publishing import Provenance
from unionfs.images.stacks import StoreFS, new_upper, open_layers
from unionfs.images.times import creation_time, rfc3339
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.upper import UpperDirectory
from unionfs.store.durable import flush_path, make_directory
from unionfs.store.places import is_locked
from unionfs.store.records import ContainerRecord, LayerRecord, PointRecord
from unionfs.types import Closing

if TYPE_CHECKING:
    from unionfs.images.image import Image
    from unionfs.images.points import Point
    from unionfs.images.store import Store
    from unionfs.mount import Mount
    from unionfs.union.diff import Change

log = logging.getLogger(__name__)

T = TypeVar("T")

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
"""What a container may be called, as Docker has it."""

_PATIENCE = 10.0  # seconds, for a process that is just opening or closing the container
_LENT = "container {!r} is mounted by the kernel's overlayfs: unmount it first"
_FOREVER_BUSY = "mounted by the kernel's overlayfs, or opened by something else than a store"


class Container(Closing):
    """A writable layer on an image, or on any other point of a history.

    ``fs`` is the union of it, opened on first use and kept until ``close`` or the end of the ``with`` block. One
    process at a time has it open; what others ask for meanwhile (``diff``, ``commit``, ``fork``, ``rollback``) is done
    by that one, while programs keep running on its mount.

        with store.create("debian:13", "web") as web:
            web.fs.write_text("/etc/motd", "hello")
            with web.mount("/mnt/web"):
                subprocess.run(["chroot", "/mnt/web", "apt-get", "install", "-y", "nginx"])
                image = web.commit("web:1", message="nginx", author="ann")     # mounted and in use
                web.rollback("debian:13")                                      # and this too

    All methods raise ``UnionError`` and its kinds (``NotFoundError`` once the container is removed), and ``OSError``.
    """

    def __init__(self, store: Store, record: ContainerRecord) -> None:
        self._store = store
        self._keep = store.keep
        self.id = record.id
        self._fs: StoreFS | None = None
        self._server: Server | None = None
        self._mounted: Mount | None = None
        self._mutex = threading.RLock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id[:12]}>"

    # What it is

    @property
    def record(self) -> ContainerRecord:
        """Its row now. ``NotFoundError`` once it is removed."""
        found = self._keep.records.container(self.id)
        if found is None:
            raise NotFoundError(f"container {self.id[:12]} is gone")
        return found

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def image(self) -> Image | None:
        """The image that it was made from or that was made from it last."""
        key = self.record.image
        return None if key is None else self._store.image(key)

    @property
    def created(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.record.made, dt.UTC)

    @property
    def command(self) -> tuple[str, ...]:
        """The command that it was made for."""
        return self.record.command

    @property
    def directory(self) -> str:
        """Where the store keeps it."""
        return os.path.join(self._keep.places.containers, self.id)

    @property
    def status(self) -> str:
        """``created``, ``open in pid N``, ``mounted at DIR (ENGINE)``, ``in use``."""
        if not is_locked(self._keep.places.work(self.id, self.record.upper)):
            return "created"
        answer = self._known_state()
        if answer is None:
            return "in use"
        if answer["mountpoint"] is None:
            return f"open in pid {answer['pid']}"
        return f"mounted at {answer['mountpoint']} ({answer['engine']})"

    @property
    def mountpoint(self) -> str | None:
        """Where it is mounted, by whatever process; ``None`` if it is not."""
        answer = self._known_state()
        return None if answer is None else answer["mountpoint"]

    def _known_state(self) -> dict[str, Any] | None:
        try:
            return self._state() if self._fs is not None else ask(self.directory, {"op": "state"}, 2.0)
        except (UnionError, OSError):
            return None

    def _state(self) -> dict[str, Any]:
        mounted = self._mounted
        if mounted is not None and mounted.wait(0):
            mounted = None
        return {
            "pid": os.getpid(),
            "mountpoint": None if mounted is None else mounted.mountpoint,
            "engine": None if mounted is None else mounted.engine,
        }

    def history(self) -> list[LayerRecord]:
        """The layers that it stands on, topmost first."""
        return self._keep.records.chain(self.record.layer)

    def points(self) -> list[PointRecord]:
        """The states that it was in when it was forked, committed or rolled back, latest first: ``rollback`` goes to
        any."""
        return self._keep.records.points(self.id)

    # Open

    @property
    def fs(self) -> StoreFS:
        """The container's union. ``UpperBusyError`` while another process has it open."""
        with self._mutex:
            if self._fs is None or self._fs.closed:
                self._fs = self._open()
            return self._fs

    def _open(self) -> StoreFS:
        keep = self._keep
        upper, record = open_upper(keep, self.record)
        try:
            chain = keep.records.chain(record.layer)
            if chain and chain[0].same_as is not None and not upper.scan(upper.root):
                # An image layer shows the same, without what would only bloat.
                with keep.database.transaction("settle"):
                    keep.records.set_container(self.id, layer=chain[0].same_as)
                chain = keep.records.chain(chain[0].same_as)
            layers = open_layers(keep, chain)
        except BaseException:
            upper.close()
            raise
        fs = StoreFS(layers, upper, self._let_go)
        try:
            self._server = Server(self.directory, self._handle)
        except BaseException:
            fs.close()
            raise
        return fs

    def _let_go(self) -> None:
        """Before the writable layer is anybody else's: no more requests, and those begun have ended."""
        with self._mutex:
            self._fs = None
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def close(self) -> None:
        """Close the union, if it is open."""
        with self._mutex:
            if self._fs is not None:
                self._fs.close()

    def mount(self, path: str | os.PathLike[str], engine: str = "auto", **options: Any) -> Mount:
        """Mount it at a directory; see ``unionfs.mount.mount``. The union stays open when the mount ends."""
        mounted = self.fs.mount(path, engine, **options)
        self.mounted_by(mounted)
        return mounted

    def mounted_by(self, mounted: Mount) -> None:
        """Tell who else mounted ``fs``, so that others learn where it is."""
        self._mounted = mounted

    # Who has it open does it

    def _by_holder(self, request: dict[str, Any], here: Callable[[], T], there: Callable[[dict[str, Any]], T]) -> T:
        """``here()``, with the union open, or the answer of the process that has it open."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with self._mutex:
                if self._fs is not None and not self._fs.closed:
                    return here()
            answer = ask(self.directory, request)
            if answer is not None:
                return there(answer)
            try:
                with self._mutex:
                    opened_here = self._fs is None or self._fs.closed  # Else another thread was quicker: it is its.
                    _ = self.fs
                    try:
                        return here()
                    finally:
                        if opened_here:
                            self.close()
            except UpperBusyError as error:
                if time.monotonic() > deadline:
                    raise InUseError(f"container {self.name!r}: {_FOREVER_BUSY}") from error
            time.sleep(0.02)

    def _handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """What another process asks for."""
        if request.get("op") == "state":
            return self._state()
        with self._mutex:
            if self._fs is None or self._fs.closed:
                raise Gone  # Closed while the request was under way; not to be opened again for it.
            match request.get("op"):
                case "freeze":
                    return {"layer": self._freeze(Provenance(**request["said"]), request["why"])}
                case "diff":
                    return {"changes": [to_wire(change) for change in self._changes(request["path"])]}
                case "rollback":
                    kept = None if request["discard"] else Provenance(**request["said"])
                    self._roll_back(request["layer"], request["image"], kept)
                    return {}
        raise StoreError("this container is open in another version of unionfs, which can't do that")

    def _freeze(self, said: Provenance, why: str) -> str | None:
        self._gather()
        try:
            return freeze(self._keep, self.record, self.fs, said, why)
        except OSError as error:
            raise self._explained(error) from error

    def _gather(self) -> None:
        """Have the kernel bring what it has gathered of writes to a mount: they are a part of the present state."""
        mounted = self._mounted
        if mounted is None or mounted.wait(0) or self.fs.tree.lent is not None:
            return
        _at(mounted.mountpoint, syncfs)  # Of FUSE it begins to write, and does not wait.
        for writer in list(self.fs.tree.writers) if mounted.gathers else ():
            if not writer.nameless:
                _at(mounted.mountpoint + os.fsdecode(writer.path), os.fsync)

    def _explained(self, error: OSError) -> Exception:
        if error.errno == errno.EBUSY and self.fs.tree.lent is not None:
            return InUseError(_LENT.format(self.name))
        return error

    def freeze(self, why: str, said: Provenance) -> str | None:
        """Freeze the writable layer, unless it holds nothing; the layer that the container stands on now."""
        request = {"op": "freeze", "why": why, "said": {name: getattr(said, name) for name in _SAID}}
        return self._by_holder(request, lambda: self._freeze(said, why), _layer_of)

    # What people do with it

    def diff(self, path: str | os.PathLike[str] = "/") -> list[Change]:
        """What it changes at and below ``path``, compared with the image that it stands on; see ``UnionFS.diff``.

        What a fork or a roll-back froze of it meanwhile is a part of that. ``store.diff(point, container)`` compares
        with any point.
        """
        return self._by_holder(
            {"op": "diff", "path": os.fsdecode(path)},
            lambda: self._changes(os.fsdecode(path)),
            lambda answer: [from_wire(change) for change in answer["changes"]],
        )

    def _changes(self, path: str) -> list[Change]:
        from unionfs.images.committing import image_layer_of
        from unionfs.layer.memory import MemoryLayer
        from unionfs.union.diff import compare
        from unionfs.union.reader import TreeReader

        self._gather()
        snapshots, _ = image_layer_of(self._keep, self.history())
        tree: TreeReader = self.fs.tree
        layers = tree.resolver.layers
        below = TreeReader(layers[1 + snapshots :] or [MemoryLayer()])
        if tree.lent is None:
            return list(compare(tree, below, path) if snapshots else self.fs.diff(path))
        # The kernel changes the directory: it is looked at as it is now.
        now = DirectoryLayer(layers[0].label)
        try:
            return list(compare(TreeReader([now, *layers[1:]]), below, path))
        finally:
            now.close()

    def commit(
        self,
        name: str | None = None,
        *,
        message: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        created_by: str | None = None,
        created: dt.datetime | None = None,
        report: Callable[[str, int, int], None] | None = None,
    ) -> Image:
        """A new image of its present state, named ``name``, while it is mounted and in use: programs keep running.

        ``changes``: to the image's config, as ``docker commit --change`` has them: ``CMD ["nginx"]``. ``created_by``:
        the command that made the changes, by default the container's. ``created``: now or, where that is set,
        ``SOURCE_DATE_EPOCH``. What would only bloat the image is left out: files that equal those below, whiteouts that
        hide nothing. The container stands on the new image afterwards.
        """
        from unionfs.images.committing import commit_layer
        from unionfs.oci.changes import apply_changes
        from unionfs.oci.model import ImageConfig
        from unionfs.oci.reference import parse_name

        tag = None if name is None else str(parse_name(name))
        apply_changes(ImageConfig.new("", ""), changes)  # What is wrong is told before anything is frozen.
        record = self.record
        said = Provenance(
            created=rfc3339(creation_time(created)),
            author=author,
            comment=message,
            created_by=" ".join(record.command) if created_by is None else created_by,
        )
        top = self.freeze("commit", said)
        image = commit_layer(
            self._keep,
            top,
            image=self.record.image,
            container=self.id,
            name=tag,
            provenance=said,
            changes=changes,
            report=report,
        )
        return self._store.image(image)

    def fork(self, name: str | None = None) -> Container:
        """Another container with the present state of this one, in constant time, while this one is in use."""
        top = self.freeze("fork", self._said(f"forked from {self.name}"))
        record = self.record
        return self._store.create_on(top, record.image, name, record.command)

    def rollback(self, point: str | Point, *, discard: bool = False) -> None:
        """Go back, or forth, to a point of a history, while mounted.

        The present state is frozen first and stays a point of this container (``points``); with ``discard`` what its
        writable layer holds is thrown away. Programs that run on the mount go on; what they have open stays as it was
        for them, names lead to what the point has.
        """
        found = self._store.point(point) if isinstance(point, str) else point
        if found.container is not None and found.container != self.id:
            raise UnionError(f"{found.name!r} is a container, whose state may change: fork it, or name its image")
        said = self._said(f"before a roll-back to {found.name}")
        request = {
            "op": "rollback",
            "layer": found.layer,
            "image": found.image,
            "discard": discard,
            "said": {name: getattr(said, name) for name in _SAID},
        }
        kept = None if discard else said
        self._by_holder(request, lambda: self._roll_back(found.layer, found.image, kept), lambda _: None)

    def _roll_back(self, layer: str | None, image: str | None, kept: Provenance | None) -> None:
        keep = self._keep
        fs = self.fs
        if fs.tree.lent is not None:
            raise InUseError(_LENT.format(self.name))
        if kept is not None:
            self._freeze(kept, "rollback")
        record = self.record
        chain = keep.records.chain(layer)
        if layer is not None and not chain:
            raise NotFoundError(f"layer {layer[:12]} is gone")
        number = str(int(record.upper) + 1)
        place = os.path.join(self.directory, number)
        opened: list[DirectoryLayer | UpperDirectory] = []
        try:
            with keep.places.publishing():  # No sweep finds the new directory before the row tells of it.
                keep.places.discard(place)  # of a roll-back that was broken off
                make_directory(place)
                fresh = new_upper(keep, place, layer)
                opened.append(fresh)
                layers = open_layers(keep, chain)
                opened += layers
                flush_path(f"{place}/upper", self.directory)
                with keep.database.transaction("rollback"):
                    left = record.layer
                    if left is not None and all(point.layer != left for point in self.points()):
                        keep.records.add_point(PointRecord(self.id, left, time.time(), "rollback"))
                    if layer is not None:
                        if keep.records.layer(layer) is None:
                            raise NotFoundError(f"layer {layer[:12]} is gone")
                        keep.records.add_point(PointRecord(self.id, layer, time.time(), "rollback"))
                    keep.records.set_container(self.id, layer=layer, upper=number)
                    if image is not None and keep.records.image(image) is not None:
                        keep.records.set_container(self.id, image=image)
            fs.restack(layers, fresh)
        except BaseException as error:
            if fs.tree.upper in opened:
                raise  # It is done, but not everybody who follows could be told.
            with keep.database.transaction("rollback"):
                if self.record.upper == number:  # The tree refused: all is as before.
                    keep.records.set_container(self.id, layer=record.layer, upper=record.upper)
                    if record.image is not None and keep.records.image(record.image) is not None:
                        keep.records.set_container(self.id, image=record.image)
            for one in opened:
                one.close()
            keep.places.discard(place)
            if isinstance(error, OSError) and layer is not None and keep.records.layer(layer) is None:
                raise NotFoundError(f"layer {layer[:12]} is gone") from error
            raise
        discard_upper(keep, self.id, record.upper)
        keep.places.empty_trash()

    def _said(self, comment: str) -> Provenance:
        return Provenance(created=rfc3339(creation_time()), comment=comment, created_by=" ".join(self.record.command))

    def rename(self, name: str) -> None:
        """Give it another name. ``InUseError`` if a container has it."""
        check_name(name)
        with self._keep.database.transaction("rename"):
            other = self._keep.records.container_by_name(name)
            if other is not None and other.id != self.id:
                raise InUseError(f"the name {name!r} is in use by container {other.id[:12]}")
            _ = self.record
            self._keep.records.set_container(self.id, name=name)

    def remove(self, *, force: bool = False) -> None:
        """Remove it with all that is in its writable layer. ``InUseError`` while somebody has it open; with ``force``
        its mount is taken away first."""
        from unionfs.images.removing import remove_container

        remove_container(self._store, self, force=force)


def _at(path: str, flush: Callable[[int], object]) -> None:
    """Flush what is at ``path`` of a mount, if it is there still."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flush(fd)
        finally:
            os.close(fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s: %s", path, error.strerror)


def _layer_of(answer: dict[str, Any]) -> str | None:
    layer: str | None = answer["layer"]
    return layer


_SAID = ("created", "author", "comment", "created_by")


def check_name(name: str) -> None:
    """``UnionError`` for what no container may be called."""
    if not NAME.fullmatch(name):
        raise UnionError(f"{name!r} is no name for a container: letters, digits, '_', '.', '-', and first no sign")

"""What goes: containers, names, images; and with them what nothing else uses."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

from unionfs.errors import InUseError, NotFoundError, UnionError
from unionfs.images.control import ask
from unionfs.images.points import find_image, short
from unionfs.oci.reference import parse_name
from unionfs.store.collect import Freed

if TYPE_CHECKING:
    from unionfs.images.container import Container
    from unionfs.images.store import Store


def remove_container(store: Store, container: Container, *, force: bool) -> None:
    """Remove a container; see ``Container.remove``."""
    from unionfs.mount.unmounting import unmount

    keep = store.keep
    record = container.record
    container.close()
    if force:
        state = ask(container.directory, {"op": "state"}, 5.0)
        if state is not None and state["mountpoint"] is not None:
            unmount(state["mountpoint"], lazy=True)
    lock = _lock(keep.places.work(record.id, record.upper), 5.0 if force else 0.1)
    try:
        if lock is None and os.path.isdir(keep.places.upper(record.id, record.upper)):
            raise InUseError(f"container {record.name!r} is {container.status}")
        freed = Freed()
        keep.reserve.give()
        with keep.database.transaction("rm"):
            now = keep.records.container(record.id)
            if now is None:
                raise NotFoundError(f"container {record.name!r} is gone")
            if now.upper != record.upper:
                raise InUseError(f"container {record.name!r} is just being rolled back")
            keep.records.drop_container(record.id)
            gone = keep.collector.drop_unused(freed, images=False)
        keep.places.discard(container.directory)
        keep.collector.discard(gone)
    finally:
        if lock is not None:
            os.close(lock)


def _lock(path: str, patience: float) -> int | None:
    """The directory, locked; ``None`` if another has it for longer than ``patience`` seconds, or if it is missing."""
    deadline = time.monotonic() + patience
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                return None
        time.sleep(0.02)


def remove_image(store: Store, ref: str, *, force: bool) -> list[str]:
    """Take a name away, and with its last name the image; see ``Store.remove_image``."""
    keep = store.keep
    said: list[str] = []
    freed = Freed()
    keep.reserve.give()
    with keep.database.transaction("rmi"):
        record = find_image(keep, ref)
        names = keep.records.names_of(record.id)
        name = _as_name(ref, names)
        if name is None and len(names) > 1 and not force:
            raise InUseError(
                f"image {short(record.id)} has several names ({', '.join(names)}): remove those, or force it"
            )
        going = [name] if name is not None else names
        users = keep.records.containers_of(record.id)
        if len(going) == len(names) and users and not force:
            raise InUseError(f"image {ref!r} is used by container {users[0].name!r}")
        for each in going:
            keep.records.drop_tag(each)
            said.append(f"Untagged: {each}")
        if len(going) == len(names) and not users:
            keep.records.drop_image(record.id)
            said.append(f"Deleted: {record.id}")
        gone = keep.collector.drop_unused(freed, images=False)
        said += [f"Deleted: {layer}" for layer in gone]
    keep.collector.discard(gone)
    return said


def _as_name(ref: str, names: list[str]) -> str | None:
    """The one of ``names`` that ``ref`` is."""
    try:
        name = str(parse_name(ref))
    except UnionError:
        return None
    return name if name in names else None

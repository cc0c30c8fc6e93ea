"""Where a store keeps what: directories, staging, locks.

    metadata.db                 what there is (SQLite, WAL)
    blobs/sha256/<hex>          content-addressed bytes
    layers/<id>/diff            a frozen layer, in overlayfs's format; beside it what was noted when it was made
    containers/<id>/<n>/upper   a container's writable layer, and work beside it
    leases/<token>              locked by who reads layers that no container holds
    tmp/<token>/                unfinished work, locked by who does it
    trash/                      what is on its way out
    lock                        shared by who publishes, exclusive for who sweeps
    reserve                     room that is given up when there is no other

All locks are flock(2): they go with the process. Whatever stands in ``tmp`` or ``leases`` and is not locked was left by
a process that ended, and goes at the next sweep.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from unionfs.errors import StoreError
from unionfs.store.durable import flush_directory, make_directory, move, remove_tree
from unionfs.store.steps import step

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ROOMS = ("blobs/sha256", "layers", "containers", "leases", "tmp", "trash")
"""The directories of a store."""


def default_path() -> str:
    """``$UNIONFS_STORE``, else ``unionfs`` below ``$XDG_DATA_HOME`` (XDG Base Directory Specification)."""
    given = os.environ.get("UNIONFS_STORE")
    if given:
        return os.path.abspath(given)
    data = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(data):  # The specification has relative ones ignored.
        data = os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(data, "unionfs")


def new_id() -> str:
    """64 random hex digits."""
    return os.urandom(32).hex()


class Places:
    """The directories of one store, made if need be and ``make``. Raises ``StoreError``."""

    def __init__(self, root: str, *, make: bool = True) -> None:
        self.root = os.path.realpath(root)
        self.database = os.path.join(self.root, "metadata.db")
        self.blobs = os.path.join(self.root, "blobs", "sha256")
        self.layers = os.path.join(self.root, "layers")
        self.containers = os.path.join(self.root, "containers")
        self.leases = os.path.join(self.root, "leases")
        self.tmp = os.path.join(self.root, "tmp")
        self.trash = os.path.join(self.root, "trash")
        if not make:
            return
        try:
            step("make rooms")
            fresh = not os.path.exists(os.path.join(self.root, "lock"))
            os.makedirs(self.root, mode=0o700, exist_ok=True)
            for room in ROOMS:
                os.makedirs(os.path.join(self.root, room), mode=0o700, exist_ok=True)
            if fresh:
                for path in (os.path.dirname(self.blobs), self.root):
                    flush_directory(path)
                with contextlib.suppress(PermissionError):  # Another's directory, perhaps, that we may not read.
                    flush_directory(os.path.dirname(self.root))
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            os.close(os.open(os.path.join(self.root, "lock"), flags, 0o600))
        except OSError as error:
            raise StoreError(f"{self.root}: no store can be used here: {error.strerror}") from error

    def is_empty(self) -> bool:
        """Whether nothing is kept here."""
        return not any(os.listdir(room) for room in (self.blobs, self.layers, self.containers))

    def layer(self, layer: str) -> str:
        """The directory of a layer's row: ``diff`` and notes."""
        return f"{self.layers}/{layer}"

    def diff(self, layer: str) -> str:
        """The frozen layer itself."""
        return f"{self.layers}/{layer}/diff"

    def index(self, layer: str) -> str:
        """What a layer shows on those below it (``layer.merged``); it may be missing."""
        return f"{self.layers}/{layer}/index"

    def upper(self, container: str, upper: str) -> str:
        """A container's writable layer."""
        return os.path.join(self.containers, container, upper, "upper")

    def work(self, container: str, upper: str) -> str:
        """Its work directory."""
        return os.path.join(self.containers, container, upper, "work")

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Held from the first name that is given to something until the transaction that tells of it: no sweep comes
        in between."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def sweeping(self, *, wait: bool = True) -> Iterator[None]:
        """Nobody is publishing: what no row tells of is left over. While one is, ``wait`` or ``BlockingIOError``."""
        with self._locked(fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        fd = os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def staging(self) -> Iterator[str]:
        """A new directory for unfinished work, gone at the end of the block but for what was moved out of it."""
        path = os.path.join(self.tmp, os.urandom(8).hex())
        with self.publishing():  # A sweep must not see it without its lock.
            make_directory(path)
            fd = os.open(path, _OPEN_DIR)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            try:
                remove_tree(path)
            finally:
                os.close(fd)

    def discard(self, path: str) -> None:
        """Take a name away in one step; what was under it goes to the trash, which ``empty_trash`` empties.

        Not flushed: what a power loss brings back is left over, and goes with the next collection.
        """
        step(f"discard {os.path.basename(path)}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, os.path.join(self.trash, os.urandom(8).hex()))

    def empty_trash(self) -> None:
        """Remove what was discarded, by whomever."""
        for name in os.listdir(self.trash):
            remove_tree(os.path.join(self.trash, name))

    def publish(self, path: str, path2: str) -> None:
        """Give what stands ready its name. To be called while ``publishing``."""
        move(path, path2)

    def sweep_left(self, directory: str) -> list[str]:
        """Remove entries of ``tmp`` or ``leases`` that nobody holds. To be called while ``sweeping``."""
        gone = []
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if not is_locked(path):
                step(f"sweep {name}")
                remove_tree(path)
                gone.append(name)
        if gone:
            flush_directory(directory)
        return gone


def is_locked(path: str) -> bool:
    """Whether a process holds the lock of this file or directory; one that is gone is not locked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # Shared: who looks does not see another who looks.
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)

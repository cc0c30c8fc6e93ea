"""A mount that threads of this process serve: its life, whatever the engine."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import subprocess
import threading
import weakref
from abc import abstractmethod
from typing import Any

from unionfs._sys.fusedev import is_device
from unionfs.errors import MountError
from unionfs.mount import mountinfo
from unionfs.mount.engine import SHOWN_ELSEWHERE, Mount
from unionfs.mount.unmounting import unmount
from unionfs.union.tree import Tree

log = logging.getLogger(__name__)

_LAST_REQUEST_WITHIN = 3.0  # seconds


def device_lacking() -> str | None:
    """What is wrong with ``/dev/fuse``, in one line that says how to mend it; ``None`` if it can be used."""
    try:
        if not is_device():
            return "/dev/fuse is no FUSE device: mknod /dev/fuse c 10 229"
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "/dev/fuse is missing: modprobe fuse, or give the container --device /dev/fuse"
        return f"/dev/fuse can't be opened: {error.strerror}"
    return None


class ServedMount(Mount):
    """``unmount`` and ``wait`` for an engine that sets ``device``, and ``served`` when nothing is served any more."""

    def __init__(self, tree: Tree, mountpoint: str) -> None:
        self.mountpoint = mountpoint
        self.device = ""
        """``major:minor`` of the mount, as mountinfo has it."""
        self.tree = tree
        self.served = threading.Event()
        """Set when the last request is answered."""
        self._owner = os.getpid()
        self._unmounting = threading.Lock()
        self._counted = False

    @abstractmethod
    def join(self, timeout: float | None = None) -> bool:
        """Wait until the threads have ended; whether they have."""

    def begin(self) -> None:
        """To be called before anything is served."""
        self._counted = True
        children_by_fork(+1)
        _alive.add(self)

    def drop(self) -> None:
        """Nothing is served: after ``begin`` and a failure, or at the end."""
        _alive.discard(self)
        if self._counted:
            self._counted = False
            children_by_fork(-1)

    def wait(self, timeout: float | None = None) -> bool:
        if not self.join(timeout):
            return False
        self.drop()
        return True

    def unmount(self, *, lazy: bool = False) -> None:
        if self._owner != os.getpid():
            return  # A forked child has no part in its parent's mount.
        with self._unmounting:
            if not self.join(0):
                entry = mountinfo.mount_at(self.mountpoint)
                if entry is not None and entry.device == self.device:
                    unmount(self.mountpoint, lazy=lazy)
                elif any(below.device == self.device for below in mountinfo.mounts()):
                    raise MountError(errno.EBUSY, "something else is mounted on top", self.mountpoint)
            if lazy:
                return
            if self.served.wait(_LAST_REQUEST_WITHIN):
                self.wait()
            else:
                log.warning("%s: %s, and it is served on", self.mountpoint, SHOWN_ELSEWHERE)
                self.tree.sync()


_alive: weakref.WeakSet[ServedMount] = weakref.WeakSet()
_count = 0
_count_lock = threading.Lock()
_usual: dict[str, Any] = {}


def children_by_fork(step: int) -> None:
    """While this process serves a mount, ``subprocess`` must not use vfork(2) or posix_spawn(3).

    Both stop the calling thread, which holds the interpreter's lock, until the child has executed its program. A child
    whose program or directory is on the mount would wait for us for ever. The two switches are documented
    (subprocess, "Disabling use of vfork() or posix_spawn()").
    """
    global _count
    with _count_lock:
        if _count == 0 and step > 0:
            for name in ("_USE_VFORK", "_USE_POSIX_SPAWN"):
                _usual[name] = getattr(subprocess, name)
                vars(subprocess)[name] = False
        _count += step
        if _count == 0:
            vars(subprocess).update(_usual)


@atexit.register
def _unmount_all() -> None:
    for mounted in list(_alive):
        try:
            mounted.unmount(lazy=True)
        except MountError:
            continue  # Nothing is left to do with it: the process ends, and the kernel answers ENOTCONN from then on.
        mounted.wait(1.0)

"""The seam between a union and what mounts it: ``Engine``, ``Mount``, and the table of engines.

An engine takes a union's ``tree`` and makes the kernel show it at a directory. It translates requests and decides
nothing (docs/architecture.md, "The engine's side of Tree").

    with unionfs.mount.mount(fs, "/mnt/merged") as mounted:
        print(mounted.mountpoint, mounted.engine)

Life of a mount: ``mount`` returns when the kernel has had an answer, so the directory can be used at once. It ends with
``unmount``, with the ``with`` block, or with anybody's ``umount(8)``; then everything written is on disk and ``wait``
returns. The union itself stays open: it belongs to the caller.

The kernel's requests are served by threads of this process. Nearly every call of Python that touches a file lets other
threads run meanwhile, and so may be used on the mount; these don't, and would wait for themselves: reading pages of an
``mmap`` of a file on the mount, importing an extension module from it, ``os.posix_spawn`` of a program on it.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

import attrs

from unionfs.errors import MountError
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR, Layer
from unionfs.layer.upper import UpperDirectory
from unionfs.mount import mountinfo, runtime

if TYPE_CHECKING:
    from unionfs.union.fs import UnionFS

log = logging.getLogger(__name__)

SUBTYPE = "unionfs"
FSTYPE = f"fuse.{SUBTYPE}"
"""What ``/proc/mounts`` calls a mount of ours."""
OVERLAY = "overlay"
"""And what it calls one that the kernel serves, ours or not."""

SHOWN_ELSEWHERE = "unmounted here, but another mount namespace still shows it"

AUTO = "auto"

# Name to module:class, the best first. A module is imported when its engine is asked for.
_ENGINES = {
    "devfuse": "unionfs.mount.devfuse.mounting:DevfuseEngine",
    "fusepy": "unionfs.mount.fusepy:FusepyEngine",
    "kernel": "unionfs.mount.kernel:KernelEngine",
}
# What these mount, the API must not change meanwhile: for who asks for it, or uses the mount alone.
_UNSHARED = ("kernel",)


@attrs.frozen(kw_only=True)
class MountOptions:
    """How a union is mounted. ``None`` means: yes for root, no for others.

    ``sole``: nothing changes the tree but this mount, so the kernel may remember names and pages. Without it, what
    the Python API changes is seen through the mount at once.
    ``entry_timeout``, ``negative_timeout``, ``attr_timeout``: seconds that the kernel may trust a name, a missing name,
    and attributes; ``None`` lets the engine choose.
    ``lax``: an engine that can't know which attributes a change has touched may let them lag for a second.
    ``passthrough``: the kernel may read and write files of the layers itself, where it can (root, Linux 6.9, devfuse).
    ``flags``: further flags of mount(8) for the kernel: ``noatime``, ``sync``, ``dirsync``.
    """

    read_only: bool = False
    source: str = "unionfs"
    allow_other: bool | None = None
    default_permissions: bool = True
    dev: bool | None = None
    suid: bool | None = None
    exec: bool = True
    sole: bool = False
    entry_timeout: float | None = None
    negative_timeout: float | None = None
    attr_timeout: float | None = None
    lax: bool = False
    passthrough: bool = True
    flags: tuple[str, ...] = ()


class Mount(ABC):
    """A mounted union. As a context manager it unmounts at the end of the block.

    A mount that is busy then stays, and the block ends with ``MountError`` (``EBUSY``); but where another error ends
    the block, that one is told and the busy mount is detached lazily.
    """

    mountpoint: str
    engine: str
    gathers = False
    """Whether the kernel keeps writes back for a while (FUSE's writeback cache)."""

    @abstractmethod
    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount, and return when everything is on disk. Nothing happens if it is unmounted already.

        ``lazy``: take it out of the directory tree now, and serve who still uses it till they are done (umount(8)).
        What another mount namespace shows of it is served on, as with any file system; a log line says so.
        Raises ``MountError``: ``EBUSY``, with the processes that use it.
        """

    @abstractmethod
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the mount has ended and everything is on disk; ``False`` after ``timeout`` seconds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.unmount()
        except MountError as failure:
            if error is None or failure.errno != errno.EBUSY:
                raise
            self.unmount(lazy=True)


class Engine(ABC):
    """A way to mount a union."""

    name: ClassVar[str]

    @abstractmethod
    def lacking(self) -> str | None:
        """What this machine lacks for the engine, in one line that says how to get it; ``None`` if it can mount."""

    @abstractmethod
    def mount(self, fs: UnionFS, mountpoint: str, options: MountOptions) -> Mount:
        """Mount at an existing directory, and return when it answers. Raises ``MountError``."""


def engine_names() -> list[str]:
    """The engines there are, the best first."""
    return list(_ENGINES)


def get_engine(name: str = AUTO) -> Engine:
    """The engine of that name, or with ``"auto"`` the best that this machine can use and the API may share.

    Raises ``MountError``: ``EINVAL`` for an unknown name, ``ENODEV`` with what is lacking.
    """
    if name != AUTO and name not in _ENGINES:
        known = ", ".join(engine_names())
        raise MountError(errno.EINVAL, f"no such engine (there are: {AUTO}, {known})", name)
    reasons = []
    for candidate in [known for known in _ENGINES if known not in _UNSHARED] if name == AUTO else [name]:
        module, _, attribute = _ENGINES[candidate].partition(":")
        engine: Engine = getattr(importlib.import_module(module), attribute)()
        lacking = engine.lacking()
        if lacking is None:
            return engine
        reasons.append(lacking)
    raise MountError(errno.ENODEV, "; ".join(dict.fromkeys(reasons)), "FUSE" if name == AUTO else name)


def check_mountpoint(mountpoint: str | os.PathLike[str]) -> str:
    """The canonical path of a directory that can be mounted on.

    Raises ``MountError``: ``ENOENT``, ``ENOTDIR``, ``EBUSY`` (a union is mounted there already), ``ENOTCONN`` (a killed
    daemon's mount is there), ``EACCES``.
    """
    path = mountinfo.canonical(mountpoint)
    entry = mountinfo.mount_at(path)
    if entry is not None and (entry.fstype == FSTYPE or (entry.fstype == OVERLAY and runtime.is_recorded(entry))):
        if runtime.is_dead(entry):
            text = "a dead mount is here: its daemon was killed; `unionfs umount` it first"
            raise MountError(errno.ENOTCONN, text, path)
        raise MountError(errno.EBUSY, "a union is mounted here already", path)
    try:
        found = os.path.isdir(path) or os.stat(path)
    except OSError as error:
        text = "the mountpoint does not exist" if error.errno == errno.ENOENT else f"mountpoint: {error.strerror}"
        raise MountError(error.errno, text, path) from None
    if found is not True:
        raise MountError(errno.ENOTDIR, "the mountpoint is not a directory", path)
    return path


def check_recursion(layers: Iterable[Layer], mountpoint: str) -> None:
    """Raise ``MountError`` (``ELOOP``) if a layer would be seen through the mount, or the mount in a layer.

    A lower may hold the mountpoint if it hides it. To mount *on* a layer's own directory is possible: a layer holds its
    directory open.
    """
    for layer in layers:
        if not isinstance(layer, DirectoryLayer):
            continue
        places = [layer.path, layer.work] if isinstance(layer, UpperDirectory) else [layer.path]
        for place in places:
            if place != mountpoint and _is_within(place, mountpoint):
                raise MountError(errno.ELOOP, f"the layer {place} is inside the mountpoint", mountpoint)
        if layer.path != mountpoint and _is_within(mountpoint, layer.path) and _shows(layer, mountpoint):
            raise MountError(errno.ELOOP, f"the mountpoint is inside the layer {layer.path}", mountpoint)


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _shows(layer: DirectoryLayer, path: str) -> bool:
    *parents, name = os.fsencode(os.path.relpath(path, layer.path)).split(b"/")
    directory = layer.root
    for parent in parents:
        if layer.kind(directory, parent) != DT_DIR:
            return False
        directory = directory.child(parent)
    return layer.kind(directory, name) is not None


def mount_fastest(fs: UnionFS, mountpoint: str, options: MountOptions, engine: str = AUTO) -> Mount:
    """Mount for one command, the only user of the union meanwhile: by the fastest engine that takes these layers and
    works here, or by the one that is named. ``mountpoint`` is a canonical path. Raises ``MountError``.
    """
    if engine != AUTO:
        return get_engine(engine).mount(fs, mountpoint, options)
    for name in [*_UNSHARED, *(name for name in _ENGINES if name not in _UNSHARED)]:
        try:
            return get_engine(name).mount(fs, mountpoint, options)
        except MountError as error:
            log.debug("%s: not by %s: %s", mountpoint, name, error)
    return get_engine().mount(fs, mountpoint, options)  # which tells what is in the way of the best one


def mount(fs: UnionFS, mountpoint: str | os.PathLike[str], engine: str = AUTO, **options: object) -> Mount:
    """Mount a union at a directory, in this process. ``options`` are the fields of ``MountOptions``.

    Raises ``MountError``: the mountpoint is missing or no directory, a layer and the mountpoint contain each other,
    the machine lacks what the engine needs, or the mount does not answer.
    """
    chosen = get_engine(engine)
    path = check_mountpoint(mountpoint)
    check_recursion(fs.tree.resolver.layers, path)
    wanted = MountOptions(**options)  # type: ignore[arg-type]
    if fs.tree.upper is None:
        wanted = attrs.evolve(wanted, read_only=True)
    for layer in fs.tree.resolver.layers:
        if isinstance(layer, DirectoryLayer) and layer.path == path:
            layer.hold()  # Opened again by its path it would be the mount.
    return chosen.mount(fs, path, wanted)

"""The engine: mounting, and agreeing with the kernel on features."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, ClassVar

from unionfs._sys import fusedev
from unionfs.errors import MountError
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.owners import overflow_ids
from unionfs.mount import mountinfo
from unionfs.mount.devfuse import wire
from unionfs.mount.devfuse.nodes import NodeTable
from unionfs.mount.devfuse.notifying import Notifier
from unionfs.mount.devfuse.openfiles import OpenFiles
from unionfs.mount.devfuse.requests import Requests, Trust
from unionfs.mount.devfuse.session import Handler, Session
from unionfs.mount.engine import FSTYPE, SUBTYPE, Engine, Mount, MountOptions
from unionfs.mount.served import ServedMount, device_lacking
from unionfs.mount.unmounting import unmount

if TYPE_CHECKING:
    from unionfs.union.fs import UnionFS
    from unionfs.union.tree import Tree

log = logging.getLogger(__name__)

_ANSWER_WITHIN = 15.0  # seconds
_LONG = 86400.0 * 365
_READAHEAD = 1 << 20
_MAX_BACKGROUND = 64
_USE_NO_HELPER = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EBUSY, errno.ELOOP})

# Not READDIRPLUS_AUTO: the kernel then asks for plain listings and looks names up one by one, as soon as a listing is
# longer than a request. Attributes cost us little more than the inode numbers that a plain listing needs.
_WANTED = (
    wire.ASYNC_READ | wire.ATOMIC_O_TRUNC | wire.BIG_WRITES | wire.DONT_MASK | wire.DO_READDIRPLUS
    | wire.PARALLEL_DIROPS | wire.MAX_PAGES | wire.CACHE_SYMLINKS | wire.NO_OPENDIR_SUPPORT
    | wire.HANDLE_KILLPRIV_V2 | wire.SETXATTR_EXT | wire.INIT_EXT
)  # fmt: skip


class DevfuseEngine(Engine):
    """``/dev/fuse`` spoken in Python."""

    name: ClassVar[str] = "devfuse"

    def lacking(self) -> str | None:
        if not sys.platform.startswith("linux"):
            return "/dev/fuse is Linux's alone"
        release = os.uname().release
        if [int(part) for part in re.findall(r"\d+", release)[:2]] < [6, 1]:
            return f"this kernel, {release}, is older than Linux 6.1: use --engine fusepy"
        if (lacking := device_lacking()) is not None:
            return lacking
        if os.geteuid() != 0 and fusedev.helper() is None:
            return "fusermount3 is not installed: apt install fuse3"
        return None

    def mount(self, fs: UnionFS, mountpoint: str, options: MountOptions) -> Mount:
        if (lacking := self.lacking()) is not None:
            raise MountError(errno.ENODEV, lacking, mountpoint)
        return _DevfuseMount(fs.tree, mountpoint, options)


def _is_privileged() -> bool:
    """Whether this is root, and not of a user namespace: registering a file to be passed through takes that."""
    return os.geteuid() == 0 and not overflow_ids("/proc/self/uid_map")


def _connect(mountpoint: str, options: MountOptions) -> int:
    """Mount, and return the connection. Raises ``MountError``."""
    root = os.geteuid() == 0

    def chosen(value: bool | None) -> bool:
        return root if value is None else value

    flags = [
        *(["ro"] if options.read_only else []),
        *([] if options.exec else ["noexec"]),
        *([] if chosen(options.dev) else ["nodev"]),
        *([] if chosen(options.suid) else ["nosuid"]),
        *options.flags,
    ]
    words = []
    if options.default_permissions:
        words.append("default_permissions")
    if chosen(options.allow_other):
        words.append("allow_other")
    where, source = os.fsencode(mountpoint), os.fsencode(options.source)
    try:
        if root:
            try:
                return fusedev.mount(where, source, SUBTYPE, flags, words)
            except OSError as error:
                if error.errno in _USE_NO_HELPER or fusedev.helper() is None:
                    raise
        return fusedev.mount_by_helper(where, source, SUBTYPE, flags, words)
    except OSError as error:
        raise MountError(error.errno, f"can't mount: {error.strerror}", mountpoint) from error


class _DevfuseMount(ServedMount):
    engine = DevfuseEngine.name

    def __init__(self, tree: Tree, mountpoint: str, options: MountOptions) -> None:
        super().__init__(tree, mountpoint)
        self._options = options
        self._notifier: Notifier | None = None
        trust = _trust(options)
        self._nodes = NodeTable(tree)
        self.begin()
        try:
            connection = _connect(mountpoint, options)
        except BaseException:
            self.drop()
            raise
        try:
            self._files = OpenFiles(tree, self._nodes.nodes, connection, keeps=options.sole)
            requests = Requests(tree, self._nodes, self._files, trust, sole=options.sole)
            handlers = requests.handlers
            self._session = Session(connection, handlers, f"unionfs mount {mountpoint}", self._ended)
            tree.remembered = True
            self._agree(requests, handlers)
            entry = mountinfo.mount_at(mountpoint)
            if entry is None or entry.fstype != FSTYPE:
                raise MountError(errno.EIO, "mounted, but something else is on top", mountpoint)
            self.device = entry.device
        except BaseException:
            # Without a connection the kernel answers ENOTCONN, and the mount can be taken away.
            os.close(connection)
            self._take_away()
            self.drop()
            raise
        self._read_ahead()
        self._session.start()
        self._notifier = Notifier(tree, self._nodes, self._session, requests, sole=options.sole)

    def _take_away(self) -> None:
        try:
            unmount(self.mountpoint, lazy=True)
        except MountError as error:
            log.warning("%s: %s", self.mountpoint, error)

    def _agree(self, requests: Requests, handlers: dict[int, Handler]) -> None:
        """Answer INIT: what both sides can do. Raises ``MountError``."""
        try:
            h, body = self._session.receive(_ANSWER_WITHIN)
        except OSError as error:
            raise MountError(error.errno, f"the kernel did not begin: {error.strerror}", self.mountpoint) from error
        major, minor, ahead, low, *rest = wire.INIT_IN.unpack(body[: wire.INIT_IN.size].ljust(wire.INIT_IN.size, b"\0"))
        if h[1] != wire.INIT or major != wire.MAJOR or minor < wire.MINOR_MIN:
            text = f"this kernel speaks FUSE {major}.{minor}, not {wire.MAJOR}.{wire.MINOR_MIN} (Linux 6.1) or newer"
            raise MountError(errno.EPROTONOSUPPORT, text, self.mountpoint)
        offered = low | (rest[0] << 32 if low & wire.INIT_EXT else 0)
        wanted = _WANTED
        if self._options.default_permissions:
            wanted |= wire.POSIX_ACL
        depth = 0
        passes = self._options.passthrough and _is_privileged() and not self._in_memory()
        if passes and offered & wire.PASSTHROUGH:
            wanted |= wire.PASSTHROUGH
            depth = 1
            self._files.passthrough = True
        elif self._options.sole:
            wanted |= wire.WRITEBACK_CACHE
        if not self._options.sole:
            wanted |= wire.AUTO_INVAL_DATA
        agreed = wanted & offered
        self._files.writeback = self.gathers = bool(agreed & wire.WRITEBACK_CACHE)
        if not agreed & wire.NO_OPENDIR_SUPPORT:
            handlers[wire.OPENDIR], handlers[wire.RELEASEDIR] = requests.opendir, requests.destroy
        payload = wire.INIT_OUT.pack(
            wire.MAJOR, min(minor, wire.MINOR), max(ahead, _READAHEAD), agreed & 0xFFFFFFFF,
            _MAX_BACKGROUND, _MAX_BACKGROUND * 3 // 4, wire.MAX_WRITE, 1, wire.MAX_WRITE // wire.PAGE, 0,
            agreed >> 32, depth,
        )  # fmt: skip
        self._session.reply(h[2], payload)

    def _in_memory(self) -> bool:
        upper = self.tree.upper
        return upper is not None and not isinstance(upper, DirectoryLayer)

    def _read_ahead(self) -> None:
        """Ask for more at a time than the usual 128 KiB; the kernel takes the least of all that have a say."""
        try:
            with open(f"/sys/class/bdi/{self.device}/read_ahead_kb", "w", encoding="ascii") as file:
                file.write(str(_READAHEAD >> 10))
        except OSError as error:
            log.debug("%s: readahead stays as it is: %s", self.mountpoint, error)

    def _ended(self) -> None:
        if self._notifier is not None:
            self._notifier.end()
        self._files.close()
        self._nodes.clear()
        self.served.set()
        self.tree.sync()

    def join(self, timeout: float | None = None) -> bool:
        return self._session.join(timeout)


def _trust(options: MountOptions) -> Trust:
    usual = _LONG if options.sole else 0.0

    def chosen(timeout: float | None) -> float:
        return usual if timeout is None else timeout

    return Trust(
        names=chosen(options.entry_timeout),
        missing=chosen(options.negative_timeout),
        attributes=chosen(options.attr_timeout),
    )

"""The engine that mounts the layers' directories with the kernel's own overlayfs.

While it is mounted the upper belongs to the kernel. The union reads on, with what it knew, and every change through it
raises ``EBUSY``; when the mount has ended it reads the upper anew. So this engine is for who uses the mount alone.
Nobody has to serve the mount: it outlives a process that is killed.

Where overlayfs does otherwise than the other engines: before Linux 6.13, a file that was opened for reading before its
copy-up is read as it was; an open file that another was renamed over keeps its link count until its copy-up; what was
copied up or renamed may have another inode number at the next mount; with marks in ``user.overlay`` a directory that a
lower has can't be renamed (``EXDEV``), and a change of metadata copies the data.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from unionfs._sys import fsmount, namespaces
from unionfs._sys.inotify import EndOfFilesystem
from unionfs.errors import MountError
from unionfs.layer.descriptors import KEPT, Fd
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.upper import UpperDirectory
from unionfs.mount import mountinfo
from unionfs.mount.engine import OVERLAY, SHOWN_ELSEWHERE, Engine, Mount, MountOptions
from unionfs.mount.kernelstack import KernelStack, kernel_stack
from unionfs.mount.options import escape_layer
from unionfs.mount.unmounting import unmount

if TYPE_CHECKING:
    from unionfs.union.fs import UnionFS
    from unionfs.union.tree import Tree

log = logging.getLogger(__name__)

_LAST_USER_WITHIN = 3.0  # seconds
_BUSY_PATIENCE = 1.0  # seconds: the kernel lets go of an upper a moment after it has told of the last mount's end.
_PAGE = 4096

# What a mount can do without, in the order in which a kernel that takes no explanation is asked without it.
_OPTIONAL = ("volatile", "xino", "index", "metacopy", "redirect_dir")

_LACKING = {
    errno.EPERM: "overlayfs is for root, or for who is root of a user and mount namespace: unshare -Urm",
    errno.ENODEV: "the kernel has no overlayfs: modprobe overlay",
    errno.ENOSYS: "fsopen(2) is missing: it takes Linux 5.2, and a sandbox that lets it through",
}


class KernelEngine(Engine):
    """overlayfs by the kernel."""

    name: ClassVar[str] = "kernel"

    def lacking(self) -> str | None:
        try:
            fsmount.Context(OVERLAY).close()
        except OSError as error:
            return _LACKING.get(error.errno or 0) or f"overlayfs can't be mounted: {error.strerror}"
        return None

    def mount(self, fs: UnionFS, mountpoint: str, options: MountOptions) -> Mount:
        if (lacking := self.lacking()) is not None:
            raise MountError(errno.ENODEV, lacking, mountpoint)
        tree = fs.tree
        stack = kernel_stack(tree)
        _lend(tree, mountpoint)
        try:
            return _KernelMount(tree, stack, mountpoint, options)
        except BaseException:
            _take_back(tree, changed=False)
            raise


def _lend(tree: Tree, mountpoint: str) -> None:
    """No change through the union from now on. Raises ``MountError`` (``EBUSY``) where one is going on."""
    if tree.upper is None:
        return
    with tree.lock:
        if tree.lent is not None:
            raise MountError(errno.EBUSY, tree.lent, mountpoint)
        for writer in tree.writers:
            if not writer.dead:
                text = f"{os.fsdecode(writer.path)} is open for writing through the union, which overlayfs can't know"
                raise MountError(errno.EBUSY, text, mountpoint)
        tree.lent = f"the kernel's overlayfs has the upper, mounted at {mountpoint}: make changes there"


def _take_back(tree: Tree, *, changed: bool) -> None:
    """The upper is the union's again, if that is still open. ``changed``: the kernel may have changed what is in it."""
    upper = tree.upper
    if tree.lent is None or not isinstance(upper, UpperDirectory):
        return
    with tree.lock:
        if upper.index is None:
            return
        KEPT.forget(upper)
        # The kernel makes work/work anew at each mount, and leaves its own directories without any permission.
        for area, name in ((upper.staging, "work"), (upper.index, "index")):
            path = os.path.join(upper.work, name)
            os.makedirs(path, mode=0o700, exist_ok=True)
            os.chmod(path, 0o700)
            area.ref = Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
        # Of a volatile mount it keeps a note there, for which it refuses the next one ("Volatile mount").
        for left in upper.scan(upper.staging):
            upper.clear(upper.staging, left)
        if changed:
            tree.reread()
        tree.lent = None


# Making the mount


class _KernelLog:
    """What overlayfs writes to the kernel's log meanwhile, where this process may read that: most of what it refuses,
    it explains only there (Documentation/ABI/testing/dev-kmsg)."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
            return
        os.lseek(self._fd, 0, os.SEEK_END)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def said(self) -> str:
        lines = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192)
            except BrokenPipeError:
                continue  # Some were overwritten.
            except OSError:
                break
            text = record.partition(b";")[2].partition(b"\n")[0]
            if text.startswith(b"overlayfs: "):
                lines.append(os.fsdecode(text.removeprefix(b"overlayfs: ")).rstrip("."))
        return "; ".join(lines)


def _words(stack: KernelStack, options: MountOptions) -> dict[str, str | None]:
    """Options for overlayfs; ``None``: a flag."""
    words: dict[str, str | None] = {}
    if stack.userxattr:
        words["userxattr"] = None
        log.info("userxattr: no redirect_dir (EXDEV for a lower's directories) and no metacopy (chmod copies data)")
    else:
        words["redirect_dir"] = "on" if stack.redirect_dir else "follow"
        words["metacopy"] = "on" if stack.metacopy else "off"
    if stack.upper is not None:
        words["index"] = "on"
        if stack.upper.volatile:
            words["volatile"] = None
    words["xino"] = "auto"
    words.update(dict.fromkeys(flag for flag in options.flags if flag != "noatime"))
    if options.read_only:
        words["ro"] = None
    return words


def _attributes(options: MountOptions) -> int:
    root = os.geteuid() == 0
    wanted = {
        fsmount.MOUNT_ATTR_RDONLY: options.read_only,
        fsmount.MOUNT_ATTR_NOSUID: not (root if options.suid is None else options.suid),
        fsmount.MOUNT_ATTR_NODEV: not (root if options.dev is None else options.dev),
        fsmount.MOUNT_ATTR_NOEXEC: not options.exec,
        fsmount.MOUNT_ATTR_NOATIME: "noatime" in options.flags,
    }
    return sum(attribute for attribute, yes in wanted.items() if yes)


class _Places:
    """The layers by names that the kernel takes, for as long as the block lasts.

    A name is the layer's path, or where that is too long for fsconfig(2) or leads elsewhere by now, the open
    directory's in /proc.
    """

    def __init__(self, stack: KernelStack, longest: int = fsmount.STRING_MAX) -> None:
        self._longest = longest
        self._held: list[Fd] = []
        self.lowers = [self._name(layer, layer.path) for layer in stack.lowers]
        self.upper: str | None = None
        self.work: str | None = None
        if stack.upper is not None:
            self.upper = self._name(stack.upper, stack.upper.path)
            work = Fd(os.open(stack.upper.work, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            self.work = self._short(work, stack.upper.work)

    def _name(self, layer: DirectoryLayer, path: str) -> str:
        return self._short(layer.fd(layer.root), path)

    def _short(self, fd: Fd, path: str) -> str:
        self._held.append(fd)
        with contextlib.suppress(OSError):
            # Backslashes: Linux 6.5 to 6.7 takes some for escapes.
            plain = len(os.fsencode(path)) <= self._longest and "\\" not in path
            if plain and os.path.samestat(os.stat(path), os.fstat(fd.n)):
                return path
        return f"/proc/self/fd/{fd.n}"


def _takes_layers_singly() -> bool:
    """Whether overlayfs takes ``lowerdir+`` (Linux 6.7). Before 6.5 it looks at its options only when it mounts, and
    takes any word until then."""
    with fsmount.Context(OVERLAY) as context:
        try:
            context.set("lowerdir+", "/")
        except OSError:
            return False
        try:
            context.set("unionfs-no-such-option", "")
        except OSError:
            return True
    return False


def _make(stack: KernelStack, words: dict[str, str | None], source: str, attributes: int) -> int:
    """A descriptor of the mount, which is nowhere yet. What the kernel does not know is taken out of ``words``."""
    places = _Places(stack)
    with fsmount.Context(OVERLAY) as context:
        context.set("source", source)
        for lower in places.lowers:
            context.set("lowerdir+", lower)
        if places.upper is not None and places.work is not None:
            context.set("upperdir", places.upper)
            context.set("workdir", places.work)
        for key, value in list(words.items()):
            try:
                context.set(key, value)
            except OSError as error:
                if key not in _OPTIONAL:
                    raise
                log.info("overlayfs: mounted without %s: %s", key, error.strerror)
                del words[key]
        context.create()
        return context.mount(attributes)


_MS_FLAGS = {
    fsmount.MOUNT_ATTR_RDONLY: 0x1,
    fsmount.MOUNT_ATTR_NOSUID: 0x2,
    fsmount.MOUNT_ATTR_NODEV: 0x4,
    fsmount.MOUNT_ATTR_NOEXEC: 0x8,
    fsmount.MOUNT_ATTR_NOATIME: 0x400,
}
_MS_WORDS = {"sync": 0x10, "dirsync": 0x80, "ro": 0x1}


def _make_at_once(stack: KernelStack, words: dict[str, str | None], source: str, attributes: int, target: str) -> None:
    """The same by mount(2), for a kernel without ``lowerdir+``: all options in one page."""
    flags = sum(bit for attribute, bit in _MS_FLAGS.items() if attributes & attribute)
    flags |= sum(bit for word, bit in _MS_WORDS.items() if word in words and not flags & bit)
    rest = [key if value is None else f"{key}={value}" for key, value in words.items() if key not in _MS_WORDS]
    for longest in (fsmount.STRING_MAX, 0):
        places = _Places(stack, longest)
        layers = ["lowerdir=" + ":".join(map(escape_layer, places.lowers))]
        if places.upper is not None and places.work is not None:
            layers += [f"upperdir={escape_layer(places.upper)}", f"workdir={escape_layer(places.work)}"]
        data = ",".join([*layers, *rest])
        if len(os.fsencode(data)) < _PAGE:
            namespaces.mount(source, target, OVERLAY, flags, data)
            return
    raise OSError(errno.E2BIG, "the layers' names fill more than a page, which takes Linux 6.7")


def _mounted(stack: KernelStack, options: MountOptions, target: str) -> tuple[EndOfFilesystem, dict[str, str | None]]:
    """Mount at ``target``, with as many options as the kernel takes. Answers who sees its end, and those options."""
    words, attributes = _words(stack, options), _attributes(options)
    singly = _takes_layers_singly()
    deadline = time.monotonic() + _BUSY_PATIENCE
    while True:
        try:
            if not singly:
                _make_at_once(stack, words, options.source, attributes, target)
                try:
                    return EndOfFilesystem(target), words
                except BaseException:
                    unmount(target, lazy=True)
                    raise
            fd = _make(stack, words, options.source, attributes)
            try:
                end = EndOfFilesystem(f"/proc/self/fd/{fd}")
                fsmount.move_mount(fd, target)
                return end, words
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            without = _do_without(error, words, singly)
            if without is None:
                raise
            log.info("overlayfs: %s; once more without %s", error.strerror, without)
            del words[without]


def _do_without(error: OSError, words: dict[str, str | None], singly: bool) -> str | None:
    """The option to leave out after this error; ``None`` if none is to blame."""
    if error.errno == errno.ESTALE:
        # The index was made over another lowest layer, or for another upper ("Sharing and copying layers").
        return "index" if "index" in words else None
    if error.errno == errno.EINVAL and not singly:
        return next((option for option in _OPTIONAL if option in words), None)
    return None


def _switched_off(entry: mountinfo.MountEntry) -> Iterator[str]:
    """Of the options that change what is shown, those that are not on in this mount. What is on by default is not
    told there."""
    for option in ("redirect_dir", "metacopy", "index"):
        default = "N"
        with contextlib.suppress(OSError), open(f"/sys/module/overlay/parameters/{option}") as parameter:
            default = parameter.read().strip()
        if f"{option}=on" not in entry.super_options and (default != "Y" or entry.super_option(option) is not None):
            yield option


class _KernelMount(Mount):
    engine = KernelEngine.name

    def __init__(self, tree: Tree, stack: KernelStack, mountpoint: str, options: MountOptions) -> None:
        self.mountpoint = mountpoint
        self._tree = tree
        self._owner = os.getpid()
        self._unmounting = threading.Lock()
        kernel_log = _KernelLog()
        try:
            self._end, words = _mounted(stack, options, mountpoint)
        except OSError as error:
            said = kernel_log.said() or error.strerror
            if len(stack.layers) > 2 and error.errno == errno.EINVAL:
                said = f"{said} (there are {len(stack.lowers)} lowers)"
            raise MountError(error.errno, f"overlayfs: {said}", mountpoint) from None
        finally:
            kernel_log.close()
        try:
            self._device = self._check(stack, words)
        except BaseException:
            unmount(mountpoint, lazy=True)
            self._end.close()
            raise
        self._thread = threading.Thread(target=self._await_end, name=f"unionfs mount {mountpoint}", daemon=True)
        self._thread.start()
        _alive.add(self)

    def _check(self, stack: KernelStack, words: dict[str, str | None]) -> str:
        """The mount's device number. Raises ``MountError`` where it shows less than it was asked to."""
        entry = mountinfo.mount_at(self.mountpoint)
        if entry is None or entry.fstype != OVERLAY:
            raise MountError(errno.EBUSY, "something else was mounted on top meanwhile", self.mountpoint)
        off = set(_switched_off(entry))
        if "index" in off and stack.upper is not None:
            stack.check_index()
            log.info("%s: index=off: a lower's hard links come apart at copy-up", self.mountpoint)
        stack.check_marks(
            redirect="redirect_dir" in off and words.get("redirect_dir") != "follow", metacopy="metacopy" in off
        )
        return entry.device

    def _await_end(self) -> None:
        self._end.wait()
        self._end.close()
        try:
            _take_back(self._tree, changed=True)
            self._tree.sync()
        except OSError as error:
            log.error("%s: after the kernel's mount, the upper can't be read: %s", self.mountpoint, error)

    def wait(self, timeout: float | None = None) -> bool:
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        _alive.discard(self)
        return True

    def unmount(self, *, lazy: bool = False) -> None:
        if self._owner != os.getpid():
            return  # A forked child has no part in its parent's mount.
        with self._unmounting:
            if self._thread.is_alive():
                entry = mountinfo.mount_at(self.mountpoint)
                if entry is not None and entry.device == self._device:
                    unmount(self.mountpoint, lazy=lazy)
                elif any(below.device == self._device for below in mountinfo.mounts()):
                    raise MountError(errno.EBUSY, "something else is mounted on top", self.mountpoint)
            if not lazy and not self.wait(_LAST_USER_WITHIN):
                log.warning("%s: %s, and it goes on there", self.mountpoint, SHOWN_ELSEWHERE)


_alive: weakref.WeakSet[_KernelMount] = weakref.WeakSet()


@atexit.register
def _unmount_all() -> None:
    for mounted in list(_alive):
        try:
            mounted.unmount(lazy=True)
        except MountError:
            continue  # It stays, and works; whoever wants it gone unmounts it.
        mounted.wait(1.0)

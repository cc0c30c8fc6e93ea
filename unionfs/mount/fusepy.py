"""The engine over libfuse 2 through fusepy: path-based, portable, in threads of this process."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from unionfs._sys.dispositions import as_python_says
from unionfs.errors import MountError
from unionfs.mount import mountinfo
from unionfs.mount.engine import FSTYPE, SUBTYPE, Engine, Mount, MountOptions
from unionfs.mount.pathops import PathOperations
from unionfs.mount.served import ServedMount, device_lacking

if TYPE_CHECKING:
    from unionfs.union.fs import UnionFS

log = logging.getLogger(__name__)

_ANSWER_WITHIN = 15.0  # seconds
_LONG = 86400.0
_LIBFUSE_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)

_NO_LIBFUSE = (
    "libfuse 2 is not installed: apt install libfuse2 fuse3 (libfuse2t64 on Debian 13, Ubuntu 24.04), "
    "or set FUSE_LIBRARY_PATH"
)


def _fuse() -> Any:
    """The module of fusepy. ``ImportError``, or ``OSError`` without libfuse 2.

    Left alone it looks for the library by way of ldconfig and gcc, which takes longer than all else at the start of a
    mount, and fails where there is neither; so the library's own name comes first.
    """
    if "fuse" not in sys.modules and "FUSE_LIBRARY_PATH" not in os.environ:
        os.environ["FUSE_LIBRARY_PATH"] = "libfuse.so.2"
        try:
            return importlib.import_module("fuse")
        except OSError:
            pass  # Perhaps the loader's cache has it under another name: let fusepy look.
        finally:
            del os.environ["FUSE_LIBRARY_PATH"]
    return importlib.import_module("fuse")


class FusepyEngine(Engine):
    """libfuse 2 by way of fusepy."""

    name: ClassVar[str] = "fusepy"

    def lacking(self) -> str | None:
        try:
            _fuse()
        except ImportError:
            return "the Python package fusepy is not installed: pip install fusepy"
        except OSError:
            return _NO_LIBFUSE
        if (lacking := device_lacking()) is not None:
            return lacking
        if os.geteuid() != 0 and not shutil.which("fusermount"):
            return "fusermount is not installed: apt install fuse3"
        return None

    def mount(self, fs: UnionFS, mountpoint: str, options: MountOptions) -> Mount:
        if (lacking := self.lacking()) is not None:
            raise MountError(errno.ENODEV, lacking, mountpoint)
        return _FuseMount(fs, mountpoint, options)


def _libfuse_options(mountpoint: str, options: MountOptions) -> dict[str, Any]:
    """Words for libfuse's ``-o`` (fuse(8))."""
    root = os.geteuid() == 0

    def chosen(value: bool | None) -> bool:
        return root if value is None else value

    # Names may be trusted for long when nobody else changes the tree. Attributes may not: libfuse 2 makes every name of
    # a hard link an inode of its own, and a change by one name would not show under the other. The price is a GETATTR
    # for each directory on a path: stat(2) of a path eight deep took 0.6 ms, with attr_timeout=1 0.06 ms.
    names = _LONG if options.sole else 0.0
    words: dict[str, Any] = {
        "subtype": SUBTYPE,
        "fsname": _escape(options.source),
        "use_ino": True,
        "big_writes": True,
        "max_read": 131072,
        "max_write": 131072,
        "atomic_o_trunc": True,
        "entry_timeout": names if options.entry_timeout is None else options.entry_timeout,
        "negative_timeout": names if options.negative_timeout is None else options.negative_timeout,
        "attr_timeout": float(options.lax) if options.attr_timeout is None else options.attr_timeout,
        "default_permissions": options.default_permissions,
        "allow_other": chosen(options.allow_other),
        "ro": options.read_only,
        "noexec": not options.exec,
        "dev" if chosen(options.dev) else "nodev": True,
        "suid" if chosen(options.suid) else "nosuid": True,
        **dict.fromkeys(options.flags, True),
    }
    if os.listdir(mountpoint):
        words["nonempty"] = True  # Only then: some versions of fusermount do not know the word.
    return words


def _escape(text: str) -> str:
    """For libfuse's option parser, as latin-1 text that stands for bytes."""
    return os.fsencode(text.replace("\\", "\\\\").replace(",", "\\,")).decode("latin-1")


class _Alone:
    """Follows the tree of a mount whose kernel trusts names for a day, and can't be told otherwise by libfuse 2."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint

    def before(self, names: Sequence[object]) -> None:  # noqa: ARG002
        text = "fusepy can't tell the kernel of another stack: mount by devfuse, or not as the only user"
        raise MountError(errno.EBUSY, text, self._mountpoint)

    def after(self, told: Sequence[object]) -> None:
        """Never comes to it."""


class _FuseMount(ServedMount):
    engine = FusepyEngine.name

    def __init__(self, fs: UnionFS, mountpoint: str, options: MountOptions) -> None:
        super().__init__(fs.tree, mountpoint)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        covered = mountinfo.mount_at(mountpoint)
        words = _libfuse_options(mountpoint, options)
        self._thread = threading.Thread(
            target=self._serve, args=(words, options.sole), name=f"unionfs mount {mountpoint}", daemon=True
        )
        self._follower = _Alone(mountpoint) if options.sole else None
        if self._follower is not None:
            fs.tree.follow(self._follower)
        self.begin()
        self._thread.start()
        try:
            self.device = self._wait_for_answer(covered)
        except BaseException:
            if not self._thread.is_alive():
                self.drop()
            raise

    def _serve(self, words: dict[str, Any], sole: bool) -> None:
        fuse = _fuse()
        operations = PathOperations(self.tree, fuse.fuse_get_context, sole=sole, on_init=self._on_init)
        try:
            fuse.FUSE(
                operations,
                os.fsencode(self.mountpoint).decode("latin-1"),
                raw_fi=True,
                encoding="latin-1",
                foreground=True,
                **words,
            )
        except BaseException as error:  # noqa: BLE001  # Told to who waits for the mount.
            self._failure = error
            log.debug("%s: fuse_main: %r", self.mountpoint, error)
        finally:
            self.served.set()
            if self._follower is not None:
                self.tree.unfollow(self._follower)
            for signum in _LIBFUSE_SIGNALS:
                as_python_says(signum)
            operations.close()
            if self._ready.is_set():
                self.tree.sync()

    def _on_init(self) -> None:
        # fuse_main has taken the signals of this process for itself (fuse_set_signal_handlers(3)): give them back.
        for signum in _LIBFUSE_SIGNALS:
            as_python_says(signum)
        self._ready.set()

    def _wait_for_answer(self, covered: mountinfo.MountEntry | None) -> str:
        """The mount's device number, when it has answered. Raises ``MountError``."""
        deadline = time.monotonic() + _ANSWER_WITHIN
        while not self._ready.wait(0.02):
            if not self._thread.is_alive():
                text = "libfuse could not mount here; it said why on stderr"
                raise MountError(errno.EIO, text, self.mountpoint) from self._failure
            if time.monotonic() > deadline:
                raise MountError(errno.ETIMEDOUT, "the kernel did not answer", self.mountpoint)
        asked = threading.Thread(target=os.stat, args=(self.mountpoint,), daemon=True)
        asked.start()
        asked.join(max(0.1, deadline - time.monotonic()))
        entry = mountinfo.mount_at(self.mountpoint)
        if asked.is_alive() or entry is None or entry.fstype != FSTYPE or entry == covered:
            raise MountError(errno.ETIMEDOUT, "the mount does not answer", self.mountpoint)
        return entry.device

    def join(self, timeout: float | None = None) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

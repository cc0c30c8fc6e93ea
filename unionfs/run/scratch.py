"""Scratch directories of runs: where one writes, who holds it, and what a killed one left.

A scratch directory holds ``upper``, ``work``, the mountpoint ``merged`` and ``run.json``. Its process keeps it locked
(flock(2)); the lock goes with the process, so one that can be locked is nobody's any more.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import json
import os
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence

import attrs

from unionfs._sys.filehandle import can_use_trusted
from unionfs.errors import LayerError
from unionfs.layer.owners import overflow_ids
from unionfs.run.process import REAL

_INFO = "run.json"
_UNFINISHED = ".new-"
_UNFINISHED_FOR = 600.0  # seconds after which nobody is still making it


@attrs.frozen
class Leftover:
    """What a killed run left."""

    path: str
    command: str
    created: dt.datetime
    changed: bool
    """Whether anything had been written."""


class Scratch:
    """A locked scratch directory. ``remove`` or ``release`` it at the end."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self.upper, self.work, self.merged = (os.path.join(path, name) for name in ("upper", "work", "merged"))
        self.started_ns = os.stat(os.path.join(path, _INFO)).st_ctime_ns
        """When it was made, by the clock of file systems: what has a later ctime changed since then."""

    @classmethod
    def make(cls, base: str, command: Sequence[str], root: str = "/") -> Scratch:
        """A new one in ``base``, for a view over ``root``: the upper looks as that does. Raises ``OSError``."""
        path = _new_directory(base)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        now = dt.datetime.now(dt.UTC)
        with open(os.path.join(path, _INFO), "w", encoding="utf-8") as file:
            json.dump({"command": list(command), "created": now.isoformat(timespec="seconds")}, file)
        for name in ("upper", "work", "merged"):
            os.mkdir(os.path.join(path, name), 0o700)
        _dress(os.path.join(path, "upper"), root)
        final = os.path.join(base, f"{now:%Y%m%d-%H%M%S}-{path.rpartition(_UNFINISHED)[2]}")
        os.rename(path, final)
        return cls(final, fd)

    @property
    def id(self) -> str:
        """Its name: when, and something random."""
        return os.path.basename(self.path)

    def remove(self) -> None:
        """Remove it with all that is in it. What is still mounted stops it (``EBUSY``), before anything is removed."""
        _remove(self.path)
        self.release()

    def release(self) -> None:
        """Let go of it and leave it there."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _new_directory(base: str) -> str:
    for last in (False, False, True):
        os.makedirs(base, mode=0o700, exist_ok=True)
        try:
            return tempfile.mkdtemp(prefix=_UNFINISHED, dir=base)
        except FileNotFoundError:
            if last:
                raise  # Else: another run ended in between and took the empty directory away.
    raise AssertionError


def _dress(upper: str, root: str) -> None:
    """The upper's root is the union's: owner, mode, times and attributes as in the layer below."""
    st = os.stat(root)
    # Who this user namespace does not know is root in the view.
    uid = 0 if st.st_uid in overflow_ids("/proc/self/uid_map") else st.st_uid
    gid = 0 if st.st_gid in overflow_ids("/proc/self/gid_map") else st.st_gid
    os.chown(upper, uid, gid)
    shutil.copystat(root, upper)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(os.path.join(path, "merged"))
    shutil.rmtree(path)


# Where


def state_directory(uid: int) -> str:
    """Where this user's scratch directories and kept layers are unless told: on disk, and with the marks of overlayfs.

    ``/var/lib/unionfs`` for root, else ``$XDG_STATE_HOME/unionfs``; else ``unionfs-UID`` in /var/tmp or the directory
    for temporary files. ``uid`` is the user's outside of any user namespace. Raises ``LayerError``.
    """
    if uid == 0:
        places = ["/var/lib/unionfs"]
    else:
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        places = [os.path.join(home, "unionfs")]
    places += [os.path.join(directory, f"unionfs-{uid}") for directory in ("/var/tmp", tempfile.gettempdir())]
    reasons = []
    for place in dict.fromkeys(places):
        try:
            check_place(place)
        except OSError as error:
            reasons.append(f"{place} ({error.strerror})")
            continue
        return os.path.realpath(place)
    raise LayerError(errno.EOPNOTSUPP, f"no place for the changes: {', '.join(reasons)}", "--scratch")


def check_place(directory: str) -> None:
    """Raise ``LayerError`` unless an upper can live in ``directory``, which is made if need be.

    It must take extended attributes and whiteouts, and not be in a place that a view shows as it is (``REAL``).
    """
    path = os.path.realpath(directory)
    for real in REAL:
        if path == real or path.startswith(f"{real}/"):
            raise LayerError(
                errno.EINVAL, f"the changes can't be kept below {real}, which the view shows as it is", path
            )
    new = not os.path.lexists(path)
    try:
        _check_writable(path)
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise


def _check_writable(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        st = os.stat(path)
        if st.st_mode & stat.S_IWOTH or st.st_uid != os.geteuid():
            raise LayerError(errno.EPERM, "others may write there; give a directory of your own", path)
        probe = tempfile.mkdtemp(prefix=".probe-", dir=path)
    except LayerError:
        raise
    except OSError as error:
        raise LayerError(error.errno, error.strerror, path) from None
    try:
        fd = os.open(probe, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not can_use_trusted(fd):
                os.setxattr(fd, "user.unionfs.probe", b"")
        finally:
            os.close(fd)
        os.mknod(os.path.join(probe, "whiteout"), stat.S_IFCHR, 0)
    except OSError as error:
        text = f"its file system takes no extended attributes or no whiteouts: {error.strerror}"
        raise LayerError(error.errno, text, path) from None
    finally:
        shutil.rmtree(probe)


# What killed runs left


def leftovers(base: str, *, remove: bool = False) -> Iterator[Leftover]:
    """What is in ``base`` and nobody's. Where nothing had been written it is removed, with ``remove`` all of it."""
    try:
        names = sorted(os.listdir(base))
    except FileNotFoundError:
        return
    for name in names:
        path = os.path.join(base, name)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, BlockingIOError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = _leftover(path)
                if found is None:
                    continue
                if remove or not found.changed:
                    _remove(path)
                if found.changed:
                    yield found
            finally:
                os.close(fd)


def _leftover(path: str) -> Leftover | None:
    """What it says of itself; ``None`` for one that is only just being made, or was never ours."""
    if os.path.basename(path).startswith(_UNFINISHED):
        if time.time() - os.stat(path).st_mtime > _UNFINISHED_FOR:
            shutil.rmtree(path)
        return None
    try:
        with open(os.path.join(path, _INFO), encoding="utf-8") as file:
            said = json.load(file)
        command, created = shlex.join(said["command"]), dt.datetime.fromisoformat(said["created"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    upper = os.path.join(path, "upper")
    return Leftover(path, command, created, os.path.isdir(upper) and bool(os.listdir(upper)))

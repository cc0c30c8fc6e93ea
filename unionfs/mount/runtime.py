"""Records of running mount daemons, so that ``umount`` can wait for one and ``mount`` can name who is in the way.

A record is a small JSON file that its daemon keeps locked (flock(2)) till its end; the lock goes with the process, so
a record that can be locked is stale, and nobody has to clear it. They are named for the mount's device number, in
``/run/unionfs`` for root, else in ``$XDG_RUNTIME_DIR/unionfs``, else in ``unionfs-UID`` in the temporary directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Self

import attrs

from unionfs.mount import mountinfo


@attrs.frozen
class Record:
    """Who serves a mount. ``upper`` is the canonical path of the writable layer, if there is one."""

    pid: int
    mountpoint: str
    device: str
    engine: str
    upper: str | None = None


def _candidates(uid: int) -> list[str]:
    places = ["/run/unionfs"] if uid == 0 else [f"/run/user/{uid}/unionfs"]
    if uid == os.geteuid() and (own := os.environ.get("XDG_RUNTIME_DIR")):
        places.append(os.path.join(own, "unionfs"))
    return [*places, os.path.join(tempfile.gettempdir(), f"unionfs-{uid}")]


def _trusted(directory: str, uid: int) -> bool:
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o022


def _writable_directory() -> str:
    uid = os.geteuid()
    for directory in _candidates(uid):
        with contextlib.suppress(OSError):
            os.mkdir(directory, 0o700)
        if _trusted(directory, uid) and os.access(directory, os.W_OK):
            return directory
    raise OSError(errno.EACCES, "no directory for records of running mounts", _candidates(uid)[-1])


def _file_name(device: str) -> str:
    return f"{device.replace(':', '-')}.json"


class HeldRecord:
    """A record of this process, locked until ``release`` or the process's end. Raises ``OSError``."""

    def __init__(self, record: Record) -> None:
        directory = _writable_directory()
        self._path = os.path.join(directory, _file_name(record.device))
        self._fd, temporary = tempfile.mkstemp(prefix=".", dir=directory)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.write(self._fd, json.dumps(attrs.asdict(record)).encode())
        os.rename(temporary, self._path)

    def release(self) -> None:
        """Remove the record and let go of its lock."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                os.unlink(self._path)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Watch:
    """Somebody's record, opened to see its daemon end."""

    def __init__(self, path: str, record: Record) -> None:
        self._path = path
        self.record = record
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def ended(self) -> bool:
        """Whether the daemon is gone. What a killed one left of its record is then removed."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                os.unlink(self._path)
        return True

    def serves(self) -> bool:
        """Whether the daemon still talks to the kernel, or waits for the end of what that serves, as far as this
        process may see."""
        fds = f"/proc/{self.record.pid}/fd"
        with contextlib.suppress(OSError):
            return any(os.readlink(f"{fds}/{fd}") in ("/dev/fuse", "anon_inode:inotify") for fd in os.listdir(fds))
        return False

    def stop(self) -> None:
        """Tell the daemon to end. One that is mounted unmounts first; one that was unmounted ends at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.record.pid, signal.SIGTERM)

    def wait(self, patience: float, still_waiting: Callable[[], None]) -> None:
        """Return when the daemon has gone. ``still_waiting`` is called once, after ``patience`` seconds."""
        started, told = time.monotonic(), False
        while not self.ended():
            if not told and time.monotonic() - started > patience:
                told = True
                still_waiting()
            time.sleep(0.01)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(path: str) -> Record | None:
    try:
        with open(path, "rb") as file:
            return Record(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def watch(entry: mountinfo.MountEntry) -> Watch | None:
    """The watch on the daemon of this mount; ``None`` where there is no record (``fs.mount``'s, or a foreign mount)."""
    uid = int(entry.super_option("user_id") or os.geteuid())
    for owner in dict.fromkeys((uid, os.geteuid())):
        for directory in _candidates(owner):
            path = os.path.join(directory, _file_name(entry.device))
            if _trusted(directory, owner) and (record := _read(path)) is not None:
                with contextlib.suppress(OSError):
                    return Watch(path, record)
    return None


def is_recorded(entry: mountinfo.MountEntry) -> bool:
    """Whether there is a record of this mount, be its daemon alive or killed."""
    seen = watch(entry)
    if seen is not None:
        seen.close()
    return seen is not None


def is_dead(entry: mountinfo.MountEntry) -> bool:
    """Whether the daemon behind this FUSE mount is gone ("Transport endpoint is not connected"). What the kernel
    serves itself, overlayfs, does not die with its daemon.

    A record's lock tells; only a mount without one is asked itself, and might be slow to answer.
    """
    if not entry.fstype.startswith("fuse"):
        return False
    if (seen := watch(entry)) is not None:
        with seen:
            return seen.ended()
    try:
        os.stat(entry.mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def live_records() -> Iterator[Record]:
    """This user's records whose mount is still there, in this mount namespace."""
    present = {(entry.mountpoint, entry.device) for entry in mountinfo.mounts()}
    for directory in _candidates(os.geteuid()):
        if not _trusted(directory, os.geteuid()):
            continue
        for name in os.listdir(directory):
            record = _read(os.path.join(directory, name)) if name.endswith(".json") else None
            if record is not None and (record.mountpoint, record.device) in present:
                yield record

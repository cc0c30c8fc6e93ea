"""The mounts of this mount namespace, as ``/proc/self/mountinfo`` tells them (proc(5)).

Nothing here touches what is mounted: a mount whose daemon hangs or is dead must not take the reader with it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import attrs

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@attrs.frozen
class MountEntry:
    """One line of mountinfo. ``options`` are the mount's own, ``super_options`` the file system's."""

    mount_id: int
    device: str
    """``major:minor``; the minor names a FUSE connection in ``/sys/fs/fuse/connections``."""
    mountpoint: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    def super_option(self, name: str) -> str | None:
        """The value of ``name=value`` among the file system's options."""
        for option in self.super_options:
            key, equals, value = option.partition("=")
            if key == name and equals:
                return value
        return None


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def mounts(pid: str = "self") -> list[MountEntry]:
    """All mounts that a process sees; of several at one place the last is on top."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        lines = file.read().splitlines()
    found = []
    for line in lines:
        head, _, tail = line.partition(b" - ")
        fields, rest = head.split(b" "), tail.split(b" ")
        found.append(
            MountEntry(
                mount_id=int(fields[0]),
                device=fields[2].decode(),
                mountpoint=_text(fields[4]),
                options=tuple(_text(fields[5]).split(",")),
                fstype=_text(rest[0]),
                source=_text(rest[1]),
                super_options=tuple(_text(rest[2]).split(",")) if len(rest) > 2 else (),
            )
        )
    return found


def canonical(path: str | os.PathLike[str]) -> str:
    """``path`` absolute and without symlinks, as mountinfo writes it; a mountpoint itself is not looked at."""
    absolute = os.path.abspath(os.fspath(path))
    parent, name = os.path.split(absolute)
    if not name:
        return absolute
    plain = os.path.join(os.path.realpath(parent), name)
    return plain if mount_at(plain) else os.path.realpath(plain)


def mount_at(mountpoint: str) -> MountEntry | None:
    """What is mounted on top at this canonical path."""
    return next((entry for entry in reversed(mounts()) if entry.mountpoint == mountpoint), None)


def users_of(device: str, limit: int = 3) -> list[str]:
    """Processes that keep a file system busy, as ``name (pid)``: whose directory, root, program or files are in it.

    In all mount namespaces, as far as this process may look into ``/proc``. Links are read there, the file system is
    not asked.
    """
    found: list[str] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            tops = [entry.mountpoint.rstrip("/") + "/" for entry in mounts(pid) if entry.device == device]
            if tops and any(f"{target}/".startswith(tuple(tops)) for target in _places_of(pid)):
                with open(f"/proc/{pid}/comm", "rb") as comm:
                    found.append(f"{os.fsdecode(comm.read()).strip()} ({pid})")
        if len(found) == limit:
            break
    return found


def _places_of(pid: str) -> Iterator[str]:
    """The paths of a process's directory, root, program and open files; of those that may be read."""
    links = [f"/proc/{pid}/{name}" for name in ("cwd", "root", "exe")]
    with contextlib.suppress(OSError):
        links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            yield os.readlink(link)

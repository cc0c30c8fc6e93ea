"""Fingerprints of parts of the host: what shows that nothing changed there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

import attrs
import xxhash

_CHUNK = 1 << 20


@attrs.frozen
class Fingerprint:
    """Names, types, modes, owners, sizes, modification times, link targets and contents below a path, as one number."""

    path: str
    entries: int
    bytes: int
    """Of regular files that could be read."""
    digest: str
    """xxh3, 128 bits."""


def fingerprint(path: str) -> Fingerprint:
    """The fingerprint of a file or a tree; a path that does not exist has one too."""
    hasher = xxhash.xxh3_128()
    entries = total = 0
    todo = [path]
    while todo:
        at = todo.pop()
        try:
            st = os.lstat(at)
        except FileNotFoundError:
            hasher.update(os.fsencode(at) + b"\0absent\0")
            continue
        entries += 1
        facts = (st.st_mode, st.st_uid, st.st_gid, st.st_rdev, st.st_nlink, st.st_mtime_ns)
        hasher.update(os.fsencode(at) + b"\0" + repr(facts).encode() + b"\0")
        if stat.S_ISDIR(st.st_mode):
            todo.extend(reversed(_names(at)))
        elif stat.S_ISLNK(st.st_mode):
            hasher.update(os.fsencode(os.readlink(at)))
        elif stat.S_ISREG(st.st_mode):
            total += _read(at, st.st_size, hasher)
    return Fingerprint(path, entries, total, hasher.hexdigest())


def fingerprints(paths: Iterable[str]) -> list[Fingerprint]:
    """Of each path in turn."""
    return [fingerprint(path) for path in paths]


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.path.join(directory, name) for name in os.listdir(directory))
    except PermissionError:
        return []  # Another user's: this one could not have changed it.


def _read(path: str, size: int, hasher: xxhash.xxh3_128) -> int:
    hasher.update(b"%d\0" % size)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        return 0
    with open(fd, "rb", buffering=0) as file:
        while block := file.read(_CHUNK):
            hasher.update(block)
    return size

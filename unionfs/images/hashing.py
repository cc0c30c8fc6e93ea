"""Hashes of many files at once: sha256 is identity, xxh3 a quick fingerprint.

Both let go of Python's lock while they work, so threads use all processors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

_CHUNK = 1 << 20  # Below it, threads wait for each other more than they hash.
_BATCH = 32  # items for a thread at a time
_OWN = threading.local()


class Readable(Protocol):
    """An open file, read from anywhere."""

    def readinto(self, buffer: memoryview, offset: int, /) -> int: ...


def workers() -> int:
    """How many threads hash at once: as many as this process may use processors (sched_getaffinity(2))."""
    return len(os.sched_getaffinity(0))


def in_parallel(work: Callable[[_T], _R], items: Iterable[_T], *, batch: int = _BATCH) -> Iterator[_R]:
    """``work(item)`` for each, in the order of ``items``, by threads. What it raises is raised here.

    ``batch``: how many a thread takes at a time: many small ones, or one large one.
    """
    count = workers()
    todo = iter(items)
    with ThreadPoolExecutor(count, thread_name_prefix="unionfs hash") as pool:

        def begin() -> Any:
            some = list(islice(todo, batch))
            return pool.submit(lambda: [work(item) for item in some]) if some else None

        pending = [future for future in (begin() for _ in range(2 * count)) if future is not None]
        try:
            while pending:
                yield from pending.pop(0).result()
                if (more := begin()) is not None:
                    pending.append(more)
        finally:
            for future in pending:
                future.cancel()


def update(digest: Any, file: Readable, size: int) -> int:
    """Hash ``size`` bytes of an open file; how many there were."""
    buffer = _buffer()
    at = 0
    while at < size:
        count = file.readinto(buffer[: min(_CHUNK, size - at)], at)
        if not count:
            break
        digest.update(buffer[:count])
        at += count
    return at


def _buffer() -> memoryview:
    found: memoryview | None = getattr(_OWN, "buffer", None)
    if found is None:
        found = _OWN.buffer = memoryview(bytearray(_CHUNK))
    return found


def hash_file(path: str | bytes, digest: Any) -> str:
    """The hash of a regular file, in hexadecimal; ``digest`` as ``hashlib.sha256()`` gives it. ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        buffer = _buffer()
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
    finally:
        os.close(fd)
    return str(digest.hexdigest())

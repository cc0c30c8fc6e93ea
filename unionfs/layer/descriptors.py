"""Open directories, kept for a while: a bound on descriptors without a bound on layers or directories."""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Callable

from unionfs.layer.protocol import LayerDir


class Fd:
    """A descriptor that is closed when nobody holds it any more, so that no thread loses it in the middle of a call."""

    __slots__ = ("_close", "keys", "n")

    def __init__(self, n: int) -> None:
        self.n = n
        self.keys: list[str] | None = None
        """What a layer may keep about the directory for as long as it is open."""
        self._close: Callable[[int], None] = os.close

    def __del__(self) -> None:
        self._close(self.n)


def _limit() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if soft == resource.RLIM_INFINITY else max(16, min(4096, soft // 4))


class _Kept:
    """The directories whose ``ref`` holds a descriptor, first in first out, over all layers of the process."""

    def __init__(self) -> None:
        self._queue: deque[LayerDir] = deque()

    def keep(self, d: LayerDir, fd: Fd) -> None:
        d.ref = fd
        self._queue.append(d)
        if len(self._queue) > LIMIT:
            try:
                self._queue.popleft().ref = None
            except IndexError:
                pass  # Another thread took the last one.

    def forget(self, layer: object) -> None:
        """Let go of every directory of ``layer``."""
        for d in [d for d in list(self._queue) if d.layer is layer]:
            d.ref = None
            try:
                self._queue.remove(d)
            except ValueError:
                pass  # Another thread dropped it.


LIMIT = _limit()
KEPT = _Kept()

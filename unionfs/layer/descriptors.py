"""Open directories, kept for a while: a bound on descriptors without a bound on layers or directories."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
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
        self._queue: OrderedDict[LayerDir, None] = OrderedDict()
        self._of: dict[int, dict[LayerDir, None]] = {}

    def keep(self, d: LayerDir, fd: Fd) -> None:
        d.ref = fd
        self._queue[d] = None
        self._of.setdefault(id(d.layer), {})[d] = None
        if len(self._queue) > LIMIT:
            try:
                first, _ = self._queue.popitem(last=False)
                first.ref = None
                del self._of[id(first.layer)][first]
            except KeyError:
                pass  # Another thread took the last one.

    def forget(self, layer: object) -> None:
        """Let go of every directory of ``layer``."""
        for d in list(self._of.pop(id(layer), ())):
            d.ref = None
            self._queue.pop(d, None)


LIMIT = _limit()
KEPT = _Kept()

"""Small values of the public API."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Self

import attrs

RENAME_NOREPLACE = 1
"""``rename``: fail with ``EEXIST`` where the new name exists (renameat2(2))."""
RENAME_EXCHANGE = 2
"""``rename``: exchange the two names in one step (renameat2(2))."""


class Closing:
    """What has a ``close``, which the end of a ``with`` block calls."""

    __slots__ = ()

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DiskUsage(NamedTuple):
    """Room in bytes, as ``shutil.disk_usage`` gives it."""

    total: int
    used: int
    free: int


@attrs.frozen
class LayerInfo:
    """What one layer has under a name: see ``UnionFS.layers_of``."""

    label: str
    """The layer: its directory on the host, or what else it is."""
    path: str
    """Where it has it, as a path in the layer; a redirect makes it differ from the path in the union."""
    kind: str
    """``file``, ``directory``, ``symlink``, ``fifo``, ``socket``, ``character device``, ``block device``;
    ``whiteout``."""
    wins: bool
    """Metadata come from here."""
    shows: bool
    """Something of it is seen in the union: it wins, or it is a directory that merges, or it has a metacopy's bytes."""
    opaque: bool = False
    """A directory that hides those of the layers below."""
    metacopy: bool = False
    """A file with metadata only."""
    redirect: str | None = None
    """The name or path under which the layers below have it."""

"""A union file system with a copy-on-write layer stack: one tree from many layers.

``UnionFS`` is where to begin; ``unionfs.errors`` tells what can go wrong.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from unionfs.errors import LayerError, MountError, UnionError, UpperBusyError
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.memory import MemoryLayer
from unionfs.types import LayerInfo
from unionfs.union import fs as _fs
from unionfs.union.commit import HistoryEntry
from unionfs.union.diff import Change, docker_lines
from unionfs.union.paths import UnionPath

if TYPE_CHECKING:
    from unionfs.mount import Mount

__all__ = [
    "Change",
    "DirectoryLayer",
    "HistoryEntry",
    "LayerError",
    "LayerInfo",
    "MemoryLayer",
    "MountError",
    "UnionError",
    "UnionFS",
    "UnionPath",
    "UpperBusyError",
    "__version__",
    "docker_lines",
]

__version__ = "0.1.0.dev0"


class UnionFS(_fs.UnionFS):
    # The core knows of no mounts (docs/architecture.md): here it learns to be mounted.

    __doc__ = _fs.UnionFS.__doc__

    def mount(self, path: str | os.PathLike[str], engine: str = "auto", **options: Any) -> Mount:
        """Mount the union at a directory of the host until the ``with`` block ends; see ``unionfs.mount.mount``.

            with fs.mount("/mnt/merged"):
                subprocess.run(["ls", "/mnt/merged"])

        What changes here is seen there, and the other way round. Raises ``MountError``.
        """
        from unionfs.mount import mount

        return mount(self, path, engine, **options)

"""A union file system with a copy-on-write layer stack: one tree from many layers.

``UnionFS`` is where to begin; ``unionfs.errors`` tells what can go wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unionfs.errors import (
    InUseError,
    LayerError,
    MountError,
    NotFoundError,
    StoreError,
    UnionError,
    UpperBusyError,
)

if TYPE_CHECKING:
    from unionfs.api import UnionFS
    from unionfs.images.container import Container
    from unionfs.images.image import Image
    from unionfs.images.store import Store
    from unionfs.layer.directory import DirectoryLayer
    from unionfs.layer.memory import MemoryLayer
    from unionfs.types import LayerInfo
    from unionfs.union.commit import HistoryEntry
    from unionfs.union.diff import Change, docker_lines
    from unionfs.union.paths import UnionPath
else:
    # Loaded when somebody asks: who only wants an error, or the command line's help, does not wait for the core.
    _HOMES = {
        "Change": "union.diff",
        "Container": "images.container",
        "DirectoryLayer": "layer.directory",
        "HistoryEntry": "union.commit",
        "Image": "images.image",
        "LayerInfo": "types",
        "MemoryLayer": "layer.memory",
        "Store": "images.store",
        "UnionFS": "api",
        "UnionPath": "union.paths",
        "docker_lines": "union.diff",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "Change",
    "Container",
    "DirectoryLayer",
    "HistoryEntry",
    "Image",
    "InUseError",
    "LayerError",
    "LayerInfo",
    "MemoryLayer",
    "MountError",
    "NotFoundError",
    "Store",
    "StoreError",
    "UnionError",
    "UnionFS",
    "UnionPath",
    "UpperBusyError",
    "__version__",
    "docker_lines",
]

__version__ = "0.1.0.dev0"

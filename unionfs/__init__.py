"""A union file system with a copy-on-write layer stack: one tree from many layers.

``UnionFS`` is where to begin; ``unionfs.errors`` tells what can go wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unionfs.errors import LayerError, MountError, UnionError, UpperBusyError

if TYPE_CHECKING:
    from unionfs.api import UnionFS
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
        "DirectoryLayer": "layer.directory",
        "HistoryEntry": "union.commit",
        "LayerInfo": "types",
        "MemoryLayer": "layer.memory",
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

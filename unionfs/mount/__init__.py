"""How the kernel sees a union: engines that mount it. Importing this imports no engine and no libfuse."""

from __future__ import annotations

from unionfs.mount.engine import Engine, Mount, MountOptions, engine_names, get_engine, mount

__all__ = ["Engine", "Mount", "MountOptions", "engine_names", "get_engine", "mount"]

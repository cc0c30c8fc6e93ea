"""``UnionFS`` with all its doors: the core knows of no mounts (docs/architecture.md), here it learns of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from unionfs.union import fs

if TYPE_CHECKING:
    from unionfs.mount import Mount


class UnionFS(fs.UnionFS):
    __doc__ = fs.UnionFS.__doc__

    def mount(self, path: str | os.PathLike[str], engine: str = "auto", **options: Any) -> Mount:
        """Mount the union at a directory of the host until the ``with`` block ends; see ``unionfs.mount.mount``.

            with fs.mount("/mnt/merged"):
                subprocess.run(["ls", "/mnt/merged"])

        What changes here is seen there, and the other way round. Raises ``MountError``.
        """
        from unionfs.mount import mount

        return mount(self, path, engine, **options)

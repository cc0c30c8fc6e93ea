"""A frozen layer of a store: a directory at which nothing is looked before it has to be, and its index."""

from __future__ import annotations

import logging
import os
from typing import Any

from unionfs.errors import LayerError
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.merged import Index, Merged
from unionfs.layer.protocol import LayerDir

log = logging.getLogger(__name__)

_LATE = frozenset({"overrides", "has_inos", "_guarded"})


class FrozenLayer(DirectoryLayer):
    """A layer of a stack of which a thousand may be opened at once.

    ``index``: the file of what it shows on the layers below it; it may be missing. It holds on exactly the layers that
    the layer was made on. Raises ``LayerError`` when the directory is missing.
    """

    def __init__(self, path: str, index: str) -> None:
        try:
            st = os.lstat(path)
        except OSError as error:
            raise LayerError(error.errno, f"layer is not usable: {error.strerror}", path) from error
        self._identity = st.st_dev, st.st_ino
        self.begin(path)
        self._index_path = index
        self._index: Index | None = None
        self._index_known = False

    def __getattr__(self, name: str) -> Any:
        if name not in _LATE:
            raise AttributeError(name)
        self.examine()
        return self.__dict__[name]

    @property
    def identity(self) -> tuple[int, int]:
        return self._identity

    def merged(self, d: LayerDir) -> Merged | None:
        """What is visible in a directory of this layer, on those that it stands on; ``None`` if nobody noted it."""
        if not self._index_known:
            try:
                self._index = Index(self._index_path)
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                log.warning("the layer's index is not used: %s", error)
            self._index_known = True
        return None if self._index is None else self._index.find(d.path)

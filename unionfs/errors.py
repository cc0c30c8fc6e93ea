"""The error tree.

- ``OSError``: whatever a file system operation can fail with, with the exact errno and the path in the union.
- ``UnionError``: the union itself can't be built or used as asked.
    - ``LayerError`` (an ``OSError`` too): a layer is missing, is no directory, can't be read, or is given twice.
    - ``UpperBusyError`` (an ``OSError`` too, ``EBUSY``): another union writes to this upper or work directory.
    - ``MountError`` (an ``OSError`` too): a mount can't be made, does not answer, or can't be undone.
    - ``StoreError``: a store can't be used, or something in it is damaged.
    - ``NotFoundError``: no image, container, layer or tag of this name; or several, and the name is not clear.
    - ``InUseError``: something else needs what was to go, or has what was to change.
"""

from __future__ import annotations


class UnionError(Exception):
    """The union can't be built or used as asked."""


class LayerError(UnionError, OSError):
    """A layer can't be used. ``errno`` and ``filename`` say which and why."""


class UpperBusyError(UnionError, OSError):
    """Another union, in this process or another, writes to this upper or work directory (``EBUSY``)."""


class MountError(UnionError, OSError):
    """A mount can't be made, does not answer, or can't be undone."""


class StoreError(UnionError):
    """A store can't be used, or something in it is damaged."""


class NotFoundError(UnionError):
    """No image, container, layer or tag of this name; or several, and the name is not clear."""


class InUseError(UnionError):
    """Something else needs what was to go, or has what was to change."""

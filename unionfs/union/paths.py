"""``UnionPath``: what ``pathlib.Path`` is, for paths of a union."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unionfs.union.fs import UnionFS


class UnionPath(PurePosixPath):
    """A path of one union."""

    fs: UnionFS

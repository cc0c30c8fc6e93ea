"""Answers about paths, kept while nothing changes: what makes a warm ``stat`` one dictionary probe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unionfs.union.node import DirNode, Node

_BOUND = 1 << 18


class PathCache:
    """``hits``: path to metadata, symlinks followed. ``missing``: paths that do not exist. ``dirs``: path to directory.

    ``seen``: paths that were asked for once. Only the second time an answer is kept, so that a walk over a large tree
    leaves nothing behind.

    A change of one object drops that object's paths; a new name drops what was missing; a directory or symlink that
    goes or moves drops everything.
    """

    __slots__ = ("dirs", "hits", "missing", "seen")

    def __init__(self) -> None:
        self.hits: dict[str, os.stat_result] = {}
        self.missing: set[str] = set()
        self.seen: set[str] = set()
        self.dirs: dict[str, DirNode] = {}

    def keep(self, path: str, node: Node, st: os.stat_result) -> None:
        """``path`` leads to ``node``, which is as ``st`` says."""
        if len(self.hits) >= _BOUND:
            self.clear()
        self.hits[path] = st
        keys = node.keys
        if keys is None:
            node.keys = (path,)
        elif path not in keys:
            node.keys = (*keys, path)

    def see(self, path: str) -> None:
        """``path`` was asked for."""
        if len(self.seen) >= _BOUND:
            self.seen = set()
        self.seen.add(path)

    def keep_missing(self, path: str) -> None:
        """``path`` leads nowhere."""
        if len(self.missing) >= _BOUND:
            self.missing = set()
        self.missing.add(path)

    def drop(self, node: Node) -> None:
        """``node`` has changed."""
        keys = node.keys
        if keys is not None:
            node.keys = None
            for key in keys:
                self.hits.pop(key, None)

    def appeared(self) -> None:
        """A name has come into being."""
        if self.missing:
            self.missing = set()

    def clear(self) -> None:
        """Paths may lead elsewhere now."""
        self.hits = {}
        self.missing = set()
        self.seen = set()
        self.dirs = {}

"""``UnionFS``: one tree from many layers, by paths."""

from __future__ import annotations

import datetime as dt
import errno
import functools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn, cast

from unionfs.layer.protocol import Layer, WritableLayer
from unionfs.types import Closing, LayerInfo
from unionfs.union.commit import HistoryEntry, commit, history
from unionfs.union.copying import Copying
from unionfs.union.diff import Change, diff
from unionfs.union.holders import layers_of
from unionfs.union.naming import AnyPath, encoded, named
from unionfs.union.paths import Segment, UnionPath
from unionfs.union.restack import restack
from unionfs.union.stack import HostPath, open_layers
from unionfs.union.tree import Tree


class UnionFS(Copying, Closing):
    """One tree from many layers.

    Reads go top-down: the first layer that has a name wins, directories merge. Changes go to the upper: an object is
    copied up before it changes, a deletion leaves a whiteout. The lowers are never written to.

        import unionfs

        os.mkdir("upper")
        with unionfs.UnionFS(lower=["app", "base"], upper="upper") as fs:      # the topmost lower first
            fs.listdir("/etc")                                                 # merged from all of them
            fs.write_text("/etc/motd", "hello")                                # only "upper" changes
            fs.rename("/usr/share/doc", "/usr/share/papers")                   # nothing is copied
            fs.rmtree("/var/cache")

    The lifecycle: the layers are opened, and an upper is locked against a second union, until ``close`` or the end
    of the ``with`` block. What is changed is in the upper at once; ``sync`` brings it to disk. The same layers open
    again as the same tree, with the same inode numbers. A killed process leaves nothing that a person has to clear.

    ``lower``: layers, the topmost first, as in overlayfs's ``lowerdir=``: directories, or ``Layer`` objects.
    ``upper``: ``None`` for a read-only union, a directory, or a ``WritableLayer``; ``unionfs.MemoryLayer()`` is one
    that goes with the process. There must be a lower or an upper.
    ``work``: a directory beside the upper, on its file system; made if need be. By default ``<upper>.work``.
    ``redirect_dir``: rename a merged directory by a redirect; otherwise ``EXDEV``.
    ``metacopy``: a change of metadata copies no data.
    ``volatile``: flush nothing; after a crash of the machine the upper may be damaged.
    ``userxattr``: the marks of the upper are written as ``user.overlay.*``; by default where this process may not write
    ``trusted.overlay.*``.
    ``hide``: paths of the host that no lower shows. An upper and work that stand inside a lower are hidden anyway.
    ``unmapped_as_root``: in a user namespace, owners that it does not map show as 0.

    Paths are ``str``, ``bytes`` or path-like; relative ones start at the root. Answers are ``str`` for ``str`` and
    ``bytes`` for ``bytes``. What fails is an ``OSError`` with the errno of Linux and the paths as given.
    Permission bits are kept but not enforced: who has the union may do what this process may do to the layers.

    Threads may share a union. A process made by ``fork`` has a copy of the tree that knows nothing of later changes: it
    may read, but must not change, and its parent must not either while it reads; give it a union of its own.

    Raises ``UnionError``, ``LayerError`` (a layer is missing, no directory, unreadable, given twice, or in the way of
    another), ``UpperBusyError`` (another union writes to this upper).
    """

    def __init__(
        self,
        lower: Sequence[HostPath | Layer] = (),
        upper: HostPath | WritableLayer | None = None,
        work: HostPath | None = None,
        *,
        redirect_dir: bool = True,
        metacopy: bool = True,
        volatile: bool = False,
        userxattr: bool | None = None,
        hide: Iterable[HostPath] = (),
        unmapped_as_root: bool = False,
    ) -> None:
        self._open_layers = functools.partial(
            open_layers, hide=list(hide), volatile=volatile, userxattr=userxattr, unmapped_as_root=unmapped_as_root
        )
        layers, top = self._open_layers(lower, upper, work)
        try:
            self.tree = Tree(layers, top, redirect_dir=redirect_dir, metacopy=metacopy)
        except BaseException:
            for layer in [*layers, *([] if top is None else [top])]:
                layer.close()
            raise
        self._told_of(self.tree)
        self.closed = False

    def _told_of(self, tree: Tree) -> None:
        """Note what ``repr`` tells, also of a closed union."""
        self._depth = len(tree.resolver.layers)
        self._writes_to = None if tree.upper is None else tree.upper.label

    def __repr__(self) -> str:
        state = "closed " if self.closed else ""
        writes = "read-only" if self._writes_to is None else f"changes go to {self._writes_to}"
        return f"<{state}{type(self).__name__} of {self._depth} layers, {writes}>"

    def path(self, *segments: Segment) -> UnionPath:
        """A path object of this union: ``fs.path("/etc") / "hosts"`` behaves as a ``pathlib.Path`` does."""
        return UnionPath(self, *segments)

    def layers_of(self, path: AnyPath) -> list[LayerInfo]:
        """Which layers hold ``path``, the topmost first, and which wins; a symbolic link is not followed.

            for layer in fs.layers_of("/etc/hosts"):
                print(layer.label, layer.kind, "wins" if layer.wins else "")

        A whiteout is told too. Empty if no layer has the name; ``OSError`` if there is no such directory.
        """
        with named(self, path):
            raw = encoded(self, path)
            d, name = (self.tree.root, b".") if not raw.strip(b"/") else self._entry(path, errno.EINVAL)[:2]
            return layers_of(self.tree, d, name)

    def close(self) -> None:
        """Let go of the layers; closing twice does nothing. Files that are open stay usable."""
        if not self.closed:
            self.closed = True
            tree, self.tree = self.tree, cast("Tree", _Closed())
            tree.close()

    def diff(self, path: HostPath = "/") -> Iterator[Change]:
        """What the upper changes at and below ``path``, compared with the layers below it; see ``union.diff.diff``.

            for change in fs.diff():
                print(change)                    # "A /etc/motd", "C /etc/hosts", "D /var/cache"
                change.what                      # {"data", "times"}

        A path whose content and metadata are as below is no change. ``docker_lines(fs.diff())`` gives Docker's lines.
        """
        return diff(self.tree, os.fsdecode(path))

    def commit(
        self,
        destination: HostPath | None = None,
        *,
        message: str = "",
        author: str = "",
        created_by: str = "",
        created: dt.datetime | None = None,
    ) -> HistoryEntry:
        """Freeze the upper into a layer that nothing writes to again, and go on with an empty one on top of it.

        It takes the same time whatever the upper holds; open files, threads and mounts go on. ``destination``: a new
        or empty directory on the upper's file system; by default the next number in ``<upper>.layers``.
        ``created_by``: the command that made the changes; ``created``: now, by default. Raises ``OSError``: ``EROFS``
        without an upper, ``LayerError`` for the destination; and ``UnionError`` for a message too long to be kept
        (3,000 bytes).
        """
        where = None if destination is None else os.fsdecode(destination)
        return commit(self.tree, where, message=message, author=author, created_by=created_by, created=created)

    def restack(
        self, lower: Sequence[HostPath | Layer], upper: HostPath | WritableLayer | None, work: HostPath | None = None
    ) -> None:
        """Make this, in one step, the union of another stack, while it is mounted and in use: a roll-back, a hot swap.

            fs.commit("before")                                  # or the upper, and what is in it, is left alone
            os.mkdir("upper2")
            fs.restack(lower=["v2", "base"], upper="upper2")     # the old upper is nobody's now

        Open files go on reading and writing what they have open, as after an unlink; names lead to what the new stack
        has. A directory that is in both stays the same, for who is in it. A mount shows the new tree when this returns.

        The arguments are as for ``UnionFS``, and so are its options. Layers that are in both stacks stay open, the
        others are closed, and the old upper is unlocked. Raises what ``UnionFS`` raises, and ``OSError``: ``EBUSY``
        while a mount has the union that can't be told: the kernel's overlayfs, or fusepy with ``sole``. Then nothing
        has changed.
        """
        layers, top = self._open_layers(lower, upper, work)
        try:
            restack(self.tree, layers, top)
        except BaseException:
            given = {id(layer) for layer in [*lower, upper]}
            for layer in [*layers, *([] if top is None else [top])]:
                if id(layer) not in given:
                    layer.close()
            raise
        self._told_of(self.tree)

    def history(self) -> list[HistoryEntry]:
        """The layers below the upper, topmost first, with what their commits recorded."""
        return history(self.tree)

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            warnings.warn(f"unclosed union {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a union can't be pickled: open its layers where it is needed")


class _Closed:
    """Stands where the tree was."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ValueError("operation on a closed union")

"""``UnionFS``: one tree from many layers, by paths."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import NoReturn, Self, cast

from unionfs.layer.protocol import Layer, WritableLayer
from unionfs.union.stack import HostPath, open_layers
from unionfs.union.tree import Tree
from unionfs.union.walking import Walking


class UnionFS(Walking):
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
        layers, top = open_layers(
            lower,
            upper,
            work,
            hide=hide,
            volatile=volatile,
            userxattr=userxattr,
            unmapped_as_root=unmapped_as_root,
        )
        try:
            self.tree = Tree(layers, top, redirect_dir=redirect_dir, metacopy=metacopy)
        except BaseException:
            for layer in [*layers, *([] if top is None else [top])]:
                layer.close()
            raise
        self._depth = len(self.tree.resolver.layers)
        self._writes_to = None if top is None else top.label
        self.closed = False

    def __repr__(self) -> str:
        state = "closed " if self.closed else ""
        writes = "read-only" if self._writes_to is None else f"changes go to {self._writes_to}"
        return f"<{state}{type(self).__name__} of {self._depth} layers, {writes}>"

    def close(self) -> None:
        """Let go of the layers; closing twice does nothing. Files that are open stay usable."""
        if not self.closed:
            self.closed = True
            tree, self.tree = self.tree, cast("Tree", _Closed())
            tree.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

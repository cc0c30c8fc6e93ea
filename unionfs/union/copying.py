"""The path API for copies and moves: inside the union, and between it and the host."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from unionfs.layer.protocol import DT_DIR
from unionfs.union.copyup import copy_file
from unionfs.union.host import HostTree
from unionfs.union.naming import AnyPath, encoded, named, plain
from unionfs.union.node import DirNode
from unionfs.union.reader import fail
from unionfs.union.transfer import Copy, HostEntry, HostSide, UnionSide
from unionfs.union.walking import Walking

HostPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"


class Copying(Walking):
    """Copies and moves. What is copied keeps modes, owners, times, attributes, holes and hard links."""

    def copy(self, path: AnyPath, path2: AnyPath, *, follow_symlinks: bool = True) -> str | bytes:
        """As ``shutil.copy2``: a file, with its metadata, to a path or into a directory. Answers the new path.

        ``EISDIR`` for a directory: see ``copytree``. ``shutil.SameFileError``.
        """
        goal = self._into(path, path2)
        if not follow_symlinks and self.islink(path):
            self._copy_inside(path, goal, exist_ok=True, follow=False)
            return goal
        with named(self, path, goal):
            n = self._node(path)
            source = self.tree.open(n, os.O_RDONLY)
            try:
                if self._leads_to(goal) is n:
                    from shutil import SameFileError

                    raise SameFileError(errno.EINVAL, "they are the same file")
                target = self._handle(goal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                try:
                    copy_file(source.file, target.file)
                finally:
                    self.tree.touched(target.node)
                    target.close()
                side = UnionSide(self.tree)
                side.dress(target.node, source.stat(), side.xattrs(n))
            finally:
                source.close()
        return goal

    def _into(self, path: AnyPath, path2: AnyPath) -> str | bytes:
        """``path2``, or the name of ``path`` in it if it is a directory."""
        goal = plain(self, path2)
        if not self.isdir(path2):
            return goal
        name = encoded(self, path).rstrip(b"/").rpartition(b"/")[2]
        return os.path.join(goal, name) if isinstance(goal, bytes) else os.path.join(goal, os.fsdecode(name))

    def _leads_to(self, path: AnyPath) -> object:
        try:
            return self._node(path)
        except OSError:
            return None

    def copytree(self, path: AnyPath, path2: AnyPath, *, dirs_exist_ok: bool = False) -> str | bytes:
        """A directory with all that is in it, to a path that does not exist; symbolic links stay links (``cp -a``).

        ``dirs_exist_ok``: merge with what is there. ``EINVAL`` into itself. Answers the new path.
        """
        with named(self, path, path2):
            if self._node(path).kind != DT_DIR:
                raise fail(errno.ENOTDIR)
        self._copy_inside(path, path2, dirs_exist_ok, follow=True)
        return plain(self, path2)

    def _copy_inside(self, path: AnyPath, path2: AnyPath, exist_ok: bool, follow: bool) -> None:
        side = UnionSide(self.tree)
        with named(self, path, path2):
            n = self._node(path, follow)
            d, name, _ = self._entry(path2, errno.EEXIST)
            at: DirNode | None = d
            while at is not None:
                if at is n:
                    raise OSError(errno.EINVAL, "a directory can't be copied into itself")
                at = at.parent
        Copy(side, side, (encoded(self, path), encoded(self, path2)), exist_ok).run(n, d, name)

    def move(self, path: AnyPath, path2: AnyPath) -> str | bytes:
        """As ``shutil.move``: to a path, or into a directory. Answers the new path."""
        goal = self._into(path, path2)
        if goal != plain(self, path2) and self.lexists(goal):
            with named(self, path, goal):
                raise fail(errno.EEXIST)
        try:
            self.rename(path, goal)
        except OSError as error:
            if error.errno != errno.EXDEV:  # of a union without redirect_dir
                raise
            self.copytree(path, goal)
            self.rmtree(path)
        return goal

    # The host

    def copy_in(self, host: HostPath, path: AnyPath, *, exist_ok: bool = False) -> None:
        """A file, or a directory with all that is in it, of the host to ``path``, which must not exist.

        A symbolic link is copied as a link. ``exist_ok``: directories merge, other things are replaced. Errors name the
        host's path and the union's. ``EPERM`` for a character device 0:0, which would be a whiteout.
        """
        here = os.fspath(host)
        with named(self, path):
            d, name, _ = self._entry(path, errno.EEXIST)
        with _on_host(here) as (side, at):
            Copy(side, UnionSide(self.tree), (os.fsencode(here), encoded(self, path)), exist_ok).run(at, d, name)

    def copy_out(self, path: AnyPath, host: HostPath, *, exist_ok: bool = False) -> None:
        """A file, or a directory with all that is in it, to a path of the host, which must not exist.

        A symbolic link is copied as a link, and none is ever followed below ``host``: what strange layers hold is
        written there and nowhere else. It keeps its modes, set-user-id bits and devices among them: where the layers
        are not trusted, ``host`` should be a place that others can't reach. Without root, owners are left out (a log
        line says so) and devices are ``EPERM``. ``exist_ok``: directories merge, other things are replaced.
        """
        there = os.fspath(host)
        with named(self, path):
            n = self._node(path, False)
        with _on_host(there) as (side, at):
            Copy(UnionSide(self.tree), side, (encoded(self, path), os.fsencode(there)), exist_ok).run(n, at.d, at.name)

    def move_in(self, host: HostPath, path: AnyPath) -> None:
        """``copy_in``; and when all is there, the host's is removed."""
        self.copy_in(host, path)
        if os.path.isdir(host) and not os.path.islink(host):
            from shutil import rmtree

            rmtree(os.fspath(host))
        else:
            os.unlink(host)

    def move_out(self, path: AnyPath, host: HostPath) -> None:
        """``copy_out``; and when all is there, the union's is removed."""
        self.copy_out(path, host)
        if self.isdir(path) and not self.islink(path):
            self.rmtree(path)
        else:
            self.unlink(path)


@contextmanager
def _on_host(path: str | bytes) -> Iterator[tuple[HostSide, HostEntry]]:
    """The host's side of a copy, and the entry at ``path`` on it."""
    top, name = HostTree.locate(path)
    try:
        tree = HostTree(top)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    try:
        yield HostSide(tree), HostEntry(tree.root, name)
    finally:
        tree.close()

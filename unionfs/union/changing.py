"""The path API over the tree, its changing half, and ``open``."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from typing import IO, Any

from unionfs.layer.protocol import DT_DIR, DT_LNK
from unionfs.types import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.union import files
from unionfs.union.handle import Handle
from unionfs.union.naming import AnyPath, encoded, named, plain
from unionfs.union.node import DirNode, Node
from unionfs.union.reader import MAX_SYMLINKS, NAME_MAX, fail
from unionfs.union.reading import Reading, replaced


class Changing(Reading):
    """What changes paths, with the names that ``os`` and ``shutil`` have. Without an upper: ``EROFS``."""

    # Open

    def open(
        self,
        path: AnyPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        permissions: int = 0o666,
    ) -> IO[Any]:
        """A file object, as the builtin ``open`` gives it, in every text and binary mode.

        On layers that are directories it has a descriptor: ``mmap`` and ``subprocess`` take it. ``permissions``: those
        of a new file, less the umask. Regular files only: ``ENXIO`` for a FIFO, socket or device. ``EISDIR``; ``EROFS``
        """
        flags = files.flags_of(mode)
        files.check_arguments(mode, buffering, encoding, errors, newline)
        if "b" not in mode:
            encoding = io.text_encoding(encoding)
        with named(self, path):
            handle = self._handle(path, flags, permissions)
            raw = files.raw_file(self.tree, handle, plain(self, path), mode.replace("b", "").replace("t", ""))
        return files.wrapped(raw, mode, buffering, encoding, errors, newline)

    def _handle(self, path: AnyPath, flags: int, permissions: int) -> Handle:
        tree = self.tree
        while not flags & os.O_CREAT:
            n = self._node(path)
            try:
                return tree.open(n, flags)
            except FileNotFoundError:
                if not replaced(n):
                    raise
        start: DirNode | None = None
        raw = encoded(self, path)
        for _ in range(MAX_SYMLINKS + 1):
            d, name, slash = self._entry_from(start, raw, errno.EISDIR)
            if slash:
                raise fail(errno.EISDIR)
            while True:
                try:
                    n = tree.lookup(d, name)
                    if flags & os.O_EXCL:
                        raise fail(errno.EEXIST)
                    if n.kind == DT_LNK:
                        start, raw = d, tree.readlink(n)
                        break
                    return tree.open(n, flags)
                except FileNotFoundError:
                    if d.dead:
                        raise
                try:
                    return tree.create(d, name, permissions, flags)[1]
                except FileExistsError:
                    if flags & os.O_EXCL:
                        raise
        raise fail(errno.ELOOP)

    def read_bytes(self, path: AnyPath) -> bytes:
        """All bytes of a file."""
        with self.open(path, "rb", 0) as file:
            return file.read()  # type: ignore[no-any-return]

    def read_text(self, path: AnyPath, encoding: str | None = None, errors: str | None = None) -> str:
        """All text of a file."""
        with self.open(path, "r", -1, io.text_encoding(encoding), errors) as file:
            return file.read()  # type: ignore[no-any-return]

    def write_bytes(self, path: AnyPath, data: bytes | bytearray | memoryview) -> int:
        """Make ``data`` all that is in a file; how many bytes."""
        with self.open(path, "wb") as file:
            return file.write(memoryview(data))

    def write_text(
        self,
        path: AnyPath,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """Make ``data`` all that is in a file; how many characters."""
        with self.open(path, "w", -1, io.text_encoding(encoding), errors, newline) as file:
            return file.write(data)

    # New entries

    def mkdir(self, path: AnyPath, mode: int = 0o777) -> None:
        """As ``os.mkdir``."""
        with named(self, path):
            d, name, _ = self._entry(path, errno.EEXIST)
            self.tree.mkdir(d, name, mode)

    def makedirs(self, path: AnyPath, mode: int = 0o777, exist_ok: bool = False) -> None:
        """As ``os.makedirs``: with all directories above it, those with the default mode."""
        name = plain(self, path)
        head, tail = os.path.split(name)
        if not tail:
            head, tail = os.path.split(head)
        if head and tail and not self.exists(head):
            try:
                self.makedirs(head, exist_ok=exist_ok)
            except FileExistsError:
                pass  # Somebody else made it.
            if tail in (".", b"."):
                return
        try:
            self.mkdir(name, mode)
        except OSError:
            if not exist_ok or not self.isdir(name):
                raise

    def mkfifo(self, path: AnyPath, mode: int = 0o666) -> None:
        """As ``os.mkfifo``."""
        self.mknod(path, 0o010000 | mode & 0o7777)

    def mknod(self, path: AnyPath, mode: int = 0o600, device: int = 0) -> None:
        """As ``os.mknod``. ``EPERM`` for a character device 0:0, which is a whiteout."""
        with named(self, path):
            d, name = self._new_entry(path)
            self.tree.mknod(d, name, mode, device)

    def symlink(self, target: AnyPath, path: AnyPath, target_is_directory: bool = False) -> None:  # noqa: ARG002
        """As ``os.symlink``: a symbolic link at ``path``."""
        goal = os.fsencode(str(target) if isinstance(target, os.PathLike) else target)
        with named(self, goal if isinstance(target, bytes) else os.fsdecode(goal), path):
            if not goal:
                raise fail(errno.ENOENT)
            d, name = self._new_entry(path)
            self.tree.symlink(d, name, goal)

    def link(self, path: AnyPath, path2: AnyPath, *, follow_symlinks: bool = False) -> None:
        """A second name, ``path2``, for what is at ``path`` (link(2)). ``EPERM`` for a directory."""
        with named(self, path, path2):
            n = self._node(path, follow_symlinks)
            d, name = self._new_entry(path2)
            self.tree.link(n, d, name)

    def _new_entry(self, path: AnyPath) -> tuple[DirNode, bytes]:
        d, name, slash = self._entry(path, errno.EEXIST)
        if slash:
            raise fail(errno.EEXIST if name in self.tree.entries(d) else errno.ENOENT)
        return d, name

    def touch(self, path: AnyPath, mode: int = 0o666, exist_ok: bool = True) -> None:
        """As ``pathlib.Path.touch``: make the file, or set its times to now."""
        if exist_ok:
            try:
                self.utime(path)
                return
            except FileNotFoundError:
                pass
        with named(self, path):
            flags = os.O_WRONLY | os.O_CREAT | (0 if exist_ok else os.O_EXCL)
            self._handle(path, flags, mode).close()

    # Entries that go and move

    def remove(self, path: AnyPath) -> None:
        """As ``os.remove``. ``EISDIR`` for a directory."""
        with named(self, path):
            d, name, slash = self._entry(path, errno.EISDIR)
            if slash:
                raise fail(errno.EISDIR if self.tree.lookup(d, name).kind == DT_DIR else errno.ENOTDIR)
            self.tree.unlink(d, name)

    unlink = remove

    def rmdir(self, path: AnyPath) -> None:
        """As ``os.rmdir``. ``ENOTEMPTY``."""
        with named(self, path):
            if not encoded(self, path).strip(b"/"):
                raise fail(errno.EBUSY if path else errno.ENOENT)
            d, name, _ = self._entry(path, 0)
            self.tree.rmdir(d, name)  # which knows what to say of "." and ".."

    def removedirs(self, path: AnyPath) -> None:
        """As ``os.removedirs``: and then those above it, as far as they are empty."""
        name: Any = plain(self, path)
        self.rmdir(name)
        head, tail = os.path.split(name)
        if not tail:
            head, tail = os.path.split(head)
        while head and tail:
            try:
                self.rmdir(head)
            except OSError:
                break
            head, tail = os.path.split(head)

    def rmtree(
        self,
        path: AnyPath,
        ignore_errors: bool = False,
        onerror: Callable[[Callable[..., Any], Any, Any], object] | None = None,
        *,
        onexc: Callable[[Callable[..., Any], Any, Exception], object] | None = None,
    ) -> None:
        """As ``shutil.rmtree``. ``onerror(function, path, exc_info)``, ``onexc(function, path, error)``."""

        def tell(function: Callable[..., Any], where: Any, error: OSError) -> object:
            if ignore_errors:
                return None
            if onexc is not None:
                return onexc(function, where, error)
            if onerror is not None:
                return onerror(function, where, (type(error), error, error.__traceback__))
            raise error

        name = plain(self, path)
        try:
            with named(self, path):
                n = self._node(path, False)
                if n.kind == DT_LNK:
                    raise OSError(errno.ENOTDIR, "Cannot call rmtree on a symbolic link")
                if not isinstance(n, DirNode):
                    raise fail(errno.ENOTDIR)
        except OSError as error:
            tell(self.lstat, name, error)
            return
        self._rmtree(n, name, tell)
        try:
            self.rmdir(name)
        except OSError as error:
            tell(self.rmdir, name, error)

    def _rmtree(self, top: DirNode, path: Any, tell: Callable[[Callable[..., Any], Any, OSError], object]) -> None:
        """Empty ``top``; by nodes, so that no symbolic link that somebody puts there meanwhile leads elsewhere."""
        slash: Any = b"" if isinstance(path, bytes) else ""
        todo: list[tuple[DirNode, Any, bool]] = [(top, path, False)]
        while todo:
            d, where, emptied = todo.pop()
            function: Callable[..., Any]
            if emptied:
                assert d.parent is not None
                function = self.rmdir
                try:
                    with named(self, where):
                        self.tree.rmdir(d.parent, d.name)
                except OSError as error:
                    tell(function, where, error)
                continue
            if d is not top:
                todo.append((d, where, True))
            for name, _, kind in self.tree.listdir(d):
                below = os.path.join(where, name if slash == b"" else os.fsdecode(name))
                try:
                    function = self.lstat
                    with named(self, below):
                        if kind == DT_DIR:
                            child = self.tree.lookup(d, name)
                            if isinstance(child, DirNode):
                                todo.append((child, below, False))
                                continue
                        function = self.unlink
                        self.tree.unlink(d, name)
                except FileNotFoundError:
                    pass  # Somebody else removed it.
                except OSError as error:
                    tell(function, below, error)

    def rename(self, path: AnyPath, path2: AnyPath, *, noreplace: bool = False) -> None:
        """As ``os.rename``: ``path2`` is replaced in one step. ``noreplace``: ``EEXIST`` instead (renameat2(2)).

        No tree is copied and no ``EXDEV`` told, unless the union was made with ``redirect_dir=False``.
        """
        self._rename(path, path2, RENAME_NOREPLACE if noreplace else 0)

    def replace(self, path: AnyPath, path2: AnyPath) -> None:
        """As ``os.replace``."""
        self._rename(path, path2, 0)

    def exchange(self, path: AnyPath, path2: AnyPath) -> None:
        """Let two paths change places in one step (``RENAME_EXCHANGE`` of renameat2(2))."""
        self._rename(path, path2, RENAME_EXCHANGE)

    def _rename(self, path: AnyPath, path2: AnyPath, flags: int) -> None:
        with named(self, path, path2):
            d, name, slash = self._entry(path, 0)
            d2, name2, slash2 = self._entry(path2, 0)
            if name in (b".", b".."):
                raise fail(errno.EBUSY)
            if name2 in (b".", b".."):
                raise fail(errno.EEXIST if flags == RENAME_NOREPLACE else errno.EBUSY)
            if slash or slash2:
                n = self.tree.lookup(d, name)
                if len(name2) > NAME_MAX:
                    raise fail(errno.ENAMETOOLONG)
                if n.kind != DT_DIR and (slash or flags != RENAME_EXCHANGE):
                    raise fail(errno.ENOTDIR)
                if slash2 and flags == RENAME_EXCHANGE and self.tree.lookup(d2, name2).kind != DT_DIR:
                    raise fail(errno.ENOTDIR)
            self.tree.rename(d, name, d2, name2, flags)

    # Metadata

    def chmod(self, path: AnyPath, mode: int, *, follow_symlinks: bool = True) -> None:
        """As ``os.chmod``. ``EOPNOTSUPP`` for a symbolic link itself."""
        with named(self, path):
            self.tree.setattr(self._node(path, follow_symlinks), mode=mode & 0o7777)

    def lchmod(self, path: AnyPath, mode: int) -> None:
        """``chmod`` that does not follow."""
        self.chmod(path, mode, follow_symlinks=False)

    def chown(self, path: AnyPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """As ``os.chown``; -1 leaves the owner or group as it is."""
        with named(self, path):
            n = self._node(path, follow_symlinks)
            self.tree.setattr(n, uid=None if uid == -1 else uid, gid=None if gid == -1 else gid)

    def lchown(self, path: AnyPath, uid: int, gid: int) -> None:
        """``chown`` that does not follow."""
        self.chown(path, uid, gid, follow_symlinks=False)

    def utime(
        self,
        path: AnyPath,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """As ``os.utime``: access and modification time in seconds, or in nanoseconds as ``ns``; by default now."""
        if times is not None and ns is not None:
            raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
        if ns is None:
            if times is None:
                now = time.time_ns()
                ns = now, now
            else:
                ns = _nanoseconds(times[0]), _nanoseconds(times[1])
        with named(self, path):
            self.tree.setattr(self._node(path, follow_symlinks), atime_ns=ns[0], mtime_ns=ns[1])

    def truncate(self, path: AnyPath, length: int) -> None:
        """As ``os.truncate``. Only what stays of the file is copied up."""
        with named(self, path):
            n: Node = self._node(path)
            self.tree.setattr(n, size=length)

    def setxattr(
        self, path: AnyPath, attribute: str | bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """As ``os.setxattr``."""
        with named(self, path):
            self.tree.setxattr(self._node(path, follow_symlinks), os.fsencode(attribute), bytes(value), flags)

    def removexattr(self, path: AnyPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> None:
        """As ``os.removexattr``. ``ENODATA``."""
        with named(self, path):
            self.tree.removexattr(self._node(path, follow_symlinks), os.fsencode(attribute))

    def sync(self) -> None:
        """Everything of the upper to disk, as sync(2)."""
        self.tree.sync()


def _nanoseconds(seconds: float) -> int:
    whole = int(seconds // 1)
    return whole * 1_000_000_000 + int((seconds - whole) * 1_000_000_000)

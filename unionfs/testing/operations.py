"""Random operations for the oracle, on what exists at the moment, mostly; and as Python source, to be run again."""

from __future__ import annotations

import os
import stat
from random import Random
from typing import Any, TypeAlias

from unionfs.layer import whiteout
from unionfs.testing.surfaces import SLOTS, HostSurface
from unionfs.types import RENAME_EXCHANGE, RENAME_NOREPLACE

Op: TypeAlias = tuple[Any, ...]
"""A method of ``Surface`` and its arguments, or ``("remount",)`` or ``("commit",)``."""

_SECOND = 1_000_000_000

# POSIX ACLs as the kernel takes them (acl(5), linux/posix_acl_xattr.h): version 2, then tag, permissions, id.
ACL = bytes.fromhex("02000000 01000700ffffffff 02000500e8030000 04000500ffffffff 10000700ffffffff 20000500ffffffff")
# CAP_NET_RAW, permitted and effective (capabilities(7), VFS_CAP_REVISION_2).
CAPABILITY = bytes.fromhex("01000002 00200000 00000000 00000000 00000000")


def code(op: Op) -> str:
    """The operation as Python source."""
    return f"({', '.join(short(argument) for argument in op)}{',' * (len(op) == 1)})"


def short(value: Any) -> str:
    """``repr``, with bytes that repeat themselves written as a product."""
    if isinstance(value, bytes) and len(value) > 40:
        for unit in (value[: value.find(b";") + 1], value[: value.find(b":") + 1]):
            if unit and unit * (len(value) // len(unit)) == value:
                return f"{unit!r} * {len(value) // len(unit)}"
    return repr(value)


class Operations:
    """Random operations that make sense on the reference as it is now: on what exists, mostly.

    ``root``: owners, devices, ``trusted.*`` and closed modes too; otherwise only what a user may do with files of
    its own. ``remounts``, ``commits``: these too.
    """

    NAMES = (b"a", b"b", b"c", b"d", b"\xff")

    def __init__(
        self, rng: Random, reference: HostSurface, *, root: bool = True, remounts: bool = True, commits: bool = False
    ) -> None:
        self._rng = rng
        self._reference = reference
        self._root = root
        self._count = 0
        self._dirs: list[bytes] = []
        self._others: list[bytes] = []
        choices = {
            self._create: 8, self._write: 8, self._append: 3, self._overwrite: 3, self._truncate: 4, self._read: 3,
            self._stat: 3, self._chmod: 6, self._chown: 4 if root else 0, self._utime: 4, self._setxattr: 5,
            self._removexattr: 3, self._mkdir: 8, self._rmdir: 6, self._unlink: 10, self._link: 8, self._symlink: 4,
            self._mknod: 2, self._rename: 24, self._open: 8, self._pread: 6, self._pwrite: 8, self._ftruncate: 2,
            self._punch: 1, self._fstat: 3, self._close: 2, self._remount: 2 if remounts else 0,
            self._commit: 3 if commits else 0,
        }  # fmt: skip
        self._choices = list(choices)
        self._weights = list(choices.values())

    def next(self) -> Op:
        """One more."""
        self._count += 1
        self._look()
        return self._rng.choices(self._choices, self._weights)[0]()

    def _look(self) -> None:
        self._dirs, self._others = [b""], []
        for d in self._dirs:
            with os.scandir(self._reference.at(d)) as found:
                for entry in sorted(found, key=lambda entry: entry.name):
                    path = d + b"/" + entry.name if d else entry.name
                    (self._dirs if entry.is_dir(follow_symlinks=False) else self._others).append(path)

    # What to do it on

    def _dir(self) -> bytes:
        return self._rng.choice(self._dirs)

    def _old(self, *, root: bool = False) -> bytes:
        dirs = self._dirs if root else self._dirs[1:]
        if self._others and (not dirs or self._rng.random() < 0.6):
            return self._rng.choice(self._others)
        return self._rng.choice(dirs) if dirs else b"a"

    def _file(self) -> bytes:
        return self._rng.choice(self._others) if self._others and self._rng.random() < 0.95 else self._old()

    def _new(self) -> bytes:
        d = self._dir() if self._rng.random() < 0.97 else self._old()
        name = self._rng.choice(self.NAMES)
        return d + b"/" + name if d else name

    def _any(self) -> bytes:
        return self._old() if self._rng.random() < 0.93 else self._new()

    def _data(self) -> bytes:
        return b"%d;" % self._count * self._rng.choice((0, 1, 3, 3, 30, 2000, 20000))

    def _mode(self) -> int:
        modes = [0o644, 0o600, 0o755, 0o700, 0o4755, 0o2755, 0o1777]
        if self._root:
            modes += [0, 0o444, 0o6711]
        return self._rng.choice(modes)

    def _time(self) -> int:
        return self._rng.randrange(_SECOND, 800_000_000 * _SECOND)

    # The operations

    def _create(self) -> Op:
        return ("create", self._new(), self._mode(), self._data())

    def _write(self) -> Op:
        return ("write", self._file(), self._rng.choice((0, 0, 3, 4096, 100_000)), self._data())

    def _append(self) -> Op:
        return ("append", self._file(), self._data())

    def _overwrite(self) -> Op:
        return ("overwrite", self._file(), self._data())

    def _truncate(self) -> Op:
        return ("truncate", self._file(), self._rng.choice((0, 2, 5, 4096, 200_000)))

    def _read(self) -> Op:
        return ("read", self._any())

    def _stat(self) -> Op:
        return (self._rng.choice(("lstat", "xattrs", "readlink", "listdir")), self._any())

    def _chmod(self) -> Op:
        path = self._old(root=True)
        mode = self._mode()
        return ("chmod", path, mode | 0o700 if not self._root else mode)

    def _chown(self) -> Op:
        owner = self._rng.choice(((-1, 0), (-1, 1000), (0, -1), (1000, -1), (0, 0), (1000, 1000)))
        return ("chown", self._old(root=True), *owner)

    def _utime(self) -> Op:
        return ("utime", self._old(root=True), self._time(), self._time())

    def _key(self) -> bytes:
        keys = [b"user.a", b"user.b", whiteout.USER + whiteout.OPAQUE]
        if self._root:
            keys += [b"trusted.x", whiteout.TRUSTED + whiteout.REDIRECT, b"security.capability"]
        return self._rng.choice([*keys, b"system.posix_acl_access", b"system.posix_acl_default"])

    def _setxattr(self) -> Op:
        key = self._key()
        value = {b"system": ACL, b"security": CAPABILITY}.get(key.partition(b".")[0], self._data()[:200])
        flags = self._rng.choice((0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        return ("setxattr", self._old(root=True), key, value, flags)

    def _removexattr(self) -> Op:
        return ("removexattr", self._old(root=True), self._key())

    def _mkdir(self) -> Op:
        return ("mkdir", self._new(), self._mode() | 0o700)

    def _rmdir(self) -> Op:
        return ("rmdir", self._rng.choice(self._dirs[1:]) if self._dirs[1:] else self._any())

    def _unlink(self) -> Op:
        return ("unlink", self._file())

    def _link(self) -> Op:
        path = self._file()
        where = self._reference.at(path)
        if not self._root and not (os.path.isfile(where) and not os.path.islink(where)):
            # user.* attributes can't say of these which links belong together (xattr(7)).
            return ("lstat", path)
        return ("link", path, self._new())

    def _symlink(self) -> Op:
        target = self._rng.choice((b"a", b"b", b"a/b", b"b/c", b"./c/a", b"c/"))
        return ("symlink", target, self._new())

    def _mknod(self) -> Op:
        if self._root and self._rng.random() < 0.3:
            return ("mknod", self._new(), stat.S_IFCHR | 0o644, os.makedev(1, 3))
        return ("mknod", self._new(), self._rng.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG)) | 0o644, 0)

    def _rename(self) -> Op:
        flags = self._rng.choice((0, 0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))
        old = self._any()
        new = self._old() if self._rng.random() < (0.9 if flags == RENAME_EXCHANGE else 0.4) else self._new()
        return ("rename", old, new, flags)

    def _slot(self) -> int:
        used = [slot for slot in range(SLOTS) if slot in self._reference.files]
        return self._rng.choice(used or [0])

    def _open(self) -> Op:
        flags = self._rng.choice((os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_TRUNC))
        return ("open", self._rng.randrange(SLOTS), self._file(), flags)

    def _pread(self) -> Op:
        return ("pread", self._slot(), self._rng.choice((10, 200_000)), self._rng.choice((0, 0, 3, 5000)))

    def _pwrite(self) -> Op:
        return ("pwrite", self._slot(), self._data(), self._rng.choice((0, 3, 4096)))

    def _ftruncate(self) -> Op:
        return ("ftruncate", self._slot(), self._rng.choice((0, 5, 5000)))

    def _punch(self) -> Op:
        return ("punch", self._slot(), 0, 4096)

    def _fstat(self) -> Op:
        return ("fstat", self._slot())

    def _close(self) -> Op:
        return ("close", self._slot())

    @staticmethod
    def _remount() -> Op:
        return ("remount",)

    @staticmethod
    def _commit() -> Op:
        return ("commit",)

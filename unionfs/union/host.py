"""A tree of the host as it is, for copies into and out of a union: whiteouts and marks mean nothing here."""

from __future__ import annotations

import errno
import logging
import os
import stat

from unionfs.layer.directory import DirectoryLayer, FdFile
from unionfs.layer.protocol import LayerDir

log = logging.getLogger(__name__)


class HostTree(DirectoryLayer):
    """A directory of the host, with changes. Below the root no symbolic link is ever followed."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.overrides = self.has_inos = False
        self._root = os.geteuid() == 0

    @staticmethod
    def locate(path: str | bytes) -> tuple[str, bytes]:
        """The directory and the last name of a path, which may not exist. ``EINVAL`` where there is no such name."""
        head, name = os.path.split(os.fsencode(path).rstrip(b"/"))
        if name in (b"", b".", b".."):
            head, name = os.path.split(os.path.realpath(os.fsencode(path)))
            if not name:
                raise OSError(errno.EINVAL, "the root directory can't be copied", path)
        return os.fsdecode(head or b"."), name

    def names(self, d: LayerDir) -> list[bytes]:
        """All names in a directory."""
        return [os.fsencode(name) for name in os.listdir(self.fd(d).n)]

    def listxattr(self, d: LayerDir, name: bytes) -> list[bytes]:
        fd = self.fd(d)
        return [os.fsencode(key) for key in self._list(self.proc(fd, name))]

    def getxattr(self, d: LayerDir, name: bytes, key: bytes) -> bytes:
        fd = self.fd(d)
        return os.getxattr(self.proc(fd, name), key, follow_symlinks=False)

    def setxattr(self, d: LayerDir, name: bytes, key: bytes, value: bytes) -> None:
        fd = self.fd(d)
        os.setxattr(self.proc(fd, name), key, value, follow_symlinks=False)

    def create(self, d: LayerDir, name: bytes) -> FdFile:
        """A new regular file, for this user alone."""
        fd = self.fd(d)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return FdFile(self, os.open(name, flags, 0o600, dir_fd=fd.n))

    def mkdir(self, d: LayerDir, name: bytes) -> LayerDir:
        """A new directory, for this user alone."""
        fd = self.fd(d)
        os.mkdir(name, 0o700, dir_fd=fd.n)
        return d.child(name)

    def symlink(self, d: LayerDir, name: bytes, target: bytes) -> None:
        fd = self.fd(d)
        os.symlink(target, name, dir_fd=fd.n)

    def mknod(self, d: LayerDir, name: bytes, mode: int, rdev: int) -> None:
        fd = self.fd(d)
        os.mknod(name, stat.S_IFMT(mode) | 0o600, rdev, dir_fd=fd.n)

    def link(self, d: LayerDir, name: bytes, d2: LayerDir, name2: bytes) -> None:
        fd, fd2 = self.fd(d), self.fd(d2)
        os.link(name, name2, src_dir_fd=fd.n, dst_dir_fd=fd2.n, follow_symlinks=False)

    def unlink(self, d: LayerDir, name: bytes) -> None:
        fd = self.fd(d)
        os.unlink(name, dir_fd=fd.n)

    def setattr(self, d: LayerDir, name: bytes, st: os.stat_result) -> None:
        """Owner and permissions. Without root, an owner that can't be given is said and left, as ``cp -a`` does."""
        fd = self.fd(d)
        try:
            os.chown(name, st.st_uid, st.st_gid, dir_fd=fd.n, follow_symlinks=False)
        except PermissionError:
            if self._root:
                raise
            log.info("%s: owner %d:%d can't be given without root", os.fsdecode(name), st.st_uid, st.st_gid)
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(name, stat.S_IMODE(st.st_mode), dir_fd=fd.n)

    def utime(self, d: LayerDir, name: bytes, st: os.stat_result) -> None:
        fd = self.fd(d)
        os.utime(name, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=fd.n, follow_symlinks=False)

"""What every mount engine must do with metadata; a part of ``unionfs.testing.engine.EngineSuite``."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

from unionfs.testing.engine_base import MTIME_NS, EngineBase, as_root, elsewhere, fails


class MetadataSuite(EngineBase):
    """Modes, owners, times, extended attributes, special files."""

    def test_modes(self, merged: Path) -> None:
        for name in ("only-bottom", "shared"):
            for mode in (0o700, 0o777, 0o4755, 0o1750):
                os.chmod(merged / name, mode)
                assert stat.S_IMODE(os.stat(merged / name).st_mode) == mode
        old = os.umask(0o027)
        try:
            os.close(os.open(merged / "masked", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkdir(merged / "masked-dir", 0o777)
        finally:
            os.umask(old)
        assert stat.S_IMODE(os.stat(merged / "masked").st_mode) == 0o640
        assert stat.S_IMODE(os.stat(merged / "masked-dir").st_mode) == 0o750

    @as_root
    def test_owners(self, merged: Path) -> None:
        path = merged / "shared/bottom"
        os.chown(path, 1001, 1002)
        os.chown(path, -1, 1003)
        os.chown(path, 1004, -1)
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == (1004, 1003)
        os.lchown(merged / "link", 1005, 1006)
        assert (os.lstat(merged / "link").st_uid, os.stat(merged / "link").st_uid) == (1005, 0)

    @as_root
    def test_files_belong_to_who_makes_them(self, merged: Path) -> None:
        os.chmod(merged / "shared", 0o777)
        (merged / "private").mkdir(0o700)
        code = (
            "import os, sys\n"
            "os.setgroups([]); os.setgid(4321); os.setuid(1234); os.chdir(sys.argv[1])\n"
            "open('file', 'w').close(); os.mkdir('dir'); os.symlink('x', 'sym'); os.mkfifo('fifo')\n"
            "for name in ('../private/x', '../only-top'):\n"
            "    try: open(name, 'w')\n"
            "    except PermissionError: print('denied', end=' ')\n"
        )
        assert elsewhere(code, merged / "shared") == "denied denied"
        for name in ("file", "dir", "sym", "fifo"):
            st = os.lstat(merged / "shared" / name)
            assert (st.st_uid, st.st_gid) == (1234, 4321)

    @as_root
    def test_set_group_id_of_a_directory_is_inherited(self, merged: Path) -> None:
        os.chown(merged / "shared", 0, 777)
        os.chmod(merged / "shared", 0o2777)
        (merged / "shared/file").touch()
        (merged / "shared/dir").mkdir()
        assert os.stat(merged / "shared/file").st_gid == 777
        assert os.stat(merged / "shared/dir").st_gid == 777
        assert os.stat(merged / "shared/dir").st_mode & stat.S_ISGID

    def test_times_in_nanoseconds(self, merged: Path) -> None:
        for name in ("shared/bottom", "shared", "link"):
            path = merged / name
            os.utime(path, ns=(1_111_111_111_111_111_111, 2_000_000_000_999_999_999), follow_symlinks=False)
            st = os.lstat(path)
            assert (st.st_atime_ns, st.st_mtime_ns) == (1_111_111_111_111_111_111, 2_000_000_000_999_999_999)
        path = merged / "only-top"
        os.utime(path, ns=(5, 6))
        subprocess.run(["touch", "-m", path], check=True)
        assert os.stat(path).st_atime_ns == 5
        assert os.stat(path).st_mtime_ns > MTIME_NS
        os.utime(path, ns=(-1_500_000_000, 0))
        assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (-1_500_000_000, 0)
        os.utime(path)
        assert os.stat(path).st_atime_ns > MTIME_NS

    def test_xattrs(self, merged: Path) -> None:
        for name in ("shared/bottom", "shared", "both/x"):
            path = merged / name
            assert os.listxattr(path) == []
            with fails(errno.ENODATA):
                os.getxattr(path, "user.none")
            with fails(errno.ENODATA):
                os.removexattr(path, "user.none")
            os.setxattr(path, "user.empty", b"")
            os.setxattr(path, "user.binary", bytes(range(256)), os.XATTR_CREATE)
            os.setxattr(path, b"user.\xff", b"name", 0)
            with fails(errno.EEXIST):
                os.setxattr(path, "user.binary", b"", os.XATTR_CREATE)
            with fails(errno.ENODATA):
                os.setxattr(path, "user.none", b"", os.XATTR_REPLACE)
            os.setxattr(path, "user.empty", b"x" * 2000, os.XATTR_REPLACE)
            assert os.getxattr(path, "user.binary") == bytes(range(256))
            assert os.getxattr(path, "user.empty") == b"x" * 2000
            assert set(map(os.fsencode, os.listxattr(path))) == {b"user.empty", b"user.binary", b"user.\xff"}
            os.removexattr(path, b"user.\xff")
            assert set(os.listxattr(path)) == {"user.empty", "user.binary"}

    def test_posix_acl(self, merged: Path) -> None:
        # acl(5) as the kernel has it in the xattr: version 2, then tag, permissions, id for each entry.
        undefined = 0xFFFFFFFF
        entries = (
            (0x01, 6, undefined),
            (0x02, 7, 1234),
            (0x04, 4, undefined),
            (0x10, 7, undefined),
            (0x20, 0, undefined),
        )
        acl = (2).to_bytes(4, "little") + b"".join(
            tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little")
            for tag, rights, who in entries
        )
        path = merged / "shared/bottom"
        os.setxattr(path, "system.posix_acl_access", acl)
        assert os.getxattr(path, "system.posix_acl_access") == acl
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o670

    @as_root
    def test_special_files(self, merged: Path) -> None:
        os.mkfifo(merged / "fifo", 0o620)
        os.mknod(merged / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        os.mknod(merged / "block", stat.S_IFBLK | 0o600, os.makedev(7, 99))
        with socket.socket(socket.AF_UNIX) as server:
            fd = os.open(merged, os.O_RDONLY)
            try:
                server.bind(f"/proc/self/fd/{fd}/socket")  # sun_path is short.
            finally:
                os.close(fd)
        kinds = {"fifo": stat.S_ISFIFO, "zero": stat.S_ISCHR, "block": stat.S_ISBLK, "socket": stat.S_ISSOCK}
        for name, is_kind in kinds.items():
            assert is_kind(os.stat(merged / name).st_mode)
        assert os.stat(merged / "zero").st_rdev == os.makedev(1, 5)
        assert os.stat(merged / "block").st_rdev == os.makedev(7, 99)
        with open(merged / "zero", "rb", buffering=0) as file:
            assert file.read(3) == b"\0\0\0"
        code = "import sys; print(open(sys.argv[1]).read())"
        with subprocess.Popen([sys.executable, "-c", code, merged / "fifo"], stdout=subprocess.PIPE) as reader:
            (merged / "fifo").write_text("through the pipe")
            assert reader.communicate(timeout=30)[0] == b"through the pipe\n"

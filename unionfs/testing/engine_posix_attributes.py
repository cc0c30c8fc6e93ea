"""Extended attributes and POSIX ACLs; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from unionfs.testing.engine_base import as_root
from unionfs.testing.engine_posix_base import GROUP, OWNER, STRANGER, PosixBase, mode_of, opened, opening, outcome
from unionfs.testing.someone import Someone

CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP_TAG, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
"""Tags of ACL entries (acl(5), linux/posix_acl.h)."""

Entries = tuple[tuple[int, int, int], ...]
NOBODY = 0xFFFFFFFF


def acl(entries: Entries) -> bytes:
    """The attribute's value: version 2, then tag, permissions and id of each entry (linux/posix_acl_xattr.h)."""
    packed = b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, rights, who in entries
    )
    return (2).to_bytes(4, "little") + packed


def minimal(mode: int) -> Entries:
    return (
        (USER_OBJ, mode >> 6 & 7, NOBODY),
        (GROUP_OBJ, mode >> 3 & 7, NOBODY),
        (OTHER, mode & 7, NOBODY),
    )


def with_user(who: int, rights: int, mask: int, group: int = 0, other: int = 0) -> Entries:
    return (
        (USER_OBJ, 7, NOBODY),
        (USER, rights, who),
        (GROUP_OBJ, group, NOBODY),
        (MASK, mask, NOBODY),
        (OTHER, other, NOBODY),
    )


class AttributesPart(PosixBase):
    """setxattr(2) and its sisters, acl(5)."""

    @pytest.mark.parametrize("name", ["file", "empty", "sub", "void", "twin1"])
    def test_set_get_list_remove(self, here: Path, name: str) -> None:
        path = here / name
        assert os.listxattr(path) == []
        values = {"user.a": b"1", "user.empty": b"", "user.big": bytes(range(256)) * 8, "user." + "n" * 250: b"long"}
        for key, value in values.items():
            assert outcome(os.getxattr, path, key) == "ENODATA"
            os.setxattr(path, key, value)
            assert os.getxattr(path, key) == value
        assert set(os.listxattr(path)) == set(values)
        os.setxattr(path, "user.a", b"another")
        assert os.getxattr(path, "user.a") == b"another"
        for key in values:
            os.removexattr(path, key)
            assert outcome(os.removexattr, path, key) == "ENODATA"
            assert outcome(os.getxattr, path, key) == "ENODATA"
        assert os.listxattr(path) == []

    def test_create_and_replace(self, here: Path) -> None:
        for path in (here / "file", here / "sub"):
            assert outcome(os.setxattr, path, "user.x", b"1", REPLACE) == "ENODATA"
            os.setxattr(path, "user.x", b"1", CREATE)
            assert outcome(os.setxattr, path, "user.x", b"2", CREATE) == "EEXIST"
            os.setxattr(path, "user.x", b"3", REPLACE)
            assert os.getxattr(path, "user.x") == b"3"
            assert outcome(os.setxattr, path, "user.x", b"", 4) == "EINVAL"

    def test_errors(self, here: Path) -> None:
        path = here / "file"
        for key, error in (
            ("user." + "n" * 251, "ERANGE"),
            ("user.", "EINVAL"),
            ("unknown.x", "ENOTSUP"),
            ("x", "ENOTSUP"),
            ("", "ERANGE"),
        ):
            assert outcome(os.setxattr, path, key, b"x") == error, key
        assert outcome(os.setxattr, path, "user.x", b"x" * 65_537) == "E2BIG"
        assert outcome(os.setxattr, here / "missing", "user.x", b"") == "ENOENT"
        assert outcome(os.getxattr, here / "file/x", "user.x") == "ENOTDIR"
        assert outcome(os.listxattr, here / "loop") == "ELOOP"
        assert outcome(os.setxattr, here / "broken", "user.x", b"") == "ENOENT"
        assert os.listxattr(path) == []

    def test_special_files_and_links_have_no_user_attributes(self, here: Path) -> None:
        """xattr(7), "Extended user attributes"."""
        for name in ("sym", "broken", "fifo"):
            path = here / name
            assert outcome(os.setxattr, path, "user.x", b"1", follow_symlinks=False) == "EPERM"
            assert outcome(os.getxattr, path, "user.x", follow_symlinks=False) == "ENODATA"
            assert outcome(os.removexattr, path, "user.x", follow_symlinks=False) == "EPERM"
            assert os.listxattr(path, follow_symlinks=False) == []
        os.setxattr(here / "sym", "user.x", b"1")
        assert os.getxattr(here / "file", "user.x") == b"1"

    @as_root
    def test_trusted_and_security(self, here: Path, owner: Someone, stranger: Someone) -> None:
        for name in ("file", "sub", "sym", "fifo"):
            path = here / name
            for key in ("trusted.x", "security.x"):
                os.setxattr(path, key, b"secret", follow_symlinks=False)
                assert os.getxattr(path, key, follow_symlinks=False) == b"secret"
            assert set(os.listxattr(path, follow_symlinks=False)) == {"trusted.x", "security.x"}
            assert stranger.listxattr(path, follow_symlinks=False) == ["security.x"]
            assert outcome(stranger.getxattr, path, "trusted.x", follow_symlinks=False) == "ENODATA"
            assert stranger.getxattr(path, "security.x", follow_symlinks=False) == b"secret"
            os.lchown(path, OWNER, GROUP)
            for key in ("trusted.x", "security.x"):
                assert outcome(owner.setxattr, path, key, b"x", follow_symlinks=False) == "EPERM"
                os.removexattr(path, key, follow_symlinks=False)
            assert os.listxattr(path, follow_symlinks=False) == []

    @as_root
    def test_permissions(self, here: Path, stranger: Someone) -> None:
        for name in ("file", "sub"):
            path = here / name
            os.setxattr(path, "user.x", b"1")
            assert stranger.getxattr(path, "user.x") == b"1"
            assert outcome(stranger.setxattr, path, "user.x", b"2") == "EACCES"
            assert outcome(stranger.removexattr, path, "user.x") == "EACCES"
            os.chmod(path, 0o222)
            assert outcome(stranger.getxattr, path, "user.x") == "EACCES"
            assert stranger.listxattr(path) == ["user.x"]
            stranger.setxattr(path, "user.x", b"2")
            assert os.getxattr(path, "user.x") == b"2"
        os.chmod(here / "sub", 0o1777)
        assert outcome(stranger.setxattr, here / "sub", "user.x", b"3") == "EPERM"

    @as_root
    def test_a_capability_goes_when_the_file_is_written(self, here: Path, stranger: Someone) -> None:
        capability = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep (linux/capability.h)
        path = here / "file"
        os.chmod(path, 0o777)
        for change in (
            lambda: stranger.write(stranger.open(path, os.O_WRONLY), b"x"),
            lambda: stranger.truncate(path, 3),
            lambda: os.truncate(path, 2),
            lambda: os.chown(path, OWNER, -1),
        ):
            os.setxattr(path, "security.capability", capability)
            os.chmod(path, 0o777)
            assert os.getxattr(path, "security.capability") == capability
            change()
            assert outcome(os.getxattr, path, "security.capability") == "ENODATA"

    def test_attributes_stay_with_their_file(self, here: Path) -> None:
        for name in ("file", "twin1", "sub"):
            os.setxattr(here / name, "user.x", name.encode())
        os.rename(here / "file", here / "moved")
        os.chmod(here / "moved", 0o600)
        os.truncate(here / "moved", 0)
        assert os.getxattr(here / "moved", "user.x") == b"file"
        assert os.getxattr(here / "twin2", "user.x") == b"twin1"
        os.rename(here / "sub", here / "sub2")
        assert os.getxattr(here / "sub2", "user.x") == b"sub"
        with opening(here / "moved", os.O_RDONLY) as fd:
            assert os.listxattr(fd) == ["user.x"]
            os.setxattr(fd, "user.y", b"by descriptor")
        assert os.getxattr(here / "moved", "user.y") == b"by descriptor"

    # ACLs

    def test_acl_and_mode_are_one(self, here: Path) -> None:
        """The mask shows as the group's bits, and chmod sets it (acl(5), "Correspondence")."""
        for name in ("file", "sub", "fifo"):
            path = here / name
            assert outcome(os.getxattr, path, ACCESS) == "ENODATA"
            os.setxattr(path, ACCESS, acl(with_user(STRANGER, 7, mask=5, group=7, other=1)))
            assert mode_of(path) == 0o751
            os.chmod(path, 0o624)
            assert os.getxattr(path, ACCESS) == acl(
                (
                    (USER_OBJ, 6, NOBODY),
                    (USER, 7, STRANGER),
                    (GROUP_OBJ, 7, NOBODY),
                    (MASK, 2, NOBODY),
                    (OTHER, 4, NOBODY),
                )
            )
            assert os.listxattr(path) == [ACCESS]
            os.removexattr(path, ACCESS)
            assert outcome(os.getxattr, path, ACCESS) == "ENODATA"
            assert mode_of(path) & 0o707 == 0o604

    def test_a_minimal_acl_is_the_mode(self, here: Path) -> None:
        os.setxattr(here / "file", ACCESS, acl(minimal(0o513)))
        assert mode_of(here / "file") == 0o513
        assert outcome(os.getxattr, here / "file", ACCESS) == "ENODATA"
        assert os.listxattr(here / "file") == []

    def test_acl_errors(self, here: Path) -> None:
        full = with_user(STRANGER, 7, mask=7)
        for entries in (full[:-1], full[:3] + full[4:], full[1:], (*full, full[-1])):
            assert outcome(os.setxattr, here / "file", ACCESS, acl(entries)) == "EINVAL"
        for value in (b"x", acl(full)[:-1]):
            assert outcome(os.setxattr, here / "file", ACCESS, value) == "EINVAL"
        assert outcome(os.setxattr, here / "file", ACCESS, b"\x01" + acl(full)[1:]) == "ENOTSUP"
        assert outcome(os.setxattr, here / "file", DEFAULT, acl(full)) == "EACCES"
        assert outcome(os.setxattr, here / "sym", ACCESS, acl(full), follow_symlinks=False) == "ENOTSUP"
        assert mode_of(here / "file") == 0o644

    @as_root
    def test_who_sets_acls(self, here: Path, owner: Someone, stranger: Someone) -> None:
        full = acl(with_user(STRANGER, 6, mask=6))
        os.chown(here / "file", OWNER, GROUP)
        assert outcome(stranger.setxattr, here / "file", ACCESS, full) == "EPERM"
        assert outcome(stranger.setxattr, here / "sub", DEFAULT, full) == "EPERM"
        owner.setxattr(here / "file", ACCESS, full)
        assert stranger.getxattr(here / "file", ACCESS) == full
        assert outcome(stranger.removexattr, here / "file", ACCESS) == "EPERM"
        os.chmod(here / "file", 0o2660)
        os.chown(here / "file", OWNER, STRANGER + 1)
        owner.setxattr(here / "file", ACCESS, full)
        assert not mode_of(here / "file") & stat.S_ISGID, "as chmod by who is not in the group"

    @as_root
    def test_acls_are_obeyed(self, here: Path, owner: Someone, stranger: Someone) -> None:
        path = here / "file"
        for rights, mask, wanted in (
            (6, 7, "ok ok"),
            (6, 4, "ok EACCES"),
            (7, 2, "EACCES ok"),
            (0, 7, "EACCES EACCES"),
        ):
            os.setxattr(path, ACCESS, acl(with_user(STRANGER, rights, mask, other=7)))
            found = [outcome(opened, path, flags, by=stranger) for flags in (os.O_RDONLY, os.O_WRONLY)]
            assert " ".join(found) == wanted
            assert stranger.access(path, os.R_OK) == (found[0] == "ok")
        by_group = (
            (USER_OBJ, 7, NOBODY),
            (GROUP_OBJ, 0, NOBODY),
            (GROUP_TAG, 4, GROUP),
            (MASK, 7, NOBODY),
            (OTHER, 0, NOBODY),
        )
        os.setxattr(path, ACCESS, acl(by_group))
        assert outcome(opened, path, os.O_RDONLY, by=owner) == "ok"
        assert outcome(opened, path, os.O_WRONLY, by=owner) == "EACCES"
        assert outcome(opened, path, os.O_RDONLY, by=stranger) == "EACCES"
        os.setxattr(here / "sub", ACCESS, acl(with_user(STRANGER, 7, mask=7)))
        stranger.mkdir(here / "sub/mine")
        assert outcome(owner.listdir, here / "sub") == "EACCES"

    def test_default_acls_are_inherited(self, here: Path, somebody: Someone) -> None:
        """They decide in place of the umask (acl(5), "Object creation and default ACLs")."""
        default = with_user(STRANGER, 6, mask=7, group=5, other=1)
        for directory in ("sub", "void"):
            top = here / directory
            os.setxattr(top, DEFAULT, acl(default))
            assert mode_of(top) == 0o755
            assert os.listxattr(top) == [DEFAULT]
            somebody.umask(0o077)
            opened(top / "f", os.O_CREAT | os.O_WRONLY, 0o666, by=somebody)
            somebody.mkfifo(top / "p", 0o640)
            somebody.mknod(top / "n", stat.S_IFREG | 0o604)
            somebody.mkdir(top / "d", 0o777)
            somebody.symlink("x", top / "s")
            assert [mode_of(top / name) for name in "fpnd"] == [0o660, 0o640, 0o600, 0o771]
            assert os.getxattr(top / "f", ACCESS) == acl(
                (
                    (USER_OBJ, 6, NOBODY),
                    (USER, 6, STRANGER),
                    (GROUP_OBJ, 5, NOBODY),
                    (MASK, 6, NOBODY),
                    (OTHER, 0, NOBODY),
                )
            )
            assert os.getxattr(top / "d", DEFAULT) == acl(default)
            assert os.getxattr(top / "d", ACCESS) == acl(default)
            assert os.listxattr(top / "s", follow_symlinks=False) == []
            os.removexattr(top, DEFAULT)
            opened(top / "g", os.O_CREAT | os.O_WRONLY, 0o666, by=somebody)
            assert mode_of(top / "g") == 0o600
            assert os.listxattr(top / "g") == []

    def test_a_minimal_default_acl_replaces_the_umask(self, here: Path, somebody: Someone) -> None:
        os.setxattr(here / "sub", DEFAULT, acl(minimal(0o750)))
        somebody.umask(0o777)
        opened(here / "sub/f", os.O_CREAT | os.O_WRONLY, 0o666, by=somebody)
        somebody.mkdir(here / "sub/d", 0o777)
        assert (mode_of(here / "sub/f"), mode_of(here / "sub/d")) == (0o640, 0o750)
        assert os.listxattr(here / "sub/f") == []
        assert os.listxattr(here / "sub/d") == [DEFAULT]

"""Owners and modes that the process may not set: what is recorded, and that others read it as we do."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests import support
from unionfs.layer import owners
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_BLK, DT_CHR, DT_DIR, DT_REG
from unionfs.testing.layer import check_agreement, fails


@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"1:2", b"a:b:c", b"0:0:9:file", b"0:0:0644:char-x-y", b"\xff", b"0:0:0644:block-1-99999999999999"],
)
def test_malformed_owners_count_as_absent(scratch: Path, value: bytes) -> None:
    (scratch / "file").write_text("x")
    before = (scratch / "file").stat()
    os.setxattr(scratch, owners.OVERRIDE, b"0:0:0755:dir")
    os.setxattr(scratch / "file", owners.OVERRIDE, value)
    layer = DirectoryLayer(scratch)
    assert layer.stat(layer.root, b"file") == before
    assert layer.kind(layer.root, b"file") == DT_REG


def test_owners_round_trip() -> None:
    kinds = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK)
    for kind, mode in itertools.product(kinds, (0, 0o644, 0o7777)):
        value = owners.encode(kind | mode, 1, 4294967294)
        assert owners.decode(value) == (1, 4294967294, mode, kind, None)
    for kind in (stat.S_IFBLK, stat.S_IFCHR):
        rdev = os.makedev(259, 70000)
        assert owners.decode(owners.encode(kind | 0o600, 0, 0, rdev)) == (0, 0, 0o600, kind, rdev)
    # As others write it: containers/storage without a type, modes with and without the zero.
    assert owners.decode(b"0:0:0755") == owners.decode(b"0:0:755") == (0, 0, 0o755, None, None)
    assert owners.encode(stat.S_IFREG | 0o644, 5, 6) == b"5:6:0644:file"
    assert owners.encode(stat.S_IFCHR | 0o666, 0, 0, os.makedev(1, 3)) == b"0:0:0666:char-1-3"


UNPRIVILEGED = """
import os, stat, sys
from unionfs.layer.upper import UpperDirectory
from unionfs.layer.trees import Entry, populate
os.mkdir("upper")
upper = UpperDirectory("upper", "work")
populate(upper, {
    "file": Entry(stat.S_IFREG | 0o4755, b"data", uid=33, gid=44),
    "closed": Entry(stat.S_IFDIR | 0o000, {"below": b"x"}, uid=1, gid=2),
    "secret": Entry(stat.S_IFREG, b"s"),
    "null": Entry(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)),
    "disk": Entry(stat.S_IFBLK | 0o600, rdev=os.makedev(8, 1), uid=0, gid=6),
    "mine": b"mine",
})
upper.setattr(upper.root, b".", mode=0o755)
"""


@pytest.mark.root
def test_owners_of_an_unprivileged_user_on_disk(as_user: support.AsUser) -> None:
    as_user.python(UNPRIVILEGED)
    top = as_user.scratch / "upper"
    assert os.getxattr(top / "file", owners.OVERRIDE) == b"33:44:04755:file"
    assert os.getxattr(top / "closed", owners.OVERRIDE) == b"1:2:00:dir"
    assert os.getxattr(top / "null", owners.OVERRIDE).endswith(b":0666:char-1-3")
    assert os.getxattr(top / "disk", owners.OVERRIDE) == b"0:6:0600:block-8-1"
    with pytest.raises(OSError, match="No data"):
        os.getxattr(top / "mine", owners.OVERRIDE)
    assert {name: (top / name).stat().st_uid for name in os.listdir(top)} == dict.fromkeys(os.listdir(top), as_user.uid)
    stranger = DirectoryLayer(top)
    assert stranger.stat(stranger.root, b"file").st_uid == as_user.uid, "root believes no stranger's records"
    os.chown(top, 0, 0)  # Now it is root's own.
    layer = DirectoryLayer(top)
    assert layer.scan(layer.root) == {
        b"file": DT_REG, b"closed": DT_DIR, b"secret": DT_REG, b"null": DT_CHR, b"disk": DT_BLK, b"mine": DT_REG,
    }  # fmt: skip
    st = layer.stat(layer.root, b"disk")
    assert (st.st_mode, st.st_rdev, st.st_gid, st.st_size) == (stat.S_IFBLK | 0o600, os.makedev(8, 1), 6, 0)
    assert layer.listxattr(layer.root, b"file") == []
    with fails(errno.ENODATA):
        layer.getxattr(layer.root, b"file", owners.OVERRIDE.encode())
    assert layer.stat(layer.root, b"secret").st_mode == stat.S_IFREG
    check_agreement(layer)


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.needs("fuse-overlayfs")
def test_fuse_overlayfs_shows_the_owners_that_we_record(as_user: support.AsUser) -> None:
    as_user.python(UNPRIVILEGED)
    scratch = as_user.scratch
    for directory in ("merged", "u2", "w2"):
        (scratch / directory).mkdir()
    layers = f"lowerdir={scratch}/upper,upperdir={scratch}/u2,workdir={scratch}/w2,xattr_permissions=2"
    subprocess.run(["fuse-overlayfs", "-o", layers, scratch / "merged"], check=True)
    os.chown(scratch / "upper", 0, 0)  # Root believes its own layers only.
    layer = DirectoryLayer(scratch / "upper")
    for name in (b"file", b"closed", b"secret", b"null", b"disk"):
        theirs, ours = os.lstat(os.fsencode(scratch / "merged") + b"/" + name), layer.stat(layer.root, name)
        assert (theirs.st_uid, theirs.st_gid) == (ours.st_uid, ours.st_gid), name
        assert stat.S_IMODE(theirs.st_mode) == stat.S_IMODE(ours.st_mode), name
        # 1.10, which Debian 12 has, reads no types; so devices are files there.
        if not stat.S_ISREG(theirs.st_mode):
            assert (theirs.st_mode, theirs.st_rdev) == (ours.st_mode, ours.st_rdev), name


def test_unmapped_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "uid_map"
    table.write_text("         0          0 4294967295\n")
    assert owners.overflow_ids(str(table)) == frozenset()
    table.write_text("         0       1000          1\n")
    with open("/proc/sys/kernel/overflowuid") as number:
        assert owners.overflow_ids(str(table)) == {int(number.read())}
    assert owners.overflow_ids(str(tmp_path / "none")) == frozenset()

"""The whole tour as an unprivileged user: owners are recorded, and go into images as root's would."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support import REPO, AsUser
from tests.test_mount_user import KnownUser
from unionfs import Store
from unionfs.layer.owners import OVERRIDE

EPOCH = "1700000000"

TOUR = """
import os, sys, unionfs
from pathlib import Path
os.umask(0o022)
with unionfs.Store(sys.argv[1]) as store:
    base = store.import_(sys.argv[2], "base")
    with store.create("base", "web") as web:
        fs = web.fs
        fs.write_text("/etc/new", "new")
        fs.chown("/etc/new", 33, 44)
        fs.chown("/etc/shadow", 0, 42)
        fs.chmod("/etc/shadow", 0o640)
        fs.chmod("/bin/su", 0o4755)
        fs.mkdir("/srv")
        fs.chown("/srv", 1000, 1000)
        fs.rename("/var", "/var2")
        fs.remove("/etc/gone")
        for path in ("/etc/new", "/srv"):
            fs.utime(path, (1600000000, 1600000000))
        for path in ("/etc", "/"):
            fs.utime(path, (1600000001, 1600000001))
        image = web.commit("web")
    flat = store.squash("web", "flat")
    for each in (base, image, flat):
        print(*(layer.diff_id for layer in each.layers))
    with image.open() as fs:
        for path in ("/etc/new", "/etc/shadow", "/bin/su", "/srv", "/var2/mail"):
            st = fs.stat(path)
            print(path, st.st_uid, st.st_gid, oct(st.st_mode))
    print(*sorted(str(change) for change in store.diff("base", "web")))
    assert not list(store.diff("web", "flat"))
"""

REST = """
import os, subprocess, sys, unionfs
from pathlib import Path
with unionfs.Store(sys.argv[1]) as store:
    with store.container("web") as web:
        mnt = Path("mnt")
        mnt.mkdir()
        web.fs.mkdir("/home")  # Ours: what root owns we may look at, through a mount.
        with web.mount(mnt, "devfuse"):
            assert (mnt / "etc/shadow").stat().st_gid == 42
            (mnt / "home/made").write_text("through the mount")
            subprocess.run(["sh", "-c", "cp made copied; mkdir d; mv copied d/"], cwd=mnt / "home", check=True)
            second = web.commit("second")
            web.rollback("base")
            assert not (mnt / "home/made").exists()
            assert (mnt / "etc/gone").exists()
        with second.open() as fs:
            assert fs.read_text("/home/d/copied") == "through the mount"
            assert fs.stat("/etc/shadow").st_gid == 42
        side = web.fork("side")
    for container in store.containers():
        container.remove()
    for image in store.images():
        store.remove_image(image.id, force=True)
    store.gc()
    for room in ("layers", "containers", "blobs/sha256", "tmp", "trash", "leases"):
        assert not os.listdir(f"{store.path}/{room}"), room
"""


def member(name: str, kind: bytes, uid: int, gid: int, mode: int, data: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.uid, info.gid, info.mode, info.mtime = kind, uid, gid, mode, 1500000000
    info.size = len(data)
    return info, data


def archive(path: Path, *, links: bool = False) -> None:
    members = [
        member(".", tarfile.DIRTYPE, 0, 0, 0o755),
        member("bin", tarfile.DIRTYPE, 0, 0, 0o755),
        member("bin/su", tarfile.REGTYPE, 0, 0, 0o755, b"program"),
        member("etc", tarfile.DIRTYPE, 0, 0, 0o755),
        member("etc/gone", tarfile.REGTYPE, 0, 0, 0o600, b""),
        member("etc/shadow", tarfile.REGTYPE, 0, 0, 0o600, b"secret"),
        member("var", tarfile.DIRTYPE, 0, 8, 0o2775),
        member("var/mail", tarfile.DIRTYPE, 8, 8, 0o700),
        member("var/mail/one", tarfile.REGTYPE, 1234, 8, 0o400, b"mail"),
    ]
    if links:
        link, _ = member("link", tarfile.SYMTYPE, 7, 7, 0o777)
        link.linkname = "etc"
        device, _ = member("null", tarfile.CHRTYPE, 7, 7, 0o666)
        device.devmajor, device.devminor = 1, 3
        members += [(link, b""), (device, b"")]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.fuse
@pytest.mark.needs("fusermount3")
def test_the_tour(scratch: Path) -> None:
    with KnownUser() as user:
        tour(user, scratch)


def tour(as_user: AsUser, scratch: Path) -> None:
    source = as_user.scratch / "base.tar"
    archive(source)
    source.chmod(0o644)
    env = {"SOURCE_DATE_EPOCH": EPOCH}
    mine = as_user.python(TOUR, "store", str(source), env=env).stdout
    base, image, flat, *seen, changes = mine.splitlines()
    assert len(image.split()) == 2
    assert image.split()[1] == base
    assert len(flat.split()) == 1
    assert seen == [
        "/etc/new 33 44 0o100644",
        "/etc/shadow 0 42 0o100640",
        "/bin/su 0 0 0o104755",
        "/srv 1000 1000 0o40755",
        "/var2/mail 8 8 0o40700",
    ]
    assert changes == (
        "A /etc/new A /srv A /var2 A /var2/mail A /var2/mail/one C /bin/su C /etc/shadow D /etc/gone D /var"
    )
    # On disk all is the user's own, and what was meant stands beside it.
    store = as_user.scratch / "store"
    records = set()
    for at, names, files in os.walk(store / "layers"):
        for name in (*names, *files):
            assert os.lstat(f"{at}/{name}").st_uid == as_user.uid
            if OVERRIDE in os.listxattr(f"{at}/{name}"):
                records.add((name, os.getxattr(f"{at}/{name}", OVERRIDE)))
    assert {("new", b"33:44:0644:file"), ("shadow", b"0:42:0640:file"), ("srv", b"1000:1000:0755:dir")} <= records
    if os.geteuid() == 0:
        # Root's own layers of the same changes are the same, to the byte.
        done = subprocess.run(
            [sys.executable, "-c", TOUR, scratch / "store", source],
            env={**os.environ, **env, "PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == mine
    as_user.python(REST, "store", fuse=True, env=env)


@pytest.mark.root
def test_what_a_user_can_not_record(as_user: AsUser) -> None:
    """Symbolic links have no place for a record (xattr(7)): they belong to whom the root does. Devices have."""
    source = as_user.scratch / "base.tar"
    archive(source, links=True)
    source.chmod(0o644)
    code = """
import sys, unionfs
with unionfs.Store("store") as store:
    with store.import_(sys.argv[1], "base").open() as fs:
        for path in ("/link", "/null"):
            st = fs.lstat(path)
            print(path, st.st_uid, st.st_gid, oct(st.st_mode), st.st_rdev)
"""
    link, device = as_user.python(code, str(source)).stdout.splitlines()
    assert link == "/link 0 0 0o120777 0"
    assert device == f"/null 7 7 0o20666 {os.makedev(1, 3)}"


@pytest.mark.root
def test_a_directory_with_foreign_owners(as_user: AsUser) -> None:
    source = as_user.scratch / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/file").write_text("x")
    os.chown(source / "d", 5, 6)
    os.chown(source / "d/file", 7, 8)
    code = """
import sys, unionfs
with unionfs.Store("store") as store:
    image = store.import_(sys.argv[1], "base")
    with image.open() as fs:
        for path in ("/d", "/d/file"):
            st = fs.stat(path)
            print(path, st.st_uid, st.st_gid)
    print(image.layers[0].diff_id)
"""
    seen = as_user.python(code, str(source)).stdout.splitlines()
    assert seen[:2] == ["/d 5 6", "/d/file 7 8"]
    with Store(as_user.scratch / "root") as store:
        assert store.import_(source, "base").layers[0].diff_id == seen[2]

"""A Debian in layers: apt and dpkg in a chroot on the mount, a commit, and a removal in a second layer.

Served by the best engine that this machine can use; what the others are asked for is in test_programs.py.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests import support
from unionfs.errors import MountError
from unionfs.mount.engine import get_engine
from unionfs.union.fs import UnionFS

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.needs("mmdebstrap", "chroot"),
    pytest.mark.timeout(300),
]

SUITE = "bookworm"
QUIET = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.fixture
def debian(scratch: Path) -> Path:
    """The smallest Debian that has apt."""
    root = scratch / "debian"
    mirror = "deb http://deb.debian.org/debian {} main"
    support.run_checked(
        "mmdebstrap",
        "--variant=apt",
        "--quiet",
        "--mode=root",
        "--skip=cleanup/apt/lists",
        SUITE,
        root,
        mirror.format(SUITE),
    )
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", root / "etc" / name)
    return root


class Machine:
    """The Debian below two thin layers and an upper."""

    def __init__(self, top: Path, base: Path, engine: str) -> None:
        self.engine, self.mnt, self.upper, self.work = engine, top / "mnt", top / "up", top / "work"
        branding, site = top / "branding", top / "site"
        for directory in (self.mnt, self.upper, branding / "etc", site / "etc/apt/apt.conf.d", site / "usr/share/doc"):
            directory.mkdir(parents=True)
        (branding / "etc/issue").write_text("from a layer\n")
        (site / "etc/apt/apt.conf.d/90site").write_text(
            'APT::Install-Recommends "false";\nAcquire::Languages "none";\n'
        )
        os.mknod(site / "usr/share/doc/bash", stat.S_IFCHR, os.makedev(0, 0))
        self.lowers = [branding, site, base]

    def mount(self) -> None:
        layers = [word for layer in self.lowers for word in ("--lower", layer)]
        command = ["mount", self.mnt, *layers, "--upper", self.upper, "--work", self.work, "--engine", self.engine]
        support.run_checked(sys.executable, "-m", "unionfs.cli", *command)

    def umount(self) -> None:
        support.run_checked(sys.executable, "-m", "unionfs.cli", "umount", self.mnt)

    def inside(self, *command: str) -> str:
        return support.run_checked("chroot", self.mnt, *command, env=QUIET)

    def api(self) -> UnionFS:
        return UnionFS(lower=self.lowers, upper=self.upper, work=self.work)


@pytest.fixture
def machine(scratch: Path, debian: Path) -> Machine:
    engine = support.best_engine()
    try:
        get_engine(engine)
    except MountError as error:
        support.lacks(str(error))
    return Machine(scratch, debian, engine)


def test_apt_in_a_chroot(machine: Machine) -> None:
    machine.mount()
    assert machine.inside("cat", "/etc/issue") == "from a layer\n"
    verified = machine.inside("dpkg", "--verify")
    assert "/usr/share/doc/bash" in verified  # A layer has hidden it.
    machine.inside("apt-get", "update")
    machine.inside("apt-get", "install", "-y", "hello", "ed")
    assert machine.inside("hello") == "Hello, world!\n"
    assert machine.inside("dpkg", "--audit") == ""
    assert machine.inside("dpkg", "--verify", "hello", "ed") == ""
    assert machine.inside("dpkg", "--verify") == verified
    machine.umount()

    with machine.api() as fs:
        changes = {change.path: change for change in fs.diff()}
        assert changes["/usr/bin/hello"].kind == "added"
        assert "data" in changes["/var/lib/dpkg/status"].what
        gone = [path for path, change in changes.items() if change.kind == "deleted"]
        assert all(path.startswith("/var/") for path in gone)
        touched = {path for path, change in changes.items() if change.kind == "changed" and change.what != {"times"}}
        assert all(path.startswith(("/var/", "/etc/ld.so.cache")) for path in touched), touched
        first = fs.commit(message="hello").path
        assert list(fs.diff()) == []
    machine.lowers.insert(0, Path(first))

    machine.mount()
    assert machine.inside("hello") == "Hello, world!\n"
    machine.inside("apt-get", "remove", "--purge", "-y", "hello")
    assert machine.inside("dpkg", "--audit") == ""
    assert machine.inside("dpkg", "--verify") == verified
    machine.umount()
    with machine.api() as fs:
        gone = [change.path for change in fs.diff() if change.kind == "deleted"]
        assert "/usr/bin/hello" in gone
        assert "/usr/bin/ed" not in gone
        fs.commit(message="no hello")
        assert [entry.comment for entry in fs.history()] == ["no hello", "hello", "", "", ""]
        assert not fs.exists("/usr/bin/hello")
        assert fs.exists("/usr/bin/ed")

    # The first state is still there.
    machine.upper, machine.work = machine.upper.parent / "up2", machine.work.parent / "work2"
    machine.upper.mkdir()
    machine.mount()
    assert machine.inside("hello") == "Hello, world!\n"
    machine.umount()

"""`mount.unionfs`, the words it takes, and mount(8) and fstab through it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import support
from unionfs.errors import MountError
from unionfs.mount.options import escape_layer, parse_options

# Option strings


def test_overlayfs_words() -> None:
    found = parse_options(r"rw,lowerdir=/a\:b:/c\,d:/e\\f,upperdir=/u\,p,workdir=/w,lowerdir+=/g,volatile,index=on")
    assert found.lower == ["/a:b", "/c,d", "/e\\f", "/g"]
    assert (found.upper, found.work, found.volatile) == ("/u,p", "/w", True)


@pytest.mark.parametrize("path", ["/plain", "/with:colon", "/with,comma", "/back\\slash", "/\\:,"])
def test_escaped_layers_come_back(path: str) -> None:
    assert parse_options(f"lowerdir={escape_layer(path)}:/other").lower == [path, "/other"]


def test_usual_options_are_tolerated() -> None:
    usual = (
        "defaults,dev,suid,exec,auto,noauto,nofail,_netdev,user,user=me,async,relatime,x-systemd.automount,comment=x"
    )
    assert parse_options(usual).fields == {"dev": True, "suid": True, "exec": True}
    found = parse_options("ro,nodev,nosuid,noexec,allow_other,noatime,sync,attr_timeout=1.5,fsname=name")
    assert found.fields == {
        **dict.fromkeys(("dev", "suid", "exec"), False),
        **dict.fromkeys(("read_only", "allow_other"), True),
        "flags": ("noatime", "sync"),
        "attr_timeout": 1.5,
        "source": "name",
    }


@pytest.mark.parametrize(
    "word",
    ["bogus", "upperdir", "upperdir=", "lowerdir=/a::/b", "lowerdir=", "redirect_dir=off", "attr_timeout=x", "ro=1"],
)
def test_words_that_are_refused(word: str) -> None:
    with pytest.raises(MountError) as caught:
        parse_options(f"rw,{word}")
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == word


def test_sloppy_collects_what_is_unknown() -> None:
    assert parse_options("bogus,other=1,ro", sloppy=True).ignored == ["bogus", "other=1"]


# The helper itself


@pytest.fixture
def top(scratch: Path) -> Path:
    for name in ("a", "b:b", "c", "up", "work", "mnt"):
        (scratch / name).mkdir()
        (scratch / name / f"in-{name[0]}").touch()
    return scratch


def options(top: Path) -> str:
    return f"lowerdir={top}/a:{top}/b\\:b:{top}/c,upperdir={top}/up,workdir={top}/work"


def helper(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unionfs.cli.mount_helper", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=support.REPO)


@pytest.mark.fuse
def test_helper(top: Path) -> None:
    done = helper(
        "-v", "a source", top / "mnt", "-t", "fuse.unionfs", "-o", options(top), "-n", "-o", "dev,suid,noatime"
    )
    assert done.returncode == 0, done.stderr
    assert f"{top}/mnt" in done.stdout
    mounts = Path("/proc/mounts").read_text().splitlines()
    line = next(line for line in mounts if f" {top}/mnt " in line)
    assert line.startswith("a\\040source ")
    assert "noatime" in line
    assert {"in-a", "in-b", "in-c"} <= set(os.listdir(top / "mnt"))
    subprocess.run([sys.executable, "-m", "unionfs.cli", "umount", top / "mnt"], check=True)


@pytest.mark.fuse
def test_helper_called_as_mount_fuse_calls_a_program(top: Path) -> None:
    call = [sys.executable, "-m", "unionfs.cli", "source", str(top / "mnt"), "-o", f"dev,suid,{options(top)}"]
    subprocess.run(call, check=True, timeout=60)
    assert os.path.ismount(top / "mnt")
    subprocess.run([sys.executable, "-m", "unionfs.cli", "umount", top / "mnt"], check=True)


def test_fake_mounts_nothing(top: Path) -> None:
    assert helper("-f", "s", top / "mnt", "-o", options(top)).returncode == 0
    assert not os.path.ismount(top / "mnt")


def test_exit_statuses(top: Path) -> None:
    for args, status, words in (
        ((), 1, "SOURCE and MOUNTPOINT"),
        (("--bogus", "s", top / "mnt"), 1, "bogus"),
        (("s", top / "mnt", "-o", "bogus"), 32, "bogus: unknown mount option"),
        (("s", top / "missing", "-o", options(top)), 32, "does not exist"),
        (("s", top / "mnt", "-o", f"lowerdir={top}/missing"), 32, "missing: "),
        (("s", top / "mnt", "-o", "remount,ro"), 32, "remount"),
    ):
        done = helper(*args)
        assert done.returncode == status
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("mount.unionfs: ")
        assert words in done.stderr
    assert "lowerdir=" in helper("--help").stdout


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.needs("unshare")
def test_mount_and_fstab(top: Path) -> None:
    """mount(8) for real, in a mount namespace whose /sbin has our links and whose /etc/fstab is ours."""
    program = top / "mount.unionfs"
    program.write_text(
        f'#!/bin/sh\ncd /\nPYTHONPATH={support.REPO} exec {sys.executable} -m unionfs.cli.mount_helper "$@"\n'
    )
    program.chmod(0o755)
    escaped = options(top).replace("\\", "\\134")  # fstab(5)
    (top / "fstab").write_text(f"source {top}/mnt fuse.unionfs {escaped},defaults,x-test=1 0 0\n")
    script = f"""
        set -eux
        mkdir {top}/sbin
        cp -a /usr/sbin/. {top}/sbin/
        rm -f {top}/sbin/mount.unionfs
        ln -s {program} {top}/sbin/mount.fuse.unionfs
        ln -s {program} {top}/sbin/mount.unionfs
        mount --bind {top}/sbin "$(readlink -f /sbin)"
        mount --bind {top}/fstab /etc/fstab

        mount -t fuse.unionfs source {top}/mnt -o '{options(top)},nodev'
        grep '^source {top}/mnt fuse.unionfs .*nodev' /proc/mounts
        echo one > {top}/mnt/file
        umount {top}/mnt
        mount -t unionfs source {top}/mnt -o '{options(top)}'
        test "$(cat {top}/mnt/file)" = one
        umount {top}/mnt

        mount {top}/mnt
        test "$(cat {top}/mnt/file)" = one
        umount {top}/mnt
        mount -a
        mount -a
        grep -c '{top}/mnt fuse.unionfs' /proc/mounts | grep -x 1
        umount {top}/mnt

        mount -t fuse.unionfs source {top}/mnt -o bogus && exit 1 || test $? = 32
        mount -t fuse.unionfs source {top}/missing -o '{options(top)}' && exit 1 || test $? = 32
    """
    command = [*support.MOUNT_NAMESPACE, "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (top / "up/file").read_text() == "one\n"


def test_install(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bin", "sbin"):
        (top / name).mkdir()
    program = top / "bin/mount.unionfs"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (top / "sbin/mount.unionfs").write_text("another package's")
    environment = {**os.environ, "PATH": f"{top}/bin:{os.environ['PATH']}"}
    code = (
        "import sys, sysconfig; sysconfig.get_path = lambda *_: '/nowhere'\n"
        "from unionfs.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "install-mount-helper", "--dir", str(top / "sbin")]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=support.REPO)
        assert done.returncode == 0, done.stderr
        assert "left alone" in done.stderr
    assert os.readlink(top / "sbin/mount.fuse.unionfs") == str(program)
    assert (top / "sbin/mount.unionfs").read_text() == "another package's"

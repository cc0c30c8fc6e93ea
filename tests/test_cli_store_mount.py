"""Containers of a store, mounted by the command: used, committed, forked and rolled back meanwhile; as a user too."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support
from tests.storecli import HOSTILE, fails, lines, loaded, ok
from tests.test_mount_user import KnownUser
from unionfs.cli import kernel_command

pytestmark = pytest.mark.fuse

UNIONFS = [sys.executable, "-m", "unionfs.cli"]


def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: what forks a daemon must not do it in a test's."""
    environment = {**os.environ, "PYTHONPATH": str(support.REPO)}
    done = subprocess.run(
        [*UNIONFS, *map(str, words)], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert not check or (done.returncode, done.stderr) == (0, ""), done.stderr
    return done


@pytest.fixture
def top(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a store that has the image `base` and the container `web`, and a mountpoint."""
    monkeypatch.setenv("UNIONFS_STORE", str(scratch / "store"))
    (scratch / "tree/etc").mkdir(parents=True)
    (scratch / "tree/etc/motd").write_text("hello\n")
    (scratch / "mnt").mkdir()
    ok("import", scratch / "tree", "base")
    ok("create", "--name", "web", "base")
    yield scratch
    for point in support.mounts_below(scratch):
        subprocess.run(["umount", "--lazy", point], check=False)


@pytest.fixture
def mnt(top: Path) -> Path:
    """`web`, mounted."""
    run("mount", "web", top / "mnt")
    return top / "mnt"


def test_mount_of_a_container(top: Path) -> None:
    told = json.loads(run("mount", "web", top / "mnt", "--json").stdout)
    assert told["mountpoint"] == str(top / "mnt")
    assert loaded("ps")[0]["status"] == f"mounted at {top}/mnt (devfuse)"
    mounts = Path("/proc/mounts").read_text()
    assert f"\nweb {top}/mnt fuse.unionfs rw" in mounts
    (top / "mnt/new").write_text("new")
    fails("mount", "web", top / "mnt", said="a union is mounted here already")
    (top / "mnt2").mkdir()
    fails("mount", "web", top / "mnt2", said=f"container 'web' is mounted at {top}/mnt (devfuse)")
    fails("rm", "web", said="mounted at")
    run("umount", top / "mnt")
    assert loaded("ps")[0]["status"] == "created"
    assert lines("diff", "web") == ["A /new"]


def test_mount_of_an_image_and_of_a_point(top: Path, mnt: Path) -> None:
    (mnt / "new").write_text("new")
    ok("commit", "web", "web:1")
    (mnt / "newer").write_text("newer")
    (top / "view").mkdir()
    for ref, names in (("web:1", ["etc", "new"]), ("web:1~1", ["etc"]), ("base", ["etc"])):
        run("mount", ref, top / "view")
        assert sorted(os.listdir(top / "view")) == names
        with pytest.raises(OSError, match="Read-only"):
            (top / "view/x").touch()
        ok("gc")
        assert sorted(os.listdir(top / "view")) == names
        run("umount", top / "view")
    run("umount", mnt)
    run("mount", "web", mnt, "--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (mnt / "x").touch()
    run("umount", mnt)


def test_all_that_is_done_while_it_is_mounted(top: Path, mnt: Path) -> None:
    (mnt / "etc/motd").write_text("changed\n")
    assert lines("diff", "web") == ["C /etc/motd"]
    with open(mnt / "log", "a") as file:
        file.write("one\n")
        file.flush()
        ok("commit", "web", "web:1", "-m", "one")
        assert lines("diff", "web") == []
        file.write("two\n")
        file.flush()
        assert lines("diff", "web") == ["C /log"]
        ok("fork", "web", "--name", "try")
        ok("commit", "web", "web:2")
        ok("rollback", "web", "base")
        file.write("three\n")
    assert os.listdir(mnt) == ["etc"]
    assert (mnt / "etc/motd").read_text() == "hello\n"
    ok("rollback", "web", "web:1")
    assert (mnt / "log").read_text() == "one\n"
    (mnt / "log").write_text("again\n")
    assert lines("diff", "web") == ["C /log"]
    run("umount", mnt)
    assert lines("diff", "web") == ["C /log"]
    run("mount", "try", mnt)
    assert (mnt / "log").read_text() == "one\ntwo\n"
    run("umount", mnt)
    assert lines("diff", "web:1", "web:2") == ["C /log"]


def test_rm_by_force(top: Path, mnt: Path) -> None:
    ok("rm", "-f", "web")
    assert os.listdir(mnt) == []
    assert lines("ps", "-q") == []


def test_a_killed_daemon(top: Path) -> None:
    pid = json.loads(run("mount", "web", top / "mnt", "--json").stdout)["pid"]
    (top / "mnt/new").write_text("kept")
    os.kill(pid, signal.SIGKILL)
    subprocess.run(["tail", "--pid", str(pid), "-f", "/dev/null"], check=True, timeout=20)
    done = run("mount", "web", top / "mnt", check=False)
    assert done.returncode == 0
    assert "cleared a dead mount" in done.stderr
    assert (top / "mnt/new").read_text() == "kept"
    run("umount", top / "mnt")
    assert lines("diff", "web") == ["A /new"]


def test_cp_while_it_is_mounted(top: Path, mnt: Path) -> None:
    (top / "here/sub").mkdir(parents=True)
    (top / "here/file").write_text("file")
    (mnt / "absolute").symlink_to("/etc")
    (mnt / "up").symlink_to("../../../../etc")
    assert not (mnt / "etc/file").exists()  # so that the kernel knows that it is not there
    ok("cp", top / "here/file", "web:/absolute")
    assert (mnt / "etc/file").read_text() == "file"
    ok("cp", f"{top}/here/.", "web:/up/")
    assert sorted(os.listdir(mnt / "etc")) == ["file", "motd", "sub"]
    ok("cp", top / "here", "web:/etc")
    assert (mnt / "etc/here/file").read_text() == "file"
    (mnt / "etc/link").symlink_to("motd")
    ok("cp", top / "here/file", "web:/etc/link")
    assert not (mnt / "etc/link").is_symlink()
    assert (mnt / "etc/motd").read_text() == "hello\n"
    fails("cp", f"{top}/here", "web:/etc/motd", said="a directory can't be copied over a file")
    fails("cp", top / "here/file", "web:/gone/x", said="No such file")
    (mnt / "loop").symlink_to("loop")
    fails("cp", top / "here/file", "web:/loop/x", said="symbolic links")
    (mnt / "of the moment").write_text("now")
    ok("cp", "web:/of the moment", top / "out")
    assert (top / "out").read_text() == "now"


@pytest.mark.overlay
def test_what_the_kernel_has_open(top: Path) -> None:
    mnt = top / "mnt"
    run("mount", "web", mnt, "--engine", "kernel")
    (mnt / "new").write_text("new")
    for words in (["commit", "web", "web:1"], ["fork", "web"], ["rollback", "web", "base"]):
        fails(*words, said="container 'web' is mounted by the kernel's overlayfs: unmount it first")
    ok("cp", "web:/new", top / "out")
    assert (top / "out").read_text() == "new"
    ok("cp", top / "out", "web:/newer")
    assert (mnt / "newer").read_text() == "new"
    run("umount", mnt)
    assert lines("diff", "web") == ["A /new", "A /newer"]


def test_wrong_calls(top: Path) -> None:
    for words in (
        ["web", top / "mnt", "--lower", top],
        ["web", top / "mnt", "more"],
        ["web", top / "mnt", "--volatile"],
        ["--print", "web", top / "mnt", "--lower", top],
        [],
    ):
        fails("mount", *words, said="Error: ", status=2)
    fails("mount", "gone", top / "mnt", said="no image, container or layer 'gone'")
    fails("mount", "web", top / "gone", said="the mountpoint does not exist")
    fails("mount", top / "mnt", said="no layer given")


# The kernel's own command


def shown(directory: Path) -> dict[bytes, tuple[object, ...]]:
    """All that is below the directory."""
    found: dict[bytes, tuple[object, ...]] = {}
    for above, names, files in os.walk(os.fsencode(directory)):
        for name in [*names, *files]:
            path = os.path.join(above, name)
            st = os.lstat(path)
            content = Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(st.st_mode) else b""
            found[os.path.relpath(path, os.fsencode(directory))] = (
                st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, content,
            )  # fmt: skip
    return found


def histories(top: Path, commits: int) -> None:
    """`web` with so many commits, renames, deletions and metadata changes in them."""
    import unionfs

    with unionfs.Store(top / "store") as store, store.container("web") as web:
        web.fs.makedirs("/a/b/c")
        web.fs.write_text("/a/b/c/f", "f" * 5000)
        for i in range(commits):
            web.fs.write_text(f"/n{i}", str(i))
            if i % 3 == 1:
                web.fs.rename("/a" if web.fs.exists("/a") else "/z", "/z" if web.fs.exists("/a") else "/a")
            if i % 3 == 2:
                web.fs.unlink(f"/n{i - 2}")
                web.fs.chmod(f"/n{i - 1}", 0o600)
            web.commit(f"web:{i}")
        web.fs.write_bytes(b"/" + HOSTILE, b"x")
        web.fs.chmod("/etc/motd", 0o640)


@pytest.mark.overlay
@pytest.mark.parametrize(("commits", "place"), [(3, "store"), (45, "store"), (3, "a store, 'odd': \\one")])
def test_the_kernel_mounts_what_is_printed(
    top: Path, commits: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories(top, commits)
    if place != "store":
        os.rename(top / "store", top / place)
        monkeypatch.setenv("UNIONFS_STORE", str(top / place))
    ours, theirs = top / "mnt", top / "the kernel's"
    theirs.mkdir()
    for ref in ("web", f"web:{commits - 1}", "base"):
        run("mount", ref, ours)
        expected = shown(ours)
        run("umount", ours)
        subprocess.run(["sh", "-euc", ok("mount", "--print", ref, theirs)], check=True)
        try:
            assert shown(theirs) == expected
            assert os.access(theirs, os.W_OK) is (ref == "web")
            if ref == "web":
                (theirs / "by the kernel").write_text("x")
        finally:
            subprocess.run(["umount", theirs], check=True)
    assert "A /by the kernel" in lines("diff", "web")


@pytest.mark.overlay
def test_more_layers_than_the_kernel_takes(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    histories(top, 2)
    monkeypatch.setattr(kernel_command, "_MOST_LAYERS", 3)
    fails("mount", "--print", "web", said="overlayfs takes 3 layers, and this has 4: squash it")


def test_what_is_printed_is_for_who_has_it_closed(top: Path, mnt: Path) -> None:
    fails("mount", "--print", "web", top / "mnt2", said="another union")
    assert ok("mount", "--print", "base").endswith(" /mnt\n")


# Without root


A_USERS = """
set -eu
unionfs() { "$PYTHON" -m unionfs.cli "$@"; }
mkdir -p tree/etc mnt
echo hello > tree/etc/motd
chmod 600 tree/etc/motd
unionfs import tree base > /dev/null
unionfs create --name web base > /dev/null
unionfs mount web mnt
echo changed > mnt/etc/motd
mv mnt/etc mnt/settings
unionfs diff web
unionfs commit -m "as a user" web web:1 > /dev/null
echo more > mnt/more
unionfs fork web --name try > /dev/null
unionfs rollback web base
cat mnt/etc/motd
unionfs umount mnt
unionfs diff try
unionfs squash web:1 web:small > /dev/null
unionfs diff web:1 web:small
unionfs cp try:/settings/motd out
cat out
unionfs fsck
unionfs rm web try
unionfs rmi web:1
unionfs gc
"""


def test_all_of_it_as_a_user() -> None:
    with KnownUser() as user:
        python = {"PYTHON": sys.executable, "UNIONFS_STORE": "", "XDG_DATA_HOME": ""}
        done = user.run(["sh", "-c", A_USERS], fuse=True, timeout=100, env=python)
        printed = done.stdout.splitlines()
        assert printed[:5] == ["D /etc", "A /settings", "A /settings/motd", "hello", "A /more"]
        assert printed[5:9] == ["changed", "web", "try", "Untagged: web:1"]
        assert printed[-1].startswith("freed ")
        assert done.stderr == ""
        assert (user.scratch / ".local/share/unionfs/metadata.db").exists()

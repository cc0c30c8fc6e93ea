"""`unionfs mount` and `unionfs umount` as a person calls them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests import support

pytestmark = pytest.mark.fuse

UNIONFS = [sys.executable, "-m", "unionfs.cli"]


def run(
    *args: object, env: Mapping[str, str] | None = None, cwd: Path = support.REPO
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(support.REPO), **(env or {})}
    command = [*UNIONFS, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=cwd)


def ok(*args: object) -> str:
    done = run(*args)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def fails_with(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("unionfs: ")
    for word in words:
        assert word in done.stderr
    assert done.stdout == ""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def line_of(mountpoint: Path) -> str:
    """What /proc/mounts says of it."""
    return next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {mountpoint} " in line)


def failure_of_listing(directory: Path) -> int | None:
    try:
        os.listdir(directory)
    except OSError as error:
        return error.errno
    return None


def until_gone(pid: int) -> None:
    until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def top(scratch: Path) -> Path:
    """A directory with lowers `a`, `b` and `c`, `up`, `work` and the mountpoint `mnt`."""
    for name in ("a", "b", "c", "up", "work", "mnt"):
        (scratch / name).mkdir()
    for name in ("a", "b", "c"):
        (scratch / name / f"in-{name}").write_text(name)
    return scratch


@pytest.fixture
def words(top: Path) -> list[object]:
    """The arguments of a mount of all layers at `mnt`."""
    lowers = [word for name in ("a", "b", "c") for word in ("--lower", top / name)]
    return ["mount", top / "mnt", *lowers, "--upper", top / "up", "--work", top / "work"]


def test_mount_and_umount(top: Path, words: list[object]) -> None:
    assert ok(*words) == ""
    assert set(os.listdir(top / "mnt")) == {"in-a", "in-b", "in-c"}
    (top / "mnt/new").write_text("new")
    assert line_of(top / "mnt").startswith(f"{top}/up {top}/mnt fuse.unionfs rw")
    assert str(top / "up") in subprocess.run(["df", top / "mnt"], capture_output=True, text=True, check=True).stdout
    assert ok("umount", top / "mnt") == ""
    assert os.listdir(top / "mnt") == []
    assert (top / "up/new").read_text() == "new"


def test_json(top: Path, words: list[object]) -> None:
    told = json.loads(ok(*words, "--json"))
    assert told["mountpoint"] == str(top / "mnt")
    assert told["engine"] == "devfuse"
    assert alive(told["pid"])
    assert json.loads(ok("umount", top / "mnt", "--json")) == told
    assert not alive(told["pid"])


def test_the_layers_can_be_mounted_again_at_once(top: Path, words: list[object]) -> None:
    for turn in range(3):
        ok(*words)
        (top / f"mnt/turn-{turn}").write_text(str(turn))
        ok("umount", top / "mnt")
        ok(*words)
        assert (top / f"mnt/turn-{turn}").read_text() == str(turn)
        subprocess.run(["umount", top / "mnt"] if os.geteuid() == 0 else ["fusermount", "-u", top / "mnt"], check=True)


def test_read_only(top: Path, words: list[object]) -> None:
    for arguments in (["mount", top / "mnt", "-l", top / "a", "-l", top / "b"], [*words, "--read-only"]):
        ok(*arguments)
        with pytest.raises(OSError, match="Read-only"):
            (top / "mnt/x").touch()
        ok("umount", top / "mnt")


def test_options_in_overlayfs_words(top: Path) -> None:
    options = f"lowerdir={top}/a:{top}/b,upperdir={top}/up,workdir={top}/work,noexec,fsname=hello"
    ok("mount", top / "mnt", "-o", options, "--lower", top / "c")
    assert set(os.listdir(top / "mnt")) == {"in-a", "in-b", "in-c"}
    assert line_of(top / "mnt").startswith("hello ")
    assert "noexec" in line_of(top / "mnt")
    ok("umount", top / "mnt")


def test_a_lower_that_holds_the_mountpoint(top: Path) -> None:
    ok("mount", top / "mnt", "--lower", top, "--upper", top / "up", "--work", top / "work")
    assert set(os.listdir(top / "mnt")) == {"a", "b", "c"}
    (top / "mnt/a/in-a").write_text("changed")
    ok("umount", top / "mnt")
    assert (top / "a/in-a").read_text() == "a"
    assert (top / "up/a/in-a").read_text() == "changed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_foreground(top: Path, words: list[object], number: int) -> None:
    with subprocess.Popen([*UNIONFS, *map(str, words), "--foreground", "--json"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["pid"] == process.pid
        (top / "mnt/new").touch()
        process.send_signal(number)
        assert process.wait(20) == 0
    assert os.listdir(top / "mnt") == []
    assert (top / "up/new").exists()


def test_sigterm_to_the_daemon_unmounts(top: Path, words: list[object]) -> None:
    pid = json.loads(ok(*words, "--json"))["pid"]
    (top / "mnt/new").touch()
    os.kill(pid, signal.SIGTERM)
    until_gone(pid)
    assert os.listdir(top / "mnt") == []
    ok(*words)
    ok("umount", top / "mnt")


def test_sigterm_to_a_busy_daemon(top: Path, words: list[object]) -> None:
    pid = json.loads(ok(*words, "--json", "--log", top / "log"))["pid"]
    with open(top / "mnt/in-a", "r+b", buffering=0) as file:
        os.kill(pid, signal.SIGTERM)
        until(lambda: os.listdir(top / "mnt") == [])
        assert file.read() == b"a"
        file.write(b"b")
        assert alive(pid)
    until_gone(pid)
    assert (top / "up/in-a").read_text() == "ab"
    assert f"({os.getpid()})" in (top / "log").read_text()


def test_a_killed_daemon(top: Path, words: list[object]) -> None:
    pid = json.loads(ok(*words, "--json"))["pid"]
    (top / "mnt/new").write_text("kept")
    os.kill(pid, signal.SIGKILL)
    until(lambda: failure_of_listing(top / "mnt") == errno.ENOTCONN)
    done = run(*words, "--json")
    assert done.returncode == 0
    assert done.stderr == f"unionfs: {top}/mnt: cleared a dead mount: its daemon had been killed\n"
    assert (top / "mnt/new").read_text() == "kept"
    pid = json.loads(done.stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    until_gone(pid)
    ok("umount", top / "mnt")
    assert os.listdir(top / "mnt") == []


def test_a_daemon_that_hangs(top: Path, words: list[object]) -> None:
    pid = json.loads(ok(*words, "--json"))["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        fails_with(run(*words), "a union is mounted here already")
    finally:
        os.kill(pid, signal.SIGCONT)
    ok("umount", top / "mnt")


def test_an_upper_is_mounted_once(top: Path, words: list[object]) -> None:
    pid = json.loads(ok(*words, "--json"))["pid"]
    (top / "mnt2").mkdir()
    start = time.monotonic()
    fails_with(run("mount", top / "mnt2", "-l", top / "a", "-u", top / "up"), f"{top}/mnt", f"pid {pid}")
    assert time.monotonic() - start < 4
    fails_with(run(*words), "a union is mounted here already")
    ok("mount", top / "mnt2", "-l", top / "a")
    ok("umount", top / "mnt2")
    ok("umount", top / "mnt")


def test_umount_of_a_busy_mount(top: Path, words: list[object]) -> None:
    pid = json.loads(ok(*words, "--json"))["pid"]
    with open(top / "mnt/in-b") as file:
        fails_with(run("umount", top / "mnt"), "in use by", f"({os.getpid()})")
        ok("umount", "--lazy", top / "mnt")
        assert file.read() == "b"
    until_gone(pid)
    ok(*words)
    assert run("umount", ".", cwd=top / "mnt").returncode == 0


@pytest.mark.root
def test_umount_of_what_another_namespace_shows(top: Path, words: list[object]) -> None:
    support.with_mounts_of_its_own(top)
    for use in ("", "cd mnt;"):
        pid = json.loads(ok(*words, "--json"))["pid"]
        script = f"mount --make-private {top}; {use} echo; exec sleep 60"
        other = [*support.MOUNT_NAMESPACE, "sh", "-c", script]
        with subprocess.Popen(other, stdout=subprocess.PIPE, cwd=top) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if use:
                words_said = ("another mount namespace still shows it", f"in use by sleep ({process.pid})")
                fails_with(run("umount", top / "mnt"), *words_said)
                assert alive(pid)
            else:
                ok("umount", top / "mnt")
                assert not alive(pid)
            process.kill()
        until_gone(pid)


def test_umount_of_what_is_no_union(top: Path) -> None:
    fails_with(run("umount", top / "mnt"), "no union is mounted here")
    fails_with(run("umount", top / "missing"), "no union is mounted here")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("missing --lower a", "mountpoint does not exist"),
        ("a/in-a --lower b", "not a directory"),
        ("mnt --lower missing", "missing: "),
        ("mnt --lower a --lower b/in-b", "b/in-b: "),
        ("mnt --lower a --lower a", "twice"),
        ("mnt --lower a --upper a", "the same directory"),
        ("mnt --lower a --work work", "work"),
        ("mnt", "no layer given"),
        ("mnt --lower mnt/inside", "is inside the mountpoint"),
        ("up/inside --lower a --upper up --work work", "is inside the layer"),
        ("mnt --lower a -o bogus", "bogus: unknown mount option"),
        ("mnt --lower a -o attr_timeout=soon", "attr_timeout=soon: "),
        ("mnt --lower a -o engine=none", "no such engine"),
    ],
)
def test_one_clear_line(top: Path, arguments: str, words: str) -> None:
    for name in ("mnt", "up"):
        (top / name / "inside").mkdir()
    fails_with(run("mount", *arguments.split(), cwd=top), words)
    assert support.mounts_below(top) == []


def test_missing_libfuse(top: Path, words: list[object]) -> None:
    nowhere = {"FUSE_LIBRARY_PATH": "/nowhere/libfuse.so.2"}
    fails_with(run(*words, "--engine", "fusepy", env=nowhere), "apt install libfuse2")


@pytest.mark.root
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("mkdir dev && cp -a /dev/null /dev/urandom dev && mount --bind dev /dev", "/dev/fuse is missing"),
        ("mount --bind /dev/null /dev/fuse", "/dev/fuse is no FUSE device"),
    ],
)
def test_without_dev_fuse(top: Path, change: str, words: str) -> None:
    script = f"{change} && PYTHONPATH={support.REPO} exec {sys.executable} -m unionfs.cli mount mnt --lower a"
    done = subprocess.run(
        [*support.MOUNT_NAMESPACE, "sh", "-c", script], capture_output=True, text=True, cwd=top, timeout=60
    )
    fails_with(done, words)


def test_help(top: Path) -> None:
    for command in ([], ["mount"], ["umount"]):
        assert "Examples:" in ok(*command, "--help")
    assert run("no-such-command").returncode == 2
    for shell in ("bash", "zsh", "fish"):
        assert "_UNIONFS_COMPLETE" in ok("completion", shell)


def test_help_imports_no_engine() -> None:
    code = (
        "import sys\n"
        "from unionfs.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('fuse', 'rich', 'unionfs.mount', 'unionfs.run') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=support.REPO, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

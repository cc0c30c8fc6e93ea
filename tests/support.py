"""What tests lean on: probes of the machine, and a second, unprivileged user."""

from __future__ import annotations

import ctypes.util
import functools
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from unionfs.errors import MountError
from unionfs.mount.engine import engine_names, get_engine

REPO = Path(__file__).resolve().parent.parent

UNPRIVILEGED = 12345
"""A uid and gid that own nothing on the machine."""

MOUNT_NAMESPACE = ["unshare", "--mount", "--propagation", "slave"]
"""Before a command: a mount namespace of its own. What is unmounted outside goes in there too: in a private one, the
mounts of every other test that runs meanwhile would be served on."""

USER_NAMESPACE = [*MOUNT_NAMESPACE, "--user", "--map-root-user"]
"""Before a command: the same, as root of a user namespace."""


def lacks(what: str) -> NoReturn:
    """Skip the running test because the machine lacks `what`; a failure under UNIONFS_REQUIRE_ALL (conftest.py)."""
    pytest.skip(f"lacks {what}")


# Probes: each returns what is lacking, or "".


@functools.cache
def lacking_root() -> str:
    if os.geteuid() != 0:
        return "root"
    if _fails("unshare", "--mount", "true"):
        return "the capability to mount (CAP_SYS_ADMIN)"
    return ""


@functools.cache
def lacking_fuse() -> str:
    if not os.path.exists("/dev/fuse"):
        return "/dev/fuse"
    if os.geteuid() != 0 and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "permission on /dev/fuse"
    if ctypes.util.find_library("fuse") is None:
        return "libfuse2"
    if os.geteuid() == 0 and lacking_root():
        return lacking_root()
    return lacking_programs("fusermount")


@functools.cache
def lacking_userns() -> str:
    with AsUser() as user:
        done = user.run(["unshare", "--user", "--map-root-user", "--mount", "true"], check=False)
    return f"user namespaces ({done.stderr.strip()})" if done.returncode else ""


@functools.cache
def lacking_overlay() -> str:
    if lacking_root():
        return lacking_root()
    with tempfile.TemporaryDirectory(dir=scratch_base()) as top:
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{top}/{name}")
        layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
        if _fails("unshare", "--mount", "mount", "-t", "overlay", "-o", layers, "overlay", f"{top}/merged"):
            return f"the kernel's overlayfs on {scratch_base()}"
    return ""


@functools.cache
def lacking_loop() -> str:
    if lacking_root():
        return lacking_root()
    return "a loop device" if _fails("losetup", "--find") else ""


@functools.cache
def lacking_network() -> str:
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", directory, "attrs"]
        return "a package index on the network" if _fails(*pip) else ""


def lacking_programs(*programs: str) -> str:
    return ", ".join(program for program in programs if shutil.which(program) is None)


@functools.cache
def best_engine() -> str:
    """The first engine that this machine can use; the first there is when it can use none, whose tests then say why."""
    for name in engine_names():
        with suppress(MountError):
            get_engine(name)
            return name
    return engine_names()[0]


def _fails(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode != 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return True


# Scratch directories


@functools.cache
def scratch_base() -> Path:
    """A directory on a file system that an upper layer may live on.

    It takes the overlay xattrs of this user's namespace and, from root, device files. The environment's
    UNIONFS_SCRATCH comes first. The test is skipped when no candidate will do.
    """
    candidates = [os.environ.get("UNIONFS_SCRATCH", ""), tempfile.gettempdir(), "/var/tmp", str(REPO), "/dev/shm"]
    for candidate in filter(os.path.isdir, candidates):
        with suppress(OSError):
            _take_marks(candidate)
            return Path(candidate)
    lacks("a file system with overlay xattrs and whiteouts for scratch directories (set UNIONFS_SCRATCH)")


def _take_marks(directory: str) -> None:
    """Raise OSError unless `directory` takes what overlayfs writes into an upper layer."""
    with tempfile.TemporaryDirectory(dir=directory) as probe:
        os.setxattr(probe, "user.unionfs.probe", b"y")
        if os.geteuid() == 0:
            os.setxattr(probe, "trusted.unionfs.probe", b"y")
            os.mknod(f"{probe}/device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod(f"{probe}/whiteout", stat.S_IFCHR | 0o600, os.makedev(0, 0))


def mounts_below(directory: Path) -> list[str]:
    """The mount points at or below `directory`, the innermost first."""
    points = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = line.split(" ")[4]
            for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                point = point.replace(escaped, plain)
            if point == str(directory) or point.startswith(f"{directory}/"):
                points.append(point)
    return points[::-1]


def with_mounts_of_its_own(directory: Path) -> None:
    """Make `directory` a mount, so that a namespace may keep what is mounted below and nothing else.

    In such a namespace, `mount --make-private DIRECTORY` before it is unmounted outside.
    """
    # A bind mount is of its source's peer group: what is mounted in one would show in the other, below it.
    for words in (["--bind", directory], ["--make-private"], ["--make-shared"]):
        subprocess.run(["mount", *words, directory], check=True)


def remove_scratch(directory: Path) -> None:
    """Remove `directory` and all below it, whatever a test left there: mounts, closed directories, very deep trees."""
    for point in mounts_below(directory):
        if _fails("umount", "--lazy", point):
            _fails("fusermount", "-u", "-z", point)
    if mounts_below(directory):
        raise RuntimeError(f"still mounted: {mounts_below(directory)}")
    remove = ["rm", "-rf", "--one-file-system", str(directory)]
    if _fails(*remove):
        _fails("chmod", "-R", "u+rwX", str(directory))
        subprocess.run(remove, check=True)


def make_scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="unionfs-", dir=scratch_base()))


# The second user


class AsUser:
    """Runs programs as an unprivileged user; with a scratch directory that the user owns.

    As root, each program runs as uid and gid `UNPRIVILEGED`, in mount and process namespaces of its own: the mounts
    it makes are gone, and the processes it leaves are killed, when it ends. Directories that are closed to others on
    the way to this Python, this repository and the scratch directory are opened in that mount namespace alone.
    Without root, it simply runs as who we are.

        with AsUser() as user:
            done = user.python("import os; print(os.getuid())")

    A program that a signal ended has the status 128 + signal.
    """

    def __init__(self) -> None:
        self.scratch = make_scratch()
        self.uid = UNPRIVILEGED if os.geteuid() == 0 else os.getuid()
        self.gid = UNPRIVILEGED if os.geteuid() == 0 else os.getgid()
        os.chown(self.scratch, self.uid, self.gid)

    def __enter__(self) -> AsUser:
        return self

    def __exit__(self, *_: object) -> None:
        remove_scratch(self.scratch)

    def python(
        self,
        code: str,
        *args: str,
        fuse: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run `code` with this Python; `args` are its `sys.argv[1:]`. `unionfs` and `tests` can be imported."""
        return self.run([sys.executable, "-c", code, *args], fuse=fuse, env=env, timeout=timeout, check=check)

    def run(
        self,
        command: Sequence[str],
        *,
        fuse: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` in the scratch directory.

        `fuse` lets the user open /dev/fuse, also where that is root's alone. `env` is added to a copy of the
        environment whose HOME and TMPDIR are the scratch directory. With `check`, a status other than 0 fails the test.
        After `timeout` seconds everything the command started is killed, and subprocess.TimeoutExpired raised.
        """
        if os.geteuid() == 0:
            if lacking_root():
                lacks(lacking_root())
            command = [*MOUNT_NAMESPACE, "--pid", "--fork", "--kill-child", "--mount-proc",
                       "sh", "-euc", self._script(command, fuse)]  # fmt: skip
        elif fuse and not os.access("/dev/fuse", os.R_OK | os.W_OK):
            lacks("permission on /dev/fuse")
        full = {**os.environ, "HOME": str(self.scratch), "TMPDIR": str(self.scratch), "PYTHONPATH": str(REPO)}
        process = subprocess.Popen(
            command,
            cwd=self.scratch,
            env={**full, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if check and process.returncode:
            pytest.fail(f"as uid {self.uid}: status {process.returncode}\n{out}\n{err}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def _script(self, command: Sequence[str], fuse: bool) -> str:
        """What sh does in the new namespaces. It stays process 1, since that one is deaf to signals."""
        # Other tests' mounts are no affair of ours; in a user namespace, whose mounts are locked to each other
        # (mount_namespaces(7)), they would outlive their unmounting outside.
        others = f"case $point in {shlex.quote(str(scratch_base()))}/*) umount --lazy $point || :;; esac"
        lines = [f"while read -r _ _ _ _ point _; do {others}; done </proc/self/mountinfo 2>/dev/null"]
        lines += _open_up(Path(sys.base_prefix), Path(sys.prefix), REPO, self.scratch)
        if fuse:
            lines += ["mount -t tmpfs -o mode=755 tmpfs /mnt", "mknod -m 666 /mnt/fuse c 10 229"]
            lines += ["mount --bind /mnt/fuse /dev/fuse", "umount --lazy /mnt"]
        lines.append(f"cd {shlex.quote(str(self.scratch))}")
        user = f"setpriv --reuid {self.uid} --regid {self.gid} --clear-groups --inh-caps=-all"
        lines.append(f"{user} {shlex.join(command)} && exit 0 || exit $?")
        return "\n".join(lines)


def _open_up(*needed: Path) -> Iterator[str]:
    """Shell lines that make `needed` reachable for others, in a private mount namespace.

    Over each directory that is closed to others lies a tmpfs that is open, with what is needed bound into it.
    """
    closed: dict[Path, set[str]] = {}
    for path in map(Path.resolve, needed):
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & stat.S_IXOTH:
                closed.setdefault(parent, set()).add(path.relative_to(parent).parts[0])
        if path.stat().st_mode & 0o005 != 0o005 and path.stat().st_uid == 0:
            closed.setdefault(path, set()).update(os.listdir(path))
    for directory in sorted(closed, key=lambda path: len(path.parts)):
        # The descriptor still leads to what the tmpfs hides.
        yield f"exec 9<{shlex.quote(str(directory))}"
        yield f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(directory))}"
        for name in sorted(closed[directory]):
            target = directory / name
            source, quoted = shlex.quote(f"/proc/self/fd/9/{name}"), shlex.quote(str(target))
            if target.is_symlink():
                yield f"ln -s {shlex.quote(os.readlink(target))} {quoted}"
            elif target.is_dir():
                yield f"mkdir {quoted} && mount -c --rbind {source} {quoted}"
            else:
                yield f"touch {quoted} && mount -c --bind {source} {quoted}"
        yield "exec 9<&-"


def run_checked(*command: object, env: dict[str, str] | None = None) -> str:
    """What a program says, stderr included; it has to succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": str(REPO), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout

"""Install what a make target needs: a virtual environment and, where they are missing, Debian packages.

Usage: setup.py [demo|test|check|bench]

Runs on a bare Python >= 3.11, before anything is installed. Prints one line for each thing it installs and why;
prints nothing when nothing is missing.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"

# What pip installs for each target: an extra of pyproject.toml, "" for the package alone.
EXTRA = {"demo": "", "test": "dev", "check": "dev", "bench": "bench"}

# Programs that a plain user's PATH leaves out, mkfs among them.
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])


@dataclass(frozen=True)
class Need:
    """Something of the system that a target uses.

    ``probe`` is a program's name, ``lib:NAME`` for a shared library, or an absolute path. ``packages`` are names for
    the same thing in different releases, the first that apt knows is taken. A target in ``essential`` can't do its
    work without it; the others do less, and say what they leave out.
    """

    probe: str
    packages: tuple[str, ...]
    why: str
    targets: frozenset[str]
    essential: frozenset[str] = frozenset()

    def present(self) -> bool:
        if self.probe.startswith("lib:"):
            return ctypes.util.find_library(self.probe.removeprefix("lib:")) is not None
        if self.probe.startswith("/"):
            return os.path.exists(self.probe)
        return shutil.which(self.probe, path=SYSTEM_PATH) is not None


def _need(probe: str, packages: str, why: str, targets: str, essential: str = "") -> Need:
    return Need(probe, tuple(packages.split("|")), why, frozenset(targets.split()), frozenset(essential.split()))


NEEDS = (
    _need("lib:fuse", "libfuse2|libfuse2t64", "FUSE mounts, through fusepy", "test bench"),
    # Not the package `fuse`: fuse3 replaces it, has a `fusermount` too, and the peers of the benchmark depend on it.
    _need("fusermount", "fuse3|fuse", "FUSE mounts by users who are not root", "demo test bench"),
    _need("newuidmap", "uidmap", "more than one uid in a user namespace", "demo test"),
    _need("mount", "mount", "mounts", "demo test bench"),
    _need("git", "git", "a real program on the mount", "test bench"),
    _need("sqlite3", "sqlite3", "a real program on the mount", "test"),
    _need("rsync", "rsync", "a real program on the mount", "test"),
    _need("gcc", "gcc", "a real program on the mount", "test bench"),
    _need("/usr/include/stdio.h", "libc6-dev", "headers for gcc", "test bench"),
    _need("tar", "tar", "a real program on the mount", "test bench"),
    _need("setfattr", "attr", "xattrs as others write them", "test bench"),
    _need("setfacl", "acl", "ACLs as others write them", "test"),
    _need("setcap", "libcap2-bin", "capabilities as others write them", "test"),
    _need("umoci", "umoci", "another reader of images", "test bench"),
    _need("skopeo", "skopeo", "another reader of images", "test"),
    _need("bsdtar", "libarchive-tools", "another reader of archives", "test"),
    _need("zstd", "zstd", "compressed archives", "test"),
    _need("buildah", "buildah", "a peer of the store's", "bench"),
    _need("busybox", "busybox-static", "a program for a root without libraries", "test"),
    _need("mkfs.ext4", "e2fsprogs", "a small file system to fill", "test bench"),
    _need("mkfs.btrfs", "btrfs-progs", "a file system with reflinks", "test bench"),
    _need("mkfs.xfs", "xfsprogs", "a file system with reflinks", "test bench"),
    _need("mmdebstrap", "mmdebstrap", "a Debian root for apt in a chroot", "test"),
    _need("fuse-overlayfs", "fuse-overlayfs", "a peer", "bench"),
    _need("unionfs", "unionfs-fuse", "a peer", "bench"),
    _need("mergerfs", "mergerfs", "a peer", "bench"),
    _need("fio", "fio", "the read and write workloads", "bench"),
    _need("umoci", "umoci", "a peer of the store", "bench"),
    _need("buildah", "buildah", "a peer of the store", "bench"),
    _need("xxhsum", "xxhash", "the hashing workload", "bench"),
    _need("strace", "strace", "system calls counted", "bench"),
)


def main(argv: list[str]) -> int:
    target = argv[1] if len(argv) == 2 else ""
    if target not in EXTRA:
        print("usage: setup.py [" + "|".join(EXTRA) + "]", file=sys.stderr)
        return 2
    with _locked():
        return system(target) or python(target)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Keep two makes in one clone from installing at once."""
    fd = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


# The system's packages


def system(target: str) -> int:
    """Install the Debian packages that `target` needs and the machine has not. Returns an exit status."""
    missing = [need for need in NEEDS if target in need.targets and not need.present()]
    if not VENV_PYTHON.exists() and not importlib.util.find_spec("ensurepip"):
        missing.append(_venv_need(target))
    if not missing:
        return 0
    apt = _apt()
    if apt is not None:
        _apt_install(apt, missing)
        still = [need for need in missing if not need.present()]
    else:
        still = missing
    if not still:
        return 0
    names = " ".join(need.packages[0] for need in still)
    fatal = [need for need in still if target in need.essential]
    if fatal:
        what = ", ".join(f"{need.packages[0]} ({need.why})" for need in fatal)
        print(f"setup: {target} can't go on without {what}; as root: apt-get install {names}", file=sys.stderr)
        return 1
    say(f"going on without {names}; what needs it is left out (as root: apt-get install {names})")
    return 0


def _venv_need(target: str) -> Need:
    """The package that holds `ensurepip` for this Python; Debian ships it apart."""
    minor = f"python3.{sys.version_info.minor}-venv"
    # The directory itself: a spec looked up once is remembered by this process.
    probe = os.path.join(os.path.dirname(os.__file__), "ensurepip", "__init__.py")
    return _need(probe, f"{minor}|python3-venv", "the virtual environment .venv", target, essential=target)


def _apt() -> list[str] | None:
    """The apt-get command that this user may run, or None."""
    apt = shutil.which("apt-get", path=SYSTEM_PATH)
    if apt is None:
        return None
    if os.geteuid() == 0:
        return [apt]
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n", "DEBIAN_FRONTEND=noninteractive", apt]
    return None


def _apt_install(apt: list[str], needs: list[Need]) -> None:
    """Install what apt can; what it can't stays missing, and the caller says so."""
    command = [*apt, "-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]
    chosen = {need: _candidate(need) for need in needs}
    updated = False
    if None in chosen.values() and not _lists_are_new():
        updated = _apt_update(command)
        chosen = {need: _candidate(need) for need in needs}
    packages = {name: need.why for need, name in chosen.items() if name}
    if not packages:
        return
    for name, why in packages.items():
        say(f"apt-get install {name}: {why}")
    install = [*command, "install", "-y", "--no-install-recommends", *packages]
    status, output = _quiet(install)
    if status and not updated and _apt_update(command):  # an old list names files that the mirror dropped
        status, output = _quiet(install)
    if status:
        print(output, file=sys.stderr)


def _lists_are_new() -> bool:
    """Whether apt-get update ran within a day; then what apt does not know, this release does not have."""
    lists = Path("/var/lib/apt/lists")
    try:
        age = time.time() - (lists / "partial").stat().st_mtime
    except FileNotFoundError:
        return False
    return age < 24 * 3600 and any(lists.glob("*_Packages*"))


def _apt_update(command: list[str]) -> bool:
    say("apt-get update: the package lists are missing or old")
    status, output = _quiet([*command, "update"])
    if status:
        print(output, file=sys.stderr)
    return status == 0


def _candidate(need: Need) -> str | None:
    """The first of the need's packages that apt could install now."""
    for name in need.packages:
        shown = subprocess.run(
            ["apt-cache", "policy", name],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        ).stdout
        if "Candidate:" in shown and "Candidate: (none)" not in shown:
            return name
    return None


def _quiet(command: list[str]) -> tuple[int, str]:
    """Run `command`; returns its status and what it printed."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": SYSTEM_PATH}
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    done = subprocess.run(
        command, env=env, stdin=null, stdout=pipe, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    return done.returncode, done.stdout


# The virtual environment


def python(target: str) -> int:
    """Create .venv and install the package with the target's extra into it. Returns an exit status."""
    extra = EXTRA[target]
    fresh = _fingerprint()
    if not _works():
        say(f".venv: made with {sys.executable} ({sys.version.split()[0]})")
        status, output = _quiet([sys.executable, "-m", "venv", "--clear", str(VENV)])
        if status:
            print(f"{output}\nsetup: could not make {VENV}", file=sys.stderr)
            return 1
    elif any(_read(_stamp(other)) == fresh for other in ({extra} if extra else set(EXTRA.values()))):
        return 0
    wanted = f"[{extra}]" if extra else ""
    say(f"pip install -e .{wanted} into .venv: new, or pyproject.toml changed")
    pip = [str(VENV_PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", f"{ROOT}{wanted}"]
    status, output = _quiet(pip)
    if status:
        print(f"{output}\nsetup: pip could not install {ROOT.name}{wanted}", file=sys.stderr)
        return 1
    _stamp(extra).write_text(fresh)
    return 0


def _works() -> bool:
    """Whether .venv is there, whole, and its Python still exists."""
    if not VENV_PYTHON.exists():
        return False
    return subprocess.run([VENV_PYTHON, "-c", "import pip"], capture_output=True, check=False).returncode == 0


def _stamp(extra: str) -> Path:
    return VENV / f".installed-{extra or 'base'}"


def _fingerprint() -> str:
    """What an installation depends on: pyproject.toml, and where the clone is, which an editable install records."""
    return hashlib.sha256(os.fsencode(ROOT) + b"\0" + (ROOT / "pyproject.toml").read_bytes()).hexdigest()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv))

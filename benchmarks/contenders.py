"""Who takes part: each contender, how it is opened on a stack of layers, and which version it is."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from benchmarks.scratch import Scratch, Unsupported, is_mounted, unmount
from benchmarks.views import View, multifs_view, os_view, unionfs_view

REPOSITORY = Path(__file__).resolve().parent.parent
MOUNT_SECONDS = 30.0


@dataclass(frozen=True)
class Stack:
    """Layers, topmost first, and the equal plain directory where a workload has one."""

    lowers: tuple[Path, ...]
    plain: Path | None = None


@dataclass(frozen=True)
class Place:
    """Fresh directories for one measurement.

    `farm` holds links ``0``, ``1`` … to the lowers: option strings stay short, which the kernel's ``mount(2)``
    (one page of options) asks for.
    """

    scratch: Scratch
    stack: Stack
    upper: Path
    work: Path
    mnt: Path
    farm: Path

    @property
    def names(self) -> list[str]:
        """The lowers as named in `farm`, topmost first."""
        return [str(i) for i in range(len(self.stack.lowers))]


@dataclass(frozen=True)
class Contender:
    """Somebody who opens a stack of layers as one tree.

    `missing` gives the reason why it cannot take part on this machine, or None. `opens` raises
    :exc:`Unsupported` or :exc:`OSError` when it cannot open this stack.
    """

    name: str
    opens: Callable[[Place], AbstractContextManager[View]]
    missing: Callable[[], str | None]
    version: Callable[[], str]
    ours: bool = False


# -- in process ------------------------------------------------------------------------------------------------


def _unionfs() -> ModuleType:
    module = importlib.import_module("unionfs")
    if not hasattr(module, "UnionFS"):
        raise ImportError("unionfs has no UnionFS")
    return module


def _unionfs_missing() -> str | None:
    try:
        _unionfs()
    except ImportError as error:
        return str(error)
    return None


def _unionfs_version() -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
    )
    version = getattr(_unionfs(), "__version__", "?")
    return f"{version} ({done.stdout.strip() or 'no git'})"


def in_process(name: str, **options: object) -> Contender:
    """Our ``UnionFS`` in this process, opened with `options`."""

    @contextlib.contextmanager
    def opens(place: Place) -> Iterator[View]:
        lowers = [str(path) for path in place.stack.lowers]
        fs = _unionfs().UnionFS(lower=lowers, upper=str(place.upper), work=str(place.work), **options)
        with fs:
            yield unionfs_view(fs, place.upper)

    return Contender(name, opens, _unionfs_missing, _unionfs_version, ours=True)


def _import_fs() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("fs.multifs")


def _multifs_missing() -> str | None:
    try:
        _import_fs()
    except ImportError as error:
        return f"{error} (pip install fs 'setuptools<81')"
    return None


def _multifs_version() -> str:
    return importlib.metadata.version("fs") + " (PyFilesystem2)"


@contextlib.contextmanager
def _open_multifs(place: Place) -> Iterator[View]:
    multi = _import_fs().MultiFS()
    osfs = importlib.import_module("fs.osfs")
    errors = importlib.import_module("fs.errors")
    multi.add_fs("upper", osfs.OSFS(str(place.upper)), write=True, priority=len(place.names))
    for i, path in enumerate(place.stack.lowers):
        multi.add_fs(str(i), osfs.OSFS(str(path)), priority=-i)
    with multi:
        try:
            yield multifs_view(multi, errors.ResourceNotFound)
        except errors.FSError as error:
            raise Unsupported(f"{type(error).__name__}: MultiFS changes only what its write layer holds") from error


@contextlib.contextmanager
def _open_plain(place: Place) -> Iterator[View]:
    if place.stack.plain is None:
        raise Unsupported("no plain counterpart")
    with os_view(place.stack.plain) as view:
        yield view


# -- mounted ---------------------------------------------------------------------------------------------------


def _needs_root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _overlay_missing() -> str | None:
    if shutil.which("modprobe") is not None:
        subprocess.run(["modprobe", "-q", "overlay"], check=False, capture_output=True)
    if not re.search(r"\boverlay$", Path("/proc/filesystems").read_text(), re.MULTILINE):
        return "this kernel has no overlayfs"
    return _needs_root()


def overlayfs(name: str, options: str) -> Contender:
    """The kernel's overlayfs mounted with `options` after the directories."""

    @contextlib.contextmanager
    def opens(place: Place) -> Iterator[View]:
        text = f"lowerdir={':'.join(place.names)},upperdir={place.upper},workdir={place.work}"
        text += f",{options}" if options else ""
        if len(text) > 4095:
            raise Unsupported("options longer than the page mount(2) takes")
        # fsconfig(2), which newer mount(8) prefers, takes 255 characters an option.
        done = subprocess.run(
            ["mount", "-t", "overlay", "-o", text, "overlay", str(place.mnt)],
            cwd=place.farm,
            env={**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            if len(place.names) > 500:
                raise Unsupported("EINVAL: overlayfs takes 500 lowers at most")
            raise Unsupported(done.stderr.strip().splitlines()[0])
        try:
            with os_view(place.mnt, place.upper) as view:
                yield view
        finally:
            unmount(place.mnt)

    def version() -> str:
        return f"{os.uname().release} ({options or 'no options'})"

    return Contender(name, opens, _overlay_missing, version)


def daemon(
    name: str,
    command: Callable[[Place], list[str]],
    missing: Callable[[], str | None],
    version: Callable[[], str],
    *,
    ours: bool = False,
) -> Contender:
    """A FUSE file system that `command` serves in the foreground."""

    @contextlib.contextmanager
    def opens(place: Place) -> Iterator[View]:
        log = place.farm.parent / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command(place),
                cwd=place.farm,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        place.scratch.daemons.add(process)
        try:
            _wait_until_mounted(place.mnt, process, log)
            with os_view(place.mnt, place.upper, process.pid) as view:
                yield view
        except (OSError, subprocess.CalledProcessError) as error:
            if process.poll() is not None:
                raise Unsupported(f"WRONG: its daemon died ({_last_words(process, log)})") from error
            raise
        finally:
            unmount(place.mnt)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            place.scratch.daemons.discard(process)

    return Contender(name, opens, missing, version, ours=ours)


def _last_words(process: subprocess.Popen[bytes], log: Path) -> str:
    words = log.read_text(errors="replace").strip().splitlines()
    return f"exit {process.returncode}: {words[-1] if words else 'no message'}"[:200]


def _wait_until_mounted(mnt: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + MOUNT_SECONDS
    while not is_mounted(mnt):
        if process.poll() is not None:
            raise Unsupported(_last_words(process, log))
        if time.monotonic() > deadline:
            raise Unsupported(f"not mounted after {MOUNT_SECONDS:.0f} s")
        time.sleep(0.005)
    os.statvfs(mnt)


def _program_missing(program: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        if shutil.which(program) is None:
            return f"{program} is not installed"
        return None if Path("/dev/fuse").exists() else "no /dev/fuse"

    return missing


def _program_version(program: str) -> Callable[[], str]:
    def version() -> str:
        done = subprocess.run([program, "--version"], capture_output=True, text=True)
        words = [line for line in (done.stdout + done.stderr).splitlines() if program in line]
        found = re.search(r"\d+(\.\d+)+", words[0] if words else "")
        return found[0] if found else "?"

    return version


def _peer(program: str, command: Callable[[Place], list[str]]) -> Contender:
    return daemon(program, command, _program_missing(program), _program_version(program))


def _fuse_overlayfs(place: Place) -> list[str]:
    options = f"lowerdir={':'.join(place.names)},upperdir={place.upper},workdir={place.work}"
    return ["fuse-overlayfs", "-f", "-o", options, str(place.mnt)]


def _unionfs_fuse(place: Place) -> list[str]:
    branches = ":".join([f"{place.upper}=RW", *(f"{path}=RO" for path in place.names)])
    return ["unionfs-fuse", "-f", "-o", "cow", branches, str(place.mnt)]


def _mergerfs(place: Place) -> list[str]:
    branches = ":".join([f"{place.upper}=RW", *(f"{path}=RO" for path in place.names)])
    return ["mergerfs", "-f", "-o", "category.create=ff,fsname=mergerfs", branches, str(place.mnt)]


@contextlib.contextmanager
def _open_mergerfs(place: Place) -> Iterator[View]:
    def refuse(_path: str) -> None:
        raise Unsupported("mergerfs has no copy-up: it writes into the lower file, read-only branch or not")

    peer = _peer("mergerfs", _mergerfs)
    with peer.opens(place) as view:
        yield replace(view, write_byte=refuse)


def our_mount(name: str, *extra: str) -> Contender:
    """``unionfs mount`` in the foreground, with `extra` arguments."""

    def command(place: Place) -> list[str]:
        lowers = [word for path in place.stack.lowers for word in ("--lower", str(path))]
        writable = ["--upper", str(place.upper), "--work", str(place.work)]
        head = [sys.executable, "-m", "unionfs.cli", "mount", str(place.mnt)]
        return [*head, *lowers, *writable, "--foreground", *extra]

    def missing() -> str | None:
        if importlib.util.find_spec("unionfs.cli") is None:
            return "unionfs.cli is not there"
        return _unionfs_missing() or (None if Path("/dev/fuse").exists() else "no /dev/fuse")

    return daemon(name, command, missing, _unionfs_version, ours=True)


UNIONFS = in_process("unionfs")
UNIONFS_VOLATILE = in_process("unionfs volatile", volatile=True)
PLAIN = Contender("plain directory", _open_plain, lambda: None, lambda: f"Python {sys.version.split()[0]}")
MULTIFS = Contender("MultiFS", _open_multifs, _multifs_missing, _multifs_version)
OVERLAYFS = overlayfs("kernel overlayfs", "redirect_dir=on,metacopy=on,index=off")
OVERLAYFS_DEFAULTS = overlayfs("kernel overlayfs, defaults", "")
OVERLAYFS_VOLATILE = overlayfs("kernel overlayfs, volatile", "redirect_dir=on,metacopy=on,index=off,volatile")
DEVFUSE = our_mount("unionfs devfuse", "--engine", "devfuse")
NO_PASSTHROUGH = our_mount("unionfs devfuse, no passthrough", "--engine", "devfuse", "-o", "nopassthrough")
KERNEL = our_mount("unionfs kernel", "--engine", "kernel")
FUSEPY = our_mount("unionfs fusepy", "--engine", "fusepy")
FUSE_OVERLAYFS = _peer("fuse-overlayfs", _fuse_overlayfs)
UNIONFS_FUSE = _peer("unionfs-fuse", _unionfs_fuse)
MERGERFS = replace(_peer("mergerfs", _mergerfs), opens=_open_mergerfs)

IN_PROCESS = (UNIONFS, PLAIN, MULTIFS)
# A new engine of ours is one more name here. `MOUNTED_DATA`: for what reads and writes files.
MOUNTED = (DEVFUSE, KERNEL, FUSEPY, OVERLAYFS, FUSE_OVERLAYFS, UNIONFS_FUSE, MERGERFS)
MOUNTED_DATA = (DEVFUSE, NO_PASSTHROUGH, *MOUNTED[1:])

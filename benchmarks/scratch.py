"""The scratch area: everything a run writes, mounts or starts, and its removal whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

PREFIX = "unionfs-bench-"


def default_base() -> Path:
    """Where scratch areas go: ``$UNIONFS_BENCH_DIR``, else ``/var/tmp``."""
    return Path(os.environ.get("UNIONFS_BENCH_DIR", "/var/tmp"))


class Unsupported(Exception):
    """A contender cannot do this workload; the message says why and is shown in the table."""


def mounts_below(path: Path) -> list[str]:
    """Mount points at or below `path`, deepest first (``/proc/self/mountinfo``)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split()[4])
        if Path(point).is_relative_to(path):
            found.append(point)
    return sorted(found, key=len, reverse=True)


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds `path`, as ``df`` names it."""
    done = subprocess.run(["df", "--output=fstype", str(path)], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def unmount(point: str | Path) -> None:
    """Unmount `point`; lazily when it stays busy for two seconds."""
    for _ in range(20):
        if subprocess.run(["umount", str(point)], capture_output=True).returncode == 0:
            return
        if not is_mounted(Path(point)):
            return
        time.sleep(0.1)
    subprocess.run(["umount", "-l", str(point)], capture_output=True)


def is_mounted(point: Path) -> bool:
    """Whether `point` is a mount point; a dead FUSE mount counts as one."""
    return str(point) in mounts_below(point)


def disk_used(path: Path) -> int:
    """Bytes allocated below `path`, as ``du`` counts them."""
    done = subprocess.run(["du", "-s", "--block-size=1", str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def remove_tree(path: Path) -> None:
    """Remove `path`, with ``rm`` because it is several times faster than ``shutil.rmtree``."""
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=False)


class Scratch:
    """A directory for one run; leaving the ``with`` unmounts, kills and removes all that is in it.

    What a killed run left behind is removed when the next one starts.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base
        self.daemons: set[subprocess.Popen[bytes]] = set()
        self._count = 0

    def __enter__(self) -> Scratch:
        self.base.mkdir(parents=True, exist_ok=True)
        for old in self.base.glob(PREFIX + "*"):
            owner = old.name.removeprefix(PREFIX).split("-")[0]
            if owner.isdigit() and not Path("/proc", owner).exists():
                self._clear(old)
        self.root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=self.base))
        self.root.chmod(0o755)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.kill_daemons()
            self._clear(self.root)
        finally:
            signal.signal(signal.SIGINT, previous)

    def _clear(self, path: Path) -> None:
        for point in mounts_below(path):
            unmount(point)
        remove_tree(path)

    def kill_daemons(self) -> None:
        """Kill the FUSE daemons of the measurement under way; its system calls then fail."""
        for daemon in list(self.daemons):
            with contextlib.suppress(ProcessLookupError):
                daemon.kill()

    def fresh(self, name: str, under: Path | None = None) -> Path:
        """A new empty directory under `under` (by default the scratch root)."""
        self._count += 1
        path = (under or self.root) / f"{name}-{self._count}"
        path.mkdir()
        return path

    @contextlib.contextmanager
    def temporary(self, name: str, under: Path | None = None) -> Iterator[Path]:
        """`fresh`, removed again on leaving, with whatever is still mounted in it."""
        path = self.fresh(name, under)
        try:
            yield path
        finally:
            self._clear(path)

    def mount_tmpfs(self, size: str) -> Path:
        """A tmpfs of `size` inside the scratch area."""
        point = self.fresh("tmpfs")
        run_mount(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point)])
        return point

    def mount_image(self, fstype: str, size: int) -> Path:
        """A fresh `fstype` file system of `size` bytes on a loop device inside the scratch area."""
        maker = f"mkfs.{fstype}"
        if shutil.which(maker) is None:
            raise Unsupported(f"{maker} is not installed")
        image = self.fresh("image") / fstype
        with image.open("wb") as file:
            file.truncate(size)
        run_mount([maker, "-q", str(image)])
        point = self.fresh(fstype)
        run_mount(["mount", "-o", "loop", str(image), str(point)])
        return point


def run_mount(command: list[str]) -> None:
    """Run a mount or mkfs command; :exc:`Unsupported` with its own words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Unsupported(f"{command[0]}: {lines[0] if lines else done.returncode}")


def drop_caches(what: int) -> bool:
    """Write `what` to ``/proc/sys/vm/drop_caches``: 2 drops dentries and inodes, 3 file data too.

    False when this process may not.
    """
    try:
        Path("/proc/sys/vm/drop_caches").write_text(str(what))
    except OSError:
        return False
    return True

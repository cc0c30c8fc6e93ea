"""A file system for the tests alone: ext4 with a journal, in memory where there is enough, gone when they end.

All scratch and temporary directories lie on it. What it gives:

- Speed: an fsync(2) costs no disk, and a journal spares ext4 the search among the inodes that were deleted lately,
  which makes a create on an ext4 without one, as test machines have, take milliseconds after many deletions.
- The same file system on every machine.
- Shared mounts (mount_namespaces(7)), as under systemd: an umount reaches the slave namespaces that other tests, or
  the other worker's, have at the moment, and no mount lives on there.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests import support

SIZE = 16 << 30
"""Bytes that the tests could fill."""

ENOUGH = 6 << 30
"""Bytes of free memory, and of room in /dev/shm, for the image to be there. The tests fill about 1.5 GiB at once."""

_PREFIX = "unionfs-tests-"


def make() -> Path | None:
    """Make it and mount it; `None` where that takes more than there is. What killed runs left is taken away."""
    if support.lacking_loop() or support.lacking_programs("mkfs.ext4"):
        return None
    base = Path(tempfile.gettempdir())
    for left in base.glob(f"{_PREFIX}*"):
        if not os.path.exists(f"/proc/{left.name.removeprefix(_PREFIX)}"):
            remove(left)
    point = base / f"{_PREFIX}{os.getpid()}"
    with tempfile.NamedTemporaryFile(prefix=_PREFIX, suffix=".img", dir=_room_for_the_image()) as image:
        image.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image.name], check=True)
        point.mkdir()
        # The loop device keeps the image, and lets it go with the mount.
        subprocess.run(["mount", "-o", "loop,discard", image.name, point], check=True)
    subprocess.run(["mount", "--make-shared", point], check=True)
    point.chmod(0o1777)
    return point


def remove(point: Path) -> None:
    """Unmount it, also where somebody still uses it, and all that is mounted below."""
    subprocess.run(["umount", "--lazy", "--recursive", point], capture_output=True, check=False)
    with suppress(FileNotFoundError):
        point.rmdir()


def _room_for_the_image() -> str:
    memory = "/dev/shm"
    with suppress(OSError, AttributeError):
        st = os.statvfs(memory)
        free = re.search(r"^MemAvailable: *(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
        assert free is not None
        if min(st.f_bavail * st.f_frsize, int(free[1]) << 10) >= ENOUGH:
            return memory
    return tempfile.gettempdir()

"""Taking a mount away: by ``umount2(2)`` where that is permitted, else by ``fusermount -u``."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time

from unionfs._sys.umount import MNT_DETACH, UMOUNT_NOFOLLOW, umount2
from unionfs.errors import MountError
from unionfs.mount import mountinfo

_BUSY_PATIENCE = 1.0  # seconds: the kernel lets go of a closed file a moment after close(2) has returned.


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount what is on top at this canonical path.

    Raises ``MountError``: ``EBUSY`` with the processes that use it, ``EINVAL`` where nothing is mounted, ``EPERM``.
    """
    deadline = time.monotonic() + _BUSY_PATIENCE
    while True:
        try:
            _unmount(mountpoint, lazy)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                text = "not mounted" if error.errno == errno.EINVAL else error.strerror
                raise MountError(error.errno, text, mountpoint) from None
        if time.monotonic() > deadline:
            entry = mountinfo.mount_at(mountpoint)
            users = ", ".join(mountinfo.users_of(entry.device)) if entry is not None else ""
            raise MountError(errno.EBUSY, f"in use by {users}" if users else "in use", mountpoint)
        time.sleep(0.02)


def _unmount(mountpoint: str, lazy: bool) -> None:
    try:
        umount2(os.fsencode(mountpoint), UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0))
        return
    except PermissionError:
        helper = shutil.which("fusermount3") or shutil.which("fusermount")
        if helper is None:
            raise
    done = subprocess.run(
        [helper, "-u", *(["-z"] if lazy else []), "--", mountpoint],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip()
        code = errno.EBUSY if os.strerror(errno.EBUSY) in said else errno.EPERM
        raise OSError(code, said.removeprefix("fusermount: ") or os.strerror(code), mountpoint)

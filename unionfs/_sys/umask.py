"""The umask of this process, read without changing it."""

from __future__ import annotations

import os


def umask() -> int:
    """The file mode creation mask (proc(5), ``/proc/self/status``; before Linux 4.7 or without /proc by umask(2))."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass  # No /proc: ask by setting it, which another thread might see for a moment.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

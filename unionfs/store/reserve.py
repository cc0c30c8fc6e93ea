"""Room that a store keeps for itself: on a full disk, what frees room has to write too.

SQLite notes a removal in its log before anything goes, and the log of a store that was closed has to be made anew. So a
file of some size lies in the store, is given up when there is no other room, and comes back when there is.
"""

from __future__ import annotations

import contextlib
import os

SIZE = 1 << 20
"""Bytes."""

_PLENTY = 8 * SIZE


class Reserve:
    """The reserve of the store at ``root``. Nothing here fails: without it, a full disk is just full."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._path = os.path.join(root, "reserve")

    def _free(self) -> int:
        st = os.statvfs(self._root)
        return st.f_frsize * st.f_bavail  # f_bfree counts what not even root may use (ext4's reserved clusters).

    def give(self) -> None:
        """Let others have it, if there is hardly any other room."""
        with contextlib.suppress(OSError):
            if self._free() < SIZE:
                os.unlink(self._path)

    def fill(self) -> None:
        """Keep it again, if there is plenty of room."""
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size < SIZE and self._free() >= _PLENTY:
                    os.posix_fallocate(fd, 0, SIZE)
            finally:
                os.close(fd)

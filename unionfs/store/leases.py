"""Leases: who reads layers that no container or image need hold keeps them from being collected.

A lease is a locked file and rows that name layers. The lock goes with the process, so a killed one holds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from unionfs.store.database import Database
from unionfs.store.places import Places, is_locked
from unionfs.store.steps import step


class Lease:
    """Keeps layers, and all that they stand on, until ``release``."""

    def __init__(self, places: Places, database: Database) -> None:
        self._database = database
        self._path = ""
        self.token = os.urandom(8).hex()
        path = os.path.join(places.leases, self.token)
        with places.publishing():
            step(f"lease {self.token}")
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._path = path

    def hold(self, layer: str) -> None:
        """Keep this layer too. To be called in the transaction that saw that it is there."""
        self._database.execute("INSERT INTO leases (token, layer) VALUES (?, ?)", (self.token, layer))

    def release(self) -> None:
        """Let go. Releasing twice does nothing."""
        path, self._path = self._path, ""
        if not path:
            return
        try:
            with self._database.transaction("release"):
                self._database.execute("DELETE FROM leases WHERE token = ?", (self.token,))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.close(self._fd)


def drop_dead(places: Places, database: Database) -> None:
    """Forget leases of processes that ended. In a transaction."""
    for (token,) in database.rows("SELECT DISTINCT token FROM leases"):
        if not is_locked(os.path.join(places.leases, token)):
            database.execute("DELETE FROM leases WHERE token = ?", (token,))

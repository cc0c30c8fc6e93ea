"""One store, open: its directories, its metadata, its blobs, and who clears up."""

from __future__ import annotations

import contextlib
import errno
import os

from unionfs.store.blobs import Blobs
from unionfs.store.collect import Collector
from unionfs.store.database import Database
from unionfs.store.places import Places
from unionfs.store.records import Records
from unionfs.store.reserve import Reserve


class Keep:
    """What all that works on a store needs. Raises ``StoreError``.

    ``as_is``: only look; nothing is made, and nothing that was left is cleared.
    """

    def __init__(self, path: str, *, as_is: bool = False) -> None:
        self.places = Places(path, make=not as_is)
        self.reserve = Reserve(self.places.root)
        try:
            self.database = self._open(as_is)
        except OSError as error:
            if error.errno != errno.ENOSPC or as_is:
                raise
            self.reserve.give()
            self.database = self._open(as_is)
        try:
            self.records = Records(self.database)
            self.blobs = Blobs(self.places)
            self.collector = Collector(self.places, self.database, self.records, self.blobs, self.reserve)
            if not as_is:
                self.reserve.fill()
            if not as_is and (os.listdir(self.places.tmp) or os.listdir(self.places.trash)):
                # Not worth more than what the store is opened for: a collection tells why it can't.
                with contextlib.suppress(OSError):
                    self.collector.sweep()
        except BaseException:
            self.database.close()
            raise

    def _open(self, as_is: bool) -> Database:
        return Database(self.places.database, lambda: not as_is and self.places.is_empty())

    def close(self) -> None:
        self.database.close()

"""One store, open: its directories, its metadata, its blobs, and who clears up."""

from __future__ import annotations

import os

from unionfs.store.blobs import Blobs
from unionfs.store.collect import Collector
from unionfs.store.database import Database
from unionfs.store.places import Places
from unionfs.store.records import Records


class Keep:
    """What all that works on a store needs. Raises ``StoreError``."""

    def __init__(self, path: str) -> None:
        self.places = Places(path)
        self.database = Database(self.places.database)
        try:
            self.records = Records(self.database)
            self.blobs = Blobs(self.places)
            self.collector = Collector(self.places, self.database, self.records, self.blobs)
            if os.listdir(self.places.tmp) or os.listdir(self.places.trash):
                self.collector.sweep()
        except BaseException:
            self.database.close()
            raise

    def close(self) -> None:
        self.database.close()

"""Content-addressed bytes: a blob's name is its sha256, and it is checked when it is read."""

from __future__ import annotations

import hashlib
import os
import re

from unionfs.errors import StoreError
from unionfs.store.durable import flush_directory, put_file
from unionfs.store.places import Places

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_SIZE = 64 << 20
"""Bytes of the largest blob that is read into memory."""


class Blobs:
    """The blobs of a store."""

    def __init__(self, places: Places) -> None:
        self._places = places

    @staticmethod
    def is_digest(text: str) -> bool:
        """Whether this is a sha256 digest."""
        return _DIGEST.fullmatch(text) is not None

    def path(self, digest: str) -> str:
        """Where a blob is. ``StoreError`` for what is no sha256 digest."""
        if not self.is_digest(digest):
            raise StoreError(f"{digest!r} is no sha256 digest")
        return os.path.join(self._places.blobs, digest.removeprefix("sha256:"))

    def put(self, data: bytes) -> str:
        """Keep these bytes; their digest. To be called while ``Places.publishing``."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if os.path.exists(path):
            try:
                self.get(digest)
                flush_directory(self._places.blobs)  # Who made it may not have come to that yet.
                return digest
            except StoreError:
                pass  # A damaged one is replaced.
        put_file(path, data, self._places.tmp)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes, checked. ``StoreError`` if they are not there, or not what the digest says."""
        path = self.path(digest)
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_SIZE + 1)
        except OSError as error:
            raise StoreError(f"blob {digest} can't be read: {error.strerror}") from error
        if len(data) > MAX_SIZE or "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"blob {digest} is damaged: its bytes have another digest")
        return data

    def all(self) -> list[str]:
        """The digests of all blobs; files with other names are left out."""
        return [f"sha256:{name}" for name in os.listdir(self._places.blobs) if self.is_digest(f"sha256:{name}")]

    def size(self, digest: str) -> int:
        """Bytes of a blob; 0 if it is not there."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            return 0

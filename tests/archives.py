"""Archives of layers, for tests: made with our writer, read with our reader."""

from __future__ import annotations

import io
from collections.abc import Iterable

from unionfs.layer.whiteout import has_transit_name
from unionfs.oci.tar import Entry, Limits, TarWriter, read_layer


def packed(entries: Iterable[tuple[Entry, bytes]]) -> bytes:
    """The archive of `entries`, each with its data."""
    found = io.BytesIO()
    writer = TarWriter(found.write)
    for entry, data in entries:
        writer.add(entry, [data] if data else ())
    writer.finish()
    return found.getvalue()


def unpacked(data: bytes, limits: Limits | None = None) -> list[tuple[Entry, bytes | None]]:
    """The entries in an archive, each with its data if it is a file; the stream can't be sought."""
    stream = Pipe(data)
    found = []
    for entry, content in read_layer(stream, limits=limits or Limits()):
        found.append((entry, None if content is None else content.read()))
    assert not stream.read(1), "the reader has left something in the stream"
    return found


class Pipe(io.BytesIO):
    """Bytes in odd pieces, as a pipe gives them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._turn = 0

    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0, /) -> int:
        raise io.UnsupportedOperation("seek")

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")

    def read(self, size: int | None = -1, /) -> bytes:
        self._turn += 1
        most = (1000, 1, 7000)[self._turn % 3]
        return super().read(most if size is None or size < 0 else min(size, most))


def is_reserved(name: bytes) -> bool:
    return has_transit_name(name)

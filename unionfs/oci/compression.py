"""Compressed streams, told by their first bytes and read piece by piece.

Source: RFC 1952 (gzip, "multi-member"), bzip2's and xz's formats (.xz file format, "Stream Padding"), RFC 8878 (zstd).
"""

from __future__ import annotations

import bz2
import importlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import IO, Any, BinaryIO, Protocol, cast

from unionfs.errors import UnionError

_CHUNK = 1 << 18
_XZ_MEMORY = 1 << 28
"""Bytes that a decoder may use; ``xz -9`` needs a quarter. zstd's own limit is 128 MiB."""

_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    # A level, and then the first block or, of nothing, the end.
    **{b"BZh%d" % level + block: "bzip2" for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")},
    # A frame that says nothing may stand before the first.
    **{bytes([0x50 + n]) + b"\x2a\x4d\x18": "zstd" for n in range(16)},
}
_TAR_MAGIC = slice(257, 262), b"ustar"
"""The name of an archive's first entry may begin as anything; so this is looked at before."""


def decompressed(stream: IO[bytes]) -> BinaryIO:
    """The bytes of ``stream``, uncompressed if it begins as gzip, bzip2, xz or zstd does.

    ``read`` gives what is there, and fewer bytes than asked for before the end, too; it raises ``UnionError`` where
    the data are damaged or cut off. ``stream`` is read ahead, and never sought. ``UnionError`` for zstd where neither
    Python (from 3.14 on) nor the package ``zstandard`` can read it.
    """
    head = b""
    while len(head) < 512 and (more := stream.read(512 - len(head))):
        head += more
    whole = _Whole(head, stream)
    where, magic = _TAR_MAGIC
    if head[where] == magic:
        return cast(BinaryIO, whole)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        return cast(BinaryIO, whole)
    if kind == "zstd":
        return _zstd(whole)
    return cast(BinaryIO, _Members(whole, kind, _DECODERS[kind], _ERRORS))


class _Whole(io.RawIOBase):
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self.readall()
        if not self._head:
            return self._stream.read(size)
        found, self._head = self._head[:size], self._head[size:]
        return found

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


class _Decoder(Protocol):
    """One member of a compressed stream, as ``bz2.BZ2Decompressor`` has it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """One gzip member, as ``bz2.BZ2Decompressor`` has it."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
}
_ERRORS: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


class _Members(_Whole):
    """The uncompressed bytes of one member of a format after the other."""

    def __init__(
        self, stream: _Whole, kind: str, decoder: Callable[[], _Decoder], errors: tuple[type[Exception], ...]
    ) -> None:
        super().__init__(b"", cast(BinaryIO, stream))
        self._kind = kind
        self._new = decoder
        self._errors = errors
        self._decoder = decoder()
        self._over = False

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self.readall()
        while size and not self._over:
            data = b""
            if self._decoder.eof:
                data = self._next_member()
                if not data:
                    self._over = True
                    break
            elif self._decoder.needs_input:
                data = self._stream.read(_CHUNK)
                if not data:
                    raise UnionError(f"the {self._kind} stream is cut off")
            try:
                found = self._decoder.decompress(data, size)
            except self._errors as error:
                raise UnionError(f"damaged {self._kind} data: {error}") from None
            if found:
                return found
        return b""

    def _next_member(self) -> bytes:
        """The first bytes of the next member, for a decoder of its own; none at the end. Zeros may come between."""
        data = self._decoder.unused_data.lstrip(b"\0")
        while not data:
            more = self._stream.read(_CHUNK)
            if not more:
                return b""
            data = more.lstrip(b"\0")
        self._decoder = self._new()
        return data


def _zstd(stream: _Whole) -> BinaryIO:
    if sys.version_info >= (3, 14):
        own = importlib.import_module("compression.zstd")
        return cast(BinaryIO, _Members(stream, "zstd", own.ZstdDecompressor, (own.ZstdError, *_ERRORS)))
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        raise UnionError("a layer is compressed with zstd: install the package zstandard, or use Python 3.14") from None
    return cast(BinaryIO, _Zstandard(stream, zstandard))


class _Zstandard(_Whole):
    """The uncompressed bytes of zstd frames, by the package ``zstandard``, which gives none for a frame cut off."""

    def __init__(self, stream: _Whole, zstandard: Any) -> None:
        super().__init__(b"", zstandard.ZstdDecompressor().stream_reader(stream, _CHUNK, read_across_frames=True))
        self._error = zstandard.ZstdError

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self.readall()
        try:
            return self._stream.read(size)
        except self._error as error:
            raise UnionError(f"damaged zstd data: {error}") from None

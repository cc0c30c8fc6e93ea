"""A layer as a tar archive: written here, read by ``tarread``.

Source: POSIX pax(1), "ustar Interchange Format" and "pax Interchange Format"; tar(5) of libarchive; image-spec,
layer.md. What we write depends on the entries alone, to the byte, in every Python:

- An entry is one ustar header (with ``ustar\\0`` ``00``, empty user and group names) and its data. A path of more
  than 100 bytes is split at the first slash that makes both parts fit. Names are written as they are, in whatever
  encoding: every reader takes bytes there.
- What does not fit a header, and only that, goes into a pax header before it, in this order: ``hdrcharset``,
  ``path``, ``linkpath``, ``size``, ``uid``, ``gid``, ``mtime`` (only with a fraction, or out of range), and
  ``SCHILY.xattr.NAME`` sorted by name. Values of extended attributes are raw bytes; in their names ``=`` is ``%3D``
  and ``%`` is ``%25``, as GNU tar does. A long name that is no UTF-8 is raw too, after ``hdrcharset=BINARY``, which
  libarchive asks for; GNU tar and Go read it without.
- A directory's name ends in a slash; the root is ``./``. A hard link has the metadata of what it links to, and
  neither data nor extended attributes.
- A whiteout is an empty file with mode, owner and time 0. An opaque directory's marker comes right after it.
- At the end stand two blocks of zeros, and no padding to a record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from unionfs.errors import UnionError
from unionfs.layer.protocol import DT_BLK, DT_CHR, DT_DIR, DT_FIFO, DT_LNK, DT_REG, DT_WHT
from unionfs.layer.whiteout import TRANSIT_OPAQUE, has_transit_name, to_transit
from unionfs.oci.entry import Entry, refuse, shown
from unionfs.oci.tarread import Limits, read_layer

__all__ = ["Entry", "Limits", "TarWriter", "read_layer"]

_TYPES = {DT_LNK: b"2", DT_CHR: b"3", DT_BLK: b"4", DT_DIR: b"5", DT_FIFO: b"6"}
_FLUSH = 1 << 16
_DIRECT = 1 << 12
_MAX_ID = 0o7777777
_MAX_NUMBER = 0o77777777777
_ZEROS = bytes(1024)
_NO_DEVICE = b"0000000\x000000000\x00"
_PAX_NAME = b"././@PaxHeader"
_XATTR = b"SCHILY.xattr."
_FIXED_SUM = sum(b"        ustar00")


class TarWriter:
    """Writes entries as a layer's archive. Not for more than one thread at once.

        with open("layer.tar", "wb") as file:
            writer = TarWriter(file.write)
            writer.add(Entry(b"etc", DT_DIR, mode=0o755))
            writer.add(Entry(b"etc/hosts", DT_REG, mode=0o644, size=10), [b"127.0.0.1\\n"])
            writer.finish()

    ``write`` gets what may be kept: either bytes, or a chunk of ``data`` as it came.
    """

    def __init__(self, write: Callable[[bytes | memoryview], object]) -> None:
        self._write = write
        self._waiting: list[bytes] = []
        self._length = 0

    def add(self, entry: Entry, data: Iterable[bytes | memoryview] = ()) -> None:
        """Write ``entry`` and, of a regular file, ``data``, which has to be of the size that the entry says.

        Chunks of 4 KiB and more are passed on as they are, uncopied; a smaller one may be reused afterwards. Holes
        are data. ``UnionError`` for what an archive of a layer can't hold: a socket, a device 0:0, a name that is
        reserved for whiteouts; and where ``data`` is shorter or longer than ``entry.size``: the archive is of no use
        then.
        """
        path, kind = entry.path, entry.kind
        if has_transit_name(path):
            raise refuse(path, "a name that is reserved for whiteouts can't be in a layer")
        if kind == DT_WHT:
            self._put(_marker(path) if entry.opaque else _whiteout(path))
            return
        link, size, device, xattrs = b"", 0, _NO_DEVICE, entry.xattrs
        if entry.hardlink is not None:
            code, link, xattrs = b"1", entry.hardlink, ()
        elif kind == DT_REG:
            code, size = b"0", entry.size
        elif kind in _TYPES:
            code = _TYPES[kind]
        else:
            raise refuse(path, "a socket can't be in a layer")
        name = path
        if code == b"5":
            name = path + b"/" if path else b"./"
        elif not path:
            raise refuse(path, "the root is a directory")
        elif code == b"2":
            link = entry.target
        elif code in b"34":
            if kind == DT_CHR and entry.rdev == 0:
                raise refuse(path, "a character device 0:0 is a whiteout, which has another form in an archive")
            device = _device(path, entry.rdev)
        self._put(_header(name, code, entry.mode, entry.uid, entry.gid, entry.mtime_ns, size, link, device, xattrs))
        if code == b"0":
            self._add_data(entry, data)
        elif code == b"5" and entry.opaque:
            self._put(_marker(path))

    def finish(self) -> None:
        """Write the end of the archive, and all that still waits to be written."""
        self._put(_ZEROS)
        self._flush()

    def _put(self, block: bytes) -> None:
        self._waiting.append(block)
        self._length += len(block)
        if self._length >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._write(b"".join(self._waiting))
            self._waiting.clear()
            self._length = 0

    def _add_data(self, entry: Entry, data: Iterable[bytes | memoryview]) -> None:
        left = entry.size
        chunk: bytes | memoryview
        for chunk in data:
            length = chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)
            left -= length
            if left < 0:
                raise refuse(entry.path, f"more data than its size, {entry.size} bytes")
            if length < _DIRECT:
                self._put(bytes(chunk))
            else:
                self._flush()
                self._write(chunk)
        if left > 0:
            raise refuse(entry.path, f"{entry.size - left} bytes of data, but its size is {entry.size}")
        if entry.size & 511:
            self._put(_ZEROS[: -entry.size & 511])


def _whiteout(path: bytes) -> bytes:
    """The whiteout of ``path``."""
    head, slash, name = path.rpartition(b"/")
    if not name:
        raise refuse(path, "the root has no whiteout")
    return _header(head + slash + to_transit(name), b"0")


def _marker(path: bytes) -> bytes:
    """What makes the directory ``path`` opaque."""
    return _header(path + b"/" + TRANSIT_OPAQUE if path else TRANSIT_OPAQUE, b"0")


def _header(
    path: bytes,
    code: bytes,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    size: int = 0,
    link: bytes = b"",
    device: bytes = _NO_DEVICE,
    xattrs: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """The header of an entry, with a pax header before it where one is needed."""
    if b"\0" in path or b"\0" in link:
        raise refuse(path, "a name has no NUL")
    name, prefix = path, b""
    seconds, fraction = divmod(mtime_ns, 1_000_000_000)
    records: list[bytes] = []
    if len(path) > 100:
        name, prefix = _split(path)
        if not name:
            name = path[:100]
            records.append(_record(b"path", path))
    if len(link) > 100:
        records.append(_record(b"linkpath", link))
        link = link[:100]
    if records and not (_is_utf8(path) and _is_utf8(link)):
        records.insert(0, _record(b"hdrcharset", b"BINARY"))
    if not 0 <= size <= _MAX_NUMBER:
        records.append(_record(b"size", _unsigned(path, b"size", size)))
        size = 0
    if not 0 <= uid <= _MAX_ID:
        records.append(_record(b"uid", _unsigned(path, b"uid", uid)))
        uid = 0
    if not 0 <= gid <= _MAX_ID:
        records.append(_record(b"gid", _unsigned(path, b"gid", gid)))
        gid = 0
    if fraction or not 0 <= seconds <= _MAX_NUMBER:
        records.append(_record(b"mtime", _decimal(mtime_ns)))
        seconds = seconds if 0 <= seconds <= _MAX_NUMBER else 0
    if xattrs:
        records += [_record(_XATTR + _escaped(key), value) for key, value in sorted(xattrs)]
    header = _ustar(name, code, mode & 0o7777, uid, gid, size, seconds, link, device, prefix)
    if not records:
        return header
    body = b"".join(records)
    return b"".join((_ustar(_PAX_NAME, b"x", 0o644, 0, 0, len(body), 0), body, _ZEROS[: -len(body) & 511], header))


def _ustar(
    name: bytes,
    code: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    link: bytes = b"",
    device: bytes = _NO_DEVICE,
    prefix: bytes = b"",
) -> bytes:
    """One header block; all has to fit."""
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, seconds)
    # The checksum counts itself as eight spaces; NULs count nothing, so they need not be summed.
    total = sum(name) + sum(numbers) + sum(code) + sum(link) + sum(device) + sum(prefix) + _FIXED_SUM
    return b"%b%b%06o\0 %b%bustar\00000%b%b%b" % (
        name.ljust(100, b"\0"),
        numbers,
        total,
        code,
        link.ljust(100, b"\0"),
        _ZEROS[:64],
        device,
        prefix.ljust(167, b"\0"),
    )


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Name and prefix of a path of more than 100 bytes; the name is empty where they can't hold it."""
    # The first slash that leaves a name of at most 100 bytes, which is not the one at a directory's end.
    cut = path.find(b"/", len(path) - 101, len(path) - 1)
    return (path[cut + 1 :], path[:cut]) if 0 < cut <= 155 else (b"", b"")


def _record(key: bytes, value: bytes) -> bytes:
    """``length key=value\\n``, where the length counts its own digits."""
    length = len(key) + len(value) + 3
    digits = len(b"%d" % length)
    if len(b"%d" % (length + digits)) > digits:
        digits += 1
    return b"%d %b=%b\n" % (length + digits, key, value)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unsigned(path: bytes, what: bytes, number: int) -> bytes:
    if number < 0:
        raise refuse(path, f"{what.decode()} {number} is negative")
    return b"%d" % number


def _decimal(time_ns: int) -> bytes:
    """Seconds, with as many digits after the point as are not zero."""
    seconds, fraction = divmod(abs(time_ns), 1_000_000_000)
    digits = b"%b%d.%09d" % (b"-" if time_ns < 0 else b"", seconds, fraction)
    return digits.rstrip(b"0").rstrip(b".")


def _escaped(key: bytes) -> bytes:
    """The name of an extended attribute as part of a pax keyword."""
    if not key or b"\0" in key:
        raise UnionError(f"{shown(key)} is no name of an extended attribute")
    return key.replace(b"%", b"%25").replace(b"=", b"%3D")


def _device(path: bytes, rdev: int) -> bytes:
    major, minor = os.major(rdev), os.minor(rdev)
    if major > _MAX_ID or minor > _MAX_ID:
        raise refuse(path, f"device {major}:{minor} has a number that is too large")
    return b"%07o\0%07o\0" % (major, minor)

"""A layer's tar archive, read as a stream; whoever wrote it, and whatever is wrong with it.

Reads v7, ustar, pax and GNU tar's formats, plain or compressed, sparse files too, as `tar` describes them and
`tarheader` decodes them. Where readers differ, this one is strict, or does as Go's archive/tar, by which the tools of
the field read layers:

- Leading slashes and ``.`` components are left out of names, as all do; ``..`` is refused.
- Entries with a type flag for a link, a device, a directory or a FIFO have no data, whatever size their header says.
- Global pax headers count for ``uid``, ``gid`` and ``mtime``, as POSIX says; with a name or a size in them they are
  refused; other records there are left out.
- ``SCHILY.xattr.`` records are extended attributes; other encodings of them, and ACLs as text, are left out.
- GNU tar's volume labels and AUFS's own files, of old Docker, are left out.
- A hard link has to name an earlier entry. Two entries may have one path: the later one counts.

What no check here sees: an entry below a path that an earlier entry made a symbolic link. Whoever puts entries into a
tree must not follow links on the way to them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, cast

import attrs

from unionfs.errors import UnionError
from unionfs.layer.protocol import DT_BLK, DT_CHR, DT_DIR, DT_FIFO, DT_LNK, DT_REG, DT_WHT
from unionfs.layer.whiteout import TRANSIT_OPAQUE, from_transit, has_transit_name, is_aufs_metadata
from unionfs.oci.compression import decompressed
from unionfs.oci.entry import Entry, refuse, shown
from unionfs.oci.tarheader import (
    BLOCK,
    Extent,
    Header,
    check_extents,
    gnu_extents,
    number,
    paired,
    parse_header,
    parse_pax,
    pax_extents,
    pax_number,
    pax_time,
)

_REGULAR = (b"0", b"\0", b"7")
_KINDS = {b"2": DT_LNK, b"3": DT_CHR, b"4": DT_BLK, b"5": DT_DIR, b"6": DT_FIFO}
_XATTR = b"SCHILY.xattr."
_NOT_GLOBAL = (b"path", b"linkpath", b"size", b"GNU.sparse.", _XATTR)
_CHUNK = 1 << 18
_MAX_ID = (1 << 32) - 2
_MAX_TIME = 1 << 62
_MAX_XATTR_NAME = 255
_MAX_XATTR_VALUE = 1 << 16
"""xattr(7)."""


@attrs.frozen
class Limits:
    """What an archive may have at most; more is refused."""

    entries: int = 5_000_000
    """Headers of all kinds."""
    names: int = 1 << 30
    """Bytes of all paths together, which are in memory while the archive is read."""
    size: int = 1 << 40
    """Bytes, uncompressed; and bytes of all files, holes included."""
    header: int = 1 << 20
    """Bytes of what stands before one entry: pax records, a long name, the map of a sparse file. As Go has it."""
    path: int = 1 << 16
    """Bytes of a path. Longer than the kernel takes in one call, as trees may be deeper."""
    depth: int = 4096
    """Names in a path."""
    name: int = 255
    """Bytes of a name (NAME_MAX)."""
    target: int = 4095
    """Bytes of a symbolic link's target (PATH_MAX)."""


LIMITS = Limits()


def read_layer(stream: IO[bytes], *, limits: Limits = LIMITS) -> Iterator[tuple[Entry, BinaryIO | None]]:
    """The entries of the archive in ``stream``, in its order; with each regular file, its data.

    The data can be read until the next entry is asked for; what is left of them is skipped. An opaque directory whose
    marker follows it at once is one entry; a marker elsewhere is an entry of its own (``Entry.is_marker``).

    ``stream`` is read once, from where it is to its end, and may be compressed. ``UnionError`` in one line, naming the
    entry and the rule, for what breaks a rule, passes a limit, or ends too soon. ``OSError`` from ``stream`` passes.
    """
    source = _Source(decompressed(stream), limits)
    held: Entry | None = None
    for entry, content in _Archive(source, limits).entries():
        # A directory waits for the next entry, which may be its marker.
        if held is not None:
            if entry.is_marker and entry.path == held.path:
                yield attrs.evolve(held, opaque=True), None
                held = None
                continue
            yield held, None
            held = None
        if entry.is_directory:
            held = entry
            continue
        yield entry, None if content is None else cast(BinaryIO, content)
        if content is not None:
            content.finish()
    if held is not None:
        yield held, None


class _Source:
    """The bytes of the archive, counted."""

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        self._stream = stream
        self._limit = limits.size
        self._total = 0
        self._data = b""
        self._at = 0

    def _fill(self) -> bool:
        self._data = self._stream.read(_CHUNK)
        self._at = 0
        self._total += len(self._data)
        if self._total > self._limit:
            raise UnionError(f"the archive has more than {self._limit} bytes uncompressed")
        return bool(self._data)

    def some(self, size: int) -> bytes:
        """At least one byte and at most ``size``."""
        if self._at == len(self._data) and not self._fill():
            raise _CutOff
        at = self._at
        if at == 0 and size >= len(self._data):
            self._at = len(self._data)
            return self._data
        found = self._data[at : at + size]
        self._at += len(found)
        return found

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        at = self._at
        if at + size <= len(self._data):
            self._at = at + size
            return self._data[at : at + size]
        pieces = []
        while size:
            pieces.append(self.some(size))
            size -= len(pieces[-1])
        return b"".join(pieces)

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes."""
        while size:
            size -= len(self.some(min(size, _CHUNK)))

    def drain(self) -> None:
        """Read what follows to the end: who hashes the stream wants all of it."""
        while self._fill():
            pass


class _CutOff(Exception):
    """The archive ends where it should go on."""


class _Content(io.RawIOBase):
    """A regular file's data, while its entry is the newest; zeros where it has holes."""

    def __init__(self, source: _Source, path: bytes, extents: list[Extent], size: int, stored: int) -> None:
        self._source = source
        self._path = path
        self._extents = extents
        self._index = 0
        self._size = size
        self._at = 0
        self._left = stored
        self._padding = -stored % BLOCK

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """``size`` bytes, or all; fewer at the end only."""
        if self.closed:
            raise ValueError("the data of an earlier entry are gone")
        rest = self._size - self._at
        want = rest if size is None or size < 0 else min(size, rest)
        if want <= 0:
            return b""
        first = self._piece(want)
        if len(first) == want:
            return first
        pieces = [first]
        want -= len(first)
        while want:
            pieces.append(self._piece(want))
            want -= len(pieces[-1])
        return b"".join(pieces)

    def _piece(self, want: int) -> bytes:
        """At least one byte, of data or of a hole."""
        offset, length = self._extents[self._index] if self._index < len(self._extents) else (self._size, 0)
        if self._at < offset:
            found = bytes(min(want, offset - self._at))
        else:
            try:
                found = self._source.some(min(want, offset + length - self._at))
            except _CutOff:
                raise refuse(self._path, "the archive is cut off in its data") from None
            self._left -= len(found)
        self._at += len(found)
        if self._at == offset + length:
            self._index += 1
        return found

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def finish(self) -> None:
        """Pass over what nobody has read."""
        try:
            self._source.skip(self._left + self._padding)
        except _CutOff:
            raise refuse(self._path, "the archive is cut off in its data") from None
        self._left = self._padding = 0
        self.close()


class _Archive:
    def __init__(self, source: _Source, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._count = 0
        self._logical = 0
        self._kinds: dict[bytes, int] = {}
        self._global: dict[bytes, bytes] = {}
        self._names = 0
        self._name = b""
        self._between = True

    def entries(self) -> Iterator[tuple[Entry, _Content | None]]:
        """All entries, each marker of an opaque directory as one of its own."""
        try:
            while (found := self._next()) is not None:
                # A header that nothing comes of is passed over with its data.
                if found[0] is not None:
                    yield found[0], found[1]
                elif found[1] is not None:
                    found[1].finish()
        except _CutOff:
            where = self._where()
            raise UnionError(f"the archive is cut off {where}: it lacks the blocks of zeros at its end") from None
        except ValueError as error:
            if self._between:
                raise UnionError(f"the archive is wrong {self._where()}: {error}") from None
            raise refuse(self._name, str(error)) from None
        self._source.drain()

    def _where(self) -> str:
        return f"after entry {shown(self._name)}" if self._name else "before its first entry"

    def _header(self) -> Header | None:
        """The next header; ``None`` at the end of the archive."""
        block = self._source.take(BLOCK)
        if not block.strip(b"\0"):
            # The end is two such blocks. Some writers leave the second out, none has an entry after the first.
            return None
        self._count += 1
        if self._count > self._limits.entries:
            raise UnionError(f"the archive has more than {self._limits.entries} entries")
        return parse_header(block)

    def _special(self, size: int) -> bytes:
        """What a header says of the next one."""
        if not 0 <= size <= self._limits.header:
            raise ValueError(f"a header of {size} bytes is before the next entry; {self._limits.header} are allowed")
        data = self._source.take(size)
        self._source.skip(-size % BLOCK)
        return data

    def _next(self) -> tuple[Entry | None, _Content | None] | None:
        records: list[tuple[bytes, bytes]] = []
        name = link = b""
        before = 0
        self._between = True
        while True:
            header = self._header()
            if header is None:
                if records or name or link:
                    raise ValueError("the archive ends after a header of the next entry")
                return None
            if header.kind not in (b"x", b"X", b"g", b"L", b"K"):
                break
            data = self._special(header.size)
            before += len(data)
            if before > self._limits.header:
                raise ValueError(f"more than {self._limits.header} bytes of headers before one entry")
            if header.kind == b"g":
                self._set_global(parse_pax(data))
            elif header.kind == b"L":
                name = data.partition(b"\0")[0]
            elif header.kind == b"K":
                link = data.partition(b"\0")[0]
            else:
                records += parse_pax(data)
        pax = self._global
        if records:
            # An empty value takes earlier ones back: what the header says holds (POSIX). An attribute's may be empty.
            pax = {**pax, **dict(records)}
            pax = {key: value for key, value in pax.items() if value or key.startswith(_XATTR)}
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name or header.name
        link = pax.get(b"linkpath") or link or header.link
        return self._entry(header, name, link, pax, records)

    def _set_global(self, records: list[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            if key.startswith(_NOT_GLOBAL):
                raise ValueError(f"a global pax record {shown(key)}: one value can't hold for all entries")
            if key in (b"uid", b"gid", b"mtime"):
                self._global[key] = value
        self._global = {key: value for key, value in self._global.items() if value}

    def _entry(
        self, header: Header, name: bytes, link: bytes, pax: dict[bytes, bytes], records: list[tuple[bytes, bytes]]
    ) -> tuple[Entry | None, _Content | None]:
        self._name = name
        self._between = False
        path = self._path(name)
        kind = header.kind
        stored = pax_number(pax[b"size"], "size") if b"size" in pax else header.size
        if not 0 <= stored < 1 << 63:
            raise ValueError(f"{stored} is no size")
        if kind == b"V":
            return None, None
        if kind in _REGULAR and name.endswith(b"/"):
            if stored:
                raise ValueError("a directory has no data")
            kind = b"5"
        regular = kind in _REGULAR or kind == b"S"
        if not regular and kind != b"1" and kind not in _KINDS:
            raise ValueError(f"entries of type {shown(kind)} can't be in a layer")
        content = None
        size = 0
        if regular:
            size, stored, extents = self._extents(header, stored, pax, records)
            self._logical += size
            if self._logical > self._limits.size:
                raise ValueError(f"its {size} bytes make the files larger than {self._limits.size} bytes")
            content = _Content(self._source, path, extents, size, stored)
        first, _, _ = path.partition(b"/")
        if is_aufs_metadata(first):
            return None, content
        if has_transit_name(path):
            return self._whiteout(path, kind, size), None
        if not path and kind != b"5":
            raise ValueError("the root can only be a directory")
        entry = self._plain(header, path, kind, size, link, pax)
        self._names += len(path)
        if self._names > self._limits.names:
            raise ValueError(f"all paths together have more than {self._limits.names} bytes")
        self._kinds[path] = entry.kind
        return entry, content

    def _path(self, name: bytes) -> bytes:
        if b"\0" in name:
            raise ValueError("a name with NUL")
        if len(name) > self._limits.path:
            raise ValueError(f"a path of {len(name)} bytes; {self._limits.path} are allowed")
        if not name:
            raise ValueError("an empty name")
        parts = [part for part in name.split(b"/") if part and part != b"."]
        if len(parts) > self._limits.depth:
            raise ValueError(f"a path of {len(parts)} names; {self._limits.depth} are allowed")
        for part in parts:
            if part == b"..":
                raise ValueError("'..' in its name leads out of the layer")
            if len(part) > self._limits.name and from_transit(part) is None:
                raise ValueError(f"a name of {len(part)} bytes; {self._limits.name} are allowed")
        return b"/".join(parts)

    def _whiteout(self, path: bytes, kind: bytes, size: int) -> Entry:
        """The whiteout, or the marker of an opaque directory, that stands at ``path``."""
        directory, _, name = path.rpartition(b"/")
        if has_transit_name(directory):
            raise ValueError("it is below a whiteout, and nothing can be")
        if kind == b"5" or size:
            raise ValueError("a whiteout is an empty file")
        if name == TRANSIT_OPAQUE:
            return Entry(directory, DT_WHT, opaque=True)
        hidden = from_transit(name) or b""
        if hidden in (b"", b".", b"..") or has_transit_name(hidden):
            raise ValueError(f"a whiteout of {shown(hidden)}, which is no name")
        if len(hidden) > self._limits.name:
            raise ValueError(f"a whiteout of a name of {len(hidden)} bytes; {self._limits.name} are allowed")
        return Entry(path[: len(path) - len(name)] + hidden, DT_WHT)

    def _plain(
        self, header: Header, path: bytes, kind: bytes, size: int, link: bytes, pax: dict[bytes, bytes]
    ) -> Entry:
        uid = pax_number(pax[b"uid"], "uid") if b"uid" in pax else header.uid
        gid = pax_number(pax[b"gid"], "gid") if b"gid" in pax else header.gid
        for what, owner in (("uid", uid), ("gid", gid)):
            if not 0 <= owner <= _MAX_ID:
                raise ValueError(f"{what} {owner} is none; they go from 0 to {_MAX_ID}")
        time_ns = pax_time(pax[b"mtime"]) if b"mtime" in pax else header.mtime * 1_000_000_000
        if not -_MAX_TIME < time_ns // 1_000_000_000 < _MAX_TIME:
            raise ValueError("a time that no file can have")
        is_link = kind == b"1"
        hardlink = self._hardlink(path, link) if is_link else None
        dt = _KINDS.get(kind, DT_REG) if hardlink is None else self._kinds[hardlink]
        target = b""
        rdev = 0
        if dt == DT_LNK and hardlink is None:
            target = link
            if not 0 < len(target) <= self._limits.target or b"\0" in target:
                raise ValueError(f"a symbolic link's target has 1 to {self._limits.target} bytes and no NUL")
        elif dt in (DT_CHR, DT_BLK) and hardlink is None:
            if not (0 <= header.major < 1 << 12 and 0 <= header.minor < 1 << 20):
                raise ValueError(f"there is no device {header.major}:{header.minor}")
            rdev = os.makedev(header.major, header.minor)
            if dt == DT_CHR and rdev == 0:
                raise ValueError("a character device 0:0 is a whiteout on disk, and none in an archive")
        xattrs = () if not pax or is_link else self._xattrs(pax)
        return Entry(path, dt, header.mode, uid, gid, time_ns, size, target, hardlink, rdev, xattrs)

    def _hardlink(self, path: bytes, link: bytes) -> bytes:
        try:
            target = self._path(link)
        except ValueError as error:
            raise ValueError(f"its hard link's target {shown(link)}: {error}") from None
        kind = self._kinds.get(target)
        if kind is None:
            raise ValueError(f"a hard link to {shown(target)}, which is not before it in the archive")
        if kind == DT_DIR:
            raise ValueError(f"a hard link to the directory {shown(target)}")
        if target == path:
            raise ValueError("a hard link to itself")
        return target

    def _xattrs(self, pax: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
        found = {}
        for keyword, value in pax.items():
            if keyword.startswith(_XATTR):
                key = keyword[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
                if not 0 < len(key) <= _MAX_XATTR_NAME or b"\0" in key:
                    raise ValueError(f"{shown(key)} is no name of an extended attribute")
                if len(value) > _MAX_XATTR_VALUE:
                    raise ValueError(f"the extended attribute {shown(key)} has more than {_MAX_XATTR_VALUE} bytes")
                found[key] = value
        return tuple(sorted(found.items()))

    def _extents(
        self, header: Header, stored: int, pax: dict[bytes, bytes], records: list[tuple[bytes, bytes]]
    ) -> tuple[int, int, list[Extent]]:
        """Size, bytes that are stored, and where they belong; of a file that may be sparse."""
        if header.kind == b"S":
            size, extents = self._old_gnu_map(header)
        elif pax.get(b"GNU.sparse.major") == b"1" and pax.get(b"GNU.sparse.minor", b"0") == b"0":
            size = pax_number(pax.get(b"GNU.sparse.realsize", b""), "GNU.sparse.realsize")
            extents, used = self._map_in_data(stored)
            stored -= used
        elif b"GNU.sparse.map" in pax or b"GNU.sparse.size" in pax:
            size = pax_number(pax.get(b"GNU.sparse.size", b""), "GNU.sparse.size")
            extents = pax_extents(records)
        elif any(key.startswith(b"GNU.sparse.") for key in pax):
            raise ValueError("a sparse file in a format that is not known")
        else:
            return stored, stored, [(0, stored)] if stored else []
        return size, stored, check_extents(extents, size, stored)

    def _old_gnu_map(self, header: Header) -> tuple[int, list[Extent]]:
        extents = gnu_extents(header.block[386:482])
        size = number(header.block[483:495], "the size of a sparse file")
        more = header.block[482]
        count = BLOCK
        while more:
            block = self._source.take(BLOCK)
            count += BLOCK
            if count > self._limits.header:
                raise ValueError(f"the map of a sparse file has more than {self._limits.header} bytes")
            extents += gnu_extents(block[:504])
            more = block[504]
        return size, extents

    def _map_in_data(self, stored: int) -> tuple[list[Extent], int]:
        """The map that stands before the data, in decimal lines, and how many bytes it takes."""
        lines: list[bytes] = []
        rest = b""
        used = 0
        needed = 1
        while len(lines) < needed:
            used += BLOCK
            if used > min(stored, self._limits.header):
                raise ValueError("the map of a sparse file is longer than it may be")
            *more, rest = (rest + self._source.take(BLOCK)).split(b"\n")
            lines += more
            if lines:
                needed = 1 + 2 * pax_number(lines[0], "of a sparse map")
        return paired([pax_number(each, "of a sparse map") for each in lines[1:needed]]), used

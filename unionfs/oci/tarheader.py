"""Tar headers as they stand in an archive: blocks, numbers, pax records, maps of sparse files.

Source: POSIX pax(1), "ustar Interchange Format" and "pax Header Block"; GNU tar's manual, "Basic Tar Format", "Storing
Sparse Files"; tar(5) of libarchive. Every function raises ``ValueError`` with the rule that is broken.
"""

from __future__ import annotations

import re

import attrs

BLOCK = 512

_PAX_LENGTH = re.compile(rb"(\d{1,20}) ")
_DECIMAL = re.compile(rb"(-?)(\d{1,19})(?:\.(\d*))?")
_INTEGER = re.compile(rb"\d{1,19}")


@attrs.frozen
class Header:
    """One header block, decoded."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    """Seconds."""
    kind: bytes
    """The type flag."""
    link: bytes
    major: int
    minor: int
    block: bytes
    """All of it, for formats with fields of their own."""


def parse_header(block: bytes) -> Header:
    """The header in ``block``, whose checksum is looked at first."""
    told = number(block[148:156], "the checksum")
    # The checksum counts itself as eight spaces.
    plain = sum(block) - sum(block[148:156]) + 256
    if told != plain and told != plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        # Some old tars summed signed characters, so that is tried too.
        raise ValueError("the header's checksum is wrong: this is no tar archive, or a damaged one")
    name = _text(block[0:100])
    magic = block[257:265]
    if magic[:6] == b"ustar\0":
        # star has two times behind a shorter prefix, and says so at the end.
        prefix = _text(block[345:476] if block[508:512] == b"tar\0" else block[345:500])
        if prefix:
            name = prefix + b"/" + name
    kind = block[156:157]
    device = kind in (b"3", b"4") and magic[:5] == b"ustar"
    return Header(
        name,
        number(block[100:108], "the mode") & 0o7777,
        number(block[108:116], "the uid"),
        number(block[116:124], "the gid"),
        number(block[124:136], "the size"),
        number(block[136:148], "the time"),
        kind,
        _text(block[157:257]),
        number(block[329:337], "the device's major number") if device else 0,
        number(block[337:345], "the device's minor number") if device else 0,
        block,
    )


def number(field: bytes, what: str) -> int:
    """A number of a header: octal, or, as GNU tar writes large ones, binary."""
    if field[0] & 0x80:
        if field[0] not in (0x80, 0xFF):
            raise ValueError(f"{what} is no number that fits")
        return int.from_bytes(field[1:], "big") - (1 << 8 * len(field) - 8 if field[0] == 0xFF else 0)
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip()
    # int() alone would take signs and underscores too.
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    elif not digits:
        return 0
    raise ValueError(f"{what} is no octal number")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a pax header, in their order."""
    records = []
    at = 0
    while at < len(data):
        match = _PAX_LENGTH.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != 0x0A:
            raise ValueError("a pax record has a wrong length")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not key or not equals:
            raise ValueError("a pax record has no keyword")
        records.append((key, value))
        at = end
    return records


def pax_number(value: bytes, what: str) -> int:
    """A number of a pax record."""
    if not _INTEGER.fullmatch(value):
        raise ValueError(f"the pax record {what} is no number")
    return int(value)


def pax_time(value: bytes) -> int:
    """Nanoseconds of a time in a pax record; digits beyond are left out."""
    match = _DECIMAL.fullmatch(value)
    if match is None:
        raise ValueError("the pax record mtime is no time")
    time_ns = int(match[2]) * 1_000_000_000 + int((match[3] or b"")[:9].ljust(9, b"0"))
    return -time_ns if match[1] else time_ns


Extent = tuple[int, int]
"""Where data are in a sparse file, and how many bytes."""


def gnu_extents(field: bytes) -> list[Extent]:
    """The extents that stand in a header of GNU tar's old sparse format, or in a block that continues it."""
    found = []
    for at in range(0, len(field) - 23, 24):
        if field[at] == 0:
            break
        found.append((number(field[at : at + 12], "an offset"), number(field[at + 12 : at + 24], "a length")))
    return found


def pax_extents(records: list[tuple[bytes, bytes]]) -> list[Extent]:
    """The extents of a sparse file in pax records of formats 0.0 and 0.1."""
    numbers: list[bytes] = []
    for key, value in records:
        if key == b"GNU.sparse.map":
            numbers = value.split(b",") if value else []
            break
        if key == (b"GNU.sparse.numbytes" if len(numbers) % 2 else b"GNU.sparse.offset"):
            numbers.append(value)
        elif key in (b"GNU.sparse.numbytes", b"GNU.sparse.offset"):
            raise ValueError("the map of a sparse file is out of order")
    return paired([pax_number(each, "of a sparse map") for each in numbers])


def paired(numbers: list[int]) -> list[Extent]:
    """Offsets and lengths, one after the other, as extents."""
    if len(numbers) % 2:
        raise ValueError("the map of a sparse file has an offset without a length")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def check_extents(extents: list[Extent], size: int, stored: int) -> list[Extent]:
    """``extents`` without empty ones, if they can be of a file of ``size`` bytes, of which ``stored`` are here."""
    end = 0
    for offset, length in extents:
        if offset < end or length < 0:
            raise ValueError("the map of a sparse file is out of order or overlaps")
        end = offset + length
    if end > size:
        raise ValueError(f"the map of a sparse file goes past its size, {size} bytes")
    if sum(length for _, length in extents) != stored:
        raise ValueError(f"the map of a sparse file does not add up to the {stored} bytes that are here")
    return [extent for extent in extents if extent[1]]

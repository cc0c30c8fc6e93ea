"""What a frozen layer shows together with the layers that it stands on, written down once: its index.

A directory that a thousand layers have would have to be listed a thousand times to be known. But the layers below never
change: so who freezes a layer notes, for each directory that the layer has, what is visible in it and who has what.
For any other directory the note of the topmost layer that has it holds. A cold lookup then costs one note, whatever
the depth. The index is a cache: without one, or with one that is damaged, the layers themselves are asked.

A file, in the byte order of the machine:

    16 bytes    "unionfs index 1" and "l" or "B" for the byte order
    8 bytes     n, the number of directories
    8 n bytes   xxh64 of their paths, ascending
    8 n bytes   where in the file their notes are
    notes       words of 4 bytes: length and xxh32 of what follows; length of the path, of the places' words, of the
                names; number of sources, of sources elsewhere, of entries; then for each source elsewhere its layer and
                the length of its path, the entries' codes, the places; the path, the paths elsewhere, the names, each
                with a NUL at its end
"""

from __future__ import annotations

import mmap
import sys
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence

import attrs
import xxhash

_MAGIC = b"unionfs index 1" + (b"l" if sys.byteorder == "little" else b"B")
_RECENT, _SMALL = 128, 1024  # notes that are kept for who asks again, and the entries of the largest of them
_SEVERAL = 15  # in the place of DT_*: a directory of several layers, whose places stand apart

Codes = dict[bytes, "int | tuple[int, ...]"]
"""Entries as ``union.resolve`` has them: ``place << 4 | DT_*``, or the places of a directory that several have."""


@attrs.frozen(slots=True)
class Merged:
    """What is visible in one directory."""

    count: int
    """Of the parent's sources that have it, so many merge, from this layer's own down."""
    elsewhere: tuple[tuple[int, bytes], ...]
    """What merges below these: the number of a layer, from the bottom up, and a path in it. Redirects lead there."""
    entries: Codes


def pack(directories: Mapping[bytes, Merged]) -> bytes:
    """The index of these, by path (``b""`` for the root, else ``b"/a/b"``)."""
    found = sorted((xxhash.xxh64_intdigest(path), path) for path in directories)
    notes = bytearray()
    offsets = array("Q")
    begin = len(_MAGIC) + 8 + 16 * len(found)
    for _, path in found:
        offsets.append(begin + len(notes))
        note = _note(path, directories[path])
        notes += array("I", [len(note), xxhash.xxh32_intdigest(note)]).tobytes() + note
    head = array("Q", [len(found), *(number for number, _ in found)])
    return _MAGIC + head.tobytes() + offsets.tobytes() + bytes(notes)


def _note(path: bytes, merged: Merged) -> bytes:
    entries = dict(sorted(merged.entries.items()))  # The same in a copy, whose directories have another order.
    codes, apart = array("I"), array("I")
    try:
        codes.extend(entries.values())  # type: ignore[arg-type]
    except TypeError:  # Some have several places.
        codes = array("I")
        for code in entries.values():
            if isinstance(code, tuple):
                codes.append(len(apart) << 4 | _SEVERAL)
                apart.append(len(code))
                apart.extend(code)
            else:
                codes.append(code)
    names = b"\0".join((*entries, b""))
    elsewhere = array("I")
    for number, there in merged.elsewhere:
        elsewhere.extend((number, len(there)))
    head = array("I", [len(path), len(apart), len(names), merged.count, len(merged.elsewhere), len(codes)])
    words = head + elsewhere + codes + apart
    return words.tobytes() + path + b"".join(there for _, there in merged.elsewhere) + names


class Index:
    """An index, read. ``OSError`` if there is none; ``ValueError`` for what is none."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        whole = memoryview(self._map)
        at = len(_MAGIC) + 8
        if whole[: len(_MAGIC)] != _MAGIC or len(whole) < at:
            raise ValueError(f"{path}: no index of this machine's")
        count = whole[at - 8 : at].cast("Q")[0]
        if len(whole) < at + 16 * count:
            raise ValueError(f"{path}: an index that is cut off")
        self._recent: dict[bytes, Merged] = {}
        self._whole = whole
        self._hashes: Sequence[int] = whole[at : at + 8 * count].cast("Q")
        self._offsets: Sequence[int] = whole[at + 8 * count : at + 16 * count].cast("Q")

    def find(self, path: bytes) -> Merged | None:
        """What is noted of a directory; ``None`` for nothing, or for a note that is damaged."""
        recent = self._recent.get(path)
        if recent is not None:
            return recent
        number = xxhash.xxh64_intdigest(path)
        i = bisect_left(self._hashes, number)
        while i < len(self._hashes) and self._hashes[i] == number:
            found = self._read(self._offsets[i], path)
            if found is not None:
                if len(found.entries) <= _SMALL:
                    if len(self._recent) >= _RECENT:
                        self._recent.clear()
                    self._recent[path] = found
                return found
            i += 1
        return None

    def _read(self, offset: int, path: bytes) -> Merged | None:
        whole = self._whole
        if offset + 8 > len(whole):
            return None
        length, checksum = whole[offset : offset + 8].cast("I")
        note = whole[offset + 8 : offset + 8 + length]
        if len(note) != length or length < 24 or xxhash.xxh32_intdigest(note) != checksum:
            return None
        of_path, of_places, of_names, count, elsewhere, entries = note[:24].cast("I")
        words = 6 + 2 * elsewhere + entries + of_places
        head = note[: 4 * words].cast("I").tolist()
        at = 4 * words
        if note[at : at + of_path] != path:
            return None
        at += of_path
        there = []
        for i in range(6, 6 + 2 * elsewhere, 2):
            there.append((head[i], bytes(note[at : at + head[i + 1]])))
            at += head[i + 1]
        names = bytes(note[at : at + of_names]).split(b"\0")
        codes: list[int | tuple[int, ...]] = [*head[6 + 2 * elsewhere : 6 + 2 * elsewhere + entries]]
        if of_places:
            places = 6 + 2 * elsewhere + entries
            for i, code in enumerate(head[places - entries : places]):
                if code & 15 == _SEVERAL:
                    begin = places + (code >> 4) + 1
                    codes[i] = tuple(head[begin : begin + head[begin - 1]])
        return Merged(count, tuple(there), dict(zip(names, codes, strict=False)))

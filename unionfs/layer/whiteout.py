"""How overlayfs writes whiteouts and marks on disk: the only place that knows the encodings.

Source: Documentation/filesystems/overlayfs.rst. A whiteout is a character device 0:0, or an empty regular file with
``overlay.whiteout`` in a directory with ``overlay.opaque=x``. Marks are extended attributes under
``trusted.overlay.`` (root) or ``user.overlay.`` (``userxattr``). A person's own attribute with such a name is kept
one level down, as ``overlay.overlay.`` ("nesting overlayfs mounts").

In transit, in the tar archive of an OCI layer, a whiteout is an empty file with a name of its own (image-spec,
layer.md, "Whiteouts" and "Opaque Whiteout"); such names never stand in a layer on disk.
"""

from __future__ import annotations

import os
import re
import stat

from unionfs.layer.protocol import NO_MARKS, Marks

_NUMBER = re.compile(rb"[0-9a-f]{1,16}")

TRUSTED = b"trusted.overlay."
USER = b"user.overlay."
_PREFIXES = (TRUSTED, USER)
_ESCAPE = b"overlay."

OPAQUE = b"opaque"
REDIRECT = b"redirect"
METACOPY = b"metacopy"
ORIGIN = b"origin"
NLINK = b"nlink"
WHITEOUT = b"whiteout"
INO = b"unionfs.ino"
FORMAT = b"unionfs"
"""On a layer's root: the layer was an upper of ours, so its entries may carry ``INO``."""

RECORD = b"unionfs.commit"
"""On a layer's root: who froze it, when and why (JSON with the field names of an OCI history entry)."""

_TRANSIT = b".wh."
_TRANSIT_META = b".wh..wh."
TRANSIT_OPAQUE = b".wh..wh..opq"
"""In transit: the directory that has a file of this name hides what the layers below have in it."""


def to_transit(name: bytes) -> bytes:
    """The name in transit of the whiteout that hides ``name``."""
    return _TRANSIT + name


def from_transit(name: bytes) -> bytes | None:
    """The name that the entry ``name`` of an archive hides; ``None`` for what is no whiteout.

    What it hides may be no name at all (empty, ``.``, reserved in its turn): the caller has to see to that, and to
    ``TRANSIT_OPAQUE`` before.
    """
    return name[len(_TRANSIT) :] if name.startswith(_TRANSIT) else None


def has_transit_name(path: bytes) -> bool:
    """Whether a component of the relative ``path`` is reserved in transit, so that no file can travel by it."""
    return _TRANSIT in path and (path.startswith(_TRANSIT) or b"/" + _TRANSIT in path)


def is_aufs_metadata(first: bytes) -> bool:
    """Whether the top-level name ``first`` of an archive is AUFS's own, which archives of old Docker have."""
    return first.startswith(_TRANSIT_META) and first != TRANSIT_OPAQUE


def is_whiteout_device(st: os.stat_result) -> bool:
    """Whether this is a character device 0:0."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def is_private(key: bytes) -> bool:
    """Whether overlayfs keeps this attribute for itself."""
    return key.startswith(_PREFIXES)


def leads_elsewhere(key: str) -> bool:
    """Whether this is a mark, in the namespace that any owner may write, that points into other layers."""
    return os.fsencode(key) in (USER + REDIRECT, USER + METACOPY)


def escape(key: bytes) -> bytes:
    """The name on disk of a person's attribute ``key``."""
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return prefix + _ESCAPE + key[len(prefix) :]
    return key


def unescape(key: bytes) -> bytes | None:
    """The name that a person sees for the attribute ``key`` on disk; ``None`` for one of overlayfs's own."""
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            return prefix + rest[len(_ESCAPE) :] if rest.startswith(_ESCAPE) else None
    return key


def mark_names(keys: list[str]) -> dict[bytes, str]:
    """Of all attribute names on an entry, those that are marks: mark to name on disk; ``trusted.`` wins."""
    found: dict[bytes, str] = {}
    for key in keys:
        raw = os.fsencode(key)
        if raw.startswith(TRUSTED):
            found[raw[len(TRUSTED) :]] = key
        elif raw.startswith(USER):
            found.setdefault(raw[len(USER) :], key)
    return found


def decode(values: dict[bytes, bytes]) -> Marks:
    """``Marks`` from the marks' values; what is malformed counts as absent."""
    if not values:
        return NO_MARKS
    ino = None
    if _NUMBER.fullmatch(values.get(INO, b"")):
        ino = int(values[INO], 16)
    return Marks(
        opaque=values.get(OPAQUE) == b"y",
        redirect=values.get(REDIRECT) or None,
        metacopy=METACOPY in values,
        ino=ino,
        nlink=values.get(NLINK),
        origin=values.get(ORIGIN) or None,
    )


def encode(marks: Marks) -> dict[bytes, bytes]:
    """The marks' values on disk."""
    values: dict[bytes, bytes] = {}
    if marks.opaque:
        values[OPAQUE] = b"y"
    if marks.redirect is not None:
        values[REDIRECT] = marks.redirect
    if marks.metacopy:
        values[METACOPY] = b""
    if marks.ino is not None:
        values[INO] = b"%x" % marks.ino
    if marks.nlink is not None:
        values[NLINK] = marks.nlink
    if marks.origin is not None:
        values[ORIGIN] = marks.origin
    return values

"""What an entry of a layer's archive says, whoever wrote it and in whatever format."""

from __future__ import annotations

import attrs

from unionfs.errors import UnionError
from unionfs.layer.protocol import DT_DIR, DT_WHT


@attrs.frozen
class Entry:
    """One entry of a layer in transit (image-spec, layer.md).

    A whiteout (``DT_WHT``) hides ``path`` in the layers *below*, never what the same archive has, wherever in it that
    stands (layer.md, "Whiteouts"). A whiteout with ``opaque`` hides what the layers below have *in* ``path``: it is
    the marker of a directory that the archive has elsewhere, or not at all, and says nothing else about it.
    """

    path: bytes
    """Relative, without a slash at either end, ``.`` or ``..``; empty for the root."""
    kind: int
    """``DT_*`` (``unionfs.layer.protocol``); of a hard link, the kind of what it links to."""
    mode: int = 0
    """Permission bits, with set-id and sticky bits."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    """Nanoseconds since the epoch."""
    size: int = 0
    """Bytes of a regular file, holes included; 0 for a hard link and anything else."""
    target: bytes = b""
    """What a symbolic link holds."""
    hardlink: bytes | None = None
    """The path of an earlier entry that this is one more name of. The rest of the metadata is that entry's."""
    rdev: int = 0
    """Of a device, as ``st_rdev``."""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Names and values, sorted by name."""
    opaque: bool = False
    """A directory that hides what the layers below have in it."""

    @property
    def is_marker(self) -> bool:
        """Whether this says only that the directory ``path`` is opaque."""
        return self.kind == DT_WHT and self.opaque

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return self.kind == DT_DIR


def shown(path: bytes) -> str:
    """``path`` in a message: in quotes, on one line, not too long."""
    text = repr(path.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 200 else f"{text[:100]}…{text[-96:]}"


def refuse(path: bytes, rule: str) -> UnionError:
    """The error for the entry ``path`` of an archive, which breaks ``rule``."""
    return UnionError(f"archive entry {shown(path)}: {rule}")

"""Trees as values, to make a layer from: for tests, and for those who have no directory to begin with."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from unionfs.layer.protocol import NO_MARKS, LayerDir, LayerFile, Marks, WritableLayer


@attrs.frozen
class Entry:
    """One object of a tree, where a plain ``bytes``, ``str`` or ``dict`` does not say enough."""

    mode: int
    """Type and permission bits, as ``st_mode``."""
    content: bytes | Tree = b""
    """A regular file's data, a symbolic link's target, a directory's entries."""
    rdev: int = 0
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    """Nanoseconds since the epoch; the access time is set to the same."""
    xattrs: Mapping[str, bytes] = attrs.Factory(dict)
    marks: Marks = NO_MARKS


@attrs.frozen
class Link:
    """One more name of an object that stands earlier in the tree, by its path from the layer's root."""

    path: str | bytes


Tree: TypeAlias = "Mapping[Any, Entry | Link | bytes | str | Tree]"
"""Names (``str`` or ``bytes``; a slash makes directories on the way) to content: ``bytes`` or ``str`` is a regular
file, a mapping is a directory, and ``Entry`` is anything."""

WHITEOUT = Entry(stat.S_IFCHR)


def symlink(target: str | bytes) -> Entry:
    """A symbolic link to ``target``."""
    return Entry(stat.S_IFLNK | 0o777, os.fsencode(target))


def entry_of(value: Entry | bytes | str | Tree) -> Entry:
    """``value`` with all that its short form leaves out: mode 644 for files, 755 for directories."""
    if isinstance(value, Entry):
        return value
    if isinstance(value, Mapping):
        return Entry(stat.S_IFDIR | 0o755, value)
    return Entry(stat.S_IFREG | 0o644, value.encode() if isinstance(value, str) else value)


def populate(layer: WritableLayer, tree: Tree) -> None:
    """Make ``tree`` in the root of ``layer``. Raises ``OSError``, ``EEXIST`` for a name that is there already."""
    # Attributes of directories come last: what is made in them changes their times.
    for d, name, entry in reversed(list(_fill(layer, layer.root, tree))):
        _dress(layer, d, name, entry)


def _walk(layer: WritableLayer, d: LayerDir, path: bytes, make: bool = False) -> tuple[LayerDir, bytes]:
    *parents, name = path.strip(b"/").split(b"/")
    for parent in parents:
        if make and layer.kind(d, parent) is None:
            layer.mkdir(d, parent, 0o755)
        d = d.child(parent)
    return d, name


def _fill(layer: WritableLayer, top: LayerDir, tree: Tree) -> Iterator[tuple[LayerDir, bytes, Entry]]:
    for path, value in tree.items():
        d, name = _walk(layer, top, os.fsencode(path), make=True)
        if isinstance(value, Link):
            layer.link(*_walk(layer, layer.root, os.fsencode(value.path)), d, name)
            continue
        entry = entry_of(value)
        content = entry.content
        if isinstance(content, Mapping):
            if layer.kind(d, name) is None:
                layer.mkdir(d, name, 0o700)
            yield d, name, entry
            yield from _fill(layer, d.child(name), content)
            continue
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFREG:
            with_data: LayerFile = layer.create(d, name, 0o600)
            with_data.pwrite(content, 0)
            with_data.close()
        elif kind == stat.S_IFLNK:
            layer.symlink(d, name, content)
        elif kind == stat.S_IFCHR and not entry.rdev:
            layer.whiteout(d, name)
            continue
        else:
            layer.mknod(d, name, entry.mode, entry.rdev)
        yield d, name, entry


def _dress(layer: WritableLayer, d: LayerDir, name: bytes, entry: Entry) -> None:
    for key, value in entry.xattrs.items():
        layer.setxattr(d, name, os.fsencode(key), value)
    if entry.marks != NO_MARKS:
        layer.set_marks(d, name, entry.marks)
    mode = None if stat.S_ISLNK(entry.mode) else entry.mode
    times = None if entry.mtime_ns is None else (entry.mtime_ns, entry.mtime_ns)
    layer.setattr(d, name, mode, entry.uid, entry.gid, times)

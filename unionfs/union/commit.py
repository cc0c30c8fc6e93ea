"""Commit: the upper is frozen into a layer that nothing writes to again, and the union goes on with a fresh upper.

The step itself is one exchange of two directories, whatever is in them. Two things can't just stay behind:

- A file that is open for writing would go on changing. So its inode moves to the fresh upper, where writers go on, and
  the frozen layer keeps a copy of what it holds at that moment.
- A hard link in the upper's index may have names that only the layers below know; the index does not go with the layer.
  So these names are made in the upper first.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
from typing import Any

import attrs

from unionfs.errors import UnionError
from unionfs.layer.protocol import Layer, LayerDir, WritableLayer
from unionfs.union.copyup import copy_file, copy_metadata, kept_times
from unionfs.union.node import DirNode, FileNode
from unionfs.union.tree import Tree

log = logging.getLogger(__name__)

_MAX_RECORD = 3000
_MAX_COMMAND = 1000


@attrs.frozen(slots=True)
class HistoryEntry:
    """A layer and what its commit recorded, with the field names of an OCI history entry (image-spec, config.md)."""

    layer: Layer = attrs.field(repr=False, eq=False)
    path: str
    """The layer's directory, or what else it is."""
    id: str | None = None
    """The commit's random identifier; ``None`` for a layer that no commit made."""
    parent: str | None = None
    """The identifier of the layer below, if a commit made that."""
    created: dt.datetime | None = None
    author: str = ""
    comment: str = ""
    created_by: str = ""
    """The command that made the changes."""


def commit(
    tree: Tree,
    destination: str | None = None,
    *,
    message: str = "",
    author: str = "",
    created_by: str = "",
    created: dt.datetime | None = None,
) -> HistoryEntry:
    """Freeze the upper into a new topmost lower layer, and go on with an empty upper.

    ``destination``: the layer's directory, which must not exist or be empty, on the upper's file system; by default
    the next number in ``<upper>.layers``. Constant time, but for files that are open for writing (they are copied)
    and for hard links that the layers below have more names of (they are searched for). Open files, nodes and mounts
    go on working.

    Raises ``OSError`` (``EROFS`` without an upper; ``LayerError`` for the destination), ``UnionError`` when the
    message is too long to be kept with the layer. A failure leaves everything as it was.
    """
    with tree.lock:
        upper = tree.writable()
        record = _record(tree, message, author, created_by, created)
        complete_links(tree)
        fresh = upper.begin_freeze(destination)
        with tree.moving():
            try:
                writers = [n for n in tree.writers if not n.dead and n.home.layer is upper]
                places = {id(n): _move_writer(tree, upper, fresh, n) for n in writers}
                upper.finish_freeze(fresh, record)
            except BaseException:
                upper.drop_freeze(fresh)
                raise
            _go_on(tree, upper, fresh)
            for n in writers:
                _settle_writer(tree, n, places[id(n)])
        return info(upper)


def _record(tree: Tree, message: str, author: str, created_by: str, created: dt.datetime | None) -> bytes:
    if created is None:
        created = dt.datetime.now(dt.UTC)
    below = tree.resolver.layers[1:]
    if len(created_by) > _MAX_COMMAND:
        created_by = created_by[: _MAX_COMMAND - 1] + "…"
    entry = {
        "id": os.urandom(16).hex(),
        "parent": info(below[0]).id if below else None,
        "created": created.astimezone(dt.UTC).isoformat().replace("+00:00", "Z"),
        "author": author,
        "comment": message,
        "created_by": created_by,
    }
    record = json.dumps({key: value for key, value in entry.items() if value}, ensure_ascii=False).encode()
    if len(record) > _MAX_RECORD:
        raise UnionError(f"message and author of a commit are {len(record)} bytes long, at most {_MAX_RECORD} are kept")
    return record


def info(layer: Layer) -> HistoryEntry:
    """What is known of a layer; a record that can't be read counts as none."""
    raw = layer.record
    if raw is None:
        return HistoryEntry(layer, layer.label)
    try:
        entry: dict[str, Any] = json.loads(raw)
        created = entry.get("created")
        own, parent = entry.get("id"), entry.get("parent")
        return HistoryEntry(
            layer,
            layer.label,
            id=None if own is None else str(own),
            parent=None if parent is None else str(parent),
            created=None if created is None else dt.datetime.fromisoformat(created),
            author=str(entry.get("author", "")),
            comment=str(entry.get("comment", "")),
            created_by=str(entry.get("created_by", "")),
        )
    except (ValueError, AttributeError, TypeError, RecursionError):
        log.warning("%s: its commit record can't be read", layer.label)
        return HistoryEntry(layer, layer.label)


def history(tree: Tree) -> list[HistoryEntry]:
    """The layers below the upper, topmost first."""
    return [info(layer) for layer in tree.resolver.layers if layer is not tree.upper]


def complete_links(tree: Tree) -> None:
    """Make every name of the upper's hard links in the upper, so that it can be a layer, which has no index."""
    kept = tree.links.in_index()
    if any(tree.links.names_unknown(n) for n in kept):
        log.info("commit: looking for other names of %d hard links", len(kept))
        tree.links.know(kept)
    for n in kept:
        for d, name in [key for key, in_upper in (n.names or {}).items() if not in_upper]:
            tree.name_in_upper(n, d, name)
        tree.links.leave_index(n)


def _move_writer(
    tree: Tree, upper: WritableLayer, fresh: WritableLayer, n: FileNode
) -> list[tuple[DirNode, LayerDir, bytes]]:
    """Give the open file its names in the fresh upper, and the frozen layer a copy under them. Answers those names."""
    names = [key for key, in_upper in n.names.items() if in_upper] if n.names is not None else [(n.parent, n.name)]
    places: list[tuple[DirNode, LayerDir, bytes]] = []
    st = upper.stat(n.home, n.lname)
    temp = upper.temp_name()
    copy = upper.create(upper.staging, temp, 0o600)
    source = upper.open(n.home, n.lname, os.O_RDONLY)
    copy_file(source, copy)
    source.close()
    copy.close()
    upper.set_marks(upper.staging, temp, attrs.evolve(upper.marks(n.home, n.lname), ino=n.ino))
    copy_metadata(upper, n.home, n.lname, st, upper, upper.staging, temp)
    for d, name in names:
        assert d is not None
        home = tree.sources(d)[0]
        there = _directory_in(tree, upper, fresh, d)
        with kept_times(fresh, there):
            fresh.link(home, name, there, name)
        places.append((d, there, name))
    for d, name in names:
        assert d is not None
        again = upper.temp_name()
        upper.link(upper.staging, temp, upper.staging, again)
        home = tree.sources(d)[0]
        with kept_times(upper, home):
            upper.rename(upper.staging, again, home, name)
    upper.unlink(upper.staging, temp)
    return places


def _directory_in(tree: Tree, upper: WritableLayer, fresh: WritableLayer, d: DirNode) -> LayerDir:
    """The directory of the fresh upper that will be ``d``'s, made with its metadata if need be."""
    above: list[DirNode] = []
    while d.parent is not None:
        above.append(d)
        d = d.parent
    there = fresh.root
    for d in reversed(above):
        parent, there = there, there.child(d.name)
        if fresh.kind(parent, d.name) is not None:
            continue
        here = tree.sources(d)[0]
        st = upper.stat(here, b".")
        # Made in staging, where it inherits nothing.
        temp = fresh.temp_name()
        fresh.mkdir(fresh.staging, temp, 0o700)
        marks = attrs.evolve(upper.marks(here, b"."), opaque=False, redirect=None, ino=d.ino)
        fresh.set_marks(fresh.staging, temp, marks)
        copy_metadata(upper, here, b".", st, fresh, fresh.staging, temp)
        with kept_times(fresh, parent):
            fresh.rename(fresh.staging, temp, parent, d.name)
    return there


def _go_on(tree: Tree, upper: WritableLayer, fresh: WritableLayer) -> None:
    """In memory: the upper is a lower now, the fresh one is the upper."""
    tree.resolver.push(fresh)
    tree.upper = fresh
    tree.root.srcs = [fresh.root, *tree.sources(tree.root)]
    for orphan in tree.orphans:
        if orphan.home.layer is upper:
            orphan.home = fresh.staging
    tree.links.frozen()
    tree.forget_below()
    tree.touched(tree.root)


def _settle_writer(tree: Tree, n: FileNode, places: list[tuple[DirNode, LayerDir, bytes]]) -> None:
    for d, there, name in places:
        _adopt(tree, d, there)
        tree.shadow(d).add(name)
        n.home, n.lname = there, name
        if n.names is not None:
            n.names[d, name] = True


def _adopt(tree: Tree, d: DirNode, there: LayerDir) -> None:
    """``there`` is the fresh upper's part of ``d`` from now on."""
    while d.parent is not None and tree.sources(d)[0].layer is not there.layer:
        tree.sources(d).insert(0, there)
        tree.shadow(d.parent).add(d.name)
        assert there.parent is not None
        d, there = d.parent, there.parent

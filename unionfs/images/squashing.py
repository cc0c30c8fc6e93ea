"""Squash: one layer in place of many, and the proof that nobody can see the difference."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

import attrs
import xxhash

from unionfs.errors import StoreError, UnionError
from unionfs.images.committing import wrapped, write_clean
from unionfs.images.hashing import in_parallel, update
from unionfs.images.layering import layer_of
from unionfs.images.points import Point, find_point
from unionfs.images.publishing import NewLayer, Provenance, Report, publish
from unionfs.images.stacks import Stack
from unionfs.images.times import creation_time, rfc3339, source_date_epoch
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_BLK, DT_CHR, DT_LNK, DT_REG
from unionfs.oci.model import ImageConfig
from unionfs.oci.reference import parse_name
from unionfs.store.keep import Keep
from unionfs.union.diff import compare
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.reader import TreeReader
from unionfs.union.tree import Tree

if TYPE_CHECKING:
    from unionfs.images.image import Image
    from unionfs.images.store import Store

_TOLD_EVERY = 1000  # files


def squash(
    store: Store,
    ref: str | Image,
    name: str | None,
    *,
    base: str | Point | None,
    message: str,
    author: str,
    created: dt.datetime | None,
    report: Report | None,
) -> Image:
    """See ``Store.squash``. ``UnionError`` if ``base`` is no layer of the image; ``StoreError`` if the trees differ:
    nothing is published then."""
    keep = store.keep
    tag = None if name is None else str(parse_name(name))
    image = store.image(ref) if isinstance(ref, str) else ref
    with Stack(keep, image.record.layer) as stack:
        count = _above(keep, stack, base)
        if not count:
            if tag is not None:
                store.tag(image, tag)
            return image
        below = stack.records[count] if count < len(stack.records) else None
        said = Provenance(
            created=rfc3339(creation_time(created)),
            author=author,
            comment=message or f"{count} layer{'s' * (count != 1)} squashed",
        )
        config = _config(image.config, len(stack.records) - count)
        parent = None if below is None else next(iter(keep.records.images_of(below.id)), None)
        source = stack.tree()
        changes = list(compare(source, stack.tree(count)))
        if not changes and below is not None:
            config = config.with_layer(None, said.history())
            _prove(source, stack.tree(count), report)
            return store.image(publish(keep, config, below, None, name=tag, parent=parent))
        if report is not None:
            report("hashing", 0, 0)
        epoch = source_date_epoch()
        layered = layer_of(source, changes, epoch=epoch, base=below is None)
        config = config.with_layer(layered.diff_id, said.history())
        with keep.places.staging() as staging, Stack(keep, None if below is None else below.id) as rest:
            write_clean(keep, staging, source, rest, changes)
            layer = DirectoryLayer(f"{wrapped(staging)}/diff")
            try:
                _prove(source, Tree([layer, *rest.layers]), report)
            finally:
                layer.close()
            new = NewLayer(parent=below, layered=layered, provenance=said, epoch=epoch, staged=wrapped(staging))
            return store.image(publish(keep, config, below, new, name=tag, parent=parent))


def _above(keep: Keep, stack: Stack, base: str | Point | None) -> int:
    """How many layers stand on ``base``."""
    if base is None:
        return len(stack.records)
    point = find_point(keep, base) if isinstance(base, str) else base
    if point.container is not None:
        raise UnionError(f"{point.name!r} is a container, whose state may change: name an image or a layer")
    if point.layer is None:
        return len(stack.records)
    for i, layer in enumerate(stack.records):
        if point.layer in (layer.id, layer.same_as):
            return i
    raise UnionError(f"the image does not stand on {point.name!r}")


def _config(config: ImageConfig, layers: int) -> ImageConfig:
    """The config of the lowest ``layers`` layers, with the history of all: what is squashed has no layer any more."""
    kept = config.upto(layers)
    rest = (attrs.evolve(entry, empty_layer=True) for entry in config.history[len(kept.history) :])
    return attrs.evolve(kept, history=(*kept.history, *rest))


def _prove(source: TreeReader, target: TreeReader, report: Report | None) -> None:
    """``StoreError`` unless both trees show the same: everything is read."""
    for change in compare(target, source):
        raise StoreError(_DIFFERS.format(change))
    known: dict[tuple[int, int], str] = {}
    one, other = (in_parallel(_Facts(tree, known), _walk(tree)) for tree in (source, target))
    for i, (here, there) in enumerate(zip_longest(one, other)):
        if report is not None and i % _TOLD_EVERY == 0:
            report("comparing", i, 0)
        if here != there:
            path = min(facts[0] for facts in (here, there) if facts is not None)
            raise StoreError(_DIFFERS.format(os.fsdecode(path) or "/"))


_DIFFERS = "squashed, the image would not show the same tree: {}"

Entry: TypeAlias = tuple[bytes, Node, bytes | None]
"""A path, what is there, and for a file with several names the first of them."""


def _walk(tree: TreeReader) -> Iterator[Entry]:
    """All that a tree shows, a directory before what is in it."""
    links: dict[int, bytes] = {}
    todo: list[tuple[bytes, Node]] = [(b"", tree.root)]
    while todo:
        path, n = todo.pop()
        if isinstance(n, DirNode):
            yield path, n, None
            names = sorted(tree.entries(n), reverse=True)
            todo += [(path + b"/" + name, tree.lookup(n, name)) for name in names]
        else:
            st = tree.stat(n)
            yield path, n, links.setdefault(st.st_ino, path) if st.st_nlink > 1 else path


class _Facts:
    """What a tree shows of an entry. ``known``: fingerprints of inodes that were read before."""

    def __init__(self, tree: TreeReader, known: dict[tuple[int, int], str]) -> None:
        self.tree = tree
        self.known = known

    def __call__(self, entry: Entry) -> tuple[bytes, *tuple[object, ...]]:
        path, n, first = entry
        tree = self.tree
        st = tree.stat(n)
        # The time of the root is that of the topmost layer's directory, which was made at its own time.
        mtime = st.st_mtime_ns if path else 0
        xattrs = {key: tree.getxattr(n, key) for key in tree.listxattr(n)}
        rdev = st.st_rdev if n.kind in (DT_CHR, DT_BLK) else 0
        return path, n.kind, st.st_mode, st.st_uid, st.st_gid, mtime, xattrs, rdev, first, self.content(n, st.st_size)

    def content(self, n: Node, size: int) -> object:
        tree = self.tree
        if n.kind == DT_LNK:
            return tree.readlink(n)
        if n.kind != DT_REG or not isinstance(n, FileNode):
            return None
        home, name = tree.data_of(n) or (n.home, n.lname)
        st = home.layer.stat(home, name)
        key = st.st_dev, st.st_ino
        found = self.known.get(key)
        if found is None:
            digest = xxhash.xxh3_128()
            file = tree.open_data(n)
            try:
                update(digest, file, size)
            finally:
                file.close()
            found = self.known[key] = digest.hexdigest()
        return size, found

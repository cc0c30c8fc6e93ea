"""Commit: from what a container's writable layer changed to an image.

The writable layer is frozen first, in constant time, and the container goes on with a fresh one; all the rest looks at
what stands still. What is compared, hashed and kept goes with the change and not with the image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from unionfs.errors import NotFoundError, StoreError
from unionfs.images.documents import read_config
from unionfs.images.layering import layer_of
from unionfs.images.publishing import NewLayer, Provenance, Report, publish
from unionfs.images.stacks import Stack, new_upper
from unionfs.images.times import source_date_epoch
from unionfs.layer.merged import pack
from unionfs.oci.changes import apply_changes
from unionfs.oci.model import History, ImageConfig
from unionfs.oci.platform import this_platform
from unionfs.store.durable import flush_tree, remove_tree
from unionfs.store.keep import Keep
from unionfs.store.records import ImageRecord, LayerRecord
from unionfs.union.commit import complete_links
from unionfs.union.diff import Change, compare
from unionfs.union.indexing import notes_of
from unionfs.union.reader import TreeReader
from unionfs.union.replay import replay
from unionfs.union.surplus import surplus
from unionfs.union.tree import Tree


def image_layer_of(keep: Keep, chain: Sequence[LayerRecord]) -> tuple[int, LayerRecord | None]:
    """How many snapshots stand on the nearest image layer of ``chain`` (topmost first), and that layer."""
    for i, layer in enumerate(chain):
        if layer.chain_id is not None:
            return i, layer
        if layer.same_as is not None:
            same = keep.records.layer(layer.same_as)
            if same is not None:
                return i, same
    return len(chain), None


def config_of(keep: Keep, below: Sequence[LayerRecord], hint: str | None) -> tuple[ImageConfig, ImageRecord | None]:
    """The config that an image has whose layers are ``below``, topmost first: that of the image ``hint`` if it has
    these, else of one that has; and the image that is exactly this."""
    base = below[0] if below else None
    diff_ids = tuple(layer.diff_id or "" for layer in reversed(below))
    tops = [] if base is None else [image.id for image in keep.records.images_of(base.id)]
    for candidate in [*([hint] if hint is not None else []), *tops, *_above(keep, base)]:
        image = keep.records.image(candidate)
        if image is None:
            continue
        try:
            config = read_config(keep, image.id)
        except NotFoundError:
            continue  # Removed and collected just now.
        except StoreError:
            if candidate == hint:
                raise
            continue  # Another's damage.
        if config.diff_ids[: len(diff_ids)] == diff_ids:
            exact = len(config.diff_ids) == len(diff_ids)
            return config.upto(len(diff_ids)), image if exact else None
    config = ImageConfig.new(*this_platform())
    for layer in reversed(below):
        config = config.with_layer(
            layer.diff_id, History(layer.created or None, layer.author, layer.created_by, layer.comment)
        )
    return config, None


def _above(keep: Keep, base: LayerRecord | None) -> list[str]:
    """Images that have this layer further down, newest first."""
    if base is None:
        return []
    rows = keep.database.rows(
        "WITH RECURSIVE above (id) AS (SELECT ? UNION"
        " SELECT layers.id FROM layers JOIN above ON layers.parent = above.id)"
        " SELECT images.id FROM images JOIN above ON images.layer = above.id ORDER BY images.made DESC LIMIT 8",
        (base.id,),
    )
    return [str(row[0]) for row in rows]


def commit_layer(
    keep: Keep,
    top: str | None,
    *,
    image: str | None,
    container: str | None,
    name: str | None,
    provenance: Provenance,
    changes: Sequence[str] = (),
    report: Report | None = None,
) -> str:
    """Make an image of the state whose topmost layer is ``top``; its id.

    ``image``: the image whose config it goes on from. ``container``: it stands on the new image from now on.
    ``changes``: to the config, as in ``docker commit --change``.
    Raises ``UnionError`` (``StoreError`` for damage), ``OSError``.
    """
    epoch = source_date_epoch()
    with Stack(keep, top) as stack:
        snapshots, base = image_layer_of(keep, stack.records)
        below = stack.records[snapshots:]
        if base is not None and base is not below[0]:
            below = keep.records.chain(base.id)
        config, parent = config_of(keep, below, image)
        config = apply_changes(config, changes)
        new, old = stack.tree(), stack.tree(snapshots)
        found = list(compare(new, old)) if snapshots else []

        def finish(config: ImageConfig, layer: NewLayer | None) -> str:
            return publish(keep, config, base, layer, name=name, parent=parent, container=container, below=below)

        if not found:
            config = config.with_layer(None, provenance.history())
            return finish(config, None)
        if report is not None:
            report("hashing", 0, 0)
        frozen = stack.records[0]
        flush_tree(keep.places.layer(frozen.id))
        layered = layer_of(new, found, epoch=epoch, base=base is None)
        config = config.with_layer(layered.diff_id, provenance.history())
        fits = snapshots == 1 and frozen.parent == (None if base is None else base.id)
        if fits and not surplus(new, old, stack.layers[0], found):
            plain = NewLayer(
                parent=base,
                layered=layered,
                provenance=provenance,
                epoch=epoch,
                snapshot=frozen,
                index=pack(notes_of(new)),
            )
            return finish(config, plain)
        with keep.places.staging() as staging, Stack(keep, None if base is None else base.id) as lower:
            write_clean(keep, staging, new, lower, found)
            clean = NewLayer(
                parent=base,
                layered=layered,
                provenance=provenance,
                epoch=epoch,
                staged=wrapped(staging),
                snapshot=frozen,
            )
            return finish(config, clean)


def write_clean(keep: Keep, staging: str, source: TreeReader, below: Stack, changes: Sequence[Change]) -> None:
    """Make ``staging/layer/diff``: a layer on ``below`` that shows what ``source`` shows, and holds nothing else.

    Raises ``StoreError`` if that can't be done exactly: it is compared.
    """
    wrap = wrapped(staging)
    os.mkdir(wrap, 0o700)
    top = below.records[0].id if below.records else None
    upper = new_upper(keep, staging, top)
    target = Tree(below.layers, upper)
    try:
        replay(source, target, changes)
        complete_links(target)
        for change in compare(source, target):
            raise StoreError(f"a clean layer can't be made: {change} differs in it")
    finally:
        upper.close()
    remove_tree(f"{staging}/work")
    os.rename(f"{staging}/upper", f"{wrap}/diff")


def wrapped(staging: str) -> str:
    """Where in ``staging`` a layer stands ready to be published."""
    return f"{staging}/layer"

"""Import: a directory, or a tar, becomes an image of one layer."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from contextlib import closing
from typing import IO, TYPE_CHECKING

from unionfs.images.committing import wrapped
from unionfs.images.layering import layer_of
from unionfs.images.publishing import NewLayer, Provenance, Report, publish
from unionfs.images.stacks import StoreFS, new_upper
from unionfs.images.times import creation_time, rfc3339, source_date_epoch
from unionfs.images.unpacking import unpack
from unionfs.layer.memory import MemoryLayer
from unionfs.oci.changes import apply_changes
from unionfs.oci.model import ImageConfig
from unionfs.oci.platform import this_platform
from unionfs.oci.reference import parse_name
from unionfs.store.durable import make_directory, remove_tree
from unionfs.store.steps import step
from unionfs.union.diff import compare
from unionfs.union.host import HostTree
from unionfs.union.transfer import Copy, HostEntry, HostSide, UnionSide
from unionfs.union.tree import Tree

if TYPE_CHECKING:
    from unionfs.images.image import Image
    from unionfs.images.store import Store

_SAID = "imported"  # And not from where: the same tree is the same image wherever it stood.


def import_tree(
    store: Store,
    source: str | os.PathLike[str] | IO[bytes],
    name: str | None,
    *,
    message: str,
    author: str,
    changes: Sequence[str],
    created: dt.datetime | None,
    report: Report | None,
) -> Image:
    """See ``Store.import_``."""
    keep = store.keep
    tag = None if name is None else str(parse_name(name))
    epoch = source_date_epoch()
    config = ImageConfig.new(*this_platform())
    config = apply_changes(config, changes)
    said = Provenance(created=rfc3339(creation_time(created)), author=author, comment=message or _SAID)
    with keep.places.staging() as staging:
        wrap = wrapped(staging)
        make_directory(wrap)
        upper = new_upper(keep, staging, None, volatile=True)  # Flushed as a whole, when it is complete.
        with closing(StoreFS([], upper, lambda: None)) as fs:
            step("unpack")
            if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
                _copy_directory(fs, os.fspath(source), report)
            elif isinstance(source, (str, os.PathLike)):
                with open(source, "rb") as file:
                    unpack(fs, file, report)
            else:
                unpack(fs, source, report)
            if report is not None:
                report("hashing", 0, 0)
            nothing = Tree([MemoryLayer()])
            found = compare(fs.tree, nothing)
            layered = layer_of(fs.tree, found, epoch=epoch, base=True)
        remove_tree(f"{staging}/work")
        os.rename(f"{staging}/upper", f"{wrap}/diff")
        new = NewLayer(parent=None, layered=layered, provenance=said, epoch=epoch, staged=wrap)
        config = config.with_layer(layered.diff_id, said.history())
        return store.image(publish(keep, config, None, new, name=tag, parent=None))


def _copy_directory(fs: StoreFS, source: str, report: Report | None) -> None:
    host = HostTree(source)
    try:
        side, target = HostSide(host), UnionSide(fs.tree)
        copy = Copy(side, target, (os.fsencode(source), b""))  # One for all: hard links hold among them.
        names = sorted(host.names(host.root))
        for i, name in enumerate(names):
            if report is not None:
                report("copying", i, len(names))
            copy.run(HostEntry(host.root, name), fs.tree.root, name)
        root = HostEntry(host.root, b".")
        target.dress(fs.tree.root, side.stat(root), side.xattrs(root))
    finally:
        host.close()

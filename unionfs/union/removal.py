"""Entries that go: from disk, then from memory. The tree's lock is held in every call."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from unionfs.layer.protocol import DT_DIR, DT_LNK
from unionfs.types import RENAME_EXCHANGE
from unionfs.union.copyup import afterwards, copy_up_at_once, copy_up_dir
from unionfs.union.identity import numbered
from unionfs.union.node import DirNode, FileNode, Node

if TYPE_CHECKING:
    from unionfs.union.tree import Tree


class Loss(NamedTuple):
    """What the loss of a name will mean: whether it is the last, and what is said of the file then."""

    last: bool
    word: os.stat_result | None


def last_word(tree: Tree, n: Node) -> os.stat_result | None:
    """The metadata of what is about to lose its last name, for those who still ask (``TreeReader.remembered``)."""
    if not tree.remembered:
        return None
    st, _ = tree.attributes(n)
    return numbered(st, n.ino, tree.numbers.device, 0)


def remove(tree: Tree, d: DirNode, name: bytes, in_upper: bool, *, directory: bool = False) -> None:
    """Take the entry away on disk: what the upper has goes, what is below gets a whiteout."""
    upper = tree.writable()
    home = copy_up_dir(tree, d)
    lower = not in_upper or name in tree.shadow(d)
    if not in_upper:
        upper.whiteout(home, name)
        tree.shadow(d).add(name)
        return
    temp = upper.temp_name()
    if lower:
        upper.whiteout(upper.staging, temp)
        upper.rename(upper.staging, temp, home, name, RENAME_EXCHANGE if directory else 0)
        if directory:
            with afterwards("a directory that went"):
                upper.clear(upper.staging, temp)
    elif directory:
        try:
            upper.rmdir(home, name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Only whiteouts are left in it.
            upper.rename(home, name, upper.staging, temp)
            with afterwards("a directory that went"):
                upper.clear(upper.staging, temp)
    else:
        upper.unlink(home, name)


def prepare(tree: Tree, n: FileNode, d: DirNode, name: bytes) -> Loss:
    """Get ready for the loss of a name: what is open keeps its metadata, what has other names its link count."""
    if n.names is not None and n.home.layer is not tree.upper and tree.stat(n).st_nlink > 1:
        copy_up_at_once(tree, n)
    n.kept = None
    if n.open and n.home.layer is tree.upper and tree.data_of(n) is not None:
        n.kept = n.home.layer.open(n.home, n.lname, os.O_RDONLY)
    last = n.names is None or tree.stat(n).st_nlink <= 1
    word = last_word(tree, n) if last and not n.open else None
    if n.names is not None and n.home.layer is tree.upper:
        if n.handle is not None:
            # So that the name goes and the count falls in one step.
            tree.name_in_upper(n, d, name)
            tree.links.before_change(n)
        elif n.names[d, name]:
            _keep_by_another_name(tree, n, d, name)
            _rehome(tree, n, d, name)
    return Loss(last, word)


def _keep_by_another_name(tree: Tree, n: FileNode, d: DirNode, name: bytes) -> None:
    """Without an index, the upper has the object only as long as it has one of its names."""
    assert n.names is not None
    if any(in_upper for key, in_upper in n.names.items() if key != (d, name)):
        return
    if len(n.names) < tree.stat(n).st_nlink:
        tree.links.know([n])
    others = [key for key in n.names if key != (d, name)]
    if others:
        tree.name_in_upper(n, *others[0])


def _rehome(tree: Tree, n: FileNode, d: DirNode, name: bytes) -> None:
    """The upper's object is known by the name that goes: know it by another."""
    assert n.names is not None
    for (other, other_name), in_upper in n.names.items():
        if in_upper and (other, other_name) != (d, name):
            n.home, n.lname = tree.sources(other)[0], other_name
            return


def has_name_in_upper(tree: Tree, n: FileNode, d: DirNode, name: bytes) -> bool:
    """Whether the upper has the object under this name."""
    if n.names is None:
        return n.home.layer is tree.upper
    return n.home.layer is tree.upper and n.names.get((d, name), False)


def lost(tree: Tree, n: FileNode, d: DirNode, name: bytes, loss: Loss) -> None:
    """The name is gone on disk; now in memory."""
    only_below = n.names is not None and n.home.layer is tree.upper and not n.names.get((d, name), False)
    if only_below:
        n.nlink_delta -= 1
    n.st = None
    n.drop_name(d, name)
    if loss.last:
        if n.names is not None:
            tree.links.forget(n)
        n.dead = True
        n.parent = None
        if n.open:
            tree.orphans.add(n)
    _gone(tree, d, name, n)
    n.st = loss.word


def lost_dir(tree: Tree, n: DirNode, d: DirNode, name: bytes, word: os.stat_result | None) -> None:
    """The directory is gone on disk; now in memory. ``word``: its ``last_word``."""
    n.dead = True
    n.entries = {}
    _gone(tree, d, name, n)
    n.st = word


def _gone(tree: Tree, d: DirNode, name: bytes, n: Node) -> None:
    entries = tree.entries(d)
    if entries.get(name) is n:
        del entries[name]
    if n.kind in (DT_DIR, DT_LNK):
        tree.paths_changed()
    tree.touched(n)
    tree.entry_changed(d, name)

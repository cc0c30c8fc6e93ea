"""Entries that move: rename, over what is there, and exchange.

No tree is copied: a directory that has something in the layers below gets a redirect, a metacopy says where its bytes
are (overlayfs.rst, "redirect_dir", "metadata only copy up"). What has to stand on disk first changes nothing that
shows; then one rename(2) is the step. The tree's lock is held in every call.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import attrs

from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG, LayerDir, Marks
from unionfs.types import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.union import removal
from unionfs.union.copyup import afterwards, copy_metadata, copy_up_at_once, copy_up_dir
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.reader import fail

if TYPE_CHECKING:
    from unionfs.union.tree import Tree

RENAME_WHITEOUT = 4


def check(n: Node, d: DirNode, n2: Node | None, d2: DirNode, name2: bytes, flags: int) -> None:
    """What forbids to move ``n`` from ``d`` to ``d2``, in the order in which Linux asks (fs/namei.c, do_renameat2)."""
    if n2 is not None and flags == RENAME_NOREPLACE:
        raise fail(errno.EEXIST, name2)
    if n2 is None and flags == RENAME_EXCHANGE:
        raise fail(errno.ENOENT, name2)
    if _is_above(n, d2):
        raise fail(errno.EINVAL, name2)
    if n2 is not None and _is_above(n2, d):
        raise fail(errno.EINVAL if flags == RENAME_EXCHANGE else errno.ENOTEMPTY, name2)
    if flags != RENAME_EXCHANGE and n2 is not None and n2 is not n:
        if isinstance(n2, DirNode) and not isinstance(n, DirNode):
            raise fail(errno.EISDIR, name2)
        if isinstance(n, DirNode) and not isinstance(n2, DirNode):
            raise fail(errno.ENOTDIR, name2)


def _is_above(n: Node, d: DirNode) -> bool:
    """Whether ``n`` is ``d`` or one of the directories it is in."""
    at: DirNode | None = d
    while at is not None and at is not n:
        at = at.parent
    return at is not None


def _ready_tomove(tree: Tree, n: Node, d: DirNode, name: bytes, onto_lower: bool) -> LayerDir:
    """Make the upper hold ``n`` so that it can stand elsewhere. Its directory in the upper."""
    upper = tree.writable()
    if isinstance(n, FileNode):
        copy_up_at_once(tree, n)
        home = copy_up_dir(tree, d)
        in_upper_by_name(tree, n, d, name)
        fix_metacopy(tree, n)
        return home
    assert isinstance(n, DirNode)
    if len(tree.sources(n)) > (1 if tree.in_upper(n) else 0):
        if not tree.redirect_dir:
            raise fail(errno.EXDEV, name)
        path = tree.lower_path(n)
        place = copy_up_dir(tree, n)
        marks = upper.marks(place, b".")
        if marks.redirect != path:
            upper.set_marks(place, b".", attrs.evolve(marks, redirect=path))
    else:
        place = tree.sources(n)[0]
        marks = upper.marks(place, b".")
        if onto_lower and not marks.opaque:
            upper.set_marks(place, b".", attrs.evolve(marks, opaque=True))
    assert place.parent is not None
    return place.parent


def in_upper_by_name(tree: Tree, n: FileNode, d: DirNode, name: bytes) -> None:
    if n.names is not None and not n.names[d, name]:
        home = copy_up_dir(tree, d)
        tree.shadow(d).add(name)
        tree.links.link_up(n, d, name, home)


def fix_metacopy(tree: Tree, n: FileNode) -> None:
    """A metacopy that gets another name says where its bytes are."""
    upper = tree.writable()
    if n.kind == DT_REG and tree.data_of(n) is not None and n.parent is not None:
        marks = upper.marks(n.home, n.lname)
        if marks.redirect is None or not marks.redirect.startswith(b"/"):
            base = tree.lower_path(n.parent)
            redirect = base + b"/" + (marks.redirect or n.name)
            upper.set_marks(n.home, n.lname, attrs.evolve(marks, redirect=redirect))


def move(tree: Tree, n: Node, d: DirNode, name: bytes, n2: Node | None, d2: DirNode, name2: bytes) -> None:
    upper = tree.writable()
    directory = isinstance(n, DirNode)
    home2 = copy_up_dir(tree, d2)
    in_upper2 = False
    loss = word = None
    if isinstance(n2, DirNode):
        in_upper2 = tree.in_upper(n2)
        word = removal.last_word(tree, n2)
    elif isinstance(n2, FileNode):
        loss = removal.prepare(tree, n2, d2, name2)
        in_upper2 = removal.has_name_in_upper(tree, n2, d2, name2)
    lower2 = name2 in tree.shadow(d2) or (n2 is not None and not in_upper2)
    home = _ready_tomove(tree, n, d, name, lower2)
    lower = name in tree.shadow(d)
    if isinstance(n2, DirNode) and in_upper2:
        _blank(tree, n2, home2, name2)
    if directory and n2 is None and name2 in tree.shadow(d2):
        # A whiteout stands there: it changes places with the directory, and stays if it has something to hide.
        upper.rename(home, name, home2, name2, RENAME_EXCHANGE)
        if not lower:
            with afterwards("a whiteout that hides nothing"):
                upper.unlink(home, name)
    else:
        upper.rename(home, name, home2, name2, RENAME_WHITEOUT if lower else 0)
    if lower2:
        tree.shadow(d2).add(name2)
    # At no time is a name missing for those who look without the lock.
    _moved(tree, n, d, name, d2, name2, home2)
    if isinstance(n2, DirNode):
        removal.lost_dir(tree, n2, d2, name2, word)
    elif isinstance(n2, FileNode):
        assert loss is not None
        removal.lost(tree, n2, d2, name2, loss)
    tree.entries(d).pop(name, None)
    tree.entry_changed(d, name)


def _blank(tree: Tree, n: DirNode, home: LayerDir, name: bytes) -> None:
    """Make an empty directory of the tree an empty directory on disk, so that a rename may replace it."""
    upper = tree.writable()
    place = tree.sources(n)[0]
    if not upper.scan(place):
        return
    temp = upper.temp_name()
    upper.mkdir(upper.staging, temp, 0o700)
    upper.set_marks(upper.staging, temp, Marks(opaque=True, ino=n.ino))
    copy_metadata(upper, place, b".", upper.stat(place, b"."), upper, upper.staging, temp)
    upper.rename(upper.staging, temp, home, name, RENAME_EXCHANGE)
    with afterwards("an emptied directory"):
        upper.clear(upper.staging, temp)
    n.srcs = [home.child(name)]


def exchange(tree: Tree, n: Node, d: DirNode, name: bytes, n2: Node, d2: DirNode, name2: bytes) -> None:
    upper = tree.writable()
    copy_up_dir(tree, d)
    copy_up_dir(tree, d2)
    lower = name in tree.shadow(d) or not tree.in_upper(n)
    lower2 = name2 in tree.shadow(d2) or not tree.in_upper(n2)
    home = _ready_tomove(tree, n, d, name, lower2)
    home2 = _ready_tomove(tree, n2, d2, name2, lower)
    upper.rename(home, name, home2, name2, RENAME_EXCHANGE)
    _moved(tree, n, d, name, d2, name2, home2)
    _moved(tree, n2, d2, name2, d, name, home)


def _moved(tree: Tree, n: Node, d: DirNode, name: bytes, d2: DirNode, name2: bytes, home2: LayerDir) -> None:
    """The object stands under its new name on disk; now in memory."""
    if isinstance(n, DirNode):
        place = tree.sources(n)[0]
        place.parent, place.name = home2, name2
        n.parent, n.name = d2, name2
    else:
        assert isinstance(n, FileNode)
        if n.handle is None and (n.names is None or n.lname == name):
            n.home, n.lname = home2, name2
        if n.names is None:
            n.parent, n.name = d2, name2
        else:
            n.drop_name(d, name)
            n.add_name(d2, name2, True)
    tree.put(d2, name2, n)
    tree.touched(n)
    if n.kind in (DT_DIR, DT_LNK):
        tree.paths_changed()

"""Files that begin without a name (open(2), ``O_TMPFILE``), and may get one later."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from unionfs.layer.acl import DEFAULT
from unionfs.layer.protocol import DT_REG, LayerDir, LayerFile, WritableLayer
from unionfs.union.copyup import copy_up_dir
from unionfs.union.handle import Handle
from unionfs.union.node import DirNode, FileNode
from unionfs.union.reader import fail

if TYPE_CHECKING:
    from unionfs.union.tree import Tree


def create(tree: Tree, d: DirNode, mode: int, flags: int, uid: int | None, gid: int | None) -> tuple[FileNode, Handle]:
    """See ``Tree.tmpfile``. The tree's lock is held."""
    upper = tree.writable()
    if d.dead:
        raise fail(errno.ENOENT)
    home = copy_up_dir(tree, d)
    file = upper.stage(home, mode)
    try:
        _own(upper, home, file, mode, uid, gid)
        node = FileNode(None, b"", DT_REG, upper.staging, b"")
        node.data = None
        node.dead = True
        node.unnamed = file
        node.ino = tree.numbers.number(file.stat())
        tree.orphans.add(node)
        return node, Handle(tree, node, flags, file)
    except BaseException:
        upper.discard(file)
        raise


def _own(upper: WritableLayer, parent: LayerDir, file: LayerFile, mode: int, uid: int | None, gid: int | None) -> None:
    """Owner and mode as a new entry of ``parent`` has them (``Tree.new_entry``)."""
    if uid is None:
        return
    above = upper.stat(parent, b".")
    if above.st_mode & stat.S_ISGID:
        gid = above.st_gid
    st = file.stat()
    if st.st_uid != uid or (gid is not None and st.st_gid != gid):
        file.setattr(uid=uid, gid=gid)
    if stat.S_IMODE(st.st_mode) != mode and DEFAULT not in upper.listxattr(parent, b"."):
        file.setattr(mode=mode)


def name_first(tree: Tree, n: FileNode, d: DirNode, name: bytes) -> None:
    """Give it a name (linkat(2)). The tree's lock is held."""
    file = n.unnamed
    assert file is not None
    with tree.whole((d, name)):
        home, _, _ = tree.new_entry(
            d, name, lambda parent, at: tree.writable().place(file, parent, at), None, None, None
        )
        n.unnamed = None
        n.dead = False
        n.parent, n.name, n.home, n.lname = d, name, home, name
        tree.orphans.discard(n)
        tree.put(d, name, n)
        tree.touched(n)

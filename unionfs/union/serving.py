"""What only an engine asks of a tree: one answer for one request, and nothing kept that the kernel keeps already.

A node that the kernel has forgotten becomes a code in its directory again (``forget``); so the memory that a mount
takes goes with what the kernel remembers and not with what was ever looked at.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import TYPE_CHECKING

from unionfs.layer.acl import DEFAULT
from unionfs.layer.protocol import DT_DIR, DT_REG
from unionfs.union.copyup import is_copied_up
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.reader import NAME_MAX, fail

if TYPE_CHECKING:
    from unionfs.union.resolve import Code
    from unionfs.union.tree import Tree

SMALL = 1 << 18
"""Bytes that are copied up while others wait."""

_DAY = 86_400_000_000_000  # nanoseconds


def _references() -> tuple[int, int, int]:
    """What ``sys.getrefcount`` tells in ``_forget_file`` of a node that only its directory and its callers hold, in
    ``_all_alone`` of one that only its directory holds, and in ``_forget_entries`` of what nobody else holds. Pythons
    differ: since 3.14 not every name counts."""

    def caller() -> int:
        n = object()
        entries = {b"": n}
        return forget(n) if entries else 0

    def forget(n: object) -> int:
        return file(n)

    def file(n: object) -> int:
        return sys.getrefcount(n)

    for child in {b"": object()}.values():
        entries = {b"": None}
        return caller(), sys.getrefcount(child), sys.getrefcount(entries)
    raise AssertionError


_ALONE, _CHILD_ALONE, _UNSHARED = _references()


def look_up(tree: Tree, d: Node, name: bytes) -> tuple[Node, os.stat_result, int] | None:
    """The node of ``name`` in ``d``, with what ``Tree.attributes`` says of it; ``None`` if there is none.

    ``ENOTDIR``, ``ENAMETOOLONG``.
    """
    if not isinstance(d, DirNode):
        raise fail(errno.ENOTDIR, name)
    entries = d.entries
    if entries is None:
        entries = tree.entries(d)
    found = entries.get(name)
    if found is None:
        if len(name) > NAME_MAX:
            raise fail(errno.ENAMETOOLONG, name)
        if name not in (b".", b".."):
            return None
        found = tree.lookup(d, name)
    if not isinstance(found, Node):
        try:
            found, st = tree.known(d, name, False)
        except FileNotFoundError:
            return None  # Gone since.
        if st is not None:
            return found, st, 1
    try:
        st, nlink = tree.attributes(found)
    except FileNotFoundError:
        if (d.entries or {}).get(name) is found:
            raise
        return look_up(tree, d, name)  # The name leads elsewhere since.
    return found, st, nlink


def glance(tree: Tree, d: DirNode, name: bytes) -> tuple[int, os.stat_result] | None:
    """The inode number of a file with one name, and its layer's word of it, without a node to remember.

    ``None`` for what is listed as a directory, what a node is known of, and what takes one to know.
    """
    moves = tree.moves
    entries = d.entries
    if entries is None:
        entries = tree.entries(d)
    code = entries.get(name)
    if type(code) is not int or code & 15 == DT_DIR:
        return None
    sources = d.srcs
    if moves != tree.moves or moves & 1 or sources is None:
        return None  # The entry may be of other sources.
    home = sources[-1 - (code >> 4)]
    layer = home.layer
    try:
        st = layer.stat(home, name)
    except OSError:
        if moves == tree.moves:
            raise
        return None
    if st.st_nlink > 1 or (not st.st_blocks and st.st_size and code & 15 == DT_REG):
        return None
    if layer.has_inos:
        marks = layer.marks(home, name)
        if marks.ino:
            return marks.ino, st
        if marks.origin is not None:
            return None
    numbers = tree.numbers
    return st.st_ino if st.st_dev == numbers.home else numbers.number(st), st


def number_of(tree: Tree, d: DirNode, name: bytes) -> tuple[int, int] | None:
    """The inode number and the ``DT_*`` of an entry, without a node to remember; ``None`` if it has gone."""
    entries = tree.entries(d)
    found = entries.get(name)
    if isinstance(found, Node):
        return found.ino, found.kind
    if found is None:
        return None
    try:
        seen = glance(tree, d, name)
        if seen is not None:
            return seen[0], seen[1].st_mode >> 12
        node = tree.lookup(d, name)
        number = node.ino, node.kind
    except OSError:
        return None
    forget(tree, node)
    return number


def forget(tree: Tree, n: Node) -> None:
    """Nobody asks for ``n`` any more. What can be found out anew, and nobody else holds, is not kept."""
    with tree.lock:
        if isinstance(n, FileNode):
            _forget_file(tree, n)
        elif isinstance(n, DirNode):
            _forget_entries(n)


def _forget_file(tree: Tree, n: FileNode) -> None:
    d = n.parent
    if d is None or n.names is not None or n.open or n.keys is not None or d.entries is None or d.srcs is None:
        return
    if d.entries.get(n.name) is not n or sys.getrefcount(n) > _ALONE:
        return
    if n.home.layer is tree.upper and n.kind != DT_REG:
        return  # Its number may be nowhere but here: not all that is special can carry a mark (xattr(7)).
    for i, source in enumerate(reversed(d.srcs)):
        if source is n.home and n.lname == n.name:
            d.entries[n.name] = i << 4 | n.kind
            if sys.getrefcount(n) > _ALONE - 1:
                d.entries[n.name] = n  # Who looks without the lock found it there a moment ago.
            return


def _forget_entries(d: DirNode) -> None:
    if d.dead or d.parent is None or d.entries is None:
        return
    entries = d.entries
    if not _all_alone(entries):
        return
    d.entries = None
    # Who looks without the lock may be at it, or have found something a moment ago.
    if sys.getrefcount(entries) > _UNSHARED or not _all_alone(entries):
        d.entries = entries


def _all_alone(entries: dict[bytes, Node | Code]) -> bool:
    """Whether nothing that is known of these entries would be lost with them."""
    for child in entries.values():
        if isinstance(child, Node) and (
            not isinstance(child, DirNode) or child.entries is not None or sys.getrefcount(child) > _CHILD_ALONE
        ):
            return False
    return True


def is_quick(tree: Tree, n: Node, size: int | None = None) -> bool:
    """Whether the bytes of ``n`` (the first ``size`` of them) are in the upper, or can be in no time."""
    if not isinstance(n, FileNode) or n.kind != DT_REG or is_copied_up(tree, n, True):
        return True
    if size is not None and size <= SMALL:
        return True
    return tree.attributes(n)[0].st_size <= SMALL


def birth_ns(tree: Tree, n: Node) -> int | None:
    """When what the layer holds of ``n`` was made (statx(2), ``stx_btime``); ``None`` where nobody knows."""

    def look(n: Node) -> int | None:
        if (isinstance(n, FileNode) and n.nameless) or (isinstance(n, DirNode) and n.dead):
            return None
        home, name = tree.home_of(n)
        return home.layer.birth_ns(home, name)

    return tree.steadily(look, n)


def access_due(tree: Tree, n: Node) -> bool:
    """Whether reading ``n`` now would change its access time, by relatime's rules (mount(8)): only the upper's does."""
    if not isinstance(n, FileNode) or n.home.layer is not tree.upper:
        return False
    st = tree.attributes(n)[0]
    atime = st.st_atime_ns
    return atime <= st.st_mtime_ns or atime <= st.st_ctime_ns or time.time_ns() - atime > _DAY


def kill_privileges(tree: Tree, n: Node) -> None:
    """Take the set-user-ID bit, and the set-group-ID bit of a program, as a write by a user does (inode(7)).

    File capabilities go with the write itself.
    """
    mode = tree.attributes(n)[0].st_mode
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        kept &= ~stat.S_ISGID
    if kept != mode:
        tree.setattr(n, mode=stat.S_IMODE(kept))


def attributes_shown(tree: Tree, n: Node, uid: int) -> list[bytes]:
    """The names of the extended attributes of ``n`` that this user is told of: ``trusted.*`` is root's (xattr(7)).

    A kernel that asks an engine for the names leaves that to it.
    """
    keys = tree.listxattr(n)
    return keys if uid == 0 else [key for key in keys if not key.startswith(b"trusted.")]


def has_default_acl(tree: Tree, d: Node) -> bool:
    """Whether a default ACL decides about new entries of ``d``, and not the umask (acl(5))."""
    return DEFAULT in tree.listxattr(d)

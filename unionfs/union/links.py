"""Hard links that stay hard links: one node for all names of an inode, through copy-up and across mounts.

The lower's names of one inode can't all be found without walking the lower. So a copied-up hard link is kept in the
upper's index too, under the file handle of its origin, and any other name of that origin leads there
(Documentation/filesystems/overlayfs.rst, "index"; the entry's ``overlay.nlink`` says how far the union's link count is
from the inode's own: fs/overlayfs/util.c, ``ovl_set_nlink_common``).
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from unionfs.layer.protocol import DT_DIR, DT_REG, DT_WHT, LayerDir, Marks, WritableLayer
from unionfs.union.copyup import afterwards, kept_times
from unionfs.union.identity import settle_number
from unionfs.union.node import UNKNOWN, DirNode, FileNode

if TYPE_CHECKING:
    from unionfs.union.reader import TreeReader

log = logging.getLogger(__name__)

_COUNT = re.compile(rb"[UL][+-][0-9]{1,9}")


def _is_handle(name: bytes) -> bool:
    try:
        bytes.fromhex(name.decode())
    except ValueError:
        return False
    return True


class Links:
    """The nodes of objects with several names. The tree's lock is held in every call."""

    def __init__(self, tree: TreeReader) -> None:
        self._tree = tree
        self._nodes: dict[tuple[int, int], FileNode] = {}
        self._indexed: set[bytes] = set()
        self._relative: set[FileNode] = set()
        self.reload()

    def reload(self) -> None:
        """Read the upper's index anew: at start, and after a commit.

        An entry without any name is what a killed process left, and goes (fs/overlayfs/readdir.c,
        ``ovl_indexdir_cleanup``). A count relative to the lower's becomes one relative to the upper's.
        """
        self._indexed = set()
        upper = self._tree.upper
        if upper is None or upper.index is None:
            return
        for name, kind in upper.scan(upper.index).items():
            if not _is_handle(name) or kind in (DT_DIR, DT_WHT):
                if name.startswith(b"#"):
                    upper.clear(upper.index, name)  # overlayfs stages here too.
                continue
            n = FileNode(None, name, kind, upper.index, name)
            st = upper.stat(upper.index, name)
            marks = upper.marks(upper.index, name)
            self._read_count(n, name, marks, st)
            if st.st_nlink + n.nlink_delta <= 0:
                upper.unlink(upper.index, name)
                continue
            self._indexed.add(name)
            if (marks.nlink or b"L")[:1] == b"L" and n.links_below is not None:
                upper.set_marks(upper.index, name, attrs.evolve(marks, nlink=b"U%+d" % n.nlink_delta))

    def in_index(self) -> list[FileNode]:
        """The nodes that are kept in the index, after looking up those that nobody asked for yet."""
        upper = self._upper()
        missing = self._indexed - {n.handle for n in self._nodes.values() if n.handle is not None}
        for handle in missing:
            index = self._index()
            st = upper.stat(index, handle)
            known = self._nodes.get((st.st_dev, st.st_ino))
            if known is None:
                known = FileNode(None, handle, st.st_mode >> 12, index, handle)
                known.names = {}
                self._read_count(known, handle, upper.marks(index, handle), st)
                self._nodes[st.st_dev, st.st_ino] = known
                settle_number(self._tree, known, st)
            known.home, known.lname, known.handle = index, handle, handle
        return [n for n in self.nodes() if n.handle is not None]

    def names_below(self, n: FileNode) -> int:
        """How many names of an object in the index only layers below the upper have, or nobody asked for yet."""
        st = self._upper().stat(n.home, n.lname)
        known = sum(1 for in_upper in (n.names or {}).values() if in_upper)
        return st.st_nlink + n.nlink_delta - known

    def names_unknown(self, n: FileNode) -> int:
        """How many names of an object nobody asked for yet."""
        return n.home.layer.stat(n.home, n.lname).st_nlink + n.nlink_delta - len(n.names or ())

    def leave_index(self, n: FileNode) -> None:
        """All names of the object are in the upper: the index need not keep it."""
        upper = self._upper()
        assert n.handle is not None
        upper.unlink(self._index(), n.handle)
        self._indexed.discard(n.handle)
        n.handle = None
        n.nlink_delta = 0
        for (d, name), in_upper in (n.names or {}).items():
            if in_upper:
                n.home, n.lname = self._tree.sources(d)[0], name
                marks = upper.marks(n.home, n.lname)
                upper.set_marks(n.home, n.lname, attrs.evolve(marks, nlink=None, origin=None))
                return

    def frozen(self) -> None:
        """The upper is a lower now: no name is in the new one yet."""
        self.reload()
        for n in self.nodes():
            for key in n.names or ():
                assert n.names is not None
                n.names[key] = False

    def keeps(self, home: LayerDir, lname: bytes) -> bool:
        """Whether the upper's index has this object, of a layer below, so that all its names lead there."""
        return bool(self._indexed) and (self._handle(home, lname) or b"") in self._indexed

    def take_over(self, tree: TreeReader, others: Links) -> None:
        """These are the links of ``tree`` now, with those of its nodes that have names left."""
        self._tree = tree
        self._nodes = {key: n for key, n in others._nodes.items() if not n.dead}

    def know(self, files: Iterable[FileNode]) -> None:
        """Look for the names of these hard links that nobody asked for yet: beside the known ones, then everywhere.

        It ends when all are known; else it takes as long as a walk. What can't be read, or is gone by now, is passed
        over: a lower that is the host's own root changes while it is looked at.
        """
        total = {n: self.names_unknown(n) + len(n.names or ()) for n in files}
        missing = {n for n in total if len(n.names or ()) < total[n]}
        for d in {d: None for n in missing for d, _ in n.names or ()}:
            self._know_entries(d)
        todo: list[DirNode] = [self._tree.root]
        while todo and (missing := {n for n in missing if len(n.names or ()) < total[n]}):
            todo += self._know_entries(todo.pop())

    def _know_entries(self, d: DirNode) -> list[DirNode]:
        """Look up every name in ``d``; the directories among them."""
        found: list[DirNode] = []
        with suppress(OSError):
            for name, _, _ in self._tree.listdir(d):
                with suppress(OSError):
                    node = self._tree.lookup(d, name)
                    if isinstance(node, DirNode):
                        found.append(node)
        return found

    def nodes(self) -> list[FileNode]:
        """All nodes that are known to have, or to have had, several names."""
        return list({id(n): n for n in self._nodes.values()}.values())

    def node(self, d: DirNode, name: bytes, kind: int, home: LayerDir, lname: bytes, st: os.stat_result) -> FileNode:
        """The node of this name, whose object has several; ``st`` is the layer's word of it."""
        tree = self._tree
        in_upper = home.layer is tree.upper
        key = (st.st_dev, st.st_ino)
        found = self._nodes.get(key)
        if found is None:
            found = FileNode(d, name, kind, home, lname)
            self._nodes[key] = found
            handle = None
            if self._indexed and not in_upper:
                handle = self._handle(home, lname)
            if handle is not None and handle in self._indexed:
                found = self._from_index(found, handle, st)
                self._nodes[key] = found
            elif in_upper:
                self._from_upper(found, st)
            if not found.ino:
                settle_number(self._tree, found, st)
        elif in_upper and found.parent is None and found.handle is None:
            found.home, found.lname = home, lname  # Its known names have gone, and this one was not known.
        found.add_name(d, name, in_upper)
        return found

    def _from_index(self, n: FileNode, handle: bytes, lower: os.stat_result) -> FileNode:
        upper = self._tree.upper
        assert upper is not None
        assert upper.index is not None
        st = upper.stat(upper.index, handle)
        key = (st.st_dev, st.st_ino)
        known = self._nodes.get(key)
        if known is not None:
            return known
        n.home, n.lname, n.handle, n.data = upper.index, handle, handle, UNKNOWN
        n.links_below = lower.st_nlink
        self._read_count(n, handle, upper.marks(upper.index, handle), st)
        self._nodes[key] = n
        return n

    def _from_upper(self, n: FileNode, st: os.stat_result) -> None:
        """Found under a name in the upper: is it kept in the index too?"""
        marks = n.home.layer.marks(n.home, n.lname)
        handle = None if marks.origin is None else marks.origin.hex().encode()
        if handle is not None and handle in self._indexed:
            self._read_count(n, handle, marks, st)
            n.home, n.lname, n.handle = self._index(), handle, handle

    def _read_count(self, n: FileNode, handle: bytes, marks: Marks, st: os.stat_result) -> None:
        """``U+1``: one more than the upper's inode has; ``L-1``: one less than the lower's. None is ``L+0``."""
        record = marks.nlink or b"L+0"
        distance = int(record[1:]) if _COUNT.fullmatch(record) else None
        if distance is None:
            log.warning("%s: link count %r ignored", n.home.layer.label, record)
            return
        if record[:1] == b"U":
            n.nlink_delta = distance
            return
        below = self._count_below(n, handle)
        if below is None:
            log.warning("%s: the link count of a copied-up hard link is not known", n.home.layer.label)
            n.nlink_delta = -1  # The index itself is none of its names.
        else:
            n.nlink_delta = below + distance - st.st_nlink

    def _count_below(self, n: FileNode, handle: bytes) -> int | None:
        """The link count of the lower inode with this handle."""
        if n.links_below is None:
            raw = bytes.fromhex(handle.decode())
            for layer in self._tree.resolver.layers:
                st = layer.by_handle(raw)
                if st is not None:
                    n.links_below = st.st_nlink
                    break
        return n.links_below

    @staticmethod
    def _handle(home: LayerDir, lname: bytes) -> bytes | None:
        raw = home.layer.handle(home, lname)
        return None if raw is None else raw.hex().encode()

    def copied_up(
        self,
        n: FileNode,
        temp: bytes,
        parent: LayerDir,
        nlink: int,
        data: tuple[LayerDir, bytes] | None,
    ) -> None:
        """The staged copy of ``n`` goes to the index, and under its one name to ``parent``."""
        upper = self._upper()
        assert n.parent is not None
        assert n.names is not None
        handle = self._keep(n, temp, nlink)
        with kept_times(upper, parent):
            upper.rename(upper.staging, temp, parent, n.name)
        n.nlink_delta = nlink - (1 if handle is None else 2)
        self._moved(n, handle, (parent, n.name), data)
        n.names[n.parent, n.name] = True
        self._remember(n, upper)
        if handle is not None:
            self._relative.add(n)
        with afterwards("a link count"):
            self.record(n)

    def _keep(self, n: FileNode, temp: bytes, nlink: int) -> bytes | None:
        """Put the staged copy into the index, its link count relative to the lower's until it has its name."""
        upper = self._upper()
        if upper.index is None:
            return None
        raw = n.home.layer.handle(n.home, n.lname)
        if raw is None:
            log.info("%s: no file handles; its hard links are kept until the next mount", n.home.layer.label)
            return None
        n.links_below = n.home.layer.stat(n.home, n.lname).st_nlink
        marks = attrs.evolve(upper.marks(upper.staging, temp), nlink=b"L%+d" % (nlink - n.links_below), origin=raw)
        try:
            upper.set_marks(upper.staging, temp, marks)
        except OSError as error:
            # user.* attributes are for regular files and directories only (xattr(7)).
            if n.kind == DT_REG or error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                raise
            log.info("%s: no marks on it; its hard links are kept until the next mount", n.name)
            return None
        handle = raw.hex().encode()
        upper.link(upper.staging, temp, self._index(), handle)
        self._indexed.add(handle)
        return handle

    def _moved(
        self, n: FileNode, handle: bytes | None, place: tuple[LayerDir, bytes], data: tuple[LayerDir, bytes] | None
    ) -> None:
        n.handle = handle
        n.home, n.lname = place if handle is None else (self._index(), handle)
        n.data = data
        if n.names is not None:
            for key in n.names:
                n.names[key] = False

    def _remember(self, n: FileNode, upper: WritableLayer) -> None:
        st = upper.stat(n.home, n.lname)
        self._nodes[st.st_dev, st.st_ino] = n

    def link_up(self, n: FileNode, d: DirNode, name: bytes, parent: LayerDir) -> None:
        """Give the upper's object the name under which only a layer below had it."""
        upper = self._upper()
        assert n.names is not None
        if n.handle is not None:
            below = self._count_below(n, n.handle)
            if below is not None:
                # The upper's count is about to change, the union's is not.
                nlink = self._tree.stat(n).st_nlink
                marks = upper.marks(n.home, n.lname)
                upper.set_marks(n.home, n.lname, attrs.evolve(marks, nlink=b"L%+d" % (nlink - below)))
                self._relative.add(n)
        with kept_times(upper, parent):
            upper.link(n.home, n.lname, parent, name)
        n.names[d, name] = True
        n.nlink_delta -= 1
        with afterwards("a link count"):
            self.record(n)

    def record(self, n: FileNode) -> None:
        """Write the link count's distance down, where the object is kept in the index."""
        upper = self._upper()
        if n.handle is not None:
            marks = upper.marks(n.home, n.lname)
            upper.set_marks(n.home, n.lname, attrs.evolve(marks, nlink=b"U%+d" % n.nlink_delta))
        self._relative.discard(n)

    def before_change(self, n: FileNode) -> None:
        """The upper's link count and the union's are about to change together."""
        if n in self._relative:
            self.record(n)

    def forget(self, n: FileNode) -> None:
        """The object has no name left: it leaves the index."""
        if n.handle is not None:
            upper = self._upper()
            with afterwards("a hard link without a name in the index"):
                upper.unlink(self._index(), n.handle)
            self._indexed.discard(n.handle)
            n.handle = None
        for key in [key for key, node in self._nodes.items() if node is n]:
            del self._nodes[key]

    def new_link(self, n: FileNode) -> None:
        """``n`` has a second name from now on."""
        if n.names is None:
            assert n.parent is not None
            n.add_name(n.parent, n.name, True)
        self._remember(n, self._upper())

    def _upper(self) -> WritableLayer:
        upper = self._tree.upper
        assert upper is not None
        return upper

    def _index(self) -> LayerDir:
        index = self._upper().index
        assert index is not None
        return index

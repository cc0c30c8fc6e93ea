"""Hard links that stay hard links: one node for all names of an inode, through copy-up and across mounts.

The lower's names of one inode can't all be found without walking the lower. So a copied-up hard link is kept in the
upper's index too, under the file handle of its origin, and any other name of that origin leads there
(Documentation/filesystems/overlayfs.rst, "index"; the entry's ``overlay.nlink`` says how far the union's link count is
from the inode's own: fs/overlayfs/util.c, ``ovl_set_nlink_common``).
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import attrs

from unionfs.layer.protocol import LayerDir, Marks, WritableLayer
from unionfs.union.copyup import kept_times
from unionfs.union.node import UNKNOWN, DirNode, FileNode

if TYPE_CHECKING:
    from unionfs.union.reader import TreeReader

log = logging.getLogger(__name__)


class Links:
    """The nodes of objects with several names. The tree's lock is held in every call."""

    def __init__(self, tree: TreeReader) -> None:
        self._tree = tree
        self._nodes: dict[tuple[int, int], FileNode] = {}
        self._indexed: set[bytes] = set()
        self.reload()

    def reload(self) -> None:
        """Read the upper's index anew: at start, and after a commit."""
        upper = self._tree.upper
        self._indexed = set() if upper is None or upper.index is None else set(upper.scan(upper.index))

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
                self._read_count(known, upper.marks(index, handle), st, None)
                self._nodes[st.st_dev, st.st_ino] = known
                self._tree.settle_number(known, st)
            known.home, known.lname, known.handle = index, handle, handle
        return [n for n in self.nodes() if n.handle is not None]

    def names_below(self, n: FileNode) -> int:
        """How many names of an object in the index only layers below the upper have, or nobody asked for yet."""
        st = self._upper().stat(n.home, n.lname)
        known = sum(1 for in_upper in (n.names or {}).values() if in_upper)
        return st.st_nlink + n.nlink_delta - known

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
            tree.settle_number(found, st)
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
            known.handle = handle
            known.home, known.lname = upper.index, handle
            return known
        n.home, n.lname, n.handle, n.data = upper.index, handle, handle, UNKNOWN
        self._read_count(n, upper.marks(upper.index, handle), st, lower)
        self._nodes[key] = n
        return n

    def _from_upper(self, n: FileNode, st: os.stat_result) -> None:
        """Found under a name in the upper: is it kept in the index too?"""
        marks = n.home.layer.marks(n.home, n.lname)
        handle = None if marks.origin is None else marks.origin.hex().encode()
        if handle is not None and handle in self._indexed:
            self._read_count(n, marks, st, None)
            n.home, n.lname, n.handle = self._index(), handle, handle

    @staticmethod
    def _read_count(n: FileNode, marks: Marks, st: os.stat_result, lower: os.stat_result | None) -> None:
        """``U+1``: one more than the upper's inode has; ``L-1``: one less than the lower's."""
        if marks.nlink is None:
            return
        try:
            distance = int(marks.nlink[1:])
        except ValueError:
            log.warning("%s: link count %r ignored", n.home.layer.label, marks.nlink)
            return
        if marks.nlink[:1] == b"U":
            n.nlink_delta = distance
        elif lower is not None:
            n.nlink_delta = lower.st_nlink + distance - st.st_nlink

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
        handle = self._keep(n, temp, nlink, names=1)
        with kept_times(upper, parent):
            upper.rename(upper.staging, temp, parent, n.name)
        self._moved(n, handle, (parent, n.name), data)
        n.names[n.parent, n.name] = True
        self._remember(n, upper)

    def _keep(self, n: FileNode, temp: bytes, nlink: int, names: int) -> bytes | None:
        """Put the staged copy into the index; ``names``: how many names besides it will have in the upper."""
        upper = self._upper()
        handle = raw = None
        if upper.index is not None:
            raw = n.home.layer.handle(n.home, n.lname)
            if raw is None:
                log.info("%s: no file handles; its hard links are kept until the next mount", n.home.layer.label)
            else:
                handle = raw.hex().encode()
        real = names + (handle is not None)
        n.nlink_delta = nlink - real
        if handle is not None:
            marks = upper.marks(upper.staging, temp)
            marks = attrs.evolve(marks, nlink=b"U%+d" % n.nlink_delta, origin=raw)
            upper.set_marks(upper.staging, temp, marks)
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
        with kept_times(upper, parent):
            upper.link(n.home, n.lname, parent, name)
        n.names[d, name] = True
        n.nlink_delta -= 1
        self.record(n)

    def record(self, n: FileNode) -> None:
        """Write the link count's distance down, where the object is kept in the index."""
        upper = self._upper()
        if n.handle is not None:
            marks = upper.marks(n.home, n.lname)
            upper.set_marks(n.home, n.lname, attrs.evolve(marks, nlink=b"U%+d" % n.nlink_delta))

    def lower_name_gone(self, n: FileNode) -> None:
        """A name that only a layer below had is no more."""
        n.nlink_delta -= 1
        self.record(n)

    def forget(self, n: FileNode) -> None:
        """The object has no name left: it leaves the index."""
        if n.handle is not None:
            upper = self._upper()
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

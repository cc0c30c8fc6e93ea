"""After a change that broke off in the middle, by an error or by Ctrl-C: what the layers say counts.

The names that the change was about are looked up anew. What is found there is the node it was, by its number, so that
open files and those who hold a node go on with it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from unionfs.layer.protocol import DT_DIR
from unionfs.union.identity import settle_number
from unionfs.union.node import UNKNOWN, DirNode, FileNode, Node
from unionfs.union.resolve import Code, kind_of, places

if TYPE_CHECKING:
    from unionfs.union.reader import TreeReader

log = logging.getLogger(__name__)


def heal(tree: TreeReader, *names: tuple[DirNode, bytes]) -> None:
    """Make what is known of these names, ``(directory, name)``, what the layers have. The tree's lock is held."""
    tree.changes += 1
    tree.cache.clear()
    try:
        _Healing(tree, names).run()
    except OSError as error:
        log.error("after a change that failed, the layers can't be read: %s", error)


class _Healing:
    def __init__(self, tree: TreeReader, names: tuple[tuple[DirNode, bytes], ...]) -> None:
        self.tree = tree
        self.names = names
        self.loose: list[tuple[DirNode, bytes, Node]] = []

    def run(self) -> None:
        for d in dict.fromkeys(d for d, _ in self.names):
            self.find_in_upper(d)
            if d.entries is not None and not d.dead:
                self.list_anew(d)
        for d, name in self.names:
            code = None if d.entries is None else d.entries.get(name)
            if code is not None and not isinstance(code, Node):
                self.attach(d, name, code)
        for d, name, n in self.loose:
            self.lose(d, name, n)

    def find_in_upper(self, d: DirNode) -> None:
        """``d`` and those above it may have been copied up."""
        tree = self.tree
        tree.touched(d)
        chain = [d]
        while (parent := chain[-1].parent) is not None:
            chain.append(parent)
        above = tree.sources(chain.pop())[0]
        for at in reversed(chain):
            assert at.parent is not None
            if at.dead or above.layer is not tree.upper:
                return
            if tree.sources(at)[0].layer is not tree.upper and above.layer.kind(above, at.name) == DT_DIR:
                tree.sources(at).insert(0, above.child(at.name))
                tree.shadow(at.parent).add(at.name)
                tree.touched(at)
            above = tree.sources(at)[0]

    def list_anew(self, d: DirNode) -> None:
        old = d.entries or {}
        tree = self.tree
        tree.list_entries(d)
        assert d.entries is not None
        for name, entry in old.items():
            if isinstance(entry, Node):
                if name in d.entries and (d, name) not in self.names:
                    d.entries[name] = entry
                else:
                    self.loose.append((d, name, entry))

    def attach(self, d: DirNode, name: bytes, code: Code) -> None:
        """Find the node that this entry was, under whatever name."""
        tree = self.tree
        assert d.entries is not None
        home = tree.sources(d)[-1 - places(code)[0]]
        st = home.layer.stat(home, name)
        probe: Node
        if kind_of(code) == DT_DIR:
            probe = DirNode(d, name, places(code))
        else:
            probe = FileNode(d, name, kind_of(code), home, name)
        settle_number(tree, probe, st)
        for i, (old, old_name, n) in enumerate(self.loose):
            if n.kind != probe.kind or n.ino != probe.ino:
                continue
            if isinstance(n, DirNode):
                n.parent, n.name = d, name
                top = tree.sources(n)[0] if n.srcs is not None else None
                if top is None:
                    n.holders = places(code)
                elif top.layer is tree.upper:
                    top.parent, top.name, top.ref = home, name, None
                elif home.layer is tree.upper:
                    n.srcs = [home.child(name), *tree.sources(n)]
            elif isinstance(n, FileNode):
                if n.names is not None:
                    continue  # Known again by its number when somebody asks.
                moved = n.home is not home
                n.parent, n.name, n.home, n.lname, n.data = d, name, home, name, UNKNOWN
                if moved:
                    for opened in n.open or ():
                        if opened.flags & 3 == 0:
                            opened.switch(tree.open_data(n))
            del self.loose[i]
            d.entries[name] = n
            tree.touched(n)
            del old, old_name
            return

    def lose(self, d: DirNode, name: bytes, n: Node) -> None:
        """Nothing has shown up that is this node."""
        tree = self.tree
        if isinstance(n, DirNode):
            n.dead = True
            n.entries = {}
        elif isinstance(n, FileNode):
            n.drop_name(d, name)
            if n.names is None:
                n.dead, n.parent = True, None
                if n.open:
                    tree.orphans.add(n)
        tree.touched(n)

"""Another stack under the same tree, in one step, while threads and mounts use it.

The new stack is opened as a tree of its own, and compared with what is known of the old one, directory by directory.
Where all that merges in a directory is in layers that both stacks have at their bottom, nothing below it is looked at;
so this takes as long as what the stacks do not share is large, and not the tree. Whatever may fail comes before the
switch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from unionfs.errors import LayerError
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR, Layer, LayerDir, LayerFile, WritableLayer
from unionfs.union.identity import numbered
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.reader import TreeReader
from unionfs.union.resolve import Code, kind_of, places

if TYPE_CHECKING:
    from unionfs.union.tree import Tree

Told: TypeAlias = "tuple[Node, bytes | None]"
"""As ``TreeReader.subscribe`` has it: a node whose metadata are others, or a directory and an entry of it."""


class Follower(Protocol):
    """Who believes what it knows of the tree until it is told otherwise, as a kernel does of a mount."""

    def before(self, names: Sequence[tuple[DirNode, bytes]]) -> None:
        """These names are about to lead to other objects, or nowhere, or from now on somewhere.

        The tree is as it was, and its lock held. An ``OSError`` calls the restack off.
        """

    def after(self, told: Sequence[Told]) -> None:
        """The tree is another, in all these; its lock is not held. To return when nothing old is believed any more."""


def restack(tree: Tree, lowers: Sequence[Layer], upper: WritableLayer | None) -> None:
    """From now on the tree is that of ``upper`` over ``lowers``, topmost first. Live: threads and mounts go on.

    What is known of the tree, and is in the new stack the same object under the same path, stays the same node. So does
    a directory where the new stack has a directory, whatever is in it. All else has lost its last name, as after
    ``unlink`` or ``rmdir``: what is open goes on reading and writing the bytes that it has open. ``st_dev`` stays.

    The tree takes the layers: one that it has already, or another object of the same directory, stays the object it
    was; those that are in the new stack no more are closed, the old upper with them, and its locks are free. Not to be
    called with the tree's lock held: it returns when all followers (``TreeReader.follow``) know.

    Raises ``OSError``: ``EBUSY`` while the upper is lent, or a follower can't; ``LayerError`` for an upper, not frozen,
    that would be a lower; and whatever the layers raise. Then nothing has changed, and no layer is closed.
    """
    with tree.lock:
        if tree.lent is not None:
            raise OSError(errno.EBUSY, tree.lent)
        old = list(tree.resolver.layers)
        stack = _with_those_that_stay(tree, lowers, upper)
        kept = {id(layer) for layer in stack}
        if upper is not None:
            kept.add(id(upper))
        change = _Change(tree, stack, upper, [layer for layer in old if id(layer) in kept])
        change.prepare()
        change.switch()
    try:
        for follower in tree.followers:
            follower.after(change.told)
    finally:
        for layer in {id(layer): layer for layer in [*old, *lowers]}.values():
            if id(layer) not in kept:
                layer.close()


def reread(tree: Tree) -> None:
    """Look at all layers anew: the upper was lent to somebody, who has changed it and is done.

    Of what was in the upper, files are from now on as if removed; what is open can be read as it was.
    """
    with tree.lock:
        upper = tree.upper
        lowers = [layer for layer in tree.resolver.layers if layer is not upper]
        change = _Change(tree, lowers, upper, lowers)
        change.prepare()
        change.switch()
        tree.lent = None


def _with_those_that_stay(tree: Tree, lowers: Sequence[Layer], upper: WritableLayer | None) -> list[Layer]:
    """``lowers``, with the tree's own object for every directory of which it has one."""
    mine = {id(layer) for layer in tree.resolver.layers}
    known: dict[tuple[int, int], DirectoryLayer] = {}
    for layer in tree.resolver.layers:
        if isinstance(layer, DirectoryLayer):
            known[layer.identity] = layer
    stack: list[Layer] = []
    for layer in lowers:
        same = known.get(layer.identity) if isinstance(layer, DirectoryLayer) and id(layer) not in mine else None
        if tree.upper is not None and tree.upper in (layer, same):
            raise LayerError(errno.EINVAL, "an upper is no lower before it is frozen", layer.label)
        stack.append(same if same is not None and isinstance(layer, DirectoryLayer) and same.shows_as(layer) else layer)
    if len({id(layer) for layer in [*stack, upper]}) <= len(lowers):
        raise LayerError(errno.EINVAL, "the same layer is given twice", lowers[0].label)
    return stack


class _Pair(NamedTuple):
    """A directory that stays, what the new stack has there, its number, and the names that will lead elsewhere.

    ``changed`` is ``None`` where it is not listed, and nothing is known below it.
    """

    old: DirNode
    new: DirNode
    ino: int
    changed: set[bytes] | None


class _Word(NamedTuple):
    """What is said of a node that goes: to who asks, and of a metacopy that is open, its metadata and its bytes."""

    st: os.stat_result | None = None
    file: LayerFile | None = None
    data: tuple[LayerDir, bytes] | None = None


class _Change:
    """One restack. ``stay``: those of the old layers that are in the new stack, and have what they had. The tree's lock
    is held in every call."""

    def __init__(self, tree: Tree, lowers: Sequence[Layer], upper: WritableLayer | None, stay: Iterable[Layer]) -> None:
        self.tree = tree
        self.fresh = TreeReader(lowers, upper)
        tree.numbers.add(self.fresh.resolver.layers)
        self.fresh.numbers = tree.numbers
        self.stay = {id(layer) for layer in stay}
        self.told: list[Told] = []
        self._common: set[int] = set()
        """Layers at the bottom of both stacks: what one of them has has all below it as it was."""
        for old, new in zip(reversed(tree.resolver.layers), reversed(self.fresh.resolver.layers), strict=False):
            if old is not new or id(old) not in self.stay:
                break
            self._common.add(id(old))
        self._pairs: list[_Pair] = []
        self._words: dict[Node, _Word] = {}
        self._lost_names: dict[FileNode, set[tuple[DirNode, bytes]]] = {}

    # Before the switch

    def prepare(self) -> None:
        """Find out what changes."""
        self._compare()
        names = [(pair.old, name) for pair in self._pairs for name in pair.changed or ()]
        for follower in self.tree.followers:
            follower.before(names)
        self.told += [(pair.old, None) for pair in self._pairs]
        for d, name in names:
            self.told.append((d, name))
            entry = (d.entries or {}).get(name)
            if isinstance(entry, Node):
                self._lose(d, name, entry)
        for n in self.tree.links.nodes():
            if id(n.home.layer) not in self.stay:  # Perhaps none of its names is known.
                self._lost_names[n] = set(n.names or ())
                self._words.setdefault(n, _Word())

    def _compare(self) -> None:
        tree, fresh = self.tree, self.fresh
        unsafe = self._with_links_elsewhere()
        todo = [(tree.root, fresh.root)]
        while todo:
            d, f = todo.pop()
            if d.srcs is not None:
                fresh.sources(f)
            if d.entries is None:
                self._pairs.append(_Pair(d, f, self._number(d, f), None))
                continue
            new = fresh.entries(f)
            changed = {name for name in new if name not in d.entries}
            twins = self._twins(d, f)
            for name, entry in d.entries.items():
                code = new.get(name)
                if type(entry) is int and type(code) is int:  # Most are.
                    kind = entry & 15
                    if kind != code & 15 or (kind != DT_DIR and twins.get(code >> 4) != entry >> 4):
                        changed.add(name)
                elif isinstance(entry, DirNode) and code is not None and kind_of(code) == DT_DIR:  # type: ignore[arg-type]
                    child = fresh.lookup(f, name)
                    assert isinstance(child, DirNode)
                    if entry in unsafe or not self._is_as_it_was(entry, child):
                        todo.append((entry, child))
                elif code is None or not self._stays(f, name, entry, code):  # type: ignore[arg-type]
                    changed.add(name)
            self._pairs.append(_Pair(d, f, self._number(d, f), changed))

    def _twins(self, d: DirNode, f: DirNode) -> dict[int, int]:
        """Which place in the new sources is which in the old ones, where both stacks have it in common."""
        old = {source.layer: place for place, source in enumerate(reversed(self.tree.sources(d)))}
        found: dict[int, int] = {}
        for place, source in enumerate(reversed(self.fresh.sources(f))):
            twin = old.get(source.layer)
            if twin is not None and self._is_common_place(self.tree.sources(d)[-1 - twin], source):
                found[place] = twin
        return found

    def _with_links_elsewhere(self) -> set[DirNode]:
        """Directories with a name of a hard link whose object another layer holds, and those above them."""
        found: set[DirNode] = set()
        for n in self.tree.links.nodes():
            if id(n.home.layer) in self._common and not self.fresh.links.keeps(n.home, n.lname):
                continue
            for d, _ in n.names or ():
                at: DirNode | None = d
                while at is not None and at not in found:
                    found.add(at)
                    at = at.parent
        return found

    def _is_as_it_was(self, d: DirNode, f: DirNode) -> bool:
        """Whether the directory merges from the same places, with the same below them."""
        if d.srcs is None:
            return False
        sources = self.fresh.sources(f)
        return len(sources) == len(d.srcs) and all(map(self._is_common_place, d.srcs, sources))

    def _number(self, d: DirNode, f: DirNode) -> int:
        """The directory's number for life; but another's where it would be seen twice, for what had it shows elsewhere
        now: it was renamed, and is back."""
        if d.ino == f.ino or d.parent is None:
            return d.ino
        sources = self.fresh.sources(f)
        there = {id(layer) for layer in self.fresh.resolver.layers}
        for old in self.tree.sources(d):
            stands = id(old.layer) in self.stay and any(_is_same(old, new) for new in sources)
            if id(old.layer) in there and not stands:
                return f.ino
        return d.ino

    def _is_common_place(self, a: LayerDir, b: LayerDir) -> bool:
        return id(a.layer) in self._common and _is_same(a, b)

    def _stays(self, f: DirNode, name: bytes, entry: Node | Code, code: Code) -> bool:
        """Whether the name leads to the same object; or to a directory as before, of which nobody knows."""
        there = self.fresh.sources(f)[-1 - places(code)[0]]
        if not isinstance(entry, Node):
            return kind_of(entry) == kind_of(code) == DT_DIR
        if not isinstance(entry, FileNode) or entry.kind != kind_of(code) or id(there.layer) not in self.stay:
            return False
        if entry.names is None:
            same = entry.lname == name and _is_same(entry.home, there)
        else:
            same = entry.home.layer is there.layer and _object(entry.home, entry.lname) == _object(there, name)
            same = same and not self.fresh.links.keeps(there, name)
        return same and (id(there.layer) in self._common or self._has_same_data(entry, f, name, there))

    def _has_same_data(self, n: FileNode, f: DirNode, name: bytes, there: LayerDir) -> bool:
        a, b = self.tree.data_of(n), self.fresh.data_of(FileNode(f, name, n.kind, there, name))
        if a is None or b is None:
            return a is b
        return id(a[0].layer) in self.stay and a[1] == b[1] and _is_same(a[0], b[0])

    def _lose(self, d: DirNode, name: bytes, n: Node) -> None:
        """``n`` loses this name, and if it is the last, all that is below it goes too."""
        todo = [(d, name, n)]
        while todo:
            d, name, n = todo.pop()
            if isinstance(n, DirNode):
                self._words[n] = self._last_word(n)
                for below, child in (n.entries or {}).items():
                    self.told.append((n, below))
                    if isinstance(child, Node):
                        todo.append((n, below, child))
            elif isinstance(n, FileNode):
                lost = self._lost_names.setdefault(n, set())
                lost.add((d, name))
                if n.names is None or lost >= n.names.keys():
                    self._words[n] = self._last_word(n)

    def _last_word(self, n: Node) -> _Word:
        tree = self.tree
        if isinstance(n, FileNode) and n.open:
            data = tree.data_of(n)
            file = n.kept
            if file is None and data is not None:
                file = n.home.layer.open(n.home, n.lname, os.O_RDONLY)
            return _Word(None, file, data)
        st = None
        if tree.remembered:
            with suppress(OSError):  # Who asks is told that it is not there.
                st = numbered(tree.attributes(n)[0], n.ino, tree.numbers.device, 0)
        return _Word(st)

    # The switch

    def switch(self) -> None:
        """Make it so."""
        tree, fresh = self.tree, self.fresh
        tree.moves += 1
        try:
            upper, tree.upper = tree.upper, fresh.upper
            tree.resolver = fresh.resolver
            for pair in self._pairs:
                self._adopt(pair)
            for n, names in self._lost_names.items():
                for d, name in names:
                    n.drop_name(d, name)
            for gone, word in self._words.items():
                self._bury(gone, word)
            if tree.upper is not upper:
                self._settle_orphans(upper)
            links, tree.links = tree.links, fresh.links
            tree.links.take_over(tree, links)
            tree.forget_below()
            tree.changes += 1
            tree.cache.clear()
        finally:
            tree.moves += 1
        self.told += [(n, None) for n in self._words]
        for item in self.told:
            for tell in tree.subscribers:
                tell(*item)

    def _adopt(self, pair: _Pair) -> None:
        d, f = pair.old, pair.new
        entries = None
        if pair.changed is not None:
            entries = self.fresh.entries(f)
            sources = self.fresh.sources(f)
            for name, entry in (d.entries or {}).items():
                if isinstance(entry, Node) and name not in pair.changed:
                    if isinstance(entry, FileNode) and entry.names is None:
                        entry.home = sources[-1 - places(entries[name])[0]]  # type: ignore[arg-type]
                    entries[name] = entry
        if d.srcs is not None:
            d.srcs = self.fresh.sources(f)
        d.holders, d.shadow, d.shadow_of = f.holders, f.shadow, f.shadow_of
        d.entries = entries
        d.ino = pair.ino
        d.st = d.keys = None

    def _bury(self, n: Node, word: _Word) -> None:
        """The node has no name any more."""
        n.st, n.keys = word.st, None
        if isinstance(n, DirNode):
            n.dead, n.entries = True, {}
        elif isinstance(n, FileNode):
            n.dead, n.parent, n.names, n.handle = True, None, None, None
            n.data, n.kept = word.data, word.file
            if n.open:
                self.tree.orphans.add(n)

    def _settle_orphans(self, upper: WritableLayer | None) -> None:
        """Who has a file of the old upper open may write to it: it counts as copied up."""
        new = self.tree.upper
        for n in self.tree.orphans:
            if n.home.layer is upper and new is not None:
                n.home = new.staging
                n.unnamed = None  # The new upper may be another file system: no link gives it a name there.


def _is_same(a: LayerDir, b: LayerDir) -> bool:
    """Whether both are one directory of one layer."""
    at: LayerDir | None = a
    other: LayerDir | None = b
    if a.layer is not b.layer:
        return False
    while at is not other:
        if at is None or other is None or at.name != other.name:
            return False
        at, other = at.parent, other.parent
    return True


def _object(d: LayerDir, name: bytes) -> tuple[int, int]:
    st = d.layer.stat(d, name)
    return st.st_dev, st.st_ino

"""What changed: between two trees, and so between the layers below and the union as it is.

Two trees that stand on the same layers differ only in what the layers above these hold: nothing else is looked at, so
the cost goes with the change and not with the tree. What is reported is the difference, not the traces of work: a file
in a layer that equals the lower's is no change.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG, Layer, LayerDir
from unionfs.union.node import DirNode, FileNode, Node

if TYPE_CHECKING:
    from unionfs.union.reader import TreeReader

Kind = Literal["added", "changed", "deleted"]
What = Literal["data", "mode", "owner", "times", "xattrs", "type"]

_CHUNK = 1 << 20
_LETTERS = {"added": "A", "changed": "C", "deleted": "D"}


@attrs.frozen(slots=True)
class Change:
    """One path that differs from the layers below, or from the tree that is compared with."""

    path: str
    """The path in the union, ``os.fsdecode``d."""
    kind: Kind
    what: frozenset[What] = frozenset()
    """Of a changed path: ``data`` (bytes, link target or device number), ``mode``, ``owner``, ``times`` (modification),
    ``xattrs`` (ACLs and capabilities among them), ``type``."""
    renamed_from: str | None = None
    """Of a directory that was none under this path: the path in the old tree that it was renamed from, if it was."""
    before: os.stat_result | None = attrs.field(default=None, eq=False, repr=False)
    """Metadata in the old tree; ``None`` for an added path."""
    after: os.stat_result | None = attrs.field(default=None, eq=False, repr=False)
    """Metadata now; ``None`` for a deleted path."""

    @property
    def letter(self) -> str:
        """``A``, ``C`` or ``D``, as ``docker diff`` has it."""
        return _LETTERS[self.kind]

    def __str__(self) -> str:
        return f"{self.letter} {self.path}"


def diff(tree: TreeReader, path: str = "/") -> Iterator[Change]:
    """What the upper changes at and below ``path``: ``compare`` with the layers below it. Nothing without an upper."""
    if tree.upper is not None:
        yield from compare(tree, tree.below(), path)


def compare(new: TreeReader, old: TreeReader, path: str = "/") -> Iterator[Change]:
    """What turns ``old`` into ``new`` at and below ``path``, by path, a directory before what is in it.

    A deleted directory is one change; of an added one, all that is in it is added too. The modification time of a
    directory counts only where none of its entries came or went; that of the root never does, for it is that of the
    topmost layer's directory, which was made at its own time. ``ENOENT`` if ``path`` is in neither tree.

    Layers are the same when they are one object or one directory of the host. Where two directories merge the same
    layer directories at the bottom of the same layers, only the names that others above these hold are looked at.
    """
    comparison = _Comparison(new, old)
    start = os.fsencode(path)
    here, there = _resolve(new, start), _resolve(old, start)
    if here is None and there is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    at = b"" if not start.strip(b"/") else b"/" + start.strip(b"/")
    yield from _flat(comparison.entry(at, there, here))


def docker_lines(changes: Iterable[Change]) -> Iterator[str]:
    """``docker diff``'s lines for these changes: ``A``, ``C`` or ``D`` and the path, changed parents included, by
    path."""
    lines: dict[str, str] = {}
    for change in changes:
        lines[change.path] = change.letter
        parent = os.path.dirname(change.path)
        while parent != "/" and parent not in lines:
            lines[parent] = "C"
            parent = os.path.dirname(parent)
    for path in sorted(lines, key=lambda path: path.split("/")):
        yield f"{lines[path]} {path}"


Steps: TypeAlias = "Iterator[Change | Steps]"
"""Changes, and in their place among them the changes of something below."""


def _flat(steps: Steps) -> Iterator[Change]:
    """All changes in order: ``yield from``, for trees that are deeper than Python's stack."""
    stack = [steps]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
        elif isinstance(step, Change):
            yield step
        else:
            stack.append(step)


def find(tree: TreeReader, path: bytes) -> Node | None:
    """What the tree has at ``path``, if anything; no symbolic link is followed, nor on the way."""
    n: Node = tree.root
    for name in path.split(b"/"):
        if name:
            child = _get(tree, n, name) if isinstance(n, DirNode) else None
            if child is None:
                return None
            n = child
    return n


def _resolve(tree: TreeReader, path: bytes) -> Node | None:
    try:
        return tree.resolve(path, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


Place: TypeAlias = tuple[LayerDir, bytes]
"""A directory of a layer and a name in it."""


class _Comparison:
    def __init__(self, new: TreeReader, old: TreeReader) -> None:
        self.new = new
        self.old = old
        self.places = Places()
        self.common = self.places.common(new, old)
        self.linked: dict[DirNode, set[bytes]] = {}
        """Names that may differ though no layer says so: of a hard link that an upper has under another name."""
        for tree in (new, old):
            if tree.upper is not None:
                self._find_linked(tree)

    def _find_linked(self, tree: TreeReader) -> None:
        with tree.lock:
            kept = tree.links.in_index()
            tree.links.know(kept)
        for n in kept:
            for (d, name), in_upper in (n.names or {}).items():
                if not in_upper:
                    self.linked.setdefault(d, set()).add(name)
                    at: DirNode | None = d
                    while at is not None and at.parent is not None:
                        self.linked.setdefault(at.parent, set()).add(at.name)
                        at = at.parent

    def directory(self, path: bytes, old: DirNode, new: DirNode) -> Steps:
        """The directory itself, then its entries."""
        here, there = self.new.sources(new), self.old.sources(old)
        tail = self.tail(here, there)
        names: Iterable[bytes] = self.linked.get(new, set()) | self.linked.get(old, set())
        if tail:
            above = [*here[: len(here) - tail], *there[: len(there) - tail]]
            if not above and not names:
                return
            names = {*names}.union(*(place.layer.scan(place) for place in above))
        else:
            names = {**self.old.entries(old), **self.new.entries(new)}
        pairs = [(name, _get(self.old, old, name), _get(self.new, new, name)) for name in sorted(names)]
        what = self.metadata(old, new)
        if not path or any((before is None) != (after is None) for _, before, after in pairs):
            what -= {"times"}
        if what:
            yield self.changed(path or b"/", old, new, what)
        for name, before, after in pairs:
            yield self.entry(path + b"/" + name, before, after)

    def tail(self, here: Sequence[LayerDir], there: Sequence[LayerDir]) -> int:
        """How many layer directories at the end are the same, and what is below them too."""
        rest = len(here) - len(self.above(here))
        if not rest or rest != len(there) - len(self.above(there)):
            return self._compared_tail(here, there)
        # The same directory of the same layers: so is what merges below it, and need not be looked at.
        same = self.places.dir(here[-rest]) == self.places.dir(there[-rest])
        return rest if same else self._compared_tail(here, there)

    def _compared_tail(self, here: Sequence[LayerDir], there: Sequence[LayerDir]) -> int:
        count = 0
        for one, other in zip(reversed(here), reversed(there), strict=False):
            if self.places.layer(one.layer) not in self.common or self.places.dir(one) != self.places.dir(other):
                break
            count += 1
        return count

    def entry(self, path: bytes, old: Node | None, new: Node | None) -> Steps:
        """One name, in either tree or both."""
        if new is None:
            if old is not None:
                yield Change(os.fsdecode(path), "deleted", before=self.old.stat(old))
        elif old is None:
            yield self.added(path, new)
        elif isinstance(new, DirNode) and isinstance(old, DirNode):
            yield self.directory(path, old, new)
        elif old.kind != new.kind:
            change = self.changed(path, old, new, {"type"})
            if isinstance(new, DirNode):
                yield attrs.evolve(change, renamed_from=self.origin(path, new))
                yield self.content(path, new)
            else:
                yield change
        else:
            assert isinstance(old, FileNode)
            assert isinstance(new, FileNode)
            if self.places.layer(new.home.layer) in self.common and self.same_home(old, new):
                return
            what = self.metadata(old, new)
            if not self.same_data(old, new):
                what.add("data")
            if what:
                yield self.changed(path, old, new, what)

    def changed(self, path: bytes, old: Node, new: Node, what: set[What]) -> Change:
        before, after = self.old.stat(old), self.new.stat(new)
        return Change(os.fsdecode(path), "changed", frozenset(what), before=before, after=after)

    def added(self, path: bytes, new: Node) -> Steps:
        origin = self.origin(path, new) if isinstance(new, DirNode) else None
        yield Change(os.fsdecode(path), "added", renamed_from=origin, after=self.new.stat(new))
        if isinstance(new, DirNode):
            yield self.content(path, new)

    def content(self, path: bytes, new: DirNode) -> Steps:
        """All that is in a directory that was not there."""
        for name in sorted(self.new.entries(new)):
            child = _get(self.new, new, name)
            if child is not None:
                yield self.added(path + b"/" + name, child)

    def origin(self, path: bytes, new: DirNode) -> str | None:
        """Where the old tree has the directory that redirects lead to from ``new``; ``None`` if it has not."""
        sources = self.new.sources(new)
        above = self.above(sources)
        if len(above) == len(sources) or all(place.layer.marks(place, b".").redirect is None for place in above):
            return None
        for layer in takewhile(lambda layer: self.places.layer(layer) not in self.common, self.new.resolver.layers):
            path = _path_below(layer, path)
        found = find(self.old, path)
        wanted = self.places.dir(sources[len(above)])
        if isinstance(found, DirNode) and any(self.places.dir(place) == wanted for place in self.old.sources(found)):
            return os.fsdecode(path)
        return None

    def above(self, sources: Sequence[LayerDir]) -> list[LayerDir]:
        """Those in layers that only one tree has."""
        return list(takewhile(lambda place: self.places.layer(place.layer) not in self.common, sources))

    def metadata(self, old: Node, new: Node) -> set[What]:
        what: set[What] = set()
        if self.same_home(old, new):
            return what
        before, after = self.old.stat(old), self.new.stat(new)
        if stat.S_IMODE(before.st_mode) != stat.S_IMODE(after.st_mode):
            what.add("mode")
        if (before.st_uid, before.st_gid) != (after.st_uid, after.st_gid):
            what.add("owner")
        if before.st_mtime_ns != after.st_mtime_ns:
            what.add("times")
        if _xattrs(self.old, old) != _xattrs(self.new, new):
            what.add("xattrs")
        return what

    def same_home(self, old: Node, new: Node) -> bool:
        """Whether their metadata are in one place."""
        return self.places.same(self.old.home_of(old), self.new.home_of(new))

    def same_data(self, old: FileNode, new: FileNode) -> bool:
        if new.kind == DT_LNK:
            return self.old.readlink(old) == self.new.readlink(new)
        before, after = self.old.stat(old), self.new.stat(new)
        if new.kind != DT_REG:
            return before.st_rdev == after.st_rdev
        if before.st_size != after.st_size:
            return False
        here = self.old.data_of(old) or (old.home, old.lname)
        there = self.new.data_of(new) or (new.home, new.lname)
        return self.places.same(here, there) or self._same_bytes(old, new, after.st_size)

    def _same_bytes(self, old: FileNode, new: FileNode, size: int) -> bool:
        a, b = self.old.open_data(old), self.new.open_data(new)
        try:
            return all(a.pread(_CHUNK, at) == b.pread(_CHUNK, at) for at in range(0, size, _CHUNK))
        finally:
            a.close()
            b.close()


class Places:
    """Layers and directories of theirs as numbers that are equal where two trees have the same one."""

    def __init__(self) -> None:
        self._layers: dict[Layer, Hashable] = {}
        self._dirs: dict[LayerDir, int] = {}
        self._numbers: dict[Hashable, int] = {}

    def layer(self, layer: Layer) -> Hashable:
        """The same for one object, and for two that read one directory of the host."""
        key = self._layers.get(layer)
        if key is None:
            key = id(layer)
            if isinstance(layer, DirectoryLayer):
                key = layer.identity
            self._layers[layer] = key
        return key

    def common(self, one: TreeReader, other: TreeReader) -> set[Hashable]:
        """The layers at the bottom of both trees: where redirects and metacopies lead depends on all layers below."""
        pairs = zip(reversed(one.resolver.layers), reversed(other.resolver.layers), strict=False)
        return {self.layer(layer) for layer, _ in takewhile(lambda pair: self._shows_as(*pair), pairs)}

    def _shows_as(self, one: Layer, other: Layer) -> bool:
        if isinstance(one, DirectoryLayer) and isinstance(other, DirectoryLayer) and not one.shows_as(other):
            return False
        return self.layer(one) == self.layer(other)

    def dir(self, d: LayerDir) -> int:
        """The number of ``d``, from those of the directories above it: a tree may be deep."""
        below: list[LayerDir] = []
        at: LayerDir | None = d
        while at is not None and at not in self._dirs:
            below.append(at)
            at = at.parent
        for at in reversed(below):
            key: Hashable
            if at.parent is not None:
                key = self._dirs[at.parent], at.name
            else:
                key = self.layer(at.layer) if at is at.layer.root else id(at)
            self._dirs[at] = self._numbers.setdefault(key, len(self._numbers))
        return self._dirs[d]

    def same(self, one: Place, other: Place) -> bool:
        """Whether these are one object of a layer; it may have several names."""
        if one == other:
            return True
        if self.layer(one[0].layer) != self.layer(other[0].layer):
            return False
        if one[1] == other[1] and self.dir(one[0]) == self.dir(other[0]):
            return True
        st, st2 = (d.layer.stat(d, name) for d, name in (one, other))
        return (st.st_dev, st.st_ino) == (st2.st_dev, st2.st_ino)


def _path_below(layer: Layer, path: bytes) -> bytes:
    """Where the layers below are asked for the directory at ``path``: by the redirects of this one."""
    d: LayerDir | None = layer.root
    below = b""
    for name in path.split(b"/")[1:]:
        redirect = None
        if d is not None and layer.kind(d, name) == DT_DIR:
            d = d.child(name)
            redirect = layer.marks(d, b".").redirect
        else:
            d = None
        below = redirect if redirect is not None and redirect.startswith(b"/") else below + b"/" + (redirect or name)
    return below


def _get(tree: TreeReader, d: DirNode, name: bytes) -> Node | None:
    if name not in tree.entries(d):
        return None
    try:
        return tree.lookup(d, name)
    except FileNotFoundError:
        return None  # Gone since it was listed.


def _xattrs(tree: TreeReader, n: Node) -> dict[bytes, bytes]:
    return {key: tree.getxattr(n, key) for key in tree.listxattr(n)}


__all__ = ["Change", "compare", "diff", "docker_lines"]

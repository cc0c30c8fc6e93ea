"""What changed: between the layers below and the union as it is.

Only what the upper holds is looked at, so the cost goes with the change and not with the tree. What is reported is the
difference, not the traces of work: an upper file that equals the lower's is no change.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from unionfs.layer.protocol import DT_LNK, DT_REG, LayerDir
from unionfs.union.node import DirNode, FileNode, Node

if TYPE_CHECKING:
    from unionfs.union.reader import TreeReader

Kind = Literal["added", "changed", "deleted"]
What = Literal["data", "mode", "owner", "times", "xattrs", "type"]

_CHUNK = 1 << 20
_LETTERS = {"added": "A", "changed": "C", "deleted": "D"}


@attrs.frozen(slots=True)
class Change:
    """One path that differs from the layers below."""

    path: str
    """The path in the union, ``os.fsdecode``d."""
    kind: Kind
    what: frozenset[What] = frozenset()
    """Of a changed path: ``data`` (bytes, link target or device number), ``mode``, ``owner``, ``times`` (modification),
    ``xattrs`` (ACLs and capabilities among them), ``type``."""
    renamed_from: str | None = None
    """Of an added directory: the path in the layers below that it was renamed from, if it was."""
    before: os.stat_result | None = attrs.field(default=None, eq=False, repr=False)
    """Metadata in the layers below; ``None`` for an added path."""
    after: os.stat_result | None = attrs.field(default=None, eq=False, repr=False)
    """Metadata now; ``None`` for a deleted path."""

    @property
    def letter(self) -> str:
        """``A``, ``C`` or ``D``, as ``docker diff`` has it."""
        return _LETTERS[self.kind]

    def __str__(self) -> str:
        return f"{self.letter} {self.path}"


def diff(tree: TreeReader, path: str = "/") -> Iterator[Change]:
    """The changes at and below ``path``, by path, a directory before what is in it.

    A deleted directory is one change; of an added one, all that is in it is added too. The modification time of a
    directory counts only where none of its entries came or went; that of the root never does, for it is that of the
    upper directory, which was made at its own time. ``ENOENT`` if ``path`` is neither here nor below.
    """
    if tree.upper is None:
        return
    below = tree.below()
    comparison = _Comparison(tree, below)
    start = os.fsencode(path)
    new, old = _find(tree, start), _find(below, start)
    if new is None and old is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    at = b"" if not start.strip(b"/") else b"/" + start.strip(b"/")
    sparse = at == b""
    if isinstance(new, DirNode) and isinstance(old, DirNode):
        yield from _flat(comparison.directory(at, old, new, sparse))
    else:
        yield from _flat(comparison.entry(at, old, new, sparse))


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


def _find(tree: TreeReader, path: bytes) -> Node | None:
    try:
        return tree.resolve(path, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


class _Comparison:
    def __init__(self, new: TreeReader, old: TreeReader) -> None:
        self.new = new
        self.old = old
        self.linked: dict[DirNode, set[bytes]] = {}
        """Names that changed though the upper does not have them: of a hard link that it has under another name."""
        self._find_linked()

    def _find_linked(self) -> None:
        links = self.new.links
        with self.new.lock:
            kept = links.in_index()
            links.know(kept)
        for n in kept:
            for (d, name), in_upper in (n.names or {}).items():
                if not in_upper:
                    self.linked.setdefault(d, set()).add(name)
                    at: DirNode | None = d
                    while at is not None and at.parent is not None:
                        self.linked.setdefault(at.parent, set()).add(at.name)
                        at = at.parent

    def directory(self, path: bytes, old: DirNode, new: DirNode, sparse: bool) -> Steps:
        """The directory itself, then its entries. ``sparse``: its lower part is ``old``, so only the upper's can
        differ."""
        place = self.new.sources(new)[0]
        names: Iterable[bytes]
        in_upper = place.layer is self.new.upper
        linked = self.linked.get(new, set())
        if sparse and not in_upper and not linked:
            return
        if sparse and path and in_upper:
            marks = place.layer.marks(place, b".")
            sparse = not marks.opaque and marks.redirect is None
        if sparse:
            names = linked | (place.layer.scan(place).keys() if in_upper else set())
        else:
            names = {**self.old.entries(old), **self.new.entries(new)}
        pairs = [(name, _get(self.old, old, name), _get(self.new, new, name)) for name in sorted(names)]
        what = self.metadata(old, new)
        if not path or any((before is None) != (after is None) for _, before, after in pairs):
            what -= {"times"}
        if what:
            yield self.changed(path or b"/", old, new, what)
        for name, before, after in pairs:
            yield self.entry(path + b"/" + name, before, after, sparse)

    def entry(self, path: bytes, old: Node | None, new: Node | None, sparse: bool) -> Steps:
        """One name, in either tree or both."""
        if new is None:
            if old is not None:
                yield Change(os.fsdecode(path), "deleted", before=self.old.stat(old))
        elif old is None:
            yield self.added(path, new)
        elif isinstance(new, DirNode) and isinstance(old, DirNode):
            yield self.directory(path, old, new, sparse)
        elif old.kind != new.kind:
            yield self.changed(path, old, new, {"type"})
            if isinstance(new, DirNode):
                yield self.content(path, new)
        else:
            assert isinstance(old, FileNode)
            assert isinstance(new, FileNode)
            if _same_place((old.home, old.lname), (new.home, new.lname)):
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
        origin = None
        if isinstance(new, DirNode):
            place = self.new.sources(new)[0]
            redirect = place.layer.marks(place, b".").redirect if place.layer is self.new.upper else None
            origin = None if redirect is None else os.fsdecode(self.new.lower_path(new))
        yield Change(os.fsdecode(path), "added", renamed_from=origin, after=self.new.stat(new))
        if isinstance(new, DirNode):
            yield self.content(path, new)

    def content(self, path: bytes, new: DirNode) -> Steps:
        """All that is in a directory that was not there."""
        for name in sorted(self.new.entries(new)):
            child = _get(self.new, new, name)
            if child is not None:
                yield self.added(path + b"/" + name, child)

    def metadata(self, old: Node, new: Node) -> set[What]:
        before, after = self.old.stat(old), self.new.stat(new)
        what: set[What] = set()
        if stat.S_IMODE(before.st_mode) != stat.S_IMODE(after.st_mode):
            what.add("mode")
        if (before.st_uid, before.st_gid) != (after.st_uid, after.st_gid):
            what.add("owner")
        if before.st_mtime_ns != after.st_mtime_ns:
            what.add("times")
        if self.old.home_of(old)[0] is not self.new.home_of(new)[0] and _xattrs(self.old, old) != _xattrs(
            self.new, new
        ):
            what.add("xattrs")
        return what

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
        return _same_place(here, there) or self._same_bytes(old, new, after.st_size)

    def _same_bytes(self, old: FileNode, new: FileNode, size: int) -> bool:
        a, b = self.old.open_data(old), self.new.open_data(new)
        try:
            return all(a.pread(_CHUNK, at) == b.pread(_CHUNK, at) for at in range(0, size, _CHUNK))
        finally:
            a.close()
            b.close()


def _same_place(a: tuple[LayerDir, bytes], b: tuple[LayerDir, bytes]) -> bool:
    return a[0].layer is b[0].layer and a[1] == b[1] and (a[0] is b[0] or a[0].path == b[0].path)


def _get(tree: TreeReader, d: DirNode, name: bytes) -> Node | None:
    if name not in tree.entries(d):
        return None
    try:
        return tree.lookup(d, name)
    except FileNotFoundError:
        return None  # Gone since it was listed.


def _xattrs(tree: TreeReader, n: Node) -> dict[bytes, bytes]:
    return {key: tree.getxattr(n, key) for key in tree.listxattr(n)}


__all__ = ["Change", "diff", "docker_lines"]

"""Precedence: which layer wins. Decided here and nowhere else.

Rules (Documentation/filesystems/overlayfs.rst): the topmost layer that has a name wins; a whiteout hides the name in
the layers below; directories of one name merge, until one is opaque or something else than a directory stands
between; a redirect says under which name or path the layers below are to be asked; a metacopy's data are in the next
layer below that has the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from unionfs.layer.merged import Merged
from unionfs.layer.protocol import DT_DIR, DT_REG, DT_WHT, Layer, LayerDir
from unionfs.union.sources import Sources

log = logging.getLogger(__name__)

Code = int | tuple[int, ...]
"""An entry that nobody asked for yet: ``place << 4 | DT_*``, or the places of a directory that several layers have.

A place counts from the bottom of the directory's sources, so that a new upper on top does not move it.
"""


_MAX_NAMES = 1 << 16  # in the path of a redirect; they add up from layer to layer


class Resolver:
    """The stack of layers, topmost first, and the rules."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self._depth = {id(layer): i for i, layer in enumerate(reversed(self.layers))}

    def push(self, layer: Layer) -> None:
        """Put ``layer`` on top."""
        self._depth[id(layer)] = len(self.layers)
        self.layers.insert(0, layer)

    def layers_below(self, layer: Layer) -> list[Layer]:
        """The layers below ``layer``."""
        return self.layers[len(self.layers) - self._depth[id(layer)] :]

    def roots(self) -> list[LayerDir]:
        """The directories that merge in the union's root: down to the first opaque root."""
        found: list[LayerDir] = []
        for layer in self.layers:
            known = noted(layer.root)
            if known is not None:
                return found + [one.root for one in self.layers[len(found) : len(found) + known.count]]
            found.append(layer.root)
            if layer.marks(layer.root, b".").opaque:
                break
        return found

    def children(self, parents: Sequence[LayerDir], name: bytes, held: Sequence[int] | None = None) -> list[LayerDir]:
        """The directories that merge in the directory ``name`` of ``parents`` (a finished stack), topmost first.

        ``held``: the places of ``parents`` that are known to have ``name`` as a directory, as far as it merges;
        ``None``: ask each. Empty where ``name`` is no directory.
        """
        found: list[LayerDir] = []
        ask = held is None
        last = len(parents) - 1
        todo: Iterator[int] = iter(range(last + 1)) if held is None else (last - place for place in held)
        while (i := next(todo, None)) is not None:
            parent = parents[i]
            layer = parent.layer
            if ask:
                kind = layer.kind(parent, name)
                if kind is None:
                    continue
                if kind != DT_DIR:
                    break
            child = parent.child(name)
            known = noted(child)
            above = noted(parent) if ask and known is not None else None
            if known is not None and (above is not None or not ask):
                more = places(above.entries[name]) if above is not None else held or ()
                return self._noted([*found, child], parents, name, more[more.index(last - i) + 1 :], known)
            found.append(child)
            if layer is self.layers[-1]:
                break  # Nothing below to be opaque or redirected to.
            marks = layer.marks(child, b".")
            if marks.opaque:
                break
            redirect = marks.redirect
            if redirect is None:
                continue
            if redirect.startswith(b"/"):
                found += self.at_path(self.layers_below(layer), redirect)
                break
            if not _is_plain(redirect):
                log.warning("%s: invalid redirect %r ignored", layer.label, redirect)
                break
            name, ask, todo = redirect, True, iter(range(i + 1, len(parents)))
        return found

    def _noted(
        self, head: list[LayerDir], parents: Sequence[LayerDir], name: bytes, held: Sequence[int], known: Merged
    ) -> list[LayerDir]:
        """What merges below ``head``, as its last one's layer has noted it."""
        plain, elsewhere = held[: known.count - 1], known.elsewhere
        if not plain and not elsewhere:
            return head

        def make(place: int) -> LayerDir:
            if place < len(elsewhere):
                return self._dir_at(*elsewhere[-1 - place])
            return parents[-1 - plain[len(elsewhere) - 1 - place]].child(name)

        return Sources(head, len(plain) + len(elsewhere), make)

    def _dir_at(self, number: int, path: bytes) -> LayerDir:
        """A directory of the layer that has this number from the bottom up."""
        d = self.layers[-1 - number].root
        for name in path.split(b"/"):
            if name:
                d = d.child(name)
        return d

    def at_path(self, layers: Sequence[Layer], path: bytes) -> list[LayerDir]:
        """The directories that merge at ``path`` in the union of ``layers``. Empty where there is no such directory.

        Layer by layer, so that redirects, which give the layers below another path to go, cost no more than their
        number; a walk name by name would follow each again for every name.
        """
        found: list[LayerDir] = []
        names = [name for name in path.split(b"/") if name]
        if not all(map(_is_plain, names)):
            log.warning("invalid redirect %r ignored", path)
            return found
        for i, layer in enumerate(layers):
            d = layer.root
            known = noted(d)
            if known is not None:
                return [*found, *self._walk([one.root for one in layers[i : i + known.count]], names)]
            last = layer.marks(d, b".").opaque
            below: list[bytes] = []
            for i, name in enumerate(names):
                kind = layer.kind(d, name)
                if kind is None:
                    below += names[i:]
                    break
                if kind != DT_DIR:
                    return found
                d = d.child(name)
                marks = layer.marks(d, b".")
                redirect = marks.redirect
                if marks.opaque:
                    last = True
                elif redirect is None:
                    below.append(name)
                elif redirect.startswith(b"/"):
                    below = [name for name in redirect.split(b"/") if name]
                    last = False  # It leads out of an opaque directory too.
                else:
                    below.append(redirect)
            else:
                found.append(d)
            if last:
                break
            if below != names and (len(below) > _MAX_NAMES or not all(map(_is_plain, below))):
                log.warning("%s: invalid redirect on the way to %r ignored", layer.label, path[:200])
                break
            names = below
        return found

    def _walk(self, sources: list[LayerDir], names: Sequence[bytes]) -> list[LayerDir]:
        """The same, name by name, from directories of which the topmost layer's index tells."""
        for name in names:
            known = noted(sources[0])
            if known is not None:
                code = known.entries.get(name)
                if code is None or kind_of(code) != DT_DIR:
                    return []
                sources = self.children(sources, name, places(code))
            else:
                sources = self.children(sources, name)
            if not sources:
                return []
        return sources

    def data_of(
        self, home: LayerDir, name: bytes, below: Sequence[LayerDir], shown: bytes
    ) -> tuple[LayerDir, bytes] | None:
        """Where the bytes of the regular file ``name`` in ``home`` are, if not there: of a metacopy.

        ``below``: the directories that merge below the one where it shows as ``shown``. Raises ``LookupError`` when no
        layer has them.
        """
        at, at_name = home, name
        for _ in range(len(self.layers) + 1):
            marks = at.layer.marks(at, at_name)
            if not marks.metacopy:
                return None if at is home and at_name == name else (at, at_name)
            redirect = marks.redirect
            if redirect is not None and redirect.startswith(b"/"):
                parent, _, at_name = redirect.rpartition(b"/")
                below = self.at_path(self.layers_below(at.layer), parent)
            else:
                at_name = redirect or (shown if at is home else at_name)
            if not _is_plain(at_name):
                break
            step = self._next_regular(below, at_name)
            if step is None:
                break
            at, below = below[step], below[step + 1 :]
        raise LookupError(f"no layer below {home.layer.label} has the data of {name!r}")

    @staticmethod
    def _next_regular(dirs: Sequence[LayerDir], name: bytes) -> int | None:
        for i, d in enumerate(dirs):
            kind = d.layer.kind(d, name)
            if kind is not None:
                return i if kind == DT_REG else None
        return None


def _is_plain(name: bytes) -> bool:
    return name not in (b"", b".", b"..") and b"/" not in name


def merge(sources: Sequence[LayerDir]) -> dict[bytes, Code]:
    """The entries of the directory that these merge in: what is visible, and in which places."""
    if not sources:
        return {}
    place = len(sources) - 1
    merged: dict[bytes, Code] = {}
    closed: set[bytes] = set()
    hidden: list[bytes] = []
    for source in sources:
        known = noted(source)
        if known is not None:
            _add_noted(merged, known.entries, closed)
            break
        entries = source.layer.scan(source)
        if DT_WHT in entries.values():
            hidden += [name for name, kind in entries.items() if kind == DT_WHT and name not in merged]
        if not merged:
            merged = {name: place << 4 | kind for name, kind in entries.items()} if place else dict(entries)
        else:
            _add(merged, entries, place, closed)
        place -= 1
    for name in hidden:
        del merged[name]
    return merged


def noted(d: LayerDir) -> Merged | None:
    """What the layer's index tells of its directory, and of all that merges below it."""
    look: Callable[[LayerDir], Merged | None] | None = getattr(d.layer, "merged", None)
    return None if look is None else look(d)


def _add_noted(merged: dict[bytes, Code], entries: dict[bytes, Code], closed: set[bytes]) -> None:
    """What all that stands below ``merged`` shows together."""
    if not merged:
        merged.update(entries)
        return
    for name, code in entries.items():
        found = merged.get(name)
        if found is None:
            merged[name] = code
        elif name not in closed and kind_of(code) == DT_DIR and (isinstance(found, tuple) or found & 15 == DT_DIR):
            merged[name] = (*places(found), *places(code))


def _add(merged: dict[bytes, Code], entries: dict[bytes, int], place: int, closed: set[bytes]) -> None:
    """What stands below ``merged``; ``closed``: directories that merge with nothing further down."""
    for name, kind in entries.items():
        found = merged.get(name)
        if found is None:
            merged[name] = place << 4 | kind
        elif isinstance(found, tuple) or found & 15 == DT_DIR:
            if kind != DT_DIR:
                closed.add(name)
            elif name not in closed:
                merged[name] = (*places(found), place)


def places(code: Code) -> tuple[int, ...]:
    """The places that have the entry, topmost first."""
    return code if isinstance(code, tuple) else (code >> 4,)


def kind_of(code: Code) -> int:
    """``DT_*`` of the entry."""
    return DT_DIR if isinstance(code, tuple) else code & 15


def put_upper(merged: dict[bytes, Code], upper: dict[bytes, int], place: int) -> set[bytes]:
    """Lay the upper's entries over what its lowers show. The names for which both have something are the answer."""
    shadow: set[bytes] = set()
    for name, kind in upper.items():
        below = merged.get(name)
        if below is not None:
            shadow.add(name)
        if kind == DT_WHT:
            merged.pop(name, None)
        elif kind == DT_DIR and below is not None and kind_of(below) == DT_DIR:
            merged[name] = (place, *places(below))
        else:
            merged[name] = place << 4 | kind
    return shadow

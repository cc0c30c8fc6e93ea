"""The layers of a store, checked: each is made into its tar once more, and hashed.

Damage in one layer is no reason not to look at the others: a layer is compared with those below it, but it is only
what it holds itself that is hashed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import attrs

from unionfs.errors import StoreError, UnionError
from unionfs.images.hashing import in_parallel
from unionfs.images.layering import CHANGES, layer_of, parse_changes, read_changes
from unionfs.images.problems import Problem, wrong_permissions
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.frozen import FrozenLayer
from unionfs.layer.memory import MemoryLayer
from unionfs.layer.merged import pack
from unionfs.layer.protocol import Layer
from unionfs.store.places import Places
from unionfs.store.records import LayerRecord
from unionfs.union.diff import compare
from unionfs.union.indexing import notes_of
from unionfs.union.reader import TreeReader

_MOST_FILES = 50
"""So many wrong files of one layer are named each."""


def check_layers(
    places: Places, layers: Sequence[LayerRecord], owner: int, tell: Callable[[int, int], None]
) -> Iterator[Problem]:
    """What is wrong with these layers. ``owner``: the user whom the store belongs to. ``tell``: of the progress."""
    check = _Check(places, layers, owner)
    try:
        ordered = sorted(layers, key=lambda layer: layer.depth)
        for layer in ordered:
            yield from check.standing(layer)
        # Largest first: the last one to be done is a short one.
        ordered.sort(key=lambda layer: layer.size or 0, reverse=True)
        damaged: set[str] = set()
        unsure: list[tuple[LayerRecord, Problem]] = []
        for i, (layer, found) in enumerate(zip(ordered, in_parallel(check.content, ordered, batch=1), strict=True)):
            tell(i + 1, len(ordered))
            if found.wrong:
                damaged.add(layer.id)
            yield from found.problems
            if found.unsure is not None:
                unsure.append((layer, found.unsure))
        # What differs from what is below may do so because of what is below.
        yield from (problem for layer, problem in unsure if not check.stands_on(layer, damaged))
    finally:
        check.close()


@attrs.define
class _Found:
    """What is wrong with one layer."""

    problems: list[Problem] = attrs.field(factory=list)
    wrong: bool = False
    """Whether it holds something else than it did."""
    unsure: Problem | None = None
    """Something that only is one if the layers below are as they were."""


class _Check:
    def __init__(self, places: Places, layers: Sequence[LayerRecord], owner: int) -> None:
        self.places = places
        self.owner = owner
        self.records = {layer.id: layer for layer in layers}
        self.plain: dict[str, DirectoryLayer] = {}
        """The layers as they are on disk."""
        self.quick: dict[str, DirectoryLayer] = {}
        """The same, with the index where that is right: what other layers stand on."""

    def close(self) -> None:
        for layer in (*self.plain.values(), *self.quick.values()):
            layer.close()

    def below(self, layer: LayerRecord) -> list[Layer] | None:
        """What it stands on, topmost first; ``None`` if something of it can't be opened."""
        found: list[Layer] = []
        at = layer.parent
        while at is not None:
            opened = self.quick.get(at)
            if opened is None or len(found) > layer.depth:
                return None
            found.append(opened)
            at = self.records[at].parent
        return found

    def standing(self, layer: LayerRecord) -> Iterator[Problem]:
        """Whether it is there and can be used, and its index. Called for lower layers before higher ones."""
        wrapper, diff = self.places.layer(layer.id), self.places.diff(layer.id)

        def problem(text: str, path: str = diff) -> Problem:
            return Problem("layer", text, layer.id, path)

        try:
            for text in wrong_permissions(wrapper, self.owner):
                yield problem(text, wrapper)
            if not stat.S_ISDIR(os.lstat(diff).st_mode):
                yield problem("is no directory")
                return
            self.plain[layer.id] = self.quick[layer.id] = plain = DirectoryLayer(diff)
            plain.scan(plain.root)
        except FileNotFoundError:
            yield problem("its directory is missing")
            return
        except (OSError, UnionError) as error:
            yield problem(f"can't be opened: {_words(error)}")
            return
        index = self.places.index(layer.id)
        if layer.diff_id is None or not os.path.lexists(index):
            return
        below = self.below(layer)
        if below is None:
            return
        try:
            with open(index, "rb") as file:
                noted = file.read()
            if noted == pack(notes_of(TreeReader([plain, *below]))):
                self.quick[layer.id] = FrozenLayer(diff, index)
            else:
                yield problem("its index is damaged: it does not tell what the layer shows", index)
        except (OSError, UnionError, LookupError) as error:
            yield problem(f"its index can't be checked: {_words(error)}", index)

    def stands_on(self, layer: LayerRecord, damaged: set[str]) -> bool:
        """Whether one of these is below the layer."""
        at = layer.parent
        for _ in range(layer.depth):
            if at is None or at in damaged:
                break
            at = self.records[at].parent if at in self.records else None
        return at in damaged

    def content(self, layer: LayerRecord) -> _Found:
        """Its bytes and metadata, by its diff ID."""
        found = _Found()

        def add(text: str, path: str, note: bool = False) -> None:
            found.problems.append(Problem("layer", text, layer.id, path, note=note))

        plain = self.plain.get(layer.id)
        if layer.diff_id is None or plain is None:
            return found
        diff = self.places.diff(layer.id)
        below = self.below(layer)
        if below is None:
            add("not checked, as what it stands on can't be opened", diff, note=True)
            return found
        list_path = os.path.join(self.places.layer(layer.id), CHANGES)
        noted: Lines | None = None
        try:
            noted = _by_path(read_changes(list_path))
        except FileNotFoundError:
            add("the list of its changes is missing", list_path)
        except (OSError, StoreError) as error:
            add(f"the list of its changes can't be read: {_words(error)}", list_path)
        try:
            new, old = TreeReader([plain, *below]), TreeReader(below or [MemoryLayer()])
            now = layer_of(new, compare(new, old), epoch=layer.epoch, base=layer.parent is None)
        except (OSError, UnionError, LookupError) as error:
            add(f"can't be read: {_words(error)}", diff)
            found.wrong = True
            return found
        lines = _by_path(parse_changes(now.changes))
        differ = (
            [] if noted is None else [path for path in sorted({*noted, *lines}) if noted.get(path) != lines.get(path)]
        )
        if (now.diff_id, now.size) == (layer.diff_id, layer.tar_size):
            if differ:
                text = "the list of its changes does not tell what the layer holds"
                found.unsure = Problem("layer", text, layer.id, list_path)
            return found
        found.wrong = True
        for path in differ[:_MOST_FILES]:
            add(f"{path} {_difference((noted or {}).get(path), lines.get(path))}", diff + path)
        if len(differ) > _MOST_FILES:
            add(f"{len(differ) - _MOST_FILES} more files are wrong", diff)
        if not differ:
            what = "something" if noted is None else "an owner, a mode, a time, an attribute or a link's target"
            add(f"{what} in it was changed: its diff ID is {now.diff_id} now", diff)
        return found


Line: TypeAlias = "dict[str, Any]"
Lines: TypeAlias = "dict[str, Line]"


def _by_path(lines: list[Line]) -> Lines:
    # A directory that was renamed may be a copy in a layer that was made anew: that is no damage.
    return {line["path"]: {key: line[key] for key in line if key != "renamed_from"} for line in lines}


def _difference(noted: Line | None, now: Line | None) -> str:
    """How a path is wrong: what the list says, and what is there."""
    if now is None:
        return "is gone, or as below, and was not when the layer was made"
    if noted is None:
        return "is not as below, and was when the layer was made"
    if noted.get("xxh3_128") != now.get("xxh3_128"):
        return "has other bytes"
    return "is not as it was noted"


def _words(error: Exception) -> str:
    """What an error says, with the path that it is about."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    name = error.filename
    return error.strerror if name is None else f"{os.fsdecode(name)}: {error.strerror}"

"""The layer directories that merge in a directory of the tree, made when somebody looks at one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from unionfs.layer.protocol import LayerDir


class Sources(list[LayerDir]):
    """A list of layer directories, topmost first: some that are there, and below them some that ``make`` makes.

    ``make`` gets a place, counted from the bottom: nothing that goes on top later moves it.
    """

    __slots__ = ("_make",)

    def __init__(self, head: Sequence[LayerDir], more: int, make: Callable[[int], LayerDir]) -> None:
        super().__init__(head)
        super().extend(cast("list[LayerDir]", [None] * more))
        self._make = make

    def __getitem__(self, i: Any) -> Any:
        found = super().__getitem__(i)
        if found.__class__ is list:
            start, stop, step = i.indices(len(self))
            if stop == len(self) and step == 1:
                return Sources(found, 0, self._make)
            return [self[k] for k in range(start, stop, step)]
        if found is None:
            at = i if i >= 0 else i + len(self)
            found = self._make(len(self) - 1 - at)
            self[at] = found
        return found

    def __iter__(self) -> Iterator[LayerDir]:
        return (self[i] for i in range(len(self)))

    def __reversed__(self) -> Iterator[LayerDir]:
        return (self[i] for i in range(len(self) - 1, -1, -1))

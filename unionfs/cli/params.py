"""Kinds of arguments."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.images.store import Store

STORE = "unionfs.store"
"""Under which click's context has the directory of the store that was asked for."""


class DirectoryName(click.ParamType[str]):
    """A directory that shells can complete. Unlike ``click.Path`` it looks at nothing: a daemon may hang behind it."""

    name = "directory"

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="dir")]


class Reference(click.ParamType[str]):
    """What a person calls an image or a container; shells complete the names in the store."""

    def __init__(self, name: str, *, images: bool = False, containers: bool = False, paths: str = "") -> None:
        self.name = name
        self._images, self._containers, self._paths = images, containers, paths

    def shell_complete(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [name for name in self._names(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name) for name in found]
        if self._paths and not found:
            items.append(CompletionItem(incomplete, type=self._paths))
        return items

    def _names(self, ctx: click.Context) -> list[str]:
        names: list[str] = []
        with contextlib.suppress(Exception):  # A shell's line is no place for what is wrong with a store.
            from unionfs.images.store import Store
            from unionfs.store.places import default_path

            path = ctx.meta.get(STORE) or default_path()
            if os.path.exists(os.path.join(path, "metadata.db")):
                with Store(path) as store:
                    names += self._found(store)
        return names

    def _found(self, store: Store) -> Iterator[str]:
        if self._containers:
            yield from sorted(record.name for record in store.keep.records.containers())
        if self._images:
            yield from (name for name, _ in store.keep.records.tags())


DIRECTORY = DirectoryName()
IMAGE = Reference("image", images=True)
CONTAINER = Reference("container", containers=True)
POINT = Reference("reference", images=True, containers=True)
"""Anything that has a tree."""
POINT_OR_DIRECTORY = Reference("reference", images=True, containers=True, paths="dir")
POINT_OR_FILE = Reference("reference", images=True, containers=True, paths="file")

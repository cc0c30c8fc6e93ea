"""Kinds of arguments."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


class DirectoryName(click.ParamType[str]):
    """A directory that shells can complete. Unlike ``click.Path`` it looks at nothing: a daemon may hang behind it."""

    name = "directory"

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="dir")]


DIRECTORY = DirectoryName()

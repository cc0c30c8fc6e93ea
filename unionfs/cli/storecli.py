"""What the words about images and containers have in common: which store, JSON, ids alone, several names at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from unionfs.cli.errors import EXPECTED, as_failure
from unionfs.cli.params import DIRECTORY, STORE

if TYPE_CHECKING:
    import datetime as dt

    from unionfs.images.store import Store

F = TypeVar("F", bound=Callable[..., Any])


def _note(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[STORE] = os.path.abspath(value)


store_option = click.option(
    "--store",
    type=DIRECTORY,
    metavar="DIR",
    expose_value=False,
    is_eager=True,
    callback=_note,
    help="The store. Default: $UNIONFS_STORE, else unionfs below $XDG_DATA_HOME or ~/.local/share",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON, with full ids.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Ids alone, one a line.")
no_trunc_option = click.option("--no-trunc", is_flag=True, help="Full ids and texts.")
message_option = click.option("--message", "-m", default="", metavar="TEXT", help="Why, for the history.")
author_option = click.option("--author", "-a", default="", metavar="WHO", help="Who, for the history.")
change_option = click.option(
    "--change",
    "-c",
    "changes",
    multiple=True,
    metavar="CHANGE",
    help="To the config: 'CMD [\"nginx\"]', 'ENV A=b'. Repeat.",
)
force_option = click.option("--force", "-f", is_flag=True, help="Also what is in use.")


def store_path() -> str:
    """The directory of the store that is asked for."""
    from unionfs.store.places import default_path

    given: str | None = click.get_current_context().meta.get(STORE)
    return default_path() if given is None else given


def open_store() -> Store:
    """The store that is asked for, to be closed; made if need be."""
    from unionfs.images.store import Store

    return Store(store_path())


def print_json(value: object) -> None:
    """One document, for programs; names that are not UTF-8 have surrogate escapes (PEP 383)."""
    click.echo(json.dumps(value, indent=2))


def iso(time: dt.datetime | None) -> str | None:
    """A time as JSON has it."""
    return None if time is None else time.isoformat().replace("+00:00", "Z")


def for_each(refs: Iterable[str], action: Callable[[str], None]) -> None:
    """``action`` for all that are named. What fails is said, the others are done; then the exit status is 1."""
    failed = False
    for ref in refs:
        try:
            action(ref)
        except BrokenPipeError:
            raise
        except EXPECTED as error:
            as_failure(error).show()
            failed = True
    if failed:
        click.get_current_context().exit(1)

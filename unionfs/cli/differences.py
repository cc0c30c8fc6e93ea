"""``unionfs diff``: what changed, one line a change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from unionfs.cli import storecli as common
from unionfs.cli.params import POINT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unionfs.images.store import Store
    from unionfs.union.diff import Change


@click.command()
@click.argument("a", type=POINT, metavar="CONTAINER | A")
@click.argument("b", type=POINT, required=False, metavar="[B]")
@click.option("--path", default="/", metavar="PATH", help="Only what is at and below PATH.")
@click.option("--docker", is_flag=True, help="As `docker diff` has it: changed parents are lines too.")
@click.option("--stat", is_flag=True, help="What changed of each path, and sizes; the sum on stderr.")
@common.json_option
@common.store_option
def diff(a: str, b: str | None, path: str, docker: bool, stat: bool, as_json: bool) -> None:
    """What CONTAINER changes, compared with its image; what the topmost layer of an image did; or what turns A into B,
    any two points of any histories.

    One line a change: A (added), C (changed) or D (deleted) and the path; an unmodified path never shows. What is in a
    deleted directory has no lines of its own. Exit status 0, whether there are changes or not.

    \b
    Examples:
      unionfs diff web
      unionfs diff debian:13 web:1 --stat
      unionfs diff web~1 web --path /etc --json
      unionfs diff web | wc -l
    """
    if docker + stat + as_json > 1:
        raise click.UsageError("one of --docker, --stat and --json, not several")
    with common.open_store() as store:
        changes = _changes(store, a, b, path)
        if docker:
            from unionfs.cli.present import shown
            from unionfs.union.diff import docker_lines

            for line in docker_lines(changes):
                click.echo(shown(line))
        elif stat:
            from unionfs.cli.present import lines, summary

            found = list(changes)
            for line in lines(found, everything=True):
                click.echo(line)
            click.echo(f"unionfs: {summary(found)}", err=True)
        elif as_json:
            from unionfs.cli.present import as_json as packed

            common.print_json([packed(change) for change in changes])
        else:
            from unionfs.cli.present import line_of

            for change in changes:
                click.echo(line_of(change))


def _changes(store: Store, a: str, b: str | None, path: str) -> Iterable[Change]:
    if b is not None:
        return store.diff(a, b, path)
    point = store.point(a)
    if point.container is None:
        return store.diff(f"{a}~1", a, path)
    with store.container(point.container) as container:
        return container.diff(path)

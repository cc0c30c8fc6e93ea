"""``unionfs create``, ``ps``, ``rm``, ``rename``, ``commit``, ``fork``, ``rollback``: containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from unionfs.cli import storecli as common
from unionfs.cli.images import print_made, short
from unionfs.cli.params import CONTAINER, IMAGE, POINT
from unionfs.errors import NotFoundError

if TYPE_CHECKING:
    from unionfs.images.container import Container

name_option = click.option("--name", metavar="NAME", help="What to call it. Default: two words and a number.")


def _print_made(container: Container, as_json: bool) -> None:
    if as_json:
        common.print_json({"id": container.id, "name": container.name})
    else:
        click.echo(container.id)


@click.command(context_settings={"allow_interspersed_args": False})
@name_option
@common.json_option
@common.store_option
@click.argument("image", type=POINT)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def create(name: str | None, as_json: bool, image: str, command: tuple[str, ...]) -> None:
    """Make a container: a writable layer on IMAGE, or on any other point of a history. Prints its id.

    It takes the same time whatever the image's size. COMMAND is what the container is for; `commit` notes it as what
    made the changes.

    \b
    Examples:
      unionfs create --name web debian:13
      unionfs create --name build debian:13 make install
      unionfs create --name before web:9~2
    """
    with common.open_store() as store:
        _print_made(store.create(image, name, command), as_json)


@click.command()
@click.option("--all", "-a", is_flag=True, expose_value=False, help="All are listed anyway.")
@common.quiet_option
@common.json_option
@common.no_trunc_option
@common.store_option
def ps(quiet: bool, as_json: bool, no_trunc: bool) -> None:
    """List containers, newest first, and who has them open.

    \b
    Examples:
      unionfs ps
      unionfs ps --json
      unionfs rm $(unionfs ps -q)
    """
    with common.open_store() as store:
        found = store.containers()
        if quiet:
            for container in found:
                click.echo(container.id if no_trunc else short(container.id))
            return
        rows = [row for container in found if (row := as_row(container)) is not None]
        if as_json:
            common.print_json(rows)
        else:
            _print_containers(rows, no_trunc)


def as_row(container: Container) -> dict[str, Any] | None:
    """A container as JSON has it; ``None`` if it went just now."""
    try:
        record = container.record
        image = container.image
    except NotFoundError:
        return None
    return {
        "id": record.id,
        "name": record.name,
        "image": record.image,
        "image_names": [] if image is None else image.names,
        "layer": record.layer,
        "created": common.iso(container.created),
        "command": list(record.command),
        "status": container.status,
    }


def _print_containers(rows: list[dict[str, Any]], no_trunc: bool) -> None:
    import datetime as dt

    from unionfs.cli.tables import Column, ago, clipped, print_table

    cells = []
    for row in rows:
        names, command = row["image_names"], " ".join(row["command"])
        image = names[0] if names else "" if row["image"] is None else short(row["image"])
        cells.append(
            [
                row["id"] if no_trunc else short(row["id"]),
                image,
                command if no_trunc else clipped(command, 24),
                ago(dt.datetime.fromisoformat(row["created"])),
                row["status"],
                row["name"],
            ]
        )
    columns = [
        Column("CONTAINER ID"), Column("IMAGE", cut=True), Column("COMMAND", cut=True), Column("CREATED"),
        Column("STATUS", cut=True), Column("NAMES", cut=True),
    ]  # fmt: skip
    print_table(columns, cells, no_trunc=no_trunc)


@click.command()
@click.argument("containers", nargs=-1, required=True, type=CONTAINER, metavar="CONTAINER…")
@click.option("--force", "-f", is_flag=True, help="Also one that is mounted: it is unmounted first.")
@common.store_option
def rm(containers: tuple[str, ...], force: bool) -> None:
    """Remove containers, with all that is in their writable layers. Prints what was removed, as it was called.

    \b
    Examples:
      unionfs rm web
      unionfs rm -f $(unionfs ps -q)
    """

    def remove(ref: str) -> None:
        store.container(ref).remove(force=force)
        click.echo(ref)

    with common.open_store() as store:
        common.for_each(containers, remove)


@click.command()
@click.argument("container", type=CONTAINER)
@click.argument("name")
@common.store_option
def rename(container: str, name: str) -> None:
    """Call CONTAINER something else; mounted or not.

    \b
    Examples:
      unionfs rename able_ash_3f2a9c web
    """
    with common.open_store() as store:
        store.container(container).rename(name)


@click.command()
@click.argument("container", type=CONTAINER)
@click.argument("name", required=False, type=IMAGE, metavar="[NAME[:TAG]]")
@common.message_option
@common.author_option
@common.change_option
@click.option("--created-by", metavar="COMMAND", help="What made the changes. Default: the container's command.")
@common.json_option
@common.store_option
def commit(
    container: str,
    name: str | None,
    message: str,
    author: str,
    changes: tuple[str, ...],
    created_by: str | None,
    as_json: bool,
) -> None:
    """Make an image of CONTAINER's present state, while it is mounted and in use. Prints the image's id.

    Programs keep running, open files stay open. The container stands on the new image from then on.

    \b
    Examples:
      unionfs commit web web:1
      unionfs commit -m "nginx" -a ann -c 'CMD ["nginx", "-g", "daemon off;"]' web web:1
    """
    from unionfs.cli.progress import reporting

    with common.open_store() as store, store.container(container) as found:
        with reporting() as report:
            made = found.commit(
                name, message=message, author=author, changes=changes, created_by=created_by, report=report
            )
        print_made(made, as_json)


@click.command()
@click.argument("container", type=CONTAINER)
@name_option
@common.json_option
@common.store_option
def fork(container: str, name: str | None, as_json: bool) -> None:
    """Make another container with the present state of CONTAINER, which may be in use. Prints its id.

    It takes the same time whatever there is in it; from then on neither sees what the other changes.

    \b
    Examples:
      unionfs fork web --name try
    """
    with common.open_store() as store, store.container(container) as found:
        _print_made(found.fork(name), as_json)


@click.command()
@click.argument("container", type=CONTAINER)
@click.argument("point", type=POINT)
@click.option("--discard", is_flag=True, help="Throw away what was changed since the last point.")
@common.store_option
def rollback(container: str, point: str, discard: bool) -> None:
    """Take CONTAINER to POINT, an image or any layer of a history, while it is mounted and in use.

    The state that it was in stays a point of its history: `unionfs log` shows it, and another `rollback` goes there;
    with `--discard` what was changed since its last point is thrown away.
    Programs go on with the files that they have open; names lead to what POINT has.

    \b
    Examples:
      unionfs rollback web debian:13
      unionfs rollback web web~1
      unionfs rollback --discard web web~1
      unionfs rollback web 3f2a9c1b77d0
    """
    with common.open_store() as store, store.container(container) as found:
        found.rollback(point, discard=discard)

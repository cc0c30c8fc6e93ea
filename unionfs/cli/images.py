"""``unionfs import``, ``images``, ``tag``, ``rmi``, ``squash``: images."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from unionfs.cli import storecli as common
from unionfs.cli.params import IMAGE, POINT
from unionfs.errors import NotFoundError, UnionError

if TYPE_CHECKING:
    import datetime as dt

    from unionfs.images.image import Image
    from unionfs.images.store import Store

NONE = "<none>"


def short(digest: str) -> str:
    """The first 12 digits of an id, which a person reads."""
    return digest.removeprefix("sha256:")[:12]


def split_name(name: str) -> tuple[str, str]:
    """Repository and tag of ``repository:tag``."""
    repository, _, tag = name.rpartition(":")
    return repository, tag


@click.command(name="import")
@click.argument("source", type=click.Path(allow_dash=True))
@click.argument("name", required=False, type=IMAGE, metavar="NAME[:TAG]")
@common.message_option
@common.author_option
@common.change_option
@common.json_option
@common.store_option
def import_(source: str, name: str | None, message: str, author: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Make an image of SOURCE: a directory, a tar of any compression, or - for a tar on standard input.

    Prints the image's id.

    \b
    Examples:
      unionfs import rootfs.tar.xz debian:13
      unionfs import ./tree base -c 'CMD ["/bin/bash"]' -m "from my own tree"
      docker export web | unionfs import - web:exported
    """
    from unionfs.cli.progress import reporting

    with common.open_store() as store:
        with reporting() as report:
            image = store.import_(
                sys.stdin.buffer if source == "-" else source,
                name,
                message=message,
                author=author,
                changes=changes,
                report=report,
            )
        print_made(image, as_json)


def print_made(image: Image, as_json: bool) -> None:
    """The id of an image that was made, or all that its row tells."""
    if as_json:
        common.print_json(as_row(image))
    else:
        click.echo(image.id)


def as_row(image: Image, size: int | None = None) -> dict[str, Any]:
    """An image as JSON has it; ``size``: where it is known. ``NotFoundError`` if it went just now."""
    created, damage = _created(image)
    row: dict[str, Any] = {
        "id": image.id,
        "names": image.names,
        "digest": image.digest,
        "created": common.iso(created),
        "size": image.size if size is None else size,
    }
    if damage is not None:
        row["damage"] = damage
    return row


def _created(image: Image) -> tuple[dt.datetime | None, str | None]:
    """When it was made; or why that can't be read: one damaged image hides no other."""
    try:
        return image.created, None
    except NotFoundError:
        raise
    except (UnionError, OSError) as error:
        return None, str(error)


@click.command()
@click.argument("name", required=False, type=IMAGE, metavar="[NAME[:TAG]]")
@common.quiet_option
@common.json_option
@common.no_trunc_option
@common.store_option
def images(name: str | None, quiet: bool, as_json: bool, no_trunc: bool) -> None:
    """List images, newest first: all, or those of a name.

    \b
    Examples:
      unionfs images
      unionfs images debian
      unionfs images --json
      unionfs rmi $(unionfs images -q debian)
    """
    with common.open_store() as store:
        found = [image for image in store.images() if _asked(image.names, name) is not None]
        if quiet:
            for image in found:
                click.echo(image.id if no_trunc else short(image.id))
            return
        rows = list(_rows(store, found))
    if as_json:
        common.print_json(rows)
    else:
        _print_images(rows, name, no_trunc)


def _rows(store: Store, found: list[Image]) -> Iterator[dict[str, Any]]:
    from unionfs.images.usage import summed

    sizes = summed({layer.id: layer for layer in store.keep.records.layers()})
    for image in found:
        with contextlib.suppress(NotFoundError):
            yield as_row(image, sizes.get(image.record.layer or "", 0))


def _asked(names: list[str], name: str | None) -> list[str] | None:
    """Those of an image's names that are asked for; ``None`` if it is not."""
    if name is None:
        return names
    found = [each for each in names if name in (each, split_name(each)[0])]
    return found or None


def _print_images(found: list[dict[str, Any]], name: str | None, no_trunc: bool) -> None:
    from unionfs.cli.present import size
    from unionfs.cli.tables import Column, ago, print_table
    from unionfs.images.times import parsed

    rows = []
    for image in found:
        names = _asked(image["names"], name) or []
        for repository, tag in [split_name(each) for each in names] or [(NONE, NONE)]:
            rows.append(
                [
                    repository,
                    tag,
                    image["id"] if no_trunc else short(image["id"]),
                    "damaged: unionfs fsck" if "damage" in image else ago(parsed(image["created"])),
                    size(image["size"]),
                ]
            )
    columns = [
        Column("REPOSITORY", cut=True), Column("TAG", cut=True), Column("IMAGE ID"), Column("CREATED"), Column("SIZE"),
    ]  # fmt: skip
    print_table(columns, rows, no_trunc=no_trunc)


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("name", type=IMAGE, metavar="NAME[:TAG]")
@common.store_option
def tag(image: str, name: str) -> None:
    """Give IMAGE one more name; if another image has it, it is this one's from now on. Nothing is copied.

    \b
    Examples:
      unionfs tag web:1 web:latest
      unionfs tag 3f2a9c1b77d0 web:kept
    """
    with common.open_store() as store:
        store.tag(image, name)


@click.command()
@click.argument("images", nargs=-1, required=True, type=IMAGE, metavar="IMAGE…")
@common.force_option
@common.json_option
@common.store_option
def rmi(images: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Take names of images away; with the last name the image goes, and the layers that nothing else uses.

    \b
    Examples:
      unionfs rmi web:1
      unionfs rmi -f 3f2a9c1b77d0
    """
    said: list[str] = []

    def remove(ref: str) -> None:
        lines = store.remove_image(ref, force=force)
        said.extend(lines)
        if not as_json:
            for line in lines:
                click.echo(line)

    with common.open_store() as store:
        try:
            common.for_each(images, remove)
        finally:
            if as_json:
                pairs = [line.split(": ", 1) for line in said]
                common.print_json([{what.lower(): which} for what, which in pairs])


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("name", required=False, type=IMAGE, metavar="NAME[:TAG]")
@click.option("--from", "base", type=POINT, metavar="POINT", help="Only what is above this point. Default: all layers.")
@common.message_option
@common.author_option
@common.json_option
@common.store_option
def squash(image: str, name: str | None, base: str | None, message: str, author: str, as_json: bool) -> None:
    """Make an image that shows what IMAGE shows, with one layer in place of many. Prints its id.

    What nobody could see any more is left out, and the two trees are compared, file by file.

    \b
    Examples:
      unionfs squash web:9 web:small
      unionfs squash web:9 --from debian:13 web:small
      unionfs squash web:9 --from web:9~3 web:small
    """
    from unionfs.cli.progress import reporting

    with common.open_store() as store:
        with reporting() as report:
            made = store.squash(image, name, base=base, message=message, author=author, report=report)
        print_made(made, as_json)

"""``unionfs history``, ``log``, ``blame``, ``bloat``, ``inspect``: where a tree comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from unionfs.cli import storecli as common
from unionfs.cli.images import short
from unionfs.cli.params import POINT

if TYPE_CHECKING:
    from unionfs.images.blame import Touch
    from unionfs.images.bloat import Hidden
    from unionfs.images.graph import Node
    from unionfs.images.store import Store
    from unionfs.store.records import LayerRecord

NOTHING = "<none>"


@click.command()
@click.argument("ref", type=POINT, metavar="IMAGE | CONTAINER")
@common.quiet_option
@common.json_option
@common.no_trunc_option
@common.store_option
def history(ref: str, quiet: bool, as_json: bool, no_trunc: bool) -> None:
    """The layers of an image, or those that a container stands on, newest first: when, by whom, why, and how large.

    Of an image, changes of the config alone are told too; they have no layer. Each layer's id is a point, to be
    mounted, compared, created from or rolled back to, and so is REF~N, the Nth below.

    \b
    Examples:
      unionfs history web:1
      unionfs history --json web | jq '.[].created_by'
      unionfs mount web:1~2 /mnt/before
    """
    with common.open_store() as store:
        lines = _lines(store, ref)
        if as_json:
            common.print_json(lines)
        elif quiet:
            for line in lines:
                if line["id"] is not None:
                    click.echo(line["id"] if no_trunc else short(line["id"]))
        else:
            _print_history(lines, no_trunc)


def _lines(store: Store, ref: str) -> list[dict[str, Any]]:
    point = store.point(ref)
    if point.container is not None or point.image is None or "~" in ref:
        return [
            {**as_json_layer(layer), "names": store.keep.records.names_at(layer.id)}
            for layer in store.keep.records.chain(point.layer)
        ]
    return [
        {
            "id": line.id,
            "diff_id": line.diff_id,
            "chain_id": line.chain_id,
            "created": common.iso(line.created),
            "created_by": line.created_by,
            "author": line.author,
            "comment": line.comment,
            "size": line.size,
            "names": list(line.names),
        }
        for line in store.image(point.image).history()
    ]


def as_json_layer(layer: LayerRecord) -> dict[str, Any]:
    """A layer as JSON has it."""
    return {
        "id": layer.id,
        "diff_id": layer.diff_id,
        "chain_id": layer.chain_id,
        "created": layer.created or None,
        "created_by": layer.created_by,
        "author": layer.author,
        "comment": layer.comment,
        "size": layer.size,
    }


def _age(created: str | None) -> str:
    from unionfs.cli.tables import ago
    from unionfs.images.times import parsed

    return ago(parsed(created))


def _size(count: int | None) -> str:
    from unionfs.cli.present import size

    return "" if count is None else size(count)


def _print_history(lines: list[dict[str, Any]], no_trunc: bool) -> None:
    from unionfs.cli.tables import Column, clipped, print_table

    rows = [
        [
            NOTHING if line["id"] is None else line["id"] if no_trunc else short(line["id"]),
            _age(line["created"]),
            line["created_by"] if no_trunc else clipped(line["created_by"], 45),
            line["author"],
            "0 B" if line["id"] is None else _size(line["size"]),
            line["comment"],
            ", ".join(line["names"]),
        ]
        for line in lines
    ]
    columns = [
        Column("LAYER"),
        Column("CREATED"),
        Column("CREATED BY", cut=True),
        Column("AUTHOR", cut=True),
        Column("SIZE"),
        Column("COMMENT", cut=True),
        Column("NAMES", cut=True),
    ]
    print_table(columns, rows, no_trunc=no_trunc)


@click.command()
@click.option("--graph", is_flag=True, help="Draw the tree.")
@common.quiet_option
@common.json_option
@common.no_trunc_option
@common.store_option
def log(graph: bool, quiet: bool, as_json: bool, no_trunc: bool) -> None:
    """All layers of the store, each before what it stands on, and the images and containers that point at them.

    \b
    Examples:
      unionfs log --graph
      unionfs log --json
    """
    with common.open_store() as store:
        nodes = store.log()
        if as_json:
            common.print_json([_as_json_node(node) for node in nodes])
        elif quiet:
            for node in nodes:
                click.echo(node.layer.id if no_trunc else short(node.layer.id))
        elif graph:
            from unionfs.images.graph import draw

            for row in draw(nodes):
                click.echo(f"{row.graph} {_told(row.node, no_trunc)}" if row.node is not None else row.graph)
        else:
            for node in nodes:
                click.echo(_told(node, no_trunc))


def _as_json_node(node: Node) -> dict[str, Any]:
    return {
        **as_json_layer(node.layer),
        "parent": node.layer.parent,
        "names": list(node.names),
        "images": list(node.images),
        "containers": list(node.containers),
    }


def _told(node: Node, no_trunc: bool) -> str:
    """A layer in one line, as ``git log --oneline --decorate`` has a commit."""
    from unionfs.cli.present import shown

    layer = node.layer
    parts = [click.style(layer.id if no_trunc else short(layer.id), fg="yellow")]
    heads = [click.style(name, fg="green") for name in node.names]
    if node.images and not node.names:
        heads = [click.style(f"image {short(image)}", fg="green") for image in node.images]
    heads += [click.style(f"container {name}", fg="cyan") for name in node.containers]
    if heads:
        parts.append(f"({', '.join(heads)})")
    parts.append(shown(layer.comment or layer.created_by or ("a snapshot" if layer.chain_id is None else "no message")))
    parts.append(click.style(f"— {', '.join(filter(None, [shown(layer.author), _age(layer.created)]))}", dim=True))
    return " ".join(parts)


@click.command()
@click.argument("ref", type=POINT)
@click.argument("path")
@common.json_option
@common.no_trunc_option
@common.store_option
def blame(ref: str, path: str, as_json: bool, no_trunc: bool) -> None:
    """Which layers touched PATH, newest first: when, by whom, why, and what they did to it.

    A path that is gone has its history too, and a renamed directory goes on under its old name.

    \b
    Examples:
      unionfs blame web /etc/nginx/nginx.conf
      unionfs blame web:1 /usr/bin/python3 --json
    """
    with common.open_store() as store:
        touches = store.blame(ref, path)
        if as_json:
            common.print_json([_as_json_touch(touch) for touch in touches])
        else:
            _print_blame(touches, no_trunc)


def _as_json_touch(touch: Touch) -> dict[str, Any]:
    found: dict[str, Any] = {"path": touch.path, "kind": touch.kind, "what": sorted(touch.what)}
    if touch.renamed_from is not None:
        found["renamed_from"] = touch.renamed_from
    return {**found, "layer": as_json_layer(touch.layer), "names": list(touch.names)}


def _print_blame(touches: list[Touch], no_trunc: bool) -> None:
    from unionfs.cli.tables import Column, clipped, print_table

    rows = []
    for touch in touches:
        did = ", ".join(sorted(touch.what)) or touch.kind
        if touch.renamed_from is not None:
            did = f"renamed from {touch.renamed_from}"
        layer = touch.layer
        rows.append(
            [
                layer.id if no_trunc else short(layer.id),
                _age(layer.created),
                layer.author,
                did,
                layer.created_by if no_trunc else clipped(layer.created_by, 45),
                layer.comment,
                ", ".join(touch.names),
            ]
        )
    columns = [
        Column("LAYER"),
        Column("CREATED"),
        Column("AUTHOR", cut=True),
        Column("CHANGE", cut=True),
        Column("CREATED BY", cut=True),
        Column("COMMENT", cut=True),
        Column("NAMES", cut=True),
    ]
    print_table(columns, rows, no_trunc=no_trunc)


@click.command()
@click.argument("refs", nargs=-1, required=True, type=POINT, metavar="REF…")
@common.store_option
def inspect(refs: tuple[str, ...]) -> None:
    """All that is known of images, containers and layers, as a JSON array.

    \b
    Examples:
      unionfs inspect web:1
      unionfs inspect web | jq -r '.[0].Layers[].Directory'
    """
    found: list[dict[str, Any]] = []
    with common.open_store() as store:
        try:
            common.for_each(refs, lambda ref: found.append(store.inspect(ref)))
        finally:
            click.echo(json.dumps(found, indent=4))


@click.command()
@click.argument("ref", type=POINT)
@common.json_option
@common.no_trunc_option
@common.store_option
def bloat(ref: str, as_json: bool, no_trunc: bool) -> None:
    """What REF carries and nobody can see: deleted or overwritten in a higher layer. File by file, the largest first.

    \b
    Examples:
      unionfs bloat web:1
      unionfs bloat web:1 --json | jq 'map(.size) | add'
      unionfs squash web:1 web:small
    """
    with common.open_store() as store:
        found = store.bloat(ref)
        if as_json:
            common.print_json(
                [
                    {
                        "path": hidden.path,
                        "size": hidden.size,
                        "how": hidden.how,
                        "layer": hidden.layer.id,
                        "by": None if hidden.by is None else hidden.by.id,
                    }
                    for hidden in found
                ]
            )
        else:
            _print_bloat(found, no_trunc)


def _print_bloat(found: list[Hidden], no_trunc: bool) -> None:
    from unionfs.cli.present import count_of, size
    from unionfs.cli.tables import Column, print_table

    def named(layer: LayerRecord | None) -> str:
        return "" if layer is None else layer.id if no_trunc else short(layer.id)

    rows = [[size(hidden.size), named(hidden.layer), hidden.how, named(hidden.by), hidden.path] for hidden in found]
    columns = [Column("SIZE", right=True), Column("LAYER"), Column("HOW"), Column("BY"), Column("PATH", cut=True)]
    print_table(columns, rows, no_trunc=no_trunc)
    total = sum(hidden.size for hidden in found)
    click.echo(f"unionfs: {size(total)} in {count_of(len(found), 'entry')} that nobody can see", err=True)

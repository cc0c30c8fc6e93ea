"""``unionfs gc``, ``du``, ``fsck``: a store in order."""

from __future__ import annotations

import click

from unionfs.cli import storecli as common


@click.command()
@common.json_option
@common.store_option
def gc(as_json: bool) -> None:
    """Remove what nothing refers to: images without a name and a container, layers without an image, a container or a
    reader, and what killed processes left. Says what it freed. Safe beside all other work.

    \b
    Examples:
      unionfs gc
    """
    import attrs

    from unionfs.cli.present import count_of, size
    from unionfs.cli.progress import reporting

    with common.open_store() as store:
        with reporting() as report:
            freed = store.gc(report=report)
        if as_json:
            common.print_json(attrs.asdict(freed))
            return
        kinds = (("image", freed.images), ("layer", freed.layers), ("blob", freed.blobs), ("leftover", freed.left))
        parts = [count_of(len(each), word) for word, each in kinds if each]
        click.echo(f"freed {', '.join([*parts, size(freed.size)])}" if parts else "nothing to free")


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Layers and snapshots too.")
@click.option("--summary", "-s", is_flag=True, help="One line for each kind.")
@common.json_option
@common.no_trunc_option
@common.store_option
def du(everything: bool, summary: bool, as_json: bool, no_trunc: bool) -> None:
    """What images and containers take on disk: OWN would be freed if that one alone were removed, SHARED is used by
    others too.

    \b
    Examples:
      unionfs du
      unionfs du --all
      unionfs du --summary
    """
    import attrs

    from unionfs.cli.present import size
    from unionfs.cli.tables import Column, print_table
    from unionfs.images.usage import measure

    with common.open_store() as store:
        things, totals = measure(store)
    if not everything:
        things = [each for each in things if each.kind in ("image", "container")]
    if as_json:
        common.print_json([attrs.asdict(each) for each in (totals if summary else things)])
    elif summary:
        rows = [
            [each.kind, str(each.count), str(each.active), size(each.size), size(each.reclaimable)] for each in totals
        ]
        titles = ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE")
        print_table([Column(titles[0]), *(Column(title, right=True) for title in titles[1:])], rows)
    else:
        rows = [
            [each.kind, each.id if no_trunc and each.kind in ("layer", "snapshot") else each.name]
            + [size(count) for count in (each.size, each.own, each.shared)]
            for each in things
        ]
        sizes = [Column(title, right=True) for title in ("SIZE", "OWN", "SHARED")]
        print_table([Column("TYPE"), Column("NAME", cut=True), *sizes], rows, no_trunc=no_trunc)


@click.command()
@common.json_option
@common.store_option
def fsck(as_json: bool) -> None:
    """Hash everything again, and name what is wrong, one line each; also of a store that is too damaged to be opened.
    Nothing is changed.

    Exit status 0 if all is well, 1 if something is wrong. A line that begins with "note" tells of no damage.

    \b
    Examples:
      unionfs fsck
      unionfs fsck --json
    """
    import attrs

    from unionfs.cli.present import shown
    from unionfs.cli.progress import reporting
    from unionfs.images.fsck import check_path

    with reporting() as report:
        problems = check_path(common.store_path(), report=report)
    if as_json:
        common.print_json([attrs.asdict(problem) for problem in problems])
    else:
        for problem in problems:
            click.echo(shown(f"{'note: ' if problem.note else ''}{problem}"))
    if not all(problem.note for problem in problems):
        click.get_current_context().exit(1)

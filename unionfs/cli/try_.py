"""``unionfs try``: any command over a copy-on-write view of the host's root."""

from __future__ import annotations

import getpass
import os
import sys

import click

from unionfs.cli.errors import EXPECTED, as_failure
from unionfs.cli.trial import OWN_FAILURE, Decision, Order, Trial, say, sweep_away
from unionfs.mount.engine import AUTO, engine_names
from unionfs.run.supervisor import supervise

_MOST_TEXT = 1500  # bytes, that a commit's record has room for


@click.command(name="try", context_settings={"allow_interspersed_args": False})
@click.option(
    "--keep", "keep_at", metavar="DIR", type=click.Path(), help="Afterwards, keep the changes as the layer DIR."
)
@click.option("--apply", "apply_", is_flag=True, help="Afterwards, apply the changes to the host.")
@click.option("--discard", is_flag=True, help="Afterwards, drop the changes.")
@click.option("--force", is_flag=True, help="Apply also where the host changed meanwhile.")
@click.option("--scratch", metavar="DIR", type=click.Path(), help="Where the changes go while the command runs.")
@click.option("--message", "-m", default="", help="What to write into the history of a kept layer.")
@click.option("--author", default="", help="Who did it, for the history. Default: this user.")
@click.option("--all", "everything", is_flag=True, help="List what is inside added directories too.")
@click.option(
    "--json", "json_", is_flag=True, help="Changes and outcome as JSON on stdout; the command's goes to stderr."
)
@click.option("--engine", type=click.Choice([AUTO, *engine_names()]), default=AUTO, help="What mounts. Default: auto")
@click.option("--sweep", is_flag=True, help="Remove what killed runs left, and run nothing.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def try_(
    keep_at: str | None,
    apply_: bool,
    discard: bool,
    force: bool,
    scratch: str | None,
    message: str,
    author: str,
    everything: bool,
    json_: bool,
    engine: str,
    sweep: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND over a copy-on-write view of this machine's root.

    Whatever it writes, deletes or renames goes to a layer; the host stays as it is. Then the changes are shown, and you
    say whether to keep them as a layer, apply them to the host, or discard them. Off a terminal and without --keep,
    --apply or --discard they are kept, and the last line says where.

    /proc, /dev, /sys, /run, the network and processes are the host's own. As root it is root's view; for others it runs
    in a user namespace, where you are root over what is yours.

    Exit status: the command's own (128+N if signal N ended it), 125 if the view can't be made, 126 if COMMAND can't be
    executed, 127 if it is not found; 1 if it succeeded and its changes could not all be applied or kept.

    \b
    Examples:
      unionfs try -- apt-get install -y nginx
      unionfs try bash
      unionfs try --keep ./with-nginx -m "nginx, untouched" -- apt-get install -y nginx
      unionfs try --discard --json -- make install > changes.json
    """
    flags: dict[Decision, bool] = {"keep": keep_at is not None, "apply": apply_, "discard": discard}
    chosen = [decision for decision, given in flags.items() if given]
    if len(chosen) > 1:
        raise click.UsageError("one of --keep, --apply and --discard, not several")
    if force and not apply_:
        raise click.UsageError("--force goes with --apply")
    if bool(command) == sweep:
        raise click.UsageError("--sweep runs no command" if sweep else "which command? unionfs try -- COMMAND …")
    if len(f"{message}{author}".encode(errors="backslashreplace")) > _MOST_TEXT:
        raise click.UsageError(f"--message and --author may have {_MOST_TEXT:,} bytes")
    order = Order(
        command=command,
        decision=chosen[0] if chosen else None,
        keep_at=None if keep_at is None else os.path.abspath(keep_at),
        force=force,
        scratch=None if scratch is None else os.path.abspath(scratch),
        message=message,
        author=author or _user(),
        engine=engine,
        json=json_,
        everything=everything,
    )
    status = supervise(
        lambda maps: sweep_away(order, maps) if sweep else Trial(order, maps).run(),
        _failed,
        user_namespace=os.geteuid() != 0,
    )
    sys.exit(status)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _failed(error: BaseException) -> int:
    """Show what ended the child; its exit status."""
    if isinstance(error, click.ClickException):
        error.show()
    elif isinstance(error, EXPECTED):
        as_failure(error).show()
    elif isinstance(error, KeyboardInterrupt):
        say("interrupted")
    else:
        sys.excepthook(type(error), error, error.__traceback__)
    return OWN_FAILURE

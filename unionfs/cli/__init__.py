"""The ``unionfs`` command: a thin face over the public API. Subcommands are imported when they are called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from unionfs.cli.errors import EXPECTED, as_failure

# Name: where its click command is, and its line in `unionfs --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "try": ("unionfs.cli.try_:try_", "Run a command over a copy-on-write view of this machine's root."),
    "mount": ("unionfs.cli.mount:mount", "Mount a union of layers at a directory."),
    "umount": ("unionfs.cli.mount:umount", "Unmount, and wait until everything is on disk."),
    "install-mount-helper": ("unionfs.cli.mount_helper:install", "Let mount(8) and /etc/fstab mount unions."),
    "completion": ("unionfs.cli.completion:completion", "Print the set-up for completion in a shell."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by ``COMMANDS`` and imports the one that is called."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when the reader of our output has gone.
        except EXPECTED as error:
            raise as_failure(error) from error

    def main(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        if _is_mount_call(given):
            from unionfs.cli.mount_helper import main as mount_helper

            sys.exit(mount_helper(given))
        return super().main(args, *rest, **kwargs)


def _is_mount_call(args: list[str]) -> bool:
    """Whether this is mount.fuse(8) calling ``unionfs SOURCE MOUNTPOINT -o OPTIONS`` for ``mount -t fuse.unionfs``."""
    return len(args) >= 3 and args[0] not in COMMANDS and args[1].startswith("/") and args[2] == "-o"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="unionfs", message="unionfs %(version)s")
def main() -> None:
    """One tree from many layers: read-only layers below, one writable layer on top.

    \b
    Examples:
      unionfs mount /mnt/merged --lower /srv/base --upper /srv/changes
      unionfs umount /mnt/merged
    """

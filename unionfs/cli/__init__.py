"""The ``unionfs`` command: a thin face over the public API. Subcommands are imported when they are called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from unionfs.cli.errors import EXPECTED, as_failure
from unionfs.cli.storecli import store_option

# By heading, in the order of `unionfs --help`. Name: where its click command is, and its line there.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Layers": {
        "try": ("unionfs.cli.try_:try_", "Run a command over a copy-on-write view of this machine's root."),
        "mount": ("unionfs.cli.mount:mount", "Mount a container, an image, or a union of layers."),
        "umount": ("unionfs.cli.mount:umount", "Unmount, and wait until everything is on disk."),
    },
    "Images": {
        "import": ("unionfs.cli.images:import_", "Make an image of a directory or a tar."),
        "images": ("unionfs.cli.images:images", "List images."),
        "tag": ("unionfs.cli.images:tag", "Give an image one more name."),
        "squash": ("unionfs.cli.images:squash", "Make many layers of an image one."),
        "rmi": ("unionfs.cli.images:rmi", "Remove images, or names of them."),
    },
    "Containers": {
        "create": ("unionfs.cli.containers:create", "Make a container on an image."),
        "ps": ("unionfs.cli.containers:ps", "List containers."),
        "commit": ("unionfs.cli.containers:commit", "Make an image of a container, while it is in use."),
        "fork": ("unionfs.cli.containers:fork", "Make a container of another one's present state."),
        "rollback": ("unionfs.cli.containers:rollback", "Take a container to a point of a history, while mounted."),
        "cp": ("unionfs.cli.copying:cp", "Copy between the host and a container or an image."),
        "rename": ("unionfs.cli.containers:rename", "Call a container something else."),
        "rm": ("unionfs.cli.containers:rm", "Remove containers."),
    },
    "History": {
        "diff": ("unionfs.cli.differences:diff", "What a container changes, or what turns one point into another."),
        "history": ("unionfs.cli.history:history", "The layers of an image or a container."),
        "log": ("unionfs.cli.history:log", "The tree of all layers, and what points at them."),
        "blame": ("unionfs.cli.history:blame", "Which layers touched a path."),
        "bloat": ("unionfs.cli.history:bloat", "What an image carries and nobody can see."),
        "inspect": ("unionfs.cli.history:inspect", "All that is known of anything, as JSON."),
    },
    "The store": {
        "gc": ("unionfs.cli.upkeep:gc", "Remove what nothing refers to."),
        "du": ("unionfs.cli.upkeep:du", "What takes room."),
        "fsck": ("unionfs.cli.upkeep:fsck", "Hash everything again, and name what is wrong."),
    },
    "Set-up": {
        "install-mount-helper": ("unionfs.cli.mount_helper:install", "Let mount(8) and /etc/fstab mount unions."),
        "completion": ("unionfs.cli.completion:completion", "Print the set-up for completion in a shell."),
    },
}
COMMANDS = {name: where for section in SECTIONS.values() for name, where in section.items()}


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
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # Without importing all of them.
        found = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

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
@store_option
def main() -> None:
    """One tree from many layers: read-only layers below, one writable layer on top.

    \b
    Examples:
      unionfs import rootfs.tar debian:13
      unionfs create --name web debian:13
      unionfs mount web /mnt/web
      unionfs commit -m "what I did" web web:1
      unionfs umount /mnt/web
      unionfs mount /mnt/merged --lower /srv/base --upper /srv/changes
    """

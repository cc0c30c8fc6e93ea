"""``unionfs completion``: what a shell needs to complete our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from unionfs.cli.errors import PROGRAM


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the set-up for completion in SHELL.

    \b
      bash:  unionfs completion bash > ~/.local/share/bash-completion/completions/unionfs
      zsh:   unionfs completion zsh > ~/.zfunc/_unionfs      (with ~/.zfunc in $fpath)
      fish:  unionfs completion fish > ~/.config/fish/completions/unionfs.fish
    """
    group = click.get_current_context().find_root().command
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(group, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())

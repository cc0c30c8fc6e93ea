"""``unionfs mount --print``: the command by which the kernel's own overlayfs mounts what a store has."""

from __future__ import annotations

import errno
import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing

import click

from unionfs.cli.mount_store import find
from unionfs.cli.storecli import open_store
from unionfs.errors import MountError
from unionfs.images.stacks import Stack
from unionfs.layer.directory import DirectoryLayer
from unionfs.mount.kernelstack import KernelStack, kernel_stack
from unionfs.union.tree import Tree

_MOST_LAYERS = 500  # OVL_MAX_STACK
_MOST_OPTIONS = 4000  # bytes; mount(2) takes a page of them
_PLAIN = re.compile(r"[\w/.@%+-]+")  # what neither a shell nor overlayfs nor mount(8) takes for more than a name


def print_command(ref: str, mountpoint: str = "/mnt") -> None:
    """Print what a shell run by root mounts ``ref`` with, at ``mountpoint``.

    Raises ``MountError`` (``EOPNOTSUPP``) where overlayfs would show another tree; ``UpperBusyError`` while the
    container is open.
    """
    for line in commands(ref, os.path.abspath(mountpoint)):
        click.echo(line)


def commands(ref: str, mountpoint: str) -> list[str]:
    """The lines of it."""
    with ExitStack() as held:
        store = held.enter_context(open_store())
        container, layer = find(store, ref)
        if container is not None:
            held.enter_context(container)
            tree = container.fs.tree
        else:
            layers = list(held.enter_context(Stack(store.keep, layer)).layers)
            if not layers:
                raise MountError(errno.EOPNOTSUPP, "overlayfs takes a layer, and this has none", ref)
            if len(layers) == 1:  # It takes two where there is no upper.
                nothing = held.enter_context(tempfile.TemporaryDirectory())
                layers.append(held.enter_context(closing(DirectoryLayer(nothing))))
                kernel_stack(Tree(layers))
                return [f"mount -o bind,ro {shlex.quote(layers[0].path)} {shlex.quote(mountpoint)}"]
            tree = Tree(layers)
        stack = kernel_stack(tree)
        if len(stack.layers) > _MOST_LAYERS:
            text = f"overlayfs takes {_MOST_LAYERS} layers, and this has {len(stack.layers)}: squash it"
            raise MountError(errno.EOPNOTSUPP, text, ref)
        lowers = [lower.path for lower in stack.lowers]
        upper = None if stack.upper is None else (stack.upper.path, stack.upper.work)
        line = _line(stack, lowers, upper, mountpoint)
        if len(line) < _MOST_OPTIONS and all(map(_PLAIN.fullmatch, [*lowers, *(upper or ())])):
            return [line]
        return _script(stack, mountpoint)


def _line(stack: KernelStack, lowers: Sequence[str], upper: tuple[str, str] | None, mountpoint: str) -> str:
    words = ["lowerdir=" + ":".join(lowers)]
    if upper is not None:
        words += [f"upperdir={upper[0]}", f"workdir={upper[1]}"]
    if stack.userxattr:
        words.append("userxattr")
    else:
        words += [f"redirect_dir={'on' if stack.redirect_dir else 'follow'}", f"metacopy={_switch(stack.metacopy)}"]
    if upper is not None:
        words.append("index=on")
    return f"mount -t overlay overlay -o {','.join(words)} {shlex.quote(mountpoint)}"


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _script(stack: KernelStack, mountpoint: str) -> list[str]:
    """By short names, which overlayfs looks at when it mounts and never again: a page of options has room for as many
    as it takes, and none means anything to it."""
    lowers = [str(i) for i in range(len(stack.lowers))]
    links = list(zip([layer.path for layer in stack.lowers], lowers, strict=True))
    upper = None
    if stack.upper is not None:
        links += [(stack.upper.path, "upper"), (stack.upper.work, "work")]
        upper = ("upper", "work")
    made = [f"ln -s {shlex.quote(path)} {name}" for path, name in links]
    begin = ["(", "set -e", "names=$(mktemp -d)", """trap 'cd / && rm -r "$names"' EXIT""", 'cd "$names"']
    return [*begin, *made, _line(stack, lowers, upper, mountpoint), ")"]

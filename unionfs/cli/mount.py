"""``unionfs mount`` and ``unionfs umount``."""

from __future__ import annotations

import errno
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import attrs
import click

from unionfs.cli.params import DIRECTORY, POINT_OR_DIRECTORY
from unionfs.cli.storecli import store_option
from unionfs.errors import MountError
from unionfs.mount import daemon, mountinfo, runtime
from unionfs.mount.engine import AUTO, OVERLAY, SHOWN_ELSEWHERE, MountOptions, check_mountpoint, engine_names
from unionfs.mount.options import StackOptions, parse_options
from unionfs.mount.unmounting import unmount

if TYPE_CHECKING:
    from unionfs.union.fs import UnionFS

_PATIENCE = 3.0  # seconds of waiting for a daemon before a person is told


def free_mountpoint(mountpoint: str) -> str:
    """The canonical path of a directory to mount on. Clears away the dead mount of a killed daemon, and says so.

    Raises ``MountError``.
    """
    path = mountinfo.canonical(mountpoint)
    if daemon.clear_dead_mount(path):
        click.echo(f"unionfs: {path}: cleared a dead mount: its daemon had been killed", err=True)
    check_mountpoint(path)
    return path


def request_for(mountpoint: str, stack: StackOptions) -> daemon.Request:
    """A checked request to mount ``stack``; see ``free_mountpoint``. Raises ``MountError``."""
    path = free_mountpoint(mountpoint)
    if not stack.lower and not stack.upper:
        raise MountError(errno.EINVAL, "no layer given", path)
    lower = [os.path.realpath(layer) for layer in stack.lower]
    upper = None if stack.upper is None else os.path.realpath(stack.upper)
    work = None if stack.work is None else os.path.realpath(stack.work)
    # A lower that holds the mountpoint, as / does, must not show the mount in itself.
    hide = [] if path in lower else [path]

    def open_union() -> UnionFS:
        from unionfs.union.fs import UnionFS

        return UnionFS(
            lower=lower,
            upper=upper,
            work=work,
            hide=hide,
            volatile=stack.volatile,
            userxattr=True if stack.userxattr else None,
        )

    fields: dict[str, Any] = {"source": upper or lower[0], **stack.fields, "sole": True}
    return daemon.Request(
        mountpoint=path,
        open_union=open_union,
        upper=upper,
        engine=stack.engine or AUTO,
        options=MountOptions(**fields),
    )


@click.command()
@click.argument("places", nargs=-1, required=True, type=POINT_OR_DIRECTORY, metavar="[CONTAINER] MOUNTPOINT")
@click.option(
    "--lower",
    "-l",
    type=DIRECTORY,
    multiple=True,
    metavar="DIR",
    help="A read-only layer; the first one is on top. Repeat.",
)
@click.option(
    "--upper", "-u", type=DIRECTORY, metavar="DIR", help="The writable layer. Without it the mount is read-only."
)
@click.option(
    "--work", "-w", type=DIRECTORY, metavar="DIR", help="Beside the upper, on its file system. Default: UPPER.work"
)
@click.option("--read-only", "-r", is_flag=True, help="Refuse changes.")
@click.option("--volatile", is_flag=True, help="Flush nothing to disk: fast, for what may be lost.")
@click.option("--foreground", "-f", is_flag=True, help="Stay; Ctrl-C unmounts.")
@click.option("--engine", type=click.Choice([AUTO, *engine_names()]), default=None, help="What mounts. Default: auto")
@click.option("--option", "-o", "options", multiple=True, metavar="OPT,…", help="Mount options, overlayfs's words too.")
@click.option("--log", "log_file", type=click.Path(), help="Where the daemon's warnings go. Default: syslog")
@click.option("--json", "as_json", is_flag=True, help="Print mountpoint, pid and engine as JSON.")
@click.option(
    "--print", "print_", is_flag=True, help="Print the kernel's own command for CONTAINER, and mount nothing."
)
@store_option
def mount(
    places: tuple[str, ...],
    lower: tuple[str, ...],
    upper: str | None,
    work: str | None,
    read_only: bool,
    volatile: bool,
    foreground: bool,
    engine: str | None,
    options: tuple[str, ...],
    log_file: str | None,
    as_json: bool,
    print_: bool,
) -> None:
    """Mount a container at MOUNTPOINT; or, read-only, an image or any other point of a history; or, without a store, a
    union of layers.

    Returns when the mount answers. A background process serves it until `umount`; a killed one leaves nothing that has
    to be cleared but the mount itself, which the next `unionfs mount` or `unionfs umount` does.

    \b
    Examples:
      unionfs mount web /mnt/web
      unionfs mount web:9~2 /mnt/before
      unionfs mount --print web /mnt/web | sh
      unionfs mount /mnt/merged --lower /srv/base --upper /srv/changes
      unionfs mount /mnt/view --lower /srv/new --lower /srv/old
      unionfs mount /mnt/merged -o lowerdir=/srv/new:/srv/old,upperdir=/srv/up,workdir=/srv/work,noatime
    """
    stack = parse_options(",".join(options))
    stack.lower = [*lower, *stack.lower]
    stack.upper, stack.work = upper or stack.upper, work or stack.work
    stack.engine = engine or stack.engine
    if read_only:
        stack.fields["read_only"] = True
    stack.volatile |= volatile
    layered = bool(stack.lower or stack.upper)
    if print_:
        _print_command(places, layered or foreground or read_only or bool(options))
        return
    if len(places) > 1:
        request = _request_from_store(places, stack, layered)
    else:
        request = _request_for_layers(places[0], stack)

    def announce(record: runtime.Record) -> None:
        if as_json:
            click.echo(json.dumps({key: getattr(record, key) for key in ("mountpoint", "pid", "engine")}))

    if foreground:
        logging.basicConfig(level=logging.WARNING, format="unionfs: %(message)s", filename=log_file)
        daemon.serve(request, announce)
    else:
        announce(daemon.spawn(request, log_file and os.path.abspath(log_file)))


def _request_for_layers(mountpoint: str, stack: StackOptions) -> daemon.Request:
    if stack.volatile and stack.upper:
        click.echo(
            "unionfs: volatile: nothing is flushed; after a crash of the machine the upper may be damaged", err=True
        )
    return request_for(mountpoint, stack)


def _request_from_store(places: tuple[str, ...], stack: StackOptions, layered: bool) -> daemon.Request:
    from unionfs.cli import mount_store

    if len(places) > 2:
        raise click.UsageError("one CONTAINER and one MOUNTPOINT")
    if layered or stack.work:
        raise click.UsageError("a container has its own layers: either CONTAINER MOUNTPOINT, or MOUNTPOINT --lower …")
    if stack.volatile or stack.userxattr:
        raise click.UsageError("a container in a store can't be volatile or userxattr: these are for --lower, --upper")
    return mount_store.request_for(places[0], free_mountpoint(places[1]), stack.engine, stack.fields)


def _print_command(places: tuple[str, ...], more: bool) -> None:
    from unionfs.cli.kernel_command import print_command

    if more or len(places) > 2:
        raise click.UsageError("--print goes with CONTAINER [MOUNTPOINT] alone")
    print_command(*places)


@click.command()
@click.argument("mountpoint", type=DIRECTORY)
@click.option("--lazy", "-z", is_flag=True, help="Detach now, even if in use; who uses it is served till done.")
@click.option("--json", "as_json", is_flag=True, help="Print mountpoint, pid and engine as JSON.")
def umount(mountpoint: str, lazy: bool, as_json: bool) -> None:
    """Unmount what is at MOUNTPOINT.

    Returns when everything is on disk and the layers are free again. Also clears the mount of a daemon that was killed.

    \b
    Examples:
      unionfs umount /mnt/merged
      unionfs umount --lazy /mnt/merged
    """
    path = mountinfo.canonical(mountpoint)
    entry = mountinfo.mount_at(path)
    if entry is None or not (entry.fstype.startswith("fuse") or entry.fstype == OVERLAY):
        raise MountError(errno.EINVAL, "no union is mounted here", path)
    os.chdir("/")  # Called from inside the mount, we must not be who keeps it busy.
    seen = runtime.watch(entry)
    # What still uses a dead mount can do nothing with it, and need not keep it.
    unmount(path, lazy=lazy or runtime.is_dead(entry))
    record = None
    if seen is not None:
        with seen:
            record = seen.record
            if not lazy:
                seen.wait(_PATIENCE, lambda: _still_waiting(seen))
    if as_json:
        known = attrs.asdict(record) if record is not None else {}
        click.echo(json.dumps({"mountpoint": path, "pid": known.get("pid"), "engine": known.get("engine")}))


def _still_waiting(seen: runtime.Watch) -> None:
    if seen.serves():
        users = mountinfo.users_of(seen.record.device)
        if users or seen.record.engine == "kernel":  # Nobody but that namespace can end what the kernel serves.
            used = f", in use by {', '.join(users)}" if users else ""
            raise MountError(errno.EBUSY, SHOWN_ELSEWHERE + used, seen.record.mountpoint)
        seen.stop()  # A namespace only has it among its mounts, as any new one has a copy of all.
        return
    click.echo(f"unionfs: waiting for pid {seen.record.pid} to write everything to disk", err=True)

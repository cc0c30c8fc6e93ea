"""``unionfs cp``: between the host and what a store has, by ``docker cp``'s rules."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from unionfs.cli import storecli as common
from unionfs.cli.params import POINT_OR_FILE
from unionfs.errors import InUseError, UpperBusyError

if TYPE_CHECKING:
    from unionfs.images.container import Container
    from unionfs.images.store import Store
    from unionfs.layer.protocol import LayerDir
    from unionfs.union.fs import UnionFS
    from unionfs.union.host import HostTree

_MOST_LINKS = 40  # on one path, as the kernel has it


def split(place: str) -> tuple[str, str] | None:
    """Reference and path of ``REF:PATH``; ``None`` for a path of the host, which begins with ``/`` or ``.`` if it has a
    colon."""
    if place.startswith(("/", ".")) or ":" not in place:
        return None
    ref, _, path = place.partition(":/") if ":/" in place else place.rpartition(":")
    return ref, f"/{path}"


@click.command()
@click.argument("source", type=POINT_OR_FILE, metavar="CONTAINER:PATH | PATH")
@click.argument("target", type=POINT_OR_FILE, metavar="PATH | CONTAINER:PATH")
@common.store_option
def cp(source: str, target: str) -> None:
    """Copy a file, or a directory with all that is in it, out of a container or an image, or into a container; mounted
    or not.

    As `docker cp` has it: into TARGET if that is a directory, else to that name; with SOURCE/. what is in the
    directory; directories merge, files are replaced, symbolic links are copied as links. Modes, owners (for root),
    times, holes, attributes and hard links are kept. A path of the host that has a colon begins with / or ./

    \b
    Examples:
      unionfs cp web:/etc/nginx ./nginx
      unionfs cp ./site/. web:/var/www
      unionfs cp debian:13:/etc/os-release .
    """
    out, into = split(source), split(target)
    if (out is None) == (into is None):
        raise click.UsageError("one of SOURCE and TARGET is CONTAINER:PATH, the other a path of the host")
    with common.open_store() as store:
        if out is not None:
            with _readable(store, out[0]) as fs:
                _copy_out(fs, out[1], target)
        elif into is not None:
            point = store.point(into[0])
            if point.container is None:
                raise InUseError(f"{into[0]!r} does not change: make a container of it")
            with store.container(point.container) as container:
                _copy_in(container, source, into[1])


@contextmanager
def _readable(store: Store, ref: str) -> Iterator[UnionFS]:
    """The tree of ``ref``: of a container that another process has open, the state of the moment; of one that the
    kernel's overlayfs has, what it shows."""
    from unionfs.union.fs import UnionFS

    point = store.point(ref)
    mountpoint = None
    if point.container is not None:
        with store.container(point.container) as container:
            try:
                opened: UnionFS | None = container.fs
            except UpperBusyError:
                opened = None
            if opened is not None:
                yield opened
                return
            mountpoint = container.mountpoint
    try:
        fs: UnionFS = store.open(ref)
    except InUseError:
        if mountpoint is None:
            raise
        fs = UnionFS(lower=[mountpoint])
    with fs:
        yield fs


def _goal(
    source: str,
    is_directory: bool,
    target: str,
    there: str | None,
) -> str:
    """Where the copy goes. ``there``: what ``target`` leads to, ``file`` or ``directory``, if anything."""
    inside = source.endswith("/.") or not source.strip("/.")
    if inside and not is_directory:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), source)
    if there == "directory":
        return target if inside else os.path.join(target, os.path.basename(source.rstrip("/")))
    if there is not None and is_directory:
        raise NotADirectoryError(errno.ENOTDIR, "a directory can't be copied over a file", target)
    if there is None and target.endswith("/") and not is_directory:
        raise FileNotFoundError(errno.ENOENT, "no such directory", target)
    return target.rstrip("/") or "/"


def _kind(path: str, exists: Callable[[str], bool], isdir: Callable[[str], bool]) -> str | None:
    return "directory" if isdir(path) else "file" if exists(path) else None


def _is_directory(path: str, islink: Callable[[str], bool], isdir: Callable[[str], bool]) -> bool:
    """Whether that itself is one; a link with a slash after it stands for what it leads to."""
    return isdir(path) and (path.endswith(("/", "/.")) or not islink(path))


def _copy_out(fs: UnionFS, path: str, target: str) -> None:
    there = _kind(target, os.path.lexists, os.path.isdir)
    goal = _goal(path, _is_directory(path, fs.islink, fs.isdir), target, there)
    if os.path.isdir(goal):
        goal = os.path.realpath(goal)
    source = fs.realpath(path) if path.endswith(("/", "/.")) else path
    fs.copy_out(source, goal, exist_ok=True)


def _copy_in(container: Container, source: str, path: str) -> None:
    is_directory = _is_directory(source, os.path.islink, os.path.isdir)
    host = os.path.realpath(source) if source.endswith(("/", "/.")) else source
    try:
        fs = container.fs
    except UpperBusyError:
        mountpoint = container.mountpoint
        if mountpoint is None:
            raise
        _copy_into_mount(mountpoint, host, source, is_directory, path)
        return
    goal = _goal(source, is_directory, path, _kind(path, fs.lexists, fs.isdir))
    if fs.isdir(goal):
        goal = fs.realpath(goal)
    fs.copy_in(host, goal, exist_ok=True)
    fs.sync()


def _copy_into_mount(mountpoint: str, host: str, source: str, is_directory: bool, path: str) -> None:
    """Through the mount, so that its users see it at once: links are those of the container, never the host's."""
    from unionfs.union.host import HostTree
    from unionfs.union.transfer import Copy, HostEntry, HostSide

    tree = HostTree(mountpoint)
    try:
        text = _goal(source, is_directory, path, _kind_of(tree, resolved(tree, path)))
        goal = resolved(tree, text)
        if _kind_of(tree, goal) != "directory":  # A link to a file is replaced, as a file is.
            above, _, name = os.fsencode(text).rpartition(b"/")
            goal = [*resolved(tree, os.fsdecode(above)), name]
        if not goal:
            raise IsADirectoryError(errno.EISDIR, "the root can't be replaced: copy what is in it", path)
        top, last = HostTree.locate(host)
        origin = HostTree(top)
        try:
            paths = (os.fsencode(host), os.fsencode(path))
            copy = Copy(HostSide(origin), HostSide(tree), paths, exist_ok=True)
            copy.run(HostEntry(origin.root, last), _directory(tree, goal[:-1]), goal[-1])
        finally:
            origin.close()
    finally:
        tree.close()


def _directory(tree: HostTree, names: list[bytes]) -> LayerDir:
    d = tree.root
    for name in names:
        d = d.child(name)
    return d


def _kind_of(tree: HostTree, names: list[bytes]) -> str | None:
    import stat

    try:
        mode = tree.stat(_directory(tree, names[:-1]), names[-1]).st_mode if names else stat.S_IFDIR
    except (FileNotFoundError, NotADirectoryError):
        return None
    return "directory" if stat.S_ISDIR(mode) else "file"


def resolved(tree: HostTree, path: str) -> list[bytes]:
    """The names on the way to ``path`` in a tree whose root is ``/`` to its links; the last ones need not exist."""
    import stat

    todo = [name for name in os.fsencode(path).split(b"/") if name][::-1]
    found: list[bytes] = []
    links = 0
    while todo:
        name = todo.pop()
        if name == b".":
            continue
        if name == b"..":
            del found[-1:]
            continue
        d = _directory(tree, found)
        try:
            is_link = stat.S_ISLNK(tree.stat(d, name).st_mode)
        except FileNotFoundError:
            is_link = False
        if not is_link:
            found.append(name)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = tree.readlink(d, name)
        if target.startswith(b"/"):
            found = []
        todo += [part for part in target.split(b"/") if part][::-1]
    return found

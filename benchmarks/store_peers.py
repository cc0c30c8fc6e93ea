"""Who makes an image of a changed tree: us, in three ways, umoci and buildah."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.contenders import UNIONFS, Contender
from benchmarks.scratch import Unsupported, unmount
from benchmarks.store_trees import (
    BASE,
    CHANGES,
    ROUNDS,
    Trees,
    change_directory,
    change_union,
    changes_of,
    cli,
    contender,
    output,
    program,
)

Commit = Callable[[], list[str] | None]
"""Makes the image when it is called, or tells the command that makes it."""
Ready = AbstractContextManager[Commit]
"""A tree with a hundred changes, ready to be made an image of."""

OURS = contender("unionfs", UNIONFS.missing, UNIONFS.version, ours=True)
OURS_MOUNTED = contender("unionfs, mounted", UNIONFS.missing, UNIONFS.version, ours=True)
OURS_COMMAND = contender("unionfs commit", UNIONFS.missing, UNIONFS.version, ours=True)


def _version(name: str) -> Callable[[], str]:
    def version() -> str:
        found = re.search(r"\d+(\.\d+)+", output(name, "--version"))
        return found[0] if found else "?"

    return version


def _layout_missing(name: str) -> Callable[[], str | None]:
    """umoci makes the image that buildah starts from."""

    def missing() -> str | None:
        return program(name)() or program("umoci")() or (None if os.geteuid() == 0 else "needs root")

    return missing


UMOCI = contender("umoci repack", _layout_missing("umoci"), _version("umoci"))
BUILDAH_VFS = contender("buildah commit, vfs", _layout_missing("buildah"), _version("buildah"))
BUILDAH_OVERLAY = contender("buildah commit, overlay", _layout_missing("buildah"), _version("buildah"))

IN_PROCESS = (OURS, OURS_MOUNTED)
PROGRAMS = (OURS_COMMAND, UMOCI, BUILDAH_VFS, BUILDAH_OVERLAY)


def ready(who: Contender, trees: Trees, files: int) -> Ready:
    """The tree of `files` files with a hundred changes in it, by `who`."""
    if who in (BUILDAH_VFS, BUILDAH_OVERLAY):
        return _buildah(trees, files, who.name.rpartition(" ")[2])
    return {OURS.name: _ours, OURS_MOUNTED.name: _ours, OURS_COMMAND.name: _ours_command, UMOCI.name: _umoci}[who.name](
        trees, files, **({"mounted": True} if who is OURS_MOUNTED else {})
    )


def prepare(trees: Trees, files: int) -> None:
    """Everything that `ready` would build for itself at first."""
    trees.store(files)
    if UMOCI.missing() is None:
        trees.bundle(files)
        if BUILDAH_VFS.missing() is None:
            for driver in ("vfs", "overlay"):
                with contextlib.suppress(subprocess.CalledProcessError):  # Who can't will say so.
                    _container(trees, files, driver)


@contextlib.contextmanager
def _ours(trees: Trees, files: int, mounted: bool = False) -> Iterator[Commit]:
    from unionfs import Store

    name = f"new:{next(ROUNDS)}"
    with Store(trees.store(files)) as store:
        container = store.create(BASE)
        with contextlib.ExitStack() as stack:
            stack.enter_context(container)
            changes = changes_of(files, next(ROUNDS))
            if mounted:
                mnt = stack.enter_context(trees.scratch.temporary("mnt"))
                stack.enter_context(container.mount(mnt, "devfuse"))
                change_directory(mnt, changes)
            else:
                change_union(container.fs, changes)
            os.sync()

            def commit() -> None:
                container.commit(name)

            yield commit
        _check(sum(1 for _ in store.diff(BASE, name)))
        container.remove()
        store.remove_image(name)


@contextlib.contextmanager
def _ours_command(trees: Trees, files: int) -> Iterator[Commit]:
    from unionfs import Store

    at = trees.store(files)
    name = f"new:{next(ROUNDS)}"
    with Store(at) as store:
        container = store.create(BASE)
        with container:
            change_union(container.fs, changes_of(files, next(ROUNDS)))
    os.sync()
    yield lambda: cli(at, "commit", container.id, name)
    with Store(at) as store:
        _check(sum(1 for _ in store.diff(BASE, name)))
        store.container(container.id).remove()
        store.remove_image(name)


@contextlib.contextmanager
def _umoci(trees: Trees, files: int) -> Iterator[Commit]:
    bundle, layout = trees.bundle(files), trees.layout(files)
    change_directory(bundle / "rootfs", changes_of(files, next(ROUNDS)))
    os.sync()
    name = f"new{next(ROUNDS)}"
    yield lambda: ["umoci", "repack", "--image", f"{layout}:{name}", str(bundle)]
    _check(_entries(layout, name))
    output("umoci", "rm", "--image", f"{layout}:{name}")


@contextlib.contextmanager
def _buildah(trees: Trees, files: int, driver: str) -> Iterator[Commit]:
    command, mounted = _container(trees, files, driver)
    change_directory(mounted, changes_of(files, next(ROUNDS)))
    os.sync()
    name = f"new{next(ROUNDS)}"
    yield lambda: [*command, "commit", "-q", "--format", "oci", "c", name]
    if (files, driver) not in _LOOKED_AT:
        # Once, for it takes longer than a commit; as a layout, in which umoci's can be read too.
        with trees.scratch.temporary("layout") as home:
            output(*command, "push", "-q", "--disable-compression", name, f"oci:{home}/layout:new")
            _check(_entries(home / "layout", "new"))
        _LOOKED_AT.add((files, driver))
    output(*command, "rmi", name)


_LOOKED_AT: set[tuple[int, str]] = set()
_CONTAINERS: dict[tuple[Trees, int, str], tuple[list[str], Path]] = {}


def _container(trees: Trees, files: int, driver: str) -> tuple[list[str], Path]:
    """A container of buildah's, mounted; how to call buildah, and where it is."""
    key = trees, files, driver
    if key not in _CONTAINERS:
        home = trees.scratch.fresh("buildah")
        command = ["buildah", "--storage-driver", driver, "--root", f"{home}/root", "--runroot", f"{home}/run"]
        layout = trees.layout(files)
        # A relative path, which buildah makes a name of: not any path is one.
        source = f"oci:{layout.name}:base"
        output(*command, "from", "--isolation", "chroot", "--name", "c", source, cwd=layout.parent)
        _CONTAINERS[key] = command, Path(output(*command, "mount", "c"))
    return _CONTAINERS[key]


def drop_buildah(trees: Trees) -> None:
    """Give back what the containers of buildah take."""
    for key in [key for key in _CONTAINERS if key[0] is trees]:
        command, mounted = _CONTAINERS.pop(key)
        unmount(mounted)
        subprocess.run([*command, "rm", "c"], capture_output=True)
        shutil.rmtree(Path(command[4]).parent, ignore_errors=True)


def _entries(layout: Path, name: str) -> int:
    """How many files and whiteouts the topmost layer of an image in a layout has."""

    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    index = json.loads((layout / "index.json").read_text())
    key = "org.opencontainers.image.ref.name"
    found = next(one for one in index["manifests"] if one.get("annotations", {}).get(key) == name)
    layers = json.loads(blob(found["digest"]).read_text())["layers"]
    if len(layers) != 2:
        raise Unsupported(f"WRONG: {len(layers)} layers")
    with tarfile.open(blob(layers[-1]["digest"])) as archive:
        return sum(1 for member in archive if not member.isdir())


def _check(count: int) -> None:
    if count != CHANGES:
        raise Unsupported(f"WRONG: the image has {count} changes, not {CHANGES}")

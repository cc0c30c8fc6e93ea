"""A store with a little of everything, what it shows, and its operations, broken off at every step.

A step is a fault point of the store (``unionfs.store.steps``) or a system call that changes a file system
(``tests.steps``): together all that a process does to a disk.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import attrs

import unionfs.layer.upper
import unionfs.store.durable
import unionfs.store.steps
from tests import support
from tests.arena import hasty
from tests.steps import in_child, steps
from unionfs.images.store import Store
from unionfs.store.records import PENDING, LayerRecord
from unionfs.testing.oracle import Seen, differences, snapshot
from unionfs.testing.surfaces import TreeSurface

THEN = dt.datetime(2026, 11, 21, 8, 0, tzinfo=dt.UTC)
ALL = os.environ.get("UNIONFS_ALL_STEPS", "") not in ("", "0")
"""Whether every system call is a step, and not only every fault point and some of the calls in between."""

_BETWEEN = 5
"""So many system calls of an operation are steps without UNIONFS_ALL_STEPS."""

Tree = dict[bytes, Seen]
Act = Callable[[int, str], None]


# What there is


def make_source(top: Path) -> None:
    """The directory and the tar that are imported."""
    source = top / "source"
    (source / "etc/conf.d").mkdir(parents=True)
    (source / "usr/lib").mkdir(parents=True)
    (source / "etc/passwd").write_text("root\n")
    (source / "etc/conf.d/a").write_text("a" * 5000)
    (source / "usr/lib/one").write_bytes(bytes(range(256)) * 40)
    os.link(source / "usr/lib/one", source / "usr/lib/two")
    (source / "usr/lib/link").symlink_to("one")
    (source / "usr/su").write_text("#!")
    (source / "usr/su").chmod(0o4755)
    os.setxattr(source / "usr/su", "user.note", b"x")
    other = top / "other"
    other.mkdir()
    (other / "alone").write_text("alone\n")
    spare = top / "spare"
    spare.mkdir()
    (spare / "nameless").write_text("soon\n")
    for tree in (source, other, spare):
        for path, _, names in os.walk(tree, topdown=False):
            for name in [*names, "."]:
                os.utime(f"{path}/{name}", (10**9, 10**9), follow_symlinks=False)
    with tarfile.open(top / "source.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(source, ".")


def make_store(top: Path) -> None:
    """Images ``base``, ``app`` (three names), ``lone`` and one that lost its name; containers ``web`` (changed),
    ``idle``, ``bloaty`` (with files that equal those below), ``settled`` (that was committed), ``deep`` (forked in
    between)."""
    with Store(top / "store") as store:
        store.import_(top / "source", "base:1", created=THEN)
        store.import_(top / "other", "lone:1", created=THEN)
        store.import_(top / "spare", "moved:1", created=THEN)
        with store.create("base:1", "web") as web:
            web.fs.write_text("/etc/passwd", "root\nann\n")
            web.fs.remove("/etc/conf.d/a")
            web.commit("app:1", message="first", author="ann", created=THEN)
            store.tag("app:1", "also:1")
            web.fs.write_text("/nameless", "1")
            web.commit("moved:1", message="second", created=THEN)
            web.fs.write_text("/new", "new")
            web.fs.chmod("/usr/su", 0o755)
            web.fs.rename("/usr", "/opt")
            web.fs.remove("/etc/passwd")
        store.tag("app:1", "moved:1")
        store.create("app:1", "idle")
        for name in ("bloaty", "settled"):
            with store.create("app:1", name) as bloaty:
                fs = bloaty.fs
                st = fs.stat("/etc/passwd")
                fs.write_text("/etc/passwd", fs.read_text("/etc/passwd"))
                fs.utime("/etc/passwd", ns=(st.st_mtime_ns, st.st_mtime_ns))
                fs.write_text(f"/true-{name}", "change")
                if name == "settled":
                    bloaty.commit("settled:1", created=THEN)
        with store.create("base:1", "deep") as deep:
            for i in range(3):
                deep.fs.write_text(f"/etc/{i}", str(i))
                deep.fs.write_text("/etc/all", "x" * i)
                deep.fork(f"fork{i}")
            for i in (0, 1):
                store.container(f"fork{i}").remove()
            deep.fs.remove("/etc/0")


# What it shows


@contextmanager
def prepared() -> Iterator[Path]:
    """A directory with what is imported, and with the store that all begin with."""
    directory = support.make_scratch()
    try:
        with without_flushes():
            make_source(directory)
            # Always another process: who forks must not have a store's database open.
            in_child(lambda: make_store(directory))
        yield directory
    finally:
        support.remove_scratch(directory)


def shown(store: Store) -> dict[str, Tree]:
    """The trees of all that has a name, and what the names lead to."""
    found: dict[str, Tree] = {}
    for image in store.images():
        if names := image.names:  # Anybody may collect one without.
            with image.open() as fs:
                tree = snapshot(TreeSurface(fs.tree))
            found |= {f"image {name} {image.id}": tree for name in names}
    for container in store.containers():
        with container:
            tree = snapshot(TreeSurface(container.fs.tree))
        record = container.record
        found[f"container {record.name} {record.image}"] = tree
    return found


def without_ids(found: dict[str, Tree]) -> dict[str, Tree]:
    """The same, whatever the images' ids: a commit of what was committed already has a line more in its history."""
    return {key.rpartition(" ")[0]: tree for key, tree in found.items()}


def other(wanted: dict[str, Tree], found: dict[str, Tree]) -> list[str]:
    """What differs, a line each."""
    lines = [f"{key} is missing" for key in sorted(wanted.keys() - found.keys())]
    lines += [f"{key} should not be there" for key in sorted(found.keys() - wanted.keys())]
    for key in wanted.keys() & found.keys():
        lines += [f"{key}: {line}" for line in differences(wanted[key], found[key])]
    return lines


def leaks(store: Store) -> list[str]:
    """What a store has too much, or too little, after a collection."""
    keep = store.keep
    places = keep.places
    lines = keep.database.damage()

    def same(what: str, there: set[str], wanted: set[str]) -> None:
        lines.extend(f"{what}: {name} has no row" for name in sorted(there - wanted))
        lines.extend(f"{what}: {name} is missing" for name in sorted(wanted - there))

    for room in (places.tmp, places.trash, places.leases):
        same(os.path.basename(room), set(os.listdir(room)), set())
    layers = keep.records.layers()
    same("layers", set(os.listdir(places.layers)), {layer.id for layer in layers})
    for layer in layers:
        notes = {"changes", "index"} if layer.chain_id is not None else set()
        there = set(os.listdir(places.layer(layer.id)))
        same(f"layer {layer.id[:12]}", there - ({"changes", "index"} - notes), {"diff"} | notes)
        if layer.state != "ready":
            lines.append(f"layer {layer.id[:12]} is {layer.state}")
    containers = keep.records.containers()
    same("containers", set(os.listdir(places.containers)), {c.id for c in containers})
    for c in containers:
        at = os.path.join(places.containers, c.id)
        same(f"container {c.name}", set(os.listdir(at)) - {"socket"}, {c.upper})
        same(f"container {c.name}", set(os.listdir(f"{at}/{c.upper}")), {"upper", "work"})
    images = keep.records.images()
    same("blobs", set(keep.blobs.all()), {image.id for image in images} | {image.manifest for image in images})
    for (token,) in keep.database.rows("SELECT token FROM leases"):
        lines.append(f"lease {token} of nobody")
    known = {"metadata.db", "metadata.db-wal", "metadata.db-shm", "lock", "reserve", "blobs", "layers", "containers",
             "leases", "tmp", "trash"}  # fmt: skip
    lines.extend(f"{name} stands in the store" for name in set(os.listdir(places.root)) - known)
    lines.extend(str(problem) for problem in store.fsck())
    return lines


def make_garbage(path: Path) -> None:
    """What killed processes and removed names leave, of every kind."""
    with Store(path) as store:
        keep = store.keep
        top = store.image("app:1").record.layer
        with keep.database.transaction("garbage"):
            keep.records.drop_tag("lone:1")
            keep.records.add_layer(LayerRecord("a" * 64, top, 2, PENDING, store.container("web").id))
            keep.records.add_layer(LayerRecord("b" * 64, top, 2, PENDING, "c" * 64))
            keep.records.add_layer(LayerRecord("d" * 64, top, 2))
            keep.database.execute("INSERT INTO leases (token, layer) VALUES ('dead', ?)", ("d" * 64,))
        for name in ("layers/" + "b" * 64, "layers/" + "d" * 64, "layers/" + "e" * 64, "containers/" + "f" * 64 + "/1",
                     f"containers/{store.container('web').id}/7", "tmp/left", "trash/left"):  # fmt: skip
            (path / name / "upper/deep").mkdir(parents=True)
            (path / name / "upper/deep/file").write_text(name)
        (path / "leases/dead").touch()
        (path / "tmp/file").write_text("staged")
        (path / "blobs/sha256" / hashlib.sha256(b"blob").hexdigest()).write_bytes(b"blob")


# What is done with it


@attrs.frozen
class Scenario:
    name: str
    run: Callable[[Store, Path], Any]
    changes: bool = True
    """Whether it shows afterwards."""
    again: bool = False
    """Whether it can be done a second time."""
    prepare: Callable[[Path], None] | None = None
    """What is done with the store before."""


def _of(name: str, run: Callable[[Any], Any]) -> Callable[[Store, Path], Any]:
    def on(store: Store, top: Path) -> Any:
        with store.container(name) as container:
            return run(container)

    return on


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("create", lambda store, top: store.create("app:1", "made")),
        Scenario("commit", _of("web", lambda c: c.commit("web:2", message="m", created=THEN)), again=True),
        Scenario("commit nothing", _of("idle", lambda c: c.commit("same:1", created=THEN)), again=True),
        Scenario("commit bloat", _of("bloaty", lambda c: c.commit("clean:1", created=THEN)), again=True),
        Scenario("commit snapshots", _of("deep", lambda c: c.commit("deep:1", created=THEN)), again=True),
        Scenario("settle", _of("settled", lambda c: c.fs.listdir()), changes=False, again=True),
        Scenario("fork", _of("web", lambda c: c.fork("forked"))),
        Scenario("rollback", _of("web", lambda c: c.rollback("base:1")), again=True),
        Scenario("rollback of nothing", _of("idle", lambda c: c.rollback("base:1")), again=True),
        Scenario("rollback to a fork", _of("web", lambda c: c.rollback("deep~1")), again=True),
        Scenario("tag", lambda store, top: store.tag("base:1", "another:1"), again=True),
        Scenario("move a tag", lambda store, top: store.tag("base:1", "also:1"), again=True),
        Scenario("rename", _of("web", lambda c: c.rename("renamed"))),
        Scenario("rm", lambda store, top: store.container("web").remove()),
        Scenario("rm with layers", lambda store, top: store.container("deep").remove()),
        Scenario("rmi", lambda store, top: store.remove_image("lone:1")),
        Scenario("rmi of a name", lambda store, top: store.remove_image("also:1")),
        Scenario("gc", lambda store, top: store.gc(), changes=False, again=True, prepare=make_garbage),
        Scenario(
            "import", lambda store, top: store.import_(top / "source", "in:1", message="i", created=THEN), again=True
        ),
        Scenario("import again", lambda store, top: store.import_(top / "source", "in:2", created=THEN), again=True),
        Scenario(
            "import a tar", lambda store, top: store.import_(top / "source.tar", "tar:1", message="t", created=THEN),
            again=True,
        ),
        Scenario("squash", lambda store, top: store.squash("app:1", "flat:1", created=THEN), again=True),
    )
}  # fmt: skip


# Step by step


@contextmanager
def walking(act: Act) -> Iterator[None]:
    """``act`` is called before each step, with its number, from 1 on, and its name: a fault point's has a ``!``."""
    count = 0

    def next_step(name: str) -> None:
        nonlocal count
        count += 1
        act(count, name)

    unionfs.store.steps.listener = lambda name: next_step(f"! {name}")
    try:
        with steps(lambda _, name: next_step(name)):
            yield
    finally:
        unionfs.store.steps.listener = None


@contextmanager
def without_flushes() -> Iterator[None]:
    """Nothing is flushed: a killed process loses nothing by it."""
    with hasty(), ExitStack() as stack:
        for module in (unionfs.store.durable, unionfs.layer.upper):
            stack.enter_context(mock.patch.object(module, "syncfs"))
        yield


def kill_at(number: int) -> Act:
    """The process is killed before that step."""

    def act(count: int, name: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def names_of_steps(run: Callable[[], object], note: Path) -> list[str]:
    """What steps ``run`` takes, in a child process."""

    def child() -> None:
        names: list[str] = []
        with walking(lambda count, name: names.append(name)):
            run()
        note.write_text("\0".join(names))

    in_child(child)
    return note.read_text().split("\0")


def to_walk(names: list[str]) -> list[int]:
    """The numbers of the steps to be tried: all fault points, and of the calls in between some or all."""
    points = [i for i, name in enumerate(names, 1) if name.startswith("!")]
    between = [i for i, name in enumerate(names, 1) if not name.startswith("!")]
    every = 1 if ALL else max(1, len(between) // _BETWEEN)
    return sorted(points + between[every // 2 :: every])


def copy_of(template: Path, to: Path) -> Path:
    """A store like the template."""
    subprocess.run(["cp", "-a", "--reflink=auto", template, to], check=True)
    return to


def begin(top: Path, scenario: Scenario, to: Path) -> Path:
    """The store that the scenario begins with."""
    copy_of(top / "store", to)
    prepare = scenario.prepare
    if prepare is not None:
        in_child(lambda: prepare(to))
    return to


def perform(path: Path, top: Path, scenario: Scenario) -> None:
    """The operation, by a process that has just opened the store."""
    with closing(Store(path)) as store:
        scenario.run(store, top)

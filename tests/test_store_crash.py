"""The process is killed at every step of every operation on a store: the next one finds the old state or the new one.

UNIONFS_ALL_STEPS=1 tries every system call, and not only the store's fault points and some of the calls in between.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import unionfs.store.steps
from tests.steps import in_child
from tests.storesteps import (
    ALL,
    SCENARIOS,
    THEN,
    Act,
    Tree,
    begin,
    copy_of,
    kill_at,
    leaks,
    names_of_steps,
    other,
    perform,
    prepared,
    shown,
    to_walk,
    walking,
    without_flushes,
    without_ids,
)
from unionfs.images.points import Point
from unionfs.images.store import Store
from unionfs.testing.oracle import differences, snapshot
from unionfs.testing.surfaces import TreeSurface


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    with prepared() as directory:
        yield directory


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    with without_flushes():
        yield


def seen(path: Path, *, first_collect: bool = False) -> dict[str, Tree]:
    """What the store shows, before or after a collection; that it has nothing too much or too little after it."""
    with Store(path) as store:
        found = {} if first_collect else shown(store)
        store.gc()
        assert leaks(store) == []
        return shown(store) if first_collect else found


def was_kept(path: Path, container: str, tree: Tree) -> bool:
    """Whether a point of the container shows this tree."""
    with Store(path) as store:
        for point in store.container(container).points():
            with store.open(Point("", point.layer)) as fs:
                if differences(tree, snapshot(TreeSurface(fs.tree))) == []:
                    return True
    return False


def killed(path: Path, top: Path, name: str, number: int) -> int:
    """The operation, killed before that step; the signal."""

    def run() -> None:
        with walking(kill_at(number)):
            perform(path, top, SCENARIOS[name])

    return in_child(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_step(top: Path, scratch: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    template = begin(top, scenario, scratch / "template")
    whole = copy_of(template, scratch / "whole")
    names = names_of_steps(lambda: perform(whole, top, scenario), scratch / "names")
    new = seen(whole)
    shutil.rmtree(whole)
    old = seen(copy_of(template, scratch / "before"))
    assert (other(old, new) != []) == scenario.changes
    ends = set()
    for count, number in enumerate(to_walk(names)):
        where = f"{name}: killed before step {number} of {len(names)}, {names[number - 1]!r}"
        path = copy_of(template, scratch / str(number))
        assert killed(path, top, name, number) == signal.SIGKILL, where
        try:
            found = seen(path, first_collect=count % 2 == 1)
            not_old, not_new = other(old, found), other(new, found)
            assert not not_old or not not_new, f"neither old {not_old} nor new {not_new}"
            ends.add(bool(not_old))
            if not_old and name in ("rollback", "rollback to a fork"):
                assert was_kept(path, "web", without_ids(old)["container web"]), "the state before is no point"
            if (not not_old or scenario.again) and (ALL or count % 3 == 0):
                perform(path, top, scenario)
                assert other(without_ids(new), without_ids(seen(path))) == [], "the second time"
        except BaseException as error:
            error.add_note(where)
            raise
        shutil.rmtree(path)
    assert ends == ({False, True} if scenario.changes else {False})


def walked(scratch: Path, run: Callable[[Path, Act], object]) -> Iterator[tuple[Path, str]]:
    """``run`` killed at each of its steps, in a directory of its own each: that and where it was."""
    note = scratch / "names"

    def count() -> None:
        names: list[str] = []
        run(scratch / "whole", lambda _, name: names.append(name))
        note.write_text("\0".join(names))

    in_child(count)
    names = note.read_text().split("\0")
    yield scratch / "whole", "whole"
    for number in to_walk(names):
        path = scratch / str(number)
        where = f"killed before step {number} of {len(names)}, {names[number - 1]!r}"
        assert in_child(functools.partial(run, path, kill_at(number))) == signal.SIGKILL, where
        yield path, where
        shutil.rmtree(path)


def test_killed_while_a_store_is_made(top: Path, scratch: Path) -> None:
    def run(path: Path, act: Act) -> None:
        with walking(act), Store(path) as store:
            store.import_(top / "other", "first:1", created=THEN)

    for path, where in walked(scratch, run):
        with Store(path) as store:
            store.import_(top / "source", "second:1", created=THEN)
            store.create("second:1", "c")
            store.gc()
            assert leaks(store) == [], where


def test_killed_with_open_files_and_hard_links(top: Path, scratch: Path) -> None:
    """Writers' inodes move to the fresh writable layer, and hard links leave the index: what was written stays."""

    def run(path: Path, act: Act) -> None:
        with Store(path) as store:
            store.import_(top / "source", "base:1", created=THEN)
            with store.create("base:1", "web") as web:
                fs = web.fs
                fs.chmod("/usr/lib/one", 0o600)
                fs.write_text("/new", "old")
                with fs.open("/new", "r+") as new, fs.open("/usr/lib/two", "r+b") as linked:
                    new.write("new")
                    new.flush()
                    linked.write(b"linked")
                    linked.flush()
                    with walking(act):
                        web.commit("web:1", created=THEN)
                    new.write(" and more")

    ends = set()
    for path, where in walked(scratch, run):
        with Store(path) as store, store.container("web") as web:
            names = [name for image in store.images() for name in image.names]
            ends.add("web:1" in names)
            fs = web.fs
            assert fs.read_text("/new") == ("new and more" if where == "whole" else "new"), where
            assert fs.read_bytes("/usr/lib/one")[:6] == b"linked", where
            assert fs.stat("/usr/lib/one").st_nlink == 2, where
            assert fs.samefile("/usr/lib/one", "/usr/lib/two"), where
            assert fs.stat("/usr/lib/two").st_mode & 0o777 == 0o600, where
            image = web.commit("web:1", created=THEN)
            with image.open() as tree:
                assert tree.read_text("/new") == fs.read_text("/new"), where
                assert tree.read_bytes("/usr/lib/two")[:6] == b"linked", where
                assert tree.samefile("/usr/lib/one", "/usr/lib/two"), where
        with Store(path) as store:
            store.gc()
            assert leaks(store) == [], where
    assert ends == {False, True}


def test_what_a_forked_child_commits_stays(top: Path, scratch: Path) -> None:
    """Its parent has ended, with its locks, and another process is the last to close the store, as it believes."""
    path = copy_of(top / "store", scratch / "store")
    told, tell = os.pipe()
    heard, say = os.pipe()

    def parent() -> None:
        store = Store(path)
        store.tag("base:1", "parent:1")
        if os.fork() == 0:
            try:
                os.close(tell)
                store.tag("base:1", "child:1")
                os.write(say, b"1")
                os.read(told, 1)
                store.tag("base:1", "late:1")
                os.write(say, b"2")
            finally:
                os._exit(0)

    assert in_child(parent) == 0
    os.close(say)
    assert os.read(heard, 1) == b"1"
    with Store(path) as store:
        store.tag("base:1", "third:1")
    os.close(tell)
    assert os.read(heard, 1) == b"2"
    os.close(told)
    os.close(heard)
    with Store(path) as store:
        names = {f"{who}:1" for who in ("base", "parent", "child", "late", "third")}
        assert set(store.image("base:1").names) == names
        assert store.keep.database.damage() == []


# The container is open in another process


class Holder:
    """A process that has container ``web`` open, perhaps mounted, until it is told to end."""

    def __init__(self, path: Path, mountpoint: Path | None = None, act: Callable[[str], None] | None = None) -> None:
        ready, said = os.pipe()
        told, self.tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(ready)
                os.close(self.tell)
                with ExitStack() as stack:
                    store = stack.enter_context(Store(path))
                    web = stack.enter_context(store.container("web"))
                    web.fs.write_text("/held", "held")
                    if mountpoint is not None:
                        stack.enter_context(web.mount(mountpoint))
                    unionfs.store.steps.listener = act
                    os.write(said, b"!")
                    os.read(told, 1)
            finally:
                os._exit(0)
        os.close(told)
        os.close(said)
        assert os.read(ready, 1) == b"!"
        os.close(ready)

    def end(self) -> int:
        """How it ended: a status as waitpid(2) has it."""
        os.close(self.tell)
        return os.waitpid(self.pid, 0)[1]


def commit_web(path: Path, act: Act | None = None) -> None:
    with walking(act or (lambda number, name: None)), Store(path) as store:
        store.container("web").commit("held:1", created=THEN)


def check_held(path: Path, where: str) -> None:
    with Store(path) as store:
        with store.container("web") as web:
            assert web.fs.read_text("/held") == "held", where
            assert web.fs.read_text("/new") == "new", where
        with store.image("held:1").open() as tree:
            assert tree.read_text("/held") == "held", where
            assert tree.read_text("/new") == "new", where
        store.gc()
        assert leaks(store) == [], where


@pytest.mark.root
@pytest.mark.fuse
def test_who_asks_for_a_commit_is_killed(top: Path, scratch: Path) -> None:
    """The container is mounted in another process, which goes on."""
    mountpoint = scratch / "mnt"
    mountpoint.mkdir()
    path = copy_of(top / "store", scratch / "store")
    holder = Holder(path, mountpoint)
    try:
        names = names_of_steps(lambda: commit_web(path), scratch / "names")
        points = [i for i, name in enumerate(names, 1) if name.startswith("!")]
        for number in points if ALL else points[::4]:
            (mountpoint / "more").write_text(str(number))
            ended = in_child(functools.partial(commit_web, path, kill_at(number)))
            assert ended in (0, signal.SIGKILL)
            assert (mountpoint / "held").read_text() == "held"
            assert (mountpoint / "more").read_text() == str(number)
        (mountpoint / "more").write_text("last")
        assert in_child(lambda: commit_web(path)) == 0
        with Store(path) as store, store.image("held:1").open() as tree:
            assert tree.read_text("/more") == "last"
    finally:
        assert holder.end() == 0
    check_held(path, "")


@pytest.mark.parametrize("number", range(1, 10))
def test_who_has_the_container_is_killed(top: Path, scratch: Path, number: int) -> None:
    """While it freezes the container for another process, which does it then."""
    count = itertools.count(1)

    def act(name: str) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    path = copy_of(top / "store", scratch / "store")
    holder = Holder(path, None, act)
    assert in_child(lambda: commit_web(path)) == 0
    assert os.WTERMSIG(holder.end()) == signal.SIGKILL
    check_held(path, f"step {number}")

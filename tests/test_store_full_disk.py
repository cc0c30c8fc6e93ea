"""The disk is full at every step of every operation on a store: a clear error, and nothing is lost.

UNIONFS_ALL_STEPS=1 tries every system call, and not only the store's fault points and some of the calls in between.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.steps import in_child
from tests.storesteps import (
    ALL,
    SCENARIOS,
    THEN,
    Act,
    Scenario,
    Tree,
    begin,
    copy_of,
    leaks,
    make_source,
    make_store,
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
from unionfs.errors import StoreError
from unionfs.images.store import Store
from unionfs.testing.oracle import differences

_NEEDS_NO_ROOM = frozenset(
    {"unlink", "rmdir", "removexattr", "utime", "chmod", "fchmod", "chown", "fchown", "ftruncate", "truncate", "remove"}
)


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    with prepared() as directory:
        yield directory


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


def full_at(number: int) -> Act:
    """That step finds no room."""

    def act(count: int, name: str) -> None:
        if count == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    return act


def failure(run: Callable[[], object]) -> BaseException | None:
    """The error, if there is one: that of a full disk, in one clear line."""
    found: BaseException | None = None
    try:
        run()
    except (OSError, StoreError) as error:
        found = error
    assert found is None or getattr(found, "errno", None) == errno.ENOSPC, repr(found)
    assert found is None or "No space left on device" in str(found), repr(found)
    assert "\n" not in str(found)
    return found


def finds_no_room(name: str) -> bool:
    """Whether a step may fail for want of room: not what follows upon a transaction, nor what only takes away."""
    if name.startswith("!"):
        return not name.startswith(("! after", "! remove", "! sweep"))
    return name not in _NEEDS_NO_ROOM


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_full_at_every_step(top: Path, scratch: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    with without_flushes():
        template = begin(top, scenario, scratch / "template")
        whole = copy_of(template, scratch / "whole")
        names = names_of_steps(lambda: perform(whole, top, scenario), scratch / "names")
        with Store(whole) as store:
            new = shown(store)
        with Store(copy_of(template, scratch / "before")) as store:
            old = shown(store)
        numbers = [number for number in to_walk(names) if finds_no_room(names[number - 1])]
        failed = 0
        for number in numbers if ALL else numbers[1::2]:
            path = copy_of(template, scratch / str(number))
            try:
                failed += check(path, top, scenario, number, old, new)
            except BaseException as error:
                error.add_note(f"{name}: no room for step {number} of {len(names)}, {names[number - 1]!r}")
                raise
            shutil.rmtree(path)
    assert failed


def check(path: Path, top: Path, scenario: Scenario, number: int, old: dict[str, Tree], new: dict[str, Tree]) -> bool:
    """Whether it failed; all is well after it, at once and in the process that saw the error."""
    with walking(full_at(number)):
        first = None
        with suppress(StoreError):  # "no store can be used here", which names the reason
            first = Store(path)
        error = None if first is None else failure(functools.partial(scenario.run, first, top))
    with first or Store(path) as store:
        found = shown(store)
        not_old, not_new = other(old, found), other(new, found)
        assert not not_old or not not_new, f"neither old {not_old} nor new {not_new}"
        assert error is not None or first is None or not not_new, "it told of success"
        if not not_old or scenario.again:
            scenario.run(store, top)
        store.gc()
        assert leaks(store) == []
        assert other(without_ids(new), without_ids(shown(store))) == [], "the second time"
    return error is not None


# A small disk


class Disk:
    """A small ext4, and what fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def free(self) -> int:
        st = os.statvfs(self.path)
        return st.f_bavail * st.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes, or less."""
        with open(self.path / f"filler{leave}", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, self.free() - leave - (256 << 10)))
            size = file.seek(0, os.SEEK_END)
            with suppress(OSError):
                while self.free() > leave:
                    os.posix_fallocate(file.fileno(), size, 4096)
                    size += 4096

    def empty(self) -> None:
        for path in self.path.glob("filler*"):
            path.unlink()


@pytest.fixture
def disk(scratch: Path) -> Disk:
    image, point = scratch / "image", scratch / "small"
    with open(image, "wb") as file:
        file.truncate(160 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    return Disk(point)


OPERATIONS = ("import", "import a tar", "create", "commit", "commit bloat", "commit snapshots", "fork", "rollback",
              "squash", "tag")  # fmt: skip


def make_large(top: Path) -> None:
    """Enough to fill something."""
    for name in ("source", "other", "spare"):
        (top / name / "large").write_bytes(os.urandom(2 << 20))


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.needs("mkfs.ext4")
@pytest.mark.parametrize("leave", [0, 24 << 10, 200 << 10])
def test_a_disk_that_is_full(disk: Disk, scratch: Path, leave: int) -> None:
    make_source(scratch)
    make_large(scratch)
    (disk.path / "store").mkdir()
    (scratch / "store").symlink_to(disk.path / "store")
    in_child(lambda: make_store(scratch))
    with Store(disk.path / "store") as store:
        before = without_ids(shown(store))
        same = set(before)
        failed = []
        for name in OPERATIONS:
            disk.fill(leave)
            if failure(functools.partial(SCENARIOS[name].run, store, scratch)):
                failed.append(name)
            elif name == "rollback":
                same.remove("container web")
            assert os.listdir(disk.path / "store/tmp") == []
            disk.empty()  # To look at a container is to open it, which may have to write.
            found = without_ids(shown(store))
            assert [line for key in same for line in differences(before[key], found[key])] == [], name
        assert {"import", "squash"} <= set(failed)
        disk.fill(leave)
        store.gc()
        disk.empty()
        store.gc()
        assert leaks(store) == []
        for name in failed:
            SCENARIOS[name].run(store, scratch)
        store.gc()
        assert leaks(store) == []


REMOVALS: dict[str, Callable[[Store], object]] = {
    "rm": lambda store: store.container("web").remove(),
    "rmi": lambda store: store.remove_image("lone:1"),
    "gc": lambda store: store.gc(),
}


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.needs("mkfs.ext4")
@pytest.mark.parametrize("name", REMOVALS)
@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open"])
def test_removing_frees_a_full_disk(disk: Disk, scratch: Path, name: str, opened: bool) -> None:
    """Not a byte is left, and perhaps no process has the store open, so that SQLite has to make its log: what goes
    makes room all the same."""
    make_source(scratch)
    make_large(scratch)
    path = disk.path / "store"
    with Store(path) as store:
        for source, name_of_it in (("source", "base:1"), ("other", "lone:1"), ("spare", "moved:1")):
            store.import_(scratch / source, name_of_it, created=THEN)
        store.tag("base:1", "moved:1")
        with store.create("base:1", "web") as web:
            web.fs.write_bytes("/more", os.urandom(2 << 20))
        before = shown(store)
        if opened:
            disk.fill()
            REMOVALS[name](store)
    if not opened:
        disk.fill()
        assert disk.free() < 4096
        with Store(path) as store:
            REMOVALS[name](store)
    assert disk.free() > 2 << 20
    with Store(path) as store:
        gone = {"rm": "container web", "rmi": "image lone:1", "gc": "nothing"}[name]
        kept = {key: tree for key, tree in before.items() if not key.startswith(gone)}
        assert other(kept, shown(store)) == []
        disk.empty()
        store.gc()
        assert leaks(store) == []
        store.create("base:1", "made")
    assert os.path.exists(path / "reserve")

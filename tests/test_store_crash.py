"""The process is killed at every step of every operation on a store: the next one finds the old state or the new one.

UNIONFS_ALL_STEPS=1 tries every system call, and not only the store's fault points and some of the calls in between.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support
from tests.steps import in_child
from tests.storesteps import (
    ALL,
    SCENARIOS,
    Tree,
    copy_of,
    kill_at,
    leaks,
    make_source,
    make_store,
    names_of_steps,
    other,
    perform,
    shown,
    to_walk,
    walking,
    without_flushes,
    without_ids,
)
from unionfs.images.store import Store


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """What is imported, and the store that all begin with."""
    directory = support.make_scratch()
    try:
        with without_flushes():
            make_source(directory)
            # Always another process: who forks must not have a store's database open.
            in_child(lambda: make_store(directory))
        yield directory
    finally:
        support.remove_scratch(directory)


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


def killed(path: Path, top: Path, name: str, number: int) -> int:
    """The operation, killed before that step; the signal."""

    def run() -> None:
        with walking(kill_at(number)):
            perform(path, top, SCENARIOS[name])

    return in_child(run)


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_step(top: Path, scratch: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    whole = copy_of(top / "store", scratch / "whole")
    names = names_of_steps(lambda: perform(whole, top, scenario), scratch / "names")
    new = seen(whole)
    shutil.rmtree(whole)
    old = seen(copy_of(top / "store", scratch / "before"))
    assert (other(old, new) != []) == scenario.changes
    ends = set()
    for count, number in enumerate(to_walk(names)):
        where = f"{name}: killed before step {number} of {len(names)}, {names[number - 1]!r}"
        path = copy_of(top / "store", scratch / str(number))
        assert killed(path, top, name, number) == signal.SIGKILL, where
        try:
            found = seen(path, first_collect=count % 2 == 1)
            not_old, not_new = other(old, found), other(new, found)
            assert not not_old or not not_new, f"neither old {not_old} nor new {not_new}"
            ends.add(bool(not_old))
            if (not not_old or scenario.again) and (ALL or count % 3 == 0):
                perform(path, top, scenario)
                assert other(without_ids(new), without_ids(seen(path))) == [], "the second time"
        except BaseException as error:
            error.add_note(where)
            raise
        shutil.rmtree(path)
    assert ends == ({False, True} if scenario.changes else {False})

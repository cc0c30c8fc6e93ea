"""The process is killed at every step of every kind of change: the next open finds the old state or the new one."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support
from tests.arena import Arena, hasty
from tests.kernellog import taking_part
from tests.scenarios import COMMIT, SCENARIOS, Scenario, arena_before, do, look
from tests.steps import count_steps, in_child, kill_at, steps
from unionfs.testing.oracle import Seen, differences, snapshot

Tree = dict[bytes, Seen]


def run(arena: Arena, scenario: Scenario, number: int) -> None:
    """The operation, killed before that step."""
    surface = arena.subject()
    for op in scenario.opened:
        do(arena, surface, op)
    with steps(kill_at(number)):
        do(arena, surface, scenario.op)


def origins(old: Tree, new: Tree) -> dict[bytes, bytes | None]:
    """For each path, under which path (the first of its hard links) the object was before; `None` for a new one."""
    first: dict[tuple[int, int], bytes] = {}
    for path in sorted(old):
        first.setdefault(old[path].identity, path)
    return {path: first.get(seen.identity) for path, seen in new.items()}


def matches(found: Tree, wanted: Tree, old: Tree, wanted_origins: dict[bytes, bytes | None]) -> list[str]:
    """What differs from the wanted state, identities included.

    Times are no part of the state of a directory, whose entries change before they can be set back, nor of a hard
    link, whose bytes can only be completed in place.
    """
    loose = {path for path, seen in found.items() if seen.facts.get("nlink", 2) > 1}
    lines = [line for line in differences(wanted, found) if not _is_time(line, loose)]
    got = origins(old, found)
    return lines + [f"{path!r} was {got[path]!r}" for path in got if got[path] != wanted_origins.get(path, got[path])]


def _is_time(line: str, paths: set[bytes]) -> bool:
    return ": mtime is" in line and any(line.startswith(f"{path!r}: ") for path in paths)


def check_kernel(arena: Arena, found: Tree) -> None:
    """overlayfs mounts what is there, and shows the same."""
    with taking_part():
        assert differences(found, snapshot(arena.mount_kernel())) == []
        arena.unmount_kernel()


@pytest.fixture(autouse=True)
def _hasty() -> Iterator[None]:
    with hasty():
        yield


@pytest.mark.root
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_step(scratch: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    whole = arena_before(scratch / "whole", scenario)
    before = look(whole)
    surface = whole.subject()
    for op in scenario.opened:
        do(whole, surface, op)
    total = count_steps(lambda: do(whole, surface, scenario.op))
    surface = None  # type: ignore[assignment]
    after = look(whole)
    moved = origins(before, after)
    assert total > 0
    kernel = not support.lacking_overlay()
    seen_old = seen_new = 0
    for number in itertools.count(1):
        arena = arena_before(scratch / str(number), scenario)
        old = look(arena)
        ended = in_child(lambda arena=arena, number=number: run(arena, scenario, number))  # type: ignore[misc]
        assert ended in (0, signal.SIGKILL)
        found = look(arena)
        not_old = matches(found, before, old, origins(old, old))
        not_new = matches(found, after, old, moved)
        assert not not_old or not not_new, f"step {number} of {total}: neither old\n{not_old}\nnor new\n{not_new}"
        seen_old += not not_old
        seen_new += not not_new
        if kernel and number % 6 == 1:
            check_kernel(arena, found)
        if not_new and number % 4 == 0:
            # What was not done can be done now.
            do(arena, arena.subject(), scenario.op)
            arena.close_tree()
            again = look(arena)
            assert matches(again, after, old, moved) == [], f"after step {number} of {total}"
        arena.close()
        if ended == 0:
            break
    assert number == total + 1
    assert seen_old
    assert seen_new


@pytest.mark.root
def test_index_is_cleaned(scratch: Path) -> None:
    """What a kill leaves in the index goes at the next open, with the last name of the file."""
    scenario = SCENARIOS["go: last link"]
    sizes = set()
    for number in itertools.count(1):
        arena = arena_before(scratch / str(number), scenario)
        ended = in_child(lambda arena=arena, number=number: run(arena, scenario, number))  # type: ignore[misc]
        names = b"h2" in look(arena)
        index = os.listdir(f"{arena.top}/work/index")
        assert len(index) == names
        sizes.add(len(index))
        arena.close()
        if ended == 0:
            break
    assert sizes == {0, 1}


@pytest.mark.root
@pytest.mark.parametrize("name", COMMIT)
def test_commit_after_a_kill_in_commit(scratch: Path, name: str) -> None:
    """A commit that was killed leaves nothing that the next one has to fear or that a person has to clear."""
    scenario = COMMIT[name]
    for number in itertools.count(1, 4):
        arena = arena_before(scratch / str(number), scenario)
        ended = in_child(lambda arena=arena, number=number: run(arena, scenario, number))  # type: ignore[misc]
        before = look(arena)
        arena.subject()
        arena.commit()
        arena.close_tree()
        assert differences(before, look(arena)) == []
        for layer in os.listdir(f"{arena.top}/upper.layers"):
            assert f"{arena.top}/upper.layers/{layer}" in [found.path for found in arena.layers()], "left behind"
        arena.close()
        if ended == 0:
            break

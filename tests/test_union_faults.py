"""What goes wrong below: a full disk, I/O errors at every step, files that can't be read, layers that vanish.

One clear error each; nothing is lost; the union goes on.
"""

from __future__ import annotations

import errno
import gc
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import unionfs
from tests.arena import Arena, hasty
from tests.scenarios import SCENARIOS, STACK, Scenario, arena_before, do, look
from tests.steps import count_steps, fail_at, steps
from tests.support import AsUser
from tests.test_union_crash import matches, origins
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.upper import UpperDirectory
from unionfs.testing.oracle import differences, snapshot
from unionfs.testing.stacks import build
from unionfs.testing.surfaces import Surface, TreeSurface
from unionfs.union.tree import Tree


@contextmanager
def raises(*numbers: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in numbers, caught.value


def attempt(arena: Arena, scenario: Scenario, number: int, error: int, *, sticky: bool) -> tuple[Surface, bool]:
    """The operation with an error at that step. The surface after it, and whether the error came out."""
    surface = arena.subject()
    for op in scenario.opened:
        do(arena, surface, op)
    try:
        with steps(fail_at(number, error, from_then_on=sticky)):
            do(arena, surface, scenario.op)
    except OSError as failed:
        if failed.errno != error:
            raise
        return surface, True
    return surface, False


@pytest.mark.root
@pytest.mark.parametrize(("error", "sticky"), [(errno.ENOSPC, True), (errno.EIO, False)], ids=["full", "EIO"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_error_at_every_step(scratch: Path, name: str, error: int, sticky: bool) -> None:
    scenario = SCENARIOS[name]
    with hasty():
        whole = arena_before(scratch / "whole", scenario)
        before = look(whole)
        surface = whole.subject()
        for op in scenario.opened:
            do(whole, surface, op)
        total = count_steps(lambda: do(whole, surface, scenario.op))
        after = look(whole)
        moved = origins(before, after)
        failures = 0
        for number in range(1, total + 1, 2 if sticky else 1):
            arena = arena_before(scratch / str(number), scenario)
            old = look(arena)
            surface, failed = attempt(arena, scenario, number, error, sticky=sticky)
            failures += failed
            # In the same process first: what memory says is what disk says.
            found = snapshot(surface)
            for slot in range(4):
                surface.close(slot)
            arena.close_tree()
            again = look(arena)
            where = f"step {number} of {total}"
            assert differences(again, found) == [], f"{where}: memory and disk"
            not_old = matches(again, before, old, origins(old, old))
            not_new = matches(again, after, old, moved)
            assert not not_old or not not_new, f"{where}: neither old\n{not_old}\nnor new\n{not_new}"
            assert failed or not not_new, f"{where}: nothing was said"
            if not_new and number % 3 == 0:
                do(arena, arena.subject(), scenario.op)
                arena.close_tree()
                assert matches(look(arena), after, old, moved) == [], where
            arena.close()
        assert failures


# A disk that is really full


@pytest.fixture
def small(scratch: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    where = scratch / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=200", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", "--lazy", str(where)], check=True)


def tree_on(upper: Path, lowers: list[Path]) -> Tree:
    top, work = upper / "upper", upper / "work"
    top.mkdir(exist_ok=True)
    return Tree([DirectoryLayer(lower) for lower in lowers], UpperDirectory(top, work))


@pytest.mark.root
def test_full_disk(scratch: Path, small: Path) -> None:
    lowers = []
    for i, spec in enumerate(STACK):
        lowers.append(scratch / f"lower{i}")
        lowers[-1].mkdir()
        build(spec, lowers[-1])
    (lowers[1] / "huge").write_bytes(b"huge;" * 1_000_000)
    surface = TreeSurface(tree_on(small, lowers))
    before = snapshot(surface)
    with raises(errno.ENOSPC):
        surface.write(b"huge", 0, b"x")
    assert surface.read(b"huge") == b"huge;" * 1_000_000
    assert os.listdir(small / "work" / "work") == []
    surface.chmod(b"huge", 0o600)  # This needs no room for data.
    with raises(errno.ENOSPC):
        surface.write(b"huge", 0, b"x")
    assert surface.read(b"huge") == b"huge;" * 1_000_000
    surface.create(b"filler", 0o600, b"")
    surface.open(0, b"filler", os.O_WRONLY)
    with raises(errno.ENOSPC):
        for i in itertools.count():
            surface.pwrite(0, b"f" * 4096, 4096 * i)
    for op, args in (
        (surface.write, (b"d/f", 0, b"x")),
        (surface.write, (b"h2", 0, b"x")),
        (surface.append, (b"big", b"x")),
    ):
        with raises(errno.ENOSPC):
            op(*args)
    surface.unlink(b"filler")
    surface.close(0)
    gc.collect()  # The errors above hold what was open where they arose.
    surface.write(b"d/f", 0, b"x")  # There is room again.
    surface.chmod(b"huge", 0o644)
    surface.tree.close()
    surface = TreeSurface(tree_on(small, lowers))
    assert surface.read(b"d/f")[:2] == b"xa"
    left = [line for line in differences(before, snapshot(surface)) if not line.startswith(("b'd/f'", "b'd'", "b''"))]
    assert left == []
    surface.tree.close()


@pytest.mark.root
def test_no_inode_left(scratch: Path, small: Path) -> None:
    lower = scratch / "lower"
    lower.mkdir()
    build(STACK[0], lower)
    surface = TreeSurface(tree_on(small, [lower]))
    with raises(errno.ENOSPC):
        for i in range(1000):
            surface.create(b"%d" % i, 0o600, b"")
    for op in (lambda: surface.mkdir(b"new", 0o755), lambda: surface.chmod(b"d/f", 0o600)):
        with raises(errno.ENOSPC):
            op()
    surface.unlink(b"1")
    surface.unlink(b"2")
    surface.unlink(b"3")
    surface.chmod(b"d/f", 0o600)
    assert surface.read(b"d/f") == b"data;" * 2000
    surface.tree.close()


# Layers that are not as they should be


@pytest.fixture
def lowers(scratch: Path) -> list[Path]:
    found = [scratch / "one", scratch / "two", scratch / "three"]
    for path, spec in zip(found, STACK, strict=True):
        path.mkdir()
        build(spec, path)
    return found


@pytest.mark.root
def test_layer_vanishes(scratch: Path, lowers: list[Path]) -> None:
    fs = unionfs.UnionFS(lower=[*lowers], upper=None)
    shutil.rmtree(lowers[1])
    with raises(errno.ENOENT):
        fs.read_bytes("/d/sub/x")
    assert fs.read_bytes("/d/f") == b"data;" * 2000
    fs.close()


@pytest.mark.root
@pytest.mark.parametrize("what", ["missing", "file", "loop"])
def test_layer_is_no_directory(scratch: Path, lowers: list[Path], what: str) -> None:
    bad = scratch / "bad"
    if what == "file":
        bad.write_text("no layer")
    elif what == "loop":
        bad.symlink_to("bad")
    for layers in ([bad], [lowers[0], bad, lowers[1]]):
        with pytest.raises(unionfs.LayerError) as caught:
            unionfs.UnionFS(lower=layers)
        assert caught.value.errno == (errno.ENOENT if what == "missing" else errno.ENOTDIR)
        assert caught.value.filename == os.fspath(bad)
    # Nothing stays locked or open.
    (scratch / "up").mkdir()
    with pytest.raises(unionfs.LayerError):
        unionfs.UnionFS(lower=[bad], upper=scratch / "up")
    unionfs.UnionFS(lower=lowers, upper=scratch / "up").close()


@pytest.mark.root
def test_equal_upper_and_lower(scratch: Path, lowers: list[Path]) -> None:
    before = sorted(os.listdir(lowers[0]))
    with pytest.raises(unionfs.UnionError):
        unionfs.UnionFS(lower=lowers, upper=lowers[0])
    assert sorted(os.listdir(lowers[0])) == before
    with pytest.raises(unionfs.UnionError):
        unionfs.UnionFS(lower=[lowers[0], lowers[1], lowers[0]])


@pytest.mark.root
def test_upper_in_use(scratch: Path, lowers: list[Path]) -> None:
    (scratch / "up").mkdir()
    first = unionfs.UnionFS(lower=lowers, upper=scratch / "up", work=scratch / "work")
    for upper, work in (("up", "work"), ("up", "other"), ("other-up", "work")):
        (scratch / upper).mkdir(exist_ok=True)
        with pytest.raises(unionfs.UpperBusyError) as caught:
            unionfs.UnionFS(lower=lowers, upper=scratch / upper, work=scratch / work)
        assert caught.value.errno == errno.EBUSY
    first.close()
    unionfs.UnionFS(lower=lowers, upper=scratch / "up", work=scratch / "work").close()


def unreadable(top: str) -> None:
    """What the unprivileged user does with a lower of which it may not read everything."""
    lower, upper = Path(top, "lower"), Path(top, "upper")
    (lower / "closed").mkdir(parents=True)
    (lower / "closed" / "f").write_text("f")
    (lower / "secret").write_text("secret")
    (lower / "open").write_text("open")
    (lower / "secret").chmod(0)
    (lower / "closed").chmod(0)
    upper.mkdir()
    with unionfs.UnionFS(lower=[lower], upper=upper) as fs:
        with raises(errno.EACCES):
            fs.read_bytes("/secret")
        with raises(errno.EACCES):
            fs.listdir("/closed")
        with raises(errno.EACCES):
            fs.stat("/closed/f")
        with raises(errno.EACCES):
            with fs.open("/secret", "ab"):
                pass
        assert os.listdir(f"{upper}.work/work") == []
        assert fs.read_text("/open") == "open"
        fs.write_text("/open", "more")
        assert sorted(fs.listdir("/")) == ["closed", "open", "secret"]
    (lower / "closed").chmod(0o700)
    assert (lower / "secret").stat().st_mode & 0o777 == 0


def test_unreadable_lower(as_user: AsUser) -> None:
    as_user.python(
        "import sys; from tests.test_union_faults import unreadable; unreadable(*sys.argv[1:])", str(as_user.scratch)
    )

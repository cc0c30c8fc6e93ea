"""Nothing that is kept about paths is ever stale: beside a second union of the same layers that keeps nothing."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from unionfs import UnionFS

NAMES = ["a", "b", "c", "d"]


def fill(top: Path, random: Random, depth: int = 3) -> None:
    top.mkdir()
    for name in NAMES:
        kind = random.randrange(5)
        path = top / name
        if kind < 2 and depth:
            fill(path, random, depth - 1)
        elif kind < 3:
            path.write_text(str(path))
        elif kind < 4:
            path.symlink_to(random.choice(["a", "../b", "/c/d", "b/../c", "none"]))


@pytest.fixture(params=range(6))
def random(request: pytest.FixtureRequest) -> Random:
    return Random(request.param)


@pytest.fixture
def fs(scratch: Path, random: Random) -> Iterator[UnionFS]:
    for name in ("1", "2", "3"):
        fill(scratch / name, random)
    (scratch / "upper").mkdir()
    with UnionFS([scratch / name for name in ("1", "2", "3")], scratch / "upper", volatile=True) as fs:
        yield fs


def any_path(random: Random) -> str:
    return "/" + "/".join(random.choice(NAMES) for _ in range(random.randint(1, 4)))


def change(fs: UnionFS, random: Random) -> None:
    path, path2 = any_path(random), any_path(random)
    changes: list[Any] = [
        lambda: fs.mkdir(path),
        lambda: fs.write_text(path, path * random.randint(0, 3)),
        lambda: fs.unlink(path),
        lambda: fs.rmdir(path),
        lambda: fs.rmtree(path),
        lambda: fs.rename(path, path2),
        lambda: fs.exchange(path, path2),
        lambda: fs.link(path, path2),
        lambda: fs.symlink(path2, path),
        lambda: fs.chmod(path, random.choice([0o600, 0o755, 0o711])),
        lambda: fs.utime(path, ns=(1, random.randint(1, 9))),
        lambda: fs.truncate(path, random.randint(0, 20)),
        lambda: fs.setxattr(path, "user.x", b"y"),
        lambda: fs.copy(path, path2),
        fs.commit,
    ]
    weights = [8] * (len(changes) - 1) + [1]
    try:
        random.choices(changes, weights)[0]()
    except OSError:
        pass  # Whether it can be done is not the question here.


def facts(st: os.stat_result) -> object:
    """All of it, but what looks may change, and the ctime of a directory, which a copy-up below it changes."""
    directory = stat.S_ISDIR(st.st_mode)
    return (*st[:7], st.st_blocks, st.st_rdev, st.st_mtime_ns, None if directory else st.st_ctime_ns)


def seen(fs: UnionFS, path: str, follow: bool = True) -> object:
    try:
        return facts(fs.stat(path, follow_symlinks=follow))
    except OSError as error:
        return type(error), error.errno, error.filename


def truth(fs: UnionFS, path: str, follow: bool = True) -> object:
    """The answer of the same nodes with nothing kept: no path, and no node's metadata."""
    tree = fs.tree
    tree.cache.clear()
    try:
        node = tree.resolve(os.fsencode(path), follow)
        node.st = None
        return facts(tree.stat(node))
    except OSError as error:
        return type(error), error.errno, path


def test_every_answer_is_that_of_the_layers(fs: UnionFS, random: Random) -> None:
    paths = sorted({any_path(random) for _ in range(60)})
    for _ in range(150):
        change(fs, random)
        answers = [(path, follow, seen(fs, path, follow)) for path in paths for follow in (True, False)]
        again = [(path, follow, seen(fs, path, follow)) for path in paths for follow in (True, False)]
        assert again == answers
        assert [(path, follow, truth(fs, path, follow)) for path, follow, _ in answers] == answers
        for path in paths * 2:  # The first look leaves nothing behind.
            seen(fs, path)


def test_the_same_tree_at_the_next_opening(fs: UnionFS, scratch: Path, random: Random) -> None:
    """Inode numbers too; but a name that was moved out of a layer's space may have got another."""
    for _ in range(200):
        change(fs, random)
        seen(fs, any_path(random))

    def all_of(fs: UnionFS) -> dict[str, Any]:
        found = {}
        for where, dirs, files in fs.walk("/"):
            for name in [*dirs, *files]:
                path = os.path.join(where, name)
                st = fs.lstat(path)
                size = None if fs.isdir(path) else st.st_size
                links = None if fs.isdir(path) and not fs.islink(path) else st.st_nlink
                found[path] = (st.st_mode, st.st_uid, size, links, st.st_mtime_ns, st.st_ino)
        return found

    before = all_of(fs)
    lowers = [layer.label for layer in fs.tree.resolver.layers[1:]]
    fs.close()
    with UnionFS(lowers, scratch / "upper") as again:
        assert all_of(again) == before


def test_threads_see_what_they_have_done(fs: UnionFS) -> None:
    """Each of eight threads changes files of its own and the directory that all share, and looks at once."""
    fs.makedirs("/shared")
    wrong: list[object] = []

    def work(me: int) -> None:
        random = Random(me)
        mine = f"/shared/{me}"
        for step in range(150):
            size = random.randint(1, 500)
            fs.write_bytes(mine, b"x" * size)
            if fs.stat(mine).st_size != size:
                wrong.append((me, step, "size"))
            fs.chmod(mine, 0o600 + step % 64)
            if fs.stat(mine).st_mode & 0o777 != 0o600 + step % 64:
                wrong.append((me, step, "mode"))
            fs.rename(mine, mine + "x")
            if fs.exists(mine) or not fs.exists(mine + "x"):
                wrong.append((me, step, "rename"))
            with fs.open(mine + "x", "r+b", 0) as file:
                file.truncate(step)
                if fs.stat(mine + "x").st_size != step:
                    wrong.append((me, step, "open"))
            fs.unlink(mine + "x")
            if fs.exists(mine + "x") or f"{me}x" in fs.listdir("/shared"):
                wrong.append((me, step, "unlink"))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert fs.listdir("/shared") == []

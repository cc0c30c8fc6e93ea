"""The path API beside `os` and `shutil` on a plain directory: the same answers, errors, and paths in the errors."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import unionfs

LONG = "n" * 256
CHUNKS = 12
DEEP = "/".join(["dir"] * 1100)


def make_layers(top: Path) -> list[Path]:
    """Three layers whose union is what `make_plain` makes: directories merge, names win, a whiteout hides."""
    layers = [top / name for name in "abc"]
    for layer in layers:
        (layer / "dir/sub").mkdir(parents=True)
    a, b, c = layers
    (a / "dir/one").write_text("one")
    (b / "dir/one").write_text("hidden")
    (b / "dir/two").write_text("two!")
    (c / "dir/sub/three").write_text("three")
    (c / "dir/gone").write_text("gone")
    os.mknod(b / "dir/gone", stat.S_IFCHR)
    (c / "empty").mkdir()
    (c / "file").write_text("file")
    (b / "link").symlink_to("dir/two")
    (c / "dirlink").symlink_to("dir")
    (a / "dangling").symlink_to("dir/new")
    (b / "loop").symlink_to("loop")
    (c / "abs").symlink_to("/dir/two")
    os.mkfifo(c / "fifo")
    os.link(c / "file", c / "file2")
    os.setxattr(b / "dir/two", "user.k", b"v")
    return layers


def make_plain(top: Path) -> None:
    (top / "dir/sub").mkdir(parents=True)
    (top / "dir/one").write_text("one")
    (top / "dir/two").write_text("two!")
    (top / "dir/sub/three").write_text("three")
    (top / "empty").mkdir()
    (top / "file").write_text("file")
    (top / "link").symlink_to("dir/two")
    (top / "dirlink").symlink_to("dir")
    (top / "dangling").symlink_to("dir/new")
    (top / "loop").symlink_to("loop")
    (top / "abs").symlink_to("/dir/two")
    os.mkfifo(top / "fifo")
    os.link(top / "file", top / "file2")
    os.setxattr(top / "dir/two", "user.k", b"v")


class Host:
    """`os`, `os.path`, `shutil` and `open`, with every path of the union put below a directory."""

    def __init__(self, top: Path) -> None:
        self.top = str(top)

    def at(self, path: Any) -> Any:
        return os.fsencode(self.top) + b"/" + path if isinstance(path, bytes) else f"{self.top}/{path}"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        for module in (os, os.path, shutil):
            if hasattr(module, name):
                return getattr(module, name)
        return {"read_text": self._read_text, "read_bytes": lambda path: Path(path).read_bytes()}[name]

    @staticmethod
    def _read_text(path: Any) -> str:
        with open(path) as file:
            return file.read()


class P(str):
    """A path in the union, among the arguments of a call."""

    __slots__ = ()


class B(bytes):
    """The same in bytes."""


def outcome(call: Callable[..., Any], args: tuple[Any, ...], at: Callable[[Any], Any], kwargs: dict[str, Any]) -> Any:
    """What a call answers or raises, with paths as in the union."""

    def back(path: Any) -> Any:
        prefix = at(path[:0])
        return path[len(prefix) :] if path is not None and path.startswith(prefix) and len(prefix) > 1 else path

    try:
        value = call(*[at(arg) if isinstance(arg, P | B) else arg for arg in args], **kwargs)
    except OSError as error:
        return type(error), error.errno, *(None if p is None else back(p) for p in (error.filename, error.filename2))
    if isinstance(value, os.stat_result):
        size = value.st_size if not stat.S_ISDIR(value.st_mode) else 0
        nlink = value.st_nlink if not stat.S_ISDIR(value.st_mode) else 0
        return value.st_mode, size, nlink, value.st_uid, value.st_gid
    return sorted(value) if isinstance(value, list) else value


def tree(read: Any, at: Callable[[Any], Any], where: str = "") -> dict[str, Any]:
    """All there is, by path."""
    found: dict[str, Any] = {}
    for name in read.listdir(at(where)):
        path = f"{where}/{name}" if where else name
        st = read.lstat(at(path))
        fact: list[Any] = [st.st_mode, st.st_uid, st.st_gid]
        if stat.S_ISREG(st.st_mode):
            fact += [st.st_size, st.st_nlink, read.read_bytes(at(path))]
        if stat.S_ISLNK(st.st_mode):
            fact.append(read.readlink(at(path)))
        else:
            fact += [(key, read.getxattr(at(path), key)) for key in read.listxattr(at(path))]
        found[path] = tuple(fact)
        if stat.S_ISDIR(st.st_mode):
            found |= tree(read, at, path)
    return found


PATHS = ["dir", "dir/", "dir/one", "dir/one/", "dir/one/x", "dir/two", "dir/gone", "dir/sub/three", "empty",
         "file", "file2", "link", "link/", "dirlink", "dirlink/", "dirlink/one", "dangling", "dangling/", "loop",
         "loop/x", "fifo", "no", "no/x", "dir/.", "dir/..", ".", "dir/../file", "dir//one", "./file", LONG,
         f"dir/{LONG}/x", f"{DEEP}", "dir/sub/../../dir/two"]  # fmt: skip
READS = [
    "stat",
    "lstat",
    "exists",
    "lexists",
    "isfile",
    "isdir",
    "islink",
    "listdir",
    "readlink",
    "listxattr",
    "read_text",
]
CALLS: list[tuple[Any, ...]] = [
    *[(name, P(path)) for name in READS for path in PATHS if not (name == "read_text" and "fifo" in path)],
    *[(name, B(path.encode())) for name in ("stat", "listdir", "readlink", "rmdir", "unlink") for path in PATHS[:20]],
    *[
        (name, P(path))
        for name in ("mkdir", "rmdir", "unlink", "remove", "makedirs", "mkfifo")
        for path in [*PATHS, "new", "new/", "dir/new", "dir/new/", "new/deep", "dir/sub/new/deeper", "dirlink/new"]
        if path != ".." and (name, path) not in {("rmdir", "dir/.."), ("makedirs", DEEP)}
    ],
    *[("makedirs", P(path), 0o755, True) for path in PATHS if path not in ("..", DEEP)],
    *[("rmtree", P(path)) for path in ("dir", "dirlink", "file", "no", "empty", "dir/sub")],
    *[("truncate", P(path), size) for path in ("dir/one", "dir", "no", "link", "fifo", "loop") for size in (0, 2, 99)],
    ("truncate", P("file"), -1),
    *[("chmod", P(path), 0o640) for path in PATHS],
    *[("chown", P(path), -1, -1) for path in PATHS],
    *[("utime", P(path), (1, 2)) for path in PATHS],
    *[("getxattr", P(path), "user.k") for path in ("dir/two", "file", "no", "link", "dir")],
    *[("setxattr", P(path), "user.n", b"value") for path in ("dir/two", "file", "no", "link", "dir", "dir/sub/three")],
    ("setxattr", P("dir/two"), "user.k", b"w", os.XATTR_CREATE),
    ("setxattr", P("dir/two"), "user.none", b"w", os.XATTR_REPLACE),
    *[("removexattr", P(path), "user.k") for path in ("dir/two", "file", "no", "link")],
    *[
        (name, P(one), P(two))
        for name in ("rename", "link")
        for one in ("dir", "dir/", "dir/one", "dir/one/", "file", "file/", "link", "dangling", "no", "empty", ".",
                    "dir/..", "fifo", "file2", "dirlink/", "loop")
        for two in ("dir", "dir/two", "new", "new/", "empty", "empty/", "dir/sub/x", "no/x", "file", "link", "dirlink",
                    "dir/gone", ".", "file/x", LONG, "file2")
        if (name, one) != ("link", "dirlink/")
    ],
    *[("symlink", "t", P(path)) for path in ("new", "new/", "dir", "dir/", "file", "no/x", "dir/gone", "dangling")],
    ("symlink", "", P("new")),
    ("symlink", "t" * 4096, P("new")),
    *[("access", P(path), mode) for path in PATHS for mode in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)],
    *[("samefile", P(one), P(two)) for one in ("file", "dir", "link") for two in ("file2", "dir/two", "dirlink", "no")],
    *[("removedirs", P(path)) for path in ("empty", "dir", "no", "dir/sub")],
]  # fmt: skip


@pytest.fixture
def both(scratch: Path) -> Iterator[tuple[unionfs.UnionFS, Host]]:
    (scratch / "upper").mkdir()
    (scratch / "hold/plain").mkdir(parents=True)
    make_plain(scratch / "hold/plain")
    (scratch / "hold/plain" / "keep").touch()
    layers = make_layers(scratch)
    (layers[2] / "keep").touch()
    with unionfs.UnionFS(layers, scratch / "upper") as fs:
        yield fs, Host(scratch / "hold/plain")


def differences(fs: unionfs.UnionFS, host: Host, name: str, *args: Any) -> Iterator[str]:
    ours = outcome(getattr(fs, name), args, lambda path: path, {})
    theirs = outcome(getattr(host, name), args, host.at, {})
    if isinstance(theirs, tuple) and theirs[2:] == (None, None):
        ours, theirs = ours[1:2], theirs[1:2]  # Some calls of os and shutil don't say which path; ours do.
    if ours != theirs and theirs != (None,):
        yield f"{name}{args}: {ours} and not {theirs}"


@pytest.mark.root
def test_same_trees_to_begin_with(both: tuple[unionfs.UnionFS, Host]) -> None:
    fs, host = both
    assert tree(fs, lambda path: path or "/") == tree(host, host.at)


@pytest.mark.root
def test_same_answers(both: tuple[unionfs.UnionFS, Host]) -> None:
    """Twice: what is kept of the first answer answers the second time."""
    calls = [call for call in CALLS if call[0] in READS]
    assert len(calls) > 300
    found = [difference for call in calls * 3 for difference in differences(*both, *call)]
    assert not found, "\n".join(found)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["directory", "memory"])
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_same_changes(both: tuple[unionfs.UnionFS, Host], scratch: Path, chunk: int, kind: str) -> None:
    """Each call on a fresh pair; then the trees are the same, seen through this union and through another."""
    calls = [call for call in CALLS if call[0] not in READS]
    calls = calls[chunk :: CHUNKS if kind == "directory" else 3 * CHUNKS]
    fs, host = both
    fs.close()
    layers = [scratch / name for name in "abc"]
    found: list[str] = []
    for i, call in enumerate(calls):
        upper = scratch / f"upper{i}"
        upper.mkdir()
        top = scratch / "hold" / f"plain{i}"
        subprocess.run(["cp", "-a", host.top, str(top)], check=True)
        pair = Host(top)
        fs = unionfs.UnionFS(layers, upper if kind == "directory" else unionfs.MemoryLayer(), volatile=True)
        with fs:
            found += differences(fs, pair, *call)
            now = tree(fs, lambda path: path or "/")
            then = tree(pair, pair.at)
            if now != then:
                found.append(f"{call}: {now.items() - then.items()} and not {then.items() - now.items()}")
        if kind == "directory":
            with unionfs.UnionFS(layers, upper) as again:
                if now != tree(again, lambda path: path or "/"):
                    found.append(f"{call}: another tree at the next opening")
        shutil.rmtree(top)
    assert not found, "\n".join(found)

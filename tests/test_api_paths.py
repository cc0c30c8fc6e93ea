"""`UnionPath` beside `pathlib.Path`, and glob and walk beside `glob.glob` and `os.walk`, on a plain directory."""

from __future__ import annotations

import copy
import glob
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from operator import methodcaller
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import unionfs

LAYERS = {
    "a": ["dir/a.txt", "dir/.hidden", ".top/x.txt", "dir/sub/"],
    "b": ["dir/a.txt", "dir/b.py", "dir/sub/c.txt", "dir/sub/deep/d.txt"],
    "c": ["dir/sub/deep/.e", "e.txt", "[odd]/f.txt", "empty/"],
}
LINKS = {"dir/up": "../.top", "link": "dir", "dir/sub/dangling": "none", "to-file": "e.txt", "loop": "loop"}


def fill(top: Path, names: list[str]) -> None:
    for name in names:
        path = top / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text(name)


@pytest.fixture
def plain(scratch: Path) -> Path:
    top = scratch / "hold/plain"
    for names in LAYERS.values():
        fill(top, names)
    for name, target in LINKS.items():
        (top / name).symlink_to(target)
    return top


@pytest.fixture
def fs(scratch: Path) -> Iterator[unionfs.UnionFS]:
    for layer, names in LAYERS.items():
        fill(scratch / layer, names)
    for (name, target), layer in zip(LINKS.items(), "abcab", strict=True):
        (scratch / layer / name).symlink_to(target)
    (scratch / "upper").mkdir()
    with unionfs.UnionFS([scratch / layer for layer in "abc"], scratch / "upper") as fs:
        yield fs


def outcome(call: Callable[[Any], Any], path: Any, top: str) -> Any:
    """What a call answers or raises, with paths as in the union."""
    try:
        value = call(path)
        if isinstance(value, Iterator):
            value = sorted(value)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        return type(error), getattr(error, "errno", None)
    return plain_value(value, top)


def plain_value(value: Any, top: str) -> Any:
    if isinstance(value, PurePosixPath | str):
        text = str(value)
        return text.removeprefix(top) or "/" if text.startswith(top) else text
    if isinstance(value, os.stat_result):
        return value.st_mode, value.st_uid
    if isinstance(value, list | tuple):
        return [plain_value(each, top) for each in value]
    return value


PURE: list[Callable[[Any], Any]] = [
    lambda p: p.parts, lambda p: p.name, lambda p: p.suffix, lambda p: p.suffixes, lambda p: p.stem, lambda p: p.anchor,
    lambda p: p.root, lambda p: p.parent, lambda p: list(p.parents), lambda p: p.parents[0], lambda p: p / "x" / "../y",
    lambda p: p.joinpath("q", "r"), lambda p: p / "/absolute", lambda p: p.with_name("n"), lambda p: p.with_stem("s"),
    lambda p: p.with_suffix(".gz"), lambda p: p.with_suffix("bad"), lambda p: p.with_name(""),
    lambda p: p.relative_to("/dir"), lambda p: p.relative_to("nowhere"), lambda p: p.is_relative_to("/dir"),
    lambda p: p.match("*.txt"), lambda p: p.match("/dir/*"), lambda p: p.match(""), lambda p: p.is_absolute(),
    lambda p: p.as_posix(), str, bytes, lambda p: "x" / p, lambda p: p == p / ".",
    lambda p: p < p / "x", lambda p: sorted([p / "b", p, p / "a"]), lambda p: p.parent.parent.parent,
    lambda p: p.is_reserved() if sys.version_info < (3, 13) else None,
]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["/dir/a.txt", "dir/sub/c.tar.gz", "/", "", ".", "..", "a//b/./c/", "/dir", ".hidden", "//x"]
)
def test_pure_methods(fs: unionfs.UnionFS, text: str) -> None:
    for i, look in enumerate(PURE):
        ours, theirs = fs.path(text), PurePosixPath(text)
        assert outcome(look, ours, "//none") == outcome(look, theirs, "//none"), i
    derived = [ours / "x", ours.parent, *ours.parents, ours.joinpath("a"), "x" / ours, ours.with_segments("y")]
    assert all(type(path) is unionfs.UnionPath and path.fs is fs for path in derived)


CONCRETE: list[Callable[[Any], Any]] = [
    lambda p: p.exists(), lambda p: p.is_dir(), lambda p: p.is_file(), lambda p: p.is_symlink(), lambda p: p.is_fifo(),
    lambda p: p.is_socket(), lambda p: p.is_block_device(), lambda p: p.is_char_device(), lambda p: p.stat(),
    lambda p: p.lstat(), lambda p: p.stat(follow_symlinks=False), lambda p: p.read_text(), lambda p: p.read_bytes(),
    lambda p: sorted(p.iterdir()), lambda p: p.readlink(), lambda p: p.owner(), lambda p: p.group(),
    lambda p: p.resolve(),
    lambda p: p.resolve(strict=True), lambda p: p.absolute(), lambda p: p.samefile(p.parent),
    lambda p: p.open().close(),
    lambda p: p.write_text("w"), lambda p: p.write_bytes(b"b"), lambda p: p.touch(), lambda p: p.touch(exist_ok=False),
    lambda p: p.mkdir(), lambda p: p.mkdir(exist_ok=True), lambda p: p.mkdir(parents=True, exist_ok=True),
    lambda p: (p / "n/m").mkdir(), lambda p: (p / "n/m").mkdir(parents=True), lambda p: p.chmod(0o700),
    lambda p: p.rename(p.parent / "renamed"), lambda p: p.replace(p.parent / "replaced"), lambda p: p.unlink(),
    lambda p: p.unlink(missing_ok=True), lambda p: p.rmdir(), lambda p: p.symlink_to("goal"),
    lambda p: p.hardlink_to(p.parent / "e.txt"), lambda p: (p.parent / "hard").hardlink_to(p),
    lambda p: sorted(p.parent.rglob("*")),
]  # fmt: skip

NAMES = ["dir", "dir/a.txt", "dir/sub", "link", "link/a.txt", "to-file", "dir/sub/dangling", "loop", "none", "none/x",
         "e.txt", "e.txt/x", "empty", "dir/up/x.txt"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_concrete_methods(fs: unionfs.UnionFS, plain: Path, name: str) -> None:
    """One after the other on both, so that they build on what the ones before left."""
    for i, look in enumerate(CONCRETE):
        ours, theirs = fs.path("/", name), plain / name
        assert outcome(look, ours, "//none") == outcome(look, theirs, str(plain)), i
    expected = sorted("/" + str(path.relative_to(plain)) for path in plain.rglob("*"))
    assert sorted(map(str, fs.path("/").rglob("*"))) == expected


PATTERNS = ["*", "**", "**/", "*/", "*.txt", "**/*.txt", "dir/*", "dir/**", "dir/**/*", "**/sub", "**/sub/**", "link/*",
            "*/*", "[[]odd]/*", "d?r/*.py", ".*", "**/.*", "dir/../e.txt", "nothing", "none/*", "dir/sub/dangling",
            "loop", "*/up/*", "dir//a.txt", "./dir/a*", "**/**/c.txt", "dir/**/deep/../c.txt", "E.TXT", "e.txt/",
            "empty/*", "empty/**"]  # fmt: skip


@pytest.mark.parametrize("pattern", [*PATTERNS, "", "/abs", "a**b"])
def test_glob_of_pathlib(fs: unionfs.UnionFS, plain: Path, pattern: str) -> None:
    for method in ("glob", "rglob"):
        for start in ("", "dir", "link", "none", "e.txt"):
            ours, theirs = fs.path("/", start), plain / start
            look = methodcaller(method, pattern)
            here, there = outcome(look, ours, "//none"), outcome(look, theirs, str(plain))
            assert here == there, (method, start)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("hidden", [False, True])
def test_glob_of_glob(fs: unionfs.UnionFS, plain: Path, pattern: str, hidden: bool) -> None:
    expected = sorted(glob.glob(pattern, root_dir=plain, recursive=True, include_hidden=hidden))
    assert sorted(fs.glob(pattern, include_hidden=hidden)) == expected
    assert sorted(fs.glob(pattern.encode(), include_hidden=hidden)) == [os.fsencode(path) for path in expected]
    rooted = [f"/{path}" for path in expected if path]
    assert sorted(path for path in fs.glob("/" + pattern, include_hidden=hidden) if path != "/") == rooted


@pytest.mark.parametrize("topdown", [True, False])
@pytest.mark.parametrize("followlinks", [True, False])
@pytest.mark.parametrize("start", ["", "dir", "link", "none", "e.txt"])
def test_walk(fs: unionfs.UnionFS, plain: Path, topdown: bool, followlinks: bool, start: str) -> None:
    def walked(walk: Any, top: Any, cut: int) -> tuple[list[Any], list[Any]]:
        errors: list[Any] = []
        steps = []
        for where, dirs, files in walk(top, topdown, errors.append, followlinks):
            steps.append((where[cut:], sorted(dirs), sorted(files)))
        return sorted(steps), [(e.errno, e.filename[cut:]) for e in errors]

    ours = walked(fs.walk, "/" + start, 0)
    theirs = walked(os.walk, f"{plain}/{start}", len(str(plain)))
    assert ours == theirs
    assert walked(fs.walk, os.fsencode("/" + start), 0)[1] == [(n, os.fsencode(f)) for n, f in ours[1]]


def test_walk_goes_where_the_caller_lets_it(fs: unionfs.UnionFS) -> None:
    seen = []
    for where, dirs, _ in fs.walk("/dir"):
        seen.append(where)
        dirs[:] = ["sub", "made"] if where == "/dir" else []
        fs.makedirs("/dir/made", exist_ok=True)
    assert seen == ["/dir", "/dir/sub", "/dir/made"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="not applicable: pathlib has no walk before 3.12")
@pytest.mark.parametrize("top_down", [True, False])
def test_walk_of_pathlib(fs: unionfs.UnionFS, plain: Path, top_down: bool) -> None:
    def walked(top: Any, cut: int) -> list[Any]:
        return [(str(where)[cut:] or "/", sorted(dirs), sorted(files)) for where, dirs, files in top.walk(top_down)]

    assert sorted(walked(fs.path("/"), 0)) == sorted(walked(plain, len(str(plain))))


def test_scandir_says_what_os_scandir_says(fs: unionfs.UnionFS, plain: Path) -> None:
    def facts(entries: Any) -> list[Any]:
        return sorted(
            (e.name, e.is_dir(), e.is_dir(follow_symlinks=False), e.is_file(), e.is_file(follow_symlinks=False),
             e.is_symlink(), e.stat(follow_symlinks=False).st_mode)
            for e in entries
            if e.name != "loop"
        )  # fmt: skip

    for name in ("", "dir", "dir/sub"):
        with fs.scandir("/" + name) as ours, os.scandir(plain / name) as theirs:
            assert facts(ours) == facts(theirs)
    with fs.scandir("/") as entries:
        by_name = {entry.name: entry for entry in entries}
    for name, entry in by_name.items():
        assert entry.path == os.fspath(entry) == "/" + name
        assert entry.inode() == fs.lstat("/" + name).st_ino
        assert fs.lstat(entry).st_ino == entry.inode()
    with pytest.raises(OSError, match="symbolic links") as caught:
        by_name["loop"].is_dir()
    assert caught.value.filename == "/loop"
    with pytest.raises(FileNotFoundError):
        fs.scandir("/none")
    with fs.scandir(b"/dir") as raw:
        assert {entry.path for entry in raw} == {b"/dir/" + name for name in fs.listdir(b"dir")}


def test_identity_and_safety(fs: unionfs.UnionFS, scratch: Path) -> None:
    path = fs.path("/dir") / "a.txt"
    with unionfs.UnionFS([scratch / "a"]) as other:
        foreign = other.path("/dir/a.txt")
        assert path != foreign
        assert path == fs.path("/dir/a.txt")
        assert hash(path) == hash(fs.path("/dir/a.txt"))
        assert len({path, foreign, fs.path("/dir//a.txt")}) == 2
        assert path != PurePosixPath("/dir/a.txt")
        assert PurePosixPath("/dir/a.txt") != path
        for refused in (lambda: fs.stat(foreign), lambda: path / foreign, lambda: path.rename(foreign)):
            with pytest.raises(ValueError, match="another union"):
                refused()
    assert repr(path) == "UnionPath('/dir/a.txt')"
    assert fs.read_text(path) == path.read_text()
    with pytest.raises(TypeError, match="not of the host"):
        open(path)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(path)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(fs)
    assert copy.deepcopy([path]) == [path]


def test_realpath_stays_inside(fs: unionfs.UnionFS, plain: Path) -> None:
    fs.symlink("/../../../../e.txt", "/dir/out")
    fs.symlink("../../../../../../../e.txt", "/dir/out2")
    assert fs.realpath("/dir/out") == fs.realpath("dir/out2") == "/e.txt"
    assert fs.read_text("/dir/out") == "e.txt"
    for name in [*NAMES, "dir/sub/dangling/../x", "none/../dir", "link/up/../link/./a.txt", "loop/x"]:
        assert fs.realpath(name) == os.path.realpath(plain / name).removeprefix(str(plain)), name
    assert fs.realpath(b"link") == b"/dir"
    with pytest.raises(FileNotFoundError) as caught:
        fs.realpath("/none/x", strict=True)
    assert caught.value.filename == "/none/x"

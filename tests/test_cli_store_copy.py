"""`unionfs cp`: the rules of `docker cp`, and what neither side of a copy may do to the other."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.storecli import HOSTILE, change, fails, lines, ok
from unionfs.cli.copying import split


@pytest.fixture
def top(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a container `c` of a tree with files, directories and links; the same in `here` and `other`."""
    monkeypatch.setenv("UNIONFS_STORE", str(scratch / "store"))
    monkeypatch.chdir(scratch)
    for root in ("tree", "here", "other"):
        (scratch / root / "dir/sub").mkdir(parents=True)
        (scratch / root / "dir/file").write_text(f"{root}: dir/file")
        (scratch / root / "file").write_text(f"{root}: file")
        (scratch / root / "to-dir").symlink_to("/dir" if root == "tree" else "dir")
        (scratch / root / "to-file").symlink_to("file")
    ok("import", "tree", "base:1")
    ok("create", "--name", "c", "base:1")
    return scratch


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("c:/etc", ("c", "/etc")),
        ("c:etc/x", ("c", "/etc/x")),
        ("base:1:/etc", ("base:1", "/etc")),
        ("localhost:5000/a/b:1:/etc", ("localhost:5000/a/b:1", "/etc")),
        ("c:/a:/b", ("c", "/a:/b")),
        ("c:/", ("c", "/")),
        ("/a:b", None),
        ("./a:b", None),
        ("../a:/b", None),
        ("file", None),
        (".", None),
    ],
)
def test_what_a_place_is(place: str, parts: tuple[str, str] | None) -> None:
    assert split(place) == parts


def find(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize(
    ("source", "target", "made"),
    [
        ("file", "out", ["out"]),
        ("file", "here", ["here/file"]),
        ("file", "here/", ["here/file"]),
        ("file", "here/to-dir", ["here/dir/file"]),
        ("dir", "out", ["out", "out/file", "out/sub"]),
        ("dir", "out/", ["out", "out/file", "out/sub"]),
        ("dir", "here", ["here/dir/file", "here/dir/sub"]),
        ("dir/", "here/dir", ["here/dir/dir", "here/dir/dir/file", "here/dir/dir/sub"]),
        ("dir/.", "here", ["here/file", "here/sub"]),
        ("dir/.", "out", ["out", "out/file", "out/sub"]),
        ("to-dir", "out", ["out"]),
        ("to-dir/", "out", ["out", "out/file", "out/sub"]),
        ("to-dir/.", "here", ["here/file", "here/sub"]),
        ("to-dir/file", "out", ["out"]),
    ],
)
def test_out_of_a_container_and_into_one(top: Path, source: str, target: str, made: list[str]) -> None:
    before = {path: path.lstat().st_mtime_ns for path in top.rglob("*") if "store" not in path.parts}
    ok("cp", f"c:/{source}", target)
    after = {path: path.lstat().st_mtime_ns for path in top.rglob("*") if not path.is_relative_to(top / "store")}
    new = {str(path.relative_to(top)) for path in set(after) - set(before)}
    assert new <= set(made)
    for path in made:
        here = top / path
        if here.is_file() and not here.is_symlink():
            assert here.read_text().startswith("tree: ")
    # The other way: what is here is in the container then, and a directory `here` too.
    ok("cp", "here", "c:/")
    ok("cp", f"other/{source}", f"c:/{target}")
    added = {line[2:] for line in lines("diff", "c") if line.startswith("A ")}
    assert {f"/{path}" for path in made} <= added


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("c:/gone", "out", "No such file"),
        ("c:/file/.", "out", "Not a directory"),
        ("c:/file", "gone/out", "No such file"),
        ("c:/file", "out/", "no such directory"),
        ("c:/dir", "here/file", "a directory can't be copied over a file"),
        ("gone", "c:/", "No such file"),
        ("here/file/.", "c:/out", "Not a directory"),
        ("here/file", "c:/gone/out", "No such file"),
        ("here/file", "c:/out/", "no such directory"),
        ("here/dir", "c:/file", "a directory can't be copied over a file"),
        ("here/file", "base:1:/x", "make a container of it"),
        ("gone:/file", "out", "no image, container or layer 'gone'"),
    ],
)
def test_what_can_not_be(top: Path, source: str, target: str, said: str) -> None:
    fails("cp", source, target, said=said)
    assert lines("diff", "c") == []
    assert not (top / "out").exists()


def test_wrong_calls(top: Path) -> None:
    fails("cp", "c:/a", "c:/b", said="the other a path of the host", status=2)
    fails("cp", "a", "b", said="the other a path of the host", status=2)


def test_what_is_kept(top: Path) -> None:
    odd = top / "here/dir" / os.fsdecode(HOSTILE)
    odd.write_bytes(b"x")
    os.chmod(odd, 0o4711)
    os.utime(odd, ns=(1, 1_234_567_890_123_456_789))
    os.setxattr(odd, "user.mine", b"value")
    os.link(odd, top / "here/dir/linked")
    ok("cp", "here/dir", "c:/in")
    ok("cp", "c:/in", "back")
    st = os.lstat(top / "back" / os.fsdecode(HOSTILE))
    assert stat.S_IMODE(st.st_mode) == 0o4711
    assert st.st_mtime_ns == 1_234_567_890_123_456_789
    assert st.st_ino == os.lstat(top / "back/linked").st_ino
    assert os.getxattr(top / "back/linked", "user.mine") == b"value"
    ok("cp", "base:1:/to-dir", "link")
    assert os.readlink("link") == "/dir"


def test_links_of_the_container_lead_nowhere_on_the_host(top: Path) -> None:
    change("c", lambda fs: fs.symlink(str(top / "here"), "/out"), lambda fs: fs.makedirs(str(top / "here")))
    ok("cp", "tree/file", "c:/out/new")
    assert not (top / "here/new").exists()
    assert f"A {top}/here/new" in lines("diff", "c")
    ok("cp", "c:/out/new", "got")
    assert (top / "got").read_text() == "tree: file"
    change("c", lambda fs: fs.unlink("/out"), lambda fs: fs.symlink("../../../../etc/passwd", "/out"))
    fails("cp", "c:/out/.", "got2", said="Not a directory")

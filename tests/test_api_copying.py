"""Copies and moves: inside the union, and between it and the host."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import unionfs


def facts(path: Path | str) -> dict[str, Any]:
    """All that a copy must keep of a tree of the host, by relative path."""
    top = os.fspath(path)
    found: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    walked = [(top, ".")]
    for where, dirs, files in os.walk(top):
        walked += [
            (os.path.join(where, name), os.path.relpath(os.path.join(where, name), top)) for name in dirs + files
        ]
    for full, name in sorted(walked, key=lambda item: item[1]):
        st = os.lstat(full)
        fact: list[Any] = [st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_rdev]
        fact.append(
            {key: os.getxattr(full, key, follow_symlinks=False) for key in os.listxattr(full, follow_symlinks=False)}
        )
        if stat.S_ISLNK(st.st_mode):
            fact.append(os.readlink(full))
        elif stat.S_ISREG(st.st_mode):
            fact += [Path(full).read_bytes(), inodes.setdefault(st.st_ino, name)]
        found[name] = fact
    return found


def make_tree(top: Path) -> None:
    (top / "d/e").mkdir(parents=True)
    (top / "d/plain").write_text("plain")
    os.link(top / "d/plain", top / "d/e/again")
    (top / "d/link").symlink_to("../outside")
    with (top / "d/holes").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    os.setxattr(top / "d/plain", "user.note", b"kept")
    os.setxattr(top / "d", "user.note", b"of a directory")
    os.mkfifo(top / "d/fifo")
    (top / os.fsdecode(b"d/\xff")).write_text("no UTF-8")
    if os.geteuid() == 0:
        os.chown(top / "d/e", 5, 6)
        os.lchown(top / "d/link", 7, 8)
        os.mknod(top / "d/device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    (top / "d/plain").chmod(0o4751)
    (top / "d").chmod(0o1711)
    for name in ("d/plain", "d/link", "d/e", "d"):
        os.utime(top / name, ns=(1_000_000_001, 2_000_000_003), follow_symlinks=False)


@pytest.fixture(params=["directory", "memory"])
def fs(request: pytest.FixtureRequest, scratch: Path) -> Iterator[unionfs.UnionFS]:
    for name in ("a", "b", "c", "upper", "host"):
        (scratch / name).mkdir()
    (scratch / "a/top").write_text("a")
    (scratch / "b/dir/sub").mkdir(parents=True)
    (scratch / "b/dir/mid").write_text("b")
    (scratch / "c/dir/sub").mkdir(parents=True)
    (scratch / "c/dir/sub/low").write_text("c")
    upper = scratch / "upper" if request.param == "directory" else unionfs.MemoryLayer()
    with unionfs.UnionFS([scratch / "a", scratch / "b", scratch / "c"], upper) as fs:
        yield fs


def test_into_the_union_and_out_again_is_the_same_tree(fs: unionfs.UnionFS, scratch: Path) -> None:
    make_tree(scratch / "host")
    fs.copy_in(scratch / "host/d", "/dir/new")
    assert fs.read_text("/dir/new/e/again") == "plain"
    assert fs.samefile("/dir/new/plain", "/dir/new/e/again")
    assert fs.lstat("/dir/new/plain").st_nlink == 2
    assert fs.stat("/dir/new/holes").st_blocks * 512 < 1 << 20
    fs.copy_out("/dir/new", scratch / "out")
    assert facts(scratch / "out") == facts(scratch / "host/d")
    assert (scratch / "out/holes").stat().st_blocks * 512 < 1 << 20


def test_merged_directories_come_out_whole(fs: unionfs.UnionFS, scratch: Path) -> None:
    fs.copy_out("dir", scratch / "out")
    assert sorted(facts(scratch / "out")) == [".", "mid", "sub", "sub/low"]
    fs.copy_out("/", scratch / "all")
    assert (scratch / "all/dir/sub/low").read_text() == "c"
    fs.copy_out("/top", scratch / "top")
    assert (scratch / "top").read_text() == "a"


def test_what_is_there_is_an_error_or_replaced(fs: unionfs.UnionFS, scratch: Path) -> None:
    (scratch / "host/dir").mkdir()
    (scratch / "host/dir/mid").write_text("host's")
    with pytest.raises(FileExistsError) as caught:
        fs.copy_in(scratch / "host/dir", "/dir")
    assert caught.value.filename == str(scratch / "host/dir")
    assert caught.value.filename2 == "/dir"
    with pytest.raises(FileExistsError):
        fs.copy_out("/dir", scratch / "host/dir")
    fs.copy_in(scratch / "host/dir", "/dir", exist_ok=True)
    assert fs.read_text("/dir/mid") == "host's"
    assert fs.read_text("/dir/sub/low") == "c"
    fs.copy_out("/dir", scratch / "host/dir", exist_ok=True)
    assert (scratch / "host/dir/sub/low").read_text() == "c"


def test_nothing_is_written_through_a_link_of_the_target(fs: unionfs.UnionFS, scratch: Path) -> None:
    (scratch / "host/secret").mkdir()
    (scratch / "host/out").mkdir()
    (scratch / "host/out/sub").symlink_to("../secret")
    (scratch / "host/out/mid").symlink_to("../secret/mid")
    with pytest.raises(NotADirectoryError) as caught:
        fs.copy_out("/dir", scratch / "host/out", exist_ok=True)
    assert caught.value.filename2 == str(scratch / "host/out/sub")
    (scratch / "host/out/sub").unlink()
    fs.copy_out("/dir", scratch / "host/out", exist_ok=True)
    assert not os.listdir(scratch / "host/secret")
    assert not (scratch / "host/out/mid").is_symlink()


def test_errors_name_both_ends(fs: unionfs.UnionFS, scratch: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fs.copy_in(scratch / "host/none", "/new")
    assert caught.value.filename == str(scratch / "host/none")
    with pytest.raises(FileNotFoundError) as caught:
        fs.copy_in(scratch / "none/there", "/new")
    assert caught.value.filename == str(scratch / "none/there")
    with pytest.raises(FileNotFoundError) as caught:
        fs.copy_out("/none", scratch / "host/out")
    assert caught.value.filename == "/none"
    with pytest.raises(FileNotFoundError) as caught:
        fs.copy_out("/dir", scratch / "none/there")


def test_moves_to_and_from_the_host(fs: unionfs.UnionFS, scratch: Path) -> None:
    make_tree(scratch / "host")
    before = facts(scratch / "host/d")
    fs.move_in(scratch / "host/d", "/d")
    assert not (scratch / "host/d").exists()
    fs.move_out("/d", scratch / "host/back")
    assert not fs.lexists("/d")
    assert facts(scratch / "host/back") == before
    fs.move_out("/top", scratch / "host/top")
    assert not fs.exists("/top")
    fs.move_in(scratch / "host/top", "/dir/top")
    assert fs.read_text("/dir/top") == "a"
    assert not (scratch / "host/top").exists()


def test_copy_as_shutil_does(fs: unionfs.UnionFS) -> None:
    fs.chmod("/dir/mid", 0o640)
    fs.utime("/dir/mid", ns=(5, 6))
    fs.setxattr("/dir/mid", "user.note", b"n")
    assert fs.copy("/dir/mid", "/copy") == "/copy"
    st = fs.stat("/copy")
    assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns, fs.getxattr("/copy", "user.note")) == (0o640, 6, b"n")
    assert fs.copy("/top", "/dir") == "/dir/top"
    assert fs.copy("/top", "/copy") == "/copy"  # over what is there
    assert fs.read_text("/copy") == "a"
    with pytest.raises(IsADirectoryError):
        fs.copy("/dir", "/copy2")
    with pytest.raises(OSError, match="same file"):
        fs.copy("/top", "/top")
    fs.symlink("top", "/to-top")
    fs.copy("/to-top", "/followed")
    fs.copy("/to-top", "/not-followed", follow_symlinks=False)
    assert (fs.islink("/followed"), fs.islink("/not-followed")) == (False, True)
    assert fs.read_text("/followed") == "a"


def test_copytree_and_move(fs: unionfs.UnionFS, scratch: Path) -> None:
    make_tree(scratch / "host")
    fs.copy_in(scratch / "host/d", "/d")
    fs.copytree("/d", "/twin")
    fs.copy_out("/twin", scratch / "twin")
    assert facts(scratch / "twin") == facts(scratch / "host/d")
    with pytest.raises(FileExistsError):
        fs.copytree("/d", "/twin")
    fs.copytree("/dir", "/twin", dirs_exist_ok=True)
    assert fs.read_text("/twin/sub/low") == "c"
    with pytest.raises(OSError, match="into itself") as caught:
        fs.copytree("/dir", "/dir/sub/dir")
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(NotADirectoryError):
        fs.copytree("/top", "/nope")
    assert fs.move("/twin", "/dir") == "/dir/twin"
    assert fs.move("/top", "/top2") == "/top2"
    with pytest.raises(FileExistsError):
        fs.rename("/top2", "/dir", noreplace=True)
    assert not fs.exists("/twin")


def test_move_copies_where_a_rename_can_not(scratch: Path) -> None:
    for name in ("lower", "upper"):
        (scratch / name).mkdir()
    (scratch / "lower/d").mkdir()
    (scratch / "lower/d/f").write_text("f")
    with unionfs.UnionFS([scratch / "lower"], scratch / "upper", redirect_dir=False) as fs:
        with pytest.raises(OSError) as caught:
            fs.rename("/d", "/e")
        assert caught.value.errno == errno.EXDEV
        fs.move("/d", "/e")
        assert fs.read_text("/e/f") == "f"
        assert not fs.exists("/d")

"""A union's life: which layers it takes, what it refuses, how it ends; and what layers_of tells."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unionfs
from unionfs import LayerError, LayerInfo, UnionError, UnionFS, UpperBusyError
from unionfs.layer.trees import Link


@pytest.fixture
def layers(scratch: Path) -> list[Path]:
    made = [scratch / name for name in "abc"]
    for layer in made:
        (layer / "d").mkdir(parents=True)
        (layer / "d" / layer.name).write_text(layer.name)
        (layer / "name").write_text(layer.name)
    (scratch / "upper").mkdir()
    return made


def test_lowers_are_topmost_first(layers: list[Path]) -> None:
    with UnionFS(layers) as fs:
        assert fs.read_text("/name") == "a"
        assert sorted(fs.listdir("/d")) == ["a", "b", "c"]
        for change in (lambda: fs.mkdir("/x"), lambda: fs.open("/name", "w"), lambda: fs.unlink("/name")):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EROFS
        assert not fs.access("/name", os.W_OK)
    with UnionFS(lower=[os.fsencode(layers[2]), str(layers[0])]) as fs:
        assert fs.read_text("name") == "c"


def test_the_work_directory_stands_beside_the_upper(layers: list[Path], scratch: Path) -> None:
    with UnionFS(layers, scratch / "upper") as fs:
        fs.write_text("/name", "new")
        assert (scratch / "upper.work").is_dir()
        assert (scratch / "upper/name").read_text() == "new"
    with UnionFS(layers, scratch / "upper", scratch / "elsewhere") as fs:
        assert fs.read_text("/name") == "new"
        assert (scratch / "elsewhere").is_dir()
    assert (layers[0] / "name").read_text() == "a"


def test_an_upper_alone_and_one_in_memory(layers: list[Path], scratch: Path) -> None:
    with UnionFS(upper=scratch / "upper") as fs:
        fs.makedirs("/a/b")
        assert list(fs.walk("/")) == [("/", ["a"], []), ("/a", ["b"], []), ("/a/b", [], [])]
    with UnionFS(layers, unionfs.MemoryLayer()) as fs:
        fs.rmtree("/d")
        fs.write_text("/name", "gone with the process")
    with UnionFS(layers) as fs:
        assert fs.read_text("/d/b") == "b"


@pytest.mark.parametrize(
    ("lower", "upper", "work", "number"),
    [
        (["none"], None, None, errno.ENOENT),
        (["a/name"], None, None, errno.ENOTDIR),
        (["a"], "none", None, errno.ENOENT),
        (["a"], "b/name", None, errno.ENOTDIR),
        (["a", "b"], "a", None, errno.EINVAL),
        (["a", "link"], "b", None, errno.EINVAL),
        (["a", "a"], None, None, errno.EINVAL),
        (["a", "link"], None, None, errno.EINVAL),
        (["upper/in"], "upper", None, errno.EINVAL),
        (["work/in"], "upper", "work", errno.EINVAL),
        (["work"], "upper", "work", errno.EINVAL),
        (["a"], "upper", "upper/work", errno.EINVAL),
        (["a"], "upper", "upper", errno.EINVAL),
    ],
)
def test_layers_that_can_not_work(
    layers: list[Path], scratch: Path, lower: list[str], upper: str | None, work: str | None, number: int
) -> None:
    (scratch / "link").symlink_to("a")
    (scratch / "upper/in").mkdir()
    (scratch / "work/in").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LayerError) as caught:
        UnionFS(
            [scratch / name for name in lower],
            None if upper is None else scratch / upper,
            None if work is None else scratch / work,
        )
    assert caught.value.errno == number
    assert str(caught.value.filename).startswith(str(scratch))
    assert isinstance(caught.value, UnionError)
    del caught
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    with UnionFS(layers, scratch / "upper"):
        pass  # Nothing is left locked.


def test_calls_that_can_not_work(layers: list[Path], scratch: Path) -> None:
    with pytest.raises(UnionError, match="needs a layer"):
        UnionFS()
    with pytest.raises(UnionError, match="work directory"):
        UnionFS(layers, work=scratch / "work")
    with pytest.raises(UnionError, match="work directory"):
        UnionFS(layers, unionfs.MemoryLayer(), scratch / "work")
    with pytest.raises(TypeError, match="list"):
        UnionFS(str(layers[0]))
    with pytest.raises(LayerError):
        UnionFS(layers, hide=[layers[1]])


@pytest.mark.root
def test_an_unreadable_layer(scratch: Path, layers: list[Path]) -> None:
    layers[1].chmod(0)
    code = f"""
import sys; sys.path.insert(0, {str(Path(unionfs.__file__).parent.parent)!r})
import os, unionfs
open_union = unionfs.UnionFS
os.chmod({str(scratch)!r}, 0o755)
os.setgid(12345); os.setuid(12345)
try: open_union([{str(layers[1])!r}])
except unionfs.LayerError as error: print(error.errno, error.filename)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EACCES), str(layers[1])]


def test_an_upper_has_one_union_at_a_time(layers: list[Path], scratch: Path) -> None:
    with UnionFS(layers, scratch / "upper") as fs:
        with pytest.raises(UpperBusyError) as caught:
            UnionFS(layers, scratch / "upper")
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(UpperBusyError):
            UnionFS(layers, scratch / "upper", scratch / "other")
        assert fs.read_text("/name") == "a"
    UnionFS(layers, scratch / "upper").close()


def test_an_upper_inside_a_lower_is_not_shown(scratch: Path) -> None:
    (scratch / "root/var/upper").mkdir(parents=True)
    (scratch / "root/var/secret").mkdir()
    (scratch / "root/etc").mkdir()
    upper = scratch / "root/var/upper"
    with UnionFS([scratch / "root"], upper, hide=[scratch / "root/var/secret"]) as fs:
        assert fs.listdir("/var") == []
        assert not fs.exists("/var/upper")
        fs.write_text("/etc/new", "x")
        fs.mkdir("/var/upper")
        assert fs.listdir("/var/upper") == []
        fs.commit()
        assert fs.listdir("/var") == ["upper"]
        assert fs.read_text("/etc/new") == "x"
    assert (upper / "etc").exists() is False


def test_the_end(layers: list[Path], scratch: Path) -> None:
    fs = UnionFS(layers, scratch / "upper")
    path = fs.path("/name")
    assert not fs.closed
    fs.close()
    fs.close()
    assert fs.closed
    assert "closed" in repr(fs)
    for use in (lambda: fs.stat("/name"), path.read_text, lambda: fs.listdir("/"), lambda: fs.mkdir("/x"), fs.sync):
        with pytest.raises(ValueError, match="closed union"):
            use()


def test_a_lost_union_is_told_and_closed(layers: list[Path], scratch: Path) -> None:
    def lose() -> None:
        UnionFS(layers, scratch / "upper").stat("/name")

    with pytest.warns(ResourceWarning, match="unclosed union"):
        lose()
    UnionFS(layers, scratch / "upper").close()


def test_paths_that_are_none(layers: list[Path]) -> None:
    with UnionFS(layers) as fs:
        for call in (fs.stat, fs.listdir, fs.lstat):
            with pytest.raises(ValueError, match="null"):
                call("/a\0b")
            with pytest.raises(TypeError):
                call(1.5)  # type: ignore[arg-type,call-overload]
        assert not fs.exists("/a\0b")
        for _ in range(3):
            assert not fs.exists("/" + "x" * 300)
            with pytest.raises(FileNotFoundError):
                fs.stat("")
            with pytest.raises(OSError, match="too long"):
                fs.stat("d/" * 2100)


def test_room(layers: list[Path]) -> None:
    with UnionFS(layers) as fs:
        assert fs.statvfs("/d").f_bsize == os.statvfs(layers[0]).f_bsize
        usage = fs.disk_usage("/")
        assert usage.total >= usage.used + usage.free > 0
        with pytest.raises(FileNotFoundError):
            fs.statvfs("/none")


@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_hard_links_of_a_layer_without_file_handles(scratch: Path, kind: str) -> None:
    """No index can hold them, and nobody has looked at the other names yet."""
    (scratch / "upper").mkdir()
    lower = unionfs.MemoryLayer.from_dict({"a": "data", "b": Link("a"), "d": {"c": Link("a")}})
    with UnionFS([lower], scratch / "upper" if kind == "directory" else unionfs.MemoryLayer()) as fs:
        fs.unlink("/a")
        assert fs.read_text("/b") == "data"
        assert fs.stat("/b").st_nlink == fs.stat("/d/c").st_nlink == 2
        fs.write_text("/b", "new")
        assert fs.read_text("/d/c") == "new"
        fs.unlink("/b")
        assert (fs.read_text("/d/c"), fs.stat("/d/c").st_nlink) == ("new", 1)
        fs.unlink("/d/c")
        assert fs.listdir("/d") == []


def brief(found: list[LayerInfo]) -> list[str]:
    words = []
    for info in found:
        word = f"{os.path.basename(info.label)}:{info.path} {info.kind}"
        word += " wins" * info.wins + " shows" * info.shows + " opaque" * info.opaque + " metacopy" * info.metacopy
        words.append(word + (f" -> {info.redirect}" if info.redirect else ""))
    return words


def test_which_layer_holds_what(layers: list[Path], scratch: Path) -> None:
    with UnionFS(layers, scratch / "upper") as fs:
        assert brief(fs.layers_of("/name")) == ["a:/name file wins shows", "b:/name file", "c:/name file"]
        assert brief(fs.layers_of("d")) == ["a:/d directory wins shows", "b:/d directory shows", "c:/d directory shows"]
        assert brief(fs.layers_of("/")) == [
            "upper:/ directory wins shows", "a:/ directory shows", "b:/ directory shows", "c:/ directory shows",
        ]  # fmt: skip
        fs.chmod("/d/b", 0o600)
        assert brief(fs.layers_of("/d/b")) == ["upper:/d/b file wins shows metacopy", "b:/d/b file shows"]
        fs.unlink("/name")
        assert brief(fs.layers_of("/name"))[:2] == ["upper:/name whiteout", "a:/name file"]
        fs.rename("/d", "/e")
        assert brief(fs.layers_of("/e"))[:2] == ["upper:/e directory wins shows -> /d", "a:/d directory shows"]
        fs.mkdir("/d")
        assert brief(fs.layers_of("/d"))[:2] == ["upper:/d directory wins shows opaque", "a:/d directory"]
        assert fs.layers_of("/none") == []
        with pytest.raises(FileNotFoundError) as caught:
            fs.layers_of("/none/x")
        assert caught.value.filename == "/none/x"


def test_every_name_of_the_package_is_there() -> None:
    assert set(unionfs.__all__) <= set(dir(unionfs))
    for name in unionfs.__all__:
        assert getattr(unionfs, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        unionfs.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_waits_for_nothing() -> None:
    code = "import sys, unionfs; print(*(name for name in sys.modules if name.startswith(('unionfs.', 'attr'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["unionfs.errors"]


def test_the_upper_directorys_own_age_is_no_change(scratch: Path) -> None:
    for layer in ("low", "up"):
        (scratch / layer).mkdir()
    os.utime(scratch / "low", ns=(0, 0))
    with UnionFS(lower=[scratch / "low"], upper=scratch / "up", work=scratch / "work") as fs:
        assert list(fs.diff()) == []

"""Another stack under a union that is in use."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.shaken import shake_union
from tests.support import make_scratch, remove_scratch
from unionfs import DirectoryLayer, LayerError, MemoryLayer, UnionError, UnionFS, UpperBusyError
from unionfs.layer.upper import UpperDirectory
from unionfs.types import RENAME_EXCHANGE
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.restack import restack


@pytest.fixture
def top() -> Iterator[Path]:
    directory = make_scratch()
    yield directory
    remove_scratch(directory)


def write(path: Path, data: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    return path


@pytest.fixture
def base(top: Path) -> Path:
    base = top / "base"
    write(base / "etc/hosts", "base")
    write(base / "etc/motd", "welcome")
    write(base / "usr/share/doc/readme", "read")
    write(base / "var/log/old", "old")
    (base / "usr/lib").mkdir()
    os.symlink("hosts", base / "etc/link")
    write(base / "usr/share/one", "linked")
    os.link(base / "usr/share/one", base / "usr/share/two")
    os.link(base / "usr/share/one", base / "var/three")
    return base


@pytest.fixture
def fs(top: Path, base: Path) -> Iterator[UnionFS]:
    (top / "upper0").mkdir()
    with UnionFS([base], top / "upper0") as fs:
        yield fs


def new_upper(top: Path, number: int = 1) -> Path:
    upper = top / f"upper{number}"
    upper.mkdir()
    return upper


def contents(fs: UnionFS) -> dict[str, object]:
    found: dict[str, object] = {}
    for parent, dirs, files in fs.walk("/"):
        for name in dirs:
            found[os.path.join(parent, name)] = None
        for name in files:
            path = os.path.join(parent, name)
            found[path] = fs.readlink(path) if fs.islink(path) else fs.read_text(path)
    return found


def numbers(fs: UnionFS) -> dict[str, int]:
    return {path: fs.lstat(path).st_ino for path in contents(fs)}


def change_much(fs: UnionFS) -> None:
    fs.write_text("/etc/hosts", "changed")
    fs.write_text("/etc/new", "new")
    fs.remove("/etc/motd")
    fs.rename("/usr/share/doc", "/usr/papers")
    fs.rmtree("/var/log")
    fs.makedirs("/srv/www/data")
    fs.write_text("/srv/www/data/index", "page")
    fs.write_text("/usr/share/two", "written")
    fs.chmod("/usr/lib", 0o700)


def test_the_tree_is_that_of_the_new_stack(fs: UnionFS, top: Path, base: Path) -> None:
    before, known = contents(fs), numbers(fs)
    device = fs.stat("/").st_dev
    change_much(fs)
    changed = contents(fs)
    fs.restack([base], new_upper(top))
    assert contents(fs) == before
    assert numbers(fs) == known
    assert fs.stat("/usr/lib").st_mode & 0o777 == 0o755
    assert fs.stat("/").st_dev == device
    with UnionFS([base], top / "upper0") as old:  # Its locks are free, and it has what it had.
        assert contents(old) == changed
    shutil.rmtree(top / "upper0")
    shutil.rmtree(top / "upper0.work")
    assert contents(fs) == before
    fs.write_text("/etc/hosts", "again")
    assert (top / "upper1/etc/hosts").read_text() == "again"
    assert (base / "etc/hosts").read_text() == "base"


def test_it_is_the_tree_that_opens_anew(fs: UnionFS, top: Path, base: Path) -> None:
    change_much(fs)
    fs.commit(top / "snapshot")
    fs.remove("/srv/www/data/index")
    fs.rename("/usr/papers", "/papers")
    contents(fs)
    fs.restack([top / "snapshot", base], new_upper(top))
    seen = contents(fs), numbers(fs), [fs.stat(path) for path in ("/", "/usr", "/usr/papers/readme")]
    change_much_more(fs)
    assert fs.listdir("/usr/papers") == ["readme"]
    again = contents(fs), numbers(fs)
    fs.close()
    with UnionFS([top / "snapshot", base], new_upper(top, 2)) as other:
        assert (contents(other), numbers(other)) == seen[:2]
        assert [other.stat(path) for path in ("/", "/usr", "/usr/papers/readme")] == seen[2]
    with UnionFS([top / "snapshot", base], top / "upper1") as other:
        assert (contents(other), numbers(other)) == again


def change_much_more(fs: UnionFS) -> None:
    """Changes that go by what is known of the layers below."""
    fs.remove("/etc/new")
    fs.write_text("/etc/motd", "back")
    fs.rename("/srv/www", "/srv/web")
    fs.rename("/usr/share/two", "/usr/share/four")
    fs.rmtree("/srv/web/data")
    fs.mkdir("/srv/web/data")


def test_directories_in_both_stay_the_same_node(fs: UnionFS, top: Path, base: Path) -> None:
    tree = fs.tree
    etc, share, lib = fs.node("/etc"), fs.node("/usr/share"), fs.node("/usr/lib")
    change_much(fs)
    www = fs.node("/srv/www")
    assert isinstance(www, DirNode)
    fs.restack([base], new_upper(top))
    assert [fs.node("/etc"), fs.node("/usr/share"), fs.node("/usr/lib")] == [etc, share, lib]
    assert tree.lookup(etc, b"hosts") is fs.node("/etc/hosts")
    assert www.dead
    with pytest.raises(FileNotFoundError):
        tree.lookup(www, b"data")
    assert tree.listdir(www) == []


def test_files_that_are_the_same_stay_and_others_are_dead(fs: UnionFS, top: Path, base: Path) -> None:
    tree = fs.tree
    readme, motd = fs.node("/usr/share/doc/readme"), fs.node("/etc/motd")
    fs.write_text("/etc/hosts", "changed")
    hosts = fs.node("/etc/hosts")
    assert isinstance(hosts, FileNode)
    fs.restack([base], new_upper(top))
    assert fs.node("/usr/share/doc/readme") is readme
    assert fs.node("/etc/motd") is motd
    assert fs.node("/etc/hosts") is not hosts
    assert hosts.dead
    with pytest.raises(FileNotFoundError):
        tree.stat(hosts)


def test_what_goes_has_a_last_word(fs: UnionFS, top: Path, base: Path) -> None:
    fs.tree.remembered = True
    change_much(fs)
    gone = [fs.node(path) for path in ("/etc/hosts", "/etc/new", "/srv", "/srv/www/data/index", "/usr/papers")]
    fs.restack([base], new_upper(top))
    for n in gone:
        assert fs.tree.stat(n).st_nlink == 0
        assert fs.tree.stat(n).st_ino == n.ino


def test_open_files_go_on(fs: UnionFS, top: Path, base: Path) -> None:
    fs.write_text("/etc/hosts", "changed")
    fs.chmod("/etc/motd", 0o600)  # a metacopy
    with (
        fs.open("/etc/hosts", "rb+", 0) as writer,
        fs.open("/etc/hosts", "rb", 0) as reader,
        fs.open("/etc/motd", "rb", 0) as metacopy,
        fs.open("/usr/share/doc/readme", "rb", 0) as same,
        fs.open("/etc/new", "xb+", 0) as new,
    ):
        fs.restack([base], new_upper(top))
        shutil.rmtree(top / "upper0")
        writer.write(b"written")
        assert reader.read() == b"written"
        assert metacopy.read() == b"welcome"
        assert same.read() == b"read"
        new.write(b"nameless")
        new.truncate(4)
        assert new.seek(0) == 0
        assert new.read() == b"name"
        assert fs.read_text("/etc/hosts") == "base"
        assert not fs.exists("/etc/new")
        assert fs.stat("/etc/motd").st_mode & 0o777 == 0o644
    assert not fs.tree.orphans
    assert not fs.tree.writers
    assert fs.read_text("/etc/hosts") == "base"


def test_metadata_of_open_files_go_on(fs: UnionFS, top: Path, base: Path) -> None:
    tree = fs.tree
    fs.write_text("/etc/hosts", "changed")
    fs.chmod("/etc/motd", 0o600)
    written, metacopy = fs.node("/etc/hosts"), fs.node("/etc/motd")
    handles = [tree.open(written, os.O_RDWR), tree.open(metacopy, os.O_RDONLY)]
    fs.restack([base], new_upper(top))
    shutil.rmtree(top / "upper0")
    for handle, size, mode in zip(handles, (7, 7), (0o644, 0o600), strict=True):
        st = handle.stat()
        assert (st.st_nlink, st.st_size, st.st_mode & 0o777) == (0, size, mode)
    tree.setattr(written, mode=0o640, mtime_ns=10**9)
    tree.setxattr(written, b"user.key", b"value")
    tree.setattr(metacopy, mode=0o611)
    assert handles[0].stat().st_mode & 0o777 == 0o640
    assert handles[0].stat().st_mtime == 1
    assert tree.getxattr(written, b"user.key") == b"value"
    assert handles[1].stat().st_mode & 0o777 == 0o611
    assert handles[1].pread(10, 0) == b"welcome"
    tree.setattr(written, size=2)
    assert handles[0].pread(10, 0) == b"ch"
    again = tree.open(written, os.O_RDWR)  # as by /proc/PID/fd
    again.pwrite(b"X", 0)
    assert handles[0].pread(10, 0) == b"Xh"
    for handle in [*handles, again]:
        handle.close()
    assert fs.stat("/etc/hosts").st_mode & 0o777 == 0o644
    assert fs.read_text("/etc/hosts") == "base"


def test_a_file_without_a_name_stays_without(fs: UnionFS, top: Path, base: Path) -> None:
    n, handle = fs.tree.tmpfile(fs.tree.root, 0o644, os.O_RDWR)
    handle.pwrite(b"nameless", 0)
    fs.restack([base], new_upper(top))
    assert handle.pread(10, 0) == b"nameless"
    with pytest.raises(FileNotFoundError):
        fs.tree.link(n, fs.tree.root, b"name")
    handle.close()


def test_names_of_hard_links_that_stay(fs: UnionFS, top: Path, base: Path) -> None:
    one = fs.node("/usr/share/one")
    assert fs.node("/usr/share/two") is one
    assert fs.node("/var/three") is one
    lower = top / "hides"
    write(lower / "usr/share/one", "another")
    fs.restack([lower, base], new_upper(top))
    assert fs.read_text("/usr/share/one") == "another"
    assert fs.node("/usr/share/two") is one
    assert fs.node("/var/three") is one
    assert not one.dead  # type: ignore[attr-defined]
    fs.write_text("/var/three", "changed")
    assert fs.read_text("/usr/share/two") == "changed"
    assert fs.read_text("/usr/share/one") == "another"


def test_hard_links_that_were_copied_up(fs: UnionFS, top: Path, base: Path) -> None:
    fs.listdir("/var")
    paths = "/usr/share/one", "/usr/share/two", "/var/three"
    one = fs.node(paths[0])
    assert all(fs.node(path) is one for path in paths)
    fs.write_text("/usr/share/one", "changed")  # "three" is in no directory of the upper, but in its index.
    assert fs.read_text("/var/three") == "changed"
    fs.restack([base], new_upper(top))
    assert [fs.read_text(path) for path in paths] == ["linked"] * 3
    assert len({fs.node(path) for path in paths}) == 1
    assert fs.stat(paths[0]).st_nlink == 3
    fs.write_text("/var/three", "again")
    assert [fs.read_text(path) for path in paths] == ["again"] * 3
    assert one.dead  # type: ignore[attr-defined]


def test_a_directory_of_the_same_name_has_its_own_number(fs: UnionFS, top: Path, base: Path) -> None:
    """Where one was renamed, and is back: two directories never have one number."""
    share, lib = fs.stat("/usr/share").st_ino, fs.stat("/usr/lib").st_ino
    for name in ("share", "lib"):
        fs.listdir(f"/usr/{name}")
    d = fs.node("/usr")
    assert isinstance(d, DirNode)
    fs.tree.rename(d, b"share", d, b"lib", RENAME_EXCHANGE)
    assert fs.stat("/usr/share").st_ino == lib
    fs.restack([base], new_upper(top))
    assert (fs.stat("/usr/share").st_ino, fs.stat("/usr/lib").st_ino) == (share, lib)
    assert fs.listdir("/usr/lib") == []


def test_a_directory_with_another_layer_on_top_keeps_its_number(fs: UnionFS, top: Path, base: Path) -> None:
    number = fs.stat("/etc").st_ino
    other = top / "other"
    write(other / "etc/more", "more")
    fs.restack([other, base], new_upper(top))
    assert fs.stat("/etc").st_ino == number
    fs.write_text("/etc/more", "changed")  # The number goes to the upper with it.
    assert fs.stat("/etc").st_ino == number
    fs.close()
    with UnionFS([other, base], top / "upper1") as again:
        assert again.stat("/etc").st_ino == number


def test_one_kind_becomes_another(fs: UnionFS, top: Path, base: Path) -> None:
    fs.listdir("/etc")
    other = top / "other"
    write(other / "etc/hosts/inside", "a directory now")
    write(other / "usr/lib", "a file now")
    write(other / "etc/link", "no link now")
    assert fs.listdir("/usr/lib") == []
    assert fs.read_text("/etc/link") == "base"
    fs.restack([other, base], new_upper(top))
    assert fs.listdir("/etc/hosts") == ["inside"]
    assert fs.read_text("/usr/lib") == "a file now"
    assert fs.read_text("/etc/link") == "no link now"


def test_layers_that_stay_are_not_opened_twice(fs: UnionFS, top: Path, base: Path) -> None:
    layer = fs.tree.resolver.layers[-1]
    entry = fs.commit(top / "snapshot")
    fs.restack([DirectoryLayer(top / "snapshot"), DirectoryLayer(base)], new_upper(top))
    assert fs.tree.resolver.layers[1:] == [entry.layer, layer]
    assert "3 layers" in repr(fs)
    assert str(top / "upper1") in repr(fs)


def test_a_layer_that_hides_something_else_is_another(top: Path) -> None:
    """An upper inside a lower is not shown; the next one neither."""
    base = top / "base"
    write(base / "file", "file")
    (base / "upper0").mkdir()
    (base / "upper1").mkdir()
    with UnionFS([base], base / "upper0") as fs:
        assert sorted(fs.listdir("/")) == ["file", "upper1"]
        fs.restack([base], base / "upper1")
        assert sorted(fs.listdir("/")) == ["file", "upper0", "upper0.work"]


def test_another_bottom(fs: UnionFS, top: Path, base: Path) -> None:
    root, device = fs.stat("/"), fs.stat("/etc").st_dev
    etc, motd = fs.node("/etc"), fs.node("/etc/motd")
    below, above = top / "below", top / "above"
    write(below / "etc/below", "below")
    write(above / "etc/above", "above")
    fs.restack([above, base, below], new_upper(top))
    assert sorted(fs.listdir("/etc")) == ["above", "below", "hosts", "link", "motd"]
    assert (fs.stat("/").st_ino, fs.stat("/").st_dev) == (root.st_ino, root.st_dev)
    assert fs.stat("/etc/below").st_dev == device
    assert fs.node("/etc") is etc
    assert fs.node("/etc/motd") is motd
    fs.restack([below], new_upper(top, 2))
    assert fs.listdir("/") == ["etc"]
    assert fs.listdir("/etc") == ["below"]
    assert fs.node("/etc") is etc
    assert fs.stat("/").st_dev == device


def test_the_same_layers_in_another_order(fs: UnionFS, top: Path, base: Path) -> None:
    other = top / "other"
    write(other / "etc/hosts", "other")
    write(other / "etc/own", "own")
    fs.restack([other, base], new_upper(top))
    own, hosts = fs.node("/etc/own"), fs.node("/etc/hosts")
    assert fs.read_text("/etc/hosts") == "other"
    fs.restack([base, other], new_upper(top, 2))
    assert fs.node("/etc/own") is own
    assert fs.read_text("/etc/hosts") == "base"
    assert fs.node("/etc/hosts") is not hosts


def test_redirects_to_another_layer(top: Path) -> None:
    """A directory merges from the same places, but not one below it."""
    one, two = top / "one", top / "two"
    write(one / "there/first", "1")
    write(two / "there/second", "2")
    (top / "upper0").mkdir()
    with UnionFS([one], top / "upper0") as fs:
        fs.mkdir("/own")
        fs.rename("/there", "/own/here")
        fs.commit(top / "moved")
        assert fs.listdir("/own/here") == ["first"]
        fs.restack([top / "moved", two], new_upper(top))
        assert fs.listdir("/own/here") == ["second"]
        assert fs.read_text("/own/here/second") == "2"


@pytest.mark.parametrize("seed", range(6))
def test_random_roll_backs(top: Path, seed: int) -> None:
    shake_union(top, seed, 30)


def test_metacopies_over_another_file(top: Path) -> None:
    """The metadata stand in the same place, the bytes do not."""
    one, two, meta = top / "one", top / "two", top / "meta"
    write(one / "file", "first")
    write(two / "file", "2")
    meta.mkdir()
    with UnionFS([one], meta) as fs:
        fs.chmod("/file", 0o640)
    with UnionFS([meta, one]) as fs:
        n = fs.node("/file")
        with fs.open("/file", "rb", 0) as file:
            fs.restack([meta, two], None)
            assert fs.node("/file") is not n
            assert fs.read_text("/file")[:1] == "2"
            assert file.read() == b"first"
            assert fs.stat("/file").st_mode & 0o777 == 0o640


def test_read_only_and_back(fs: UnionFS, top: Path, base: Path) -> None:
    with fs.open("/etc/hosts", "rb+", 0) as file:
        fs.restack([base], None)
        file.write(b"on")
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            fs.write_text("/etc/hosts", "no")
        assert "read-only" in repr(fs)
    fs.restack([base], new_upper(top))
    fs.write_text("/etc/hosts", "yes")
    assert fs.read_text("/etc/hosts") == "yes"


def test_memory(base: Path) -> None:
    with UnionFS([base], MemoryLayer()) as fs:
        known = contents(fs)
        change_much(fs)
        with fs.open("/etc/hosts", "rb", 0) as file:
            fs.restack([DirectoryLayer(base)], MemoryLayer())
            assert file.read() == b"changed"
        assert contents(fs) == known


def test_commit_and_history_go_on(fs: UnionFS, top: Path, base: Path) -> None:
    for i in range(3):
        fs.write_text("/etc/hosts", f"version {i}")
        fs.commit(top / f"layer{i}", message=f"number {i}")
    fs.restack([top / "layer1", top / "layer0", base], new_upper(top))
    assert [entry.comment for entry in fs.history()] == ["number 1", "number 0", ""]
    assert fs.read_text("/etc/hosts") == "version 1"
    assert list(fs.diff()) == []
    fs.write_text("/etc/hosts", "another way")
    fs.commit(top / "layer3", message="another way")
    assert [entry.comment for entry in fs.history()] == ["another way", "number 1", "number 0", ""]
    assert fs.read_text("/etc/hosts") == "another way"


def test_writers_that_a_commit_moved(fs: UnionFS, top: Path, base: Path) -> None:
    """A roll-back as containers do it: what changed is a snapshot, and who writes goes on, nameless."""
    with fs.open("/etc/hosts", "w", 1) as file:
        file.write("before\n")
        fs.commit(top / "snapshot")
        file.write("after\n")
        fs.restack([base], new_upper(top))
        file.write("nameless\n")
        assert fs.read_text("/etc/hosts") == "base"
    assert (top / "snapshot/etc/hosts").read_text() == "before\n"
    assert fs.read_text("/etc/hosts") == "base"


# What does not go


def state(fs: UnionFS) -> list[object]:
    tree = fs.tree
    return [repr(fs), contents(fs), tree.upper, list(tree.resolver.layers), fs.node("/etc"), fs.node("/etc/hosts")]


def test_a_failure_changes_nothing(fs: UnionFS, top: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_much(fs)
    before = state(fs)
    upper = new_upper(top)
    layer = UpperDirectory(upper, top / "upper1.work")
    scan = UpperDirectory.scan

    def fails(self: UpperDirectory, d: object) -> dict[bytes, int]:
        if self is layer and d is layer.root:
            raise OSError(errno.EIO, "broken")
        return scan(self, d)  # type: ignore[arg-type]

    monkeypatch.setattr(UpperDirectory, "scan", fails)
    with pytest.raises(OSError, match="broken"):
        fs.restack([base], layer)
    assert state(fs) == before
    monkeypatch.undo()
    fs.write_text("/etc/hosts", "still ours")
    assert (top / "upper0/etc/hosts").read_text() == "still ours"
    fs.restack([base], layer)
    assert fs.read_text("/etc/hosts") == "base"


class Refuses:
    """A follower that can't."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.told: Sequence[tuple[Node, bytes | None]] = []

    def before(self, names: Sequence[tuple[DirNode, bytes]]) -> None:
        self.asked = [name for _, name in names]
        raise OSError(errno.EBUSY, "not now")

    def after(self, told: Sequence[tuple[Node, bytes | None]]) -> None:
        self.told = told


def test_a_follower_may_refuse(fs: UnionFS, top: Path, base: Path) -> None:
    change_much(fs)
    before = state(fs)
    follower = Refuses()
    fs.tree.follow(follower)
    with pytest.raises(OSError, match="not now"):
        fs.restack([base], new_upper(top))
    assert {b"hosts", b"new", b"motd"} <= set(follower.asked)
    assert b"link" not in follower.asked
    assert not follower.told
    assert state(fs) == before
    fs.tree.unfollow(follower)
    fs.restack([base], top / "upper1")  # It was not left locked.


def test_stacks_that_can_not_be(fs: UnionFS, top: Path, base: Path) -> None:
    before = state(fs)
    upper = new_upper(top)
    with pytest.raises(UpperBusyError):
        fs.restack([base], top / "upper0")
    with pytest.raises(LayerError, match="before it is frozen"):
        fs.restack([top / "upper0", base], upper)
    with pytest.raises(LayerError, match="given twice"):
        fs.restack([base, base], upper)
    layer = fs.tree.resolver.layers[-1]
    with pytest.raises(LayerError, match="given twice"):
        restack(fs.tree, [layer, layer], None)
    with pytest.raises(LayerError, match="not usable"):
        fs.restack([top / "missing"], upper)
    with pytest.raises(UnionError, match="needs a layer"):
        fs.restack([], None)
    fs.tree.lent = "somebody has it"
    with pytest.raises(OSError, match="somebody has it"):
        fs.restack([base], upper)
    fs.tree.lent = None
    assert state(fs) == before
    fs.close()
    with pytest.raises(ValueError, match="closed"):
        fs.restack([base], upper)
    with UnionFS([base], upper):
        pass

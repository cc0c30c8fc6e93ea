"""What every union promises, as tests, whatever its layers are.

Who writes a layer subclasses the suite and says how a union of such layers is made::

    class TestUnionOfZips(UnionSuite):
        @pytest.fixture
        def make_union(self, tmp_path):
            return lambda lowers: UnionFS([ZipLayer(write_zip(tmp_path, tree)) for tree in lowers], MemoryLayer())

``lowers`` are ``unionfs.layer.trees.Tree`` values, the topmost first. The upper is empty.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import ClassVar, TypeAlias

import pytest

from unionfs.layer.protocol import Marks
from unionfs.layer.trees import WHITEOUT, Entry, Link, Tree, symlink
from unionfs.testing.operations import Operations
from unionfs.testing.oracle import Duel
from unionfs.testing.surfaces import HostSurface, PathSurface, TreeSurface
from unionfs.union.fs import UnionFS

MakeUnion: TypeAlias = Callable[[Sequence[Tree]], UnionFS]

OLD = 1_000_000_000 * 1_000_000_000


@contextmanager
def fails(number: int) -> Iterator[None]:
    """The block raises ``OSError`` with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        yield
    assert caught.value.errno == number, caught.value


LOWERS: list[Tree] = [
    {
        "etc": {"hosts": b"top", "gone": WHITEOUT, "new": b"new"},
        "opaque": Entry(stat.S_IFDIR | 0o755, {"shown": b"1"}, marks=Marks(opaque=True)),
        "file-over-dir": b"file",
        "dir-over-file": {"inside": b"i"},
        "a": b"linked",
        "links": {"b": Link("a")},
    },
    {
        "etc": {"hosts": b"middle", "gone": b"gone", "passwd": Entry(stat.S_IFREG | 0o640, b"passwd", mtime_ns=OLD)},
        "opaque": {"hidden": b"2"},
        "file-over-dir": {"hidden": b"h"},
        "dir-over-file": b"hidden",
        "absolute": symlink("/etc/passwd"),
        "out": symlink("../../../../etc/passwd"),
        "loop": symlink("loop"),
        "dangling": symlink("nowhere/at/all"),
    },
    {
        "etc": {"hosts": b"bottom", "group": b"group", "sub": {"deep": {"x": b"x"}}},
        "opaque": {"hidden too": b"3"},
        "dir-over-file": {"hidden": b"4"},
        b"\xff\xfe": b"not UTF-8",
        "n" * 255: b"long",
    },
]


class UnionSuite:
    """A union of three lowers and an upper. A subclass gives ``make_union``."""

    is_exact: ClassVar[bool] = True
    """Sockets, owners and attributes are those of a file system: the oracle may compare all of them."""

    @pytest.fixture
    def make_union(self) -> MakeUnion:
        """A function that makes a union over lower trees."""
        raise NotImplementedError

    @pytest.fixture
    def fs(self, make_union: MakeUnion) -> Iterator[UnionFS]:
        union = make_union(LOWERS)
        yield union
        union.close()

    # Reading

    def test_the_topmost_wins(self, fs: UnionFS) -> None:
        assert fs.read_bytes("/etc/hosts") == b"top"
        assert fs.read_bytes("/etc/passwd") == b"passwd"
        assert fs.read_bytes("/etc/group") == b"group"
        assert fs.read_bytes("/file-over-dir") == b"file"

    def test_directories_merge(self, fs: UnionFS) -> None:
        assert sorted(fs.listdir("/etc")) == ["group", "hosts", "new", "passwd", "sub"]
        assert fs.listdir("/dir-over-file") == ["inside"]

    def test_whiteouts_and_opaque_directories_hide(self, fs: UnionFS) -> None:
        assert not fs.lexists("/etc/gone")
        assert fs.listdir("/opaque") == ["shown"]
        with fails(errno.ENOENT):
            fs.stat("/opaque/hidden")
        with fails(errno.ENOTDIR):
            fs.stat("/file-over-dir/hidden")

    def test_links_stay_inside(self, fs: UnionFS) -> None:
        assert fs.read_bytes("/absolute") == fs.read_bytes("/out") == b"passwd"
        with fails(errno.ELOOP):
            fs.stat("/loop")
        with fails(errno.ENOENT):
            fs.stat("/dangling")

    def test_names(self, fs: UnionFS) -> None:
        assert fs.read_bytes(b"/\xff\xfe") == b"not UTF-8"
        assert fs.read_bytes("/" + "n" * 255) == b"long"
        for call in (lambda: fs.stat("/" + "n" * 256), lambda: fs.mkdir("/" + "n" * 256)):
            with fails(errno.ENAMETOOLONG):
                call()

    def test_listings_agree(self, fs: UnionFS) -> None:
        surface = PathSurface(fs)
        pending = [b""]
        while pending:
            path = pending.pop()
            for name, kind in surface.listdir(path).items():
                child = path + b"/" + name if path else name
                assert surface.lstat(child).st_mode >> 12 == kind
                assert fs.lstat(b"/" + child).st_ino
                if stat.S_ISDIR(kind << 12):
                    pending.append(child)

    # Changes

    def test_copy_up_keeps_identity_and_metadata(self, fs: UnionFS) -> None:
        before = fs.stat("/etc/passwd")
        fs.chmod("/etc/passwd", 0o600)
        after = fs.stat("/etc/passwd")
        assert (after.st_ino, after.st_dev, after.st_mtime_ns) == (before.st_ino, before.st_dev, before.st_mtime_ns)
        assert stat.S_IMODE(after.st_mode) == 0o600
        with fs.open("/etc/passwd", "ab") as file:
            file.write(b"+")
        assert fs.read_bytes("/etc/passwd") == b"passwd+"
        assert fs.stat("/etc/passwd").st_ino == before.st_ino

    def test_hard_links_stay(self, fs: UnionFS) -> None:
        assert fs.stat("/a").st_nlink == 2
        with fs.open("/links/b", "ab") as file:
            file.write(b"+")
        assert fs.read_bytes("/a") == b"linked+"
        assert fs.samefile("/a", "/links/b")
        fs.unlink("/a")
        assert fs.stat("/links/b").st_nlink == 1

    def test_deleted_and_made_again(self, fs: UnionFS) -> None:
        fs.unlink("/etc/hosts")
        with fails(errno.ENOENT):
            fs.stat("/etc/hosts")
        assert "hosts" not in fs.listdir("/etc")
        fs.write_bytes("/etc/hosts", b"again")
        assert fs.read_bytes("/etc/hosts") == b"again"
        fs.rmtree("/etc")
        fs.mkdir("/etc")
        assert fs.listdir("/etc") == []

    def test_directories_move(self, fs: UnionFS) -> None:
        ino = fs.stat("/etc/sub/deep/x").st_ino
        fs.rename("/etc", "/moved")
        assert sorted(fs.listdir("/moved")) == ["group", "hosts", "new", "passwd", "sub"]
        assert fs.stat("/moved/sub/deep/x").st_ino == ino
        fs.mkdir("/etc")
        assert fs.listdir("/etc") == []
        with fails(errno.EINVAL):
            fs.rename("/moved", "/moved/sub/below")
        with fails(errno.EEXIST):
            fs.rename("/moved", "/etc", noreplace=True)
        fs.exchange("/moved", "/file-over-dir")
        assert fs.read_bytes("/moved") == b"file"
        assert fs.read_bytes("/file-over-dir/hosts") == b"top"

    def test_open_files_outlive_their_names(self, fs: UnionFS) -> None:
        with fs.open("/etc/hosts", "rb", buffering=0) as reader, fs.open("/etc/group", "r+b", buffering=0) as writer:
            fs.unlink("/etc/hosts")
            fs.rename("/etc/new", "/etc/group")
            writer.write(b"more")
            writer.seek(0)
            assert writer.read() == b"morep"
            assert reader.read() == b"top"
        assert fs.read_bytes("/etc/group") == b"new"

    def test_a_reader_reads_what_is_written_later(self, fs: UnionFS) -> None:
        tree = fs.tree
        node = tree.resolve(b"/etc/hosts")
        reader = tree.open(node, os.O_RDONLY)
        writer = tree.open(node, os.O_WRONLY)
        writer.pwrite(b"TOP", 0)
        assert reader.pread(10, 0) == b"TOP"
        writer.close()
        reader.close()

    def test_errors_name_the_path(self, fs: UnionFS) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            fs.stat("/etc/nothing")
        assert caught.value.filename == "/etc/nothing"

    def test_diff_tells_what_changed_and_nothing_else(self, fs: UnionFS) -> None:
        def told() -> list[tuple[str, str]]:
            # The upper's root is the union's; whether it differs from the lower's is for who made it to say.
            return sorted((change.kind, os.fsdecode(change.path)) for change in fs.diff() if change.path != "/")

        assert told() == []
        fs.write_bytes("/etc/hosts", b"changed")
        fs.unlink("/etc/group")
        fs.mkdir("/made")
        fs.chmod("/etc/passwd", 0o600)
        fs.chmod("/etc/passwd", 0o640)  # and back
        assert told() == [
            ("added", "/made"),
            ("changed", "/etc/hosts"),
            ("deleted", "/etc/group"),
        ]

    def test_commit_goes_on(self, fs: UnionFS) -> None:
        fs.write_bytes("/etc/hosts", b"first")
        with fs.open("/etc/group", "r+b", buffering=0) as writer:
            writer.write(b"GR")
            fs.commit()
            writer.write(b"OUP")
        assert fs.read_bytes("/etc/group") == b"GROUP"
        assert fs.read_bytes("/etc/hosts") == b"first"
        fs.unlink("/etc/hosts")
        assert not fs.exists("/etc/hosts")
        assert [os.fsdecode(change.path) for change in fs.diff()] == ["/etc/group", "/etc/hosts"]

    # Everything at once

    @pytest.mark.parametrize("door", [PathSurface, lambda fs: TreeSurface(fs.tree)], ids=["paths", "core"])
    def test_oracle(self, make_union: MakeUnion, tmp_path: Path, door: Callable[[UnionFS], TreeSurface]) -> None:
        for seed in range(8):
            reference = HostSurface(tmp_path / str(seed))
            os.mkdir(reference.root)
            fs = make_union([{}, {}, {}])
            subject = door(fs)
            for surface in (reference, subject):
                surface.chmod(b"", 0o755)
                surface.chown(b"", os.geteuid(), os.getegid())
                surface.utime(b"", OLD, OLD)
            duel = Duel(reference, subject, commit=lambda fs=fs: fs.commit() and None)  # type: ignore[misc]
            root = os.geteuid() == 0 and self.is_exact
            operations = Operations(Random(seed), reference, root=root, remounts=False, commits=True)
            for _ in range(80):
                duel.step(operations.next())
            duel.compare()
            duel.close()
            fs.close()

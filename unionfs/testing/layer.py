"""What every layer promises (``unionfs.layer.protocol``), as tests.

A layer's author subclasses a suite and says how a layer is made::

    class TestZipLayer(LayerSuite):
        @pytest.fixture
        def make_layer(self, tmp_path):
            return lambda tree: ZipLayer(write_zip(tmp_path / "layer.zip", tree))

    class TestMyUpper(WritableLayerSuite):
        @pytest.fixture
        def make_empty(self, tmp_path):
            return lambda: MyUpper(tmp_path)

``tree`` is a ``unionfs.layer.trees.Tree``. What the machine or the format can't do is said by the class attributes.
``WritableLayerSuite`` stands in ``unionfs.testing.writable``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, TypeAlias

import pytest

from unionfs.layer import whiteout
from unionfs.layer.protocol import (
    DT_BLK,
    DT_CHR,
    DT_DIR,
    DT_FIFO,
    DT_LNK,
    DT_REG,
    DT_SOCK,
    DT_WHT,
    NO_MARKS,
    Layer,
    LayerDir,
    Marks,
    WritableLayer,
)
from unionfs.layer.trees import WHITEOUT, Entry, Link, Tree, symlink

MakeLayer: TypeAlias = Callable[[Tree], Layer]
MakeEmpty: TypeAlias = Callable[[], WritableLayer]

SECOND = 1_000_000_000
OLD = 1_000_000_000 * SECOND + 123_456_789
"""A time in the past, with nanoseconds."""

ODD_NAMES = (b"\xff\xfe latin", b"n" * 255, b"new\nline", b" ", b"-rf", "\N{SNOWMAN}".encode(), b".wh", b"a\\b", b"#0")


@contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """The block raises ``OSError`` with one of these errnos."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        yield
    got = caught.value.errno
    assert got in numbers, f"{errno.errorcode.get(got or 0)}, not {[errno.errorcode[n] for n in numbers]}"


def read(layer: Layer, d: LayerDir, name: bytes) -> bytes:
    """All bytes of a file of a layer."""
    file = layer.open(d, name, os.O_RDONLY)
    try:
        return file.pread(file.stat().st_size + 1, 0)
    finally:
        file.close()


def write(layer: WritableLayer, d: LayerDir, name: bytes, data: bytes) -> None:
    """A new file with these bytes."""
    file = layer.create(d, name, 0o644)
    assert file.pwrite(data, 0) == len(data)
    file.close()


def check_agreement(layer: Layer, d: LayerDir | None = None) -> int:
    """``scan`` ≡ ``kind`` ≡ ``stat`` ≡ what else tells the kind, in the whole of ``layer``. The number of entries."""
    pending = [d or layer.root]
    seen = 0
    inodes: dict[int, int] = {}
    while pending:
        d = pending.pop()
        for name, dt in layer.scan(d).items():
            seen += 1
            assert layer.kind(d, name) == dt
            st = layer.stat(d, name)
            if dt == DT_WHT:
                assert not layer.listxattr(d, name)
                continue
            assert st.st_mode >> 12 == dt
            assert inodes.setdefault(st.st_ino, dt) == dt
            layer.marks(d, name)
            for key in layer.listxattr(d, name):
                layer.getxattr(d, name, key)
            if dt == DT_LNK:
                assert len(layer.readlink(d, name)) == st.st_size
            elif dt == DT_REG:
                assert len(read(layer, d, name)) == st.st_size
                file = layer.open(d, name, os.O_RDONLY)
                opened = file.stat()
                file.close()
                fields = ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size", "st_mtime_ns")
                assert [getattr(opened, field) for field in fields] == [getattr(st, field) for field in fields]
            elif dt == DT_DIR:
                pending.append(d.child(name))
    return seen


class LayerSuite:
    """One layer, read. A subclass gives ``make_layer``."""

    has_devices: ClassVar[bool] = True
    """Trees may hold block and character devices."""
    has_owners: ClassVar[bool] = True
    """Trees may hold other people's files."""
    has_real_owners: ClassVar[bool] = True
    """Owners are not only recorded beside files: links and FIFOs have them, and groups are inherited."""
    has_trusted: ClassVar[bool] = True
    """Trees may hold ``trusted.*`` attributes."""
    user_marks: ClassVar[bool] = False
    """Marks are ``user.*`` attributes: symbolic links and special files can't carry one (xattr(7))."""

    @pytest.fixture
    def make_layer(self) -> MakeLayer:
        """A function that makes a layer from a tree."""
        raise NotImplementedError

    def test_is_a_layer(self, make_layer: MakeLayer) -> None:
        layer = make_layer({})
        assert isinstance(layer, Layer)
        assert layer.label
        assert isinstance(layer.has_inos, bool)
        assert layer.root.parent is None
        assert layer.root.layer is layer
        assert stat.S_ISDIR(layer.stat(layer.root, b".").st_mode)
        assert layer.kind(layer.root, b".") == DT_DIR
        assert layer.scan(layer.root) == {}
        layer.close()

    def test_each_kind(self, make_layer: MakeLayer) -> None:
        tree: dict[str, Entry | dict[str, bytes] | bytes] = {
            "dir": {},
            "file": b"data",
            "empty": b"",
            "link": symlink("no/such"),
            "fifo": Entry(stat.S_IFIFO | 0o640),
            "sock": Entry(stat.S_IFSOCK | 0o600),
            "gone": WHITEOUT,
        }
        kinds = {b"dir": DT_DIR, b"file": DT_REG, b"empty": DT_REG, b"link": DT_LNK, b"fifo": DT_FIFO, b"sock": DT_SOCK}
        kinds[b"gone"] = DT_WHT
        if self.has_devices:
            tree["null"] = Entry(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
            tree["disk"] = Entry(stat.S_IFBLK | 0o660, rdev=os.makedev(259, 70000))
            kinds |= {b"null": DT_CHR, b"disk": DT_BLK}
        layer = make_layer(tree)
        assert layer.scan(layer.root) == kinds
        assert check_agreement(layer) == len(kinds)
        assert layer.stat(layer.root, b"fifo").st_mode == stat.S_IFIFO | 0o640
        if self.has_devices:
            assert layer.stat(layer.root, b"null").st_rdev == os.makedev(1, 3)
            assert layer.stat(layer.root, b"disk").st_rdev == os.makedev(259, 70000)

    def test_scan_is_the_callers(self, make_layer: MakeLayer) -> None:
        layer = make_layer({"a": b""})
        layer.scan(layer.root).clear()
        assert layer.scan(layer.root) == {b"a": DT_REG}

    def test_missing_names(self, make_layer: MakeLayer) -> None:
        layer = make_layer({"file": b"", "link": symlink("dir"), "dir": {}})
        root = layer.root
        assert layer.kind(root, b"none") is None
        assert layer.kind(root.child(b"none"), b"x") is None
        assert layer.kind(root.child(b"file"), b"x") is None
        for call in (layer.stat, layer.readlink, layer.marks, layer.listxattr):
            with fails(errno.ENOENT):
                call(root, b"none")
        with fails(errno.ENOENT):
            layer.open(root, b"none", os.O_RDONLY)
        with fails(errno.ENOENT):
            layer.scan(root.child(b"none"))
        for name in (b"file", b"link"):
            with fails(errno.ENOTDIR):
                layer.scan(root.child(name))
            with fails(errno.ENOTDIR):
                layer.stat(root.child(name), b"x")

    def test_names_too_long(self, make_layer: MakeLayer) -> None:
        layer = make_layer({})
        with fails(errno.ENAMETOOLONG):
            layer.stat(layer.root, b"n" * 256)
        with fails(errno.ENAMETOOLONG):
            layer.open(layer.root, b"n" * 256, os.O_RDONLY)

    def test_what_can_not_be_opened(self, make_layer: MakeLayer) -> None:
        layer = make_layer({"dir": {}, "link": symlink("file"), "file": b"", "fifo": Entry(stat.S_IFIFO | 0o600)})
        with fails(errno.EISDIR):
            layer.open(layer.root, b"dir", os.O_RDONLY)
        with fails(errno.ELOOP):
            layer.open(layer.root, b"link", os.O_RDONLY)
        with fails(errno.ENXIO):
            layer.open(layer.root, b"fifo", os.O_RDONLY)
        with fails(errno.EINVAL):
            layer.readlink(layer.root, b"file")

    def test_links_are_not_followed(self, make_layer: MakeLayer) -> None:
        layer = make_layer(
            {"to-dir": symlink("dir"), "dir": {"x": b""}, "out": symlink("/etc"), "up": symlink("../..")}
        )
        for name in (b"to-dir", b"out", b"up"):
            assert stat.S_ISLNK(layer.stat(layer.root, name).st_mode)
            assert layer.kind(layer.root.child(name), b"x") is None
            assert layer.kind(layer.root.child(name), b"passwd") is None

    def test_content(self, make_layer: MakeLayer) -> None:
        data = bytes(range(256)) * 100
        layer = make_layer({"a/b/file": data, "link": symlink(b"\xff/x")})
        d = layer.root.child(b"a").child(b"b")
        assert d.path == b"/a/b"
        assert read(layer, d, b"file") == data
        file = layer.open(d, b"file", os.O_RDONLY)
        assert file.pread(10, 250) == data[250:260]
        assert file.pread(100, len(data) - 3) == data[-3:]
        assert file.pread(10, len(data)) == b""
        assert file.pread(10, len(data) + 99999) == b""
        assert file.pread(0, 0) == b""
        assert file.seek(0, os.SEEK_DATA) == 0
        assert file.seek(0, os.SEEK_HOLE) == len(data)
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with fails(errno.ENXIO):
                file.seek(len(data), whence)
        assert file.stat().st_size == len(data)
        file.close()
        with fails(errno.EBADF):
            file.pread(1, 0)
        assert layer.readlink(layer.root, b"link") == b"\xff/x"

    def test_file_outlives_its_layer(self, make_layer: MakeLayer) -> None:
        layer = make_layer({"file": b"data"})
        file = layer.open(layer.root, b"file", os.O_RDONLY)
        layer.close()
        assert file.pread(4, 0) == b"data"

    def test_descriptor_reads_the_same(self, make_layer: MakeLayer) -> None:
        layer = make_layer({"file": b"data"})
        file = layer.open(layer.root, b"file", os.O_RDONLY)
        fd = file.fileno()
        if fd is not None:
            assert os.pread(fd, 9, 0) == b"data"
            assert not os.get_inheritable(fd)

    def test_metadata(self, make_layer: MakeLayer) -> None:
        layer = make_layer(
            {
                "file": Entry(stat.S_IFREG | 0o4711, b"x", mtime_ns=OLD),
                "dir": Entry(stat.S_IFDIR | 0o1750, {"below": b""}, mtime_ns=-OLD),
                "link": Entry(stat.S_IFLNK | 0o777, b"t", mtime_ns=OLD + 1),
                "secret": Entry(stat.S_IFREG | 0o400, b"s"),
            }
        )
        st = layer.stat(layer.root, b"file")
        assert (st.st_mode, st.st_size, st.st_nlink) == (stat.S_IFREG | 0o4711, 1, 1)
        assert (st.st_mtime_ns, st.st_atime_ns, int(st.st_mtime)) == (OLD, OLD, OLD // SECOND)
        st = layer.stat(layer.root, b"dir")
        assert (st.st_mode, st.st_mtime_ns) == (stat.S_IFDIR | 0o1750, -OLD)
        assert layer.stat(layer.root.child(b"dir"), b".").st_ino == st.st_ino
        assert layer.stat(layer.root, b"link").st_mtime_ns == OLD + 1
        assert layer.stat(layer.root, b"secret").st_mode == stat.S_IFREG | 0o400
        assert read(layer, layer.root, b"secret") == b"s"
        check_agreement(layer)

    def test_owners(self, make_layer: MakeLayer) -> None:
        if not self.has_owners:
            pytest.skip("not applicable: no owners")
        kinds = {"file": stat.S_IFREG | 0o640, "dir": stat.S_IFDIR | 0o711, "fifo": stat.S_IFIFO | 0o604}
        if not self.has_real_owners:
            del kinds["fifo"]
        layer = make_layer(
            {name: Entry(mode, {} if name == "dir" else b"", uid=1234, gid=70000) for name, mode in kinds.items()}
        )
        for name, mode in kinds.items():
            st = layer.stat(layer.root, name.encode())
            assert (st.st_uid, st.st_gid, st.st_mode) == (1234, 70000, mode)
        check_agreement(layer)

    def test_hard_links(self, make_layer: MakeLayer) -> None:
        layer = make_layer({"a": b"same", "dir": {"b": Link("a")}, "c": b"same"})
        a, b, c = layer.stat(layer.root, b"a"), layer.stat(layer.root.child(b"dir"), b"b"), layer.stat(layer.root, b"c")
        assert a.st_ino == b.st_ino != c.st_ino
        assert (a.st_nlink, b.st_nlink, c.st_nlink) == (2, 2, 1)

    def test_names(self, make_layer: MakeLayer) -> None:
        layer = make_layer({"dir": dict.fromkeys(ODD_NAMES, b"x")})
        d = layer.root.child(b"dir")
        assert set(layer.scan(d)) == set(ODD_NAMES)
        for name in ODD_NAMES:
            assert read(layer, d, name) == b"x"
        check_agreement(layer)

    def test_xattrs(self, make_layer: MakeLayer) -> None:
        mine = {
            "user.a": b"1",
            "user.bin": bytes(range(256)),
            "user.empty": b"",
            os.fsdecode(whiteout.USER + whiteout.OPAQUE): b"mine",
        }
        if self.has_trusted:
            mine |= {"trusted.overlay.x": b"2", "trusted.b": b"3", "trusted.overlay.overlay.y": b"4"}
        layer = make_layer(
            {
                "file": Entry(stat.S_IFREG | 0o644, b"", xattrs=mine, marks=Marks(metacopy=True, redirect=b"/r")),
                "dir": Entry(stat.S_IFDIR | 0o755, {}, xattrs=mine, marks=Marks(opaque=True)),
                "plain": b"",
            }
        )
        for name in (b"file", b"dir"):
            found = {
                os.fsdecode(key): layer.getxattr(layer.root, name, key) for key in layer.listxattr(layer.root, name)
            }
            assert {key: value for key, value in found.items() if not key.startswith("security.")} == mine
        with fails(errno.ENODATA):
            layer.getxattr(layer.root, b"plain", b"user.a")
        with fails(errno.ENODATA):
            layer.getxattr(layer.root, b"plain", whiteout.USER + whiteout.METACOPY)
        d = layer.root.child(b"dir")
        assert layer.getxattr(d, b".", b"user.a") == b"1"

    def test_marks(self, make_layer: MakeLayer) -> None:
        wanted = {
            b"opaque": Marks(opaque=True),
            b"moved": Marks(redirect=b"/a/b\xff"),
            b"named": Marks(redirect=b"old", opaque=True),
        }
        tree = {name: Entry(stat.S_IFDIR | 0o755, {}, marks=marks) for name, marks in wanted.items()}
        tree[b"meta"] = Entry(stat.S_IFREG | 0o644, b"", marks=Marks(metacopy=True, redirect=b"/x", nlink=b"U+1"))
        tree[b"plain"] = Entry(stat.S_IFREG | 0o644)
        layer = make_layer(tree)
        for name, marks in wanted.items():
            assert layer.marks(layer.root, name) == marks
            assert layer.marks(layer.root.child(name), b".") == marks
        assert layer.marks(layer.root, b"meta") == Marks(metacopy=True, redirect=b"/x", nlink=b"U+1")
        assert layer.marks(layer.root, b"plain") == NO_MARKS
        for name in (*wanted, b"meta", b"plain"):
            assert not layer.listxattr(layer.root, name)

    def test_no_writing_where_there_is_none(self, make_layer: MakeLayer) -> None:
        layer = make_layer({"file": b"data"})
        if isinstance(layer, WritableLayer):
            pytest.skip("not applicable: writable")
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            with fails(errno.EROFS):
                layer.open(layer.root, b"file", flags)
        assert read(layer, layer.root, b"file") == b"data"

    def test_wide(self, make_layer: MakeLayer) -> None:
        layer = make_layer({f"{n:04}": b"" for n in range(2000)})
        assert len(layer.scan(layer.root)) == 2000

    def test_deep(self, make_layer: MakeLayer) -> None:
        name, levels = "d" * 100, 60
        tree: Tree = {"bottom": b"here"}
        for _ in range(levels):
            tree = {name: tree}
        layer = make_layer(tree)
        d = layer.root
        for _ in range(levels):
            assert layer.scan(d) == {name.encode(): DT_DIR}
            d = d.child(name.encode())
        assert len(d.path) > 4096
        assert read(layer, d, b"bottom") == b"here"
        again = layer.root
        for _ in range(levels):
            again = again.child(name.encode())
        assert layer.stat(again, b"bottom").st_size == 4

    def test_statvfs(self, make_layer: MakeLayer) -> None:
        found = make_layer({}).statvfs()
        assert found.f_namemax == 255
        assert found.f_blocks >= found.f_bfree >= found.f_bavail
        assert found.f_bsize > 0

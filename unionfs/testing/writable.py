"""What every writable layer promises (``WritableLayer``), as tests; ``unionfs.testing.layer`` tells how to run them."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Iterator

import pytest

from unionfs._sys.rename import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from unionfs.layer.protocol import (
    DT_DIR,
    DT_LNK,
    DT_REG,
    DT_WHT,
    WritableLayer,
)
from unionfs.layer.trees import WHITEOUT, Entry, Tree, populate, symlink
from unionfs.testing.layer import OLD, LayerSuite, MakeEmpty, MakeLayer, fails, read, write
from unionfs.testing.writable_metadata import MetadataTests

PUNCH_HOLE, KEEP_SIZE = 2, 1


class WritableLayerSuite(MetadataTests, LayerSuite):
    """The upper. A subclass gives ``make_empty``; each call of it makes a new layer."""

    @pytest.fixture
    def make_empty(self) -> MakeEmpty:
        """A function that makes an empty writable layer."""
        raise NotImplementedError

    @pytest.fixture
    def make_layer(self, make_empty: MakeEmpty) -> MakeLayer:
        def make(tree: Tree) -> WritableLayer:
            layer = make_empty()
            populate(layer, tree)
            return layer

        return make

    @pytest.fixture
    def upper(self, make_empty: MakeEmpty) -> Iterator[WritableLayer]:
        layer = make_empty()
        yield layer
        layer.close()

    # New entries

    def test_is_a_writable_layer(self, upper: WritableLayer) -> None:
        assert isinstance(upper, WritableLayer)
        assert upper.has_inos
        assert upper.scan(upper.staging) == {}
        assert len({upper.temp_name() for _ in range(100)}) == 100
        assert upper.staging.layer is upper
        if upper.index is not None:
            assert upper.scan(upper.index) == {}
        upper.sync()

    def test_new_entries_never_replace(self, upper: WritableLayer) -> None:
        root = upper.root
        populate(upper, {"file": b"x", "dir": {}, "link": symlink("file"), "gone": WHITEOUT})
        for name in (b"file", b"dir", b"link", b"gone"):
            with fails(errno.EEXIST):
                upper.create(root, name, 0o644)
            with fails(errno.EEXIST):
                upper.mkdir(root, name, 0o755)
            with fails(errno.EEXIST):
                upper.mknod(root, name, stat.S_IFIFO | 0o644, 0)
            with fails(errno.EEXIST):
                upper.symlink(root, name, b"t")
            with fails(errno.EEXIST):
                upper.link(root, b"file", root, name)
            with fails(errno.EEXIST):
                upper.whiteout(root, name)
        assert read(upper, root, b"file") == b"x"
        assert upper.scan(root) == {b"file": DT_REG, b"dir": DT_DIR, b"link": DT_LNK, b"gone": DT_WHT}

    def test_new_entries_where_there_is_no_directory(self, upper: WritableLayer) -> None:
        write(upper, upper.root, b"file", b"")
        for parent, number in ((b"none", errno.ENOENT), (b"file", errno.ENOTDIR)):
            with fails(number):
                upper.create(upper.root.child(parent), b"x", 0o644)
            with fails(number):
                upper.mkdir(upper.root.child(parent), b"x", 0o755)
        for call in (
            lambda: upper.create(upper.root, b"n" * 256, 0o644),
            lambda: upper.mkdir(upper.root, b"n" * 256, 0o755),
            lambda: upper.symlink(upper.root, b"n" * 256, b"t"),
            lambda: upper.link(upper.root, b"file", upper.root, b"n" * 256),
            lambda: upper.rename(upper.root, b"file", upper.root, b"n" * 256),
        ):
            with fails(errno.ENAMETOOLONG):
                call()

    def test_nothing_is_made_in_a_removed_directory(self, upper: WritableLayer) -> None:
        d = upper.mkdir(upper.root, b"dir", 0o755)
        assert upper.scan(d) == {}
        upper.rmdir(upper.root, b"dir")
        with fails(errno.ENOENT):
            upper.create(d, b"x", 0o644)
        with fails(errno.ENOENT):
            upper.mkdir(d, b"x", 0o755)
        assert upper.scan(d) == {}

    def test_umask_and_owner_of_the_process(self, upper: WritableLayer) -> None:
        old = os.umask(0o027)
        try:
            upper.create(upper.root, b"file", 0o666).close()
            upper.mkdir(upper.root, b"dir", 0o777)
            upper.mknod(upper.root, b"fifo", stat.S_IFIFO | 0o666, 0)
        finally:
            os.umask(old)
        assert upper.stat(upper.root, b"file").st_mode == stat.S_IFREG | 0o640
        assert upper.stat(upper.root, b"dir").st_mode == stat.S_IFDIR | 0o750
        assert upper.stat(upper.root, b"fifo").st_mode == stat.S_IFIFO | 0o640
        st = upper.stat(upper.root, b"file")
        assert (st.st_uid, st.st_gid) == (os.geteuid(), os.getegid())

    def test_set_group_id_directory(self, upper: WritableLayer) -> None:
        if not self.has_real_owners:
            pytest.skip("not applicable: one group only")
        d = upper.mkdir(upper.root, b"shared", 0o755)
        upper.setattr(upper.root, b"shared", mode=0o2775, gid=4242)
        upper.create(d, b"file", 0o644).close()
        upper.mkdir(d, b"sub", 0o755)
        upper.symlink(d, b"link", b"t")
        assert [upper.stat(d, name).st_gid for name in (b"file", b"sub", b"link")] == [4242] * 3
        assert upper.stat(d, b"sub").st_mode == stat.S_IFDIR | 0o2755
        assert upper.stat(d, b"file").st_mode == stat.S_IFREG | 0o644

    def test_whiteouts(self, upper: WritableLayer) -> None:
        root = upper.root
        upper.whiteout(root, b"gone")
        assert upper.kind(root, b"gone") == DT_WHT
        assert upper.scan(root) == {b"gone": DT_WHT}
        st = upper.stat(root, b"gone")
        assert stat.S_ISCHR(st.st_mode)
        assert st.st_rdev == 0
        write(upper, upper.staging, b"t", b"new")
        upper.rename(upper.staging, b"t", root, b"gone")
        assert read(upper, root, b"gone") == b"new"
        upper.unlink(root, b"gone")
        upper.whiteout(root, b"gone")
        # A directory takes a whiteout's place in one step by an exchange, as overlayfs does it.
        upper.mkdir(upper.staging, b"d", 0o755)
        with fails(errno.ENOTDIR):
            upper.rename(upper.staging, b"d", root, b"gone")
        upper.rename(upper.staging, b"d", root, b"gone", RENAME_EXCHANGE)
        assert upper.scan(root) == {b"gone": DT_DIR}
        upper.unlink(upper.staging, b"d")
        assert upper.scan(upper.staging) == {}

    # Names that go

    def test_unlink_and_rmdir(self, upper: WritableLayer) -> None:
        root = upper.root
        populate(upper, {"file": b"", "dir": {"x": b""}, "link": symlink("dir")})
        with fails(errno.EISDIR):
            upper.unlink(root, b"dir")
        for name in (b"file", b"link"):
            with fails(errno.ENOTDIR):
                upper.rmdir(root, name)
        with fails(errno.ENOTEMPTY):
            upper.rmdir(root, b"dir")
        for call in (upper.unlink, upper.rmdir):
            with fails(errno.ENOENT):
                call(root, b"none")
        upper.unlink(root.child(b"dir"), b"x")
        upper.rmdir(root, b"dir")
        upper.unlink(root, b"link")
        assert upper.scan(root) == {b"file": DT_REG}

    def test_open_file_outlives_its_name(self, upper: WritableLayer) -> None:
        write(upper, upper.root, b"file", b"before")
        file = upper.open(upper.root, b"file", os.O_RDWR)
        upper.unlink(upper.root, b"file")
        write(upper, upper.root, b"file", b"another")
        assert file.pwrite(b"AFTER", 6) == 5
        assert file.pread(99, 0) == b"beforeAFTER"
        file.setattr(mode=0o600, times=(OLD, OLD))
        st = file.stat()
        assert (st.st_nlink, st.st_size, st.st_mode) == (0, 11, stat.S_IFREG | 0o600)
        assert st.st_mtime_ns == OLD
        file.close()
        assert read(upper, upper.root, b"file") == b"another"

    def test_links_are_made(self, upper: WritableLayer) -> None:
        root = upper.root
        write(upper, root, b"a", b"x")
        d = upper.mkdir(root, b"dir", 0o755)
        upper.link(root, b"a", d, b"b")
        file = upper.open(d, b"b", os.O_RDWR)
        file.pwrite(b"yz", 0)
        assert read(upper, root, b"a") == b"yz"
        assert upper.stat(root, b"a").st_nlink == file.stat().st_nlink == 2
        upper.unlink(root, b"a")
        assert upper.stat(d, b"b").st_nlink == 1
        with fails(errno.EPERM):
            upper.link(root, b"dir", root, b"dir2")
        with fails(errno.ENOENT):
            upper.link(root, b"a", root, b"c")
        upper.symlink(root, b"link", b"dir")
        upper.link(root, b"link", root, b"link2")
        assert upper.stat(root, b"link2").st_nlink == 2
        assert upper.readlink(root, b"link2") == b"dir"

    # Rename

    def test_rename(self, upper: WritableLayer) -> None:
        root = upper.root
        populate(upper, {"file": b"1", "file2": b"2", "dir": {"x": b""}, "empty": {}, "full": {"y": b""}})
        full = root.child(b"full")
        with fails(errno.ENOENT):
            upper.rename(root, b"none", root, b"new")
        with fails(errno.EISDIR):
            upper.rename(root, b"file", root, b"empty")
        with fails(errno.ENOTDIR):
            upper.rename(root, b"dir", root, b"file")
        with fails(errno.ENOTEMPTY):
            upper.rename(root, b"dir", root, b"full")
        with fails(errno.EINVAL):
            upper.rename(root, b"full", full, b"below")
        with fails(errno.ENOTEMPTY):
            upper.rename(full, b"y", root, b"full")
        ino = upper.stat(root, b"file").st_ino
        upper.rename(root, b"file", root, b"file2")
        assert upper.stat(root, b"file2").st_ino == ino
        upper.rename(root, b"dir", root, b"empty")
        upper.rename(root, b"empty", full, b"moved")
        upper.rename(root, b"full", root, b"full")
        assert upper.scan(root) == {b"file2": DT_REG, b"full": DT_DIR}
        assert upper.scan(full) == {b"y": DT_REG, b"moved": DT_DIR}
        assert upper.scan(full.child(b"moved")) == {b"x": DT_REG}
        assert upper.stat(root, b"full").st_nlink in (1, 3)
        assert read(upper, root, b"file2") == b"1"

    def test_rename_to_another_name_of_the_same_file(self, upper: WritableLayer) -> None:
        write(upper, upper.root, b"a", b"x")
        upper.link(upper.root, b"a", upper.root, b"b")
        upper.rename(upper.root, b"a", upper.root, b"b")
        assert upper.scan(upper.root) == {b"a": DT_REG, b"b": DT_REG}

    def test_rename_noreplace(self, upper: WritableLayer) -> None:
        root = upper.root
        populate(upper, {"a": b"1", "b": b"2", "gone": WHITEOUT})
        for name in (b"b", b"gone", b"a"):
            with fails(errno.EEXIST):
                upper.rename(root, b"a", root, name, RENAME_NOREPLACE)
        upper.rename(root, b"a", root, b"c", RENAME_NOREPLACE)
        assert upper.scan(root) == {b"b": DT_REG, b"c": DT_REG, b"gone": DT_WHT}

    def test_rename_exchange(self, upper: WritableLayer) -> None:
        root = upper.root
        populate(upper, {"file": b"1", "dir": {"x": b"2", "sub": {}}})
        d = root.child(b"dir")
        with fails(errno.ENOENT):
            upper.rename(root, b"file", root, b"none", RENAME_EXCHANGE)
        with fails(errno.EINVAL):
            upper.rename(root, b"dir", d, b"x", RENAME_EXCHANGE)
        with fails(errno.EINVAL):
            upper.rename(d, b"x", root, b"dir", RENAME_EXCHANGE)
        with fails(errno.EINVAL):
            upper.rename(root, b"file", d, b"x", RENAME_EXCHANGE | RENAME_NOREPLACE)
        upper.rename(d, b"sub", root, b"file", RENAME_EXCHANGE)
        assert upper.scan(root) == {b"file": DT_DIR, b"dir": DT_DIR}
        assert upper.scan(d) == {b"x": DT_REG, b"sub": DT_REG}
        assert read(upper, d, b"sub") == b"1"
        assert upper.stat(root, b"dir").st_nlink in (1, 2)

    def test_rename_leaves_a_whiteout(self, upper: WritableLayer) -> None:
        root = upper.root
        populate(upper, {"file": b"1", "over": b"2", "dir": {"x": b""}})
        upper.rename(root, b"file", root, b"over", RENAME_WHITEOUT)
        upper.rename(root, b"dir", root, b"dir2", RENAME_WHITEOUT)
        with fails(errno.EEXIST):
            upper.rename(root, b"over", root, b"dir", RENAME_WHITEOUT | RENAME_NOREPLACE)
        assert upper.scan(root) == {b"file": DT_WHT, b"over": DT_REG, b"dir": DT_WHT, b"dir2": DT_DIR}
        assert upper.scan(root.child(b"dir2")) == {b"x": DT_REG}
        assert read(upper, root, b"over") == b"1"

    def test_staged_tree_moves_into_place(self, upper: WritableLayer) -> None:
        temp = upper.temp_name()
        staged = upper.mkdir(upper.staging, temp, 0o755)
        write(upper, staged, b"x", b"data")
        upper.setattr(upper.staging, temp, mode=0o711, times=(OLD, OLD))
        upper.rename(upper.staging, temp, upper.root, b"dir")
        assert upper.scan(upper.staging) == {}
        assert read(upper, upper.root.child(b"dir"), b"x") == b"data"
        st = upper.stat(upper.root, b"dir")
        assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (0o711, OLD)

    def test_identity(self, upper: WritableLayer) -> None:
        populate(upper, {"a": {"b": {"c": b""}}, "d": b"", "e": symlink("x"), "f": Entry(stat.S_IFIFO | 0o600)})
        root = upper.root
        stats = [upper.stat(root, name) for name in (b".", b"a", b"d", b"e", b"f")]
        stats += [upper.stat(root.child(b"a"), b"b"), upper.stat(root.child(b"a").child(b"b"), b"c")]
        assert len({st.st_ino for st in stats}) == len(stats)
        assert len({st.st_dev for st in stats}) == 1
        upper.rename(root, b"a", root, b"moved")
        upper.setattr(root, b"d", mode=0o600)
        moved = root.child(b"moved")
        after = [upper.stat(root, name) for name in (b".", b"moved", b"d", b"e", b"f")]
        after += [upper.stat(moved, b"b"), upper.stat(moved.child(b"b"), b"c")]
        assert [st.st_ino for st in after] == [st.st_ino for st in stats]

    def test_clear(self, upper: WritableLayer) -> None:
        tree: Tree = {"sub": {f"{n}": b"" for n in range(50)}, "locked": Entry(stat.S_IFDIR, {"x": b""}), "w": WHITEOUT}
        populate(upper, {"keep": b"", "t": tree, "file": b"", "link": symlink("keep"), "gone": WHITEOUT})
        populate(upper, {"t/fifo": Entry(stat.S_IFIFO | 0o600), "t/out": symlink("../keep"), "t/up": symlink("..")})
        for name in (b"t", b"file", b"link", b"gone"):
            upper.clear(upper.root, name)
        assert upper.scan(upper.root) == {b"keep": DT_REG}
        with fails(errno.ENOENT):
            upper.clear(upper.root, b"t")

    def test_very_deep(self, upper: WritableLayer) -> None:
        d = upper.root
        for _ in range(3000):
            d = upper.mkdir(d, b"d", 0o755)
        write(upper, d, b"bottom", b"here")
        d = upper.root
        for _ in range(3000):
            d = d.child(b"d")
        assert read(upper, d, b"bottom") == b"here"
        upper.rename(upper.root, b"d", upper.staging, b"t")
        upper.clear(upper.staging, b"t")
        assert upper.scan(upper.staging) == {}

    # Data

    def test_sparse_files(self, upper: WritableLayer) -> None:
        tib = 1 << 40
        file = upper.create(upper.root, b"big", 0o644)
        file.truncate(tib)
        assert file.stat().st_size == upper.stat(upper.root, b"big").st_size == tib
        assert file.stat().st_blocks * 512 < 1 << 20
        with fails(errno.ENXIO):
            file.seek(0, os.SEEK_DATA)
        assert file.seek(5, os.SEEK_HOLE) == 5
        file.pwrite(b"island", tib // 2)
        file.fsync()
        start = file.seek(0, os.SEEK_DATA)
        end = file.seek(start, os.SEEK_HOLE)
        assert tib // 2 - (1 << 16) <= start <= tib // 2 < end <= tib // 2 + (1 << 16)
        with fails(errno.ENXIO):
            file.seek(end, os.SEEK_DATA)
        assert 0 < file.stat().st_blocks * 512 < 1 << 20
        assert file.pread(10, tib // 2 - 2) == b"\0\0island\0\0"
        assert file.pread(10, tib - 3) == b"\0\0\0"

    def test_punched_holes(self, upper: WritableLayer) -> None:
        file = upper.create(upper.root, b"file", 0o644)
        file.pwrite(b"x" * (1 << 20), 0)
        file.fsync()
        try:
            file.fallocate(PUNCH_HOLE | KEEP_SIZE, 100_000, 700_000)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("not applicable: the file system punches no holes")
            raise
        assert file.stat().st_size == 1 << 20
        assert file.stat().st_blocks * 512 <= (1 << 20) - 600_000
        assert file.pread(1 << 20, 0) == b"x" * 100_000 + bytes(700_000) + b"x" * ((1 << 20) - 800_000)
        assert file.seek(0, os.SEEK_HOLE) >= 100_000
        assert 700_000 < file.seek(200_000, os.SEEK_DATA) <= 800_000
        file.fallocate(KEEP_SIZE, 1 << 20, 1 << 20)
        assert file.stat().st_size == 1 << 20
        file.fallocate(0, 1 << 20, 1000)
        assert file.stat().st_size == (1 << 20) + 1000
        with fails(errno.EINVAL):
            file.fallocate(0, 0, 0)

    def test_data_as_bytes_have_it(self, upper: WritableLayer) -> None:
        rng = random.Random(1)
        file = upper.create(upper.root, b"file", 0o644)
        model = bytearray()
        for step in range(400):
            offset = rng.choice((rng.randrange(70_000), len(model), 4096 * rng.randrange(10)))
            length = rng.choice((1, rng.randrange(1, 9000), 4096))
            what = rng.randrange(4)
            if what == 0:
                file.truncate(offset)
                model = model[:offset] + bytes(max(0, offset - len(model)))
            elif what == 1:
                data = bytes([1 + step % 255]) * length
                assert file.pwrite(memoryview(data), offset) == length
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + length] = data
            else:
                assert file.pread(length, offset) == model[offset : offset + length]
            assert file.stat().st_size == len(model)
        assert read(upper, upper.root, b"file") == model

    def test_open_flags(self, upper: WritableLayer) -> None:
        write(upper, upper.root, b"file", b"data")
        reader = upper.open(upper.root, b"file", os.O_RDONLY)
        writer = upper.open(upper.root, b"file", os.O_WRONLY)
        with fails(errno.EBADF):
            reader.pwrite(b"x", 0)
        with fails(errno.EINVAL):
            reader.truncate(0)
        with fails(errno.EBADF):
            writer.pread(1, 0)
        assert writer.pwrite(b"DA", 0) == 2
        assert reader.pread(9, 0) == b"DAta"
        for call in (lambda: writer.pwrite(b"x", -1), lambda: reader.pread(1, -1), lambda: writer.truncate(-1)):
            with fails(errno.EINVAL):
                call()
        upper.open(upper.root, b"file", os.O_WRONLY | os.O_TRUNC).close()
        assert reader.stat().st_size == 0
        writer.fsync(datasync=True)
        writer.close()
        with fails(errno.EBADF):
            writer.pwrite(b"x", 0)

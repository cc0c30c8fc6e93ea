"""What a writable layer promises about metadata, threads and commit: a part of ``WritableLayerSuite``."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import pytest

from unionfs._sys.rename import RENAME_WHITEOUT
from unionfs.layer import whiteout
from unionfs.layer.protocol import DT_DIR, DT_REG, NO_MARKS, LayerDir, Marks, WritableLayer
from unionfs.layer.trees import WHITEOUT, Entry, Link, Tree, populate, symlink
from unionfs.testing.layer import OLD, check_agreement, fails, read, write

Change: TypeAlias = tuple[Callable[[], object], str]
"""A change, and which of its directory's or file's times it moves: ``m``, ``c``."""


class MetadataTests:
    """See ``WritableLayerSuite``, which has the fixtures."""

    has_owners: ClassVar[bool]
    has_real_owners: ClassVar[bool]
    has_trusted: ClassVar[bool]
    user_marks: ClassVar[bool]

    # Metadata

    def test_setattr(self, upper: WritableLayer) -> None:
        populate(upper, {"file": b"x", "dir": {}, "fifo": Entry(stat.S_IFIFO | 0o600)})
        for name in (b"file", b"dir", b"fifo"):
            kind = stat.S_IFMT(upper.stat(upper.root, name).st_mode)
            for mode in (0o4755, 0o1000, 0o000, 0o640):
                upper.setattr(upper.root, name, mode=mode)
                assert upper.stat(upper.root, name).st_mode == kind | mode
            upper.setattr(upper.root, name, times=(OLD + 5, OLD))
            st = upper.stat(upper.root, name)
            assert (st.st_atime_ns, st.st_mtime_ns) == (OLD + 5, OLD)
            assert st.st_ctime_ns > OLD
        upper.setattr(upper.root.child(b"dir"), b".", mode=0o700)
        assert upper.stat(upper.root, b"dir").st_mode == stat.S_IFDIR | 0o700
        with fails(errno.ENOENT):
            upper.setattr(upper.root, b"none", mode=0o700)
        assert read(upper, upper.root, b"file") == b"x"

    def test_setattr_owner(self, upper: WritableLayer) -> None:
        if not self.has_owners:
            pytest.skip("not applicable: no owners")
        populate(upper, {"file": b"x", "dir": {}})
        for name in (b"file", b"dir"):
            upper.setattr(upper.root, name, uid=1234, gid=4321)
            upper.setattr(upper.root, name, gid=70000)
            st = upper.stat(upper.root, name)
            assert (st.st_uid, st.st_gid) == (1234, 70000)
        # Mode and owner in one call: the owner comes first, or the kernel would take the set-id bits away.
        upper.setattr(upper.root, b"file", mode=0o6755, uid=99, gid=98)
        st = upper.stat(upper.root, b"file")
        assert (st.st_mode, st.st_uid, st.st_gid) == (stat.S_IFREG | 0o6755, 99, 98)
        file = upper.open(upper.root, b"file", os.O_RDWR)
        file.setattr(mode=0o400, uid=5, gid=6, times=(OLD, OLD))
        for st in (file.stat(), upper.stat(upper.root, b"file")):
            assert (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns) == (stat.S_IFREG | 0o400, 5, 6, OLD)

    def test_setattr_of_links_never_follows(self, upper: WritableLayer) -> None:
        populate(upper, {"file": b"x", "link": symlink("file")})
        before = upper.stat(upper.root, b"file")
        with fails(errno.EOPNOTSUPP):
            upper.setattr(upper.root, b"link", mode=0o600)
        upper.setattr(upper.root, b"link", times=(OLD, OLD))
        assert upper.stat(upper.root, b"link").st_mtime_ns == OLD
        if self.has_real_owners:
            upper.setattr(upper.root, b"link", uid=7, gid=8)
            assert upper.stat(upper.root, b"link").st_uid == 7
        assert upper.stat(upper.root, b"file") == before

    def test_times(self, upper: WritableLayer) -> None:
        root = upper.root
        populate(upper, {"dir": {"x": b""}, "file": b"x", "other": Link("file")})
        d = root.child(b"dir")
        on_directory: tuple[Change, ...] = (
            (lambda: write(upper, d, b"y", b""), "mc"),
            (lambda: upper.unlink(d, b"y"), "mc"),
            (lambda: upper.rename(d, b"x", root, b"x"), "mc"),
            (lambda: upper.setattr(root, b"dir", mode=0o700), "c"),
            (lambda: upper.setxattr(root, b"dir", b"user.x", b""), "c"),
        )
        for change, parts in on_directory:
            self._age(upper, root, b"dir")
            before = upper.stat(root, b"dir")
            change()
            after = upper.stat(root, b"dir")
            assert (after.st_mtime_ns != before.st_mtime_ns) == ("m" in parts)
            assert after.st_ctime_ns > before.st_ctime_ns
        on_file: tuple[Change, ...] = (
            (lambda: upper.open(root, b"file", os.O_WRONLY).pwrite(b"y", 0), "mc"),
            (lambda: upper.open(root, b"file", os.O_WRONLY).truncate(9), "mc"),
            (lambda: upper.unlink(root, b"other"), "c"),
            (lambda: upper.link(root, b"file", root, b"third"), "c"),
        )
        for change, parts in on_file:
            self._age(upper, root, b"file")
            before = upper.stat(root, b"file")
            change()
            after = upper.stat(root, b"file")
            assert (after.st_mtime_ns != before.st_mtime_ns) == ("m" in parts)
            assert after.st_ctime_ns > before.st_ctime_ns
            assert after.st_atime_ns == before.st_atime_ns

    @staticmethod
    def _age(upper: WritableLayer, d: LayerDir, name: bytes) -> None:
        upper.setattr(d, name, times=(OLD, OLD))
        time.sleep(0.012)  # The kernel's clock for files ticks at least a hundred times a second.

    def test_xattrs_are_changed(self, upper: WritableLayer) -> None:
        populate(upper, {"file": b"", "dir": {}, "link": symlink("file"), "fifo": Entry(stat.S_IFIFO | 0o600)})
        root = upper.root
        for name in (b"file", b"dir"):
            upper.setxattr(root, name, b"user.a", b"1", os.XATTR_CREATE)
            with fails(errno.EEXIST):
                upper.setxattr(root, name, b"user.a", b"2", os.XATTR_CREATE)
            with fails(errno.ENODATA):
                upper.setxattr(root, name, b"user.b", b"2", os.XATTR_REPLACE)
            upper.setxattr(root, name, b"user.a", b"3", os.XATTR_REPLACE)
            assert upper.getxattr(root, name, b"user.a") == b"3"
            with fails(errno.ENODATA):
                upper.removexattr(root, name, b"user.b")
            for key in (b"nonsense.x", b"nonsense"):
                with fails(errno.EOPNOTSUPP):
                    upper.setxattr(root, name, key, b"")
            with fails(errno.ERANGE):
                upper.setxattr(root, name, b"user." + b"k" * 300, b"")
            upper.removexattr(root, name, b"user.a")
            assert b"user.a" not in upper.listxattr(root, name)
        for name in (b"link", b"fifo"):
            with fails(errno.EPERM):
                upper.setxattr(root, name, b"user.a", b"1")
            with fails(errno.ENODATA):
                upper.getxattr(root, name, b"user.a")
        assert upper.listxattr(root, b"file") == upper.listxattr(root, b"link")
        upper.setxattr(root, b".", b"user.root", b"r")
        assert upper.getxattr(root, b".", b"user.root") == b"r"
        assert b"user.root" in upper.listxattr(root, b".")

    def test_xattrs_with_overlayfs_names_are_the_persons(self, upper: WritableLayer) -> None:
        populate(upper, {"dir": Entry(stat.S_IFDIR | 0o755, {}, marks=Marks(redirect=b"r"))})
        spaces = (b"user.", b"trusted.") if self.has_trusted else (b"user.",)
        for space in spaces:
            for key in (space + b"overlay." + whiteout.OPAQUE, space + b"overlay.overlay.x"):
                upper.setxattr(upper.root, b"dir", key, b"y")
                assert key in upper.listxattr(upper.root, b"dir")
        assert upper.marks(upper.root, b"dir") == Marks(redirect=b"r")
        for space in spaces:
            for key in (space + b"overlay." + whiteout.OPAQUE, space + b"overlay.overlay.x"):
                assert upper.getxattr(upper.root, b"dir", key) == b"y"
                upper.removexattr(upper.root, b"dir", key)
                with fails(errno.ENODATA):
                    upper.getxattr(upper.root, b"dir", key)
            with fails(errno.ENODATA):
                upper.removexattr(upper.root, b"dir", space + b"overlay." + whiteout.REDIRECT)
        assert upper.marks(upper.root, b"dir") == Marks(redirect=b"r")

    def test_marks_round_trip(self, upper: WritableLayer) -> None:
        root = upper.root
        populate(upper, {"dir": Entry(stat.S_IFDIR | 0o755, {}, xattrs={"user.mine": b"1"}), "file": b""})
        populate(upper, {"link": symlink("t"), "fifo": Entry(stat.S_IFIFO | 0o600)})
        for marks in (
            Marks(opaque=True),
            Marks(opaque=True, redirect=b"/a", ino=12),
            Marks(redirect=b"\xff", ino=(1 << 63) - 1),
            Marks(ino=1),
            NO_MARKS,
        ):
            upper.set_marks(root, b"dir", marks)
            assert upper.marks(root, b"dir") == marks
            assert upper.marks(root.child(b"dir"), b".") == marks
            assert upper.listxattr(root, b"dir") == [b"user.mine"]
        for marks in (Marks(metacopy=True, redirect=b"/x/y"), Marks(metacopy=True, nlink=b"U-1", ino=5), NO_MARKS):
            upper.set_marks(root, b"file", marks)
            assert upper.marks(root, b"file") == marks
        upper.set_marks(root.child(b"dir"), b".", Marks(opaque=True))
        assert upper.marks(root, b"dir") == Marks(opaque=True)
        upper.set_marks(root, b".", Marks(ino=3))
        assert upper.marks(root, b".") == Marks(ino=3)
        with fails(errno.ENOENT):
            upper.set_marks(root, b"none", Marks(ino=3))
        for name in (b"link", b"fifo"):
            upper.set_marks(root, name, Marks(ino=77))
            assert upper.marks(root, name) == (NO_MARKS if self.user_marks else Marks(ino=77))

    def test_marks_move_with_their_entry(self, upper: WritableLayer) -> None:
        populate(upper, {"dir": Entry(stat.S_IFDIR | 0o755, {}, marks=Marks(opaque=True, ino=4))})
        upper.rename(upper.root, b"dir", upper.root, b"new", RENAME_WHITEOUT)
        assert upper.marks(upper.root, b"new") == Marks(opaque=True, ino=4)

    def test_threads(self, upper: WritableLayer) -> None:
        d = upper.mkdir(upper.root, b"dir", 0o755)
        problems: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for step in range(100):
                    name = b"%d-%d" % (number, step)
                    write(upper, upper.staging, name, name)
                    upper.rename(upper.staging, name, d, name)
                    if step % 2:
                        upper.unlink(d, name)
                    upper.scan(d)
            except BaseException as problem:  # noqa: BLE001 - it is told to the thread that asks
                problems.append(problem)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems
        assert len(upper.scan(d)) == 200
        check_agreement(upper)

    # Staged files, and what open ones know of themselves

    def test_staged_file(self, upper: WritableLayer) -> None:
        write(upper, upper.root, b"model", b"")
        owner = (1234, 4321) if self.has_owners else (os.geteuid(), os.getegid())
        upper.setattr(upper.root, b"model", mode=0o6751, uid=owner[0], gid=owner[1])
        st = upper.stat(upper.root, b"model")
        file = upper.stage()
        assert file.stat().st_mode == stat.S_IFREG | 0o600
        assert upper.scan(upper.root) == {b"model": DT_REG}
        file.pwrite(b"staged", 0)
        file.setxattr(b"user.a", b"1")
        marks = Marks(metacopy=True, redirect=b"/there", ino=7)
        upper.dress(file, st, marks)
        file.setattr(times=(OLD, OLD + 1))
        with fails(errno.EEXIST):
            upper.place(file, upper.root, b"model")
        upper.place(file, upper.root, b"placed")
        found = upper.stat(upper.root, b"placed")
        assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o6751, *owner)
        assert (found.st_atime_ns, found.st_mtime_ns, found.st_nlink) == (OLD, OLD + 1, 1)
        assert found.st_ino == file.stat().st_ino
        assert upper.marks(upper.root, b"placed") == marks
        assert upper.getxattr(upper.root, b"placed", b"user.a") == b"1"
        assert file.pwrite(b"S", 0) == 1
        file.close()
        assert read(upper, upper.root, b"placed") == b"Staged"
        assert upper.scan(upper.staging) == {}
        check_agreement(upper)

    def test_staged_file_is_not_needed(self, upper: WritableLayer) -> None:
        file = upper.stage()
        file.pwrite(b"x", 0)
        upper.discard(file)
        assert upper.scan(upper.staging) == upper.scan(upper.root) == {}
        with fails(errno.EBADF):
            file.pread(1, 0)

    def test_staged_file_has_nowhere_to_go(self, upper: WritableLayer) -> None:
        file = upper.stage()
        d = upper.mkdir(upper.root, b"dir", 0o755)
        upper.rmdir(upper.root, b"dir")
        with fails(errno.ENOENT):
            upper.place(file, d, b"x")
        with fails(errno.ENAMETOOLONG):
            upper.place(file, upper.root, b"n" * 256)
        upper.place(file, upper.root, b"x")
        assert upper.scan(upper.root) == {b"x": DT_REG}

    def test_xattrs_of_an_open_file(self, upper: WritableLayer) -> None:
        marked = Entry(stat.S_IFREG | 0o644, b"", xattrs={"user.a": b"1"}, marks=Marks(redirect=b"/r"))
        populate(upper, {"file": marked})
        file = upper.open(upper.root, b"file", os.O_RDWR)
        upper.unlink(upper.root, b"file")
        key = whiteout.USER + b"mine"
        file.setxattr(key, b"2")
        assert sorted(file.listxattr()) == [b"user.a", key]
        assert (file.getxattr(b"user.a"), file.getxattr(key)) == (b"1", b"2")
        for missing in (b"user.none", whiteout.USER + whiteout.REDIRECT):
            with fails(errno.ENODATA):
                file.getxattr(missing)

    # Commit

    def test_freeze(self, upper: WritableLayer) -> None:
        tree: Tree = {"dir": {"x": b"data", "gone": WHITEOUT}, "link": symlink("x"), "a": b"1", "b": Link("a")}
        populate(upper, {**tree, "marked": Entry(stat.S_IFDIR | 0o755, {}, marks=Marks(opaque=True))})
        root = upper.root
        upper.setattr(root, b".", mode=0o711)
        upper.setxattr(root, b".", b"user.mine", b"1")
        upper.setattr(root, b".", times=(OLD, OLD))
        file = upper.open(root.child(b"dir"), b"x", os.O_RDONLY)
        before = upper.scan(root)
        st = upper.stat(root, b"a")

        fresh = upper.begin_freeze(None)
        assert [layer.record for layer in (upper, fresh)] == [None, None]
        assert fresh.scan(fresh.root) == {}
        upper.finish_freeze(fresh, b'{"comment": "first"}')

        assert [layer.record for layer in (upper, fresh)] == [b'{"comment": "first"}', None]
        # What was is still there, by old directories and new ones.
        assert upper.scan(root) == before
        assert read(upper, root.child(b"dir"), b"x") == file.pread(9, 0) == b"data"
        assert upper.stat(root, b"a").st_ino == st.st_ino
        assert upper.stat(root, b"a").st_nlink == 2
        assert upper.marks(root, b"marked") == Marks(opaque=True)
        check_agreement(upper)
        # The new one has the root's metadata, and goes its own way.
        now = fresh.stat(fresh.root, b".")
        assert (now.st_mode, now.st_mtime_ns) == (stat.S_IFDIR | 0o711, OLD)
        assert fresh.getxattr(fresh.root, b".", b"user.mine") == b"1"
        write(fresh, fresh.staging, b"t", b"other")
        fresh.rename(fresh.staging, b"t", fresh.root, b"a")
        assert read(upper, root, b"a") == b"1"
        assert fresh.scan(fresh.root) == {b"a": DT_REG}
        # And again.
        third = fresh.begin_freeze(None)
        fresh.finish_freeze(third, b"{}")
        write(third, third.root, b"c", b"")
        assert read(fresh, fresh.root, b"a") == b"other"
        assert upper.scan(root) == before
        third.close()

    def test_freeze_that_is_dropped(self, upper: WritableLayer) -> None:
        write(upper, upper.root, b"file", b"x")
        upper.drop_freeze(upper.begin_freeze(None))
        upper.unlink(upper.root, b"file")
        write(upper, upper.staging, b"t", b"y")
        upper.rename(upper.staging, b"t", upper.root, b"file")
        fresh = upper.begin_freeze(None)
        upper.finish_freeze(fresh, b"{}")
        assert read(upper, upper.root, b"file") == b"y"
        fresh.close()

    def test_frozen_refuses(self, upper: WritableLayer) -> None:
        populate(upper, {"file": b"x", "dir": {}})
        root = upper.root
        fresh = upper.begin_freeze(None)
        upper.finish_freeze(fresh, b"{}")
        refused: tuple[Callable[[], object], ...] = (
            upper.stage,
            lambda: upper.mkdir(root, b"new", 0o755),
            lambda: upper.create(root, b"new", 0o644),
            lambda: upper.mknod(root, b"new", stat.S_IFIFO | 0o600, 0),
            lambda: upper.symlink(root, b"new", b"t"),
            lambda: upper.link(root, b"file", root, b"new"),
            lambda: upper.whiteout(root, b"new"),
            lambda: upper.unlink(root, b"file"),
            lambda: upper.rmdir(root, b"dir"),
            lambda: upper.rename(root, b"file", root, b"new"),
            lambda: upper.clear(root, b"dir"),
            lambda: upper.setattr(root, b"file", mode=0o600),
            lambda: upper.setxattr(root, b"file", b"user.a", b""),
            lambda: upper.removexattr(root, b"file", b"user.a"),
            lambda: upper.set_marks(root, b"dir", Marks(opaque=True)),
            lambda: upper.open(root, b"file", os.O_RDWR),
            lambda: upper.open(root, b"file", os.O_TRUNC),
            lambda: upper.begin_freeze(None),
        )
        for call in refused:
            with fails(errno.EROFS):
                call()
        assert upper.scan(root) == {b"file": DT_REG, b"dir": DT_DIR}
        assert read(upper, root, b"file") == b"x"
        fresh.close()

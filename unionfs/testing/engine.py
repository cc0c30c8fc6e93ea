"""What every mount engine must do, as tests that a factory is plugged into.

    from unionfs.testing.engine import EngineSuite

    class TestMyEngine(EngineSuite):
        def mount(self, fs, mountpoint):
            return unionfs.mount.mount(fs, mountpoint, engine="mine")

pytest collects the suite through the subclass. Each test gets ``merged``: a mount of three layers, with content
scattered over them (``engine_base.LAYERS``), and an upper. After each test the layers below must be what they were.

A page of a mapped file is read with Python's lock held, so what maps or executes files does it in another process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from unionfs.testing.engine_base import MERGED, MTIME_NS, elsewhere, fails
from unionfs.testing.engine_metadata import MetadataSuite


class EngineSuite(MetadataSuite):
    """All tests of one engine. ``mount`` is the factory; ``base`` may choose where the layers live."""

    # Reading

    def test_merged_listings(self, merged: Path) -> None:
        for directory, names in MERGED.items():
            assert set(os.listdir(merged / directory)) == names

    def test_topmost_content_wins(self, merged: Path) -> None:
        assert (merged / "shared/over").read_text() == "from the top"
        assert [(merged / f"only-{layer}").read_text() for layer in ("top", "middle", "bottom")] == ["t", "mm", "bbb"]

    def test_whiteout_hides(self, merged: Path) -> None:
        with fails(errno.ENOENT):
            os.stat(merged / "shared/gone")

    def test_listing_tells_type_and_inode_of_stat(self, merged: Path) -> None:
        for directory in (".", "shared", "both/x"):
            with os.scandir(merged / directory) as entries:
                for entry in entries:
                    st = os.lstat(entry.path)
                    assert entry.inode() == st.st_ino
                    assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(st.st_mode)
                    assert entry.is_symlink() == stat.S_ISLNK(st.st_mode)

    def test_metadata_of_a_lower_file(self, merged: Path) -> None:
        st = os.stat(merged / "shared/bottom")
        assert (st.st_size, st.st_mtime_ns, st.st_nlink) == (6, MTIME_NS, 1)
        assert st.st_blocks > 0
        assert (st.st_uid, st.st_gid) == (os.geteuid(), os.getegid())

    def test_dot_dot_and_missing_components(self, merged: Path) -> None:
        assert os.stat(merged / "both/../shared/./over").st_size == len("from the top")
        assert os.path.samestat(os.stat(merged / "both/x/../.."), os.stat(merged))
        with fails(errno.ENOENT):
            os.stat(merged / "missing/../shared")
        with fails(errno.ENOTDIR):
            os.stat(merged / "only-top/x")

    @pytest.fixture
    def many(self, layers: list[Path]) -> set[str]:
        """Names in a directory ``many``, scattered over the layers, some of them in two."""
        names = [f"name-{number:05}" for number in range(10_000)]
        for position, layer in enumerate(layers):
            (layer / "many").mkdir()
            for name in names[position * 3000 : position * 3000 + 4000]:
                os.mknod(layer / "many" / name)
        return set(names)

    def test_listing_of_many_names(self, many: set[str], merged: Path) -> None:
        assert set(os.listdir(merged / "many")) == many
        with os.scandir(merged / "many") as entries:
            for number, entry in enumerate(entries):
                if number % 20 == 0:
                    os.unlink(entry.path)
                    many.discard(entry.name)
        assert set(os.listdir(merged / "many")) == many
        assert len(many) == 9_500

    def test_open_directory_is_listed_anew_after_rewind(self, merged: Path) -> None:
        fd = os.open(merged / "shared", os.O_RDONLY)
        try:
            assert "new" not in os.listdir(fd)
            (merged / "shared/new").touch()
            os.lseek(fd, 0, os.SEEK_SET)
            assert "new" in os.listdir(fd)
        finally:
            os.close(fd)

    def test_statvfs(self, merged: Path) -> None:
        found = os.statvfs(merged)
        assert found.f_namemax == 255
        assert found.f_frsize > 0
        assert found.f_blocks >= found.f_bfree >= found.f_bavail > 0
        assert found.f_files >= found.f_ffree > 0

    # Writing

    def test_create_write_read(self, merged: Path) -> None:
        data = random.Random(1).randbytes(3_000_001)
        (merged / "shared/big").write_bytes(data)
        assert (merged / "shared/big").read_bytes() == data
        fd = os.open(merged / "shared/big", os.O_RDONLY)
        try:
            for offset, size in ((0, 1), (4095, 2), (131_071, 131_074), (2_999_999, 100), (3_000_001, 1)):
                assert os.pread(fd, size, offset) == data[offset : offset + size]
        finally:
            os.close(fd)

    def test_change_of_a_lower_file(self, merged: Path) -> None:
        with open(merged / "shared/bottom", "r+b") as file:
            file.seek(2)
            file.write(b"TT")
        assert (merged / "shared/bottom").read_bytes() == b"boTTom"

    def test_append(self, merged: Path) -> None:
        with open(merged / "only-bottom", "a") as first, open(merged / "only-bottom", "a") as second:
            for number in range(10):
                print(number, end="", file=(first, second)[number % 2], flush=True)
        assert (merged / "only-bottom").read_text() == "bbb0123456789"

    def test_open_flags(self, merged: Path) -> None:
        with fails(errno.EEXIST):
            os.open(merged / "shared/over", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.close(os.open(merged / "shared/over", os.O_TRUNC | os.O_WRONLY))
        assert (merged / "shared/over").read_text() == ""
        fd = os.open(merged / "shared/middle", os.O_CREAT | os.O_RDWR | os.O_SYNC)
        try:
            assert os.read(fd, 9) == b"middle"
            assert os.write(fd, b"!") == 1
        finally:
            os.close(fd)
        assert (merged / "shared/middle").read_text() == "middle!"
        with fails(errno.EISDIR):
            os.open(merged / "shared", os.O_WRONLY)
        with fails(errno.ENOTDIR):
            os.open(merged / "only-top", os.O_DIRECTORY)

    def test_truncate(self, merged: Path) -> None:
        os.truncate(merged / "shared/bottom", 3)
        assert (merged / "shared/bottom").read_bytes() == b"bot"
        os.truncate(merged / "shared/bottom", 5)
        assert (merged / "shared/bottom").read_bytes() == b"bot\0\0"
        with open(merged / "shared/bottom", "r+b") as file:
            os.ftruncate(file.fileno(), 1)
            assert os.fstat(file.fileno()).st_size == 1
            assert file.read() == b"b"

    def test_sparse(self, merged: Path) -> None:
        with open(merged / "sparse", "wb") as file:
            file.seek(100 << 20)
            file.write(b"end")
        st = os.stat(merged / "sparse")
        assert st.st_size == (100 << 20) + 3
        assert st.st_blocks * 512 < 1 << 20

    def test_reader_sees_what_is_written_after_its_open(self, merged: Path) -> None:
        with open(merged / "shared/bottom", "rb", buffering=0) as reader:
            assert reader.read() == b"bottom"
            with open(merged / "shared/bottom", "ab") as writer:
                writer.write(b"less")
            assert reader.read() == b"less"

    def test_copy_up_keeps_identity_and_metadata(self, merged: Path) -> None:
        path = merged / "shared/bottom"
        before = os.stat(path)
        os.chmod(path, 0o640)
        path.write_text("changed")
        after = os.stat(path)
        assert (after.st_ino, after.st_dev, after.st_uid) == (before.st_ino, before.st_dev, before.st_uid)
        assert stat.S_IMODE(after.st_mode) == 0o640
        assert after.st_mtime_ns > before.st_mtime_ns

    def test_fsync(self, merged: Path) -> None:
        with open(merged / "synced", "wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            os.fdatasync(file.fileno())
        fd = os.open(merged, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def test_threads(self, merged: Path) -> None:
        failures = []

        def work(number: int) -> None:
            try:
                for turn in range(25):
                    path = merged / "shared" / f"thread-{number}-{turn}"
                    path.write_bytes(bytes([number]) * 5000)
                    assert path.read_bytes() == bytes([number]) * 5000
                    os.rename(path, merged / "both" / path.name)
                    os.unlink(merged / "both" / path.name)
            except BaseException as error:  # noqa: BLE001  # Shown below.
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        deadline = time.monotonic() + self.removals_lag
        while set(os.listdir(merged / "both")) != {"x"} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(os.listdir(merged / "both")) == {"x"}

    def test_mmap_in_another_process(self, merged: Path) -> None:
        (merged / "mapped").write_bytes(b"a" * mmap.PAGESIZE * 3)
        code = (
            "import mmap, sys\n"
            "with open(sys.argv[1], 'r+b') as file, mmap.mmap(file.fileno(), 0) as view:\n"
            "    assert view[5000:5003] == b'aaa'\n"
            "    view[5000:5003] = b'xyz'\n"
        )
        elsewhere(code, merged / "mapped")
        assert (merged / "mapped").read_bytes()[4999:5004] == b"axyza"

    def test_programs_run(self, merged: Path) -> None:
        done = subprocess.run(["./script"], cwd=merged, capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout == "ran ./script\n"
        program = merged / "copied"
        program.write_bytes(Path("/bin/echo").read_bytes())
        with fails(errno.EACCES):
            subprocess.run([program], check=False)
        program.chmod(0o755)
        assert subprocess.run([program, "hi"], capture_output=True, text=True, timeout=30, check=True).stdout == "hi\n"

    def test_locks(self, merged: Path) -> None:
        code = (
            "import fcntl, sys\n"
            "with open(sys.argv[1], 'r+b') as file:\n"
            "    for lock in (fcntl.flock, fcntl.lockf):\n"
            "        try: lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('got', end=' ')\n"
            "        except BlockingIOError: print('busy', end=' ')\n"
        )
        with open(merged / "shared/over", "r+b") as file:
            assert elsewhere(code, merged / "shared/over") == "got got"
            fcntl.flock(file, fcntl.LOCK_EX)
            assert elsewhere(code, merged / "shared/over") == "busy got"
            fcntl.lockf(file, fcntl.LOCK_EX)
            assert elsewhere(code, merged / "shared/over") == "busy busy"

    # Open files without a name

    @pytest.mark.parametrize("name", ["shared/bottom", "new"])
    def test_unlinked_open_file(self, merged: Path, name: str) -> None:
        path = merged / name
        path.touch()
        with open(path, "r+b", buffering=0) as file:
            os.unlink(path)
            assert path.name not in os.listdir(path.parent)
            assert not [entry for entry in os.listdir(path.parent) if entry.startswith(".fuse")]
            os.ftruncate(file.fileno(), 0)
            file.write(b"still here")
            os.fchmod(file.fileno(), 0o604)
            os.utime(file.fileno(), ns=(11, 22))
            st = os.fstat(file.fileno())
            assert (st.st_nlink, st.st_size, stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (0, 10, 0o604, 22)
            assert os.pread(file.fileno(), 99, 0) == b"still here"
            path.write_text("another")
            assert os.pread(file.fileno(), 99, 0) == b"still here"
        assert path.read_text() == "another"

    def test_directory_of_an_unlinked_open_file_can_go(self, merged: Path) -> None:
        (merged / "d").mkdir()
        with open(merged / "d/file", "w+b", buffering=0) as file:
            file.write(b"abc")
            os.unlink(merged / "d/file")
            os.rename(merged / "d", merged / "e")
            assert os.fstat(file.fileno()).st_nlink == 0
            os.rmdir(merged / "e")
            assert os.pread(file.fileno(), 9, 0) == b"abc"
            assert file.write(b"d") == 1

    def test_rename_over_an_open_file(self, merged: Path) -> None:
        with open(merged / "shared/over", "rb", buffering=0) as old:
            (merged / "shared/new").write_text("new")
            os.rename(merged / "shared/new", merged / "shared/over")
            assert (merged / "shared/over").read_text() == "new"
            assert old.read() == b"from the top"
            assert os.fstat(old.fileno()).st_nlink == 0
        assert set(os.listdir(merged / "shared")) == MERGED["shared"]

    def test_temporary_files(self, merged: Path) -> None:
        with tempfile.TemporaryFile(dir=merged) as file:
            file.write(b"temporary")
            file.seek(0)
            assert file.read() == b"temporary"
        assert set(os.listdir(merged)) == MERGED["."]

    def test_open_removed_directory_is_empty(self, merged: Path) -> None:
        (merged / "d").mkdir()
        fd = os.open(merged / "d", os.O_RDONLY)
        try:
            os.rmdir(merged / "d")
            assert os.listdir(fd) == []
        finally:
            os.close(fd)

    # Names

    def test_rename_files(self, merged: Path) -> None:
        ino = os.stat(merged / "shared/bottom").st_ino
        os.rename(merged / "shared/bottom", merged / "both/x/moved")
        assert (merged / "both/x/moved").read_text() == "bottom"
        assert os.stat(merged / "both/x/moved").st_ino == ino
        assert set(os.listdir(merged / "shared")) == MERGED["shared"] - {"bottom"}
        os.rename(merged / "both/x/moved", merged / "shared/over")
        assert (merged / "shared/over").read_text() == "bottom"

    @pytest.mark.parametrize("name", ["tree", "shared", "both"])
    def test_rename_of_a_directory_below(self, merged: Path, name: str) -> None:
        before = sorted(str(path.relative_to(merged / name)) for path in (merged / name).rglob("*"))
        ino = os.stat(merged / name).st_ino
        os.rename(merged / name, merged / "elsewhere")
        assert not (merged / name).exists()
        assert (
            sorted(str(path.relative_to(merged / "elsewhere")) for path in (merged / "elsewhere").rglob("*")) == before
        )
        assert os.stat(merged / "elsewhere").st_ino == ino
        (merged / name).mkdir()
        assert os.listdir(merged / name) == []

    def test_rename_errors(self, merged: Path) -> None:
        (merged / "empty").mkdir()
        for old, new, code in (
            ("missing", "x", errno.ENOENT),
            ("only-top", "shared", errno.EISDIR),
            ("shared", "only-top", errno.ENOTDIR),
            ("shared", "both", errno.ENOTEMPTY),
            ("tree", "tree/a/b", errno.EINVAL),
        ):
            with fails(code):
                os.rename(merged / old, merged / new)
        os.rename(merged / "shared", merged / "empty")
        assert set(os.listdir(merged / "empty")) == MERGED["shared"]

    def test_removal(self, merged: Path) -> None:
        with fails(errno.ENOTEMPTY):
            os.rmdir(merged / "tree")
        with fails(errno.ENOTDIR):
            os.rmdir(merged / "only-top")
        with fails(errno.EISDIR):
            os.unlink(merged / "tree")
        with fails(errno.ENOENT):
            os.unlink(merged / "missing")
        for path in sorted((merged / "tree").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (merged / "tree").rmdir()
        assert "tree" not in os.listdir(merged)
        with fails(errno.EEXIST):
            os.mkdir(merged / "shared")

    def test_hard_links(self, merged: Path) -> None:
        os.link(merged / "only-bottom", merged / "shared/second")
        first, second = os.stat(merged / "only-bottom"), os.stat(merged / "shared/second")
        assert (first.st_nlink, second.st_nlink) == (2, 2)
        assert first.st_ino == second.st_ino
        (merged / "shared/second").write_text("by the second name")
        assert (merged / "only-bottom").read_text() == "by the second name"
        os.chmod(merged / "only-bottom", 0o611)
        assert stat.S_IMODE(os.stat(merged / "shared/second").st_mode) == 0o611
        with open(merged / "shared/second", "rb") as file:
            os.unlink(merged / "shared/second")
            assert os.fstat(file.fileno()).st_nlink == 1
        assert os.stat(merged / "only-bottom").st_nlink == 1
        with fails(errno.EEXIST):
            os.link(merged / "only-bottom", merged / "only-top")

    @pytest.mark.parametrize("opened", [False, True])
    def test_rename_onto_another_name_of_the_same_file_does_nothing(self, merged: Path, opened: bool) -> None:
        with contextlib.ExitStack() as stack:
            if opened:
                stack.enter_context(open(merged / "twin2", "rb"))
            os.rename(merged / "twin1", merged / "twin2")
            assert {"twin1", "twin2"} <= set(os.listdir(merged))
            assert os.stat(merged / "twin1").st_nlink == 2
        os.unlink(merged / "twin2")
        os.rename(merged / "twin1", merged / "twin2")
        assert (merged / "twin2").read_text() == "twins"
        assert "twin1" not in os.listdir(merged)

    def test_hard_links_below_stay_linked(self, merged: Path) -> None:
        first, second = merged / "twin1", merged / "twin2"
        assert os.stat(first).st_nlink == 2
        assert second.read_text() == "twins"
        first.write_text("changed")
        assert second.read_text() == "changed"
        assert os.path.samestat(os.stat(first), os.stat(second))
        os.unlink(first)
        assert os.stat(second).st_nlink == 1

    def test_symlinks(self, merged: Path) -> None:
        assert os.readlink(merged / "link") == "shared/over"
        assert (merged / "link").read_text() == "from the top"
        for target in ("shared", "missing", "/absolute/elsewhere", "x" * 4095):
            os.symlink(target, merged / "new")
            assert os.readlink(merged / "new") == target
            assert os.lstat(merged / "new").st_size == len(target)
            os.unlink(merged / "new")
        os.symlink("loop2", merged / "loop1")
        os.symlink("loop1", merged / "loop2")
        with fails(errno.ELOOP):
            os.stat(merged / "loop1")
        with fails(errno.EINVAL):
            os.readlink(merged / "only-top")

    @pytest.mark.parametrize("name", [b"\xff\xfe caf\xe9", b"new\nline, comma", "\u540d\u524d".encode(), b"n" * 255])
    def test_names_are_bytes(self, merged: Path, name: bytes) -> None:
        top = os.fsencode(merged)
        path = os.path.join(top, name)
        with open(path, "wb") as file:
            file.write(b"content")
        assert name in os.listdir(top)
        os.rename(path, path[:-1])
        os.symlink(name, path)
        assert os.readlink(path) == name
        os.unlink(path)
        os.mkdir(path)
        os.rename(path[:-1], os.path.join(path, name))
        assert os.listdir(path) == [name]
        with open(os.path.join(path, name), "rb") as file:
            assert file.read() == b"content"

    def test_names_too_long(self, merged: Path) -> None:
        for attempt in (os.stat, os.mkdir, os.unlink, os.mknod):
            with fails(errno.ENAMETOOLONG):
                attempt(merged / ("n" * 256))
        with fails(errno.ENAMETOOLONG):
            os.stat(f"{merged}/{'d/' * 2100}")

    def test_deep_paths(self, merged: Path) -> None:
        name = "n" * 250
        fds = [os.open(merged, os.O_RDONLY)]
        try:
            for _ in range(15):
                os.mkdir(name, dir_fd=fds[-1])
                fds.append(os.open(name, os.O_RDONLY, dir_fd=fds[-1]))
            fd = os.open("leaf", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fds[-1])
            os.write(fd, b"deep")
            os.close(fd)
            inside = os.path.join(*[name] * 15, "leaf")
            assert os.stat(inside, dir_fd=fds[0]).st_size == 4
        finally:
            for fd in fds:
                os.close(fd)

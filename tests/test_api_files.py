"""File objects: every mode of `open`, descriptors that are real, and what is open while its file moves up."""

from __future__ import annotations

import gc
import io
import mmap
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import unionfs
from unionfs.union.files import DescriptorFile

MODES = [first + plus + kind for first in "rwax" for plus in ("", "+") for kind in ("", "t", "b")]


@pytest.fixture(params=["directory", "memory", "memory lower"])
def fs(request: pytest.FixtureRequest, scratch: Path) -> Iterator[unionfs.UnionFS]:
    content = {
        "a": {"d/one": "from a\nline two\n"},
        "b": {"d/two": "from b"},
        "c": {"d/one": "hidden", "e/deep": "c" * 10000},
    }
    for name in ("a", "b", "c", "upper", "plain/d", "plain/e"):
        (scratch / name).mkdir(parents=True)
    for layer, files in content.items():
        for path, text in files.items():
            (scratch / layer / path).parent.mkdir(exist_ok=True)
            (scratch / layer / path).write_text(text)
            if text != "hidden":
                (scratch / "plain" / path).write_text(text)
    lowers: list[Any] = [scratch / name for name in "abc"]
    if request.param == "memory lower":
        lowers = [unionfs.MemoryLayer.from_dict(content[name]) for name in "abc"]
    upper = unionfs.MemoryLayer() if request.param == "memory" else scratch / "upper"
    with unionfs.UnionFS(lowers, upper) as fs:
        yield fs


def session(file: Any) -> list[Any]:
    """What a file object says and does."""
    said: list[Any] = [type(file), file.mode, file.readable(), file.writable(), file.seekable(), file.tell()]

    def attempt(*actions: Any) -> None:
        for action in actions:
            try:
                said.append(action())
            except (OSError, ValueError, TypeError) as error:
                said.append((type(error), getattr(error, "errno", None), str(error)))

    data: Any = "new\ndata" if isinstance(file, io.TextIOBase) else b"new\ndata"
    attempt(lambda: file.read(3), file.tell, lambda: file.write(data), file.flush, file.tell, lambda: file.seek(2))
    attempt(file.readline, lambda: file.write(data[:2]), file.truncate, lambda: file.seek(0), file.read)
    attempt(lambda: file.seek(0, 2), lambda: file.write(data), lambda: file.seek(1), lambda: list(file), file.isatty)
    attempt(lambda: file.seek(-1), lambda: file.truncate(30), lambda: file.seek(0, 2))
    file.close()
    attempt(file.read, lambda: file.write(data), file.tell, file.close, lambda: file.closed)
    return said


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("buffering", [-1, 0, 1, 100])
def test_as_the_builtin_open(fs: unionfs.UnionFS, scratch: Path, mode: str, buffering: int) -> None:
    if (buffering == 0 and "b" not in mode) or (buffering == 1 and "b" in mode):
        return
    for path in ("d/one", "d/two", "e/deep", "d/new", "no/new", "d"):
        results = []
        for opened in (lambda p, **k: open(scratch / "plain" / p, mode, **k), lambda p, **k: fs.open(p, mode, **k)):
            try:
                said = session(opened(path, buffering=buffering))
                said[0] = issubclass(said[0], io.RawIOBase) or said[0]
            except OSError as error:
                said = [type(error), error.errno]
            results.append(said)
        assert results[0] == results[1], path
    for path in ("d/one", "d/two", "e/deep", "d/new"):
        plain = scratch / "plain" / path
        assert fs.exists(path) == plain.exists()
        if plain.exists():
            assert fs.read_bytes(path) == plain.read_bytes()
            assert fs.stat(path).st_size == plain.stat().st_size


def test_wrong_arguments_are_those_of_open(fs: unionfs.UnionFS, scratch: Path) -> None:
    for arguments in ({"mode": "q"}, {"mode": "rw"}, {"mode": ""}, {"mode": "rr"}, {"mode": "rtb"}, {"buffering": 0},
                      {"mode": "rb", "encoding": "utf-8"}, {"mode": "rb", "newline": "\n"}, {"newline": "x"},
                      {"encoding": "no-such-encoding"}):  # fmt: skip
        for opened, path in ((open, str(scratch / "plain/d/one")), (fs.open, "/d/one")):
            with pytest.raises((ValueError, LookupError)):
                opened(path, **arguments)


def test_errors_name_the_path(fs: unionfs.UnionFS) -> None:
    for path, mode in (("/no", "r"), ("/d", "r"), ("/d", "w"), (b"/no/x", "w"), ("/d/one", "x"), ("/d/one/x", "a")):
        with pytest.raises(OSError) as caught:
            fs.open(path, mode)
        assert caught.value.filename == path


def test_name_encoding_and_newlines(fs: unionfs.UnionFS) -> None:
    file: Any
    with fs.open("/d/new", "w", encoding="utf-16", newline="\r\n") as file:
        assert (file.name, file.mode, file.encoding) == ("/d/new", "w", "utf-16")
        file.write("ü\n")
    assert fs.read_bytes("/d/new") == "ü\r\n".encode("utf-16")
    with fs.open(b"/d/new", "rb") as file:
        assert file.name == b"/d/new"


def test_creating_through_a_dangling_link(fs: unionfs.UnionFS) -> None:
    fs.symlink("d/made", "/to")
    fs.symlink("../to", "/d/on")
    fs.write_text("/d/on", "x")
    assert fs.read_text("/d/made") == "x"
    assert fs.islink("/to")
    with pytest.raises(FileExistsError):
        fs.open("/to", "x")
    fs.symlink("self", "/self")
    with pytest.raises(OSError, match="symbolic links"):
        fs.open("/self", "w")
    fs.symlink("/none/x", "/out")
    with pytest.raises(FileNotFoundError):
        fs.open("/out", "w")


@pytest.mark.parametrize("buffering", [0, -1])
def test_a_reader_from_before_the_copy_up_reads_what_is_written_after(fs: unionfs.UnionFS, buffering: int) -> None:
    reader: Any = fs.open("/d/one", "rb", buffering)
    assert reader.read(4) == b"from"
    with fs.open("/d/one", "r+b") as writer:
        writer.seek(4)
        writer.write(b"*UP*")
    if buffering:
        reader.seek(4)  # as a plain file's buffer would have to
        reader.flush()
        reader = reader.detach()
        reader.seek(4)
    assert reader.read(4) == b"*UP*"
    assert reader.tell() == 8
    reader.close()


def test_open_files_outlive_unlink_and_close(fs: unionfs.UnionFS) -> None:
    reader, writer = fs.open("/d/one"), fs.open("/d/two", "r+")
    fs.unlink("/d/one")
    fs.unlink("/d/two")
    assert reader.read() == "from a\nline two\n"
    writer.write("FROM")
    writer.seek(0)
    assert writer.read() == "FROM b"
    fs.close()
    writer.seek(0)
    assert writer.read() == "FROM b"
    reader.close()
    writer.close()


def needs_descriptors(fs: unionfs.UnionFS) -> None:
    with fs.open("/d/one") as file:
        try:
            file.fileno()
        except io.UnsupportedOperation:
            pytest.skip("not applicable: these layers have no descriptors")


def test_subprocesses_and_maps_take_them(fs: unionfs.UnionFS) -> None:
    needs_descriptors(fs)
    with fs.open("/d/one", "rb", 0) as file:
        assert file.read(5) == b"from "
        assert subprocess.run(["cat"], stdin=file, capture_output=True, check=True).stdout == b"a\nline two\n"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert mapped[:6] == b"from a"
    if isinstance(fs.tree.upper, unionfs.MemoryLayer):
        return
    with fs.open("/d/out", "wb") as file:
        subprocess.run(["echo", "said"], stdout=file, check=True)
    assert fs.read_text("/d/out") == "said\n"


def test_metadata_are_never_stale_while_others_write(fs: unionfs.UnionFS) -> None:
    needs_descriptors(fs)
    if isinstance(fs.tree.upper, unionfs.MemoryLayer):
        return
    for _ in range(3):
        assert fs.stat("/d/one").st_size == 16
    file = fs.open("/d/one", "r+b", 0)
    for size in (20, 30, 40):
        os.ftruncate(file.fileno(), size)
        assert fs.stat("/d/one").st_size == fs.lstat("/d/one").st_size == size
    held = os.dup(file.fileno())  # as a child has it
    file.close()
    for size in (50, 60):
        os.ftruncate(held, size)
        assert fs.stat("/d/one").st_size == size
        assert fs.stat("/d/one").st_size == size
    os.close(held)
    with fs.open("/d/two", "r+b", 0) as other:
        for i in range(5):
            other.seek(0, 2)
            other.write(b"x")
            assert fs.stat("/d/two").st_size == 7 + i


def test_only_a_question_for_the_descriptor_counts_as_sharing(fs: unionfs.UnionFS) -> None:
    """The buffers and the text layer of io must not ask for it by themselves, or nothing would ever be kept."""
    for mode in ("w", "w+", "r+b", "a", "r+"):
        with fs.open("/d/two", mode) as file:
            file.read() if "+" in mode else file.write("x")
        fs.stat("/d/two")
    assert not fs.tree.lookup(fs.tree.lookup(fs.tree.root, b"d"), b"two").uncached  # type: ignore[attr-defined]


def test_lost_files_are_told_and_closed(fs: unionfs.UnionFS) -> None:
    for mode, buffering in (("r", -1), ("rb", 0), ("wb", -1), ("w+b", 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            file = fs.open("/d/two", mode, buffering)
            name = f"{file!r}"
            del file
            gc.collect()
        assert [str(warning.message) for warning in caught] == [f"unclosed file {name}"], mode
        assert fs.tree.lookup(fs.tree.lookup(fs.tree.root, b"d"), b"two").open is None  # type: ignore[attr-defined]


def test_a_copy_up_under_busy_readers(fs: unionfs.UnionFS) -> None:
    """Eight threads, each with a file of its own on one node; every byte is read once and in order."""
    fs.write_bytes("/d/big", b"")
    size = 1 << 18
    pattern = bytes(range(256)) * (size // 256)
    fs.write_bytes("/big", pattern)
    start = threading.Barrier(9)
    wrong: list[object] = []

    def read() -> None:
        with fs.open("/e/deep", "rb", 0) as file:
            start.wait()
            data = b"".join(iter(lambda: file.read(7), b""))
            if data != b"c" * 10000:
                wrong.append(len(data))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    fs.open("/e/deep", "r+b").close()
    for thread in threads:
        thread.join()
    assert not wrong


def test_descriptors_do_not_leak(fs: unionfs.UnionFS) -> None:
    def use() -> None:
        for _ in range(50):
            with fs.open("/d/one") as file, fs.open("/d/new", "w") as other:
                other.write(file.read())
        with pytest.raises(LookupError):
            fs.open("/d/one", encoding="none-such")

    use()
    before = len(os.listdir("/proc/self/fd"))
    use()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_descriptor_is_not_inherited_unless_given(fs: unionfs.UnionFS) -> None:
    needs_descriptors(fs)
    file: Any
    with fs.open("/d/one", "rb") as file:
        assert not os.get_inheritable(file.fileno())
        assert isinstance(file.raw, DescriptorFile) == (not isinstance(fs.tree.upper, unionfs.MemoryLayer))
        done = subprocess.run([sys.executable, "-c", f"import os; os.fstat({file.fileno()})"], capture_output=True)
        assert done.returncode

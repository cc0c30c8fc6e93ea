"""The tar writer: other programs read what it writes, exactly, and it writes the same bytes for the same entries."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import archives
from tests.archives import packed, unpacked
from unionfs.errors import UnionError
from unionfs.layer.protocol import DT_BLK, DT_CHR, DT_DIR, DT_FIFO, DT_LNK, DT_REG, DT_SOCK, DT_WHT
from unionfs.layer.whiteout import TRANSIT_OPAQUE, to_transit
from unionfs.oci.tar import Entry, TarWriter, read_layer

LONG = b"/".join(b"%03d" % n * 60 for n in range(4))
"""A path that fits no header."""
TIME = 1_700_000_000_123_456_789

TREE: list[tuple[Entry, bytes]] = [
    (Entry(b"", DT_DIR, 0o755, mtime_ns=TIME), b""),
    (Entry(b"d", DT_DIR, 0o1777, 7, 8, mtime_ns=TIME + 1), b""),
    (Entry(b"d/program", DT_REG, 0o6755, 1000, 1000, size=5, mtime_ns=1_600_000_000 * 10**9), b"hello"),
    (Entry(b"d/large ids", DT_REG, 0o644, 1 << 31, (1 << 32) - 2, mtime_ns=TIME), b""),
    (Entry(b"d/more", DT_REG, 0o600, size=70_000, mtime_ns=-1_500_000_000), b"0123456" * 10_000),
    (Entry(b"d/name", DT_REG, 0o6755, 1000, 1000, hardlink=b"d/program", mtime_ns=1_600_000_000 * 10**9), b""),
    (Entry(b"link", DT_LNK, 0o777, target=b"d/program", mtime_ns=TIME), b""),
    (Entry(b"long link", DT_LNK, 0o777, 1, 2, target=b"../" * 60 + b"x"), b""),
    (Entry(b"null", DT_CHR, 0o666, rdev=os.makedev(1, 3), mtime_ns=5 * 10**9), b""),
    (Entry(b"disk", DT_BLK, 0o660, 0, 6, rdev=os.makedev(259, 100_000)), b""),
    (Entry(b"pipe", DT_FIFO, 0o620), b""),
    (Entry(b"caf\xc3\xa9", DT_REG, 0o644, size=1), b"x"),
    (Entry(b"latin \xe9", DT_REG, 0o644, size=1), b"y"),
    (Entry(b"new\nline", DT_REG, 0o644, mtime_ns=8**11 * 10**9), b""),
    (Entry(LONG[:183], DT_DIR, 0o700), b""),
    (Entry(LONG[:367], DT_DIR, 0o700), b""),
    (Entry(LONG[:551], DT_DIR, 0o700), b""),
    (Entry(LONG, DT_REG, 0o644, size=3), b"far"),
    (Entry(b"name of the long one", DT_REG, 0o644, hardlink=LONG), b""),
    (Entry(b"u" * 90, DT_DIR, 0o755), b""),
    (Entry(b"u" * 90 + b"/" + b"v" * 90, DT_REG, 0o640, size=2), b"uv"),
    (Entry(b"q", DT_REG, 0o644, xattrs=((b"user.raw", b"\0\xff=\n"), (b"user.a", b"1")), mtime_ns=TIME), b""),
]


def test_what_is_written_is_read():
    for (entry, data), (read, found) in zip(TREE, unpacked(packed(TREE)), strict=True):
        assert read == attrs.evolve(entry, xattrs=tuple(sorted(entry.xattrs)))
        assert found == (data if entry.kind == DT_REG and entry.hardlink is None else None)


def test_the_bytes_are_the_same_for_ever():
    """The digest of an image is made of this: it may change with a new major version only."""
    golden = [*TREE, (Entry(b"d/gone", DT_WHT), b""), (Entry(b"o", DT_DIR, 0o711, opaque=True), b"")]
    data = packed(golden)
    assert len(data) % 512 == 0
    assert data.endswith(bytes(1024))
    assert hashlib.sha256(data).hexdigest() == "c20c2196fa039cfdf8d6f41831bcca0c05e838d9b86c2f0015d02a7264c527c6"


def test_a_plain_entry_is_one_ustar_header():
    data = packed([(Entry(b"a", DT_REG, 0o644, 1, 2, 3 * 10**9, 4), b"data")])
    assert len(data) == 512 + 512 + 1024
    ours = tarfile.TarInfo("a")
    ours.mode, ours.uid, ours.gid, ours.mtime, ours.size = 0o644, 1, 2, 3, 4
    theirs = ours.tobuf(tarfile.USTAR_FORMAT)
    # All but the numbers of a device that it is not, which Python leaves empty, and the checksum over them.
    for part in (slice(148), slice(156, 329), slice(345, 512)):
        assert data[part] == theirs[part]
    assert data[329:345] == b"0000000\0" * 2


def test_the_chunks_do_not_matter():
    data = bytes(range(256)) * 200
    entry = Entry(b"a", DT_REG, size=len(data))
    archives_made = []
    for size in (1, 511, 4095, 4096, 50_000, len(data)):
        buffer = bytearray(size)

        def chunks(size=size, buffer=buffer):
            for at in range(0, len(data), size):
                piece = data[at : at + size]
                buffer[: len(piece)] = piece
                yield memoryview(buffer)[: len(piece)]

        found = io.BytesIO()
        writer = TarWriter(found.write)
        writer.add(entry, chunks())
        writer.finish()
        archives_made.append(found.getvalue())
    assert archives_made == [packed([(entry, data)])] * 6


def test_large_data_are_not_copied():
    data = bytearray(1 << 20)
    pieces: list[bytes | memoryview] = []
    writer = TarWriter(pieces.append)
    writer.add(Entry(b"a", DT_REG, size=len(data)), [view := memoryview(data)])
    writer.finish()
    assert any(piece is view for piece in pieces)


@pytest.mark.parametrize("data", [[], [b"abc"], [b"abcd", b""], [b"abcdef"], [b"abcd", b"e", b"f"]])
def test_data_of_another_size_raise(data):
    with pytest.raises(UnionError, match=r"^archive entry 'x/y': .* 5"):
        TarWriter(lambda _: None).add(Entry(b"x/y", DT_REG, size=5), data)


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        (Entry(b"s", DT_SOCK), "socket"),
        (Entry(b"c", DT_CHR), "0:0"),
        (Entry(b"a/" + to_transit(b"b"), DT_REG), "reserved"),
        (Entry(to_transit(b"b") + b"/c", DT_DIR), "reserved"),
        (Entry(b"a\0b", DT_REG), "NUL"),
        (Entry(b"l", DT_LNK, target=b"a\0b"), "NUL"),
        (Entry(b"", DT_REG), "root"),
        (Entry(b"", DT_WHT), "root"),
        (Entry(b"a", DT_REG, uid=-1), "negative"),
        (Entry(b"a", DT_REG, xattrs=((b"", b"x"),)), "extended attribute"),
    ],
)
def test_what_no_layer_can_hold_is_refused(entry, rule):
    with pytest.raises(UnionError, match=rule) as caught:
        TarWriter(lambda _: None).add(entry)
    assert "\n" not in str(caught.value)


def test_a_name_that_only_has_the_prefix_inside_may_travel():
    name = b"a" + to_transit(b"b")
    assert [entry.path for entry, _ in unpacked(packed([(Entry(name, DT_REG), b"")]))] == [name]


def test_whiteouts_are_empty_files_with_names_of_their_own():
    data = packed([(Entry(b"a/b", DT_WHT), b""), (Entry(b"o", DT_DIR, 0o700, 1, 1, opaque=True), b"")])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = [(each.name.encode(), each.mode, each.uid, each.mtime, each.size, each.isreg()) for each in tar]
    assert found == [
        (b"a/" + to_transit(b"b"), 0, 0, 0, 0, True),
        (b"o", 0o700, 1, 0, 0, False),
        (b"o/" + TRANSIT_OPAQUE, 0, 0, 0, 0, True),
    ]
    assert [entry for entry, _ in unpacked(data)] == [
        Entry(b"a/b", DT_WHT),
        Entry(b"o", DT_DIR, 0o700, 1, 1, opaque=True),
    ]


@pytest.mark.parametrize("path", [b"", b"o"])
def test_the_marker_of_a_directory_may_come_alone(path):
    data = packed([(Entry(path, DT_WHT, opaque=True), b""), (Entry(b"z", DT_REG), b"")])
    (entry, _), _ = unpacked(data)
    assert (entry.path, entry.kind, entry.opaque, entry.is_marker) == (path, DT_WHT, True, True)


@pytest.mark.parametrize("length", [99, 100, 101, 155, 156, 200, 255, 256, 257, 300])
@pytest.mark.parametrize("kind", [DT_REG, DT_DIR])
def test_names_of_any_length_are_read_by_python_too(length, kind):
    for slash in (50, 98, 99, 100, 101, 150, 154, 155, 156):
        path = b"n" * length if slash >= length - 1 else b"p" * slash + b"/" + b"n" * (length - slash - 1)
        if max(map(len, path.split(b"/"))) > 255:
            continue
        data = packed([(Entry(path, kind, 0o700), b"")])
        assert unpacked(data)[0][0].path == path
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert [each.name.encode() for each in tar] == [path]


def test_a_large_size_stands_in_the_header():
    size = (8 << 30) + 12345
    found = io.BytesIO()
    writer = TarWriter(found.write)
    with pytest.raises(UnionError, match="0 bytes of data"):
        writer.add(Entry(b"huge", DT_REG, 0o644, size=size))
    writer._flush()
    data = found.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data + bytes(1024))) as tar:
        assert [each.size for each in [tar.next()] if each] == [size]
    entry, content = next(read_layer(io.BytesIO(data)))
    assert (entry.size, content is not None) == (size, True)
    listed = subprocess.run(["tar", "-tvf", "-"], input=data, capture_output=True)
    assert str(size).encode() in listed.stdout


# Other programs


@pytest.mark.root
@pytest.mark.needs("tar")
def test_gnu_tar_extracts_it_exactly(scratch: Path):
    extract(scratch, "tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--warning=no-timestamp", "-xpf", "-")


@pytest.mark.root
@pytest.mark.needs("bsdtar")
def test_bsdtar_extracts_it_exactly(scratch: Path):
    extract(scratch, "bsdtar", "--numeric-owner", "--xattrs", "-xpf", "-")


def extract(directory: Path, *command: str) -> None:
    binary = (Entry(b"\xff" * 120, DT_REG, 0o644, size=3), b"bin")
    data = packed([*TREE, binary])
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    done = subprocess.run(command, cwd=directory, input=data, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()) <= {b"tar: Ignoring unknown extended header keyword 'hdrcharset'"}
    for entry, content in [*TREE, binary]:
        path = os.path.join(os.fsencode(directory), entry.path)
        found = os.lstat(path)
        assert found.st_mode >> 12 == entry.kind, entry
        if entry.kind != DT_LNK:
            assert stat.S_IMODE(found.st_mode) == entry.mode, entry
        assert (found.st_uid, found.st_gid) == (entry.uid, entry.gid), entry
        if entry.hardlink is not None:
            assert os.path.samefile(path, os.path.join(os.fsencode(directory), entry.hardlink))
            continue
        if entry.path:  # bsdtar leaves the time of the directory that it is in
            # libarchive takes a fraction before the epoch for one after the second.
            wrong = command[0] == "bsdtar" and entry.mtime_ns < 0
            assert found.st_mtime_ns == (-500_000_000 if wrong else entry.mtime_ns), entry
        if entry.kind == DT_REG:
            with open(path, "rb") as file:
                assert file.read() == content
        elif entry.kind == DT_LNK:
            assert os.readlink(path) == entry.target
        elif entry.kind in (DT_CHR, DT_BLK):
            assert found.st_rdev == entry.rdev
        if entry.kind != DT_LNK:
            assert {os.fsencode(key): os.getxattr(path, key) for key in os.listxattr(path)} == dict(entry.xattrs)


# Any entries

names = st.binary(min_size=1, max_size=40).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"-"))
components = names.filter(lambda name: name not in (b".", b"..") and not archives.is_reserved(name))
paths = st.lists(components, min_size=1, max_size=12).map(b"/".join)
times = st.integers(-(2**60), 2**60) | st.integers(-(2**33), 2**34).map(lambda seconds: seconds * 10**9)
ids = st.integers(0, 2**32 - 2) | st.integers(0, 2000)
attributes = st.dictionaries(
    st.binary(min_size=1, max_size=30).filter(lambda key: b"\0" not in key), st.binary(), max_size=3
).map(lambda found: tuple(sorted(found.items())))
common = {
    "path": paths,
    "mode": st.integers(0, 0o7777),
    "uid": ids,
    "gid": ids,
    "mtime_ns": times,
    "xattrs": attributes,
}
files = st.binary(max_size=2000)
targets = st.binary(min_size=1, max_size=300).filter(lambda target: b"\0" not in target)
devices = st.builds(os.makedev, st.integers(1, 4095), st.integers(0, 2**20 - 1))
entries = st.one_of(
    st.builds(lambda data, **fields: (Entry(kind=DT_REG, size=len(data), **fields), data), files, **common),
    st.builds(lambda **fields: (Entry(kind=DT_DIR, **fields), b""), opaque=st.booleans(), **common),
    st.builds(lambda **fields: (Entry(kind=DT_LNK, **fields), b""), target=targets, **common),
    st.builds(lambda **fields: (Entry(**fields), b""), kind=st.sampled_from([DT_CHR, DT_BLK]), rdev=devices, **common),
    st.builds(lambda path: (Entry(path, DT_WHT), b""), paths),
)


@given(st.lists(entries, max_size=6))
def test_any_entries_come_back(tree):
    assert [(entry, data or b"") for entry, data in unpacked(packed(tree))] == tree


@given(entries.filter(lambda each: each[0].kind != DT_WHT and not each[0].opaque))
def test_python_reads_any_entry(each):
    entry, data = each
    with tarfile.open(fileobj=io.BytesIO(packed([each])), encoding="utf-8", errors="surrogateescape") as tar:
        (found,) = tar.getmembers()
        assert os.fsencode(found.name) == entry.path
        assert (found.mode, found.uid, found.gid) == (entry.mode, entry.uid, entry.gid)
        assert os.fsencode(found.linkname) == entry.target
        if entry.kind == DT_REG:
            assert (content := tar.extractfile(found))
            assert content.read() == data

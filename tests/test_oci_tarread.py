"""The tar reader: all formats of other programs, and archives made to do harm."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.archives import Pipe, packed, unpacked
from unionfs.errors import UnionError
from unionfs.layer.protocol import DT_CHR, DT_DIR, DT_LNK, DT_REG, DT_WHT
from unionfs.layer.whiteout import TRANSIT_OPAQUE, to_transit
from unionfs.oci.tar import Entry, Limits, read_layer

MARKER = TRANSIT_OPAQUE.decode()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for key, value in fields.items():
        setattr(found, key, value)
    return found


def archive(
    *members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], form: Literal[0, 1, 2] = tarfile.GNU_FORMAT
) -> bytes:
    """The archive of `members`, with data of the right size or, given alone, without any."""
    found = b""
    for each in members:
        info, data = each if isinstance(each, tuple) else (each, b"")
        if data and not info.size:
            info.size = len(data)
        found += info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)
    return found + bytes(1024)


def raw(name: bytes, kind: bytes = b"0", data: bytes = b"", **fields: bytes) -> bytes:
    """A header as no program would write it, and data; `fields` by their offset, `at_257=b"…"`."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:157] = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % len(data) + b"00000000000\0" + b" " * 8 + kind
    block[257:265] = b"ustar\x0000"
    for at, value in fields.items():
        offset = int(at.removeprefix("at_"))
        block[offset : offset + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    data = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while len(b"%d" % length) + len(key) + len(value) + 3 != length:
            length = len(b"%d" % length) + len(key) + len(value) + 3
        data += b"%d %b=%b\n" % (length, key, value)
    return raw(b"pax", kind, data)


END = bytes(1024)


# What others write


@pytest.mark.needs("tar")
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_archives_of_gnu_tar(form, scratch: Path):
    check(scratch, form, ["tar", f"--format={form}", "--numeric-owner", "-cf", "-", "-C", "tree", "."])


@pytest.mark.needs("bsdtar")
@pytest.mark.parametrize("form", ["v7", "gnutar", "ustar", "pax"])
def test_archives_of_bsdtar(form, scratch: Path):
    check(scratch, form, ["bsdtar", f"--format={form}", "--numeric-owner", "-cf", "-", "-C", "tree", "."])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_python(form, scratch: Path):
    program = "import sys, tarfile\nwith tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=%d) as tar:"
    program = program % form + "\n    tar.add('tree', '.')"
    # Its times are floats, so not exact, and its pax times have fractions.
    check(scratch, "ustar" if form == tarfile.USTAR_FORMAT else "python", [sys.executable, "-c", program])


def check(directory: Path, form: str, command: list[str]) -> None:
    tree = directory / "tree"
    deep = "ustar" if form in ("v7", "ustar") else "n" * 120 + "/" + "m" * 200
    (tree / deep).parent.mkdir(parents=True)
    contents = {"a": b"", "b": b"x" * 511, "c": b"y" * 512, "d": b"z" * 100_001, "caf\xe9": b"1", deep: b"far"}
    for name, data in contents.items():
        (tree / name).write_bytes(data)
        os.utime(tree / name, ns=(0, 1_700_000_000_123_456_789))
    os.chmod(tree / "a", 0o4711)
    os.symlink("a" * (90 if form in ("v7", "ustar") else 300), tree / "link")
    os.link(tree / "d", tree / "other")
    data = subprocess.run(command, cwd=directory, capture_output=True, check=True).stdout
    found = {os.fsdecode(entry.path): (entry, content) for entry, content in unpacked(data)}
    for name, expected in contents.items():
        entry, content = found[name]
        if entry.hardlink is not None:
            assert name == "d"
            assert (entry.hardlink, found["other"][1]) == (b"other", expected)
            continue
        assert content == expected
        wanted = 1_700_000_000_123_456_789 if form in ("posix", "pax") else 1_700_000_000 * 10**9
        assert abs(entry.mtime_ns - wanted) <= (200_000_000 if form == "python" else 0)
        on_disk = os.stat(tree / name)
        assert (entry.kind, entry.mode, entry.uid, entry.gid) == (
            DT_REG,
            on_disk.st_mode & 0o7777,
            on_disk.st_uid,
            on_disk.st_gid,
        )
    assert found["link"][0].kind == DT_LNK
    assert os.fsdecode(found["link"][0].target) == os.readlink(tree / "link")
    assert {found["d"][0].hardlink, found["other"][0].hardlink} in ({None, b"d"}, {None, b"other"})
    assert found[""][0].kind == DT_DIR
    assert set(found) == {os.path.relpath(path, tree).removeprefix(".") for path in (tree, *tree.rglob("*"))}


@pytest.mark.root
@pytest.mark.needs("tar", "bsdtar")
@pytest.mark.parametrize("program", ["tar --format=posix --xattrs --xattrs-include=*", "bsdtar --format=pax --xattrs"])
def test_attributes_and_devices_of_others(program, scratch: Path):
    tree = scratch / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x")
    values = {"user.raw": b"\0\xff\n=", "user.with=sign": b"1", "trusted.x": b"y"}
    if program.startswith("bsdtar"):
        del values["user.with=sign"]  # it leaves the sign as it is, and so breaks the record in two
    for key, value in values.items():
        os.setxattr(tree / "file", key, value)
    os.mknod(tree / "null", 0o020644, os.makedev(1, 3))
    os.mkfifo(tree / "pipe")
    data = subprocess.run([*program.split(), "-cf", "-", "."], cwd=tree, capture_output=True, check=True).stdout
    found = {entry.path: entry for entry, _ in unpacked(data)}
    assert dict(found[b"file"].xattrs) == {key.encode(): value for key, value in values.items()}
    assert (found[b"null"].kind, found[b"null"].rdev) == (DT_CHR, os.makedev(1, 3))


SPARSE = [
    "--format=gnu",
    "--format=posix --sparse-version=0.0",
    "--format=posix --sparse-version=0.1",
    "--format=posix",
]


@pytest.mark.needs("tar")
@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("pieces", [0, 1, 3, 4, 5, 30, 200])
def test_sparse_files(form, pieces, scratch: Path):
    expected = {}
    for end in (0, 12345):
        with open(scratch / f"holes{end}", "wb") as file:
            for piece in range(pieces):
                file.seek(piece * 20_000 + 8192)
                file.write(b"%d" % piece * 2000)
            file.truncate(pieces * 20_000 + 8192 + end)
        expected[f"holes{end}".encode()] = (scratch / f"holes{end}").read_bytes()
    command = ["tar", *form.split(), "--sparse", "--hole-detection=raw", "-cf", "-", *map(os.fsdecode, expected)]
    data = subprocess.run(command, cwd=scratch, capture_output=True, check=True).stdout
    if pieces == 5:
        assert len(data) < len(expected[b"holes0"])
    assert {entry.path: content for entry, content in unpacked(data)} == expected
    for entry, content in read_layer(Pipe(data)):
        assert content is not None
        assert content.read(9000) == expected[entry.path][:9000]
        assert content.tell() == min(9000, entry.size)


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        bz2.compress,
        lzma.compress,
        lambda data: gzip.compress(data[:700]) + gzip.compress(b"") + gzip.compress(data[700:]) + bytes(7),
        lambda data: bz2.compress(data[:700]) + bz2.compress(data[700:]),
        lambda data: lzma.compress(data[:700]) + lzma.compress(data[700:]) + bytes(8),
    ],
)
def test_compressed_streams(compress):
    tree = [(Entry(b"a", DT_REG, size=300_000), os.urandom(1000) * 300)]
    data = compress(packed(tree))
    assert unpacked(data) == tree
    with pytest.raises(UnionError, match="cut off"):
        unpacked(data[: len(data) // 2])
    with pytest.raises(UnionError, match="damaged"):
        unpacked(data[:20] + bytes(30) + data[50:])


@pytest.mark.needs("zstd")
def test_zstd():
    tree = [(Entry(b"a", DT_REG, size=300_000), os.urandom(1000) * 300)]
    plain = packed(tree)
    frames = [
        subprocess.run(["zstd", "-c"], input=part, capture_output=True).stdout for part in (plain[:700], plain[700:])
    ]
    skippable = b"\x50\x2a\x4d\x18\4\0\0\0abcd"
    for data in (b"".join(frames), skippable + b"".join(frames) + skippable):
        assert unpacked(data) == tree
    with pytest.raises(UnionError, match="cut off"):
        unpacked(b"".join(frames)[:-200])
    with pytest.raises(UnionError, match="damaged"):
        unpacked(frames[0] + b"not zstd at all")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="not applicable: this Python reads zstd itself")
def test_zstd_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UnionError, match="install the package zstandard"):
        unpacked(b"\x28\xb5\x2f\xfd" + bytes(100))


def test_the_data_are_gone_with_the_next_entry():
    tree = [(Entry(b"a", DT_REG, size=5000), b"a" * 5000), (Entry(b"b", DT_REG, size=3), b"bcd")]
    reader = read_layer(Pipe(packed(tree)))
    _, first = next(reader)
    assert first is not None
    assert first.read(10) == b"a" * 10
    entry, second = next(reader)
    assert second is not None
    assert (entry.path, second.read(), second.read()) == (b"b", b"bcd", b"")
    with pytest.raises(ValueError, match="gone"):
        first.read(1)


def test_a_buffer_is_filled():
    ((_, content),) = [next(read_layer(Pipe(packed([(Entry(b"a", DT_REG, size=5000), b"ab" * 2500)]))))]
    assert content is not None
    buffer = bytearray(6000)
    assert content.readinto(buffer) == 5000  # type: ignore[attr-defined]
    assert bytes(buffer) == b"ab" * 2500 + bytes(1000)


# Names and whiteouts


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("./a/b", b"a/b"),
        ("/a", b"a"),
        ("//a//b", b"a/b"),
        ("a/./b", b"a/b"),
        ("..a/b..", b"..a/b.."),
        ("a/b/.", b"a/b"),
    ],
)
def test_names_are_made_relative(name, path):
    assert [entry.path for entry, _ in unpacked(archive(member(name)))] == [path]


def test_the_later_of_two_names_is_there_too():
    data = archive((member("a"), b"1"), (member("a"), b"22"))
    assert [(entry.path, content) for entry, content in unpacked(data)] == [(b"a", b"1"), (b"a", b"22")]


def test_a_marker_after_other_entries_is_an_entry():
    data = archive(member("d", tarfile.DIRTYPE), member("d/x"), member(f"d/{MARKER}"), member(f"./{MARKER}"))
    found = [(entry.path, entry.kind, entry.opaque) for entry, _ in unpacked(data)]
    assert found == [(b"d", DT_DIR, False), (b"d/x", DT_REG, False), (b"d", DT_WHT, True), (b"", DT_WHT, True)]


def test_the_marker_of_another_directory_is_not_this_ones():
    data = archive(member("d", tarfile.DIRTYPE), member(f"e/{MARKER}"))
    assert [(entry.path, entry.opaque) for entry, _ in unpacked(data)] == [(b"d", False), (b"e", True)]


def test_a_whiteout_may_be_a_hard_link_as_aufs_had_them():
    name = os.fsdecode(to_transit(b"gone"))
    data = archive(member(name, tarfile.LNKTYPE, linkname=f"{MARKER[:8]}aufs"))
    assert [entry for entry, _ in unpacked(data)] == [Entry(b"gone", DT_WHT)]


def test_what_aufs_kept_for_itself_is_left_out():
    own = MARKER[:8]
    data = archive((member(f"{own}plnk/1.2"), b"data"), member(f"{own}aufs"), (member("a"), b"1"))
    assert [entry.path for entry, _ in unpacked(data)] == [b"a"]


def test_old_directories_end_in_a_slash():
    data = raw(b"d/", b"\0", at_257=bytes(8)) + END
    assert [(entry.path, entry.kind) for entry, _ in unpacked(data)] == [(b"d", DT_DIR)]


def test_empty_pax_values_take_nothing_away_from_the_header():
    data = pax((b"path", b"x"), (b"path", b"")) + raw(b"a") + END
    # The last record of a name counts, and an empty one leaves the header's (POSIX).
    assert [entry.path for entry, _ in unpacked(data)] == [b"a"]


def test_global_records_count_for_owners_and_times():
    data = pax((b"mtime", b"12.5"), (b"comment", b"hello"), (b"uid", b"7"), kind=b"g") + raw(b"a")
    data += pax((b"uid", b"8")) + raw(b"b") + pax((b"mtime", b""), kind=b"g") + raw(b"c") + END
    found = [(entry.path, entry.mtime_ns, entry.uid) for entry, _ in unpacked(data)]
    assert found == [(b"a", 12_500_000_000, 7), (b"b", 12_500_000_000, 8), (b"c", 0, 7)]


def test_what_follows_the_end_is_left_out():
    assert [entry.path for entry, _ in unpacked(raw(b"a") + END + raw(b"b") + os.urandom(70_000))] == [b"a"]


# Harm

HARMFUL: dict[str, tuple[bytes, str]] = {
    "above": (archive(member("a/../../b")), r"'a/../../b': '\.\.'"),
    "above, inside": (archive(member("a/../b")), r"'\.\.'"),
    "no name": (raw(b"") + END, "empty name"),
    "NUL": (pax((b"path", b"a\0b")) + raw(b"x") + END, "NUL"),
    "long name": (archive(member("n" * 256)), "256 bytes; 255"),
    "long path": (archive(member("a/" * 40_000 + "b")), "80001 bytes; 65536"),
    "deep path": (archive(member("a/" * 4096 + "b")), "4097 names; 4096"),
    "long whiteout": (archive(member(os.fsdecode(to_transit(b"n" * 256)))), "256 bytes"),
    "root as file": (archive(member("./.")), "root can only be a directory"),
    "link out": (archive(member("a", tarfile.LNKTYPE, linkname="../../etc/passwd")), r"'a': .*'\.\.'"),
    "link to later": (archive(member("a", tarfile.LNKTYPE, linkname="b"), member("b")), "not before it"),
    "link to itself": (archive(member("a", tarfile.LNKTYPE, linkname="a")), "not before it"),
    "link to itself, again": (archive(member("a"), member("a", tarfile.LNKTYPE, linkname="a")), "to itself"),
    "link to a directory": (
        archive(member("d", tarfile.DIRTYPE), member("a", tarfile.LNKTYPE, linkname="d")),
        "hard link to the directory",
    ),
    "link to nothing": (archive(member("a", tarfile.LNKTYPE)), "empty name"),
    "symlink to nothing": (archive(member("a", tarfile.SYMTYPE)), "symbolic link's target"),
    "long symlink": (archive(member("a", tarfile.SYMTYPE, linkname="x" * 4096)), "symbolic link's target"),
    "device 0:0": (archive(member("a", tarfile.CHRTYPE)), "0:0"),
    "device": (archive(member("a", tarfile.BLKTYPE, devmajor=5000)), "5000:0"),
    "checksum": (b"x" + archive(member("a"))[1:], "before its first entry: .* checksum"),
    "second checksum": (raw(b"a") + b"x" * 512 + END, "after entry 'a': the checksum"),
    "no archive": (b"This is a text, and not an archive at all.\n" * 30, "checksum"),
    "not octal": (raw(b"a", at_108=b"12a4567\0") + END, "uid is no octal"),
    "negative uid": (raw(b"a", at_108=b"\xff" * 8) + END, "uid -1"),
    "large uid": (pax((b"uid", b"4294967295")) + raw(b"a") + END, "uid 4294967295"),
    "negative size": (raw(b"a", at_124=b"\xff" * 12) + END, "-1 is no size"),
    "huge size": (raw(b"a", at_124=b"\x80" + b"\xff" * 11) + END, "is no size"),
    "large size": (raw(b"a", at_124=b"77777777777\0") + END, "'a': the archive is cut off"),
    "negative pax size": (pax((b"size", b"-1")) + raw(b"a") + END, "record size is no number"),
    "pax time": (pax((b"mtime", b"now")) + raw(b"a") + END, "no time"),
    "large time": (raw(b"a", at_136=b"\x80" + b"\xff" * 11) + END, "a time"),
    "pax length": (raw(b"pax", b"x", b"99 path=a\n") + raw(b"a") + END, "wrong length"),
    "pax length 0": (raw(b"pax", b"x", b"0 path=a\n") + raw(b"a") + END, "wrong length"),
    "pax without =": (raw(b"pax", b"x", b"7 path\n") + raw(b"a") + END, "no keyword"),
    "pax of nothing": (pax((b"path", b"a")) + END, "ends after a header"),
    "large pax": (raw(b"pax", b"x", bytes(1 << 20) + b"x") + raw(b"a") + END, "1048576 are allowed"),
    "many pax": (pax((b"comment", b"x" * 600_000)) * 2 + raw(b"a") + END, "more than 1048576 bytes of headers"),
    "pax said to be large": (raw(b"pax", b"x", at_124=b"\x80\0\0\0\0\0\0\0\x7f\xff\xff\xff") + END, "are allowed"),
    "xattr": (pax((b"SCHILY.xattr.user.x", b"v" * 65_537)) + raw(b"a") + END, "more than 65536"),
    "xattr name": (pax((b"SCHILY.xattr." + b"k" * 256, b"v")) + raw(b"a") + END, "no name"),
    "global path": (pax((b"path", b"x"), kind=b"g") + raw(b"a") + END, "global pax record"),
    "type": (raw(b"a", b"Z") + END, "type 'Z'"),
    "directory with data": (raw(b"a/", b"0", b"data") + END, "directory has no data"),
    "whiteout of nothing": (archive(member(os.fsdecode(to_transit(b"")))), "no name"),
    "whiteout of .": (archive(member("a/" + os.fsdecode(to_transit(b".")))), "no name"),
    "whiteout of ..": (archive(member("a/" + os.fsdecode(to_transit(b"..")))), "no name"),
    "whiteout of a whiteout": (archive(member("a/" + os.fsdecode(to_transit(to_transit(b"b"))))), "no name"),
    "below a whiteout": (archive(member(os.fsdecode(to_transit(b"a/b")))), "below a whiteout"),
    "whiteout with data": (archive((member(os.fsdecode(to_transit(b"a"))), b"x")), "empty file"),
    "whiteout as directory": (archive(member(os.fsdecode(to_transit(b"a")), tarfile.DIRTYPE)), "empty file"),
    "no end": (raw(b"a", data=b"abc"), "cut off after entry 'a'"),
    "nothing": (b"", "before its first entry"),
    "cut off in a header": (raw(b"a")[:300], "cut off"),
    "cut off in data": (raw(b"a", data=b"x" * 2000)[:-600], "'a': the archive is cut off in its data"),
    "cut off in padding": (raw(b"a", data=b"x" * 10)[:-1], "'a': the archive is cut off in its data"),
    "control characters": (archive(member("a\n\x1b[31m/../b")), r"a\\n\\x1b"),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_harm_is_refused(what):
    data, rule = HARMFUL[what]
    with pytest.raises(UnionError, match=rule) as caught:
        unpacked(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def sparse(pairs: bytes, size: bytes, data: bytes = b"") -> bytes:
    records = ((b"GNU.sparse.map", pairs), (b"GNU.sparse.size", size))
    return pax(*records) + raw(b"a", data=data) + END


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (sparse(b"0,5,3,5", b"100", b"x" * 10), "overlaps"),
        (sparse(b"10,5,0,5", b"100", b"x" * 10), "out of order"),
        (sparse(b"0,5", b"3", b"x" * 5), "past its size"),
        (sparse(b"0,5", b"9", b"x" * 6), "add up"),
        (sparse(b"0,5,7", b"9", b"x" * 5), "without a length"),
        (sparse(b"0,-5", b"9", b"x" * 5), "no number"),
        (sparse(b"", b"99999999999999"), "larger than"),
        (pax((b"GNU.sparse.numbytes", b"1"), (b"GNU.sparse.size", b"9")) + raw(b"a") + END, "out of order"),
        (pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.name", b"b")) + raw(b"a") + END, "not known"),
        (
            pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")) + raw(b"a", data=b"9" * 512) + END,
            "longer than it may be",
        ),
        (
            pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")) + raw(b"a", data=b"9\n0\n") + END,
            "longer than it may be",
        ),
        (raw(b"a", b"S", at_482=b"\1" + b"00000000011\0") + (b"x" * 504 + b"\1" + bytes(7)) * 2200, "no octal"),
        (raw(b"a", b"S", at_482=b"\1" + b"00000000011\0") + (bytes(504) + b"\1" + bytes(7)) * 2200, "1048576"),
    ],
)
def test_harmful_maps_of_sparse_files(data, rule):
    with pytest.raises(UnionError, match=rule):
        unpacked(data)


@pytest.mark.parametrize(
    ("limits", "rule"),
    [(Limits(entries=2), "more than 2 entries"), (Limits(size=4000), "4000 bytes"), (Limits(path=3), "3 are allowed")],
)
def test_limits(limits, rule):
    data = archive((member("a/b"), b"1" * 1000), (member("c"), b"2" * 1000), member("d/ef"))
    assert len(unpacked(data)) == 3
    with pytest.raises(UnionError, match=rule):
        unpacked(data, limits)


FIELDS = [0, 100, 108, 116, 124, 136, 157, 257, 329, 345, 386, 398, 482, 483]
KINDS = [bytes([code]) for code in b"0\0001234567LKSVDMxgXZ"]
KEYS = [
    *(b"path linkpath size uid gid mtime SCHILY.xattr.user.x SCHILY.xattr. GNU.sparse.map GNU.sparse.size".split()),
    *(b"GNU.sparse.major GNU.sparse.minor GNU.sparse.realsize GNU.sparse.offset GNU.sparse.numbytes".split()),
]
VALUES = st.sampled_from([b"", b"0", b"1", b"1,2", b"0,4", b"-1", b"9" * 30, b"a/../b", b"1.5"]) | st.binary(max_size=8)
RECORDS = st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=4)
SMALL = packed([(Entry(b"a", DT_REG, size=3000, xattrs=((b"user.x", b"y"),)), bytes(range(250)) * 12)])
STREAMS = [SMALL, gzip.compress(SMALL), bz2.compress(SMALL), lzma.compress(SMALL)]


def test_all_names_together_have_a_limit():
    with pytest.raises(UnionError, match="'c': all paths together have more than 3 bytes"):
        unpacked(archive(member("aa"), member("b"), member("c")), Limits(names=3))


@pytest.mark.parametrize("first", [b"BZh91AY&SY", b"\x1f\x8b\x08", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"P*M\x18"])
def test_a_name_does_not_make_a_compressed_archive(first):
    assert [entry.path for entry, _ in unpacked(packed([(Entry(first, DT_REG), b"")]))] == [first]


@given(st.dictionaries(st.sampled_from(FIELDS), st.binary(max_size=12), max_size=4), st.sampled_from(KINDS), RECORDS)
def test_no_header_breaks_more_than_the_rules(fields, kind, records):
    overrides = {f"at_{at}": value for at, value in fields.items()}
    data = pax(*records) if records else b""
    with contextlib.suppress(UnionError):
        unpacked(data + raw(b"name", kind, b"data", **overrides) + raw(b"b") + END)


@given(st.integers(0, 3), st.lists(st.tuples(st.integers(0, 600), st.binary(min_size=1, max_size=3)), max_size=3))
def test_no_damage_of_a_stream_breaks_more_than_the_rules(which, damage):
    data = bytearray(STREAMS[which])
    for at, wrong in damage:
        data[at : at + len(wrong)] = wrong
    with contextlib.suppress(UnionError):
        unpacked(bytes(data), Limits(size=1 << 20))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_goes_off_in_small_pieces(compress):
    """100 MB in 100 KB: as much is unpacked as the limit says, and not at once."""
    bomb = compress(raw(b"a", data=b"") + bytes(512) + bytes(100 << 20))
    with pytest.raises(UnionError, match="more than 1000000 bytes"):
        unpacked(bomb, Limits(size=1_000_000))


def test_errors_of_the_stream_are_its_own():
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        list(read_layer(Broken()))  # type: ignore[arg-type]

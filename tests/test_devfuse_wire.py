"""The wire format against the kernel's own header, field by field; what values become on it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from struct import Struct

import pytest

from unionfs.mount.devfuse import wire
from unionfs.mount.devfuse.listing import DOT_DOT, Listing

KERNEL_HEADER = Path("/usr/include/linux/fuse.h")

# A structure of ours, the kernel's (two where one follows the other), and the offset of each field that we pack or
# unpack, in our order. From include/uapi/linux/fuse.h of Linux 6.18.
ATTR = "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags"
ENTRY = "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec"
IN_ATTR = " ".join(f"attr.{name}" for name in ATTR.split())
_ATTR_AT = [*range(0, 48, 8), *range(48, 88, 4)]
_ENTRY_AT = [0, 8, 16, 24, 32, 36]
LAYOUT: dict[str, tuple[Struct, int, str, str, list[int]]] = {
    "HEADER": (wire.HEADER, 40, "fuse_in_header",
               "len opcode unique nodeid uid gid pid total_extlen padding", [0, 4, 8, 16, 24, 28, 32, 36, 38]),
    "OUT_HEADER": (wire.OUT_HEADER, 16, "fuse_out_header", "len error unique", [0, 4, 8]),
    "ENTRY_OUT": (wire.ENTRY_OUT, 128, "fuse_entry_out", f"{ENTRY} {IN_ATTR}",
                  [*_ENTRY_AT, *(40 + at for at in _ATTR_AT)]),
    "NEGATIVE_OUT": (wire.NEGATIVE_OUT, 128, "fuse_entry_out", ENTRY, _ENTRY_AT),
    "ATTR_OUT": (wire.ATTR_OUT, 104, "fuse_attr_out",
                 f"attr_valid attr_valid_nsec dummy {IN_ATTR}",
                 [0, 8, 12, *(16 + at for at in _ATTR_AT)]),
    "OPEN_OUT": (wire.OPEN_OUT, 16, "fuse_open_out", "fh open_flags backing_id", [0, 8, 12]),
    "DIRENT": (wire.DIRENT, 24, "fuse_dirent", "ino off namelen type", [0, 8, 16, 20]),
    "DIRENTPLUS": (wire.DIRENTPLUS, 152, "fuse_direntplus",
                   " ".join([f"entry_out.{name}" for name in ENTRY.split()]
                            + [f"entry_out.attr.{name}" for name in ATTR.split()]
                            + [f"dirent.{name}" for name in ("ino", "off", "namelen", "type")]),
                   [*_ENTRY_AT, *(40 + at for at in _ATTR_AT), 128, 136, 144, 148]),
    "INIT_IN": (wire.INIT_IN, 20, "fuse_init_in", "major minor max_readahead flags flags2", [0, 4, 8, 12, 16]),
    "INIT_OUT": (wire.INIT_OUT, 64, "fuse_init_out",
                 ("major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages "
                  "map_alignment flags2 max_stack_depth"), [0, 4, 8, 12, 16, 18, 20, 24, 28, 30, 32, 36]),
    "SETATTR_IN": (wire.SETATTR_IN, 88, "fuse_setattr_in",
                   "valid fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused4 uid gid",
                   [0, 8, 16, 24, 32, 40, 48, 56, 60, 64, 68, 72, 76, 80]),
    "GETATTR_IN": (wire.GETATTR_IN, 16, "fuse_getattr_in", "getattr_flags fh", [0, 8]),
    "MKNOD_IN": (wire.MKNOD_IN, 16, "fuse_mknod_in", "mode rdev umask padding", [0, 4, 8, 12]),
    "MKDIR_IN": (wire.MKDIR_IN, 8, "fuse_mkdir_in", "mode umask", [0, 4]),
    "CREATE_IN": (wire.CREATE_IN, 16, "fuse_create_in", "flags mode umask open_flags", [0, 4, 8, 12]),
    "OPEN_IN": (wire.OPEN_IN, 8, "fuse_open_in", "flags open_flags", [0, 4]),
    "RW_IN": (wire.RW_IN, 40, "fuse_write_in", "fh offset size write_flags lock_owner flags padding",
              [0, 8, 16, 20, 24, 32, 36]),
    "RELEASE_IN": (wire.RELEASE_IN, 24, "fuse_release_in", "fh flags release_flags lock_owner", [0, 8, 12, 16]),
    "FSYNC_IN": (wire.FSYNC_IN, 16, "fuse_fsync_in", "fh fsync_flags padding", [0, 8, 12]),
    "SETXATTR_IN": (wire.SETXATTR_IN, 16, "fuse_setxattr_in", "size flags setxattr_flags padding", [0, 4, 8, 12]),
    "GETXATTR_IN": (wire.GETXATTR_IN, 8, "fuse_getxattr_in", "size padding", [0, 4]),
    "FALLOCATE_IN": (wire.FALLOCATE_IN, 32, "fuse_fallocate_in", "fh offset length mode padding", [0, 8, 16, 24, 28]),
    "LSEEK_IN": (wire.LSEEK_IN, 24, "fuse_lseek_in", "fh offset whence padding", [0, 8, 16, 20]),
    "COPY_IN": (wire.COPY_IN, 56, "fuse_copy_file_range_in", "fh_in off_in nodeid_out fh_out off_out len flags",
                [0, 8, 16, 24, 32, 40, 48]),
    "STATX_IN": (wire.STATX_IN, 24, "fuse_statx_in", "getattr_flags reserved fh sx_flags sx_mask", [0, 4, 8, 16, 20]),
    "STATX_OUT": (wire.STATX_OUT, 288, "fuse_statx_out",
                  "attr_valid attr_valid_nsec flags stat.mask stat.blksize stat.attributes stat.nlink stat.uid "
                  "stat.gid stat.mode stat.__spare0 stat.ino stat.size stat.blocks stat.attributes_mask "
                  + " ".join(f"stat.{time}.{part}" for time in ("atime", "btime", "ctime", "mtime")
                             for part in ("tv_sec", "tv_nsec", "__reserved"))
                  + " stat.rdev_major stat.rdev_minor stat.dev_major stat.dev_minor",
                  [0, 8, 12, 32, 36, 40, 48, 52, 56, 60, 62, 64, 72, 80, 88,
                   96, 104, 108, 112, 120, 124, 128, 136, 140, 144, 152, 156, 160, 164, 168, 172]),
    "RENAME_IN": (wire.RENAME_IN, 8, "fuse_rename_in", "newdir", [0]),
    "RENAME2_IN": (wire.RENAME2_IN, 16, "fuse_rename2_in", "newdir flags padding", [0, 8, 12]),
    "FORGET_ONE": (wire.FORGET_ONE, 16, "fuse_forget_one", "nodeid nlookup", [0, 8]),
    "FORGET_COUNT": (wire.FORGET_COUNT, 8, "fuse_batch_forget_in", "count", [0]),
    "WRITE_OUT": (wire.WRITE_OUT, 8, "fuse_write_out", "size", [0]),
    "STATFS_OUT": (wire.STATFS_OUT, 80, "fuse_statfs_out",
                   "st.blocks st.bfree st.bavail st.files st.ffree st.bsize st.namelen st.frsize st.padding",
                   [0, 8, 16, 24, 32, 40, 44, 48, 52]),
    "INVAL_INODE_OUT": (wire.INVAL_INODE_OUT, 24, "fuse_notify_inval_inode_out", "ino off len", [0, 8, 16]),
    "INVAL_ENTRY_OUT": (wire.INVAL_ENTRY_OUT, 16, "fuse_notify_inval_entry_out", "parent namelen flags", [0, 8, 12]),
}  # fmt: skip


def pieces(struct: Struct) -> list[tuple[int, int]]:
    """Offset and size of each value of a structure with ``=``, which has no padding of its own."""
    at, found = 0, []
    for count, code in re.findall(r"(\d*)([a-zA-Z])", struct.format):
        size = Struct("=" + code).size
        for _ in range(int(count or 1)):
            if code != "x":
                found.append((at, size))
            at += size
    assert at == struct.size
    return found


def test_every_structure_is_in_the_table() -> None:
    ours = {name for name, value in vars(wire).items() if isinstance(value, Struct)}
    assert ours - {"U64"} == set(LAYOUT)


@pytest.mark.parametrize("name", LAYOUT)
def test_layout(name: str) -> None:
    struct, size, _, fields, offsets = LAYOUT[name]
    assert struct.format[0] == "="
    assert struct.size == size
    assert [at for at, _ in pieces(struct)] == offsets
    assert len(fields.split()) == len(offsets)


def test_the_table_is_the_header_of_this_machine(tmp_path: Path) -> None:
    """Sizes and offsets as the C compiler sees them; what came after this machine's header is left out."""
    if shutil.which("gcc") is None or not KERNEL_HEADER.exists():
        pytest.skip("not applicable: without a C compiler and the kernel's headers, the table stands for them")
    header = re.sub(r"/\*.*?\*/", "", KERNEL_HEADER.read_text(), flags=re.DOTALL)
    lines, left_out = [], set()
    for name, (_, size, structure, fields, _) in LAYOUT.items():
        match = re.search(rf"struct {structure} \{{(.*?)\n\}};", header, re.DOTALL)
        if match is None:
            left_out.add(name)
            continue
        lines.append(f'printf("{name} . %zu %d\\n", sizeof(struct {structure}), {size});')
        for field in fields.split():
            first = field.split(".")[0]
            if not re.search(rf"\b{first}\b", match[1]) or (name == "HEADER" and "total_extlen" not in match[1]):
                left_out.add(name)
                continue
            member = f"((struct {structure} *)0)->{field}"
            lines.append(f'printf("{name} {field} %zu %zu\\n", (size_t)&{member}, sizeof({member}));')
    source = tmp_path / "sizes.c"
    text = "\n".join(lines)
    source.write_text(f"#include <stdio.h>\n#include <linux/fuse.h>\nint main(void) {{\n{text}\nreturn 0;\n}}\n")
    subprocess.run(["gcc", "-o", tmp_path / "sizes", source], check=True)
    out = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True).stdout
    expected = {name: dict(zip(entry[3].split(), pieces(entry[0]), strict=True)) for name, entry in LAYOUT.items()}
    told = [line.split() for line in out.splitlines()]
    assert len(told) > 100
    for name, field, at, told_size in told:
        if field == ".":
            # Of INIT_IN, only the beginning is read.
            assert at == told_size or name in left_out | {"INIT_IN"}, name
        else:
            assert (int(at), int(told_size)) == expected[name][field], (name, field)
    # Linux 6.1 and later have all but these.
    assert left_out <= {"HEADER", "STATX_IN", "STATX_OUT", "INIT_OUT", "OPEN_OUT", "INVAL_ENTRY_OUT"}


def constants(prefix: str) -> dict[str, int]:
    header = KERNEL_HEADER.read_text()
    found = dict(re.findall(rf"\b{prefix}(\w+)\s*=\s*(\d+)\s*,", header))
    found |= {name: str(1 << int(bit)) for name, bit in
              re.findall(rf"#define {prefix}(\w+)\s+\(1(?:ULL)? << (\d+)\)", header)}  # fmt: skip
    return {name: int(value) for name, value in found.items()}


@pytest.mark.skipif(not KERNEL_HEADER.exists(), reason="not applicable: the kernel's headers are not here")
def test_numbers_are_the_headers() -> None:
    theirs = constants("FUSE_")
    for number, name in wire.OPCODES.items():
        assert theirs.get(name, number) == number, name
    flags = [name for name, value in vars(wire).items() if name.isupper() and isinstance(value, int)]
    compared = [name for name in flags if name in theirs and name not in {"MINOR", "MINOR_MIN"}]
    for name in compared:
        assert getattr(wire, name) == theirs[name], name
    assert {"WRITEBACK_CACHE", "HANDLE_KILLPRIV_V2", "INIT_EXT", "LOOKUP", "TMPFILE"} <= set(compared)
    theirs = constants("FATTR_")
    for name in ("MODE", "UID", "GID", "SIZE", "ATIME", "MTIME", "FH", "ATIME_NOW", "MTIME_NOW", "KILL_SUIDGID"):
        assert getattr(wire, f"FATTR_{name}") == theirs[name], name


# Values


@pytest.fixture
def somewhere(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    return path


FIELDS = ATTR.split()


@pytest.mark.parametrize("time", [
    0, 1, -1, 999_999_999, 1_000_000_000, -999_999_999, -1_000_000_000, -1_000_000_001,
    -(2**31) * 1_000_000_000, 2**33 * 1_000_000_000 + 123_456_789,
])  # fmt: skip
def test_times_on_either_side_of_1970(somewhere: Path, time: int) -> None:
    os.utime(somewhere, ns=(time, time + 5))
    st = os.stat(somewhere)
    values = dict(zip(FIELDS, wire.attributes(st, 7, 1), strict=True))
    for field in ("atime", "mtime", "ctime"):
        nanoseconds = values[field + "nsec"]
        assert 0 <= nanoseconds < 1_000_000_000
        assert values[field] * 1_000_000_000 + nanoseconds == getattr(st, f"st_{field}_ns")
    packed = wire.ATTR_OUT.pack(0, 0, 0, *wire.attributes(st, 7, 1))
    assert wire.ATTR_OUT.unpack(packed)[3:] == wire.attributes(st, 7, 1)


def test_attributes_are_those_of_stat(somewhere: Path) -> None:
    st = os.stat(somewhere)
    values = dict(zip(FIELDS, wire.attributes(st, 2**64 - 1, 2**32 - 1), strict=True))
    assert (values["ino"], values["nlink"]) == (2**64 - 1, 2**32 - 1)
    assert (values["size"], values["blocks"], values["mode"]) == (5000, st.st_blocks, st.st_mode)
    assert (values["uid"], values["gid"], values["blksize"]) == (st.st_uid, st.st_gid, st.st_blksize)
    assert stat.S_ISREG(values["mode"])
    wire.ENTRY_OUT.pack(*[0] * 6, *values.values())


@pytest.mark.parametrize("device", [(0, 0), (1, 3), (10, 229), (8, 0x12345), (0xFFF, 0xFFFFF)])
def test_device_numbers(device: tuple[int, int]) -> None:
    """The wire has the kernel's 32 bits of it, which stat(2) has too for all devices that the kernel can have."""
    number = os.makedev(*device)
    fields = [stat.S_IFCHR, *[0] * 9, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, number]
    values = dict(zip(FIELDS, wire.attributes(os.stat_result(fields), 1, 1), strict=True))
    major, minor = device
    assert values["rdev"] == (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


@pytest.mark.parametrize(("body", "count", "expected"), [
    (b"name\0", 1, [b"name"]),
    (b"\xff\xfe\0", 1, [b"\xff\xfe"]),
    (b"old\0new\0", 2, [b"old", b"new"]),
    (b"name\0target with\nanything\0", 2, [b"name", b"target with\nanything"]),
    (b"n" * 255 + b"\0" + b"t" * 4095 + b"\0", 2, [b"n" * 255, b"t" * 4095]),
    (b"key\0value\0with\0zeros", 1, [b"key"]),
])  # fmt: skip
def test_names(body: bytes, count: int, expected: list[bytes]) -> None:
    assert wire.names(memoryview(body), count) == expected


@pytest.mark.parametrize(("timeout", "expected"), [
    (0.0, (0, 0)), (1.0, (1, 0)), (0.5, (0, 500_000_000)), (86400.0 * 365, (31_536_000, 0)), (1e-9, (0, 1)),
])  # fmt: skip
def test_how_long_to_trust(timeout: float, expected: tuple[int, int]) -> None:
    assert wire.seconds(timeout) == expected


def test_messages() -> None:
    entry = wire.INVAL_ENTRY_OUT.pack(5, 4, 0)
    message = wire.message(wire.NOTIFY_INVAL_ENTRY, entry, b"name", b"\0")
    assert wire.OUT_HEADER.unpack_from(message) == (len(message), 3, 0)
    assert message[16:] == entry + b"name\0"


# Offsets in listings


def test_offsets_grow_and_are_the_same_in_any_company() -> None:
    names = [b"name %d" % number for number in range(2000)]
    whole, half = Listing(names), Listing(names[::2])
    assert sorted(whole.names) == sorted(names)
    assert all(a < b for a, b in zip(whole.offsets, whole.offsets[1:], strict=False))
    assert whole.offsets[0] > DOT_DOT
    assert max(whole.offsets) < 2**63, "an off_t is signed"
    there = dict(zip(whole.names, whole.offsets, strict=True))
    assert all(there[name] == at for name, at in zip(half.names, half.offsets, strict=True))


def test_a_listing_goes_on_after_each_offset() -> None:
    listing = Listing([b"%d" % number for number in range(50)])
    assert listing.after(0) == listing.after(DOT_DOT) == 0
    for index, offset in enumerate(listing.offsets):
        assert listing.after(offset) == index + 1
        assert listing.after(offset - 1) == index

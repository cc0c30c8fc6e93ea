"""MemoryLayer: as a directory of the host in everything, and in no more memory than its data."""

from __future__ import annotations

import errno
import gc
import os
import random
import stat
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from unionfs._sys.rename import RENAME_WHITEOUT
from unionfs.errors import LayerError
from unionfs.layer import acl
from unionfs.layer.memory import MemoryLayer
from unionfs.layer.pages import Pages
from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG, LayerDir, WritableLayer
from unionfs.layer.trees import Entry, symlink
from unionfs.layer.upper import UpperDirectory
from unionfs.testing.layer import OLD, fails, read

MIB = 1 << 20


# The oracle: the same random operations on memory and on a directory.


class Walker:
    """Does one operation on two layers, and compares what they answer."""

    NAMES = (b"a", b"b", b"c", b".", b"n" * 256)
    WEIGHTS = (8, 8, 8, 1, 1)

    def __init__(self, seed: int, layers: tuple[WritableLayer, WritableLayer]) -> None:
        self.rng = random.Random(seed)
        self.layers = layers

    def place(self) -> tuple[list[bytes], bytes]:
        layer = self.layers[0]
        d, path = layer.root, []
        while self.rng.random() < 0.6:
            known = [name for name, dt in layer.scan(d).items() if dt == DT_DIR]
            if not known or self.rng.random() < 0.1:
                path += [self.rng.choice(self.NAMES[:3]) for _ in range(self.rng.randrange(3))]
                break
            path.append(self.rng.choice(known))
            d = d.child(path[-1])
        return path, self.rng.choices(self.NAMES, self.WEIGHTS)[0]

    def random_acl(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.1:
            return rng.choice((b"", b"x", acl.encode([]), b"\1\0\0\0", b"\2\0\0\0xyz", acl.encode([(1, 7, 0)])))
        named = [(tag, rng.randrange(8), rng.randrange(5)) for tag in (2, 8) if rng.random() < 0.4]
        entries = [(1, rng.randrange(8), 0), *named, (4, rng.randrange(8), 0), (32, rng.randrange(8), 0)]
        if (named and rng.random() < 0.9) or rng.random() < 0.2:
            entries.append((16, rng.randrange(8), 0))
        order = {tag: index for index, tag in enumerate((1, 2, 4, 8, 16, 32))}
        return acl.encode(sorted(entries, key=lambda entry: order[entry[0]]))

    @staticmethod
    def at(layer: WritableLayer, place: tuple[list[bytes], bytes]) -> tuple[LayerDir, bytes]:
        d = layer.root
        for name in place[0]:
            d = d.child(name)
        return d, place[1]

    def both(self, what: str, call: Callable[[WritableLayer], object]) -> None:
        answers = []
        for layer in self.layers:
            try:
                answers.append(call(layer))
            except OSError as error:
                answers.append(errno.errorcode[error.errno or 0])
        assert answers[0] == answers[1], f"{what}: {answers}"

    def step(self) -> None:
        rng, one, two = self.rng, self.place(), self.place()
        at = self.at
        mode = rng.choice((0o644, 0o4755, 0o600, 0o2770))
        data = bytes([rng.randrange(1, 256)]) * rng.choice((1, 5000))
        offset = rng.choice((0, 3, 4096, 100_000))
        flags = rng.choice((0, 0, 0, 1, 2, 4, 5, 3, 6, 8))
        key = rng.choice((b"user.a", b"user.overlay.x", b"trusted.b", b"user.", b"odd", b"security.x"))
        acl_key = rng.choice((acl.ACCESS, acl.DEFAULT, acl.DEFAULT))
        acl_value = self.random_acl()

        def create(layer: WritableLayer) -> None:
            file = layer.create(*at(layer, one), mode)
            file.pwrite(data, offset)
            file.close()

        def write(layer: WritableLayer) -> tuple[int, bytes]:
            file = layer.open(*at(layer, one), os.O_RDWR)
            if flags % 2:
                file.truncate(offset)
            return file.pwrite(data, offset // 2), file.pread(10**6, 0)

        calls: dict[str, Callable[[WritableLayer], object]] = {
            "create": create,
            "write": write,
            "mkdir": lambda layer: layer.mkdir(*at(layer, one), mode).path,
            "mkdir again": lambda layer: layer.mkdir(*at(layer, one), mode).path,
            "mknod": lambda layer: layer.mknod(*at(layer, one), stat.S_IFIFO | mode, 0),
            "symlink": lambda layer: layer.symlink(*at(layer, one), data),
            "link": lambda layer: layer.link(*at(layer, one), *at(layer, two)),
            "unlink": lambda layer: layer.unlink(*at(layer, one)),
            "rmdir": lambda layer: layer.rmdir(*at(layer, one)),
            "whiteout": lambda layer: layer.whiteout(*at(layer, one)),
            "rename": lambda layer: layer.rename(*at(layer, one), *at(layer, two), flags),
            "rename on": lambda layer: layer.rename(*at(layer, one), *at(layer, two)),
            "setattr": lambda layer: layer.setattr(*at(layer, one), mode=mode),
            "chown": lambda layer: layer.setattr(*at(layer, one), uid=flags, gid=offset),
            "utime": lambda layer: layer.setattr(*at(layer, one), times=(OLD, OLD + offset)),
            "setxattr": lambda layer: layer.setxattr(*at(layer, one), key, data[:9], flags % 3),
            "set ACL": lambda layer: layer.setxattr(*at(layer, one), acl_key, acl_value, flags % 3),
            "get ACL": lambda layer: layer.getxattr(*at(layer, one), acl_key),
            "remove ACL": lambda layer: layer.removexattr(*at(layer, one), acl_key),
            "removexattr": lambda layer: layer.removexattr(*at(layer, one), key),
            "getxattr": lambda layer: layer.getxattr(*at(layer, one), key),
            "readlink": lambda layer: layer.readlink(*at(layer, one)),
            "open": lambda layer: layer.open(*at(layer, one), os.O_RDONLY).stat().st_size,
            "scan": lambda layer: sorted(layer.scan(at(layer, one)[0])),
        }
        what = rng.choice(list(calls))
        self.both(f"{what} {one} {two} mode={mode:o} flags={flags} key={key!r}", calls[what])

    def compare(self) -> None:
        seen: list[list[object]] = []
        for layer in self.layers:
            lines: list[object] = []
            inos: dict[int, int] = {}
            pending = [layer.root]
            while pending:
                d = pending.pop()
                for name, dt in sorted(layer.scan(d).items()):
                    st = layer.stat(d, name)
                    known = inos.setdefault(st.st_ino, len(inos))
                    xattrs = {key: layer.getxattr(d, name, key) for key in layer.listxattr(d, name)}
                    links = st.st_nlink if dt != DT_DIR else 0
                    line = [d.path, name, dt, st.st_mode, st.st_uid, st.st_gid, links, known, xattrs]
                    if dt == DT_REG:
                        line += [st.st_size, read(layer, d, name)]
                    elif dt == DT_LNK:
                        line += [st.st_size, layer.readlink(d, name)]
                    elif dt == DT_DIR:
                        pending.append(d.child(name))
                    # Not of directories: ext4 touches them when it undoes a RENAME_WHITEOUT that fails.
                    if st.st_mtime_ns < OLD + 10**9 and dt != DT_DIR:
                        line.append(st.st_mtime_ns)
                    lines.append(line)
            seen.append(lines)
        assert seen[0] == seen[1]


@pytest.mark.root
@pytest.mark.parametrize("seed", range(40))
def test_as_a_directory_does(scratch: Path, seed: int) -> None:
    (scratch / "upper").mkdir()
    directory = UpperDirectory(scratch / "upper", scratch / "work")
    directory.setattr(directory.root, b".", mode=0o755)
    walker = Walker(seed, (MemoryLayer(), directory))
    try:
        for number in range(250):
            walker.step()
            if number % 50 == 49:
                walker.compare()
    finally:
        directory.close()


# What is memory's own


def test_memory_is_proportional_to_the_data() -> None:
    tracemalloc.start()
    try:
        layer = MemoryLayer()
        before = tracemalloc.get_traced_memory()[0]
        sparse = layer.create(layer.root, b"sparse", 0o644)
        sparse.truncate(1 << 50)
        sparse.pwrite(b"x", 1 << 49)
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
        file = layer.create(layer.root, b"file", 0o644)
        for at in range(16):
            file.pwrite(bytes(MIB), at * MIB)
        taken = tracemalloc.get_traced_memory()[0] - before
        assert 16 * MIB < taken < 18 * MIB
        for number in range(1000):
            layer.create(layer.root, b"%d" % number, 0o644).pwrite(b"small", 0)
        assert tracemalloc.get_traced_memory()[0] - before - taken < 1000 * 1500
        file.truncate(MIB)
        layer.unlink(layer.root, b"sparse")
        sparse.close()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 4 * MIB
    finally:
        tracemalloc.stop()


def test_many_islands() -> None:
    pages = Pages()
    for number in range(20_000):
        pages.write(memoryview(b"x"), number * 3 * Pages.SIZE)
    at, found = 0, 0
    while True:
        at = pages.seek(at, os.SEEK_DATA)
        at = pages.seek(at, os.SEEK_HOLE)
        found += 1
        if at == pages.length:
            break
    assert found == pages.count == 20_000


def test_pages_refuse_what_no_file_can_be() -> None:
    pages = Pages()
    with fails(errno.EFBIG):
        pages.write(memoryview(b"x"), (1 << 63) - 1)
    with fails(errno.EFBIG):
        pages.allocate(0, 1, (1 << 63) - 1)
    with fails(errno.EOPNOTSUPP):
        pages.allocate(8, 0, 4096)  # FALLOC_FL_COLLAPSE_RANGE
    with fails(errno.EINVAL):
        pages.seek(0, os.SEEK_SET)
    assert pages.length == pages.count == 0


def test_from_dict() -> None:
    layer = MemoryLayer.from_dict(
        {
            "etc": {"hosts": "127.0.0.1 localhost\n", b"\xff": b"raw"},
            "bin/sh": symlink("dash"),
            "bin/dash": Entry(stat.S_IFREG | 0o755, b"\x7fELF", uid=7, gid=8, mtime_ns=OLD, xattrs={"user.a": b"1"}),
        },
        label="base",
    )
    etc, programs = layer.root.child(b"etc"), layer.root.child(b"bin")
    assert (layer.label, repr(layer)) == ("base", "MemoryLayer('base')")
    assert layer.scan(layer.root) == {b"etc": DT_DIR, b"bin": DT_DIR}
    assert read(layer, etc, b"hosts") == b"127.0.0.1 localhost\n"
    assert layer.readlink(programs, b"sh") == b"dash"
    st = layer.stat(programs, b"dash")
    assert (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns) == (stat.S_IFREG | 0o755, 7, 8, OLD)
    with fails(errno.EEXIST):
        MemoryLayer.from_dict({"a": b"", b"a": b""})


def test_layers_do_not_share_numbers() -> None:
    layers = [MemoryLayer.from_dict({"a": b"", "d": {}}) for _ in range(3)]
    stats = [layer.stat(layer.root, name) for layer in layers for name in (b".", b"a", b"d")]
    assert len({st.st_ino for st in stats}) == len(stats)
    assert len({st.st_dev for st in stats}) == len(layers)
    assert {os.major(st.st_dev) for st in stats} == {0}


def test_freeze_in_place_only() -> None:
    with pytest.raises(LayerError):
        MemoryLayer().begin_freeze("/somewhere")


def test_frozen_file_is_not_written_through_an_old_handle() -> None:
    layer = MemoryLayer.from_dict({"file": b"data", "gone": b"gone"})
    file, gone = (layer.open(layer.root, name, os.O_RDWR) for name in (b"file", b"gone"))
    layer.unlink(layer.root, b"gone")
    layer.finish_freeze(layer.begin_freeze(None), b"{}")
    for call in (lambda: file.pwrite(b"x", 0), lambda: file.truncate(0), lambda: file.setattr(mode=0o600)):
        with fails(errno.EROFS):
            call()
    assert file.pread(9, 0) == b"data"
    # What has no name is in no layer.
    assert gone.pwrite(b"G", 0) == 1
    assert gone.pread(9, 0) == b"Gone"
    before = layer.stat(layer.root, b"file")
    layer.open(layer.root, b"file", os.O_RDONLY).pread(4, 0)
    layer.scan(layer.root)
    assert layer.stat(layer.root, b"file") == before


def test_access_time_is_relative() -> None:
    layer = MemoryLayer.from_dict({"file": Entry(stat.S_IFREG | 0o644, b"data", mtime_ns=OLD)})

    def read_once(flags: int = os.O_RDONLY) -> int:
        layer.open(layer.root, b"file", flags).pread(1, 0)
        return layer.stat(layer.root, b"file").st_atime_ns

    assert read_once(os.O_RDONLY | os.O_NOATIME) == OLD
    first = read_once()
    assert first > OLD
    assert read_once() == first


def test_capability_goes_with_the_first_write() -> None:
    layer = MemoryLayer.from_dict({"file": Entry(stat.S_IFREG | 0o755, b"x", xattrs={"security.capability": b"c"})})
    layer.open(layer.root, b"file", os.O_WRONLY).pwrite(b"y", 0)
    assert layer.listxattr(layer.root, b"file") == []


def test_append() -> None:
    layer = MemoryLayer.from_dict({"file": b"one"})
    layer.open(layer.root, b"file", os.O_WRONLY | os.O_APPEND).pwrite(b"two", 0)
    assert read(layer, layer.root, b"file") == b"onetwo"


def test_renames_by_threads_lose_nothing() -> None:
    layer = MemoryLayer.from_dict({f"{n}": f"{n}" for n in range(8)})
    there = layer.mkdir(layer.root, b"there", 0o755)
    stop = threading.Event()

    def move(number: int) -> None:
        name = b"%d" % number
        while not stop.is_set():
            layer.rename(layer.root, name, there, name, RENAME_WHITEOUT)
            layer.rename(there, name, layer.root, name)

    threads = [threading.Thread(target=move, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        both = {**layer.scan(there), **layer.scan(layer.root)}
        assert len(both) == 9
    stop.set()
    for thread in threads:
        thread.join()
    assert {read(layer, layer.root, b"%d" % n) for n in range(8)} == {b"%d" % n for n in range(8)}

"""Files open in every way at once, on a mount and in a plain directory; run as a program by test_devfuse_mixing.

`duel` does the same on both sides and compares every answer. `crowd` is one of several processes that do what they
like at the same time; what it reads can't be known, but no call may fail with what a plain directory never says.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import sys
import time
from typing import Any

NAMES = ("lower", "middle", "upper", "new", "other")
PAGE = mmap.PAGESIZE
MODES = (
    os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_TRUNC,
    os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR | os.O_CREAT | os.O_TRUNC,
)  # fmt: skip


class Side:
    """One of the directories, and what is open in it: by key, a descriptor and perhaps a map of it."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.open: dict[int, int] = {}
        self.maps: dict[int, mmap.mmap] = {}

    def path(self, name: str) -> str:
        return f"{self.top}/{name}"

    def opening(self, key: int, name: str, flags: int) -> None:
        self.open[key] = os.open(self.path(name), flags, 0o644)

    def reopening(self, key: int, old: int, flags: int) -> None:
        self.open[key] = os.open(f"/proc/self/fd/{self.open[old]}", flags & ~(os.O_CREAT | os.O_EXCL))

    def tmpfile(self, key: int) -> None:
        self.open[key] = os.open(self.top, os.O_TMPFILE | os.O_RDWR, 0o644)

    def closing(self, key: int) -> None:
        if key in self.maps:
            self.maps.pop(key).close()
        os.close(self.open.pop(key))

    def pread(self, key: int, size: int, offset: int) -> bytes:
        return os.pread(self.open[key], size, offset)

    def pwrite(self, key: int, data: bytes, offset: int) -> int:
        return os.pwrite(self.open[key], data, offset)

    def write(self, key: int, data: bytes) -> int:
        os.lseek(self.open[key], 0, os.SEEK_END)
        return os.write(self.open[key], data)

    def whole(self, name: str) -> bytes:
        with open(self.path(name), "rb", buffering=0) as file:
            return file.read()

    def truncate(self, name: str, size: int) -> None:
        os.truncate(self.path(name), size)

    def ftruncate(self, key: int, size: int) -> None:
        os.ftruncate(self.open[key], size)

    def mapping(self, key: int) -> None:
        if key not in self.maps:
            self.maps[key] = mmap.mmap(self.open[key], 4 * PAGE)

    def _mapped(self, key: int) -> int:
        """How many bytes of the map may be touched."""
        return min(4 * PAGE, os.fstat(self.open[key]).st_size)

    def map_read(self, key: int) -> bytes:
        return self.maps[key][: self._mapped(key)]

    def map_write(self, key: int, data: bytes, offset: int) -> None:
        end = min(self._mapped(key), offset + len(data))
        if offset < end:
            self.maps[key][offset:end] = data[: end - offset]

    def flush(self, key: int) -> None:
        self.maps[key].flush()

    def fsync(self, key: int) -> None:
        os.fsync(self.open[key])

    def rename(self, name: str, name2: str) -> None:
        os.rename(self.path(name), self.path(name2))

    def unlink(self, name: str) -> None:
        os.unlink(self.path(name))

    def link(self, name: str, name2: str) -> None:
        os.link(self.path(name), self.path(name2))

    def chmod(self, name: str, mode: int) -> None:
        os.chmod(self.path(name), mode)

    def stat(self, name: str) -> tuple[int, int, int]:
        st = os.stat(self.path(name))
        return st.st_mode, st.st_nlink, st.st_size

    def fstat(self, key: int) -> tuple[int, int, int]:
        st = os.fstat(self.open[key])
        return st.st_mode, st.st_nlink, st.st_size

    def copy(self, key: int, key2: int, length: int) -> int:
        return os.copy_file_range(self.open[key], self.open[key2], length, 0, 0)

    def allocate(self, key: int, offset: int, length: int) -> None:
        os.posix_fallocate(self.open[key], offset, length)

    def listing(self) -> list[str]:
        return sorted(os.listdir(self.top))


def outcome(side: Side, call: str, *args: Any) -> Any:
    try:
        return getattr(side, call)(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0)
    except ValueError as error:
        return str(error)  # A map of an empty file.


def choose(rng: random.Random, keys: list[int], maps: list[int], fresh: int) -> tuple[Any, ...]:
    """A call and its arguments."""
    name, other = rng.choice(NAMES), rng.choice(NAMES)
    size = rng.choice([0, 1, 100, PAGE - 1, PAGE, 3 * PAGE + 5, 200_000])
    offset = rng.choice([0, 1, PAGE - 1, PAGE, 3 * PAGE, 100_000])
    data = rng.randbytes(rng.choice([1, 100, PAGE, 2 * PAGE + 7]))
    calls: list[tuple[Any, ...]] = [
        ("opening", fresh, name, rng.choice(MODES)), ("opening", fresh, name, rng.choice(MODES)),
        ("whole", name), ("stat", name), ("truncate", name, size), ("tmpfile", fresh),
        ("rename", name, other), ("unlink", name), ("link", name, other), ("chmod", name, rng.choice([0o644, 0o6755])),
    ]  # fmt: skip
    if keys:
        key, key2 = rng.choice(keys), rng.choice(keys)
        calls += [
            ("reopening", fresh, key, rng.choice(MODES)), ("closing", key), ("closing", key2),
            ("pread", key, size, offset), ("pread", key2, size, offset),
            ("pwrite", key, data, offset), ("pwrite", key2, data, offset),
            ("write", key, data), ("ftruncate", key, size), ("mapping", key), ("fsync", key), ("fstat", key),
            ("copy", key, key2, size), ("allocate", key, offset, size + 1),
        ]  # fmt: skip
    if maps:
        key = rng.choice(maps)
        calls += [("map_read", key), ("map_read", key), ("map_write", key, data, offset), ("flush", key)]
    return rng.choice(calls)


def duel(mount: str, plain: str, seed: int, steps: int, commits: bool) -> None:
    """With ``commits``, now and then it says so and waits until somebody has committed."""
    rng = random.Random(seed)
    ours, theirs = Side(mount), Side(plain)
    os.umask(0o022)
    done: list[str] = []
    for step in range(steps):
        if commits and step % 97 == 96:
            print("commit", flush=True)
            input()
        keys = list(theirs.open)
        if len(keys) > 12:
            call: tuple[Any, ...] = ("closing", rng.choice(keys))
        else:
            call = choose(rng, keys, list(theirs.maps), step)
        got, expected = outcome(ours, *call), outcome(theirs, *call)
        done.append(f"{step}: {call[0]} {[x if not isinstance(x, bytes) else len(x) for x in call[1:]]}")
        if got != expected:
            print(*done[-60:], sep="\n")
            sys.exit(f"step {step} of seed {seed}: {short(got)}, and in a plain directory {short(expected)}")
    if (got := outcome(ours, "listing")) != (expected := outcome(theirs, "listing")):
        sys.exit(f"at the end of seed {seed}: {got}, and in a plain directory {expected}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:80]}… ({len(value)})"


def crowd(mount: str, seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    side = Side(mount)
    usual = {"ENOENT", "EEXIST", "EBADF", "EACCES", "EINVAL", "ENODEV", "EISDIR", "ESTALE"}
    until = time.monotonic() + seconds
    step = 0
    while time.monotonic() < until:
        keys = list(side.open)
        call = ("closing", rng.choice(keys)) if len(keys) > 12 else choose(rng, keys, [], step)
        step += 1
        if call[0] == "mapping":
            continue  # Another process may make the file shorter under it.
        got = outcome(side, *call)
        if isinstance(got, str) and got not in usual:
            sys.exit(f"step {step} of {seed}: {call[:3]}: {got}")
    print(step)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "duel":
        duel(arguments[0], arguments[1], int(arguments[2]), int(arguments[3]), len(arguments) > 4)
    else:
        crowd(arguments[0], int(arguments[1]), float(arguments[2]))

"""Another stack under a union, while threads use it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import test_union_restack as alone
from tests.test_union_restack import new_upper, write
from unionfs import UnionFS

top, base, fs = alone.top, alone.base, alone.fs


@pytest.mark.parametrize("changes", [False, True])
def test_readers_see_the_one_or_the_other(fs: UnionFS, top: Path, base: Path, changes: bool) -> None:
    other = top / "other"
    write(other / "etc/hosts", "changed")
    write(other / "etc/extra/file", "extra")
    write(other / "usr/share/doc/readme", "read more")
    for i in range(20):
        write(base / f"usr/lib/{i:02}", "lower" * (i + 1))
        if i % 2:
            write(other / f"usr/lib/{i:02}", "upper")
        write(other / f"usr/lib/x{i:02}", "extra")
    lengths = {"lower" * (i + 1) for i in range(20)} | {"upper"}
    listings = [
        sorted(os.listdir(base / "usr/lib")),
        sorted(set(os.listdir(other / "usr/lib") + os.listdir(base / "usr/lib"))),
    ]
    stop = threading.Event()
    failures: list[BaseException] = []

    def stat_all() -> None:
        for name in fs.listdir("/usr/lib"):
            if not name.startswith("x"):
                assert fs.stat(f"/usr/lib/{name}").st_size in {len(text) for text in lengths}
        assert fs.stat("/etc/hosts").st_size in (4, 7)
        fs.stat("/usr/share/doc/readme")
        assert fs.readlink("/etc/link") == "hosts"

    def read_all() -> None:
        assert fs.read_text("/etc/hosts") in ("base", "changed")
        assert fs.read_text("/etc/link") in ("base", "changed")
        assert fs.read_text("/usr/share/doc/readme") in ("read", "read more")
        for i in range(20):
            assert fs.read_text(f"/usr/lib/{i:02}") in (("lower" * (i + 1), "upper") if i % 2 else ("lower" * (i + 1),))

    def list_all() -> None:
        assert sorted(fs.listdir("/usr/lib")) in listings
        assert sorted(fs.listdir("/etc")) in (["hosts", "link", "motd"], ["extra", "hosts", "link", "motd"])
        try:
            assert fs.read_text("/etc/extra/file") == "extra"
        except FileNotFoundError:
            pass

    def run(what: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                what()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(what,)) for what in (stat_all, read_all, list_all)]
    for thread in threads:
        thread.start()
    try:
        for i in range(50):
            upper = new_upper(top, i + 1)
            if changes and i % 2:
                fs.chmod("/etc/hosts", 0o600)
                fs.rename("/usr/share/one", "/usr/share/won")
            fs.restack([other, base] if i % 2 == 0 else [base], upper)
            shutil.rmtree(top / f"upper{i}")
            shutil.rmtree(top / f"upper{i}.work")
            if failures:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def test_writers_meanwhile(fs: UnionFS, top: Path, base: Path) -> None:
    """A change is in the old upper or in the new one, and no change is half."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run(number: int) -> None:
        i = 0
        try:
            while not stop.is_set():
                i += 1
                path = f"/usr/share/doc/{number}-{i}"
                fs.write_text(path, path)
                try:
                    fs.chmod("/etc/motd", 0o600 + number)
                    fs.rename(path, f"{path}.new")
                    fs.remove(f"{path}.new")
                    fs.utime("/usr/share/one")
                    with fs.open("/usr/share/doc/readme", "a") as file:
                        file.write("more")
                except FileNotFoundError:
                    pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(30):
            fs.restack([base], new_upper(top, i + 1))
            if failures:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    fs.restack([base], new_upper(top, 100))
    assert fs.read_text("/usr/share/doc/readme") == "read"
    for i in range(30):
        with UnionFS([base], top / f"upper{i + 1}") as old:
            for name in old.listdir("/usr/share/doc"):
                assert name.startswith(("readme", "0-", "1-"))
    assert not fs.tree.writers
    assert not fs.tree.orphans

"""Many processes at one store, and many threads in one of them: nothing done is lost, nobody waits for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.storeworker import IMAGES, check, content
from unionfs import InUseError, NotFoundError, Store

SECONDS = 6.0
PATIENCE = 40.0  # seconds after which a process that has not ended is stuck


@pytest.fixture
def store(scratch: Path) -> Iterator[Store]:
    source = scratch / "source"
    (source / "w").mkdir(parents=True)
    (source / "base").write_text("base")
    with Store(scratch / "store") as store:
        store.import_(source, "seed")
        for name in IMAGES:
            store.tag("seed", name)
        yield store


class Workers:
    """Processes of tests.storeworker; those that are left at the end are killed."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.storeworker", *map(str, words)],
            cwd=support.REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> list[dict[str, Any]]:
        """What it said. It has to end by itself and well."""
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err[-6000:]
        *lines, last = out.splitlines()
        assert last == "end"
        return [json.loads(line) for line in lines]


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    for process in workers.running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE)


def sound(store: Store) -> None:
    """All that is there is whole, and there is no more on the disk than the metadata tell of."""
    keep = store.keep
    assert keep.database.damage() == []
    store.gc()
    rows = {layer.id for layer in keep.records.layers()}
    assert set(os.listdir(keep.places.layers)) == rows
    assert {layer.state for layer in keep.records.layers()} <= {"ready"}
    assert set(os.listdir(keep.places.containers)) == {container.id for container in keep.records.containers()}
    for room in (keep.places.tmp, keep.places.trash, keep.places.leases):
        assert os.listdir(room) == []
    blobs = {f"sha256:{name}" for name in os.listdir(keep.places.blobs)}
    assert blobs == {digest for image in store.images() for digest in (image.id, image.digest)}
    for image in store.images():
        with image.open() as fs:
            check(fs)
        assert len(image.config.diff_ids) == len(image.layers)
        assert [layer.diff_id for layer in image.layers] == list(image.config.diff_ids[::-1])
    for container in store.containers():
        with container:
            check(container.fs)
        assert len([name for name in os.listdir(container.directory) if name.isdigit()]) == 1


def empty(store: Store) -> None:
    """When all names go, all goes."""
    for container in store.containers():
        container.remove()
    for image in store.images():
        if image.names:
            store.remove_image(image.id, force=True)
    store.gc()
    sound(store)
    assert os.listdir(store.keep.places.layers) == os.listdir(store.keep.places.blobs) == []


@pytest.mark.timeout(180)
def test_everything_against_everything(store: Store, workers: Workers) -> None:
    running = [workers.start("shared", store.path, number, SECONDS) for number in range(8)]
    said = [workers.end(process) for process in running]
    total: Counter[str] = Counter()
    for lines in said:
        total.update(lines[-1]["done"])
        assert all(len(text.splitlines()) == 1 for text in lines[-1]["errors"])
    never = {act for act in ("create", "put", "read", "commit", "fork", "rollback", "tag", "rmi", "rm", "gc", "diff")
             if not total[act]}  # fmt: skip
    assert not never, total
    sound(store)
    for number, lines in enumerate(said):
        state = ""
        images: dict[str, str] = {}
        for line in lines[:-1]:
            state = line.get("state", state)
            if "image" in line:
                images[line["image"]] = line["state"]
            images.pop(line.get("removed", ""), None)
        with store.container(f"own{number}") as container:
            assert container.fs.read_text("/mine") == state
        found = {name for image in store.images() for name in image.names if name.startswith(f"own{number}:")}
        assert found == set(images)
        for name, expected in images.items():
            with store.open(name) as fs:
                assert fs.read_text("/mine") == expected
    empty(store)


def wait_for(process: subprocess.Popen[str], count: int) -> list[str]:
    """Files that the holder has written, `count` of them."""
    assert process.stdout is not None
    found: list[str] = []
    while len(found) < count:
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        found += [json.loads(line)["wrote"]] if "wrote" in line else []
    return found


@pytest.mark.parametrize("mounted", [False, pytest.param(True, marks=pytest.mark.fuse)], ids=["open", "mounted"])
@pytest.mark.timeout(180)
def test_a_holder_does_what_others_ask_until_it_is_killed(
    store: Store, workers: Workers, scratch: Path, mounted: bool
) -> None:
    held = store.create("seed", "held")
    mountpoint = scratch / "mnt"
    mountpoint.mkdir()
    holder = workers.start("hold", store.path, *([mountpoint] if mounted else []))
    wait_for(holder, 3)
    assert held.status == (f"mounted at {mountpoint} (devfuse)" if mounted else f"open in pid {holder.pid}")
    with pytest.raises(InUseError, match="held"):
        held.remove()
    # What nobody rolls back is there: in the diff, in a commit, in a fork.
    written = wait_for(holder, 5)
    assert {change.path for change in held.diff()} >= {f"/w/{name}" for name in written}
    with held.commit("first").open() as fs:
        assert all(fs.read_text(f"/w/{name}") == content(name) for name in written)
    asking = [workers.start("ask", store.path, number, 3.0) for number in range(3)]
    reader = threading.Thread(target=holder.stdout.read)  # type: ignore[union-attr]
    reader.start()
    time.sleep(2.0)
    assert holder.poll() is None, holder.stderr and holder.stderr.read()
    holder.kill()
    holder.wait()
    reader.join()
    total: Counter[str] = Counter()
    for process in asking:
        total.update(workers.end(process)[-1]["done"])
    # On a slow machine not each of them comes to all.
    assert {"commit", "diff"} <= set(total) <= {"commit", "fork", "diff", "roll back", "status", "gc"}
    if mounted:
        subprocess.run(["umount", "--lazy", mountpoint], check=True)
    assert held.status == "created"
    with held:
        check(held.fs)
    with store.open("first") as fs:
        assert all(fs.read_text(f"/w/{name}") == content(name) for name in written)
    held.remove()
    for name in [name for image in store.images() for name in image.names if name.startswith("held:")]:
        store.remove_image(name)
    sound(store)
    empty(store)


def test_threads_share_a_store_and_a_container(store: Store) -> None:
    errors: list[BaseException] = []
    stop = threading.Event()
    done: Counter[str] = Counter()

    def thread(what: str, act: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                while not stop.is_set():
                    act()
                    done[what] += 1
            except BaseException as error:
                errors.append(error)
                stop.set()

        return threading.Thread(target=run, name=what)

    count = iter(range(10**9))
    with store.create("seed", "shared") as shared:

        def write() -> None:
            name = str(next(count))
            shared.fs.write_text(f"/.{name}", content(name))
            shared.fs.rename(f"/.{name}", f"/w/{name}")

        def commit() -> None:
            with shared.commit("shared:now").open() as fs:
                check(fs)

        def fork() -> None:
            side = shared.fork()
            with side:
                check(side.fs)
            side.remove()

        def close() -> None:
            time.sleep(0.05)
            shared.diff("/w")
            store.container("shared").commit("shared:other")

        def look() -> None:
            for image in store.images():
                with suppress(NotFoundError):
                    assert image.history()

        threads = [
            thread("write", write),
            thread("commit", commit),
            thread("fork", fork),
            thread("diff", lambda: [shared.diff(), list(store.diff("seed", "shared"))]),
            thread("other object", close),
            thread("gc", lambda: [store.gc(), stop.wait(0.02)]),
            thread("look", look),
        ]
        for each in threads:
            each.start()
        stop.wait(4.0)
        stop.set()
        for each in threads:
            each.join(PATIENCE)
        assert not [each.name for each in threads if each.is_alive()]
        if errors:
            raise errors[0]
        assert min(done[each.name] for each in threads) > 0
        assert len(shared.fs.listdir("/w")) == done["write"]
        image = shared.commit("last")
        with image.open() as fs:
            assert check(fs) == done["write"]
    sound(store)
    empty(store)

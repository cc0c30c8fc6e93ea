"""One of many processes at one store: does what comes, expects only what a race allows, and writes down what was done.

    python -m tests.storeworker shared STORE NUMBER SECONDS      everybody's names, and some of its own
    python -m tests.storeworker hold STORE [MOUNTPOINT]          has the container "held" open and writes to it
    python -m tests.storeworker write MOUNTPOINT                 the latter, for a holder that has mounted it
    python -m tests.storeworker ask STORE NUMBER SECONDS         has that process commit, fork, compare and roll back

A line of JSON on the standard output for each thing that is done; the last line is "end".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from unionfs import Container, InUseError, NotFoundError, Store, UnionFS, UpperBusyError

ALLOWED = (NotFoundError, InUseError, UpperBusyError)
IMAGES = [f"shared:{i}" for i in range(4)]
CONTAINERS = [f"shared{i}" for i in range(4)]


def said(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def content(name: str) -> str:
    """What a file of this name holds, whoever wrote it."""
    return f"{name} " * 50


def check(fs: UnionFS) -> int:
    """How many files everybody's directory has; each is whole."""
    names = fs.listdir("/w")
    for name in names:
        assert fs.read_text(f"/w/{name}") == content(name), name
    assert fs.read_text("/base") == "base"
    return len(names)


class Worker:
    def __init__(self, path: str, number: int) -> None:
        self.store = Store(path)
        self.number = number
        self.rng = Random(number)
        self.count = 0
        self.done: Counter[str] = Counter()
        self.errors: set[str] = set()
        self.own = f"own{number}"

    def fresh(self) -> str:
        self.count += 1
        return f"{self.number}-{self.count}"

    def put(self, container: Container) -> None:
        with container:
            name = self.fresh()
            container.fs.write_text(f"/w/{name}", content(name))

    def shared(self) -> None:
        store, rng = self.store, self.rng
        image, other = rng.choice(IMAGES), rng.choice(IMAGES)
        name, name2 = rng.choice(CONTAINERS), rng.choice(CONTAINERS)
        acts: dict[str, Callable[[], object]] = {
            "create": lambda: store.create(image, name),
            "create nameless": lambda: self.nameless(image),
            "put": lambda: self.put(store.container(name)),
            "read": lambda: self.look(image),
            "read container": lambda: self.look(name),
            "commit": lambda: store.container(name).commit(image, message="m", author=str(self.number)),
            "fork": lambda: store.container(name).fork(name2),
            "rollback": lambda: self.roll_back(name, rng.choice([image, f"{name}~1", f"{image}~1"])),
            "tag": lambda: store.tag(image, other),
            "rmi": lambda: store.remove_image(image, force=rng.random() < 0.3),
            "rm": lambda: store.container(name).remove(),
            "rename": lambda: store.container(name).rename(name2),
            "diff": lambda: list(store.diff(image, rng.choice([other, name]))),
            "changes": lambda: store.container(name).diff(),
            "status": lambda: store.container(name).status,
            "history": lambda: [len(each.history()) for each in store.images()],
            "gc": store.gc,
            "reopen": self.reopen,
        }
        weights = {"put": 4, "create": 3, "commit": 3, "gc": 1}
        what = rng.choices(list(acts), [weights.get(act, 2) for act in acts])[0]
        try:
            acts[what]()
        except ALLOWED as error:
            self.done[f"no {what}"] += 1
            self.errors.add(str(error))
        else:
            self.done[what] += 1

    def nameless(self, image: str) -> None:
        with self.store.create(image) as container:
            self.put(container)
            container.commit()
        container.remove()

    def roll_back(self, name: str, ref: str) -> None:
        point = self.store.point(ref)
        if point.layer is not None:  # There everybody's directory would be missing.
            self.store.container(name).rollback(point)

    def look(self, ref: str) -> None:
        with self.store.open(ref) as fs:
            check(fs)

    def reopen(self) -> None:
        path = self.store.path
        self.store.close()
        self.store = Store(path)

    def mine(self) -> None:
        """Nobody else touches these: what is done is done."""
        rng = self.rng
        container = self.store.container(self.own)
        match rng.choice(["write", "commit", "commit", "roll back", "rmi"]):
            case "write":
                value = self.fresh()
                with container:
                    container.fs.write_text("/mine", value)
                said(state=value)
            case "commit":
                name = f"{self.own}:{self.fresh()}"
                with container:
                    value = container.fs.read_text("/mine")
                container.commit(name)
                said(image=name, state=value)
            case "roll back":
                container.rollback("seed")
                with container:
                    container.fs.write_text("/mine", "rolled")
                said(state="rolled")
            case "rmi":
                names = [name for image in self.store.images() for name in image.names if name.startswith(self.own)]
                if len(names) > 3:
                    name = rng.choice(names)
                    try:
                        self.store.remove_image(name)
                    except InUseError:  # Our container stands on it.
                        return
                    said(removed=name)

    def run(self, seconds: float) -> None:
        with self.store.create("seed", self.own) as container:
            container.fs.write_text("/mine", "begun")
        said(state="begun")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.shared()
            if self.rng.random() < 0.3:
                self.mine()
        said(done=dict(self.done), errors=sorted(self.errors))


def hold(path: str, mountpoint: str | None) -> None:
    """Have it open; write until there is nothing to write to. A name is said when its file is whole."""
    with Store(path) as store, store.container("held") as held:
        if mountpoint is None:
            write(lambda name: held.fs.write_text(name, content(name[2:])), held.fs.rename)
        held.mount(mountpoint, "devfuse")
        # Not we ourselves: who is killed while it waits for its own answer never ends (fs/fuse/dev.c).
        subprocess.run([sys.executable, "-m", "tests.storeworker", "write", mountpoint], check=False)


def write(put: Callable[[str], object], rename: Callable[[str, str], object]) -> NoReturn:
    at = 0
    while True:
        at += 1
        name = f"held-{at}"
        try:
            put(f"/.{name}")
            rename(f"/.{name}", f"/w/{name}")
        except FileNotFoundError:
            continue  # Rolled back between the two.
        said(wrote=name)
        time.sleep(0.002)


def ask(path: str, number: int, seconds: float) -> None:
    """All of it has to succeed, whether the holder lives or has just been killed."""
    rng = Random(number)
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    with Store(path) as store:
        held = store.container("held")
        while time.monotonic() < end:
            what = rng.choice(["commit", "fork", "diff", "roll back", "status", "gc"])
            if what == "commit":
                with held.commit(f"held:{number}").open() as fs:
                    check(fs)
            elif what == "fork":
                side = held.fork()
                with side:
                    check(side.fs)
                side.remove()
            elif what == "diff":
                assert all(change.path.startswith(("/w", "/.held-")) for change in held.diff()), held.diff()
            elif what == "roll back":
                held.rollback(rng.choice(["seed", "held~1"]))
            elif what == "gc":
                store.gc()
            else:
                _ = held.status
            done[what] += 1
    said(done=dict(done))


def main() -> None:
    what, path, *words = sys.argv[1:]
    if what == "shared":
        Worker(path, int(words[0])).run(float(words[1]))
    elif what == "hold":
        hold(path, words[0] if words else None)
    elif what == "write":
        with suppress(OSError):  # The mount has gone.
            write(
                lambda name: Path(path + name).write_text(content(name[2:])),
                lambda old, new: os.rename(path + old, path + new),
            )
    else:
        ask(path, int(words[0]), float(words[1]))
    print("end", flush=True)


if __name__ == "__main__":
    main()

"""What the POSIX tests stand on: for each test a directory of its own, with the same content wherever it lives.

``here`` is that directory, in a mount of three layers and an upper that all tests of a class share. It comes three
times: its content lies in the layers below (``lower``), in the upper when it is mounted (``upper``), or is made through
the mount (``new``). The directory itself merges in each case.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest

from unionfs.testing.engine_base import fingerprint
from unionfs.testing.someone import Someone
from unionfs.union.fs import UnionFS

ORIGINS = ("lower", "upper", "new")
CONTENT = b"The content of a file.\n"
OWNER, GROUP, STRANGER, OTHER_GROUP = 61001, 62001, 61002, 62002
"""``owner`` is ``OWNER``, in ``GROUP`` and besides in ``OTHER_GROUP``; ``stranger`` is ``STRANGER``, in neither."""

NAMES = {"file", "empty", "sub", "void", "sym", "symdir", "broken", "loop", "fifo", "twin1", "twin2"}
"""What is in ``here``; ``loop`` links to itself, ``void`` is empty, ``twin1`` and ``twin2`` are one file."""

IN_SUB = {"a", "b", "c"}

PROGRAM = "programs/sleep"
"""Below the mountpoint, in the bottom layer: sleep(1)."""

_COARSE = 5  # CLOCK_REALTIME_COARSE, which the kernel stamps files with


def outcome(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """``"ok"``, or the name of the errno with which the call fails."""
    try:
        call(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def opened(path: str | os.PathLike[str], flags: int, mode: int = 0o666, by: Any = os) -> None:
    """Open and close."""
    by.close(by.open(path, flags, mode))


@contextlib.contextmanager
def opening(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> Iterator[int]:
    """A descriptor for the block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def mode_of(path: str | os.PathLike[str] | int) -> int:
    """Permission bits and the set-id bits; of a link itself."""
    return stat.S_IMODE((os.stat(path) if isinstance(path, int) else os.lstat(path)).st_mode)


def tick() -> None:
    """Wait till the kernel's clock for files has moved: what is changed from now on is seen to be later."""
    before = time.clock_gettime_ns(_COARSE)
    # Kernels with fine times stamp a change with the fine clock when somebody has looked, ahead of the coarse one.
    ahead = time.time_ns()
    while time.clock_gettime_ns(_COARSE) <= max(before, ahead):
        time.sleep(0.001)


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, content)
    os.close(fd)


def furnish(here: Path, *, sub: bool = True) -> None:
    """Put the content into an empty directory; all but ``sub`` and ``void`` where ``sub`` is false."""
    _write(here / "file", CONTENT)
    _write(here / "empty", b"")
    _write(here / "twin1", CONTENT)
    os.link(here / "twin1", here / "twin2")
    os.symlink("file", here / "sym")
    os.symlink("sub", here / "symdir")
    os.symlink("nowhere", here / "broken")
    os.symlink("loop", here / "loop")
    os.mkfifo(here / "fifo", 0o644)
    if sub:
        for name in ("sub", "void"):
            os.mkdir(here / name, 0o755)
        for name in sorted(IN_SUB):
            _write(here / "sub" / name, name.encode())


@attrs.frozen
class Stack:
    """The layers, topmost first, and what is to be mounted of them."""

    lowers: list[Path]
    upper: Path
    work: Path
    mountpoint: Path

    @staticmethod
    def below(base: Path) -> Stack:
        """Empty ones."""
        lowers = [base / name for name in ("top", "middle", "bottom")]
        stack = Stack(lowers, base / "upper", base / "work", base / "merged")
        for path in (*lowers, stack.upper, stack.work, stack.mountpoint):
            path.mkdir(mode=0o755)
        return stack

    def add_program(self) -> None:
        """Put ``PROGRAM`` in."""
        place = self.lowers[-1] / PROGRAM
        place.parent.mkdir()
        shutil.copy(shutil.which("sleep") or "/bin/sleep", place)

    def scatter(self, place: str, origin: str) -> None:
        """The part of a test's directory that is there before the mount."""
        top, middle, bottom, upper = (layer / place for layer in (*self.lowers, self.upper))
        for layer in (top, middle, bottom):
            layer.mkdir()
        if origin == "new":
            return
        if origin == "upper":
            upper.mkdir()
        furnish(upper if origin == "upper" else bottom, sub=False)
        # One entry of sub in each of three layers; in void, what is below is hidden.
        subs = (upper, middle, bottom) if origin == "upper" else (top, middle, bottom)
        for layer, name in zip(subs, sorted(IN_SUB), strict=True):
            (layer / "sub").mkdir()
            _write(layer / "sub" / name, name.encode())
        for layer in (subs[0], bottom):
            (layer / "void").mkdir()
        _write(bottom / "void/hidden", b"hidden")
        os.mknod(subs[0] / "void/hidden", stat.S_IFCHR, os.makedev(0, 0))


class PosixBase(ABC):
    """The fixtures. ``mount`` is the factory; ``base`` may choose where the layers live."""

    link_counts_lag = 0.0
    """Seconds for which the link count of a file that was just closed may count a name that is gone."""

    @abstractmethod
    def mount(self, fs: UnionFS, mountpoint: Path) -> AbstractContextManager[object]:
        """Mount ``fs`` at ``mountpoint``, an empty directory; unmount at the end of the block."""

    @contextlib.contextmanager
    def shown(self, stack: Stack) -> Iterator[None]:
        """While the block runs, the stack is to be seen at its mountpoint."""
        fs = UnionFS(lower=stack.lowers, upper=stack.upper, work=stack.work)
        try:
            with self.mount(fs, stack.mountpoint):
                yield
        finally:
            fs.close()

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls) -> Iterator[Path]:
        """A directory on a file system that an upper may live on."""
        with tempfile.TemporaryDirectory(prefix="unionfs-posix-") as directory:
            yield Path(directory)

    @pytest.fixture(scope="class")
    @classmethod
    def merged(cls, request: pytest.FixtureRequest, base: Path) -> Iterator[Path]:
        """The mountpoint, for all tests of the class."""
        os.chmod(base, 0o755)
        umask = os.umask(0o022)
        try:
            stack = Stack.below(base)
            stack.add_program()
            for number, item in enumerate(request.session.items):
                if isinstance(item, pytest.Function) and item.cls is cls and "here" in item.fixturenames:
                    stack.scatter(f"{number:05}", str(item.callspec.params["here"]))
            before = [fingerprint(layer) for layer in stack.lowers]
            with cls().shown(stack):
                yield stack.mountpoint
            assert [fingerprint(layer) for layer in stack.lowers] == before, "a layer below was changed"
        finally:
            os.umask(umask)

    @pytest.fixture(params=ORIGINS)
    def here(self, request: pytest.FixtureRequest, merged: Path) -> Path:
        """A directory for this test alone, with ``NAMES`` in it; 0755."""
        path = merged / f"{request.session.items.index(request.node):05}"
        if request.param == "new":
            furnish(path)
        return path

    @pytest.fixture
    def origin(self, here: Path, request: pytest.FixtureRequest) -> str:  # noqa: ARG002
        """Where the content of ``here`` lies: one of ``ORIGINS``."""
        found: str = request.node.callspec.params["here"]
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def _people(cls) -> Iterator[dict[str, Someone]]:
        with contextlib.ExitStack() as stack:
            people = {"somebody": stack.enter_context(Someone())}
            if os.geteuid() == 0:
                people["owner"] = stack.enter_context(Someone(OWNER, GROUP, [OTHER_GROUP]))
                people["stranger"] = stack.enter_context(Someone(STRANGER, STRANGER))
            yield people

    def _person(self, people: dict[str, Someone], name: str) -> Iterator[Someone]:
        if name not in people:
            pytest.skip("not applicable: only root becomes other users")
        yield people[name]
        people[name].tidy()

    @pytest.fixture
    def somebody(self, _people: dict[str, Someone]) -> Iterator[Someone]:
        """Another process of this user."""
        yield from self._person(_people, "somebody")

    @pytest.fixture
    def owner(self, _people: dict[str, Someone], here: Path) -> Iterator[Someone]:
        """``OWNER``, to whom ``here`` belongs, but nothing in it."""
        for person in self._person(_people, "owner"):
            os.chown(here, OWNER, GROUP)
            yield person

    @pytest.fixture
    def stranger(self, _people: dict[str, Someone]) -> Iterator[Someone]:
        """``STRANGER``, to whom nothing belongs."""
        yield from self._person(_people, "stranger")

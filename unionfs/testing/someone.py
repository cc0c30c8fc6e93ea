"""Another process, perhaps another user's, that makes system calls for a test.

Run as a program it serves: pickled requests on stdin, answers on stdout. It is run by its path, so that it starts
without pytest.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import pickle
import select
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_WITHIN = 30.0  # seconds


class Someone:
    """A process with credentials of its own. Every function of ``os`` is a method: it runs there.

        with Someone(1234, 4321, groups=[10]) as stranger:
            fd = stranger.open("/mnt/x", os.O_RDONLY)
            stranger.read(fd, 10)
            stranger.call("fcntl.flock", fd, fcntl.LOCK_EX)

    ``uid`` and ``gid``: ``None`` stays who this process is. The umask is 022. What it is asked for goes out by
    ``pickle`` and raises ``OSError`` here; ``TimeoutError`` when there is no answer in 30 seconds.
    """

    def __init__(self, uid: int | None = None, gid: int | None = None, groups: Sequence[int] = ()) -> None:
        self._who = (uid, gid, list(groups))
        self._start()

    def _start(self) -> None:
        self._asked = 0
        # Not isolated from PYTHONPATH and the like: it is this very interpreter that tests are run with.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-S", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )
        # Who is no longer root may not be able to read the package.
        self.call("__main__.load_modules", ["data", "leftout", "rename"])
        self.umask(0o022)
        uid, gid, groups = self._who
        if uid is not None and gid is not None:
            self.setgroups(groups)
            self.setresgid(gid, gid, gid)
            self.setresuid(uid, uid, uid)

    def __enter__(self) -> Someone:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def there(*args: Any, **kwargs: Any) -> Any:
            return self.call(f"os.{name}", *args, **kwargs)

        return there

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """What ``function``, a dotted name, answers there; or it raises ``OSError`` here."""
        self.ask(function, *args, **kwargs)
        return self.answer()

    def ask(self, function: str, *args: Any, **kwargs: Any) -> None:
        """Begin ``call``, which ``answer`` ends: for what waits."""
        assert self._process.stdin is not None
        pickle.dump((function, args, kwargs), self._process.stdin)
        self._process.stdin.flush()
        self._asked += 1

    def waits(self, seconds: float = 0.05) -> bool:
        """Whether there is no answer yet after so many seconds."""
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        return not poll.poll(seconds * 1000)

    def answer(self) -> Any:
        """The answer to ``ask``."""
        assert self._process.stdout is not None
        if self.waits(_WITHIN):
            self._process.kill()
            raise TimeoutError(f"process {self._process.pid} does not answer")
        self._asked -= 1
        try:
            result, error = pickle.load(self._process.stdout)
        except EOFError:
            raise RuntimeError(f"process {self._process.pid} has ended: {self._process.wait()}") from None
        if isinstance(error, str):
            raise RuntimeError(error)
        if error is not None:
            raise OSError(*error)
        return result

    def tidy(self) -> None:
        """Close every file that it has opened. Where it still waits for something, another takes its place."""
        if self._asked:
            self._process.kill()
            self.leave()
            self._start()
        self.call("__main__.tidy")

    def leave(self) -> None:
        """End it."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            self._process.wait(_WITHIN)
        finally:
            self._process.kill()
            self._process.wait()


# In the other process

_maps: dict[int, mmap.mmap] = {}


def load_modules(names: list[str]) -> None:
    """Load the package's system calls."""
    sys.path.append(str(Path(__file__).parents[2]))
    for name in names:
        importlib.import_module(f"unionfs._sys.{name}")


def map_file(fd: int, length: int) -> int:
    """Map the file, shared, to read and to write. A number for it."""
    _maps[len(_maps)] = mmap.mmap(fd, length)
    return len(_maps) - 1


def load(number: int, start: int, stop: int) -> bytes:
    """Bytes of a map."""
    return _maps[number][start:stop]


def store(number: int, start: int, data: bytes) -> None:
    """Bytes into a map, by the processor alone."""
    _maps[number][start : start + len(data)] = data


def flush(number: int) -> None:
    """msync(2)."""
    _maps[number].flush()


def tidy() -> None:
    """Unmap and close everything."""
    for mapped in _maps.values():
        mapped.close()
    _maps.clear()
    os.closerange(3, 1000)
    os.umask(0o022)
    os.chdir("/")


def _serve() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            function, args, kwargs = pickle.load(requests)
        except EOFError:
            return
        answer: tuple[Any, Any]
        try:
            module, _, name = function.rpartition(".")
            answer = (getattr(importlib.import_module(module), name)(*args, **kwargs), None)
        except OSError as error:
            answer = (None, (error.errno, error.strerror, error.filename))
        except Exception:  # noqa: BLE001  # Told where it was asked for.
            answer = (None, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()

"""Every system call that changes a file system, counted, and one of them turned into a crash or an error."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import unionfs._sys.data
import unionfs.layer.directory
import unionfs.layer.upper

_CALLS = (
    "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "chmod", "chown", "utime", "setxattr",
    "removexattr", "pwrite", "ftruncate", "truncate", "fchmod", "fchown", "fsync", "fdatasync", "copy_file_range",
    "write", "mkfifo", "makedirs", "replace", "remove",
)  # fmt: skip
_CREATING = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)

Act = Callable[[int, str], None]
"""Told the step's number, from 1 on, and the call's name, before it is made."""


@contextmanager
def steps(act: Act) -> Iterator[None]:
    """`act` is called before each change to a file system by this process's Python code."""
    count = 0
    inside = False

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count, inside
            if inside or (name == "open" and not (args[1] if len(args) > 1 else kwargs.get("flags", 0)) & _CREATING):
                return call(*args, **kwargs)
            count += 1
            inside = True  # os.makedirs calls os.mkdir
            try:
                act(count, name)
                return call(*args, **kwargs)
            finally:
                inside = False

        return step

    patches = [mock.patch.object(os, name, counted(name, getattr(os, name))) for name in (*_CALLS, "open")]
    patches += [
        mock.patch.object(module, name, counted(name, getattr(module, name)))
        for module, name in (
            (unionfs.layer.upper, "renameat2"),
            (unionfs.layer.directory, "fallocate"),
            (unionfs._sys.data, "_reflink"),
        )
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def kill_at(number: int) -> Act:
    """The process is killed before that step."""

    def act(count: int, name: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def fail_at(number: int, error: int, *, from_then_on: bool = False) -> Act:
    """That step fails with `error`; with `from_then_on`, so does every later one that would need room."""
    needs_no_room = {
        "unlink",
        "rmdir",
        "removexattr",
        "utime",
        "chmod",
        "fchmod",
        "chown",
        "fchown",
        "ftruncate",
        "renameat2",
        "rename",
    }

    def act(count: int, name: str) -> None:
        if count == number or (from_then_on and count > number and name not in needs_no_room):
            raise OSError(error, os.strerror(error), f"step {count}: {name}")

    return act


def count_steps(run: Callable[[], object]) -> int:
    """How many steps `run` takes."""
    names: list[str] = []
    with steps(lambda count, name: names.append(name)):
        run()
    return len(names)


def in_child(run: Callable[[], object]) -> int:
    """`run` in a child process. The signal that ended it, or 0; an exception in it is an AssertionError here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended = os.waitpid(pid, 0)
    if os.WIFSIGNALED(ended):
        return os.WTERMSIG(ended)
    assert os.WEXITSTATUS(ended) == 0, "the child failed"
    return 0

"""What the kernel says about overlayfs while a test runs.

Its log is one for all processes, and names no mount. So tests that run in another process meanwhile must mount no
overlay that the kernel may complain about: tests marked `overlay`, and who else uses `taking_part`, hold the log as one
of several, and `quiet_kernel` holds it alone.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests import support

# What the kernel says of an upper that is not as it should be (fs/overlayfs: namei.c, export.c, readdir.c, super.c).
COMPLAINT = re.compile(rb"overlayfs: .*([Ii]nvalid|failed to|orphan|unsafe|mismatch|corrupt|missing|stale)")


@functools.cache
def _lock(name: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    return os.open(support.scratch_base() / f"unionfs-tests-{name}.lock", flags, 0o600)


def _hold(how: int) -> None:
    """Wait for the log; who came first has it first, so that who wants it alone gets it at all."""
    fcntl.flock(_lock("queue"), fcntl.LOCK_EX)
    try:
        fcntl.flock(_lock("log"), how)
    finally:
        fcntl.flock(_lock("queue"), fcntl.LOCK_UN)


@contextmanager
def taking_part() -> Iterator[None]:
    """The kernel may complain meanwhile."""
    _hold(fcntl.LOCK_SH)
    try:
        yield
    finally:
        fcntl.flock(_lock("log"), fcntl.LOCK_UN)


@contextmanager
def quiet_kernel() -> Iterator[None]:
    """The kernel has nothing to complain about meanwhile. Inside of `taking_part`."""
    _hold(fcntl.LOCK_EX)  # This process's own share goes with it (flock(2)).
    try:
        with _listening():
            yield
    finally:
        fcntl.flock(_lock("log"), fcntl.LOCK_SH)


@contextmanager
def _listening() -> Iterator[None]:
    with open("/dev/kmsg", "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as log:
        os.lseek(log.fileno(), 0, os.SEEK_END)
        yield
        said = []
        while True:
            try:
                record = log.read(8192)
            except BrokenPipeError:
                continue  # Some were overwritten (Documentation/ABI/testing/dev-kmsg).
            if not record:
                break
            if COMPLAINT.search(record):
                said.append(record)
    assert said == []

"""Locks between processes; a part of ``unionfs.testing.engine_posix.PosixSuite``."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

from unionfs.testing.engine_posix_base import PosixBase, opening, outcome
from unionfs.testing.someone import Someone

SH, EX, UN, NB = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_NB
RW = os.O_RDWR


class LocksPart(PosixBase):
    """flock(2), fcntl(2)."""

    def test_flock(self, here: Path, somebody: Someone) -> None:
        theirs = somebody.open(here / "file", os.O_RDONLY)

        def they(operation: int) -> str:
            return outcome(somebody.call, "fcntl.flock", theirs, operation | NB)

        with opening(here / "file", os.O_RDONLY) as fd, opening(here / "file", os.O_RDONLY) as second:
            fcntl.flock(fd, SH)
            assert they(SH) == "ok"
            # A conversion that fails has lost the lock (flock(2)).
            assert they(EX) == "EAGAIN"
            assert they(SH) == "ok"
            assert outcome(fcntl.flock, fd, EX | NB) == "EAGAIN"
            assert they(EX) == "ok"
            assert they(UN) == "ok"
            fcntl.flock(fd, EX)
            assert they(SH) == "EAGAIN"
            assert outcome(fcntl.flock, second, SH | NB) == "EAGAIN", "a lock belongs to the open file, not the process"
            # POSIX locks are another world (flock(2), "NOTES").
            assert outcome(somebody.call, "fcntl.lockf", somebody.open(here / "file", RW), EX | NB) == "ok"
        assert they(EX) == "ok"

    def test_flock_waits(self, here: Path, somebody: Someone) -> None:
        theirs = somebody.open(here / "file", os.O_RDONLY)
        with opening(here / "file", os.O_RDONLY) as fd:
            fcntl.flock(fd, EX)
            somebody.ask("fcntl.flock", theirs, EX)
            assert somebody.waits()
            fcntl.flock(fd, UN)
            somebody.answer()
            assert outcome(fcntl.flock, fd, SH | NB) == "EAGAIN"

    def test_flock_survives_copy_up(self, here: Path, somebody: Someone) -> None:
        theirs = somebody.open(here / "file", os.O_RDONLY)
        somebody.call("fcntl.flock", theirs, EX)
        os.chmod(here / "file", 0o600)
        with opening(here / "file", RW) as fd:
            os.write(fd, b"x")
            assert outcome(fcntl.flock, fd, EX | NB) == "EAGAIN"
            somebody.close(theirs)
            fcntl.flock(fd, EX | NB)

    def test_flock_of_directories(self, here: Path, somebody: Someone) -> None:
        theirs = somebody.open(here / "sub", os.O_RDONLY)
        somebody.call("fcntl.flock", theirs, EX)
        with opening(here / "sub", os.O_RDONLY) as fd:
            assert outcome(fcntl.flock, fd, SH | NB) == "EAGAIN"
            somebody.call("fcntl.flock", theirs, UN)
            fcntl.flock(fd, SH | NB)

    def test_record_locks(self, here: Path, somebody: Someone) -> None:
        theirs = somebody.open(here / "file", RW)

        def they(operation: int, length: int, start: int) -> str:
            wait = 0 if operation == UN else NB
            return outcome(somebody.call, "fcntl.lockf", theirs, operation | wait, length, start)

        with opening(here / "file", RW) as fd:
            fcntl.lockf(fd, EX, 10, 10)
            assert they(EX, 10, 0) == "ok"
            assert they(EX, 11, 0) == "EAGAIN"
            assert they(SH, 1, 19) == "EAGAIN"
            assert they(EX, 0, 20) == "ok", "to the end, wherever that will be"
            fcntl.lockf(fd, UN, 5, 10)
            assert they(EX, 5, 10) == "ok"
            assert they(EX, 1, 15) == "EAGAIN"
            fcntl.lockf(fd, SH, 5, 15)
            assert they(SH, 5, 15) == "ok"
            assert outcome(fcntl.lockf, fd, EX | NB, 5, 15) == "EAGAIN"
            assert they(UN, 0, 0) == "ok"
            fcntl.lockf(fd, EX | NB)
            # The first close of any descriptor of the file drops them all (fcntl(2)).
            os.close(os.open(here / "file", os.O_RDONLY))
            assert they(EX, 0, 0) == "ok"

    def test_record_locks_need_the_access(self, here: Path) -> None:
        with opening(here / "file", os.O_RDONLY) as fd:
            assert outcome(fcntl.lockf, fd, EX | NB) == "EBADF"
            fcntl.lockf(fd, SH | NB)
        with opening(here / "file", os.O_WRONLY) as fd:
            assert outcome(fcntl.lockf, fd, SH | NB) == "EBADF"
            fcntl.lockf(fd, EX | NB)

    def test_record_locks_wait(self, here: Path, somebody: Someone) -> None:
        theirs = somebody.open(here / "file", RW)
        somebody.call("fcntl.lockf", theirs, EX)
        with opening(here / "file", RW) as fd:
            got = threading.Event()

            def wait() -> None:
                fcntl.lockf(fd, EX)
                got.set()

            waiter = threading.Thread(target=wait)
            waiter.start()
            assert not got.wait(0.05)
            somebody.close(theirs)
            waiter.join(20)
            assert got.is_set()

    def test_a_deadlock_is_seen(self, here: Path, somebody: Someone) -> None:
        theirs = somebody.open(here / "file", RW)
        with opening(here / "file", RW) as fd:
            fcntl.lockf(fd, EX, 1, 0)
            somebody.call("fcntl.lockf", theirs, EX, 1, 1)
            somebody.ask("fcntl.lockf", theirs, EX, 1, 0)
            assert somebody.waits()
            assert outcome(fcntl.lockf, fd, EX, 1, 1) == errno.errorcode[errno.EDEADLK]
        somebody.answer()

    def test_locks_go_with_their_process(self, here: Path) -> None:
        with opening(here / "file", RW) as fd:
            with Someone() as third:
                third.call("fcntl.lockf", third.open(here / "file", RW), EX)
                third.call("fcntl.flock", third.open(here / "file", RW), EX)
                assert outcome(fcntl.lockf, fd, EX | NB) == "EAGAIN"
                assert outcome(fcntl.flock, fd, EX | NB) == "EAGAIN"
            fcntl.lockf(fd, EX)
            fcntl.flock(fd, EX)

"""A command in a merged root: forked early, started when the root is there, waited for with all it left running."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

import attrs

from unionfs._sys import namespaces
from unionfs._sys.umount import MNT_DETACH, umount2
from unionfs.run.supervisor import PASSED_ON, from_a_person

REAL = ("/proc", "/dev", "/sys", "/run")
"""Directories of the host that a merged root over it does not copy on write: they are the running system's."""

NOT_STARTED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
"""Exit statuses as of chroot(1): the root could not be entered, the command can't be executed, is not found."""

_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_HIGH = 64  # above the descriptors that anybody asks for by number
_KILL_AFTER = 10.0  # seconds from SIGTERM to SIGKILL, for a command that does not listen
_LEFT_GRACE = 0.2  # seconds for what the command left to end by itself
_LEFT_KILL_AFTER = 2.0  # seconds from SIGTERM to SIGKILL, for what it left


@attrs.frozen
class Ended:
    """How a command ended."""

    status: int
    """Its exit status; 128 plus the signal's number if one ended it."""
    stopped_by: int | None
    """SIGTERM or SIGHUP if somebody sent us that, to end the run."""
    left: tuple[str, ...]
    """What it left running and was ended, as ``name (pid)``."""


def real_directories() -> list[str]:
    """Of ``REAL``, those that this host has as directories."""
    return [path for path in REAL if os.path.isdir(path) and not os.path.islink(path)]


class Command:
    """A command that waits, already forked, for the root that it runs in.

    Forked before the mount is made, since a process with threads can't safely fork. To be used in a process that adopts
    orphans, with signals blocked (``supervise``). ``fds``: descriptors that it gets, by their number there, also in
    place of stdin, stdout and stderr.

        command = Command(["make", "install"])
        with fs.mount(mountpoint):
            command.start(mountpoint, real_directories())
            ended = command.wait()
    """

    def __init__(self, argv: Sequence[str], *, fds: Mapping[int, int] | None = None) -> None:
        self.argv = list(argv)
        self._fds = dict(fds or {})
        self._cwd = _working_directory()
        self.started = False
        """Whether it has been told to run."""
        reader, self._go = os.pipe2(os.O_CLOEXEC)
        self._terminal = _foreground_terminal()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            self._be_child(reader)
        os.close(reader)

    def start(self, root: str, bound: Sequence[str]) -> None:
        """Let it run in ``root``, with the directories ``bound`` of this root bound to the same place in there."""
        self.started = True
        os.write(self._go, "\0".join([root, *bound]).encode(errors="surrogateescape"))
        os.close(self._go)
        self._go = -1

    def abandon(self) -> None:
        """End it if it has not been started."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
            os.waitpid(self.pid, 0)

    # The parent's side

    def stop(self) -> None:
        """Have it and all its descendants end (SIGTERM); ``wait`` for it then."""
        _kill(_descendants(), signal.SIGTERM)

    def wait(self) -> Ended:
        """Wait until it has ended, pass signals on to it, then end what it left running."""
        waited_for = PASSED_ON | _STOPS | {signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
        deadline: float | None = None
        stopped_by: int | None = None
        try:
            while (status := self._reap()) is None:
                left = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
                info = signal.sigtimedwait(waited_for, left)
                if info is None:
                    if deadline is not None:
                        _kill(_descendants(), signal.SIGKILL)
                        deadline = None
                elif info.si_signo in PASSED_ON and from_a_person(info):
                    _kill({self.pid: ""}, info.si_signo)
                    if info.si_signo in (signal.SIGTERM, signal.SIGHUP):
                        stopped_by = info.si_signo
                    if info.si_signo == signal.SIGTERM and deadline is None:
                        deadline = time.monotonic() + _KILL_AFTER
            left_running = _end_the_rest()
            self._take_terminal_back()
            while signal.sigtimedwait(_STOPS, 0) is not None:
                pass  # They were for the command.
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Ended(status, stopped_by, tuple(left_running))

    def _reap(self) -> int | None:
        """Collect who has ended; the command's exit status if it is among them."""
        found = None
        for pid, status in _ended_children():
            if pid == self.pid:
                code = os.waitstatus_to_exitcode(status)
                found = code if code >= 0 else 128 - code
        return found

    def _take_terminal_back(self) -> None:
        """A shell that was killed leaves the terminal to a process group that is no more."""
        if self._terminal is not None:
            with suppress(OSError):
                os.tcsetpgrp(self._terminal, os.getpgrp())

    # The child's side

    def _be_child(self, reader: int) -> NoReturn:
        status = NOT_STARTED
        try:
            order = os.read(reader, 1 << 16)
            if order:
                namespaces.signal_at_parents_end(signal.SIGKILL)
                root, *bound = order.decode(errors="surrogateescape").split("\0")
                _enter(root, bound, self._cwd)
                # By way of high numbers, so that none takes the place of one that is still to come.
                for number, ours in {
                    number: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, _HIGH) for number, ours in self._fds.items()
                }.items():
                    os.dup2(ours, number)
                status = self._execute()
        except OSError as error:
            _say(f"{error.filename or 'try'}: the merged root can't be entered: {error.strerror}")
        finally:
            os._exit(status)

    def _execute(self) -> int:
        """Become the command. It returns only if that fails."""
        for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored_by_python, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON | _STOPS | {signal.SIGCHLD})
        name = self.argv[0]
        try:
            _become(self.argv)
        except FileNotFoundError:
            _say(f"{name}: {_missing_interpreter(name) or 'command not found'}")
            return NOT_FOUND
        except NotADirectoryError:
            _say(f"{name}: command not found")
            return NOT_FOUND
        except OSError as error:
            _say(f"{name}: {error.strerror}")
            return NOT_EXECUTABLE


def _become(argv: list[str]) -> NoReturn:
    """As execvp(3): what has no format that the kernel knows is a script for the shell."""
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    os.execv("/bin/sh", ["/bin/sh", shutil.which(argv[0]) or argv[0], *argv[1:]])


def _missing_interpreter(name: str) -> str | None:
    found = "/" in name and os.path.exists(name)
    return "its interpreter is not found" if found else None


def _say(text: str) -> None:
    os.write(2, f"unionfs: {text}\n".encode(errors="backslashreplace"))


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _enter(root: str, bound: Sequence[str], cwd: str) -> None:
    """Make ``root`` the root of this process, in a mount namespace of its own, with ``bound`` directories in it."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    for path in bound:
        namespaces.mount(path, root + path, flags=namespaces.MS_BIND | namespaces.MS_REC)
    os.chdir(root)
    try:
        namespaces.pivot_root(".", ".")
        umount2(b".", MNT_DETACH)
    except OSError as error:
        # In a chroot or an initramfs there is no mount to exchange for the new one.
        if error.errno != errno.EINVAL:
            raise
        os.chroot(".")
    os.chdir("/")
    try:
        os.chdir(cwd)
    except OSError as error:
        _say(f"{cwd}: {error.strerror}; the command runs in /")


def _foreground_terminal() -> int | None:
    """The terminal on stdin if this process group has it."""
    with suppress(OSError):
        if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
            return 0
    return None


# What a command leaves running


def _ended_children() -> list[tuple[int, int]]:
    ended = []
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(found)
    return ended


def _end_the_rest() -> list[str]:
    """End all descendants, and return when there are none. Answers who they were."""
    told: dict[int, str] = {}
    if _gone(_LEFT_GRACE, _descendants):
        return []
    told |= _descendants()
    _kill(told, signal.SIGTERM)
    _kill(told, signal.SIGCONT)
    if not _gone(_LEFT_KILL_AFTER, _descendants):

        def kill_all() -> dict[int, str]:
            now = _descendants()
            told.update(now)
            _kill(now, signal.SIGKILL)
            return now

        _gone(None, kill_all)
    return [f"{name} ({pid})" for pid, name in told.items()]


def _gone(patience: float | None, look: Callable[[], dict[int, str]]) -> bool:
    """Whether ``look`` finds nobody any more within ``patience`` seconds."""
    started, pause = time.monotonic(), 0.001
    while True:
        _ended_children()
        if not look():
            return True
        if patience is not None and time.monotonic() - started > patience:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _descendants() -> dict[int, str]:
    """Pids and names of the descendants of this process that have not ended (proc(5), ``/proc/pid/stat``)."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b")")
            state, parent, *_ = tail.split()
            if state not in (b"Z", b"X"):
                parents[int(entry)] = int(parent), os.fsdecode(head.partition(b"(")[2])
    found: dict[int, str] = {}
    above = {os.getpid()}
    while above:
        children = {pid: name for pid, (parent, name) in parents.items() if parent in above and pid not in found}
        found |= children
        above = set(children)
    return found


def _kill(pids: dict[int, str], signum: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)

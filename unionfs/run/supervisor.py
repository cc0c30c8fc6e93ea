"""A process in a mount namespace of its own, and the thin parent that waits for it.

The parent stays in the caller's namespaces: it writes the id maps, passes signals on, and answers with the exit status.
Whatever the child mounts goes with the namespace when its last process ends, also after ``kill -9``.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from unionfs._sys import namespaces
from unionfs.errors import MountError
from unionfs.run.idmap import IdMaps, maps_for_this_user, write_maps

PASSED_ON = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
"""Signals that go on to the command when somebody sends them; those of a terminal reach it without us."""

_HOW_TO_PERMIT = (
    "user namespaces are not permitted here; "
    "become root, or have root permit them (sysctl user.max_user_namespaces=10000, "
    "kernel.unprivileged_userns_clone=1 on older Debian, kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)"
)


def from_a_person(info: signal.struct_siginfo) -> bool:
    """Whether a process sent the signal; what a terminal sends goes to the whole foreground group (sigaction(2))."""
    return info.si_code <= 0


def supervise(
    body: Callable[[IdMaps | None], int], failed: Callable[[BaseException], int], *, user_namespace: bool
) -> int:
    """Run ``body`` in a child process with its own mount namespace; its answer is the exit status, here and there.

    ``body`` gets the id maps of the user namespace, in which it is root, or ``None`` without one. What it raises goes
    to ``failed``, in the child. The host's later mounts show in the namespace, the namespace's never on the host.
    Signals are blocked in the body; who waits there takes them with sigwaitinfo(2). To be called in the main thread,
    before any other is started. Raises ``OSError``: ``EAGAIN``, ``ENOMEM``.
    """
    blocked = PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    to_child, to_parent = _pair(), _pair()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(to_child[1])
            os.close(to_parent[0])
            _be_child(parent, to_child[0], to_parent[1], body, failed, user_namespace)
        os.close(to_child[0])
        os.close(to_parent[1])
        if os.read(to_parent[0], 1):
            _answer(child, to_child[1])
        return _wait_for(child)
    finally:
        os.close(to_child[1])
        os.close(to_parent[0])
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pair() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC)


def _answer(child: int, writer: int) -> None:
    """The child stands in its new user namespace and waits for its ids: tell which, or the errno."""
    try:
        got = write_maps(child, maps_for_this_user())
        text = f"{len(got.uids)} {len(got.gids)}"
    except OSError as error:
        text = f"{error.errno}"
    with suppress(BrokenPipeError):
        os.write(writer, text.encode())


def _wait_for(child: int) -> int:
    while True:
        info = signal.sigwaitinfo(PASSED_ON | {signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
            if from_a_person(info):
                with suppress(ProcessLookupError):
                    os.kill(child, info.si_signo)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _be_child(
    parent: int,
    reader: int,
    writer: int,
    body: Callable[[IdMaps | None], int],
    failed: Callable[[BaseException], int],
    user_namespace: bool,
) -> NoReturn:
    """The child's life. It never returns into the parent's code."""
    status = 125
    try:
        try:
            maps = _enter_user_namespace(reader, writer) if user_namespace else None
            _enter_mount_namespace(user_namespace)
            namespaces.signal_at_parents_end(signal.SIGTERM)
            if os.getppid() != parent:
                raise MountError(errno.ESRCH, "the parent process has gone", "unionfs")
            namespaces.adopt_orphans()
            os.close(writer)
            status = body(maps)
        except BaseException as error:  # noqa: BLE001  # The only way out of the process is below.
            status = failed(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _enter_user_namespace(reader: int, writer: int) -> IdMaps:
    maps = maps_for_this_user()
    try:
        namespaces.unshare(namespaces.CLONE_NEWUSER)
    except OSError as error:
        raise MountError(error.errno, _HOW_TO_PERMIT, "try") from None
    os.write(writer, b"u")
    answer = os.read(reader, 64).decode().split()
    if len(answer) != 2:
        number = int(answer[0]) if answer else errno.EPIPE
        raise MountError(number, f"the user namespace gets no ids: {os.strerror(number)}", "try")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    return IdMaps(maps.uids[: int(answer[0])], maps.gids[: int(answer[1])])


def _enter_mount_namespace(user_namespace: bool) -> None:
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.mount(None, "/", flags=namespaces.MS_REC | namespaces.MS_SLAVE)
    except PermissionError:
        text = _HOW_TO_PERMIT if user_namespace else "root lacks the capability to mount (CAP_SYS_ADMIN)"
        raise MountError(errno.EPERM, text, "try") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        text = "the root of this chroot is no mount point; outside of it, mount --bind the directory onto itself"
        raise MountError(errno.EINVAL, text, "try") from None

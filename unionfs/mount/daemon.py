"""A process that serves one mount: opening the union, mounting, waiting, closing; in the foreground or detached."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import logging.handlers
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import attrs

from unionfs.errors import MountError, UnionError, UpperBusyError
from unionfs.mount import mountinfo, runtime
from unionfs.mount.engine import AUTO, FSTYPE, OVERLAY, Mount, MountOptions, mount
from unionfs.mount.unmounting import unmount

if TYPE_CHECKING:
    from unionfs.union.fs import UnionFS

log = logging.getLogger(__name__)

_LOCK_PATIENCE = 5.0  # seconds, for the daemon of a mount that was just unmounted to let go of the upper
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@attrs.frozen(kw_only=True)
class Request:
    """What to mount: lowers topmost first, as absolute paths; without ``upper`` it is read-only."""

    mountpoint: str
    open_union: Callable[[], UnionFS]
    upper: str | None = None
    engine: str = AUTO
    options: MountOptions
    mounted: Callable[[Mount], None] | None = None
    """Called with the mount, in the process that serves it, before anybody is told of it."""


def clear_dead_mount(mountpoint: str) -> bool:
    """Unmount what a killed daemon of ours left at this canonical path. Says whether there was something."""
    entry = mountinfo.mount_at(mountpoint)
    if entry is None or entry.fstype != FSTYPE or not runtime.is_dead(entry):
        return False
    unmount(mountpoint, lazy=True)
    return True


def serve(request: Request, announce: Callable[[runtime.Record], None]) -> None:
    """Mount, call ``announce`` when the mount answers, and return when it has ended and everything is on disk.

    SIGTERM, SIGINT and SIGHUP unmount; if the mount is busy it leaves the directory tree and is served until the last
    user is done. What is unmounted already, and shown or used elsewhere, ends by a signal. To be called in the main
    thread. Raises ``UnionError`` and ``OSError``.
    """
    # The record goes last: who waits for it finds the union closed.
    with _StopSignals() as stop, contextlib.ExitStack() as held, contextlib.closing(_open(request)) as fs:
        mounted = mount(fs, request.mountpoint, request.engine, **attrs.asdict(request.options, recurse=False))
        if request.mounted is not None:
            request.mounted(mounted)
        entry = mountinfo.mount_at(mounted.mountpoint)
        device = entry.device if entry is not None else ""
        record = runtime.Record(os.getpid(), mounted.mountpoint, device, mounted.engine, request.upper)
        try:
            held.enter_context(runtime.HeldRecord(record))
            announce(record)
        except BaseException:
            mounted.unmount(lazy=True)
            raise
        threading.Thread(target=_tell_end, args=(mounted, stop), daemon=True).start()
        _until_ended(mounted, device, stop)


def _tell_end(mounted: Mount, stop: _StopSignals) -> None:
    mounted.wait()
    stop.wake()


def _until_ended(mounted: Mount, device: str, stop: _StopSignals) -> None:
    while not mounted.wait(0):
        if not stop.wait() or mounted.wait(0):
            continue
        if device not in [entry.device for entry in mountinfo.mounts()]:
            log.warning("%s: unmounted here, and stopped for others", mounted.mountpoint)
            return
        try:
            mounted.unmount()
        except MountError as error:
            log.warning("%s: %s; detached, and served till its users are done", mounted.mountpoint, error.strerror)
            mounted.unmount(lazy=True)


class _StopSignals:
    """Stop signals as bytes on a pipe, so that the main thread can wait for them and for the mount's end at once."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> _StopSignals:
        self._old = {number: signal.signal(number, lambda *_: None) for number in _STOP_SIGNALS}
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        # The pipe stays: a thread that waits for the mount's end may still write to it.

    def wake(self) -> None:
        """End ``wait`` without a signal."""
        os.write(self._write, b"\0")

    def wait(self) -> bool:
        """Wait for a signal or a ``wake``; whether it was a stop signal."""
        select.select([self._read], [], [])
        return any(number in _STOP_SIGNALS for number in os.read(self._read, 64))


def _open(request: Request) -> UnionFS:
    """Open the union; a daemon that is about to end may still hold the upper for a moment."""
    for entry in mountinfo.mounts() if request.upper is not None else ():
        # The kernel takes no lock that others see.
        if entry.fstype == OVERLAY and entry.super_option("upperdir") == request.upper:
            text = f"already mounted for writing at {entry.mountpoint} (by the kernel's overlayfs)"
            raise UpperBusyError(errno.EBUSY, text, request.upper)
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            return request.open_union()
        except UpperBusyError as error:
            for record in runtime.live_records():
                if record.upper is not None and record.upper == request.upper:
                    text = f"already mounted for writing at {record.mountpoint} (pid {record.pid})"
                    raise UpperBusyError(errno.EBUSY, text, error.filename) from None
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def spawn(request: Request, log_file: str | None = None) -> runtime.Record:
    """Serve in a detached process; return when the mount answers. Raises what ``serve`` raises in there.

    The daemon's log lines go to ``log_file`` or, without it, to syslog where there is one.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    said = os.memfd_create("unionfs-stderr", os.MFD_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _become_daemon(request, log_file, writer, said)
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            answer = pipe.read()
    except BaseException:  # Ctrl-C: a mount that nobody waits for must not come.
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        os.close(said)
        raise
    with open(said, "rb") as captured:
        captured.seek(0)
        lines = captured.read().decode(errors="surrogateescape").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if not answer:
        _, status = os.waitpid(pid, 0)
        ending = os.waitstatus_to_exitcode(status)
        raise MountError(errno.EIO, f"the mount daemon ended ({ending}): {last or 'no word'}", request.mountpoint)
    report = json.loads(answer)
    if "error" not in report:
        return runtime.Record(**report)
    os.waitpid(pid, 0)
    number, text, path = report["error"]
    raise MountError(number, f"{text}: {last}" if number == errno.EIO and last else text, path)


def _become_daemon(request: Request, log_file: str | None, writer: int, said: int) -> NoReturn:
    """The child's life. It never returns into the parent's code."""
    status = 1
    waiting = open(writer, "wb", closefd=True)

    def report(answer: dict[str, object]) -> None:
        """Answer the parent, once."""
        if not waiting.closed:
            with contextlib.suppress(OSError), waiting:  # The parent may have gone.
                waiting.write(json.dumps(answer).encode())

    try:
        os.dup2(said, 2)
        os.setsid()
        os.chdir("/")
        os.umask(0)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        keep = {0, 1, 2, writer}
        limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536)
        for low, high in zip(sorted(keep), [*sorted(keep)[1:], limit], strict=True):
            os.closerange(low + 1, high)
        _log_to(log_file)

        def announce(record: runtime.Record) -> None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)
            os.close(null)
            report(attrs.asdict(record))

        try:
            serve(request, announce)
            status = 0
        except (UnionError, OSError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            text = getattr(error, "strerror", None) or str(error)
            report({"error": [number, text, os.fsdecode(getattr(error, "filename", None) or request.mountpoint)]})
    except BaseException as error:  # The only way out of the process is below.
        log.critical("mount daemon: %s: %s", type(error).__name__, error, exc_info=True)
        report({"error": [errno.EINVAL, f"{type(error).__name__}: {error}", request.mountpoint]})
    finally:
        logging.shutdown()
        os._exit(status)


def _log_to(log_file: str | None) -> None:
    handler: logging.Handler
    if log_file is not None:
        handler = logging.FileHandler(log_file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log")
        handler.ident = f"unionfs[{os.getpid()}]: "
    else:
        handler = logging.NullHandler()
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)

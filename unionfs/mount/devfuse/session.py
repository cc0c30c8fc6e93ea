"""The conversation on ``/dev/fuse``: requests are read, answered, and no slow one stalls the others.

One thread leads: it reads a request, answers it, and reads the next, with one buffer for all requests and one for all
answers. A request that is known to take its time (the answer is ``LATER``) is finished by the same thread after it has
handed the lead to another, if any request waits; and whatever turns out to take its time loses the lead to another
thread after a moment. So quick requests pay for no hand-over, and slow ones run side by side.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from unionfs.mount.devfuse import wire
from unionfs.mount.failing import told

log = logging.getLogger(__name__)

LATER: Final = -1000
"""The answer to a request that has to wait for something: ask again with ``wait``."""

Header: TypeAlias = tuple[int, int, int, int, int, int, int, int, int]
"""The fields of ``wire.HEADER``."""

Handler: TypeAlias = Callable[[Header, memoryview, memoryview, bool], int | None]
"""``(header, body, out, wait)``: fill ``out`` and tell how many bytes of it are the answer; ``None`` for no answer.
Errors are ``OSError``, or the negative errno where one is all too usual."""

_SHORT = 0.0002  # seconds that most requests take less than
_MOMENT = 0.005  # seconds after which another thread takes over
_IDLE = 200  # moments without a request, after which nobody watches
_THREADS = 24

# Who has just got an answer often has the next question at once; and to wake a processor that sleeps takes longer than
# to answer, in a virtual machine several times as long. So the leader asks this often before it sleeps, some 50
# microseconds; less and less often while nothing comes of it.
_PATIENCE = 32
_SOON_NS = 100_000


class _Worker:
    """A thread's own: memory for the largest request and answer (page by page as it is used), and how to wake it."""

    __slots__ = ("inbox", "outbox", "request", "room", "turn", "waiting")

    def __init__(self, fd: int) -> None:
        self.inbox = memoryview(bytearray(wire.IN_BUFFER))
        self.outbox = memoryview(bytearray(wire.OUT + wire.MAX_WRITE))
        self.room = self.outbox[wire.OUT :]
        self.waiting = select.poll()
        self.waiting.register(fd, select.POLLIN)
        self.turn = threading.Lock()
        self.turn.acquire()
        self.request = 0
        """Counts up with each request that it answers; 0: none."""


class Session:
    """Serves the connection ``fd`` with ``handlers``, by opcode, until it is unmounted; then ``on_end`` is called."""

    def __init__(self, fd: int, handlers: dict[int, Handler], label: str, on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._handlers = handlers
        self._label = label
        self._on_end = on_end
        self._change = threading.Condition()
        self._leader: _Worker | None = None
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._ended = False
        self._finished = False
        self._count = 0
        self._busy = False
        self._unwatched = threading.Event()
        self._resting = False
        self._patience = _PATIENCE if len(os.sched_getaffinity(0)) > 1 else 1
        self._watcher = threading.Thread(target=self._watch, name=f"{label} (watch)", daemon=True)
        self.idents: set[int] = set()
        """The threads that answer requests."""

    # Before threads: the first request is INIT.

    def receive(self, timeout: float) -> tuple[Header, bytes]:
        """One request. ``TimeoutError`` if none comes in time."""
        waiting = select.poll()  # select(2) ends at descriptor 1023.
        waiting.register(self._fd, select.POLLIN)
        if not waiting.poll(timeout * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "the kernel did not ask for anything")
        data = os.read(self._fd, wire.IN_BUFFER)
        return wire.HEADER.unpack_from(data), data[wire.HEADER.size :]

    def reply(self, unique: int, payload: bytes) -> None:
        """Answer it."""
        os.write(self._fd, wire.OUT_HEADER.pack(wire.OUT + len(payload), 0, unique) + payload)

    # Life

    def start(self) -> None:
        """Begin to answer."""
        os.set_blocking(self._fd, False)
        self._add_worker()
        self._watcher.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all threads have ended and ``on_end`` is done; whether they have."""
        with self._change:
            finished = self._change.wait_for(lambda: self._finished, timeout)
        if finished:
            self._watcher.join()  # It looks every moment.
        return finished

    def settle(self, timeout: float) -> None:
        """Wait until what is being answered now has been, at most ``timeout`` seconds."""
        with self._change:
            busy = {worker: worker.request for worker in self._workers if worker.request}
        deadline = time.monotonic() + timeout
        for worker, request in busy.items():
            while worker.request == request and time.monotonic() < deadline:
                time.sleep(_SHORT)

    def _add_worker(self) -> None:
        """A thread more, which leads. The lock is held, or there is none yet."""
        worker = _Worker(self._fd)
        self._workers.add(worker)
        self._leader = worker
        threading.Thread(target=self._serve, args=(worker,), name=self._label, daemon=True).start()

    def _serve(self, worker: _Worker) -> None:
        self.idents.add(threading.get_ident())
        try:
            self._lead(worker)
            while self._rest(worker):
                self._lead(worker)
        finally:
            self.idents.discard(threading.get_ident())
            with self._change:
                self._workers.discard(worker)
                last = self._ended and not self._workers
            if last:
                self._on_end()
                os.close(self._fd)
                with self._change:
                    self._finished = True
                    self._change.notify_all()

    def _rest(self, worker: _Worker) -> bool:
        """Wait until it is this thread's turn to lead; ``False`` at the end."""
        with self._change:
            if self._ended:
                return False
            if self._leader is None:
                self._leader = worker
                return True
            self._idle.append(worker)
        worker.turn.acquire()
        return not self._ended

    def _hand_over(self) -> None:
        """Let another thread lead, if there is one or may be one more: the one that led last, whose memory is warm."""
        with self._change:
            if self._ended:
                return
            if self._idle:
                self._leader = worker = self._idle.pop()
                worker.turn.release()
            elif len(self._workers) < _THREADS:
                self._add_worker()

    def _end(self) -> None:
        with self._change:
            self._ended = True
            self._leader = None
            for worker in self._idle:
                worker.turn.release()
            self._idle.clear()
        self._unwatched.set()

    def _watch(self) -> None:
        """Take the lead from a thread that is busy with one request for too long."""
        quiet = 0
        seen = -1
        while not self._ended:
            if quiet > _IDLE:
                quiet = 0
                self._unwatched.clear()
                self._resting = True
                if self._count == seen:  # Whoever counts one up from now on sees that nobody watches.
                    self._unwatched.wait()
                self._resting = False
            time.sleep(_MOMENT)
            count = self._count
            if count != seen:
                seen = count
                quiet = 0
            elif not self._busy:
                quiet += 1
            elif self._leader is not None:
                self._hand_over()

    # Requests

    def _lead(self, worker: _Worker) -> None:
        fd = self._fd
        header = wire.HEADER.unpack_from
        size = wire.HEADER.size
        answer = self._answer
        inbox = worker.inbox
        vector = [inbox]
        patience = self._patience
        while self._leader is worker:
            self._busy = False
            worker.request = 0
            try:
                length = 0
                for _ in range(patience):
                    try:
                        length = os.readv(fd, vector)
                        break
                    except BlockingIOError:
                        continue
                if not length:
                    patience = self._await(worker, patience)
                    continue
            except OSError as error:
                if error.errno == errno.ENODEV:
                    self._end()  # Unmounted.
                    return
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue  # A request that was taken back.
                log.error("%s: reading requests: %s", self._label, error)
                self._end()
                return
            self._busy = True
            worker.request = self._count = self._count + 1
            if self._resting:
                self._unwatched.set()
            answer(worker, header(inbox), inbox[size:length])
        worker.request = 0

    def _await(self, worker: _Worker, patience: int) -> int:
        """Sleep until a request comes; how often to ask for the next ones before sleeping."""
        begun = time.perf_counter_ns()
        worker.waiting.poll()
        if time.perf_counter_ns() - begun < _SOON_NS:
            return self._patience
        return max(patience // 2, 1)

    def _answer(self, worker: _Worker, h: Header, body: memoryview) -> None:
        outbox = worker.outbox
        out = worker.room
        code = 0
        try:
            handler = self._handlers.get(h[1])
            if handler is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            length = handler(h, body, out, False)
            if length is None:
                return
            if length == LATER:
                # While nobody waits it can as well be done here: who comes is not left waiting for long.
                if worker.waiting.poll(0) and self._leader is worker:
                    self._hand_over()
                length = handler(h, body, out, True)
                if length is None:
                    return
            if length < 0:
                code, length = length, 0
        except OSError as error:
            number = error.errno
            if number and 0 < number < 512:
                code, length = -number, 0
            else:
                self._told(h, body, error)
                code, length = -errno.EIO, 0
        except BaseException as error:  # noqa: BLE001  # One bad request must not take the mount down.
            self._told(h, body, error)
            code, length = -errno.EIO, 0
        length += wire.OUT
        wire.OUT_HEADER.pack_into(outbox, 0, length, code, h[2])
        try:
            os.write(self._fd, outbox[:length])
        except OSError as error:
            # ENOENT: who asked was killed meanwhile; ENODEV: unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                log.error("%s: the kernel refused an answer to %s: %s", self._label, wire.OPCODES.get(h[1]), error)

    def _told(self, h: Header, body: memoryview, error: BaseException) -> None:
        told(wire.OPCODES.get(h[1], str(h[1])), bytes(body[:60]), error)

    def notify(self, message: bytes) -> None:
        """Send the kernel a message of ``wire.message``. What it does not know, or no more, is no matter."""
        try:
            os.write(self._fd, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EBADF, errno.ENOTDIR):
                log.warning("%s: invalidation refused: %s", self._label, error)

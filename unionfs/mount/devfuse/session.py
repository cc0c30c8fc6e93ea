"""The conversation on ``/dev/fuse``: requests are read, answered, and no slow one stalls the others.

One thread leads: it reads a request, answers it, and reads the next, with one buffer for all requests and one for all
answers. A request that is known to take its time (the answer is ``LATER``) is finished by the same thread after it has
handed the lead to another; one that turns out to take its time (a slow disk) loses the lead to another thread after a
moment. So quick requests pay for no hand-over, and slow ones run side by side.
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

_MOMENT = 0.02  # seconds after which another thread takes over
_IDLE = 50  # moments without a request, after which nobody watches
_THREADS = 24


class Session:
    """Serves the connection ``fd`` with ``handlers``, by opcode, until it is unmounted; then ``on_end`` is called."""

    def __init__(self, fd: int, handlers: dict[int, Handler], label: str, on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._handlers = handlers
        self._label = label
        self._on_end = on_end
        self._change = threading.Condition()
        self._leader: object = None
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._ended = False
        self._finished = False
        self._count = 0
        self._busy = False
        self._unwatched = threading.Event()
        self._resting = False
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
        self._add_thread()
        threading.Thread(target=self._watch, name=f"{self._label} (watch)", daemon=True).start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all threads have ended and ``on_end`` is done; whether they have."""
        with self._change:
            return self._change.wait_for(lambda: self._finished, timeout)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name=self._label, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _serve(self) -> None:
        me = threading.current_thread()
        self.idents.add(threading.get_ident())
        # Memory for the largest request and answer, page by page as it is used.
        inbox = memoryview(bytearray(wire.IN_BUFFER))
        outbox = memoryview(bytearray(wire.OUT + wire.MAX_WRITE))
        try:
            while self._take_lead(me):
                self._lead(me, inbox, outbox)
        finally:
            self.idents.discard(threading.get_ident())
            with self._change:
                self._threads.discard(me)
                last = self._ended and not self._threads
            if last:
                self._on_end()
                os.close(self._fd)
                with self._change:
                    self._finished = True
                    self._change.notify_all()

    def _take_lead(self, me: threading.Thread) -> bool:
        with self._change:
            self._idle += 1
            self._change.wait_for(lambda: self._leader is None or self._ended)
            self._idle -= 1
            if self._ended:
                return False
            self._leader = me
            return True

    def _hand_over(self) -> bool:
        """Let another thread lead; whether there is one."""
        with self._change:
            if self._ended:
                return True
            if not self._idle:
                if len(self._threads) >= _THREADS:
                    return False
                self._add_thread()
            self._leader = None
            self._change.notify_all()
            return True

    def _end(self) -> None:
        with self._change:
            self._ended = True
            self._leader = None
            self._change.notify_all()
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

    def _lead(self, me: threading.Thread, inbox: memoryview, outbox: memoryview) -> None:
        fd = self._fd
        header = wire.HEADER.unpack_from
        size = wire.HEADER.size
        answer = self._answer
        vector = [inbox]
        while self._leader is me:
            self._busy = False
            try:
                length = os.readv(fd, vector)
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
            self._count += 1
            if self._resting:
                self._unwatched.set()
            answer(me, header(inbox), inbox[size:length], outbox)

    def _answer(self, me: threading.Thread, h: Header, body: memoryview, outbox: memoryview) -> None:
        out = outbox[wire.OUT :]
        code = 0
        try:
            handler = self._handlers.get(h[1])
            if handler is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            length = handler(h, body, out, False)
            if length is None:
                return
            if length == LATER:
                if self._leader is me:
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

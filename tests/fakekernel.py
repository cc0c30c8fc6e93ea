"""A kernel of the test's own, for the engine on /dev/fuse: a socket in place of the device."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable

from unionfs.mount.devfuse import wire

SOON = 10.0
"""Seconds within which what is not held up is answered, on a machine that does much else."""

_ALL = 2**64 - 1


class Kernel:
    """Asks, and gathers what it is answered and told."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self.fd = theirs.detach()
        self._uniques = itertools.count(2, 2)
        self._answers: dict[int, tuple[int, bytes]] = {}
        self.told: list[tuple[int, bytes]] = []
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._gather, daemon=True)
        self._thread.start()

    def _gather(self) -> None:
        while data := self._socket.recv(wire.OUT + wire.MAX_WRITE):
            length, code, unique = wire.OUT_HEADER.unpack_from(data)
            assert length == len(data)
            with self._change:
                if unique:
                    assert unique not in self._answers, "answered twice"
                    self._answers[unique] = -code, data[wire.OUT :]
                else:
                    self.told.append((code, data[wire.OUT :]))
                self._change.notify_all()

    def ask(self, opcode: int, node: int = wire.ROOT_ID, body: bytes = b"", *, unique: int | None = None) -> int:
        unique = next(self._uniques) if unique is None else unique
        header = wire.HEADER.pack(wire.HEADER.size + len(body), opcode, unique, node, 0, 0, 1, 0, 0)
        self._socket.send(header + body)
        return unique

    def answer(self, unique: int, within: float = SOON) -> bytes:
        with self._change:
            assert self._change.wait_for(lambda: unique in self._answers, within), "no answer"
            code, payload = self._answers.pop(unique)
        if code:
            assert not payload
            raise OSError(code, os.strerror(code))
        return payload

    def call(self, opcode: int, node: int = wire.ROOT_ID, body: bytes = b"") -> bytes:
        return self.answer(self.ask(opcode, node, body))

    def waits(self, unique: int) -> bool:
        """Whether there is no answer yet."""
        with self._change:
            return unique not in self._answers

    def until_told(self, enough: Callable[[list[tuple[int, bytes]]], bool]) -> None:
        with self._change:
            assert self._change.wait_for(lambda: enough(self.told), SOON), self.told

    def forget(self, node: int, count: int) -> None:
        self.ask(wire.FORGET, node, wire.U64.pack(count), unique=0)

    def offer(self, features: int = _ALL, *, major: int = wire.MAJOR, minor: int = wire.MINOR) -> int:
        """The first request."""
        body = wire.INIT_IN.pack(major, minor, 131072, features & 0xFFFFFFFF, features >> 32) + bytes(44)
        return self.ask(wire.INIT, 0, body)

    def end(self) -> None:
        """Unmounted."""
        if self._socket.fileno() >= 0:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join(SOON)
            self._socket.close()

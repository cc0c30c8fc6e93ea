"""Talking to the process that has a container open: a Unix socket in the container's directory.

One request and one answer, a JSON object and a newline each. The store's directory is its owner's alone, and so is the
socket; who else comes is turned away. A socket that nobody listens to was left by a killed process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from unionfs import errors
from unionfs.errors import StoreError, UnionError

log = logging.getLogger(__name__)

_NAME = "socket"
_MAX = 1 << 20
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Answer = dict[str, Any]


class Gone(Exception):
    """What the request is for is no longer here: the asker shall find out where it is."""


class Server:
    """Answers requests in threads of its own until ``close``; to be had only with the container's lock, as there is one
    socket. ``handle`` may raise ``UnionError``, ``OSError``, and ``Gone``, upon which there is no answer."""

    def __init__(self, directory: str, handle: Callable[[Answer], Answer]) -> None:
        self._handle = handle
        self._path = os.path.join(directory, _NAME)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._socket = socket.socket(socket.AF_UNIX)
        fd = os.open(directory, _OPEN_DIR)
        try:
            # The path may be longer than a socket's may be (unix(7)).
            self._socket.bind(f"/proc/self/fd/{fd}/{_NAME}")
        finally:
            os.close(fd)
        os.chmod(self._path, 0o600)
        self._socket.listen(16)
        self._thread = threading.Thread(target=self._accept, name="unionfs control", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(60)
            try:
                uid = _uid_of(connection)
                if uid not in (0, os.geteuid()):
                    return
                with connection.makefile("rb") as file:
                    request = json.loads(file.readline(_MAX))
                try:
                    answer = self._handle(request)
                except Gone:
                    return
                except (UnionError, OSError) as error:
                    answer = {"error": _packed(error)}
                connection.settimeout(None)
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except (OSError, ValueError) as error:
                log.debug("control: %s", error)

    def close(self) -> None:
        """No more requests; those begun are answered."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def ask(directory: str, request: Answer, timeout: float | None = None) -> Answer | None:
    """The answer of who has the container in ``directory`` open; ``None`` if nobody listens, or who did has just ended.

    Raises what the request raised there; ``StoreError`` after ``timeout`` seconds.
    """
    try:
        fd = os.open(directory, _OPEN_DIR)
    except FileNotFoundError:
        return None
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(f"/proc/self/fd/{fd}/{_NAME}")
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            try:
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as file:
                    line = file.readline()
            except TimeoutError as error:
                raise StoreError("the process that has the container open does not answer") from error
            except (BrokenPipeError, ConnectionResetError):
                line = b""
    finally:
        os.close(fd)
    if not line.endswith(b"\n"):
        return None  # It ended just now.
    answer: Answer = json.loads(line)
    if "error" in answer:
        raise _unpacked(answer["error"])
    return answer


def _uid_of(connection: socket.socket) -> int:
    """Who is at the other end (``struct ucred``, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(raw[4:8], sys.byteorder)


def _packed(error: Exception) -> list[Any]:
    path = getattr(error, "filename", None)
    number = getattr(error, "errno", None)
    text = getattr(error, "strerror", None) or str(error)
    return [type(error).__name__, number, text, None if path is None else os.fsdecode(path)]


def _unpacked(packed: list[Any]) -> Exception:
    name, number, text, path = packed
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, UnionError)):
        kind = UnionError if number is None else OSError
    if not issubclass(kind, OSError):
        return kind(text)
    return kind(number, text) if path is None else kind(number, text, path)

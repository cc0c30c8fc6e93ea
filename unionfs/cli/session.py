"""A shell in a merged root, given one line after the other; for the demonstration."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator

from unionfs.errors import UnionError
from unionfs.run.hostview import waiting
from unionfs.run.process import Command, real_directories

_STATUS, _OUTPUT = 3, 4  # descriptors of the shell


class Session:
    """A shell that waits for its root. Made before the mount; see ``Command``."""

    def __init__(self, command: Command, line: int, status: int, output: int) -> None:
        self._command = command
        self._line, self._status, self._output = line, status, output

    @contextlib.contextmanager
    def inside(self, root: str) -> Iterator[None]:
        """It runs in this merged root, with what is the running system's bound into it, until the block ends.

        An error in the block ends what the shell is doing too.
        """
        self._command.start(root, real_directories())
        try:
            yield
        except BaseException:
            self._command.stop()
            raise
        finally:
            self.close()
            self._command.wait()

    def close(self) -> None:
        """No line comes any more. Nothing happens the second time."""
        if self._line >= 0:
            os.close(self._line)
            self._line = -1

    def run(self, line: str) -> tuple[int, str]:
        """Run a line; its exit status and what it printed. Raises ``UnionError`` when the shell has gone."""
        program = f"{{ {line}\n}} </dev/null >&{_OUTPUT} 2>&1 {_STATUS}>&- {_OUTPUT}>&-; echo $? >&{_STATUS}\n"
        with contextlib.suppress(BrokenPipeError):
            os.write(self._line, program.encode())
        said, status = bytearray(), b""
        while not status.endswith(b"\n"):
            ready, _, _ = select.select([self._status, self._output], [], [])
            if self._output in ready:
                said += os.read(self._output, 1 << 16)
            elif self._status in ready:
                got = os.read(self._status, 16)
                if not got:
                    raise UnionError("the shell in the merged root has gone")
                status += got
        while select.select([self._output], [], [], 0)[0] and (block := os.read(self._output, 1 << 16)):
            said += block
        return int(status), said.decode(errors="replace")


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """A shell, forked and waiting. To be used where ``supervise`` runs its body, before there are threads."""
    with contextlib.ExitStack() as pipes:
        line, status, output = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        for fd in (status[0], output[0]):
            pipes.callback(os.close, fd)
        fds = {0: line[0], _STATUS: status[1], _OUTPUT: output[1]}
        with waiting(["sh"], fds=fds) as command:
            for fd in fds.values():
                os.close(fd)
            shell = Session(command, line[1], status[0], output[0])
            try:
                yield shell
            finally:
                shell.close()

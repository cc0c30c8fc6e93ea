"""``make demo``: what a union does, on this machine's own root, step by step.

Everything happens in a mount namespace that goes with the process; the host is only read, and fingerprinted before and
after.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import click

from unionfs.cli.demo_program import VENV, Program, install
from unionfs.cli.errors import EXPECTED, PROGRAM, as_failure
from unionfs.cli.present import count_of, lines, shown, size, summary
from unionfs.cli.proof import Fingerprint, fingerprints
from unionfs.cli.session import Session, session
from unionfs.errors import UnionError
from unionfs.mount.engine import MountOptions, get_engine
from unionfs.run.hostview import changes, open_view
from unionfs.run.idmap import IdMaps
from unionfs.run.scratch import Scratch, state_directory
from unionfs.run.supervisor import PASSED_ON, supervise
from unionfs.union.diff import Change
from unionfs.union.fs import UnionFS

EDITED = "/etc/issue"
DELETED = "/etc/skel"
RENAMED = "/usr/share/common-licenses"
NEW_NAME = "/usr/share/licenses"
_MOST_LINES = 14


def main() -> int:
    """Run the demonstration; the exit status: 0, or 1 with one line that says what failed."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return supervise(_body, _failed, user_namespace=os.geteuid() != 0)


def _failed(error: BaseException) -> int:
    if isinstance(error, EXPECTED):
        as_failure(error).show()
    elif isinstance(error, KeyboardInterrupt):
        click.echo(f"{PROGRAM}: interrupted; the host is as it was", err=True)
    else:
        sys.excepthook(type(error), error, error.__traceback__)
    return 1


def _body(maps: IdMaps | None) -> int:
    with _interruptible():
        uid = os.geteuid() if maps is None else maps.uids[0].outside
        state = state_directory(uid)
        base = os.path.join(state, "try")
        scratch = Scratch.make(base, ["make", "demo"])
        try:
            Demo(scratch, base, maps).run()
        finally:
            scratch.remove()
            for directory in (base, state):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
    return 0


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Signals end what is running, and what was mounted and made is cleared away."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)


# What it prints


def heading(text: str) -> None:
    """A step's title."""
    click.secho(f"\n{text}", bold=True)


def tell(text: str) -> None:
    """What happens and why, for somebody who has not seen it before."""
    click.echo(f"   {text}")


def command(text: str) -> None:
    """A command, before it runs."""
    click.echo("   " + click.style(f"# {text}", fg="cyan"))


def output(text: str, most: int = 4) -> None:
    """The last lines of what a command printed."""
    said = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    if len(said) > most:
        click.secho(f"     … {count_of(len(said) - most, 'line')} more", dim=True)
    for line in said[-most:]:
        click.secho(f"     {shown(line)[:110]}", dim=True)


def show(shell: Session, line: str) -> int:
    """Show a line, run it, show what it printed; its exit status."""
    command(line)
    status, said = shell.run(line)
    output(said)
    return status


def run(shell: Session, line: str) -> None:
    """``show``, and ``UnionError`` if it fails."""
    status = show(shell, line)
    if status:
        raise UnionError(f"exit status {status}: {line}")


class Demo:
    """The four parts of the demonstration, in order."""

    def __init__(self, scratch: Scratch, base: str, maps: IdMaps | None) -> None:
        self.scratch = scratch
        self.base = base
        self.in_user_namespace = maps is not None
        self.first, self.second = (os.path.join(scratch.path, name) for name in ("layer-1", "layer-2"))

    def run(self) -> None:
        """All of it. Raises ``UnionError`` and ``OSError``."""
        started = time.monotonic()
        parts = ["/etc", RENAMED, NEW_NAME, "/usr/bin", "/var/lib/dpkg", VENV]
        click.secho("unionfs: a copy-on-write view of this machine's own root", bold=True)
        before = fingerprints(parts)
        with session() as shell, self._view(self.scratch.upper) as fs:
            heading("1. This machine's root is the read-only lower layer, a fresh writable layer stands on it")
            tell(f"lower   /  ({_system()})")
            tell(f"upper   {self.scratch.upper}  (empty)")
            tell(f"merged  {self.scratch.merged}")
            with get_engine().mount(fs, self.scratch.merged, MountOptions(sole=True, source="unionfs-demo")) as mounted:
                tell(f"Mounted through FUSE (engine {mounted.engine}), for this process and its children only.")
                with shell.inside(self.scratch.merged):
                    program = self._changes(shell)
                    self._diff(fs, before, fingerprints(parts))
                    self._layers(shell, fs, program)
        self._first_state(program)
        if fingerprints(parts) != before:
            raise UnionError("the host changed while the demonstration ran")
        click.secho(
            f"\nDone in {time.monotonic() - started:.0f} s: unmounted, layers removed, the host as it was.", bold=True
        )
        tell(f"Yours now:  {_program()} try -- COMMAND …     {_program()} try bash     {_program()} try --help")

    def _view(self, upper: str | None, *above: str) -> UnionFS:
        work = None if upper is None else self.scratch.work
        return open_view(upper, work, [self.base], above=above, user_namespace=self.in_user_namespace)

    def _changes(self, shell: Session) -> Program:
        heading("2. A real program runs in the merged root and changes a lot")
        shell.run("export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PIP_ROOT_USER_ACTION=ignore; umask 022; cd /")
        program = install(lambda line: show(shell, line) == 0, tell, root=not self.in_user_namespace)
        run(shell, program.use)
        tell("A file in /etc is edited, a directory deleted, a directory renamed:")
        run(shell, f"echo 'Edited in the merged root.' >> {EDITED}")
        run(shell, f"rm -r {DELETED}")
        run(shell, f"mv {RENAMED} {NEW_NAME}")
        return program

    def _diff(self, fs: UnionFS, before: Sequence[Fingerprint], now: Sequence[Fingerprint]) -> None:
        heading("3. The diff shows exactly what changed, and the host is untouched")
        command("fs.diff()      (A added, C changed, D deleted)")
        found = changes(fs, self.scratch.started_ns)
        shown_lines = list(lines(found))
        for line in shown_lines[:_MOST_LINES]:
            click.echo(f"     {line}")
        if len(shown_lines) > _MOST_LINES:
            # What this demonstration did by itself is always shown.
            tail = [line for line in shown_lines[_MOST_LINES:] if RENAMED in line or NEW_NAME in line]
            click.secho(f"     … {count_of(len(shown_lines) - _MOST_LINES - len(tail), 'line')} more", dim=True)
            for line in tail:
                click.echo(f"     {line}")
        tell(f"In all: {summary(found)}")
        _check_diff(found)
        tell("The host's own files, fingerprinted before and after (names, owners, modes, times, contents):")
        for old, new in zip(before, now, strict=True):
            same = click.style("same", fg="green") if old == new else click.style("CHANGED", fg="red")
            what = f"{count_of(old.entries, 'entry')}, {size(old.bytes)}" if old.entries else "absent"
            click.echo(f"     {old.path:27} {what:24} xxh3 {old.digest[:12]} = {new.digest[:12]}  {same}")
        changed = [old.path for old, new in zip(before, now, strict=True) if old != new]
        if changed:
            raise UnionError(f"the host changed while the demonstration ran: {', '.join(changed)}")

    def _layers(self, shell: Session, fs: UnionFS, program: Program) -> None:
        heading("4. Commit freezes the layer; a second one goes on top, and the first state is still there")
        self._commit(fs, self.first, f"{program.name} installed, /etc edited")
        tell("The mount goes on, with a fresh upper. A second change:")
        run(shell, program.remove)
        run(shell, f"echo 'A second edit.' >> {EDITED}")
        run(shell, f"tail -n 2 {EDITED}")
        self._commit(fs, self.second, f"{program.name} removed, a second edit")
        command("fs.history()")
        for entry in fs.history():
            if entry.id is not None:
                when = f"{entry.created:%Y-%m-%d %H:%M:%S}" if entry.created else ""
                tell(f"  {os.path.basename(entry.path)}  {when}  {entry.author}  {entry.comment}")
            elif entry.path == "/":
                tell(f"  /        {_system()}")

    def _first_state(self, program: Program) -> None:
        tell("That mount has ended. The first state, mounted again, read-only:")
        first = os.path.join(self.scratch.path, "first")
        os.mkdir(first)
        options = MountOptions(read_only=True, source="unionfs-demo")
        with self._view(None, self.first) as old, get_engine().mount(old, first, options):
            tell(f"  lower   {self.first}, /")
            self._outside("tail", "-n", "2", first + EDITED)
            said = self._outside("chroot", first, *shlex.split(program.use))
            with open(first + EDITED, encoding="utf-8", errors="replace") as file:
                text = file.read()
        os.rmdir(first)
        if "Edited in the merged root." not in text or "A second edit." in text or not said:
            raise UnionError("the first state is not what was committed")
        tell(f"{program.name} is there as it was, and the second edit is not.")

    def _commit(self, fs: UnionFS, destination: str, message: str) -> None:
        author = "demo"
        command(f'fs.commit("{os.path.basename(destination)}", author="{author}", message="{message}")')
        begun = time.perf_counter()
        fs.commit(destination, author=author, message=message, created_by="make demo")
        tell(f"frozen in {(time.perf_counter() - begun) * 1000:.0f} ms")

    @staticmethod
    def _outside(*argv: str) -> str:
        """Run a program on a mount from the outside."""
        command(shlex.join(argv))
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
        output(done.stdout + done.stderr)
        if done.returncode:
            raise UnionError(f"exit status {done.returncode}: {shlex.join(argv)}")
        return done.stdout


def _check_diff(found: Sequence[Change]) -> None:
    """What the demonstration did by itself must be in the diff, exactly."""
    by_path = {change.path: change for change in found}
    edited, deleted = by_path.get(EDITED), by_path.get(DELETED)
    renamed, gone = by_path.get(NEW_NAME), by_path.get(RENAMED)
    right = (
        edited is not None
        and edited.kind == "changed"
        and edited.what == {"data", "times"}
        and deleted is not None
        and deleted.kind == "deleted"
        and renamed is not None
        and renamed.renamed_from == RENAMED
        and gone is not None
        and gone.kind == "deleted"
    )
    if not right:
        raise UnionError("the diff does not show what was done")


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "this machine"


def _program() -> str:
    """How to call the command from here."""
    beside = os.path.join(os.path.dirname(sys.executable), PROGRAM)
    near = os.path.relpath(beside)
    return near if os.path.exists(beside) and not near.startswith("..") else beside


if __name__ == "__main__":
    sys.exit(main())

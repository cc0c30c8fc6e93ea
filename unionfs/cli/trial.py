"""One try: the run, what it changed, the decision, and what becomes of the changes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from typing import Literal

import attrs
import click

from unionfs.cli.errors import PROGRAM, describe
from unionfs.cli.present import as_json, count_of, lines, shown, summary
from unionfs.errors import LayerError
from unionfs.run import apply
from unionfs.run.hostview import changes, open_view, run_in_view, waiting
from unionfs.run.idmap import IdMaps
from unionfs.run.process import Command, Ended
from unionfs.run.scratch import Scratch, check_place, leftovers, state_directory
from unionfs.run.supervisor import PASSED_ON
from unionfs.union.diff import Change
from unionfs.union.fs import UnionFS

Decision = Literal["keep", "apply", "discard"]
Outcome = Literal["kept", "applied", "discarded", "unchanged", "failed"]

OWN_FAILURE = 125
"""Exit status when we fail and not the command (chroot(1), env(1))."""
NOT_APPLIED = 1
"""Exit status when the command succeeded, and not all of its changes could be applied or kept."""

_MOST_OF_COMMAND = 250  # characters of it in a layer's history


@attrs.frozen(kw_only=True)
class Order:
    """What the command line asks for."""

    command: tuple[str, ...]
    decision: Decision | None
    keep_at: str | None
    force: bool
    scratch: str | None
    message: str
    author: str
    engine: str
    json: bool
    everything: bool


def say(text: str) -> None:
    """A line on stderr: stdout is the command's."""
    click.echo(f"{PROGRAM}: {text}", err=True)


class Trial:
    """One run of a command over the host's root. It lives in the child of ``supervise``."""

    def __init__(self, order: Order, maps: IdMaps | None) -> None:
        self.order = order
        self.maps = maps
        self.places = _places(order, maps)
        self.changes: list[Change] = []
        self.outcome: Outcome = "unchanged"
        self.layer: str | None = None
        self.problems: list[apply.Problem] = []
        self.command: Command | None = None

    def run(self) -> int:
        """All of it; the exit status. Raises ``OSError`` and ``UnionError`` if the view can't be made."""
        if self.order.keep_at is not None:
            _check_new(self.order.keep_at)
        for left in leftovers(self.places.scratches):
            say(
                f"a killed run ({shown(left.command)}, {left.created:%Y-%m-%d %H:%M} UTC) left its changes in "
                f"{shown(left.path)}; `{PROGRAM} try --sweep` removes them"
            )
        scratch = Scratch.make(self.places.scratches, self.order.command)
        try:
            ended = self._run(scratch)
        except BaseException:
            if self.command is None or not self.command.started:
                scratch.remove()
            elif os.path.isdir(scratch.path):
                say(f"what was changed until now is in {shown(scratch.upper)}")
            raise
        finally:
            scratch.release()
            self.places.tidy()
        if self.order.json:
            click.echo(json.dumps(self._report(ended), indent=2))
        return ended.status or (NOT_APPLIED if self.outcome == "failed" else 0)

    def _run(self, scratch: Scratch) -> Ended:
        order = self.order
        with (
            waiting(order.command, fds={1: 2} if order.json else None) as command,
            open_view(scratch.upper, scratch.work, [self.places.scratches], user_namespace=self.maps is not None) as fs,
        ):
            self.command = command
            ended = run_in_view(fs, command, scratch.merged, order.engine)
            if ended.left:
                say(f"ended what the command left running: {shown(', '.join(ended.left))}")
            if ended.status and self.maps is not None and self.maps.single:
                say(
                    "note: this user namespace has one user only (no entry in /etc/subuid, or no newuidmap): "
                    "programs that change owners or users fail in it"
                )
            self.changes = changes(fs, scratch.started_ns)
            self._tell_changes()
            decision = self._decide(ended)
            if decision == "keep":
                self._keep(fs, scratch)
            elif decision == "apply":
                self._apply(fs, scratch)
            elif self.changes:
                self.outcome = "discarded"
                self._tell("discarded; the host is as it was")
        scratch.remove()
        return ended

    def _tell(self, text: str) -> None:
        """A line for a person, where no program reads."""
        if not self.order.json:
            say(text)

    def _tell_changes(self, everything: bool = False) -> None:
        if self.order.json:
            return
        for line in lines(self.changes, everything=everything or self.order.everything):
            click.echo(line, err=True)
        say(summary(self.changes))

    # The decision

    def _decide(self, ended: Ended) -> Decision:
        given = self.order.decision
        if ended.stopped_by is not None and given == "apply":
            say("stopped before its end, so nothing is applied")
            return "keep"
        if given is not None:
            return given
        if not self.changes:
            return "discard"
        if ended.stopped_by is not None or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return "keep"
        return self._ask()

    def _ask(self) -> Decision:
        answers: dict[str, Decision] = {"k": "keep", "a": "apply", "d": "discard"}
        with _signals_open():
            try:
                while True:
                    answer = click.prompt(
                        "[k]eep as a layer, [a]pply to the host, [d]iscard, or [l]ist everything",
                        type=click.Choice([*answers, "l"], case_sensitive=False),
                        show_choices=False,
                        err=True,
                    )
                    if answer in answers:
                        return answers[answer]
                    self._tell_changes(everything=True)
            except click.Abort:
                click.echo(err=True)
                return "keep"  # No answer loses nothing.

    # What becomes of the changes

    def _keep(self, fs: UnionFS, scratch: Scratch) -> None:
        order = self.order
        default = os.path.join(self.places.layers, scratch.id)
        for path in filter(None, (order.keep_at, default)):
            try:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                fs.commit(
                    path,
                    message=_text(order.message),
                    author=_text(order.author),
                    created_by=_text(shlex.join(order.command))[:_MOST_OF_COMMAND],
                )
                break
            except OSError as error:
                if path == default:
                    raise
                self.outcome = "failed"
                say(describe(error))
        os.sync()
        self.layer = path
        if self.outcome != "failed":
            self.outcome = "kept"
        self._tell(f"kept as a layer: {shown(path)}")

    def _apply(self, fs: UnionFS, scratch: Scratch) -> None:
        if not self.order.force:
            self.problems = apply.conflicts(self.changes, scratch.started_ns)
        if self.problems:
            self._tell_problems("nothing is applied, since the host changed too (--force applies all the same)")
        else:
            self.problems = apply.apply(fs.tree, self.changes)
            if self.problems:
                self._tell_problems("not all could be applied")
        if self.problems:
            self.outcome = "failed"
            self._keep(fs, scratch)
        elif self.changes:
            self.outcome = "applied"
            self._tell("applied to the host")

    def _tell_problems(self, text: str) -> None:
        for problem in self.problems:
            say(f"{shown(problem.path)}: {problem.text}")
        say(text)

    def _report(self, ended: Ended) -> dict[str, object]:
        return {
            "command": list(self.order.command),
            "status": ended.status,
            "changes": [as_json(change) for change in self.changes],
            "outcome": self.outcome,
            "layer": self.layer,
            "problems": [attrs.asdict(problem) for problem in self.problems],
            "left_running": list(ended.left),
        }


def _text(given: str) -> str:
    """``given`` as it can be written in UTF-8: arguments of a command need not be."""
    return given.encode(errors="backslashreplace").decode()


def _check_new(path: str) -> None:
    """A layer is kept in a directory that is new or empty. Raises ``LayerError``."""
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path) or os.listdir(path)):
        raise LayerError(errno.EEXIST, "a layer is kept in a directory that is new or empty", path)


@contextlib.contextmanager
def _signals_open() -> Iterator[None]:
    """Signals have their usual effect in this block: Ctrl-C interrupts a question."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)


# Where


def _outside_uid(maps: IdMaps | None) -> int:
    return os.geteuid() if maps is None else maps.uids[0].outside


@attrs.frozen
class _Places:
    """``state``: where scratch directories and kept layers are, each in its own directory."""

    state: str

    @property
    def scratches(self) -> str:
        return os.path.join(self.state, "try")

    @property
    def layers(self) -> str:
        return os.path.join(self.state, "layers")

    def tidy(self) -> None:
        """Leave no empty directories behind."""
        for directory in (self.scratches, self.state):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def _places(order: Order, maps: IdMaps | None) -> _Places:
    if order.scratch is not None:
        check_place(order.scratch)
        return _Places(os.path.realpath(order.scratch))
    if order.keep_at is not None:
        # A layer is frozen where it is, so the upper is made on the file system where it is to stay.
        beside = _existing(order.keep_at)
        with contextlib.suppress(OSError):
            default = state_directory(_outside_uid(maps))
            if os.stat(default).st_dev == os.stat(beside).st_dev:
                return _Places(default)
        place = os.path.join(beside, f".{PROGRAM}")
        check_place(place)
        return _Places(os.path.realpath(place))
    return _Places(state_directory(_outside_uid(maps)))


def _existing(path: str) -> str:
    """The nearest directory above ``path`` that exists."""
    parent = os.path.dirname(path)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    return parent


def sweep_away(order: Order, maps: IdMaps | None) -> int:
    """Remove what killed runs left; the exit status."""
    places = _places(order, maps)
    number = sum(1 for _ in leftovers(places.scratches, remove=True))
    places.tidy()
    say(f"removed what {count_of(number, 'killed run')} left" if number else "no killed run has left anything")
    return 0

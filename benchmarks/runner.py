"""Runs the workloads: contenders in turn, fresh state for each, every number and every refusal kept."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import gc
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.contenders import Contender, Place, Stack
from benchmarks.fixtures import Fixtures, Sizes
from benchmarks.scratch import PREFIX, Scratch, Unsupported, filesystem_of
from benchmarks.views import View

SECONDS_A_MEASUREMENT = 300
SECONDS_A_CASE = 20.0

Readings = Iterator[tuple[str, float]]
Measure = Callable[[Contender], Readings]


@dataclass(frozen=True)
class Case:
    """One setting of a workload. `measure` yields ``(metric, value)`` as it gets them.

    `prepare` builds what `measure` needs, outside of the case's time; :exc:`Unsupported` when it can't be had.
    """

    label: str
    measure: Measure
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Workload:
    """A workload: what is measured (`metrics`, name to unit), by whom, and in which settings.

    `reference` is the contender the ratios are to. Units: ``s``, ``B``, ``B/s``, ``1/s``.
    """

    name: str
    title: str
    metrics: Mapping[str, str]
    contenders: tuple[Contender, ...]
    reference: Contender
    cases: Callable[[Bench], Iterator[Case]]


@dataclass
class Row:
    """What one contender gave for one metric of one case; `reason` when it gave nothing."""

    workload: str
    case: str
    metric: str
    unit: str
    contender: str
    values: list[float] = field(default_factory=list)
    reason: str | None = None

    @property
    def median(self) -> float | None:
        """The median of `values`, or None when there are none."""
        return statistics.median(self.values) if self.values else None

    def to_json(self) -> dict[str, Any]:
        """As kept in the result file."""
        return {**asdict(self), "median": self.median}


def slowness(row: Row, other: Row) -> float | None:
    """How many times worse `row` is than `other`: more time, more bytes, or less throughput."""
    if row.median is None or other.median is None or 0 in (row.median, other.median):
        return None
    ratio = row.median / other.median
    return 1 / ratio if row.unit.startswith(("B/", "1/")) else ratio


class TimedOut(Exception):
    """A measurement took longer than ``SECONDS_A_MEASUREMENT``."""


@dataclass(frozen=True)
class Area:
    """A file system to measure on. `under` gives the `under` of :meth:`Bench.open` and of the fixtures."""

    name: str
    under: Callable[[], Path | None]


class Bench:
    """What a workload has at hand: the scratch area, the fixtures, and `open`."""

    def __init__(self, scratch: Scratch, sizes: Sizes) -> None:
        self.scratch = scratch
        self.sizes = sizes
        self.fixtures = Fixtures(scratch, sizes)

    def areas(self) -> tuple[Area, ...]:
        """The file system of the scratch area, and a tmpfs."""
        return Area(filesystem_of(self.scratch.root), lambda: None), Area("tmpfs", self.fixtures.tmpfs)

    @contextlib.contextmanager
    def open(
        self, contender: Contender, stack: Stack, *, under: Path | None = None, copy_plain: bool = False
    ) -> Iterator[View]:
        """`stack` opened by `contender` with a fresh upper, on the file system of `under`.

        The plain directory is the shared one, or with `copy_plain` a copy that may be destroyed.
        """
        with self.scratch.temporary("place", under) as home:
            place = self._place(home, stack)
            if copy_plain and stack.plain is not None:
                subprocess.run(["cp", "-a", str(stack.plain), str(home / "plain")], check=True)
                os.sync()
                place = self._place(home, Stack(stack.lowers, home / "plain"))
            with contender.opens(place) as view:
                yield view

    def _place(self, home: Path, stack: Stack) -> Place:
        paths = {name: home / name for name in ("upper", "work", "mnt", "farm")}
        for path in paths.values():
            path.mkdir(exist_ok=True)
        for i, lower in enumerate(stack.lowers):
            with contextlib.suppress(FileExistsError):
                (paths["farm"] / str(i)).symlink_to(lower)
        return Place(self.scratch, stack, **paths)


@dataclass(frozen=True)
class Choice:
    """What of the workloads is run. No patterns: all. See :func:`matches`."""

    workloads: Sequence[str] = ()
    contenders: Sequence[str] = ()

    def of(self, workloads: Sequence[Workload]) -> list[Workload]:
        """The chosen workloads, with the chosen contenders; without those that nobody is left in."""
        found = [
            replace(one, contenders=tuple(who for who in one.contenders if matches(who.name, self.contenders)))
            for one in workloads
            if matches(one.name, self.workloads)
        ]
        return [one for one in found if one.contenders]


class Runner:
    """Runs workloads and keeps their rows.

    Each case has `repeat` rounds, but no new one begins, for a contender, when it has used a quarter of `seconds`,
    and for all, when the case has used `seconds`.
    """

    def __init__(self, bench: Bench, repeat: int, seconds: float = SECONDS_A_CASE, cases: Sequence[str] = ()) -> None:
        self.bench = bench
        self.repeat = repeat
        self.seconds = seconds
        self.cases = cases
        self.rows: list[Row] = []

    def run(self, workload: Workload) -> None:
        """Run all the cases of `workload`, its contenders interleaved; RuntimeError when one changed a lower."""
        for case in workload.cases(self.bench):
            if matches(case.label, self.cases):
                self._run_case(workload, case)
        self.bench.fixtures.check()

    def _run_case(self, workload: Workload, case: Case) -> None:
        rows = {
            contender.name: {
                metric: Row(workload.name, case.label, metric, unit, contender.name)
                for metric, unit in workload.metrics.items()
            }
            for contender in workload.contenders
        }
        reason = self._prepare(case)
        if reason is not None:
            for row in (row for metrics in rows.values() for row in metrics.values()):
                row.reason = reason
        start = time.monotonic()
        spent = dict.fromkeys(rows, 0.0)
        done: set[str] = set(rows if reason is not None else ())
        for round_number in range(self.repeat):
            if round_number and time.monotonic() - start > self.seconds:
                break
            for contender in workload.contenders:
                if contender.name in done:
                    continue
                begin = time.monotonic()
                reason = self._measure(case, contender, rows[contender.name])
                spent[contender.name] += time.monotonic() - begin
                if reason is not None:
                    for row in rows[contender.name].values():
                        row.reason = None if row.values else reason
                if reason is not None or spent[contender.name] > self.seconds / 4:
                    done.add(contender.name)
        self.rows += [row for metrics in rows.values() for row in metrics.values()]
        took = time.monotonic() - start
        print(f"  {workload.name:<28} {case.label:<34} {took:6.1f} s", file=sys.stderr, flush=True)

    def _prepare(self, case: Case) -> str | None:
        try:
            case.prepare()
        except (Unsupported, OSError) as error:
            return str(error)
        except subprocess.CalledProcessError as error:
            return _program_failed(error)
        return None

    def _measure(self, case: Case, contender: Contender, rows: dict[str, Row]) -> str | None:
        """Take one measurement into `rows`; the reason when it could not be taken whole."""
        missing = contender.missing()
        if missing is not None:
            return missing
        gc.collect()
        try:
            with deadline(SECONDS_A_MEASUREMENT, self.bench.scratch):
                for metric, value in case.measure(contender):
                    rows[metric].values.append(value)
        except Unsupported as error:
            return str(error)
        except TimedOut:
            return f"not done after {SECONDS_A_MEASUREMENT} s"
        except subprocess.CalledProcessError as error:
            return _program_failed(error)
        except OSError as error:
            if error.errno is None:
                return _without_paths(str(error))
            return f"{errno.errorcode.get(error.errno, error.errno)}: {os.strerror(error.errno)}"
        except Exception as error:  # noqa: BLE001 - one bug must not lose a long run; the table shows it
            return f"{type(error).__name__}: {error}"[:300]
        return None


def _program_failed(error: subprocess.CalledProcessError) -> str:
    words = str(error.stderr or "").strip().splitlines()
    return _without_paths(words[0]) if words else f"{error.cmd[0]}: exit {error.returncode}"


def _without_paths(words: str) -> str:
    """`words` of a program, without the paths of the scratch area."""
    return re.sub(rf"'?\S*{PREFIX}[^\s']*'?", "…", words)[:160]


@contextlib.contextmanager
def deadline(seconds: float, scratch: Scratch) -> Iterator[None]:
    """Raise :exc:`TimedOut` after `seconds`.

    A call stuck in a FUSE mount can't be interrupted, so the daemons are killed first: then it fails.
    """
    main = threading.main_thread().ident
    late = threading.Event()

    def on_alarm(_number: int, _frame: FrameType | None) -> None:
        raise TimedOut

    def expire() -> None:
        late.set()
        scratch.kill_daemons()
        if main is not None:
            signal.pthread_kill(main, signal.SIGALRM)

    previous = signal.signal(signal.SIGALRM, on_alarm)
    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, Unsupported) as error:
        if late.is_set():
            raise TimedOut from error
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGALRM, previous)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether `name` holds one of `patterns`, or matches it as a glob; ``=NAME`` is that name and no other.

    True when there are no patterns.
    """
    return not patterns or any(
        name == pattern[1:] if pattern.startswith("=") else pattern in name or fnmatch.fnmatch(name, pattern)
        for pattern in patterns
    )

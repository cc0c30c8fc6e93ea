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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.contenders import Contender, Place, Stack
from benchmarks.fixtures import Fixtures, Sizes
from benchmarks.scratch import PREFIX, Scratch, Unsupported
from benchmarks.views import View

SECONDS_A_MEASUREMENT = 300
SECONDS_A_CONTENDER = 4.0

Readings = Iterator[tuple[str, float]]
Measure = Callable[[Contender], Readings]


@dataclass(frozen=True)
class Case:
    """One setting of a workload. `measure` yields ``(metric, value)`` as it gets them."""

    label: str
    measure: Measure


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


class TimedOut(Exception):
    """A measurement took longer than ``SECONDS_A_MEASUREMENT``."""


class Bench:
    """What a workload has at hand: the scratch area, the fixtures, and `open`."""

    def __init__(self, scratch: Scratch, sizes: Sizes) -> None:
        self.scratch = scratch
        self.sizes = sizes
        self.fixtures = Fixtures(scratch, sizes)

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


class Runner:
    """Runs workloads and keeps their rows."""

    def __init__(self, bench: Bench, repeat: int) -> None:
        self.bench = bench
        self.repeat = repeat
        self.rows: list[Row] = []

    def run(self, workload: Workload) -> None:
        """Run all the cases of `workload`, its contenders interleaved; RuntimeError when one changed a lower."""
        for case in workload.cases(self.bench):
            self._run_case(workload, case)
        self.bench.fixtures.check()

    def _run_case(self, workload: Workload, case: Case) -> None:
        start = time.monotonic()
        rows = {
            contender.name: {
                metric: Row(workload.name, case.label, metric, unit, contender.name)
                for metric, unit in workload.metrics.items()
            }
            for contender in workload.contenders
        }
        spent = dict.fromkeys(rows, 0.0)
        done: set[str] = set()
        for _ in range(self.repeat):
            for contender in workload.contenders:
                if contender.name in done:
                    continue
                begin = time.monotonic()
                reason = self._measure(case, contender, rows[contender.name])
                spent[contender.name] += time.monotonic() - begin
                if reason is not None:
                    for row in rows[contender.name].values():
                        row.reason = None if row.values else reason
                if reason is not None or spent[contender.name] > SECONDS_A_CONTENDER:
                    done.add(contender.name)
        self.rows += [row for metrics in rows.values() for row in metrics.values()]
        took = time.monotonic() - start
        print(f"  {workload.name:<28} {case.label:<34} {took:6.1f} s", file=sys.stderr, flush=True)

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
            words = str(error.stderr or "").strip().splitlines()
            return _without_paths(words[0]) if words else f"{error.cmd[0]}: exit {error.returncode}"
        except OSError as error:
            if error.errno is None:
                return _without_paths(str(error))
            return f"{errno.errorcode.get(error.errno, error.errno)}: {os.strerror(error.errno)}"
        except Exception as error:  # noqa: BLE001 - one bug must not lose a long run; the table shows it
            return f"{type(error).__name__}: {error}"[:300]
        return None


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
    except OSError as error:
        if late.is_set():
            raise TimedOut from error
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGALRM, previous)


def selected(workloads: Sequence[Workload], patterns: Sequence[str]) -> list[Workload]:
    """The workloads whose name holds or matches one of `patterns`; all of them when there are none."""
    return [
        workload
        for workload in workloads
        if not patterns
        or any(pattern in workload.name or fnmatch.fnmatch(workload.name, pattern) for pattern in patterns)
    ]

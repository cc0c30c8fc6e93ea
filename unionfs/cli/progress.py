"""How far work has come: on a terminal, on stderr, gone when it is done; nothing elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[str, int, int], None]

_QUICK = 0.3  # seconds; who waits no longer needs no picture


@contextmanager
def reporting() -> Iterator[Report | None]:
    """What to call with what is being done, how much of it is done, and how much there is (0: not known).

    ``None`` where nobody would see it. Nothing may be printed before the block has ended.
    """
    if not sys.stderr.isatty():
        yield None
        return
    bar = _Bar()
    try:
        yield bar.report
    finally:
        bar.close()


class _Bar:
    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._progress: Progress | None = None
        self._what = ""

    def report(self, what: str, done: int, total: int) -> None:
        if self._progress is None:
            if time.monotonic() - self._begun < _QUICK:
                return
            self._progress = _progress()
            self._progress.add_task(what, total=total or None)
            self._progress.start()
        task = self._progress.task_ids[0]
        if what != self._what:
            self._what = what
            self._progress.reset(task, description=what)
        self._progress.update(task, completed=done, total=total or None)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)

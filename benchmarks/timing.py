"""Clocks: how the time of one call, or of many, is taken."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.views import View

BATCH_SECONDS = 0.02
BATCHES = 5
LOOKUP_SECONDS = 2.0
CHUNK = 50


def settle(*files: Path) -> None:
    """Nothing dirty left to write, and `files` in the page cache."""
    os.sync()
    for path in files:
        with path.open("rb", buffering=0) as source, Path(os.devnull).open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def time_of_call(
    function: Callable[[str], object], argument: str, expected: type[BaseException] | None = None
) -> float:
    """Seconds a call: the best of five batches of 20 ms, each a bare loop.

    `expected` is what every call raises, if it does.
    """

    def batch(count: int) -> float:
        loop = itertools.repeat(None, count)
        if expected is None:
            start = time.perf_counter()
            for _ in loop:
                function(argument)
            return time.perf_counter() - start
        start = time.perf_counter()
        for _ in loop:
            try:
                function(argument)
            except expected:
                pass
        return time.perf_counter() - start

    count = 1
    while (took := batch(count)) < BATCH_SECONDS:
        count = max(count * 2, int(count * BATCH_SECONDS / max(took, 1e-9)))
    return min(batch(count) for _ in range(BATCHES)) / count


def time_names(view: View, paths: Sequence[str], *, found: bool) -> tuple[float, float]:
    """Seconds to stat the first of `paths`, and seconds a name to stat them all, once each.

    When they take more than two seconds, those left are taken to cost what the others did; not the first,
    which may have had to open and list everything. Without `found` each of them has to be missing.
    """
    arguments = [view.prefix + path for path in paths]
    stat, error = view.stat, view.not_found

    def look_up(chunk: Sequence[str]) -> float:
        start = time.perf_counter()
        if found:
            for path in chunk:
                stat(path)
        else:
            for path in chunk:
                try:
                    stat(path)
                except error:
                    pass
        return time.perf_counter() - start

    first = look_up(arguments[:1])
    spent, done = 0.0, 1
    while done < len(arguments) and spent < LOOKUP_SECONDS:
        chunk = arguments[done : done + CHUNK]
        spent += look_up(chunk)
        done += len(chunk)
    others = spent * (len(arguments) - 1) / (done - 1) if done > 1 else 0.0
    return first, (first + others) / len(arguments)

"""The pictures of the store."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.report import OURS, quantity
from benchmarks.runner import Row
from benchmarks.store_mount import ROOT

OUR_COLOUR, OTHERS, GREY = "#d62728", "#1f77b4", "#7f7f7f"
PANELS = (
    ("store/commit", "time", "commit of 100 changed files"),
    ("store/commit-calls", "system calls", "system calls of that, as a command"),
    ("store/mount", ROOT, "from opening the store to the first ls"),
    ("store/hash", "throughput", "hashing (longer is better)"),
)


def store(plt: Any, rows: Sequence[Row]) -> Any:
    """What is compared with others, a panel for each case."""
    panels = []
    for workload, metric, title in PANELS:
        mine = [row for row in rows if (row.workload, row.metric) == (workload, metric)]
        cases = dict.fromkeys(row.case for row in mine)
        panels += [(f"{title}\n{case}", [row for row in mine if row.case == case]) for case in cases]
    if not panels:
        return None
    lines = (len(panels) + 1) // 2
    figure, axes = plt.subplots(lines, 2, figsize=(12, 2.1 * lines + 0.6), squeeze=False, layout="constrained")
    flat = list(axes.flat)
    for axis, (title, mine) in zip(flat, panels, strict=False):
        _bars(axis, title, mine)
    for axis in flat[len(panels) :]:
        axis.axis("off")
    figure.suptitle("The store", fontweight="bold")
    return figure


def _bars(axis: Any, title: str, rows: Sequence[Row]) -> None:
    for i, row in enumerate(rows):
        if row.median is None:
            axis.text(0, i, f" {(row.reason or '–')[:60]}", va="center", fontsize=7, color=GREY)
            continue
        axis.barh(i, row.median, height=0.7, color=OUR_COLOUR if row.contender in OURS else OTHERS)
        axis.text(row.median, i, f" {quantity(row.median, row.unit)}", va="center", fontsize=7.5)
    axis.set_yticks(range(len(rows)), [row.contender for row in rows], fontsize=7.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, max((row.median or 0 for row in rows), default=1) * 1.25)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.set_title(title, fontsize=9, loc="left")


def commits(plt: Any, rows: Sequence[Row]) -> Any:
    """Each commit of a row, one after another: does it cost more with the depth?"""
    mine = [row for row in rows if (row.workload, row.metric) == ("store/commits", "commit") and row.values]
    if not mine:
        return None
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for row in mine:
        count = int(row.case.split()[0].replace(",", ""))
        for start in range(0, len(row.values), count):
            values = row.values[start : start + count]
            axis.plot(
                range(1, len(values) + 1), [1e3 * value for value in values], ".", ms=2, color=OUR_COLOUR, alpha=0.3
            )
            window = max(1, len(values) // 50)
            middles = range(window, len(values) + 1, window)
            medians = [1e3 * statistics.median(values[at - window : at]) for at in middles]
            axis.plot([at - window / 2 for at in middles], medians, color=OUR_COLOUR, linewidth=2.2)
        middle = sorted(1e3 * value for value in row.values)
        axis.set_ylim(0, middle[int(len(middle) * 0.99)] * 1.15)
    axis.set(xlabel="number of the commit, which is the depth", ylabel="ms")
    axis.grid(visible=True, alpha=0.25)
    axis.set_title("Commits in a row on one container, two changed files each", fontweight="bold", loc="left")
    return figure

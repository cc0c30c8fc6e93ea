"""The pictures: drawn from the rows of a result file, so that they can be drawn again."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import store_plots
from benchmarks.contenders import OVERLAYFS, PLAIN
from benchmarks.goals import goals
from benchmarks.report import OURS, goal_limit, goal_quantity, quantity, times
from benchmarks.runner import Row, slowness

COLOURS = {
    "unionfs": "#d62728",
    "unionfs volatile": "#ff9896",
    "unionfs devfuse": "#d62728",
    "unionfs devfuse, no passthrough": "#f08080",
    "unionfs kernel": "#8c1a1b",
    "unionfs fusepy": "#e7a5a5",
    "kernel overlayfs": "#1f77b4",
    "kernel overlayfs, volatile": "#aec7e8",
    "kernel overlayfs, defaults": "#aec7e8",
    "fuse-overlayfs": "#2ca02c",
    "unionfs-fuse": "#9467bd",
    "mergerfs": "#ff7f0e",
    "MultiFS": "#8c564b",
    "plain directory": "#7f7f7f",
    "unionfs, mounted": "#ff9896",
    "unionfs commit": "#8c1a1b",
    "umoci repack": "#1f77b4",
    "buildah commit, vfs": "#98df8a",
    "buildah commit, overlay": "#2ca02c",
    "unionfs layer_of": "#d62728",
    "unionfs fsck": "#8c1a1b",
    "unionfs mount": "#8c1a1b",
}
GREY = "#7f7f7f"
PANELS = (
    ("mount/find", "cold", "find -ls, cold"),
    ("mount/find", "warm", "find -ls, warm"),
    ("mount/find", "RSS after", "memory of the daemon"),
    ("mount/listing", "cold", "listdir, cold"),
    ("change/chmod", "time", "chmod of a large file"),
    ("change/rename", "time", "rename of a large directory"),
    ("change/copyup-many", "time a file", "copy-up of a small file"),
    ("mount/tar", "untar", "untar"),
    ("mount/tar", "tar, lower files", "tar"),
    ("mount/tar", "rm -rf, upper files", "rm -rf of upper files"),
    ("mount/tar", "rm -rf, lower files", "rm -rf of lower files"),
    ("mount/write", "sequential, fsync", "sequential write"),
    ("mount/write", "random, fsync", "random write"),
    ("mount/read", "sequential, cold", "sequential read, cold"),
    ("mount/read", "random, cold", "random read, cold"),
    ("mount/git", "clone", "git clone"),
    ("mount/git", "status", "git status"),
    ("mount/gcc", "build", "make -j2"),
    ("mount/pip", "install", "pip install"),
)


def draw(directory: Path, about: dict[str, Any], rows: Sequence[Row]) -> Iterator[Path]:
    """Draw what `rows` allow into `directory`; the paths drawn. ImportError without matplotlib."""
    importlib.import_module("matplotlib").use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    foot = (
        f"{about['cpu']}, Linux {about['kernel']}, {about['scratch']}, Python {about['python']}, {about['date'][:10]}"
    )
    if not about["full sizes"]:
        foot += " — QUICK SIZES"
    pictures: dict[str, Callable[[Any, Sequence[Row]], Any]] = {
        "lookup-mounted": partial(_lookup, workload="mount/lookup", title="Mounted: a lookup against depth"),
        "lookup-inprocess": partial(_lookup, workload="inprocess/lookup", title="In process: a lookup against depth"),
        "mounted": _mounted,
        "copyup": _copyup,
        "store": store_plots.store,
        "commits": store_plots.commits,
        "goals": _goals,
    }
    for name, picture in pictures.items():
        figure = picture(plt, rows)
        if figure is None:
            continue
        figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
        figure.text(0.995, 0.005, foot, ha="right", va="bottom", fontsize=7, color=GREY)
        path = directory / f"{name}.png"
        figure.savefig(path, dpi=130)
        plt.close(figure)
        yield path


def _style(name: str) -> dict[str, Any]:
    style: dict[str, Any] = {"color": COLOURS.get(name, "black"), "marker": "o", "markersize": 4, "linewidth": 1.4}
    if name in OURS:
        style |= {"linewidth": 2.6, "markersize": 6, "zorder": 5}
    if name == PLAIN.name:
        style |= {"linestyle": ":", "marker": "."}
    return style


def _leading_number(case: str) -> float:
    """The number a case starts with, a size in bytes when a unit follows."""
    number, unit = case.split()[:2]
    return float(number) * {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}.get(unit, 1)


def _time_axis(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _position: quantity(value, "s") if value > 0 else "0")


def _lookup(plt: Any, rows: Sequence[Row], workload: str, title: str) -> Any:
    mine = [row for row in rows if row.workload == workload]
    if not mine:
        return None
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey="row", layout="constrained")
    for line, when in zip(axes, ("cold", "warm"), strict=True):
        for axis, what in zip(line, ("hit", "miss"), strict=True):
            metric = [row for row in mine if row.metric == f"{what} {when}"]
            for name in dict.fromkeys(row.contender for row in metric):
                points = [(_leading_number(r.case), r.median) for r in metric if r.contender == name and r.median]
                if points:
                    axis.plot(*zip(*points, strict=True), label=name, **_style(name))
            axis.set(xscale="log", yscale="log", title=f"{what}, {when}")
            axis.grid(visible=True, which="major", alpha=0.25)
            depths = sorted({_leading_number(row.case) for row in metric})
            axis.set_xticks(depths, [f"{depth:.0f}" for depth in depths])
            axis.minorticks_off()
            _time_axis(axis.yaxis)
    for axis in axes[1]:
        axis.set_xlabel("layers")
    for line in axes:
        line[0].set_ylabel("time a name")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle(title, fontweight="bold")
    return figure


def _panel(axis: Any, title: str, rows: Sequence[Row]) -> None:
    """One panel of bars: how many times the kernel's time (or memory), labelled with the number itself."""
    order = list(COLOURS)
    rows = sorted((row for row in rows if row.contender in order), key=lambda row: order.index(row.contender))
    reference = next((row for row in rows if row.contender == OVERLAYFS.name and row.median), None)
    base = reference or min((row for row in rows if row.median), key=lambda row: row.median or math.inf, default=None)
    top = 1.0
    for i, row in enumerate(rows):
        ratio = slowness(row, base) if base else None
        if ratio is None or row.median is None:
            axis.text(0.02, i, (row.reason or "–")[:44], va="center", fontsize=6.5, color=GREY, clip_on=True)
            continue
        top = max(top, ratio)
        axis.barh(i, ratio, color=COLOURS[row.contender], height=0.7)
        label = f" {quantity(row.median, row.unit)}"
        if base is not row and base is reference:
            label += f"  ({times(ratio)})"
        axis.text(ratio, i, label, va="center", fontsize=7)
    axis.set_yticks(range(len(rows)), [row.contender for row in rows], fontsize=7)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.contender in OURS else "normal")
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, top * 1.45)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    if reference:
        axis.axvline(1, color=COLOURS[OVERLAYFS.name], linewidth=0.8, linestyle="--")
    axis.set_title(title, fontsize=9, loc="left")


def _mounted(plt: Any, rows: Sequence[Row]) -> Any:
    panels = []
    for workload, metric, title in PANELS:
        mine = [row for row in rows if (row.workload, row.metric) == (workload, metric)]
        if mine:
            cases = dict.fromkeys(row.case for row in mine)
            case = next((case for case in cases if case.endswith("tmpfs")), mine[0].case)
            first = [row for row in mine if row.case == case]
            skipped: tuple[str, ...] = ("unionfs", "unionfs volatile", "kernel overlayfs, volatile", "MultiFS")
            if metric == "RSS after":
                skipped += (PLAIN.name, OVERLAYFS.name)
            panels.append((f"{title}\n{case}", [row for row in first if row.contender not in skipped]))
    if not panels:
        return None
    columns = 3
    lines = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(13, 1.9 * lines + 0.6), squeeze=False, layout="constrained")
    flat = list(axes.flat)
    for axis, (title, mine) in zip(flat, panels, strict=False):
        _panel(axis, title, mine)
    for axis in flat[len(panels) :]:
        axis.axis("off")
    figure.suptitle(
        "Mounted: how many times the kernel's overlayfs (dashed); shorter is better, throughput too", fontweight="bold"
    )
    return figure


def _copyup(plt: Any, rows: Sequence[Row]) -> Any:
    mine = [row for row in rows if row.workload == "change/copyup-size" and row.median]
    if not mine:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for name in dict.fromkeys(row.contender for row in mine):
        points = [(_leading_number(row.case), row.median) for row in mine if row.contender == name and row.median]
        sizes, seconds = zip(*points, strict=True)
        style = _style(name)
        if name == "unionfs":
            style["linestyle"] = "--"
        left.plot(sizes, seconds, label=name, **style)
        right.plot(sizes, [size / time for size, time in points], label=name, **style)
    ticks = sorted({_leading_number(row.case) for row in mine})
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", xlabel="size of the file")
        axis.set_xticks(ticks, [quantity(size, "B") for size in ticks], rotation=30)
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.25)
    left.set_title("time to change one byte of a lower file", loc="left")
    right.set_title("the same as throughput", loc="left")
    _time_axis(left.yaxis)
    right.set_yticks([10 << 20, 100 << 20, 1 << 30, 10 << 30])
    right.yaxis.set_major_formatter(lambda value, _position: quantity(value, "B/s"))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle("Copy-up by size", fontweight="bold")
    return figure


def _goals(plt: Any, rows: Sequence[Row]) -> Any:
    found = [goal for goal in goals(rows) if goal.value is not None]
    if not found:
        return None
    figure, axis = plt.subplots(figsize=(11, 0.3 * len(found) + 1.3), layout="constrained")
    for i, goal in enumerate(found):
        assert goal.value is not None
        share = goal.limit / goal.value if goal.least and goal.value else goal.value / goal.limit
        axis.barh(i, share, left=0, color="#4c9f70" if goal.reached else "#d62728", height=0.7)
        words = f"{goal_quantity(goal.value, goal)}  ({goal_limit(goal)})"
        axis.text(share * 1.04, i, words, va="center", fontsize=7.5)
    axis.set_yticks(range(len(found)), [f"{goal.title}: {goal.detail}" for goal in found], fontsize=7.5)
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, 0.05), max(high, 2) * 2.5)
    axis.set_xticks([0.1, 1, 10], ["a tenth of the limit", "the limit", "ten times"])
    axis.minorticks_off()
    axis.set_title("The goals (left of the line: reached)", fontweight="bold", loc="left")
    return figure

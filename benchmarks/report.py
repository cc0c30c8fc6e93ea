"""The result file, and the tables on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import PLAIN
from benchmarks.goals import Goal
from benchmarks.runner import Row, Workload, slowness
from benchmarks.workloads import CONTENDERS, WORKLOADS

OURS = tuple(contender.name for contender in CONTENDERS if contender.ours)


def quantity(value: float, unit: str) -> str:
    """A value with three digits and the unit prefix that fits it."""
    if unit == "s":
        scale: tuple[tuple[float, str], ...] = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
    elif unit == "1/s":
        scale = ((1e3, "k/s"), (1.0, "/s"))
    elif unit == "1":
        return f"{value:,.0f}"
    else:
        scale = ((1 << 30, f"Gi{unit}"), (1 << 20, f"Mi{unit}"), (1 << 10, f"Ki{unit}"), (1, unit))
    factor, name = next((one for one in scale if value >= one[0]), scale[-1])
    digits = max(0, 2 - int(math.log10(value / factor))) if value >= factor else 0
    return f"{round(value / factor, digits):g} {name}" if value / factor < 1000 else f"{value / factor:.0f} {name}"


def times(ratio: float) -> str:
    """A ratio, as ``1.23×``."""
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def save(path: Path, environment: dict[str, Any], rows: Sequence[Row], found: Sequence[Goal]) -> None:
    """Write the result file."""
    text = json.dumps(
        {
            "environment": environment,
            "goals": [goal.to_json() for goal in found],
            "results": [row.to_json() for row in rows],
        },
        indent=1,
        ensure_ascii=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a result file back: the environment and the rows."""
    data = json.loads(path.read_text())
    keys = ("workload", "case", "metric", "unit", "contender", "values", "reason")
    return data["environment"], [Row(**{key: row[key] for key in keys}) for row in data["results"]]


def _table(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns, the first `left` of them aligned to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  " + "  ".join(cells).rstrip())
    return "\n".join(out)


def _workload_table(workload: Workload, rows: Sequence[Row]) -> str:
    """Medians, a column for each contender; after each of ours its ratios to the reference and to the best peer."""
    names = list(dict.fromkeys(row.contender for row in rows))
    peers = [name for name in names if name not in OURS and name != PLAIN.name]
    reference = workload.reference.name
    compared = reference in names
    head = [""]
    for name in names:
        head.append(name)
        if name in OURS and compared and reference != name:
            head.append("/ref")
        if name in OURS and peers:
            head.append("/best")
    reasons: dict[str, str] = {}
    lines = [head]
    for case, metric in dict.fromkeys((row.case, row.metric) for row in rows):
        here = {row.contender: row for row in rows if (row.case, row.metric) == (case, metric)}
        line = [f"{case}: {metric}"]
        for name in names:
            row = here[name]
            if row.median is not None:
                line.append(quantity(row.median, row.unit))
            else:
                line.append(reasons.setdefault(row.reason or "not measured", f"({len(reasons) + 1})"))
            if name in OURS and compared and reference != name:
                ratio = slowness(row, here[reference])
                line.append(times(ratio) if ratio else "–")
            if name in OURS and peers:
                ratios = [one for peer in peers if (one := slowness(row, here[peer])) is not None]
                line.append(times(max(ratios)) if ratios else "–")
        lines.append(line)
    text = f"\n{workload.name}: {workload.title}"
    if reference in names and reference not in OURS:
        text += f" [ref: {reference}]"
    text += f"\n{_table(lines)}"
    for reason, mark in reasons.items():
        text += f"\n  {mark} {reason}"
    return text


def goal_quantity(value: float, goal: Goal) -> str:
    """`value` in the goal's unit."""
    return times(value) if goal.unit == "×" else quantity(value, goal.unit)


def goal_limit(goal: Goal) -> str:
    """``≤ 1.50×``, ``≥ 0.95×``, ``≤ 10 ms``."""
    return f"{'≥' if goal.least else '≤'} {goal_quantity(goal.limit, goal)}"


def goal_table(found: Iterable[Goal]) -> str:
    """The goals, one line each."""
    lines = [["goal", "", "measured", "limit", ""]]
    for goal in found:
        if goal.value is None:
            value = "–"
        else:
            value = goal_quantity(goal.value, goal)
        limit = goal_limit(goal)
        verdict = {True: "reached", False: "NOT reached", None: "not measured"}[goal.reached]
        lines.append([goal.title, goal.detail, value, limit, f"{verdict} {goal.note}".strip()])
    return _table(lines, left=2)


def text(environment: dict[str, Any], rows: Sequence[Row], found: Sequence[Goal]) -> str:
    """The whole report."""
    parts = [
        "Medians. After ours: /ref and /best, how many times slower or larger than the reference and the best peer."
    ]
    for workload in WORKLOADS:
        mine = [row for row in rows if row.workload == workload.name]
        if mine:
            parts.append(_workload_table(workload, mine))
    if found:
        parts.append("\nGoals" + ("" if environment["full sizes"] else " (QUICK SIZES: these prove nothing)"))
        parts.append(goal_table(found))
    parts.append("\nMachine")
    for key, value in environment.items():
        if isinstance(value, dict):
            parts += [f"  {name}: {words}" for name, words in value.items()]
        else:
            parts.append(f"  {key}: {value}")
    return "\n".join(parts)

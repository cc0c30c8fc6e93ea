"""The goals of the project, each computed from the rows of one run; reached or not, never asserted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.contenders import OVERLAYFS, OVERLAYFS_VOLATILE, PLAIN, UNIONFS, UNIONFS_VOLATILE
from benchmarks.runner import Row
from benchmarks.workloads_change import CP, CP_SYNC

METADATA_ONLY = 1 << 20


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals. `value` and `limit` are in `unit` (``×`` or ``s``); None: not measured."""

    title: str
    detail: str
    unit: str
    limit: float
    value: float | None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the value is within the limit; None when it was not measured."""
        return None if self.value is None else self.value <= self.limit and not self.note

    def to_json(self) -> dict[str, Any]:
        """As kept in the result file."""
        return {**asdict(self), "reached": self.reached}


class _Rows:
    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)

    def cases(self, workload: str) -> list[str]:
        return list(dict.fromkeys(row.case for row in self._rows if row.workload == workload))

    def median(self, workload: str, case: str, metric: str, contender: str) -> float | None:
        for row in self._rows:
            if (row.workload, row.case, row.metric, row.contender) == (workload, case, metric, contender):
                return row.median
        return None

    def ratio(self, workload: str, case: str, metric: str, ours: str, theirs: str) -> float | None:
        ours_value = self.median(workload, case, metric, ours)
        theirs_value = self.median(workload, case, metric, theirs)
        return ours_value / theirs_value if ours_value is not None and theirs_value else None


def goals(rows: Sequence[Row]) -> list[Goal]:
    """All the goals that `rows` have something on."""
    table = _Rows(rows)
    us = UNIONFS.name
    found: list[Goal] = []
    for case in table.cases("inprocess/stat"):
        for what in ("hit", "miss"):
            ratio = table.ratio("inprocess/stat", case, what, us, PLAIN.name)
            found.append(Goal("warm stat", f"{what}, {case}, against os.stat", "×", 1.0, ratio))
    for case in table.cases("inprocess/depth"):
        for what in ("hit", "miss"):
            deep = table.median("inprocess/depth", case, f"{what}, 1000 layers", us)
            shallow = table.median("inprocess/depth", case, f"{what}, 2 layers", us)
            ratio = deep / shallow if deep is not None and shallow else None
            found.append(Goal("cold lookup", f"{what}, {case}, 1,000 layers against 2", "×", 1.2, ratio))
    for case in table.cases("inprocess/walk"):
        ratio = table.ratio("inprocess/walk", case, "first", us, PLAIN.name)
        found.append(Goal("cold walk", f"{case}, against os.walk + os.stat", "×", 1.5, ratio))
    for case in table.cases("change/chmod"):
        used = table.median("change/chmod", case, "upper", us)
        note = f"{used:.0f} bytes in the upper" if used is not None and used > METADATA_ONLY else ""
        found.append(Goal("chmod", case, "s", 0.005, table.median("change/chmod", case, "time", us), note))
    found += [
        Goal("rename", case, "s", 0.005, table.median("change/rename", case, "time", us))
        for case in table.cases("change/rename")
    ]
    for case in table.cases("change/copyup-big"):
        found += _copyup(table, case)
    for case in table.cases("change/copyup-many"):
        for ours, theirs in ((us, OVERLAYFS.name), (UNIONFS_VOLATILE.name, OVERLAYFS_VOLATILE.name)):
            ratio = table.ratio("change/copyup-many", case, "time a file", ours, theirs)
            found.append(Goal("copy-up, many", f"{case}, {ours} against {theirs}", "×", 2.0, ratio))
    return found


def _copyup(table: _Rows, case: str) -> list[Goal]:
    name = "change/copyup-big"
    if case.endswith(("btrfs", "xfs")):
        return [
            Goal("copy-up, reflink", f"{case}, {ours}", "s", 0.010, table.median(name, case, "time", ours))
            for ours in (UNIONFS.name, UNIONFS_VOLATILE.name)
        ]
    pairs = ((UNIONFS.name, CP_SYNC.name), (UNIONFS_VOLATILE.name, CP.name))
    return [
        Goal("copy-up", f"{case}, {ours} against {theirs}", "×", 1.1, table.ratio(name, case, "time", ours, theirs))
        for ours, theirs in pairs
    ]

"""The goals of the project, each computed from the rows of one run; reached or not, never asserted."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.contenders import (
    DEVFUSE,
    FUSE_OVERLAYFS,
    KERNEL,
    NO_PASSTHROUGH,
    OVERLAYFS,
    OVERLAYFS_VOLATILE,
    PLAIN,
    UNIONFS,
    UNIONFS_VOLATILE,
    Contender,
)
from benchmarks.runner import Row, slowness
from benchmarks.store_commit import AT_ONCE
from benchmarks.store_hash import FSCK, LAYER, SHA, SHA_ALL
from benchmarks.store_history import LOOKUPS
from benchmarks.store_mount import INDEX, ROOT
from benchmarks.store_peers import BUILDAH_OVERLAY, BUILDAH_VFS, OURS, OURS_COMMAND, UMOCI
from benchmarks.workloads_change import CP, CP_SYNC

METADATA_ONLY = 1 << 20
# What "equal" allows for noise.
EQUAL = 1.1


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals. `value` and `limit` are in `unit` (``×`` or ``s``); None: not measured.

    `least`: the value has to be the limit or more, not less.
    """

    title: str
    detail: str
    unit: str
    limit: float
    value: float | None
    note: str = ""
    least: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the value is within the limit; None when it was not measured."""
        if self.value is None:
            return None
        within = self.value >= self.limit if self.least else self.value <= self.limit
        return within and not self.note

    def to_json(self) -> dict[str, Any]:
        """As kept in the result file."""
        return {**asdict(self), "reached": self.reached}


class _Rows:
    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row.workload, row.case, row.metric, row.contender): row for row in rows}

    def workloads(self) -> list[str]:
        return list(dict.fromkeys(key[0] for key in self._rows))

    def cases(self, workload: str) -> list[str]:
        return list(dict.fromkeys(key[1] for key in self._rows if key[0] == workload))

    def rows(self, workload: str, case: str, metric: str) -> list[Row]:
        return [row for key, row in self._rows.items() if key[:3] == (workload, case, metric)]

    def metrics(self, workload: str, case: str) -> list[str]:
        return list(dict.fromkeys(key[2] for key in self._rows if key[:2] == (workload, case)))

    def median(self, workload: str, case: str, metric: str, contender: str) -> float | None:
        row = self._rows.get((workload, case, metric, contender))
        return row.median if row else None

    def slowness(self, workload: str, case: str, metric: str, ours: Contender, theirs: Contender) -> float | None:
        """How many times worse `ours` is: more time or bytes, or less throughput."""
        mine, other = (self._rows.get((workload, case, metric, one.name)) for one in (ours, theirs))
        return slowness(mine, other) if mine and other else None

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
    return [*found, *_mounted(table), *_kernel_engine(table), *_store(table)]


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


# devfuse, against a peer: workload, metrics, the peer, and how many times its time (or memory) at most.
_TIMES = (
    ("mount/find", ("cold",), FUSE_OVERLAYFS, 0.8),
    ("mount/find", ("warm",), FUSE_OVERLAYFS, 1.0),
    ("mount/find", ("warm",), OVERLAYFS, 1.5),
    ("mount/find", ("RSS after",), FUSE_OVERLAYFS, 1.5),
    ("mount/tar", ("untar", "rm -rf, upper files", "rm -rf, lower files"), FUSE_OVERLAYFS, 0.8),
    ("mount/tar", ("tar, lower files", "tar, upper files"), FUSE_OVERLAYFS, 1.0),
    ("mount/read", ("sequential, cold", "sequential, warm", "random, cold", "random, warm"), FUSE_OVERLAYFS, 1.0),
    ("mount/read", ("sequential, cold", "sequential, warm", "random, cold", "random, warm"), PLAIN, 1.1),
    ("mount/git", ("clone", "status", "status, lower files"), FUSE_OVERLAYFS, 1.0),
    ("mount/gcc", ("build",), FUSE_OVERLAYFS, 1.0),
    ("mount/pip", ("install",), FUSE_OVERLAYFS, 1.0),
)
# Lookups at these depths: how many times the kernel's time, and fuse-overlayfs's.
_DEPTHS = {"100 layers": (0.2, 1.0), "400 layers": (0.05, 1.0)}
# Throughput of writing: who, against whom, how many times at least.
_WRITES = (
    (DEVFUSE, OVERLAYFS, {"sequential": 0.95, "random": 0.95}),
    (NO_PASSTHROUGH, FUSE_OVERLAYFS, {"sequential": 1.2, "random": 2.0}),
)
_AT_ONCE = 0.010  # seconds


def _mounted(table: _Rows) -> Iterator[Goal]:
    us = DEVFUSE
    for workload, metrics, peer, limit in _TIMES:
        for case in table.cases(workload):
            for metric in metrics:
                ratio = table.slowness(workload, case, metric, us, peer)
                yield Goal(workload, f"{metric}, {case}, devfuse against {peer.name}", "×", limit, ratio)
    for case in table.cases("mount/lookup"):
        for peer, limit in zip((OVERLAYFS, FUSE_OVERLAYFS), _DEPTHS.get(case, ()), strict=False):
            for metric in ("hit cold", "hit next", "miss cold", "miss next"):
                ratio = table.slowness("mount/lookup", case, metric, us, peer)
                yield Goal("mount/lookup", f"{metric}, {case}, devfuse against {peer.name}", "×", limit, ratio)
    for case in table.cases("mount/write"):
        for ours, theirs, limits in _WRITES:
            for what, limit in limits.items():
                # A disk is slower than any of them; a tmpfs shows what a flush costs them.
                metric = f"{what}, fsync" if case.endswith("tmpfs") else what
                ratio = table.ratio("mount/write", case, metric, ours.name, theirs.name)
                detail = f"{metric}, {case}, {ours.name.removeprefix('unionfs ')} against {theirs.name}"
                yield Goal("mount/write", detail, "×", limit, ratio, least=True)
    for workload in ("change/chmod", "change/rename"):
        for case in table.cases(workload):
            yield Goal(workload, f"{case}, devfuse", "s", _AT_ONCE, table.median(workload, case, "time", us.name))


def _kernel_engine(table: _Rows) -> Iterator[Goal]:
    for workload in table.workloads():
        for case in table.cases(workload) if workload.startswith("mount/") else ():
            ratios = {
                metric: ratio
                for metric in table.metrics(workload, case)
                if (ratio := table.slowness(workload, case, metric, KERNEL, OVERLAYFS)) is not None
            }
            mean = statistics.geometric_mean(ratios.values()) if ratios else None
            worst = max(ratios, key=lambda metric: ratios[metric], default="")
            detail = f"{workload}, {case}" + (f", mean (worst: {worst}, {ratios[worst]:.2f}×)" if ratios else "")
            yield Goal("kernel engine", detail, "×", EQUAL, mean)


_COMMITS = ((UMOCI, 0.2), (BUILDAH_VFS, 0.5), (BUILDAH_OVERLAY, 0.5))
_FIRST_LS = 0.050  # seconds


def _store(table: _Rows) -> Iterator[Goal]:
    for case in table.cases("store/commit")[-1:]:
        for ours in (OURS, OURS_COMMAND):
            for peer, limit in _COMMITS:
                ratio = table.slowness("store/commit", case, "time", ours, peer)
                yield Goal("commit", f"{case}, {ours.name} against {peer.name}", "×", limit, ratio)
    for case in table.cases("store/constant"):
        for metric in AT_ONCE:
            median = table.median("store/constant", case, metric, OURS.name)
            yield Goal("store/constant", f"{metric}, {case}", "s", _AT_ONCE, median)
    for case in table.cases("store/commits"):
        for metric in LOOKUPS:
            last, first = (
                table.median("store/commits", case, f"{metric}, {point}", OURS.name) for point in ("last", "first")
            )
            ratio = last / first if last is not None and first else None
            yield Goal("store/commits", f"{metric}, after {case} against the first", "×", 1.2, ratio)
    for case in table.cases("store/hash"):
        for ours, alone in ((LAYER, SHA), (FSCK, SHA_ALL)):
            ratio = table.ratio("store/hash", case, "throughput", ours.name, alone.name)
            yield Goal("hash", f"{case}, {ours.name} against {alone.name}", "×", 1 / EQUAL, ratio, least=True)
    for case in table.cases("store/mount"):
        for row in table.rows("store/mount", case, ROOT) if case.endswith(INDEX) else ():
            yield Goal("mount to ls", f"{case}, {row.contender}", "s", _FIRST_LS, row.median)

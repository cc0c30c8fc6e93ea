"""All the workloads, in the order they run."""

from __future__ import annotations

from benchmarks import store_workloads, workloads_change, workloads_programs, workloads_read, workloads_tools
from benchmarks.runner import Workload

WORKLOADS: tuple[Workload, ...] = (
    *workloads_read.WORKLOADS,
    *workloads_change.WORKLOADS,
    *workloads_tools.WORKLOADS,
    *workloads_programs.WORKLOADS,
    *store_workloads.WORKLOADS,
)
CONTENDERS = tuple({who.name: who for workload in WORKLOADS for who in workload.contenders}.values())
"""All who take part."""

"""The workloads of the store, in the order they run."""

from __future__ import annotations

from benchmarks import store_commit, store_hash, store_history, store_mount
from benchmarks.runner import Workload

WORKLOADS: tuple[Workload, ...] = (
    *store_commit.WORKLOADS,
    *store_history.WORKLOADS,
    *store_hash.WORKLOADS,
    *store_mount.WORKLOADS,
)

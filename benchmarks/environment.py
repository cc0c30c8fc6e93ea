"""The machine and the versions a result belongs to."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
from pathlib import Path
from typing import Any

from benchmarks.scratch import filesystem_of
from benchmarks.workloads import CONTENDERS


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def describe(scratch: Path) -> dict[str, Any]:
    """What a reader needs to judge the numbers; contenders that are missing with the reason."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    versions = {}
    for contender in CONTENDERS:
        missing = contender.missing()
        versions[contender.name] = f"missing: {missing}" if missing else contender.version()
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "kernel": os.uname().release,
        "cpu": f"{os.cpu_count()} × {_cpu()}",
        "memory": int(memory[1]) << 10 if memory else 0,
        "python": platform.python_version(),
        "scratch": filesystem_of(scratch),
        "load before": os.getloadavg()[0],
        "root": os.geteuid() == 0,
        "contenders": versions,
    }

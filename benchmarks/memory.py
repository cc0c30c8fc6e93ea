"""Memory of a process; as a program, that of a Python process which walks a union."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from benchmarks.contenders import UNIONFS, Place, Stack
from benchmarks.scratch import Scratch, default_base


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def memory_of(pid: int) -> tuple[int, int]:
    """``(RSS, PSS)`` of a process and its descendants, in bytes (``/proc/PID/smaps_rollup``)."""
    rss = pss = 0
    for one in _descendants(pid):
        text = Path(f"/proc/{one}/smaps_rollup").read_text()
        numbers = {key: int(value) << 10 for key, value in re.findall(r"^(Rss|Pss):\s+(\d+)", text, re.MULTILINE)}
        rss, pss = rss + numbers["Rss"], pss + numbers["Pss"]
    return rss, pss


def main() -> None:
    """Open the lowers given on standard input (a JSON list), walk; print the RSS before and after the walk."""
    lowers = tuple(Path(path) for path in json.load(sys.stdin))
    with Scratch(default_base()) as scratch:
        paths = {name: scratch.fresh(name) for name in ("upper", "work", "mnt", "farm")}
        with UNIONFS.opens(Place(scratch, Stack(lowers), **paths)) as view:
            pid = os.getpid()
            opened, _ = memory_of(pid)
            view.walk_and_stat("/")
            walked, _ = memory_of(pid)
    print(json.dumps([opened, walked]))


if __name__ == "__main__":
    main()

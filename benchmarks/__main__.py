"""``python -m benchmarks``: run the workloads, print the tables, keep the data and the pictures."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from benchmarks import environment, plots, report
from benchmarks.fixtures import FULL, QUICK
from benchmarks.goals import goals
from benchmarks.runner import SECONDS_A_CASE, Bench, Choice, Runner
from benchmarks.scratch import Scratch, default_base
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).resolve().parent / "results"
LATEST = RESULTS / "latest.json"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="show the workloads and who takes part, run nothing")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only workloads whose name holds or matches PATTERN (may be repeated)",
    )
    parser.add_argument("--case", action="append", default=[], metavar="PATTERN", help="only cases like that: tmpfs")
    parser.add_argument(
        "--who",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only contenders like that; =NAME is that one alone",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that all works, proves nothing")
    parser.add_argument("--repeat", type=int, metavar="N", help="repetitions (5; quick: 1)")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="for each case: no repetition begins after that, and none by a contender that used a quarter of it "
        f"({SECONDS_A_CASE:.0f}; quick: 5)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="keep the data here, and the pictures beside it")
    parser.add_argument("--scratch", type=Path, default=default_base(), metavar="DIR", help="work here (%(default)s)")
    parser.add_argument("--plot-only", action="store_true", help="draw again what the data file holds, and print it")
    return parser.parse_args(argv)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def main(argv: list[str] | None = None) -> int:
    """The command. Only a whole run, of everything and not ``--quick``, replaces ``results/latest.json``."""
    options = _arguments(argv)
    chosen = Choice(options.only, options.who).of(WORKLOADS)
    whole = not (options.only or options.case or options.who or options.quick)
    given = None if options.json is None else options.json.resolve()  # Workloads change the directory.
    out: Path | None = given or (LATEST if whole or options.plot_only else None)
    if options.list:
        for workload in chosen:
            names = ", ".join(contender.name for contender in workload.contenders)
            print(f"{workload.name:<20} {workload.title}\n{'':<20}   {names}")
        return 0
    if options.plot_only and out is not None:
        kept, rows = report.load(out)
        print(report.text(kept, rows, goals(rows)))
        return _draw(out)
    if not chosen:
        print(f"no workload matches {' '.join(options.only + options.who)}", file=sys.stderr)
        return 2
    sizes = QUICK if options.quick else FULL
    options.scratch.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.scratch).free
    if free < sizes.disk:
        print(f"{options.scratch}: {sizes.disk >> 30} GiB are needed, {free >> 30} are free", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _terminate)
    os.umask(0o022)
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # mkfs, which not every PATH has
    start = time.monotonic()
    try:
        with Scratch(options.scratch) as scratch:
            about = environment.describe(scratch.root)
            runner = Runner(
                Bench(scratch, sizes),
                repeat=options.repeat or (1 if options.quick else 5),
                seconds=options.seconds or (5.0 if options.quick else SECONDS_A_CASE),
                cases=options.case,
            )
            try:
                for workload in chosen:
                    runner.run(workload)
            except (KeyboardInterrupt, SystemExit):
                if given is None:
                    raise
                about["broken off"] = True  # What was asked for by name is kept as far as it came.
            about |= {
                "load after": os.getloadavg()[0],
                "full sizes": sizes.full,
                "repetitions": runner.repeat,
                "seconds": round(time.monotonic() - start),
            }
            found = goals(runner.rows)
            print(report.text(about, runner.rows, found))
            if out is not None:
                report.save(out, about, runner.rows, found)
    except KeyboardInterrupt:
        print("interrupted; nothing kept", file=sys.stderr)
        return 130
    return 0 if out is None else _draw(out)


def _draw(out: Path) -> int:
    about, rows = report.load(out)
    print(f"\n{out}")
    try:
        for picture in plots.draw(out.parent, about, rows):
            print(picture)
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

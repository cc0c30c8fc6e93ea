"""What the tests of ``unionfs try`` lean on: calling it, on a terminal too, and looking at what it leaves."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import REPO

UNIONFS = [sys.executable, "-c", "from unionfs.cli import main; main(prog_name='unionfs')"]


def arguments(scratch: Path, *args: str) -> list[str]:
    return [*UNIONFS, "try", "--scratch", str(scratch / "state"), *args]


def run(scratch: Path, *args: str, cwd: Path | None = None, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        arguments(scratch, *args),
        cwd=cwd or scratch,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
    )
    assert check is None or done.returncode == check, (done.returncode, done.stdout, done.stderr)
    return done


def report(scratch: Path, *args: str, check: int | None = 0, cwd: Path | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(scratch, "--json", *args, check=check, cwd=cwd).stdout)
    return found


def our_mounts(mountinfo: str | None = None) -> list[str]:
    """The mounts of views, here or in what somebody else's ``mountinfo`` says."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    return [line for line in text.splitlines() if "unionfs-try" in line]


def seen(directory: Path) -> dict[str, tuple[Any, ...]]:
    """All that a person can see of a tree: types, modes, owners, links, contents, attributes."""
    found: dict[str, tuple[Any, ...]] = {}
    numbers: dict[int, int] = {}
    for path in sorted([directory, *directory.rglob("*")]):
        st = path.lstat()
        content: object = None
        if stat.S_ISREG(st.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(st.st_mode):
            content = os.readlink(path)
        elif not stat.S_ISDIR(st.st_mode):
            content = st.st_rdev
        same = numbers.setdefault(st.st_ino, len(numbers)) if st.st_nlink > 1 and content is not None else None
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        owner = (st.st_uid, st.st_gid)
        found[str(path.relative_to(directory))] = (st.st_mode, owner, st.st_nlink, same, content, xattrs)
    return found


def running(text: str) -> list[str]:
    """Processes with ``text`` in their command line, this one's parents and zombies left out."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in line and int(pid) != os.getpid():
            found.append(pid)
    return found


def start(scratch: Path, *args: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a try whose command prints ``ready`` when it has done its work."""
    process = subprocess.Popen(
        arguments(scratch, *args),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_terminal(argv: list[str], cwd: Path, steps: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Run on a terminal: wait for each text in turn and answer it. The status and all that was shown."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ.update(PYTHONPATH=str(REPO), PS1="prompt> ", HISTFILE="/dev/null")
        os.execvp(argv[0], argv)
    shown, searched, deadline = "", 0, time.monotonic() + 40

    def read(patience: float) -> bool:
        nonlocal shown
        if not select.select([fd], [], [], patience)[0]:
            return True
        try:
            block = os.read(fd, 1 << 16)
        except OSError:
            return False
        shown = _ESCAPES.sub("", shown + block.decode(errors="replace"))
        return bool(block)

    try:
        for expected, answer in steps:
            while expected not in shown[searched:]:
                assert time.monotonic() < deadline, f"{expected!r} not in {shown!r}"
                assert read(0.5), f"{expected!r} not in {shown!r}"
            searched = shown.index(expected, searched) + len(expected)
            time.sleep(0.3)  # What was echoed has yet to begin.
            os.write(fd, answer.encode())
        while read(0.5) and time.monotonic() < deadline:
            pass
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(fd)
    return status, shown.replace("\r\n", "\n")

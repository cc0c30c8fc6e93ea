"""A mount in a process of its own, that does for a test what only its process can."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import support

_PROGRAM = """
import logging, os, sys, gc, threading
import unionfs.mount
from unionfs.union.fs import UnionFS
top, lower, options = sys.argv[1], sys.argv[2].split(":"), eval(sys.argv[3])
logging.basicConfig(level=logging.WARNING)
fs = UnionFS(lower=[f"{top}/{name}" for name in lower], upper=f"{top}/upper", work=f"{top}/work")
with fs, unionfs.mount.mount(fs, f"{top}/mnt", engine="devfuse", **options) as mounted:
    tree = fs.tree
    print("mounted", flush=True)
    for line in sys.stdin:
        if line == "quit\\n":
            break
        print(repr(eval(line)), flush=True)
"""


class Served:
    """`top` has the lowers, `upper`, `work` and `mnt`. `says` is what it wrote to stderr, once it has ended.

    with Served(top, ["a", "b", "c"], sole=True) as served:
        served.do("fs.commit() and None")
    """

    def __init__(self, top: Path, lower: Sequence[str] = ("top", "middle", "bottom"), **options: object) -> None:
        self.top, self.mnt = top, top / "mnt"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, top, ":".join(lower), repr(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=support.REPO,
        )  # fmt: skip
        self.pid = self._process.pid
        self.says = ""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "mounted\n":
            pytest.fail(self._process.communicate()[1])

    def do(self, expression: str) -> Any:
        """The value there of an expression about `fs`, `tree` and `mounted`: a literal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        return ast.literal_eval(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self.says = self._process.communicate(timeout=30)[1]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._process.poll() is None:
            try:
                self.says = self._process.communicate("quit\n", timeout=30)[1]
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        if kind is None and self._process.returncode >= 0:
            assert (self._process.returncode, self.says) == (0, "")

"""Files open in every way at once through /dev/fuse: bytes, metadata and errors as in a plain directory."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.served import Served

pytestmark = [pytest.mark.fuse, pytest.mark.root]

SEEDS = int(os.environ.get("UNIONFS_MIXING_SEEDS", "1"))
PROGRAM = [sys.executable, "-P", str(support.REPO / "tests/mixing.py")]
WAYS: dict[str, dict[str, Any]] = {
    "alone": {"sole": True},
    "alone, no passthrough": {"sole": True, "passthrough": False},
    "shared": {},
    "shared, no passthrough": {"passthrough": False},
}


@pytest.fixture
def top(scratch: Path) -> Path:
    """Three lowers, an upper, and `plain`, which looks like their union."""
    for name in ("top", "middle", "bottom", "upper", "work", "mnt", "plain"):
        (scratch / name).mkdir()
    content = random.Random(1)
    for layer, name in (("bottom", "lower"), ("middle", "middle"), ("upper", "upper")):
        (scratch / layer / name).write_bytes(content.randbytes(150_000))
        shutil.copy(scratch / layer / name, scratch / "plain")
    (scratch / "bottom/middle").write_bytes(b"hidden by the middle")
    return scratch


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("way", WAYS)
def test_every_answer_is_a_plain_directorys(top: Path, way: str, seed: int) -> None:
    with Served(top, **WAYS[way]) as served:
        commits = ["commits"] if way.startswith("shared") else []
        command = [*PROGRAM, "duel", str(served.mnt), str(top / "plain"), str(seed), "2000", *commits]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                if line == "commit\n":
                    served.do("fs.commit() and None")
                    process.stdin.write("\n")
                    process.stdin.flush()
                else:
                    said.append(line)
            assert process.wait(30) == 0, "".join(said)
    names = sorted(os.listdir(top / "plain"))
    frozen = sorted(os.listdir(top / "upper.layers"), reverse=True) if commits else []
    with Served(top, [*(f"upper.layers/{name}" for name in frozen), "top", "middle", "bottom"]) as served:
        assert sorted(os.listdir(served.mnt)) == names
        for name in names:
            assert (served.mnt / name).read_bytes() == (top / "plain" / name).read_bytes()


@pytest.mark.parametrize("way", WAYS)
def test_a_crowd(top: Path, way: str) -> None:
    """Several processes at the same time: no call fails as it never does in a plain directory."""
    with Served(top, **WAYS[way]) as served:
        crowd = [
            subprocess.Popen([*PROGRAM, "crowd", str(served.mnt), str(seed), "0.8"], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
            for seed in range(4)
        ]  # fmt: skip
        for process in crowd:
            said = process.communicate(timeout=60)[0]
            assert process.returncode == 0, said
            assert int(said) > 5

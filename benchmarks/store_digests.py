"""The same tree committed by each Python of this machine (``python -m benchmarks.store_digests OUT``).

Each Python gets a virtual environment of its own, a store of its own, a copy of the tree that was made in another
order, and ``SOURCE_DATE_EPOCH``; and commits the same changes.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.contenders import REPOSITORY
from benchmarks.scratch import Scratch, default_base
from benchmarks.store_trees import Change, change_union, changes_of, output, path_of

FILES = 2000
EPOCH = "1767225600"  # 2026-01-01
OLDEST = (3, 11)


def pythons() -> dict[str, Path]:
    """Pythons that unionfs runs on, one of each version: the system's and pyenv's."""
    places = [*Path("/usr/bin").glob("python3.*"), *Path.home().glob(".pyenv/versions/*/bin/python3")]
    found: dict[str, Path] = {}
    for path in places:
        if re.fullmatch(r"python3(\.\d+)?", path.name):
            version = output(str(path), "-c", "import sys; print(*sys.version_info[:3], sep='.')")
            if tuple(map(int, version.split(".")[:2])) >= OLDEST:
                found[f"{version} ({'pyenv' if '.pyenv' in str(path) else 'system'})"] = path
    return found


def _tree(root: Path, order: random.Random) -> None:
    """The tree, its files made in some order, with hard links, a symbolic link, attributes, and owners."""
    names = list(range(FILES))
    order.shuffle(names)
    for number in names:
        path = root / path_of(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(number).randbytes(number % 700))
    first = root / path_of(0)
    os.link(first, first.with_name("link"))
    first.with_name("symlink").symlink_to("link")
    os.setxattr(first, "user.note", b"x")
    if os.geteuid() == 0:
        os.chown(root / path_of(1), 1000, 1000)


def _environment(home: Path, python: Path) -> Path:
    """A virtual environment with what unionfs needs; its Python."""
    output(str(python), "-m", "venv", str(home / "venv"))
    inside = home / "venv" / "bin" / "python"
    output(str(inside), "-m", "pip", "install", "-q", "--disable-pip-version-check", "attrs>=23.2", "xxhash>=3.4")
    return inside


def commit(home: Path, seed: int) -> dict[str, str]:
    """Import the tree, change a hundred files in a container, commit; the digests. Run by the Python in question."""
    sys.path.insert(0, str(REPOSITORY))
    from unionfs import Store

    order = random.Random(seed)
    (home / "tree").mkdir()
    _tree(home / "tree", order)
    changes: list[Change] = changes_of(FILES, 0)
    order.shuffle(changes)
    with Store(home / "store") as store:
        base = store.import_(home / "tree", "base")
        with store.create(base, "c") as container:
            change_union(container.fs, changes)
            image = container.commit("new", author="a", message="m", changes=["CMD ls"])
    return {
        "base diff ID": str(base.layers[0].diff_id),
        "diff ID": str(image.layers[0].diff_id),
        "image": image.id,
        "manifest": image.digest,
    }


def main(out: Path) -> int:
    """Print and keep what each Python made; 1 if they differ."""
    found: dict[str, Any] = {}
    with Scratch(default_base()) as scratch:
        for seed, (name, python) in enumerate(sorted(pythons().items())):
            home = scratch.fresh("python")
            try:
                inside = _environment(home, python)
            except subprocess.CalledProcessError as error:
                found[name] = {"left out": str(error.stderr).strip().splitlines()[-1:]}
                continue
            environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHONPATH": str(REPOSITORY)}
            command = (str(inside), "-m", "benchmarks.store_digests", "--commit", str(home), str(seed))
            found[name] = json.loads(output(*command, env=environment, cwd=str(REPOSITORY)))
            shutil.rmtree(home)
    digests = [digest for digest in found.values() if "left out" not in digest]
    same = len(digests) > 1 and all(digest == digests[0] for digest in digests)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"same": same, "SOURCE_DATE_EPOCH": EPOCH, "pythons": found}, indent=1) + "\n")
    print(out.read_text(), end="")
    return 0 if same else 1


if __name__ == "__main__":
    if sys.argv[1] == "--commit":
        print(json.dumps(commit(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        sys.exit(main(Path(sys.argv[1])))

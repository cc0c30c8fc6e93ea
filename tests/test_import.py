"""`import unionfs` is light, and every module can be the first one imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent

OPTIONAL = {"click", "fs", "fsspec", "fuse", "hypothesis", "matplotlib", "pytest", "rich"}

# Parts of the standard library that cost more to import than all of ours; whoever needs one imports it where it does.
HEAVY = {
    "asyncio",
    "email",
    "http",
    "multiprocessing",
    "sqlite3",
    "ssl",
    "tarfile",
    "unittest",
    "urllib.request",
    "xml",
}

MAX_MODULES = 130
"""What `import unionfs` may load besides our own modules and a bare interpreter's: attrs (60 modules), xxhash, os …"""

IMPORT = """
import json, sys, time
before = set(sys.modules)
start = time.perf_counter()
import unionfs
unionfs.UnionFS    # the core itself, should it be loaded on demand
elapsed = time.perf_counter() - start
print(json.dumps([sorted(set(sys.modules) - before), elapsed]))
"""

IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [module for module in sys.modules if module.partition(".")[0] == "unionfs"]:
        del sys.modules[loaded]
    importlib.import_module(name)
    print(name)
"""


def _python(code: str, *args: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *args]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_import_unionfs_is_light() -> None:
    modules, elapsed = json.loads(_python(IMPORT))
    print(f"import unionfs: {len(modules)} modules, {elapsed * 1000:.0f} ms")
    assert "unionfs" in modules
    assert not {name.partition(".")[0] for name in modules} & OPTIONAL
    assert not set(modules) & HEAVY
    assert len([name for name in modules if name.partition(".")[0] != "unionfs"]) <= MAX_MODULES


def test_every_module_can_be_the_first_one_imported() -> None:
    """No module leans on another having been imported before it (a cycle), and none warns."""
    paths = [path.relative_to(REPO).with_suffix("") for path in sorted((REPO / "unionfs").rglob("*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__"]
    assert _python(IMPORT_EACH, *names).split() == names

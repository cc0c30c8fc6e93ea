"""The rules of docs/architecture.md, read from the source.

`broken_rules` takes the sources and returns one line for each rule that one of them breaks; the tests below it run it
on the package, and on bad samples to see that it reports.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

PACKAGE = "unionfs"

# Who may import whom; the arrow runs down the list. `""` is the package itself, `unionfs/__init__.py`.
SHARED = {"errors", "types"}
DOORS = {"union", "layer", "_sys", "mount"}
MAY_IMPORT: Mapping[str, set[str]] = {
    "errors": {"types"},
    "types": {"errors"},
    "_sys": SHARED,
    "layer": {"_sys", *SHARED},
    "union": {"layer", "_sys", *SHARED},
    "mount": {"union", "layer", "_sys", *SHARED},
    "store": {"layer", "_sys", *SHARED},
    "images": {"api", "store", "oci", *DOORS, *SHARED},
    "run": {"mount", "union", "layer", "_sys", *SHARED},
    "build": {"run", "images", "store", "oci", "mount", "union", "layer", "_sys", *SHARED},
    "oci": {"layer.protocol", "layer.whiteout", *SHARED},
    "testing": {"", *DOORS, *SHARED},
    "integrations": {"", "images", "store", "oci", "testing", *DOORS, *SHARED},
    "api": {*DOORS, *SHARED},
    "": {"api", "build", "run", "images", "store", "oci", *DOORS, *SHARED},
    "cli": {"", "build", "run", "images", "store", "oci", *DOORS, *SHARED},
}

ENGINES = {"fusepy", "devfuse", "kernel"}

# Packages from elsewhere, and the only places that import them. The other dependencies are optional at run time.
ANYWHERE = {"attr", "attrs", "xxhash"}
THIRD_PARTY: Mapping[str, tuple[str, ...]] = {
    "click": ("cli",),
    "compression": ("oci.compression",),  # Python's own from 3.14 on
    "fsspec": ("integrations.fsspec",),
    "fuse": ("mount.fusepy",),
    "hypothesis": ("testing",),
    "pytest": ("testing", "integrations.pytest"),
    "rich": ("cli",),
    "zstandard": ("oci.compression",),
}

# The kernel's structures and numbers. Files and streams with formats of their own may need struct too.
KERNEL_MODULES: Mapping[str, tuple[str, ...]] = {
    "ctypes": ("_sys",),
    "struct": ("_sys", "store", "oci", "mount.devfuse.wire"),
}

ENCODING = re.compile(r"\.wh\.|overlay\.(opaque|redirect|metacopy|whiteout|origin)\b")
ENCODING_HOME = "layer.whiteout"

MAX_LINES = 600


@dataclass(frozen=True)
class Module:
    """One source file of the package; `name` is dotted and without the package's own name."""

    path: str
    name: str
    source: str

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]


def modules_of(sources: Mapping[str, str]) -> list[Module]:
    """The modules among `sources`, a mapping from path in the repository to text."""
    found = []
    for path, source in sources.items():
        parts = Path(path).with_suffix("").parts[1:]
        found.append(Module(path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts), source))
    return found


def broken_rules(sources: Mapping[str, str]) -> list[str]:
    """One line, `path:line: rule`, for each rule that a module in `sources` breaks."""
    modules = modules_of(sources)
    names = {module.name for module in modules}
    broken = []
    for module in modules:
        tree = ast.parse(module.source, module.path)
        if module.room not in MAY_IMPORT:
            broken.append(f"{module.path}:1: {module.room} is no known room (MAY_IMPORT in {Path(__file__).name})")
            continue
        for line, target in _imports(tree, module, names):
            rule = _import_rule(module, target)
            if rule:
                broken.append(f"{module.path}:{line}: {rule}")
        broken += [f"{module.path}:{line}: {rule}" for line, rule in _content_rules(tree, module)]
    return broken


def _imports(tree: ast.AST, module: Module, names: set[str]) -> Iterator[tuple[int, str]]:
    """The line and the full dotted name of each import, at any depth, those for types alone included."""
    package = f"{PACKAGE}.{module.name}".rstrip(".").split(".")
    if not module.path.endswith("__init__.py"):
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                yield node.lineno, full if full.removeprefix(f"{PACKAGE}.") in names else origin
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _import_rule(module: Module, target: str) -> str | None:
    """The rule that `module` breaks when it imports `target`, or None."""
    top = target.partition(".")[0]
    if top != PACKAGE:
        return _outside_rule(module, top)
    inner = target[len(PACKAGE) + 1 :]
    room = inner.partition(".")[0]
    if room == "cli" != module.room:
        return "nothing imports cli"
    if module.room == room == "mount":
        own, other = (name.split(".")[1] if "." in name else "" for name in (module.name, inner))
        if own in ENGINES and other in ENGINES - {own}:
            return f"mount engines don't import each other: {own} imports {other}"
    if room == module.room or any(_within(inner, allowed) for allowed in MAY_IMPORT[module.room]):
        return None
    return f"{module.room or PACKAGE} may not import {inner or PACKAGE}"


def _outside_rule(module: Module, top: str) -> str | None:
    homes = KERNEL_MODULES.get(top) or THIRD_PARTY.get(top)
    if homes is not None:
        at_home = any(_within(module.name, home) for home in homes)
        return None if at_home else f"{top} only in {', '.join(homes)}"
    if top in ANYWHERE or top in sys.stdlib_module_names:
        return None
    return f"{top} is no dependency that the package knows"


def _within(name: str, home: str) -> bool:
    """Whether the dotted `name` is `home` or lies in it."""
    return name == home or name.startswith(f"{home}.")


def _content_rules(tree: ast.AST, module: Module) -> Iterator[tuple[int, str]]:
    lines = module.source.count("\n")
    if lines > MAX_LINES:
        yield lines, f"{lines} lines; past {MAX_LINES} a module is asking to be two"
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docs:
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if ENCODING.search(text) and module.name != ENCODING_HOME:
                yield node.lineno, f"the literal {node.value!r} belongs in {ENCODING_HOME}"
        if module.room != "_sys" and _names_ioctl(node):
            yield getattr(node, "lineno", 1), "ioctl only in _sys"


def _names_ioctl(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "fcntl" and any(alias.name == "ioctl" for alias in node.names)
    return isinstance(node, ast.Attribute) and node.attr == "ioctl" and getattr(node.value, "id", "") == "fcntl"


# The package


def _sources(*folders: str) -> dict[str, str]:
    paths = [path for folder in folders for path in sorted((REPO / folder).rglob("*.py"))]
    return {str(path.relative_to(REPO)): path.read_text(encoding="utf-8") for path in paths}


def test_the_package_keeps_the_rules() -> None:
    sources = _sources(PACKAGE)
    assert len(sources) > 5
    assert not broken_rules(sources), "\n" + "\n".join(broken_rules(sources))


def test_tests_and_benchmarks_are_no_longer_than_modules_may_be() -> None:
    long = {path: text.count("\n") for path, text in _sources("tests", "benchmarks", ".ci").items()}
    assert not {path: lines for path, lines in long.items() if lines > MAX_LINES}


# The checker

TREE = {
    "unionfs/__init__.py": "from unionfs.union.fs import UnionFS",
    "unionfs/errors.py": "",
    "unionfs/types.py": "from . import errors",
    "unionfs/_sys/__init__.py": "import ctypes, struct, fcntl\nfcntl.ioctl",
    "unionfs/layer/__init__.py": "",
    "unionfs/layer/whiteout.py": "OPAQUE = 'overlay.opaque'; WH = b'.wh.'",
    "unionfs/layer/directory.py": "from unionfs import _sys, errors\nfrom unionfs.layer.whiteout import OPAQUE",
    "unionfs/union/__init__.py": "",
    "unionfs/union/fs.py": "from ..layer import whiteout\nimport unionfs.types\nimport attrs, os, fcntl",
    "unionfs/mount/__init__.py": "",
    "unionfs/mount/engine.py": "def engines():\n    from . import fusepy, devfuse",
    "unionfs/mount/fusepy.py": "import fuse\nfrom .engine import engines\nfrom unionfs.union.fs import UnionFS",
    "unionfs/mount/devfuse.py": "",
    "unionfs/testing/__init__.py": "import pytest, unionfs.mount.engine\nfrom unionfs import UnionFS",
    "unionfs/store/__init__.py": "import struct, unionfs.layer.directory",
    "unionfs/oci/__init__.py": "from unionfs.layer import whiteout",
    "unionfs/cli/__init__.py": "import click\nfrom unionfs import UnionFS, mount",
}


def test_the_sample_tree_keeps_the_rules() -> None:
    assert broken_rules(TREE) == []


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("layer/bad.py", "import unionfs.union.fs", "layer may not import union.fs"),
        ("layer/bad.py", "from unionfs.union import fs", "layer may not import union.fs"),
        ("layer/bad.py", "from ..union import fs", "layer may not import union.fs"),
        ("layer/bad.py", "def f():\n    from ..union.fs import UnionFS", "layer may not import union.fs"),
        ("layer/bad.py", "if TYPE_CHECKING:\n    import unionfs.union", "layer may not import union"),
        ("layer/bad.py", "importlib.import_module('unionfs.union')", "layer may not import union"),
        ("layer/bad.py", "from unionfs import UnionFS", "layer may not import unionfs"),
        ("layer/__init__.py", "from ..union import fs", "layer may not import union.fs"),
        ("union/bad.py", "from unionfs.mount.fusepy import Engine", "union may not import mount.fusepy"),
        ("union/bad.py", "import unionfs.store", "union may not import store"),
        ("_sys/bad.py", "import unionfs.layer", "_sys may not import layer"),
        ("errors.py", "import unionfs._sys", "errors may not import _sys"),
        ("store/bad.py", "import unionfs.union.fs", "store may not import union.fs"),
        ("oci/bad.py", "import unionfs.store", "oci may not import store"),
        ("oci/bad.py", "import unionfs.layer.directory", "oci may not import layer.directory"),
        ("mount/bad.py", "import unionfs.cli", "nothing imports cli"),
        ("__init__.py", "from . import cli", "nothing imports cli"),
        ("testing/bad.py", "import unionfs.store", "testing may not import store"),
        ("mount/fusepy.py", "from unionfs.mount.devfuse import x", "mount engines don't import each other"),
        ("mount/devfuse.py", "from . import fusepy", "mount engines don't import each other"),
        ("mount/devfuse/codec.py", "from .. import fusepy", "mount engines don't import each other"),
        ("cellar/bad.py", "", "cellar is no known room"),
        ("layer/bad.py", "import ctypes.util", "ctypes only in _sys"),
        ("mount/fusepy.py", "from ctypes import c_int", "ctypes only in _sys"),
        ("mount/devfuse/session.py", "import struct", "struct only in _sys, store, oci, mount.devfuse.wire"),
        ("union/bad.py", "import fcntl\nfcntl.ioctl(0, 1)", "ioctl only in _sys"),
        ("union/bad.py", "from fcntl import ioctl", "ioctl only in _sys"),
        ("mount/bad.py", "import fuse", "fuse only in mount.fusepy"),
        ("union/bad.py", "import rich.table", "rich only in cli"),
        ("union/bad.py", "import pytest", "pytest only in testing"),
        ("union/bad.py", "import requests", "requests is no dependency"),
        ("union/bad.py", "from tests.support import AsUser", "tests is no dependency"),
        ("union/bad.py", "x = '.wh.name'", "the literal '.wh.name' belongs in layer.whiteout"),
        ("union/bad.py", "x = f'.wh.{name}'", "the literal '.wh.' belongs in layer.whiteout"),
        ("union/bad.py", "x = b'user.overlay.redirect'", "belongs in layer.whiteout"),
        ("union/bad.py", "def f(x='trusted.overlay.opaque'): pass", "belongs in layer.whiteout"),
        ("union/bad.py", "x = 1\n" * 601, "601 lines"),
    ],
)
def test_the_checker_reports(path: str, source: str, rule: str) -> None:
    broken = broken_rules({**TREE, f"unionfs/{path}": source})
    assert len(broken) == 1, broken
    assert rule in broken[0]
    assert broken[0].startswith(f"unionfs/{path}:")


@pytest.mark.parametrize(
    "source",
    [
        '"""Writes overlay.opaque."""',
        'def f():\n    """Reads `.wh.` entries."""',
        "x = 1  # .wh.",
        'x = 1\n"""overlay.origin"""',
        "x = '.what.'; y = 'overlay.opaquely'; z = 'overlay'",
        "x = 1\n" * 600,
    ],
)
def test_the_checker_lets_be(source: str) -> None:
    assert broken_rules({**TREE, "unionfs/union/good.py": source}) == []

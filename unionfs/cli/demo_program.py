"""Something real to install in the demonstration, with the network or without."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable

import attrs

from unionfs.errors import UnionError

VENV = "/opt/unionfs-demo"
_PACKAGE = "/tmp/unionfs-greeting"


@attrs.frozen
class Program:
    """What was installed: its name, a line that uses it, a line that removes it."""

    name: str
    use: str
    remove: str


Run = Callable[[str], bool]
"""Shows a line, runs it in the merged root and says whether it succeeded."""


def install(run: Run, tell: Callable[[str], None], *, root: bool) -> Program:
    """Install a real program by real means: a Debian package as root, a Python package otherwise.

    Raises ``UnionError`` if nothing could be installed.
    """
    if root and shutil.which("apt-get") and shutil.which("dpkg"):
        return _from_debian(run, tell) or _built_here(run, tell)
    return _from_pypi(run, tell)


def _from_debian(run: Run, tell: Callable[[str], None]) -> Program | None:
    name = next((name for name in ("hello", "figlet") if not shutil.which(name)), None)
    if name is None:
        return None
    line = f"apt-get install -y --no-install-recommends {name}"
    if shutil.which("mandb"):
        tell("(without its manual page: the index of all of them would be built anew)")
        line = f"{line} -o DPkg::Options::=--path-exclude='/usr/share/man/*'"
    if not run(line):
        tell("Perhaps the package lists are missing or old:")
        if not (run("apt-get update") and run(line)):
            return None
    use = {"hello": "hello", "figlet": "figlet hello"}[name]
    return Program(name, use, f"dpkg -r {name}")


_CONTROL = """\
Package: unionfs-greeting
Version: 1.0
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: says hello
"""


def _built_here(run: Run, tell: Callable[[str], None]) -> Program:
    tell("There is no mirror to be reached, so the package is built here:")
    script = "#!/bin/sh\necho Hello from a package\n"
    steps = (
        f"mkdir -p {_PACKAGE}/DEBIAN {_PACKAGE}/usr/bin",
        f"printf %s {shlex.quote(_CONTROL)} > {_PACKAGE}/DEBIAN/control",
        f"printf %s {shlex.quote(script)} > {_PACKAGE}/usr/bin/unionfs-greeting",
        f"chmod 755 {_PACKAGE}/usr/bin/unionfs-greeting",
        f"dpkg-deb --root-owner-group --build {_PACKAGE}",
        f"dpkg -i {_PACKAGE}.deb",
    )
    if not all(map(run, steps)):
        raise UnionError("no package could be installed")
    return Program("unionfs-greeting", "unionfs-greeting", "dpkg -r unionfs-greeting")


def _from_pypi(run: Run, tell: Callable[[str], None]) -> Program:
    tell("In a user namespace: a Python package, in a virtual environment of its own.")
    python = sys.executable
    if not run(f"{python} -m venv --without-pip {VENV}"):
        raise UnionError("no virtual environment could be made")
    version = '-c "import humanize; print(humanize.naturalsize(10**9))"'
    if run(f"{python} -m pip --python {VENV}/bin/python install --disable-pip-version-check humanize"):
        return Program("humanize", f"{VENV}/bin/python {version}", f"rm -r {VENV}")
    tell("There is no package index to be reached, so it gets the pip that comes with Python:")
    if not run(f"{VENV}/bin/python -m ensurepip"):
        raise UnionError("no Python package could be installed")
    return Program("pip", f"{VENV}/bin/python -m pip --version", f"rm -r {VENV}")

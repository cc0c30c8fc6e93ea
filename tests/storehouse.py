"""What tests of the store begin with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from unionfs import Change, Store


def make_source(top: Path) -> Path:
    """A small tree with something of everything that a test wants to change, at `top`; its times are of 2020."""
    (top / "etc/conf.d").mkdir(parents=True)
    (top / "bin").mkdir()
    (top / "etc/motd").write_text("hello\n")
    (top / "etc/conf.d/one").write_text("1")
    (top / "etc/conf.d/two").write_text("2")
    (top / "bin/tool").write_bytes(bytes(range(256)) * 40)
    os.chmod(top / "bin/tool", 0o755)
    os.link(top / "bin/tool", top / "bin/tool2")
    os.symlink("tool", top / "bin/t")
    for path in [top, *sorted(top.rglob("*"))]:
        os.utime(path, (1600000000, 1600000000), follow_symlinks=False)
    return top


def lines(changes: Iterable[Change]) -> list[str]:
    """As `unionfs diff` prints them."""
    return [str(change) for change in changes]


def layers_on_disk(store: Store) -> list[str]:
    """What lies in the store's directory of layers."""
    return sorted(os.listdir(f"{store.path}/layers"))

"""What the tests of mount engines stand on: the layers, and a mount of them for each test."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from unionfs.union.fs import UnionFS

LAYERS: tuple[dict[str, str], ...] = (
    {"shared/top": "top", "shared/over": "from the top", "both/x/top": "1", "only-top": "t"},
    {"shared/middle": "middle", "shared/over": "from the middle", "both/x/middle": "22", "only-middle": "mm"},
    {
        "shared/bottom": "bottom",
        "shared/over": "from the bottom",
        "shared/gone": "hidden by a whiteout in the middle",
        "both/x/bottom": "333",
        "tree/a/b/c/leaf": "leaf",
        "tree/a/leaf": "leaf2",
        "only-bottom": "bbb",
        "script": "#!/bin/sh\necho ran $0\n",
    },
)
"""Topmost first. The middle also hides ``shared/gone``; the bottom has a file ``twin1`` and ``twin2``, and ``link``."""

MERGED = {
    "shared": {"top", "middle", "bottom", "over"},
    "both/x": {"top", "middle", "bottom"},
    ".": {"shared", "both", "tree", "only-top", "only-middle", "only-bottom", "script", "twin1", "twin2", "link"},
}
MTIME_NS = 1_234_567_890_123_456_789


def make_layers(top: Path) -> list[Path]:
    """Three layers below ``top``, topmost first."""
    layers = [top / name for name in ("top", "middle", "bottom")]
    for layer, content in zip(layers, LAYERS, strict=True):
        for name, text in content.items():
            path = layer / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, ns=(MTIME_NS, MTIME_NS))
    os.mknod(layers[1] / "shared/gone", stat.S_IFCHR, os.makedev(0, 0))
    bottom = layers[2]
    (bottom / "script").chmod(0o755)
    (bottom / "twin1").write_text("twins")
    os.link(bottom / "twin1", bottom / "twin2")
    (bottom / "link").symlink_to("shared/over")
    return layers


def fingerprint(top: Path) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for directory, _, names in os.walk(os.fsencode(top)):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            st = os.lstat(path)
            content = ""
            if stat.S_ISREG(st.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            found[os.fsdecode(path)] = (st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_mtime_ns, content)
    return found


@contextlib.contextmanager
def fails(code: int) -> Iterator[None]:
    """The block must end with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  # The errno is looked at next.
        yield
    assert caught.value.errno == code, f"{errno.errorcode.get(caught.value.errno or 0)}, not {errno.errorcode[code]}"


def elsewhere(code: str, *args: os.PathLike[str] | str) -> str:
    """What another Python process prints that runs ``code`` with ``args`` as ``sys.argv[1:]``."""
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def as_root(test: Callable[..., None]) -> Callable[..., None]:
    reason = "not applicable: only root gives files away and makes devices"
    marked: Callable[..., None] = pytest.mark.skipif(os.geteuid() != 0, reason=reason)(test)
    return marked


class EngineBase(ABC):
    """The fixtures. ``mount`` is the factory; ``base`` may choose where the layers live."""

    removals_lag = 0.0
    """Seconds for which a file that was removed when it was just closed may be listed, under a name of the engine's."""

    @abstractmethod
    def mount(self, fs: UnionFS, mountpoint: Path) -> AbstractContextManager[object]:
        """Mount ``fs`` at ``mountpoint``, an empty directory; unmount at the end of the block."""

    @pytest.fixture
    def base(self) -> Iterator[Path]:
        """A directory on a file system that an upper may live on."""
        with tempfile.TemporaryDirectory(prefix="unionfs-engine-") as directory:
            yield Path(directory)

    @pytest.fixture
    def layers(self, base: Path) -> list[Path]:
        """The lowers, topmost first."""
        return make_layers(base / "layers")

    @pytest.fixture
    def merged(self, base: Path, layers: list[Path]) -> Iterator[Path]:
        """The mountpoint."""
        before = [fingerprint(layer) for layer in layers]
        for name in ("merged", "upper", "work"):
            (base / name).mkdir()
        os.chmod(base, 0o755)
        fs = UnionFS(lower=layers, upper=base / "upper", work=base / "work")
        try:
            with self.mount(fs, base / "merged"):
                yield base / "merged"
        finally:
            fs.close()
        assert [fingerprint(layer) for layer in layers] == before, "a layer below was changed"

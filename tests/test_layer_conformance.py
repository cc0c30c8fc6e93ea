"""The suites for layers, run on all layers of ours, as root and as others.

The tests that start with `test_as_` run this same file again, as an unprivileged user and as root of a user namespace.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import support
from unionfs.layer import whiteout
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.memory import MemoryLayer
from unionfs.layer.trees import Link, Tree, entry_of, populate
from unionfs.layer.upper import UpperDirectory
from unionfs.testing.layer import LayerSuite, MakeEmpty, MakeLayer
from unionfs.testing.writable import WritableLayerSuite

# A user namespace can't make devices of its own nor write trusted attributes.
TRULY_ROOT = os.geteuid() == 0 and not support.lacking_root() and "4294967295" in Path("/proc/self/uid_map").read_text()


def build(top: Path, tree: Tree, prefix: bytes) -> None:
    """Make `tree` in a directory by plain calls, with nothing of ours between: as overlayfs would leave it."""
    _build(os.fsencode(top), os.fsencode(top), tree, prefix)


def _build(top: bytes, at: bytes, tree: Tree, prefix: bytes) -> None:
    for key, value in tree.items():
        names = os.fsencode(key).split(b"/")
        parent = os.open(at, os.O_RDONLY)
        for name in names[:-1]:
            if not os.path.isdir(b"/proc/self/fd/%d/%s" % (parent, name)):
                os.mkdir(name, 0o755, dir_fd=parent)
            below = os.open(name, os.O_RDONLY, dir_fd=parent)
            os.close(parent)
            parent = below
        try:
            _build_one(top, parent, names[-1], value, prefix)
        finally:
            os.close(parent)


def _build_one(top: bytes, parent: int, name: bytes, value: object, prefix: bytes) -> None:
    path = b"/proc/self/fd/%d/%s" % (parent, name)
    if isinstance(value, Link):
        os.link(os.path.join(top, os.fsencode(value.path)), name, dst_dir_fd=parent, follow_symlinks=False)
        return
    entry = entry_of(value)  # type: ignore[arg-type]
    kind = entry.mode & 0o170000
    if isinstance(entry.content, Mapping):
        os.mkdir(name, dir_fd=parent)
        _build(top, path, entry.content, prefix)
    elif kind == 0o120000:
        os.symlink(entry.content, name, dir_fd=parent)
    else:
        os.mknod(name, kind | 0o600, entry.rdev, dir_fd=parent)
        if entry.content:
            with open(path, "wb") as file:
                file.write(entry.content)
    if kind == 0o020000 and not entry.rdev:
        return
    marks = {prefix + mark: value for mark, value in whiteout.encode(entry.marks).items()}
    for key, found in {**{whiteout.escape(os.fsencode(key)): v for key, v in entry.xattrs.items()}, **marks}.items():
        os.setxattr(path, key, found, follow_symlinks=False)
    if entry.uid is not None and entry.gid is not None:
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    if kind != 0o120000:
        os.chmod(path, entry.mode & 0o7777)
    if entry.mtime_ns is not None:
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


INSIDE = "UNIONFS_CONFORMANCE_INSIDE"


@pytest.fixture
def scratch(request: pytest.FixtureRequest) -> Iterator[Path]:
    if INSIDE not in os.environ:
        yield request.getfixturevalue("scratch")
        return
    # The user's own directory will do: what root would have to be able to do there is not asked for.
    directory = Path(tempfile.mkdtemp(dir=os.environ["UNIONFS_SCRATCH"]))
    yield directory
    support.remove_scratch(directory)


class TestMemory(WritableLayerSuite):
    @pytest.fixture
    def make_empty(self) -> MakeEmpty:
        return MemoryLayer


class TestMemoryReadOnly(LayerSuite):
    @pytest.fixture
    def make_layer(self) -> MakeLayer:
        return lambda tree: MemoryLayer.from_dict(tree, read_only=True)

    def test_no_writing_where_there_is_none(self, make_layer: MakeLayer) -> None:
        layer = make_layer({"file": b"data"})
        with pytest.raises(OSError, match="Read-only"):
            layer.open(layer.root, b"file", os.O_RDWR)


class TestDirectory(LayerSuite):
    has_devices = TRULY_ROOT
    has_owners = TRULY_ROOT
    has_trusted = TRULY_ROOT
    prefix = whiteout.TRUSTED if TRULY_ROOT else whiteout.USER

    @pytest.fixture
    def make_layer(self, scratch: Path) -> Iterator[MakeLayer]:
        count = itertools.count()
        made = []

        def make(tree: Tree) -> DirectoryLayer:
            top = scratch / f"layer{next(count)}"
            top.mkdir()
            build(top, tree, self.prefix)
            made.append(DirectoryLayer(top))
            return made[-1]

        yield make
        for layer in made:
            layer.close()


class TestDirectoryOfAnotherUser(TestDirectory):
    """Marks in the `user.` namespace are read by everyone."""

    prefix = whiteout.USER


class TestUpper(WritableLayerSuite):
    has_trusted = TRULY_ROOT
    has_devices = True
    has_real_owners = TRULY_ROOT
    user_marks = not TRULY_ROOT
    trusted: bool | None = None

    @pytest.fixture
    def make_empty(self, scratch: Path) -> Iterator[MakeEmpty]:
        count = itertools.count()
        made = []

        def make() -> UpperDirectory:
            top = scratch / f"{next(count)}"
            (top / "upper").mkdir(parents=True)
            made.append(UpperDirectory(top / "upper", top / "work", trusted=self.trusted))
            return made[-1]

        yield make
        for layer in made:
            layer.close()

    def test_namespace(self, make_empty: MakeEmpty) -> None:
        upper = make_empty()
        assert isinstance(upper, UpperDirectory)
        assert upper.trusted == (TRULY_ROOT if self.trusted is None else self.trusted)


class TestUpperUser(TestUpper):
    trusted = False
    user_marks = True


class TestUpperReadBack(TestDirectory):
    """What an upper wrote, read as a layer that is a directory."""

    has_devices = True
    has_owners = True
    has_real_owners = TRULY_ROOT

    @pytest.fixture
    def make_layer(self, scratch: Path) -> Iterator[MakeLayer]:
        count = itertools.count()
        made = []

        def make(tree: Tree) -> DirectoryLayer:
            top = scratch / f"{next(count)}"
            (top / "upper").mkdir(parents=True)
            upper = UpperDirectory(top / "upper", top / "work")
            populate(upper, tree)
            upper.close()
            made.append(DirectoryLayer(top / "upper"))
            return made[-1]

        yield make
        for layer in made:
            layer.close()


PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "-k",
    "not test_as_",
    str(support.REPO / "tests" / Path(__file__).name),
]


def run_again(as_user: support.AsUser, *before: str) -> None:
    env = {INSIDE: "1", "UNIONFS_SCRATCH": str(as_user.scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    done = as_user.run([*before, *PYTEST], env=env, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[2-9]\d\d passed", done.stdout), done.stdout


@pytest.mark.root
@pytest.mark.slow
def test_as_unprivileged_user(as_user: support.AsUser) -> None:
    run_again(as_user)


@pytest.mark.root
@pytest.mark.userns
@pytest.mark.slow
def test_as_root_of_a_user_namespace(as_user: support.AsUser) -> None:
    run_again(as_user, *support.USER_NAMESPACE)

"""Root is not led to other layers' files by attributes that any owner of a file may write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import unionfs
from unionfs.layer import whiteout

pytestmark = pytest.mark.root
STRANGER = 12345


def _mark(path: Path, mark: bytes, value: bytes) -> None:
    os.setxattr(path, whiteout.USER + mark, value)


@pytest.fixture
def layers(scratch: Path) -> tuple[Path, Path]:
    theirs, ours = scratch / "theirs", scratch / "ours"
    for layer in (theirs, ours):
        layer.mkdir()
    (ours / "secret").write_text("for root alone")
    (ours / "secret").chmod(0o600)
    (ours / "private").mkdir(mode=0o700)
    (ours / "private" / "key").write_text("for root alone")
    bait = theirs / "bait"
    bait.write_bytes(b"")
    os.truncate(bait, 14)
    _mark(bait, whiteout.METACOPY, b"")
    _mark(bait, whiteout.REDIRECT, b"/secret")
    (theirs / "door").mkdir()
    _mark(theirs / "door", whiteout.REDIRECT, b"/private")
    return theirs, ours


def test_a_strangers_metacopy_and_redirect_are_refused(layers: tuple[Path, Path]) -> None:
    theirs, ours = layers
    for path in (theirs / "bait", theirs / "door"):
        os.chown(path, STRANGER, STRANGER)
    with unionfs.UnionFS(lower=[theirs, ours]) as fs:
        with pytest.raises(PermissionError) as refused:
            fs.read_bytes("/bait")
        assert refused.value.errno == errno.EPERM
        with pytest.raises(PermissionError):
            fs.listdir("/door")
        assert fs.read_text("/secret") == "for root alone"


def test_roots_own_are_followed(layers: tuple[Path, Path]) -> None:
    with unionfs.UnionFS(lower=list(layers)) as fs:
        assert fs.read_text("/bait") == "for root alone"
        assert fs.listdir("/door") == ["key"]


def test_a_note_of_a_commit_by_a_stranger_is_not_followed(scratch: Path) -> None:
    upper, work, elsewhere = scratch / "upper", scratch / "work", scratch / "elsewhere"
    with unionfs.UnionFS(upper=elsewhere_upper(elsewhere), work=scratch / "w2"):
        pass  # signed as an upper of ours, and not committed: what the next open would sweep away
    (elsewhere / "kept").write_text("kept")
    for directory in (upper, work, work / "work"):
        directory.mkdir()
    os.symlink(elsewhere, work / "work" / "freeze")
    os.chown(work / "work" / "freeze", STRANGER, STRANGER, follow_symlinks=False)
    with unionfs.UnionFS(upper=upper, work=work):
        assert (elsewhere / "kept").read_text() == "kept"


def elsewhere_upper(path: Path) -> Path:
    path.mkdir()
    return path

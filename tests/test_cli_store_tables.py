"""Tables, ages and progress, as a terminal has them and as a pipe has them."""

from __future__ import annotations

import datetime as dt
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import support
from tests.storecli import call
from unionfs.cli import progress
from unionfs.cli.tables import Column, ago, clipped, laid_out, width

COLUMNS = [Column("ID"), Column("NAME", cut=True), Column("TEXT", cut=True), Column("SIZE", right=True)]
ROWS = [["0123456789ab", "a", "x" * 50, "1 B"], ["cd", "漢字漢字漢字", "short", "12 KiB"]]


def test_a_table_is_as_wide_as_it_needs() -> None:
    title, first, second = laid_out(COLUMNS, ROWS, None)
    assert first == "0123456789ab   a              " + "x" * 50 + "      1 B"
    assert title.index("SIZE") + 4 == len(title) == len(first)
    assert width(second) == len(first)
    assert "漢字漢字漢字" in second


@pytest.mark.parametrize("room", [80, 60, 50, 46])
def test_a_table_fits(room: int) -> None:
    for line in laid_out(COLUMNS, ROWS, room):
        assert width(line) <= room
    assert any("…" in line for line in laid_out(COLUMNS, ROWS, room))
    assert all(line.count("0123456789ab") for line in list(laid_out(COLUMNS, ROWS, room))[1:2])


def test_a_table_that_can_not_fit_is_as_narrow_as_it_gets() -> None:
    first, *_ = laid_out(COLUMNS, ROWS, 5)
    assert width(first) == 12 + 8 + 8 + 6 + 3 * 3


def test_a_cell_stays_on_its_line() -> None:
    (_, line) = laid_out([Column("A"), Column("B")], [["a\nb\x1b[31m", "\udcff\t"]], None)
    assert line == "a\\x0ab\\x1b[31m   \\xff\\x09"


@pytest.mark.parametrize(
    ("text", "room", "cut"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("漢字漢", 4, "漢…"), ("漢字", 4, "漢字")]
)
def test_clipping(text: str, room: int, cut: str) -> None:
    assert clipped(text, room) == cut


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "Less than a second ago"),
        (0.4, "Less than a second ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "About a minute ago"),
        (180, "3 minutes ago"),
        (3600, "About an hour ago"),
        (47 * 3600, "47 hours ago"),
        (3 * 86400, "3 days ago"),
        (14 * 86400, "2 weeks ago"),
        (70 * 86400, "2 months ago"),
        (800 * 86400, "2 years ago"),
    ],
)
def test_ages(seconds: float, words: str) -> None:
    now = dt.datetime.now(dt.UTC)
    assert ago(now - dt.timedelta(seconds=seconds), now) == words


def test_an_age_that_is_not_known() -> None:
    assert ago(None) == "N/A"


def on_a_terminal(*words: object, columns: int = 60) -> str:
    """What the command writes to a terminal."""
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    environment = {**os.environ, "PYTHONPATH": str(support.REPO), "COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-m", "unionfs.cli", *map(str, words)]
    subprocess.run(command, stdin=follower, stdout=follower, stderr=follower, env=environment, check=True, timeout=60)
    os.close(follower)
    said = b""
    try:
        while piece := os.read(leader, 65536):
            said += piece
    except (BlockingIOError, OSError):
        pass
    os.close(leader)
    return said.decode()


def test_on_a_terminal(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIONFS_STORE", str(scratch / "store"))
    (scratch / "tree").mkdir()
    for i in range(300):
        (scratch / f"tree/{i}").touch()
    said = on_a_terminal("import", scratch / "tree", "a/rather/long/name/of/an/image/that/does/not/fit:0123456789")
    assert re.search(r"(^|\x1b\[2K)sha256:[0-9a-f]{64}\r\n$", said), said  # on a line of its own
    table = on_a_terminal("images", columns=76).splitlines()
    assert [line for line in table if len(line) > 76] == []
    assert "a/rather/" in table[1]
    assert "…" in table[1]
    assert "does/not/fit" in on_a_terminal("images", "--no-trunc", columns=76)
    assert "does/not/fit" in call("images").stdout


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.reporting() as report:
        assert report is None

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.reporting() as report:
        assert report is not None
        report("quick", 1, 10)
    assert terminal.getvalue() == ""
    monkeypatch.setattr(progress, "_QUICK", 0)
    with progress.reporting() as report:
        assert report is not None
        report("copying", 1, 10)
        report("copying", 5, 10)
        report("hashing", 0, 0)
    assert "hashing" in terminal.getvalue()

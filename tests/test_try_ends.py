"""``unionfs try`` on a terminal, and the ends that nobody wishes for: signals, kills, bad directories, wrong usage."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.trying import arguments, on_terminal, our_mounts, run, running, start

pytestmark = [pytest.mark.fuse]
root = pytest.mark.root


@pytest.fixture
def host(scratch: Path) -> Path:
    """A directory of the host that the commands may change; scratch directories are beside it."""
    directory = scratch / "host"
    directory.mkdir()
    return directory


QUESTION = "[k]eep as a layer, [a]pply to the host, [d]iscard"


@root
@pytest.mark.parametrize(
    ("answer", "outcome", "on_host"),
    [
        ("d\n", "discarded", False),
        ("a\n", "applied to the host", True),
        ("k\n", "kept as a layer", False),
        ("\x03", "kept as a layer", False),
    ],
)
def test_on_a_terminal_it_asks(scratch: Path, host: Path, answer: str, outcome: str, on_host: bool) -> None:
    argv = arguments(scratch, "--", "sh", "-c", "mkdir d; touch d/file; exit 6")
    steps = (
        [(QUESTION, "l\n"), (f"A {host}/d/file", ""), (QUESTION, answer)] if answer == "d\n" else [(QUESTION, answer)]
    )
    status, said = on_terminal(argv, host, steps)
    assert status == 6
    assert outcome in said
    assert (host / "d/file").exists() == on_host


@root
@pytest.mark.needs("bash")
def test_a_shell_has_job_control(scratch: Path, host: Path) -> None:
    steps = [
        ("prompt> ", "sleep 33\n"),
        ("sleep 33", "\x1a"),
        ("Stopped", "touch made; fg\n"),
        ("sleep 33", "\x03"),
        ("prompt> ", "echo status $?\n"),
        ("status 130", "exit 7\n"),
        (QUESTION, "d\n"),
    ]
    status, said = on_terminal(arguments(scratch, "bash", "--norc", "-i"), host, steps)
    assert status == 7
    assert f"A {host}/made" in said
    assert "no job control" not in said


@root
@pytest.mark.needs("bash")
def test_it_can_be_stopped_and_go_on(scratch: Path, host: Path) -> None:
    line = shlex.join(arguments(scratch, "--discard", "--", "sh", "-c", "echo up; sleep 31; touch made"))
    steps = [
        ("prompt> ", f"{line}\n"),
        ("up\r\n", "\x1a"),
        ("Stopped", "echo in the shell; fg >/dev/null\n"),
        ("in the shell\r\n", "\x03"),
        ("prompt> ", "echo status $?\n"),
        ("status 130", "exit\n"),
    ]
    _, said = on_terminal(["bash", "--norc", "-i"], host, steps)
    assert running("sleep\x0031") == []
    assert "Traceback" not in said


# Ends that nobody wishes for


@root
@pytest.mark.parametrize("flag", ["--apply", "--discard", None])
def test_sigterm_ends_the_command_and_applies_nothing(scratch: Path, host: Path, flag: str | None) -> None:
    flags = [flag] if flag else []
    with start(scratch, *flags, "--", "sh", "-c", "touch made; echo ready; sleep 61", cwd=host) as process:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert ("discarded" if flag == "--discard" else "kept as a layer") in said
    assert list(host.iterdir()) == []
    assert running("sleep\x0061") == []


@root
def test_nothing_stays_mounted_when_all_of_it_is_killed(scratch: Path, host: Path) -> None:
    with start(scratch, "--discard", "--", "sh", "-c", "touch made; echo ready; exec sleep 62", cwd=host) as process:
        supervisor = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(process.pid, signal.SIGKILL)
        for pid in supervisor:
            os.kill(int(pid), signal.SIGKILL)
        process.wait(10)
        deadline = time.monotonic() + 10
        while running("sleep\x0062") and time.monotonic() < deadline:
            time.sleep(0.05)
    assert running("sleep\x0062") == []
    assert our_mounts() == []
    left = next((scratch / "state" / "try").iterdir())
    told = run(scratch, "--discard", "--", "true")
    assert f"left its changes in {left}" in told.stderr
    assert (left / "upper" / str(host / "made")[1:]).exists()
    swept = run(scratch, "--sweep")
    assert swept.stderr == "unionfs: removed what 1 killed run left\n"
    assert not (scratch / "state").exists()


@root
def test_what_a_killed_run_left_unchanged_is_swept_in_silence(scratch: Path, host: Path) -> None:
    with start(scratch, "--discard", "--", "sh", "-c", "echo ready; exec sleep 63", cwd=host) as process:
        supervisor = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (*supervisor, str(process.pid)):
            os.kill(int(pid), signal.SIGKILL)
        process.wait(10)
    assert run(scratch, "--discard", "--", "true").stderr == "unionfs: nothing changed\n"
    assert not (scratch / "state").exists()


@root
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--scratch", "/dev/shm/unionfs-test", "--", "true"], "can't be kept below /dev"),
        (["--scratch", "/proc", "--", "true"], "can't be kept below /proc"),
        (["--scratch", "/tmp", "--", "true"], "give a directory of your own"),
    ],
)
def test_a_bad_scratch_directory_is_one_clear_line(scratch: Path, args: list[str], says: str) -> None:
    done = run(scratch, *args, check=125)
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--apply", "--discard", "--", "true"],
        ["--force", "--", "true"],
        [],
        ["--sweep", "--", "true"],
        ["-m", "x" * 1501, "--", "true"],
    ],
)
def test_wrong_usage(scratch: Path, args: list[str]) -> None:
    assert "Usage:" in run(scratch, *args, check=2).stderr

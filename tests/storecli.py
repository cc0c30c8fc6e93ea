"""The command's words about a store, called in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from click.testing import CliRunner, Result

from unionfs.cli import main

HOSTILE = b"\xff\n\x1b[31mred"
"""A name that is no UTF-8, breaks a line and colours a terminal."""


def call(*words: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=stdin, prog_name="unionfs")


def ok(*words: object, stdin: bytes | None = None) -> str:
    """What the command prints; nothing must be said on stderr."""
    done = call(*words, stdin=stdin)
    assert (done.exit_code, done.stderr) == (0, ""), (done.stderr, done.exception)
    return done.stdout


def lines(*words: object) -> list[str]:
    return ok(*words).splitlines()


def loaded(*words: object) -> Any:
    return json.loads(ok(*words, "--json"))


def line(*words: object) -> str:
    """The one line that the command prints: an id."""
    (only,) = lines(*words)
    return only


def fails(*words: object, said: str, status: int = 1) -> Result:
    done = call(*words)
    assert done.exit_code == status, (done.stdout, done.stderr)
    assert said in done.stderr
    if status == 1:
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("unionfs: ")
    return done


def change(container: str, *acts: Callable[[Any], object]) -> None:
    """Change a container that nobody has open."""
    import unionfs

    with unionfs.Store(os.environ["UNIONFS_STORE"]) as store, store.container(container) as found:
        for act in acts:
            act(found.fs)

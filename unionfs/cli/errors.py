"""What a person reads when something fails: one line, and an exit status."""

from __future__ import annotations

import os
import traceback
from typing import IO, Any

import click

from unionfs.errors import UnionError

PROGRAM = "unionfs"


def describe(error: BaseException) -> str:
    """``error`` in one line: what it is about, then what is wrong."""
    if isinstance(error, OSError) and error.strerror:
        about = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        text = ": ".join([" -> ".join(about), error.strerror] if about else [error.strerror])
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.splitlines()).encode(errors="backslashreplace").decode()


class Failure(click.ClickException):
    """An expected failure: ``unionfs: …`` on stderr and exit status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"{PROGRAM}: {self.message}", file=file, err=True)


EXPECTED = (UnionError, OSError)
"""Errors that say all there is to say in one line; any other is a bug and shows its traceback."""


def as_failure(error: BaseException) -> Failure:
    """``error`` as click shows it. UNIONFS_TRACEBACK=1 in the environment adds the traceback."""
    if os.environ.get("UNIONFS_TRACEBACK", "") not in ("", "0"):
        traceback.print_exception(error)
    return Failure(describe(error))

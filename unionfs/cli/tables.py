"""Tables that fit the terminal, and times as a person says them.

In a pipe nothing is cut, and columns stand where the longest entry needs them.
"""

from __future__ import annotations

import datetime as dt
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence

import attrs
import click

from unionfs.cli.present import shown

_GAP = "   "
_LEAST = 8  # columns that a text keeps, however narrow the terminal is


_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_AGES = (
    (_MINUTE, 1, "second"),
    (_HOUR, _MINUTE, "minute"),
    (48 * _HOUR, _HOUR, "hour"),
    (14 * _DAY, _DAY, "day"),
    (60 * _DAY, 7 * _DAY, "week"),
    (730 * _DAY, 30 * _DAY, "month"),
    (float("inf"), 365 * _DAY, "year"),
)
"""From Docker's units.HumanDuration: up to so many seconds, counted in so many, called so."""


@attrs.frozen
class Column:
    title: str
    cut: bool = False
    """Cut where the terminal is too narrow."""
    right: bool = False


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, no_trunc: bool = False) -> None:
    """Print ``rows`` below the titles; what a terminal would act on is escaped."""
    room = None if no_trunc or not sys.stdout.isatty() else shutil.get_terminal_size().columns
    for line in laid_out(columns, rows, room):
        click.echo(line)


def laid_out(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int | None) -> Iterator[str]:
    """The lines of a table that is ``room`` wide; ``None`` for as wide as it needs."""
    cells = [[column.title for column in columns], *([shown(cell) for cell in row] for row in rows)]
    widths = [max(width(row[i]) for row in cells) for i in range(len(columns))]
    if room is not None:
        _narrow(columns, widths, room - len(_GAP) * (len(columns) - 1))
    for row in cells:
        parts = []
        for column, cell, wide in zip(columns, row, widths, strict=True):
            text = clipped(cell, wide)
            space = " " * (wide - width(text))
            parts.append(space + text if column.right else text + space)
        yield _GAP.join(parts).rstrip()


def _narrow(columns: Sequence[Column], widths: list[int], room: int) -> None:
    """Take from the widest of the columns that may be cut until all fit, or nothing is left to take."""
    least = [
        max(_LEAST, len(column.title)) if column.cut else wide for column, wide in zip(columns, widths, strict=True)
    ]
    while sum(widths) > room:
        spare = [wide - low for wide, low in zip(widths, least, strict=True)]
        widest = max(range(len(widths)), key=lambda i: (spare[i] > 0, widths[i] if spare[i] > 0 else 0))
        if spare[widest] <= 0:
            return
        widths[widest] -= 1


def width(text: str) -> int:
    """Cells of a terminal that ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(_cells(c) for c in text)


def _cells(c: str) -> int:
    if unicodedata.combining(c):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def clipped(text: str, room: int) -> str:
    """``text`` in at most ``room`` cells, with ``…`` where something was cut."""
    if width(text) <= room:
        return text
    kept, used = "", 1
    for c in text:
        used += _cells(c)
        if used > room:
            break
        kept += c
    return kept + "…"


def ago(when: dt.datetime | None, now: dt.datetime | None = None) -> str:
    """``3 minutes ago``, in Docker's words."""
    if when is None:
        return "N/A"
    seconds = ((now or dt.datetime.now(dt.UTC)) - when).total_seconds()
    unit, word = next((unit, word) for limit, unit, word in _AGES if seconds < limit)
    count = int(seconds // unit)
    if count < 1:
        return "Less than a second ago"
    if count == 1 and word in ("minute", "hour"):
        return f"About {'an' if word == 'hour' else 'a'} {word} ago"
    return f"{count} {word}{'' if count == 1 else 's'} ago"

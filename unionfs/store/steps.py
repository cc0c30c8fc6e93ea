"""Fault points: each write, flush, rename and transaction of the store names itself here before it happens.

Nothing listens but tests, which end the process, or fail the call, at each of them in turn.
"""

from __future__ import annotations

from collections.abc import Callable

listener: Callable[[str], None] | None = None
"""Called with the name of the step that is about to happen; what it raises is raised there."""


def step(name: str) -> None:
    """Something that can be interrupted is about to happen."""
    if listener is not None:
        listener(name)

"""A request that failed in a way that nobody foresaw: one line in the log, and the mount lives on."""

from __future__ import annotations

import logging

log = logging.getLogger("unionfs.mount")


def told(request: str, what: object, failure: BaseException) -> None:
    """Write the line: what was asked for, what went wrong, and where in the code."""
    where = failure.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else "?"
    log.error("%s %r failed: %s: %s (%s)", request, what, type(failure).__name__, failure, place)
    log.debug("%s", request, exc_info=failure)

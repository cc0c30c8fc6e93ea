"""Times as images have them."""

from __future__ import annotations

import datetime as dt
import os

from unionfs.errors import UnionError


def source_date_epoch() -> int | None:
    """``SOURCE_DATE_EPOCH``, in seconds since 1970: nothing that is made is newer (reproducible-builds.org)."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not given:
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 11:
        raise UnionError(f"SOURCE_DATE_EPOCH is {given!r}: it has to be a number of seconds since 1970")
    return int(given)


def creation_time(given: dt.datetime | None = None) -> dt.datetime:
    """When something that is made now was made: ``given``, else ``SOURCE_DATE_EPOCH``, else now."""
    if given is not None:
        return given.astimezone(dt.UTC)
    epoch = source_date_epoch()
    return dt.datetime.now(dt.UTC) if epoch is None else dt.datetime.fromtimestamp(epoch, dt.UTC)


def rfc3339(time: dt.datetime) -> str:
    """``2026-11-21T07:00:00Z``, with microseconds if there are some (RFC 3339)."""
    return time.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def parsed(text: str | None) -> dt.datetime | None:
    """The time that a config or a row tells; ``None`` for what is none."""
    if not text:
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)

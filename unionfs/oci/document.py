"""JSON documents: read with bounds and checked field by field, written canonically; digests and times in them.

Source: OCI image-spec 1.1, descriptor.md ("Digests"), config.md; RFC 8259; RFC 3339.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from unionfs.errors import UnionError

_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_REGISTERED = {"sha256": re.compile(r"[0-9a-f]{64}"), "sha512": re.compile(r"[0-9a-f]{128}")}
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def check_digest(value: object, where: str) -> str:
    """``value``, if it is a digest by descriptor.md's grammar; else ``UnionError`` that begins with ``where``."""
    if not isinstance(value, str) or len(value) > 256 or not _DIGEST.fullmatch(value):
        raise UnionError(f"{where}: {_short(value)} is no digest (algorithm:hex)")
    algorithm, _, encoded = value.partition(":")
    form = _REGISTERED.get(algorithm)
    if form is None:
        raise UnionError(f"{where}: digest algorithm {algorithm!r} is unknown (sha256 and sha512 are)")
    if not form.fullmatch(encoded):
        raise UnionError(f"{where}: {_short(value)} is no {algorithm} in lower-case hexadecimal")
    return value


def time_of(text: str) -> int:
    """Nanoseconds since the epoch of a time in RFC 3339; ``ValueError`` for what is none."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time in RFC 3339")
    *numbers, fraction, sign, hours, minutes = match.groups()
    year, month, day, hour, minute, second = map(int, numbers)
    # RFC 3339 has leap seconds, datetime has none: the second after it is the same to the epoch.
    leap = second == 60
    moment = datetime(year, month, day, hour, minute, 59 if leap else second, tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    seconds = since.days * 86400 + since.seconds + leap
    if sign:
        if int(hours) > 23 or int(minutes) > 59:
            raise ValueError(f"{text!r} is no time in RFC 3339")
        offset = int(hours) * 3600 + int(minutes) * 60
        seconds += offset if sign == "-" else -offset
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def time_text(time_ns: int) -> str:
    """RFC 3339, UTC, of nanoseconds since the epoch, with as many digits as are not zero.

    ``ValueError`` outside the years 1 to 9999.
    """
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    try:
        # From days and seconds: a float has no room for today's nanoseconds, and fromtimestamp may refuse old times.
        moment = datetime.fromordinal(seconds // 86400 + 719163)
    except (ValueError, OverflowError):
        raise ValueError(f"{time_ns} ns is outside the years 1 to 9999") from None
    rest = seconds % 86400
    digits = f".{fraction:09}".rstrip("0") if fraction else ""
    day = f"{moment.year:04}-{moment.month:02}-{moment.day:02}"
    return f"{day}T{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}{digits}Z"


def canonical(value: Mapping[str, Any]) -> bytes:
    """Deterministic JSON: sorted keys, no white space, UTF-8. ``UnionError`` for what is not Unicode."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise UnionError("text in a JSON document must be Unicode; half a surrogate pair is none") from None


def read_document(data: bytes, what: str, limit: int) -> object:
    """The JSON value in ``data``, at most ``limit`` bytes; ``UnionError`` that begins with ``what``.

    Of two fields of one name readers differ on which counts, so that is refused.
    """
    if len(data) > limit:
        raise UnionError(f"{what}: {len(data)} bytes, more than {limit}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnionError as error:
        raise UnionError(f"{what}: {error}") from None
    except RecursionError:
        raise UnionError(f"{what}: nested too deeply") from None
    except ValueError as error:
        raise UnionError(f"{what}: no JSON in UTF-8: {error}") from None
    if b"\\u" in data:
        try:
            canonical({"": value})
        except UnionError as error:
            raise UnionError(f"{what}: {error}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise UnionError(f"field {next(_short(name) for name in names if names.count(name) > 1)} is there twice")
    return found


def _no_constant(word: str) -> NoReturn:
    raise UnionError(f"{word} is no JSON")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def written(**fields: Any) -> dict[str, Any]:
    """Those fields that are not empty."""
    return {name: value for name, value in fields.items() if value}


class Fields:
    """The fields of one JSON object, taken one by one with the type that each must have.

    Every method takes the field away; ``null`` counts as absent. ``UnionError`` names the field by its path.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise UnionError(f"{where}: must be an object")
        self._left: dict[str, Any] = dict(value)
        self._where = where

    def _wrong(self, name: str, rule: str) -> NoReturn:
        raise UnionError(f"{self._where}.{name}: {rule}")

    def rest(self) -> dict[str, Any]:
        """The fields that nobody has taken."""
        return self._left

    def take(self, name: str) -> Any:
        """The field as it is; ``None`` if it is absent."""
        return self._left.pop(name, None)

    def required(self, name: str) -> Any:
        """The field as it is, which has to be there."""
        if name not in self._left:
            self._wrong(name, "is required")
        return self._left.pop(name)

    def text(self, name: str) -> str:
        """A string; empty if it is absent."""
        value = self.take(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            self._wrong(name, "must be a string")
        return value

    def required_text(self, name: str) -> str:
        """A string that has to be there, and not empty."""
        return self.text(name) or self._wrong(name, "is required")

    def time(self, name: str) -> str | None:
        """A time in RFC 3339, as it stands."""
        value = self.text(name)
        if not value:
            return None
        try:
            time_of(value)
        except ValueError:
            self._wrong(name, f"{_short(value)} is no time in RFC 3339")
        return value

    def flag(self, name: str) -> bool:
        """A boolean; false if it is absent."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            self._wrong(name, "must be true or false")
        return bool(value)

    def size(self, name: str) -> int:
        """A size in bytes, which has to be there."""
        value = self.required(name)
        if type(value) is not int or not 0 <= value < 1 << 63:
            self._wrong(name, "must be a size in bytes (0 to 2^63 - 1)")
        return value

    def values(self, name: str) -> list[Any] | None:
        """A list of anything."""
        value = self.take(name)
        if value is not None and not isinstance(value, list):
            self._wrong(name, "must be a list")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of strings."""
        value = self.values(name)
        if value is None:
            return None
        if not all(isinstance(each, str) for each in value):
            self._wrong(name, "must be a list of strings")
        return tuple(value)

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            self._wrong(name, "must be an object")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """The names in an object whose values say nothing (Go's ``map[string]struct{}``), sorted."""
        return tuple(sorted(self.mapping(name) or ()))

    def text_map(self, name: str) -> dict[str, str]:
        """An object whose values are strings."""
        value = self.mapping(name) or {}
        if not all(isinstance(each, str) for each in value.values()):
            self._wrong(name, "must be an object of strings")
        return value

"""Names of images: ``repository[:tag]``, and digests.

Source: distribution/reference (the grammar in its ``reference.go``); OCI distribution-spec, "Pulling manifests". Names
are kept as they are typed: no registry and no ``library/`` is put before them.
"""

from __future__ import annotations

import re

import attrs

from unionfs.errors import UnionError
from unionfs.oci.document import check_digest

DEFAULT_TAG = "latest"

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{1,64}")
_MAX_REPOSITORY = 255


@attrs.frozen
class Name:
    """What a tag is called: a repository and a tag in it."""

    repository: str
    tag: str = DEFAULT_TAG

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"


def parse_name(text: str) -> Name:
    """The name that ``text`` is; without a tag it has ``latest``. ``UnionError`` for what is none, and for a digest."""
    if "@" in text:
        raise UnionError(f"{text!r} has a digest, which says what an image is; a name is repository[:tag]")
    if is_digest(text):  # By the grammar it would be a tag of a repository `sha256`.
        raise UnionError(f"{text!r} is an id, and no name")
    repository, tag = _split_tag(text)
    if tag is not None and not _TAG.fullmatch(tag):
        raise UnionError(
            f"{text!r}: the tag {tag!r} must have 1 to 128 letters, digits, '_', '.' and '-', and begin with none of"
            " the last two"
        )
    _check_repository(repository, text)
    return Name(repository, DEFAULT_TAG if tag is None else tag)


def split_digest(text: str) -> tuple[str, str] | None:
    """What stands before the digest in ``repository[:tag]@digest``, and the digest; ``None`` where there is no ``@``.

    What is before it is checked; it may be empty. A bare digest is
    told by ``is_digest``. ``UnionError`` for a name or a digest that is none.
    """
    before, at, digest = text.rpartition("@")
    if not at:
        return None
    if before:
        parse_name(before)
    return before, check_digest(digest, f"{text!r}")


def is_digest(text: str) -> bool:
    """Whether ``text`` is a whole digest, ``sha256:…``."""
    try:
        check_digest(text, "")
    except UnionError:
        return False
    return True


def is_hex_prefix(text: str) -> bool:
    """Whether ``text`` may be the beginning of an id: up to 64 hexadecimal digits, with or without ``sha256:``."""
    return _HEX.fullmatch(text.removeprefix("sha256:")) is not None


def _split_tag(text: str) -> tuple[str, str | None]:
    # A colon before the last slash is a port's.
    head, colon, tag = text.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (text, None)


def _check_repository(repository: str, text: str) -> None:
    if not repository:
        raise UnionError(f"{text!r}: the name of the repository is missing")
    if len(repository) > _MAX_REPOSITORY:
        raise UnionError(f"{text[:60]!r}…: a repository's name has at most {_MAX_REPOSITORY} characters")
    if re.fullmatch(r"[0-9a-f]{64}", repository):
        raise UnionError(f"{text!r}: 64 hexadecimal digits are an id, and no name")
    first, slash, rest = repository.partition("/")
    components = repository.split("/")
    if slash and _is_domain(first):
        if not _DOMAIN.fullmatch(first):
            raise UnionError(f"{text!r}: {first!r} is no host[:port]")
        components = rest.split("/")
    for component in components:
        if _COMPONENT.fullmatch(component):
            continue
        if _COMPONENT.fullmatch(component.lower()):
            raise UnionError(f"{text!r}: the name of a repository must be in lower case")
        raise UnionError(
            f"{text!r}: {component!r} in the repository's name must be of lower-case letters and digits,"
            " joined by '.', '_', '__' or dashes"
        )


def _is_domain(first: str) -> bool:
    """Whether the first component is a host, as distribution/reference tells it."""
    return "." in first or ":" in first or first == "localhost" or first != first.lower()

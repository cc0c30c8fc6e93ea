"""POSIX ACLs as the kernel keeps them, for a layer that has no kernel below it (acl(5), linux/posix_acl_xattr.h).

``system.posix_acl_access`` and the group bits of the mode say the same thing twice; these functions keep them together.
"""

from __future__ import annotations

import errno

from unionfs.layer.pages import error

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = (2).to_bytes(4, "little")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ORDER = {tag: index for index, tag in enumerate((_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER))}
_NAMED = frozenset({_USER, _GROUP})
_NO_ID = 0xFFFFFFFF

Entries = list[tuple[int, int, int]]
"""Tag, permissions, id."""


def decode(value: bytes) -> Entries:
    """The entries of an attribute's value. ``EOPNOTSUPP`` for another version, ``EINVAL`` for a wrong length."""
    if len(value) >= 4 and value[:4] != _VERSION:
        raise error(errno.EOPNOTSUPP)
    if len(value) % 8 != 4:
        raise error(errno.EINVAL)
    return [
        (
            int.from_bytes(value[at : at + 2], "little"),
            int.from_bytes(value[at + 2 : at + 4], "little"),
            int.from_bytes(value[at + 4 : at + 8], "little"),
        )
        for at in range(4, len(value), 8)
    ]


def check(entries: Entries) -> None:
    """Raise ``EINVAL`` unless the entries are a whole ACL (acl(5), "valid ACLs")."""
    tags = [tag for tag, _, _ in entries]
    ordered = all(tag in _ORDER for tag in tags) and tags == sorted(tags, key=_ORDER.__getitem__)
    once = all(tags.count(tag) == 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)) and tags.count(_MASK) <= 1
    masked = _MASK in tags or not _NAMED.intersection(tags)
    valid = all(bits <= 7 and (tag not in _NAMED or who != _NO_ID) for tag, bits, who in entries)
    if not (ordered and once and masked and valid):
        raise error(errno.EINVAL)


def encode(entries: Entries) -> bytes:
    """The attribute's value."""
    value = _VERSION
    for tag, bits, who in entries:
        value += tag.to_bytes(2, "little") + bits.to_bytes(2, "little")
        value += (who if tag in _NAMED else _NO_ID).to_bytes(4, "little")
    return value


def mode_of(entries: Entries) -> int:
    """The nine permission bits that these entries stand for."""
    bits = {tag: found for tag, found, _ in entries}
    return bits[_USER_OBJ] << 6 | bits.get(_MASK, bits[_GROUP_OBJ]) << 3 | bits[_OTHER]


def is_mode(entries: Entries) -> bool:
    """Whether the mode alone says all that the entries do."""
    return len(entries) == 3


def with_mode(entries: Entries, mode: int) -> Entries:
    """The entries after a ``chmod(2)``."""
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    bits = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    return [(tag, bits.get(tag, found), who) for tag, found, who in entries]


def inherited(entries: Entries, mode: int) -> Entries:
    """The access ACL of a new object of ``mode`` in a directory with this default ACL; the umask has no part in it."""
    return with_mode(entries, mode_of(entries) & mode)

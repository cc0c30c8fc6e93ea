"""Mount options in overlayfs's and mount(8)'s words: ``rw,lowerdir=A:B,upperdir=U,workdir=W,allow_other``.

Sources: Documentation/filesystems/overlayfs.rst; mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS"; fuse(8).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from unionfs.errors import MountError

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

# For mount(8) itself, systemd or whoever reads fstab, or what holds anyway.
_TOLERATED = frozenset(
    {
        *("defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group"),
        *("async", "atime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"),
        *("lazytime", "nolazytime", "loud", "silent", "nonempty"),
    }
)
_TOLERATED_KEYS = frozenset({"user", "comment", "subtype", "max_read", "uuid"})
_KERNEL_FLAGS = frozenset({"noatime", "sync", "dirsync"})
# overlayfs's switches, with the values under which it does what a union of ours does.
_OVERLAY = {
    "redirect_dir": {"on", "follow"},
    "metacopy": {"on"},
    "index": {"on", "off"},
    "xino": {"on", "off", "auto"},
    "nfs_export": {"off"},
    "verity": {"off"},
}
_SWITCHES: dict[str, dict[str, Any]] = {
    "rw": {"read_only": False},
    "ro": {"read_only": True},
    "allow_other": {"allow_other": True},
    "default_permissions": {"default_permissions": True},
    "dev": {"dev": True},
    "nodev": {"dev": False},
    "suid": {"suid": True},
    "nosuid": {"suid": False},
    "exec": {"exec": True},
    "noexec": {"exec": False},
    "passthrough": {"passthrough": True},
    "nopassthrough": {"passthrough": False},
}
_VALUES: dict[str, Callable[[str], Any]] = {
    "entry_timeout": float,
    "negative_timeout": float,
    "attr_timeout": float,
}


@attrs.define
class StackOptions:
    """What a string of options asks for. ``lower`` is topmost first; ``fields`` are ``MountOptions``'s."""

    lower: list[str] = attrs.Factory(list)
    upper: str | None = None
    work: str | None = None
    volatile: bool = False
    userxattr: bool = False
    engine: str | None = None
    fields: dict[str, Any] = attrs.Factory(dict)
    ignored: list[str] = attrs.Factory(list)
    """Words that are not known; with ``sloppy`` only."""


def _split(text: str, separator: str) -> list[str]:
    r"""Split at each separator that no ``\`` stands before; the escapes stay."""
    parts, start, position = [], 0, 0
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == separator:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return parts


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def escape_layer(path: str) -> str:
    r"""``path`` as one element of ``lowerdir=``: ``\``, ``:`` and ``,`` escaped."""
    return re.sub(r"([\\:,])", r"\\\1", path)


def _invalid(word: str, why: str) -> MountError:
    return MountError(errno.EINVAL, why, word)


def _lowers(word: str, value: str) -> Iterator[str]:
    for part in _split(value, ":"):
        if not part:
            raise _invalid(word, "an empty layer in lowerdir (data-only layers, after ::, are not supported)")
        yield _plain(part)


def parse_options(text: str, *, sloppy: bool = False) -> StackOptions:
    """Read one ``-o`` string. ``sloppy`` collects unknown words instead of refusing them (mount(8), ``-s``).

    Raises ``MountError`` (``EINVAL``) that names the word.
    """
    found = StackOptions()
    for word in filter(None, _split(text, ",")):
        key, equals, value = word.partition("=")
        if not equals and word in _SWITCHES:
            found.fields.update(_SWITCHES[word])
        elif not equals and word in _KERNEL_FLAGS:
            found.fields["flags"] = (*found.fields.get("flags", ()), word)
        elif (not equals and word in _TOLERATED) or key in _TOLERATED_KEYS or word[:2] in ("x-", "X-"):
            continue
        elif word in ("volatile", "userxattr"):
            setattr(found, word, True)
        elif not equals or not value:
            _unknown(found, word, sloppy)
        elif key == "lowerdir":
            found.lower = list(_lowers(word, value))
        elif key == "lowerdir+":
            found.lower.append(_plain(value))
        elif key in ("upperdir", "workdir"):
            setattr(found, key.removesuffix("dir"), _plain(value))
        elif key == "engine":
            found.engine = value
        elif key == "fsname":
            found.fields["source"] = _plain(value)
        elif key in _VALUES:
            try:
                found.fields[key] = _VALUES[key](value)
            except ValueError:
                raise _invalid(word, "not a number of seconds") from None
        elif key in _OVERLAY:
            if value not in _OVERLAY[key]:
                raise _invalid(word, f"not supported (a union has {key}={' or '.join(sorted(_OVERLAY[key]))})")
        else:
            _unknown(found, word, sloppy)
    return found


def _unknown(found: StackOptions, word: str, sloppy: bool) -> None:
    if not sloppy:
        raise _invalid(word, "unknown mount option")
    found.ignored.append(word)

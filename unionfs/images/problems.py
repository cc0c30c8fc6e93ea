"""What a check of a store finds."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Literal

import attrs

What = Literal["store", "database", "blob", "layer", "image", "tag", "container"]


@attrs.frozen
class Problem:
    """One thing that is wrong in a store, or, as a ``note``, one that somebody may want to know."""

    what: What
    text: str
    """What is wrong, in words that go on from the name of the thing."""
    id: str = ""
    """Of the layer, image or container; the digest of the blob; the tag."""
    path: str = ""
    """The file or directory, on the host."""
    images: tuple[str, ...] = ()
    """The images that are hit: by name, those without one by the beginning of their id."""
    note: bool = False
    """Nothing is damaged."""

    def __str__(self) -> str:
        named = f"{self.what} {self.id}" if self.id else self.what
        hit = f" (hits {', '.join(self.images)})" if self.images else ""
        return f"{named}: {self.text}{hit}"


def wrong_permissions(path: str, owner: int) -> Iterator[str]:
    """What is wrong with a directory or file of a store whose owner is ``owner``, in words. ``OSError``."""
    st = os.lstat(path)
    if stat.S_ISLNK(st.st_mode):
        yield "is a symbolic link"
        return
    if st.st_uid != owner:
        yield f"belongs to user {st.st_uid}, the store to user {owner}"
    if st.st_mode & stat.S_IWOTH:
        yield f"anybody may write to it (mode {stat.S_IMODE(st.st_mode):04o})"
    needed = 0o700 if stat.S_ISDIR(st.st_mode) else 0o600
    if st.st_mode & needed != needed:
        yield f"its owner may not use it (mode {stat.S_IMODE(st.st_mode):04o})"


__all__ = ["Problem", "What", "wrong_permissions"]

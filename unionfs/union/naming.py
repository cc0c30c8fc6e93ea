"""Paths at the edge: what callers give becomes bytes for the tree, and what goes wrong names what they gave."""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from unionfs.errors import UnionError
from unionfs.union.paths import UnionPath

if TYPE_CHECKING:
    from unionfs.union.reading import Reading

AnyPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
"""A path in the union. A relative one starts at the union's root."""

PATH_MAX = 4096
"""Bytes of a path, with the zero that ends it in C (path_resolution(7))."""


def plain(fs: Reading, path: AnyPath) -> str | bytes:
    """``path`` as ``str`` or ``bytes``. ``ValueError`` for a path object of another union."""
    return path.of(fs) if isinstance(path, UnionPath) else os.fspath(path)


def encoded(fs: Reading, path: AnyPath) -> bytes:
    """``path`` in bytes. ``ValueError`` for a zero byte in it, ``ENAMETOOLONG`` past 4095 bytes."""
    raw = os.fsencode(plain(fs, path))
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    if len(raw) >= PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), raw)
    return raw


def told(fs: Reading, error: OSError, path: AnyPath, path2: AnyPath | None = None) -> OSError:
    """``error`` as the caller is to see it: the same errno, and the paths that the caller gave.

    What is wrong with a layer as such (``LayerError`` …) stays as it is: it names the layer.
    """
    if isinstance(error, UnionError) or error.errno is None:
        return error
    name2 = None if path2 is None else plain(fs, path2)
    return OSError(error.errno, error.strerror, plain(fs, path), None, name2)


class named:  # noqa: N801 - reads as a word in a with statement
    """In this block, every ``OSError`` names these paths."""

    __slots__ = ("_fs", "_path", "_path2")

    def __init__(self, fs: Reading, path: AnyPath, path2: AnyPath | None = None) -> None:
        self._fs = fs
        self._path = path
        self._path2 = path2

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise told(self._fs, error, self._path, self._path2) from None

"""From what a person calls layers to layers, checked: one clear error for each way in which a stack can't work."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from unionfs.errors import LayerError, UnionError
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import Layer, WritableLayer
from unionfs.layer.upper import UpperDirectory
from unionfs.union.identity import identity_of

HostPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"

_PATH = (str, bytes, os.PathLike)


def open_layers(
    lower: Sequence[HostPath | Layer],
    upper: HostPath | WritableLayer | None,
    work: HostPath | None,
    *,
    hide: Iterable[HostPath],
    volatile: bool,
    userxattr: bool | None,
    unmapped_as_root: bool,
) -> tuple[list[Layer], WritableLayer | None]:
    """The layers of a union, open. Raises ``UnionError`` and its kinds; then none is left open."""
    if isinstance(lower, _PATH):
        raise TypeError("lower is a list of layers, the topmost first")
    if upper is None and not lower:
        raise UnionError("a union needs a layer")
    top = workplace = None
    hidden = [os.path.realpath(os.fsdecode(path)) for path in hide]
    if isinstance(upper, _PATH):
        top = os.path.realpath(os.fsdecode(upper))
        workplace = os.path.realpath(os.fsdecode(work)) if work is not None else top + ".work"
        hidden += [top, workplace, top + ".layers"]
    elif work is not None:
        raise UnionError("a work directory goes with an upper that is a directory")
    opened: list[Layer] = []
    try:
        for layer in lower:
            if isinstance(layer, _PATH):
                path = os.path.realpath(os.fsdecode(layer))
                _check_apart(path, top, workplace)
                exclude = list(_inside(path, hidden))
                opened.append(DirectoryLayer(path, exclude=exclude, unmapped_as_root=unmapped_as_root))
            else:
                opened.append(layer)
        _check_once([*opened, *([upper] if isinstance(upper, WritableLayer) else [])])
        if top is None or workplace is None:
            assert upper is None or isinstance(upper, WritableLayer)
            return opened, upper
        trusted = None if userxattr is None else not userxattr
        return opened, UpperDirectory(
            top, workplace, volatile=volatile, trusted=trusted, unmapped_as_root=unmapped_as_root
        )
    except BaseException:
        for layer, given in zip(opened, lower, strict=False):
            if layer is not given:
                layer.close()
        raise


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _inside(layer: str, paths: Iterable[str]) -> Iterable[str]:
    """Those of ``paths`` that stand in the layer, as paths in it."""
    for path in paths:
        if path == layer:
            raise LayerError(errno.EINVAL, "the layer itself is hidden", layer)
        if _is_within(path, layer):
            yield "/" + os.path.relpath(path, layer)


def _check_apart(lower: str, upper: str | None, work: str | None) -> None:
    for word, place in (("upper", upper), ("work directory", work)):
        if place is None:
            continue
        if lower == place or _same(lower, place):
            raise LayerError(errno.EINVAL, f"the same directory is lower and {word}", lower)
        if _is_within(lower, place):
            raise LayerError(errno.EINVAL, f"the lower stands inside the {word}", lower)


def _same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False  # What can't be reached is told where it is opened.


def _check_once(layers: Sequence[Layer]) -> None:
    seen: set[tuple[int, int]] = set()
    for layer in layers:
        key = identity_of(layer)
        if key in seen:
            raise LayerError(errno.EINVAL, "the same layer is given twice", layer.label)
        seen.add(key)

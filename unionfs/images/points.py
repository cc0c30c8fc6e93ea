"""From what a person calls an image, a container or a layer to what it is.

web                 a container's name
debian:13  debian   a tag, ``latest`` if none is given
sha256:3f…          an image's id or manifest digest, a layer's chain ID or diff ID
3f2a                the beginning of an id, if it is the only one
web~2  debian:13~1  so many layers below
"""

from __future__ import annotations

import re

import attrs

from unionfs.errors import NotFoundError, UnionError
from unionfs.oci.reference import parse_name
from unionfs.store.keep import Keep
from unionfs.store.records import ContainerRecord, ImageRecord, LayerRecord

_BACK = re.compile(r"(?:~[0-9]*)+$")
_HEX = re.compile(r"(?:sha256:)?[0-9a-f]{1,64}")
_SHORT = 12


@attrs.frozen
class Point:
    """A state of a tree: a layer and all that it stands on."""

    name: str
    """As it was asked for."""
    layer: str | None
    """The topmost layer; ``None`` for the empty tree."""
    image: str | None = None
    """The image that it was reached by."""
    container: str | None = None
    """A container: the point is its present state, on top of ``layer``."""


def short(digest: str) -> str:
    """The first 12 digits of an id."""
    return digest.removeprefix("sha256:")[:_SHORT]


def find_container(keep: Keep, ref: str) -> ContainerRecord:
    """A container by its name, its id, or the beginning of it. ``NotFoundError``."""
    found = _container(keep, ref)
    if found is None:
        raise NotFoundError(f"no container {ref!r}")
    return found


def find_image(keep: Keep, ref: str) -> ImageRecord:
    """An image by name, id, digest, or the beginning of an id. ``NotFoundError``."""
    found = _image(keep, ref)
    if found is None:
        raise NotFoundError(f"no image {ref!r}")
    return found


def find_point(keep: Keep, ref: str) -> Point:
    """Anything that stands for a state. ``NotFoundError``."""
    match = _BACK.search(ref)
    back = 0
    base = ref
    if match is not None:
        base = ref[: match.start()]
        back = sum(int(step or 1) for step in match.group()[1:].split("~"))
    point = _point(keep, base, ref)
    if not back:
        return point
    layer = point.layer
    if point.container is not None:
        back -= 1
    chain = keep.records.chain(layer)
    if back > len(chain):
        raise NotFoundError(f"{base!r} has {len(chain)} layers, and none {back} below")
    below = chain[back].id if back < len(chain) else None
    return Point(ref, below, point.image)


def _point(keep: Keep, base: str, ref: str) -> Point:
    container = _container(keep, base)
    if container is not None:
        return Point(ref, container.layer, container.image, container.id)
    image = _image(keep, base)
    if image is not None:
        return Point(ref, image.layer, image.id)
    layer = _layer(keep, base)
    if layer is not None:
        return Point(ref, layer.id)
    raise NotFoundError(f"no image, container or layer {base!r}")


def _container(keep: Keep, ref: str) -> ContainerRecord | None:
    found = keep.records.container_by_name(ref)
    if found is not None:
        return found
    if not _HEX.fullmatch(ref) or ref.startswith("sha256:"):
        return None
    key = _only(keep.records.matching("containers", "id", ref), ref, "containers")
    return None if key is None else keep.records.container(key)


def _image(keep: Keep, ref: str) -> ImageRecord | None:
    try:
        name = str(parse_name(ref))
    except UnionError:
        name = ""
    tagged = keep.records.tagged(name) if name else None
    if tagged is None and _HEX.fullmatch(ref):
        digest = ref if ref.startswith("sha256:") else f"sha256:{ref}"
        found = [*keep.records.matching("images", "id", digest), *keep.records.matching("images", "manifest", digest)]
        tagged = _only(list(dict.fromkeys(found)), ref, "images")
    return None if tagged is None else keep.records.image(tagged)


def _layer(keep: Keep, ref: str) -> LayerRecord | None:
    if not _HEX.fullmatch(ref):
        return None
    digest = ref if ref.startswith("sha256:") else f"sha256:{ref}"
    found: list[str] = []
    if not ref.startswith("sha256:"):
        found += keep.records.matching("layers", "id", ref)
    found += keep.records.matching("layers", "chain_id", digest)
    found += keep.records.matching("layers", "diff_id", digest)
    key = _only(list(dict.fromkeys(found)), ref, "layers")
    return None if key is None else keep.records.layer(key)


def _only(found: list[str], ref: str, words: str) -> str | None:
    if len(found) > 1:
        raise NotFoundError(f"{ref!r} is the beginning of several {words}: {', '.join(short(key) for key in found)} …")
    return found[0] if found else None

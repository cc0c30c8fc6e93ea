"""An image's own documents, from the store: its config and its manifest."""

from __future__ import annotations

from collections import OrderedDict

from unionfs.errors import NotFoundError, StoreError
from unionfs.images.points import short
from unionfs.oci.model import ImageConfig, Manifest
from unionfs.store.keep import Keep

_KEPT = 8
_RECENT: OrderedDict[str, ImageConfig] = OrderedDict()
"""Configs that were made just now: who commits a thousand times goes on from what it has just written."""


def remember(image: str, config: ImageConfig) -> None:
    """The config of an image that was just made."""
    _RECENT[image] = config
    while len(_RECENT) > _KEPT:
        _RECENT.popitem(last=False)


def read_config(keep: Keep, image: str) -> ImageConfig:
    """The config of an image. ``NotFoundError`` if it is gone; ``StoreError`` if its blob is missing or damaged."""
    data = _read_blob(keep, image, image)
    return _RECENT.get(image) or ImageConfig.parse(data)


def read_manifest(keep: Keep, image: str, digest: str) -> Manifest:
    """The manifest of an image, which has this digest. Raises as ``read_config``."""
    return Manifest.parse(_read_blob(keep, image, digest))


def _read_blob(keep: Keep, image: str, digest: str) -> bytes:
    try:
        return keep.blobs.get(digest)
    except StoreError:
        if keep.records.image(image) is None:
            raise NotFoundError(f"image {short(image)} is gone") from None
        raise

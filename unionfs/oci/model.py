"""An image's documents: config, history, manifest, descriptors.

Source: OCI image-spec 1.1, config.md, manifest.md, descriptor.md; Docker's image spec v1.2 for the fields that Docker
adds. Each value reads its document with ``parse`` or ``of`` and checks it, raises ``UnionError`` with one line that
names the rule, and keeps the fields that it does not know in ``extra``. ``to_bytes`` gives canonical JSON: sorted
keys, no white space, UTF-8; what is empty and optional is left out. Values are never changed: ``attrs.evolve`` them.

    config = ImageConfig.new(*this_platform())
    config = config.with_layer(digest_of(tar), History(created="2026-11-21T07:00:00Z", created_by="import"))
    config.to_bytes()
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from unionfs.errors import UnionError
from unionfs.oci.document import Fields, canonical, check_digest, read_document, written

MEDIA_TYPE_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_TYPE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_TYPE_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_TYPE_LAYER = "application/vnd.oci.image.layer.v1.tar"
MEDIA_TYPE_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

MAX_DOCUMENT = 1 << 26
"""Bytes of a config or a manifest; so many are 300,000 layers and more. It bounds every count in them, too."""


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """``sha256:`` and the hash in hexadecimal (descriptor.md, "Digests")."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The chain ID of each layer on those before it, lowest first (config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


@attrs.frozen
class Descriptor:
    """Where content is, by what it is (descriptor.md)."""

    media_type: str
    digest: str
    size: int
    """Bytes."""
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    extra: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=False)

    @classmethod
    def to(cls, data: bytes, media_type: str) -> Descriptor:
        """The descriptor of ``data``."""
        return cls(media_type, digest_of(data), len(data))

    @classmethod
    def of(cls, value: object, where: str) -> Descriptor:
        """From its JSON value; ``where`` names it in errors."""
        fields = Fields(value, where)
        found = cls(
            fields.required_text("mediaType"),
            check_digest(fields.required_text("digest"), f"{where}.digest"),
            fields.size("size"),
            fields.text_map("annotations"),
        )
        return attrs.evolve(found, extra=fields.rest())

    def value(self) -> dict[str, Any]:
        """Its JSON value."""
        known = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return {**self.extra, **known, **written(annotations=self.annotations)}


@attrs.frozen
class History:
    """How one layer, or a change of the config alone, came about (config.md, ``history``)."""

    created: str | None = None
    """RFC 3339, as given."""
    author: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False
    """Only the config changed: no layer belongs to it."""
    extra: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=False)

    @classmethod
    def of(cls, value: object, where: str) -> History:
        """From its JSON value; ``where`` names it in errors."""
        fields = Fields(value, where)
        found = cls(
            fields.time("created"),
            fields.text("author"),
            fields.text("created_by"),
            fields.text("comment"),
            fields.flag("empty_layer"),
        )
        return attrs.evolve(found, extra=fields.rest())

    def value(self) -> dict[str, Any]:
        """Its JSON value."""
        return {
            **self.extra,
            **written(
                created=self.created,
                author=self.author,
                created_by=self.created_by,
                comment=self.comment,
                empty_layer=self.empty_layer,
            ),
        }


@attrs.frozen
class RunConfig:
    """How a container of the image is run: the config's ``config`` object (config.md, and Docker's additions)."""

    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    """``port/protocol``, sorted."""
    env: tuple[str, ...] = ()
    """``NAME=value``."""
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: tuple[str, ...] = ()
    """Paths in the container, sorted."""
    working_dir: str = ""
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    stop_signal: str = ""
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] | None = None
    """What runs commands in shell form; ``/bin/sh -c`` unless given."""
    healthcheck: Mapping[str, Any] | None = attrs.field(default=None, hash=False)
    extra: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=False)

    @classmethod
    def of(cls, value: object, where: str = "config") -> RunConfig:
        """From its JSON value; ``where`` names it in errors."""
        fields = Fields(value, where)
        found = cls(
            fields.text("User"),
            fields.names("ExposedPorts"),
            fields.texts("Env") or (),
            fields.texts("Entrypoint"),
            fields.texts("Cmd"),
            fields.names("Volumes"),
            fields.text("WorkingDir"),
            fields.text_map("Labels"),
            fields.text("StopSignal"),
            fields.texts("OnBuild") or (),
            fields.texts("Shell"),
            fields.mapping("Healthcheck"),
        )
        return attrs.evolve(found, extra=fields.rest())

    def value(self) -> dict[str, Any]:
        """Its JSON value."""
        known = written(
            User=self.user,
            ExposedPorts={port: {} for port in self.exposed_ports},
            Env=list(self.env),
            Volumes={path: {} for path in self.volumes},
            WorkingDir=self.working_dir,
            Labels=self.labels,
            StopSignal=self.stop_signal,
            OnBuild=list(self.on_build),
        )
        # An empty list says something else than none: no entry point, rather than whatever the base has.
        for name, words in (("Entrypoint", self.entrypoint), ("Cmd", self.cmd), ("Shell", self.shell)):
            if words is not None:
                known[name] = list(words)
        if self.healthcheck is not None:
            known["Healthcheck"] = dict(self.healthcheck)
        return {**self.extra, **known}


@attrs.frozen
class ImageConfig:
    """An image's config (config.md): its digest is the image's ID."""

    architecture: str
    """As Go names it: ``amd64``."""
    os: str
    variant: str = ""
    created: str | None = None
    """RFC 3339, as given."""
    author: str = ""
    run: RunConfig = attrs.field(factory=RunConfig)
    """The ``config`` object."""
    diff_ids: tuple[str, ...] = ()
    """Digests of the layers' uncompressed archives, lowest first."""
    history: tuple[History, ...] = ()
    """Oldest first; empty, or one for each layer and any number with ``empty_layer``."""
    extra: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=False)

    @classmethod
    def new(cls, architecture: str, os: str, variant: str = "") -> ImageConfig:
        """The config of an image without layers. For this machine: ``ImageConfig.new(*this_platform())``."""
        return cls(architecture, os, variant)

    @classmethod
    def parse(cls, data: bytes) -> ImageConfig:
        """The config in ``data``; ``UnionError`` for what is none."""
        fields = Fields(read_document(data, "image config", MAX_DOCUMENT), "image config")
        rootfs = Fields(fields.required("rootfs"), "image config.rootfs")
        if (kind := rootfs.required_text("type")) != "layers":
            raise UnionError(f"image config.rootfs.type: must be 'layers', not {kind!r}")
        diff_ids = rootfs.required("diff_ids")
        if diff_ids is None:  # what Go writes for no layers
            diff_ids = []
        if not isinstance(diff_ids, list):
            raise UnionError("image config.rootfs.diff_ids: must be a list")
        run = fields.take("config")
        found = cls(
            fields.required_text("architecture"),
            fields.required_text("os"),
            fields.text("variant"),
            fields.time("created"),
            fields.text("author"),
            RunConfig() if run is None else RunConfig.of(run, "image config.config"),
            tuple(check_digest(each, f"image config.rootfs.diff_ids[{n}]") for n, each in enumerate(diff_ids)),
            tuple(
                History.of(each, f"image config.history[{n}]") for n, each in enumerate(fields.values("history") or ())
            ),
        )
        found._check_history()
        return attrs.evolve(found, extra=fields.rest())

    def _check_history(self) -> None:
        layers = sum(not each.empty_layer for each in self.history)
        if self.history and layers != len(self.diff_ids):
            raise UnionError(
                f"image config.history: {layers} entries with a layer, but rootfs.diff_ids has {len(self.diff_ids)}"
            )

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same config gives the same bytes, in every Python."""
        self._check_history()
        known: dict[str, Any] = {
            "architecture": self.architecture,
            "os": self.os,
            "rootfs": {"type": "layers", "diff_ids": list(self.diff_ids)},
            **written(
                variant=self.variant,
                created=self.created,
                author=self.author,
                config=self.run.value(),
                history=[each.value() for each in self.history],
            ),
        }
        return canonical({**self.extra, **known})

    def with_layer(self, diff_id: str | None, history: History) -> ImageConfig:
        """The config with one more layer on top, or, with ``None``, with one more change of the config alone.

        ``created`` and ``author`` become those of ``history``. Layers without history get entries that say nothing.
        """
        if diff_id is not None:
            check_digest(diff_id, "diff ID")
        before = self.history or (History(),) * len(self.diff_ids)
        return attrs.evolve(
            self,
            created=history.created,
            author=history.author,
            diff_ids=self.diff_ids if diff_id is None else (*self.diff_ids, diff_id),
            history=(*before, attrs.evolve(history, empty_layer=diff_id is None)),
        )

    def upto(self, layers: int) -> ImageConfig:
        """The config of the first ``layers`` layers, with the history up to the last of them.

        ``created`` and ``author`` are then those of that history entry. The rest of the config has no history, and
        stays. ``ValueError`` for more layers than there are.
        """
        if not 0 <= layers <= len(self.diff_ids):
            raise ValueError(f"the image has {len(self.diff_ids)} layers, not {layers}")
        if layers == len(self.diff_ids):
            return self
        kept = list(history_upto(self.history, layers))
        truncated = attrs.evolve(self, diff_ids=self.diff_ids[:layers], history=tuple(kept))
        return attrs.evolve(truncated, created=kept[-1].created, author=kept[-1].author) if kept else truncated


def history_upto(history: Iterable[History], layers: int) -> Iterable[History]:
    """The entries up to the one of layer number ``layers``, counted from 1."""
    for each in history:
        if layers == 0:
            return
        yield each
        layers -= not each.empty_layer


@attrs.frozen
class Manifest:
    """An image manifest (manifest.md): the config and the layers as they travel, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = MEDIA_TYPE_MANIFEST
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    extra: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=False)

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """The manifest in ``data``; ``UnionError`` for what is none."""
        fields = Fields(read_document(data, "image manifest", MAX_DOCUMENT), "image manifest")
        if fields.take("schemaVersion") != 2:
            raise UnionError("image manifest.schemaVersion: must be 2")
        # One document, two meanings: refused everywhere since CVE-2021-41190.
        if fields.take("manifests") is not None:
            raise UnionError("image manifest: has 'manifests', as an index has, beside its own fields")
        media_type = fields.text("mediaType")
        if media_type not in ("", MEDIA_TYPE_MANIFEST, DOCKER_MANIFEST):
            raise UnionError(f"image manifest.mediaType: {media_type!r} is no image manifest")
        layers = fields.values("layers")
        if layers is None:
            raise UnionError("image manifest.layers: is required")
        found = cls(
            Descriptor.of(fields.required("config"), "image manifest.config"),
            tuple(Descriptor.of(each, f"image manifest.layers[{n}]") for n, each in enumerate(layers)),
            media_type,
            fields.text_map("annotations"),
        )
        return attrs.evolve(found, extra=fields.rest())

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same manifest gives the same bytes, in every Python."""
        known = {
            "schemaVersion": 2,
            "config": self.config.value(),
            "layers": [each.value() for each in self.layers],
            **written(mediaType=self.media_type, annotations=self.annotations),
        }
        return canonical({**self.extra, **known})

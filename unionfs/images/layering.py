"""A difference between two trees as an OCI layer: the tar that has its diff ID, and what is noted beside it.

The tar tells what differs and not how a layer keeps it: a renamed directory is there with all that is in it, a file of
which the mode alone changed with its bytes, in the order of paths. So the same change has the same diff ID however it
came about.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import queue
import stat
import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import attrs
import xxhash

from unionfs.errors import StoreError
from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG, DT_SOCK, DT_WHT
from unionfs.oci.tar import Entry, TarWriter
from unionfs.union.diff import Change
from unionfs.union.node import DirNode, FileNode, Node
from unionfs.union.reader import TreeReader

_CHUNK = 1 << 20
_BLOCK = 1 << 20
# What belongs to the machine and not to the tree.
_NOT_CARRIED = frozenset({b"security.selinux", b"security.ima", b"security.evm", b"security.SMACK64"})

_ENCODER = json.JSONEncoder()

CHANGES = "changes"
"""The file beside a layer that lists its changes: gzipped JSON, a line each."""


class Sink(Protocol):
    """Where a tar goes."""

    def write(self, data: bytes) -> Any: ...


@attrs.frozen(slots=True)
class Layered:
    """What a layer's tar came to."""

    diff_id: str
    size: int
    """Bytes of the tar."""
    changes: bytes
    """The list of changes, as it is kept beside the layer."""


class _Hash:
    """sha256 of what is written, computed by a thread of its own while the next bytes are read."""

    def __init__(self, also: Sink | None) -> None:
        self.size = 0
        self._also = also
        self._sum = hashlib.sha256()
        self._pending: list[bytes] = []
        self._held = 0
        self._queue: queue.Queue[bytes | None] = queue.Queue(4)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def write(self, data: bytes | memoryview) -> None:
        self._pending.append(bytes(data))
        self._held += len(data)
        if self._held >= _BLOCK:
            self._pass_on()

    def _pass_on(self) -> None:
        self.size += self._held
        self._queue.put(b"".join(self._pending))
        self._pending.clear()
        self._held = 0

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._sum.update(data)
                    if self._also is not None:
                        self._also.write(data)
                except BaseException as error:  # noqa: BLE001 - raised again by who waits for the digest
                    self._error = error

    def end(self) -> str:
        self._pass_on()
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return f"sha256:{self._sum.hexdigest()}"

    def drop(self) -> None:
        self._queue.put(None)
        self._thread.join()


def layer_of(
    tree: TreeReader, changes: Iterable[Change], *, epoch: int | None = None, base: bool = False, to: Sink | None = None
) -> Layered:
    """Write ``changes``, by which ``tree`` differs from what is below, as an OCI layer (image-spec, layer.md).

    ``epoch``: later times become this one, in seconds since 1970. ``base``: nothing is below. ``to``: who gets the tar;
    without it, it is hashed alone. Sockets are left out: a tar can't hold them. Raises ``OSError``.
    """
    total = _Hash(to)
    try:
        layer = _Layer(tree, TarWriter(total.write), None if epoch is None else epoch * 10**9)
        layer.write(changes, base)
        notes = gzip.compress("".join(layer.notes).encode(), 1, mtime=0)
    except BaseException:
        total.drop()
        raise
    return Layered(total.end(), total.size, notes)


class _Layer:
    def __init__(self, tree: TreeReader, writer: TarWriter, latest: int | None) -> None:
        self.tree = tree
        self.writer = writer
        self.notes: list[str] = []
        self.latest = latest
        self.links: dict[int, bytes] = {}
        self.way: list[bytes] = []
        self.buffer = memoryview(bytearray(_CHUNK))

    def write(self, changes: Iterable[Change], base: bool) -> None:
        if base:
            self.writer.add(self.entry(b"", self.tree.root))
        # As paths sort by their names, not by their bytes: a directory is followed by what is in it.
        for change in changes:
            path = os.fsencode(change.path).strip(b"/")
            if not path:
                if not base:
                    self.writer.add(self.entry(b"", self.tree.root))
                self.note(change, None)
                continue
            self.lead_to(path)
            if change.kind == "deleted":
                self.writer.add(_whiteout(path))
                self.note(change, None)
                continue
            node = self.tree.resolve(path, follow=False)
            if node.kind == DT_SOCK:
                continue
            self.note(change, self.put(path, node))
            if isinstance(node, DirNode):
                self.way.append(path)
        self.writer.finish()

    def lead_to(self, path: bytes) -> None:
        """The directories above that are not in the tar yet: with their times, which the changes below them set."""
        while self.way and not path.startswith(self.way[-1] + b"/"):
            self.way.pop()
        done = len(self.way[-1]) if self.way else 0
        while (done := path.find(b"/", done + 1)) >= 0:
            above = path[:done]
            self.writer.add(self.entry(above, self.tree.resolve(above, follow=False)))
            self.way.append(above)

    def put(self, path: bytes, node: Node) -> str | None:
        """One object; the fingerprint of a regular file's bytes."""
        entry = self.entry(path, node)
        if entry.kind != DT_REG or entry.hardlink is not None:
            self.writer.add(entry)
            return None
        assert isinstance(node, FileNode)
        fingerprint = xxhash.xxh3_128()
        handle = self.tree.open(node, os.O_RDONLY)
        try:
            self.writer.add(entry, self.data(handle, entry.size, fingerprint))
        finally:
            handle.close()
        return fingerprint.hexdigest()

    def data(self, handle: Any, size: int, fingerprint: Any) -> Iterator[memoryview]:
        at = 0
        while at < size:
            count = handle.readinto(self.buffer[: min(_CHUNK, size - at)], at)
            if not count:
                return  # The writer tells that the file is too short.
            piece = self.buffer[:count]
            fingerprint.update(piece)
            yield piece
            at += count

    def entry(self, path: bytes, node: Node) -> Entry:
        tree = self.tree
        st = tree.stat(node)
        hardlink = None
        if isinstance(node, FileNode) and st.st_nlink > 1:
            first = self.links.setdefault(st.st_ino, path)
            hardlink = first if first != path else None
        xattrs = [(key, tree.getxattr(node, key)) for key in sorted(tree.listxattr(node)) if key not in _NOT_CARRIED]
        mtime = st.st_mtime_ns if self.latest is None else min(st.st_mtime_ns, self.latest)
        device = stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode)
        return Entry(
            path=path,
            kind=node.kind,
            hardlink=hardlink,
            target=tree.readlink(node) if node.kind == DT_LNK else b"",
            mode=stat.S_IMODE(st.st_mode) if node.kind != DT_LNK else 0o777,
            uid=st.st_uid,
            gid=st.st_gid,
            mtime_ns=mtime,
            size=st.st_size if node.kind == DT_REG and hardlink is None else 0,
            rdev=st.st_rdev if device else 0,
            xattrs=tuple(xattrs),
        )

    def note(self, change: Change, fingerprint: str | None) -> None:
        line: dict[str, Any] = {"kind": change.kind, "path": change.path}
        if change.what:
            line["what"] = sorted(change.what)
        if change.renamed_from is not None:
            line["renamed_from"] = change.renamed_from
        if change.after is not None and not stat.S_ISDIR(change.after.st_mode):
            line["size"] = change.after.st_size
        if change.before is not None and not stat.S_ISDIR(change.before.st_mode):
            line["size_before"] = change.before.st_size
        if fingerprint is not None:
            line["xxh3_128"] = fingerprint
        self.notes.append(_ENCODER.encode(line) + "\n")


def _whiteout(path: bytes) -> Entry:
    return Entry(path=path, kind=DT_WHT)


def read_changes(path: str) -> list[dict[str, Any]]:
    """The lines of the list of changes at ``path``. ``StoreError`` if it is damaged; ``OSError``."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        return parse_changes(data)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error


def parse_changes(data: bytes) -> list[dict[str, Any]]:
    """The lines of a list of changes. ``StoreError`` if it is damaged."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            lines = [json.loads(line) for line in file]
        if data and all(isinstance(line, dict) and isinstance(line["path"], str) for line in lines):
            return lines
    except (gzip.BadGzipFile, EOFError, ValueError, KeyError, RecursionError, zlib.error):
        pass
    raise StoreError("the list of a layer's changes is damaged")


__all__ = ["CHANGES", "DT_DIR", "Layered", "Sink", "layer_of", "parse_changes", "read_changes"]

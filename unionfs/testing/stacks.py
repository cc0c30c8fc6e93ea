"""Scattered layers, and what they show when merged: computed from values by rules of its own, for the oracle.

A ``Spec`` is one layer: path to ``Entry`` or ``Link``, parents before what is in them, ``b""`` for the root. ``merged``
applies the layers from the bottom up, as image layers are applied (whiteouts remove, opaque directories remove what was
in them); a union resolves names from the top down. Both must show one tree.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from random import Random
from typing import TypeAlias

import attrs

from unionfs.layer import whiteout
from unionfs.layer.protocol import Marks
from unionfs.layer.trees import WHITEOUT, Entry, Link
from unionfs.testing.operations import short

Spec: TypeAlias = "dict[bytes, Entry | Link]"

_NAMES = (b"a", b"b", b"c", b"d", b"\xff")
_OPAQUE = Marks(opaque=True)


def _is_dir(entry: Entry | Link) -> bool:
    return isinstance(entry, Entry) and stat.S_ISDIR(entry.mode)


def random_stack(rng: Random, layers: int, *, root: bool = True) -> list[Spec]:
    """Layers, topmost first, that overlap much. ``root``: with owners and devices."""
    return [_random_layer(rng, bottom=i == layers - 1, root=root) for i in range(layers)]


def _random_layer(rng: Random, *, bottom: bool, root: bool) -> Spec:
    spec: Spec = {b"": _dressed(rng, stat.S_IFDIR | 0o755, {}, root)}
    for _ in range(rng.randrange(2, 14)):
        path = b""
        for name in rng.choices(_NAMES, k=rng.choice((1, 1, 2, 2, 3))):
            path = path + b"/" + name if path else name
            found = spec.get(path)
            if found is None:
                break
            if not _is_dir(found):
                break
        if path in spec:
            continue
        spec[path] = _random_entry(rng, spec, bottom=bottom, root=root)
    return spec


def _random_entry(rng: Random, spec: Spec, *, bottom: bool, root: bool) -> Entry | Link:
    kind = rng.choices(("file", "dir", "link", "symlink", "whiteout", "fifo"), (8, 9, 4, 2, 0 if bottom else 3, 1))[0]
    if kind == "link":
        kinds = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO) if root else (stat.S_IFREG,)
        origins = [p for p, e in spec.items() if isinstance(e, Entry) and stat.S_IFMT(e.mode) in kinds]
        if origins:
            return Link(rng.choice(origins))
        kind = "file"
    if kind == "whiteout":
        return WHITEOUT
    if kind == "dir":
        marks = _OPAQUE if rng.random() < 0.2 and not bottom else Marks()
        mode = rng.choice((0o755, 0o700, 0o2775, 0o1777))
        return attrs.evolve(_dressed(rng, stat.S_IFDIR | mode, {}, root), marks=marks)
    if kind == "symlink":
        return _dressed(rng, stat.S_IFLNK | 0o777, rng.choice((b"a", b"b", b"a/b", b"b/c", b"none")), root)
    if kind == "fifo":
        return _dressed(rng, stat.S_IFIFO | 0o644, b"", root)
    mode = rng.choice((0o644, 0o600, 0o755, 0o4755))
    data = (b"%d:" % rng.randrange(1 << 30)) * rng.choice((0, 1, 1, 20, 1000, 20_000))
    return _dressed(rng, stat.S_IFREG | mode, data, root)


def _dressed(rng: Random, mode: int, content: bytes | Mapping[bytes, Entry], root: bool) -> Entry:
    owned = root and rng.random() < 0.3
    xattrs = {}
    if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and rng.random() < 0.3:
        xattrs["user." + rng.choice("ab")] = b"%d" % rng.randrange(100)
    return Entry(
        mode,
        content,
        uid=1000 if owned else None,
        gid=1000 if owned else None,
        mtime_ns=rng.randrange(1_000_000_000, 1_500_000_000 * 1_000_000_000),
        xattrs=xattrs,
    )


def without_hidden_links(stack: Sequence[Spec]) -> list[Spec]:
    """The same stack, but hard links of which some names do not show are files of their own."""
    layers = [dict(spec) for spec in stack]
    shown, hidden = merged(stack)
    torn = {path for path in shown if path in hidden or (isinstance(e := shown[path], Link) and e.path in hidden)}
    for spec in layers:
        names: dict[bytes, list[bytes]] = {}
        for path, entry in spec.items():
            if isinstance(entry, Link):
                names.setdefault(os.fsencode(entry.path), []).append(path)
        for origin, links in names.items():
            if torn.intersection((origin, *links)):
                spec.update(dict.fromkeys(links, spec[origin]))
    return layers


def without_idle_whiteouts(stack: Sequence[Spec]) -> list[Spec]:
    """The same stack, but every whiteout has something to hide in a directory that merges: overlayfs lists the others
    (overlayfs.rst, "whiteouts and opaque directories")."""
    layers = []
    for i, spec in enumerate(stack):
        below = merged(stack[i + 1 :])[0]
        kept = dict(spec)
        for path in [path for path, entry in spec.items() if entry == WHITEOUT]:
            above = [path[:at] for at, byte in enumerate(path) if byte == ord("/")]
            closed = any(isinstance(e := spec[d], Entry) and e.marks.opaque for d in above)
            if closed or path not in below:
                del kept[path]
        layers.append(kept)
    return layers


def spec_code(spec: Spec) -> str:
    """The layer as Python source, with what differs from the default alone."""
    fields = attrs.fields(Entry)
    lines = []
    for path, entry in spec.items():
        if isinstance(entry, Link):
            lines.append(f"{path!r}: {entry!r}")
            continue
        told = [oct(entry.mode), short(entry.content)]
        for name in ("rdev", "uid", "gid", "mtime_ns", "xattrs"):
            value, default = getattr(entry, name), getattr(fields, name).default
            if value not in (default, {}):
                told.append(f"{name}={value!r}")
        if entry.marks.opaque:
            told.append("marks=Marks(opaque=True)")
        lines.append(f"{path!r}: Entry({', '.join(told)})")
    return "{" + ", ".join(lines) + "}"


def build(spec: Spec, where: str | os.PathLike[str], prefix: bytes = whiteout.TRUSTED) -> None:
    """Make the layer in an empty directory by plain calls, marks in the namespace ``prefix``."""
    top = os.fsencode(where)
    for path, entry in spec.items():
        at = top + b"/" + path if path else top
        if isinstance(entry, Link):
            os.link(top + b"/" + os.fsencode(entry.path), at, follow_symlinks=False)
        elif stat.S_ISDIR(entry.mode):
            if path:
                os.mkdir(at)
        elif stat.S_ISLNK(entry.mode):
            assert isinstance(entry.content, bytes)
            os.symlink(entry.content, at)
        else:
            os.mknod(at, stat.S_IFMT(entry.mode) | 0o600, entry.rdev)
            if entry.content:
                assert isinstance(entry.content, bytes)
                with open(at, "wb") as file:
                    file.write(entry.content)
    for path, entry in reversed(spec.items()):
        if isinstance(entry, Entry) and entry != WHITEOUT:
            _dress(entry, top + b"/" + path if path else top, prefix)


def _dress(entry: Entry, at: bytes, prefix: bytes) -> None:
    if entry.uid is not None and entry.gid is not None:
        os.chown(at, entry.uid, entry.gid, follow_symlinks=False)
    if not stat.S_ISLNK(entry.mode):
        os.chmod(at, stat.S_IMODE(entry.mode))
    for key, value in entry.xattrs.items():
        os.setxattr(at, key, value, follow_symlinks=False)
    for mark, value in whiteout.encode(entry.marks).items():
        os.setxattr(at, prefix + mark, value, follow_symlinks=False)
    if entry.mtime_ns is not None:
        os.utime(at, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def merged(stack: Sequence[Spec]) -> tuple[Spec, dict[bytes, int]]:
    """What the stack (topmost first) shows, as one layer; and of each inode with names that do not show, how many."""
    shown: dict[bytes, tuple[Entry, tuple[int, bytes]]] = {}
    total: dict[tuple[int, bytes], int] = {}
    for i, spec in enumerate(reversed(stack)):
        for path, entry in spec.items():
            key = (i, os.fsencode(entry.path) if isinstance(entry, Link) else path)
            real = spec[key[1]]
            assert isinstance(real, Entry)
            before = shown.get(path)
            if not (_is_dir(real) and before is not None and _is_dir(before[0]) and not real.marks.opaque):
                for gone in [other for other in shown if other == path or other.startswith(path + b"/")]:
                    del shown[gone]
            if real != WHITEOUT:
                total[key] = total.get(key, 0) + 1
                shown[path] = (attrs.evolve(real, marks=Marks()), key)
    result: Spec = {}
    hidden: dict[bytes, int] = {}
    first: dict[tuple[int, bytes], bytes] = {}
    for path in sorted(shown):
        entry, key = shown[path]
        total[key] -= 1
        if key in first:
            result[path] = Link(first[key])
        else:
            first[key] = path
            result[path] = entry
    for key, path in first.items():
        if total[key] and not _is_dir(result[path]):
            hidden[path] = total[key]
    return result, hidden


def build_merged(stack: Sequence[Spec], where: str | os.PathLike[str], aside: str | os.PathLike[str]) -> None:
    """The plain directory that looks as the stack does. ``aside`` takes the names that do not show, so that link counts
    are those of the layers' inodes."""
    spec, hidden = merged(stack)
    build(spec, where)
    for i, (path, count) in enumerate(hidden.items()):
        for j in range(count):
            os.link(os.fsencode(where) + b"/" + path, os.fsencode(f"{os.fspath(aside)}/{i}.{j}"), follow_symlinks=False)

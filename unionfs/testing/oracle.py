"""The oracle: the same operations on a union and on a plain directory, then equal answers and equal trees.

A ``Surface`` (``unionfs.testing.surfaces``) is one way to a tree: a plain directory, a mount of any engine, the core,
the path API. An operation is a tuple of a method's name and its arguments, so that a failing run is a list that can be
pasted into a test. ``Duel`` runs operations on a reference and a subject and compares them::

    duel = Duel(HostSurface(plain), HostSurface(mountpoint))
    operations = Operations(random.Random(1), duel.reference)
    for _ in range(100):
        duel.step(operations.next())
    duel.compare()

Scattered layers to begin with come from ``unionfs.testing.stacks``. Paths are bytes, relative to the tree's root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import attrs

from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG
from unionfs.testing.operations import Op, code
from unionfs.testing.surfaces import SLOTS, HostSurface, Surface

LONG_AGO = 1_600_000_000 * 1_000_000_000
"""A time before this was set by somebody; one after it is that of a change (nanoseconds)."""


def facts(st: os.stat_result) -> dict[str, Any]:
    """What two trees must agree on about one object; a directory's size and link count are its file system's affair.

    A change time that nobody set (``LONG_AGO``) is only known to be recent.
    """
    told: dict[str, Any] = {"mode": oct(st.st_mode), "uid": st.st_uid, "gid": st.st_gid}
    if not stat.S_ISDIR(st.st_mode):
        told |= {"size": st.st_size, "nlink": st.st_nlink}
    if stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode):
        told["rdev"] = st.st_rdev
    told["mtime"] = st.st_mtime_ns if st.st_mtime_ns < LONG_AGO else "recent"
    return told


@attrs.frozen
class Seen:
    """One object of a tree: what must agree, and its identity, which need not."""

    facts: dict[str, Any]
    identity: tuple[int, int]


def snapshot(surface: Surface, *, content: bool = True) -> dict[bytes, Seen]:
    """The whole tree: path (``b""`` for the root) to what is there. ``listdir`` and ``lstat`` must agree on kinds."""
    found: dict[bytes, Seen] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        st = surface.lstat(path)
        told = facts(st)
        kind = st.st_mode >> 12
        told["xattrs"] = surface.xattrs(path)
        if kind == DT_LNK:
            told["target"] = surface.readlink(path)
        elif kind == DT_REG and content:
            told["data"] = surface.read(path)
        elif kind == DT_DIR:
            listed = surface.listdir(path)
            for name, listed_kind in listed.items():
                child = path + b"/" + name if path else name
                pending.append(child)
                seen = surface.lstat(child).st_mode >> 12
                if seen != listed_kind:
                    raise AssertionError(f"{child!r}: listdir says kind {listed_kind}, lstat {seen}")
        found[path] = Seen(told, (st.st_dev, st.st_ino))
    return found


def differences(
    reference: dict[bytes, Seen], subject: dict[bytes, Seen], loose: frozenset[str] = frozenset()
) -> list[str]:
    """One line for each fact in which the trees differ; empty for equal trees. Hard links must group alike.

    ``loose``: facts that need not agree.
    """
    lines = [f"{path!r} is missing" for path in sorted(reference.keys() - subject.keys())]
    lines += [f"{path!r} should not be there" for path in sorted(subject.keys() - reference.keys())]
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    back: dict[tuple[int, int], tuple[int, int]] = {}
    for path in sorted(reference.keys() & subject.keys()):
        wanted, got = reference[path], subject[path]
        for key in (wanted.facts.keys() | got.facts.keys()) - loose:
            one, other = wanted.facts.get(key), got.facts.get(key)
            if one != other:
                lines.append(f"{path!r}: {key} is {_short(other)}, not {_short(one)}")
        if (
            pairs.setdefault(wanted.identity, got.identity) != got.identity
            or back.setdefault(got.identity, wanted.identity) != wanted.identity
        ):
            lines.append(f"{path!r}: its hard links are others")
    return lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:60]}…{text[-20:]} ({len(value)} long)"


class Identities:
    """Objects keep their numbers: by the reference's inode, what number the subject gave it first.

    The reference's inodes are held open, so that none of their numbers is given out again.
    """

    def __init__(self, reference: HostSurface) -> None:
        self._reference = reference
        self._known: dict[tuple[int, int], tuple[int, int]] = {}
        self._held: list[int] = []

    def check(self, reference: dict[bytes, Seen], subject: dict[bytes, Seen]) -> list[str]:
        """One line for each object whose number has changed."""
        lines = []
        for path, seen in subject.items():
            if path not in reference:
                continue
            key = reference[path].identity
            known = self._known.get(key)
            if known is None:
                self._known[key] = seen.identity
                self._held.append(os.open(self._reference.at(path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
            elif known != seen.identity:
                lines.append(f"{path!r}: (st_dev, st_ino) was {known}, is {seen.identity}")
        return lines

    def forget(self, reference: dict[bytes, Seen], which: Callable[[Seen], bool]) -> None:
        """Of these objects the numbers may change now."""
        for seen in reference.values():
            if which(seen):
                self._known.pop(seen.identity, None)

    def close(self) -> None:
        """Let go of the reference's inodes."""
        for fd in self._held:
            os.close(fd)
        self._held = []


def outcome(surface: Surface, op: Op, loose: frozenset[str] = frozenset()) -> Any:
    """What the operation answers, or the name of its errno; metadata as far as they must agree."""
    try:
        answer = getattr(surface, op[0])(*op[1:])
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    if not isinstance(answer, os.stat_result):
        return answer
    return {key: value for key, value in facts(answer).items() if key not in loose}


class Duel:
    """A plain directory and a subject, step by step.

    ``remount``: makes the subject anew over the same layers, for the operation ``("remount",)``. ``unkept``: of which
    objects the inode numbers may change then. ``commit``: freezes the subject's upper, for ``("commit",)``.
    ``loose``: facts that need not agree. Raises ``AssertionError`` with the operations so far.
    """

    def __init__(
        self,
        reference: HostSurface,
        subject: Surface,
        *,
        remount: Callable[[], Surface] | None = None,
        commit: Callable[[], None] | None = None,
        unkept: Callable[[Seen], bool] | None = None,
        loose: frozenset[str] = frozenset(),
    ) -> None:
        self.reference = reference
        self.subject = subject
        self.history: list[Op] = []
        self._remount = remount
        self._commit = commit
        self._unkept = unkept
        self._loose = loose
        # Each kind of surface has numbers of its own.
        self._identities: dict[type[Surface], Identities] = {}

    def step(self, op: Op) -> None:
        """Do it on both."""
        self.history.append(op)
        if op[0] == "remount":
            self._new_subject()
            return
        if op[0] == "commit":
            if self._commit is not None:
                self._commit()
            return
        wanted, got = (outcome(surface, op, self._loose) for surface in (self.reference, self.subject))
        if wanted != got:
            self._fail(f"{code(op)}: {_short(got)}, not {_short(wanted)}")

    def _new_subject(self) -> None:
        self.close_files()
        if self._remount is not None:
            self.compare()
            self.subject = self._remount()
            if self._unkept is not None:
                self._numbers().forget(snapshot(self.reference, content=False), self._unkept)
            self.compare()

    def _numbers(self) -> Identities:
        return self._identities.setdefault(type(self.subject), Identities(self.reference))

    def compare(self) -> None:
        """Equal trees, and every object has the number that it always had."""
        wanted, got = snapshot(self.reference), snapshot(self.subject)
        lines = differences(wanted, got, self._loose) + self._numbers().check(wanted, got)
        if lines:
            self._fail("\n".join(lines))

    def _fail(self, why: str) -> None:
        raise AssertionError(f"{why}\nafter\n" + "".join(f"    {code(op)},\n" for op in self.history))

    def close_files(self) -> None:
        """Close what operations have opened, on both sides."""
        for surface in (self.reference, self.subject):
            for slot in range(SLOTS):
                surface.close(slot)

    def close(self) -> None:
        """Close all but the subject's tree."""
        self.close_files()
        for identities in self._identities.values():
            identities.close()

"""Where a union and a plain directory that looks the same meet: scattered layers on disk, a duel, a failure cut down.

`run_seed` is the whole of it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest import mock

import attrs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from unionfs.layer import whiteout
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR, DT_REG
from unionfs.layer.trees import Link
from unionfs.layer.upper import UpperDirectory
from unionfs.testing.operations import Op, Operations, code
from unionfs.testing.oracle import Duel, Seen
from unionfs.testing.stacks import Spec, build, build_merged, random_stack, spec_code, without_hidden_links
from unionfs.testing.surfaces import HostSurface, Surface, TreeSurface
from unionfs.union.commit import commit
from unionfs.union.tree import Tree


class Arena:
    """A stack of layers on disk below `top`, and the plain directory that shows the same.

    The subject is the core itself; subclasses have others. With `root`, marks are `trusted.*`.
    """

    loose: frozenset[str] = frozenset()
    """What subject and plain directory may disagree about."""

    def __init__(
        self,
        top: str | Path,
        stack: Sequence[Spec],
        *,
        root: bool = True,
        redirect_dir: bool = True,
        metacopy: bool = True,
    ) -> None:
        self.top = os.fspath(top)
        self.root = root
        self.redirect_dir, self.metacopy = redirect_dir, metacopy
        self._open: Tree | None = None
        prefix = whiteout.TRUSTED if root else whiteout.USER
        for name in ("upper", "work", "plain", "aside"):
            os.makedirs(f"{self.top}/{name}")
        self.lowers = [f"{self.top}/lower{i}" for i in range(len(stack))]
        for lower, spec in zip(self.lowers, stack, strict=True):
            os.mkdir(lower)
            build(spec, lower, prefix)
        build_merged(stack, f"{self.top}/plain", f"{self.top}/aside")
        # The merged root has the upper's metadata, so the upper's is made as the topmost lower's.
        build({b"": stack[0][b""]}, f"{self.top}/upper", prefix)

    @staticmethod
    def prepared(stack: list[Spec]) -> list[Spec]:
        """The layers as this subject needs them."""
        return stack

    def layers(self) -> list[DirectoryLayer]:
        """The lowers, topmost first, those that a commit made among them."""
        frozen = f"{self.top}/upper.layers"
        commits = sorted(os.listdir(frozen), reverse=True) if os.path.isdir(frozen) else []
        made = [DirectoryLayer(f"{frozen}/{name}") for name in commits]
        # A commit that was killed may leave an empty directory; what was committed has a record.
        return [*(layer for layer in made if layer.record is not None), *map(DirectoryLayer, self.lowers)]

    def tree(self) -> Tree:
        """The union, opened anew; the one before is closed."""
        self.close_tree()
        upper = UpperDirectory(f"{self.top}/upper", f"{self.top}/work", trusted=self.root)
        self._open = Tree(self.layers(), upper, redirect_dir=self.redirect_dir, metacopy=self.metacopy)
        return self._open

    def close_tree(self) -> None:
        """Let go of the layers."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def freeze(self) -> None:
        """The upper becomes the topmost lower by hand, as somebody does who has no commit."""
        self.close_tree()
        self.lowers.insert(0, f"{self.top}/frozen{len(self.lowers)}")
        os.rename(f"{self.top}/upper", self.lowers[0])
        shutil.rmtree(f"{self.top}/work")
        for name in ("upper", "work"):
            os.mkdir(f"{self.top}/{name}")
        self._dress_root(self.lowers[0], f"{self.top}/upper")

    @staticmethod
    def _dress_root(source: str, target: str) -> None:
        st = os.stat(source)
        os.chown(target, st.st_uid, st.st_gid)
        os.chmod(target, stat.S_IMODE(st.st_mode))
        for key in os.listxattr(source):
            if whiteout.unescape(os.fsencode(key)) is not None:
                os.setxattr(target, key, os.getxattr(source, key))
        os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))

    def subject(self) -> Surface:
        """The subject, opened anew."""
        return TreeSurface(self.tree())

    def unkept(self, seen: Seen) -> bool:
        """Whether the object's number may change at a remount."""
        # Symbolic links and special files have no user.* attributes that could keep their number (xattr(7)).
        return not self.root and int(seen.facts["mode"], 8) >> 12 not in (DT_DIR, DT_REG)

    def commit(self) -> None:
        """Freeze the upper of the open union."""
        assert self._open is not None
        commit(self._open)

    def duel(self) -> Duel:
        """Both, ready."""
        return Duel(
            HostSurface(f"{self.top}/plain"),
            self.subject(),
            remount=self.subject,
            commit=self.commit,
            unkept=self.unkept,
            loose=self.loose,
        )

    def mount_kernel(self, modes: str = "redirect_dir=on,metacopy=on,index=on") -> HostSurface:
        """The kernel's overlayfs on these layers."""
        where = f"{self.top}/merged"
        os.makedirs(where, exist_ok=True)
        layers = ":".join(layer.path for layer in self.layers())
        options = f"lowerdir={layers},upperdir={self.top}/upper,workdir={self.top}/work,{modes}"
        # Another process with mount namespaces of its own may still hold the mount before: EBUSY.
        for _ in range(50):
            done = subprocess.run(
                ["mount", "-t", "overlay", "-o", options, "overlay", where], capture_output=True, text=True
            )
            if "busy" not in done.stderr:
                break
            time.sleep(0.2)
        assert done.returncode == 0, done.stderr
        return HostSurface(where)

    def unmount_kernel(self) -> None:
        """Let go of it, if it is mounted."""
        if os.path.ismount(f"{self.top}/merged"):
            subprocess.run(["umount", f"{self.top}/merged"], check=True)

    def close(self) -> None:
        """Everything goes."""
        self.unmount_kernel()
        self.close_tree()
        shutil.rmtree(self.top)


@attrs.frozen
class Setting:
    """How cases run."""

    top: Path
    root: bool = True
    steps: int = 60
    commits: bool = False
    compare_every: int = 10
    remount_every: int = 0
    """Remounts at these steps, instead of now and then."""
    kind: type[Arena] = Arena
    skips: Callable[[Op], bool] = attrs.field(default=lambda op: False)

    def arena(self, stack: Sequence[Spec]) -> Arena:
        return self.kind(self.top / "arena", stack, root=self.root)


def run_seed(setting: Setting, seed: int) -> None:
    """One random case. Raises AssertionError with the smallest layers and operations that fail alike."""
    rng = Random(seed)
    stack = random_stack(rng, rng.randrange(3, 6), root=setting.root)
    if setting.commits:
        # A commit lets go of names that nobody can see, and the link counts say so.
        stack = without_hidden_links(stack)
    stack = setting.kind.prepared(stack)
    arena = setting.arena(stack)
    duel = arena.duel()
    operations = Operations(
        rng, duel.reference, root=setting.root, remounts=not setting.remount_every, commits=setting.commits
    )
    try:
        duel.compare()
        for i in range(setting.steps):
            if setting.remount_every and i % setting.remount_every == 0:
                duel.step(("remount",))
            op = operations.next()
            if not setting.skips(op):
                duel.step(op)
            if i % setting.compare_every == 0:
                duel.compare()
        duel.step(("remount",))
    except (AssertionError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        failed: Exception = error
    else:
        return
    finally:
        duel.close()
        arena.close()
    stack, history, failed = minimize(setting, stack, duel.history, failed)
    layers = ",\n    ".join(map(spec_code, stack))
    if not isinstance(failed, AssertionError):
        failed = AssertionError(f"{failed!r}\nafter\n" + "".join(f"    {code(op)},\n" for op in history))
    raise AssertionError(f"seed {seed}\nstack = [\n    {layers},\n]\n{failed!s}") from failed


def replay(setting: Setting, stack: Sequence[Spec], history: Sequence[Op]) -> None:
    """These operations on these layers, all compared after each."""
    arena = setting.arena(stack)
    duel = arena.duel()
    try:
        duel.compare()
        for op in history:
            duel.step(op)
            duel.compare()
        duel.step(("remount",))
    finally:
        duel.close()
        arena.close()


def _failure(setting: Setting, stack: Sequence[Spec], history: Sequence[Op], like: Exception) -> Exception | None:
    try:
        replay(setting, stack, history)
    except Exception as error:
        return error if type(error) is type(like) else None
    return None


def minimize(
    setting: Setting, stack: list[Spec], history: list[Op], failed: Exception
) -> tuple[list[Spec], list[Op], Exception]:
    """The least operations and layer entries that still fail with an exception of the same type."""
    again = _failure(setting, stack, history, failed)
    if again is None:
        return stack, history, failed
    failed = again
    step = max(1, len(history) // 2)
    while step:
        i = 0
        while i < len(history):
            fewer = history[:i] + history[i + step :]
            if again := _failure(setting, stack, fewer, failed):
                history, failed = fewer, again
            else:
                i += step
        step //= 2
    for i in range(len(stack)):
        for path in reversed(list(stack[i])):
            if not path or _is_needed(stack[i], path):
                continue
            smaller = [dict(spec) for spec in stack]
            del smaller[i][path]
            if again := _failure(setting, smaller, history, failed):
                stack, failed = smaller, again
    return stack, history, failed


def _is_needed(spec: Spec, path: bytes) -> bool:
    return any(
        other.startswith(path + b"/") or (isinstance(entry, Link) and entry.path == path)
        for other, entry in spec.items()
    )


@contextmanager
def hasty() -> Iterator[None]:
    """Nothing is flushed to disk meanwhile: what a process leaves behind, the next one finds all the same."""
    with mock.patch.multiple(os, fsync=lambda fd: None, fdatasync=lambda fd: None, sync=lambda: None):
        yield


def search(run: Callable[[int], None], cases: int) -> None:
    """`run` for many seeds; those that failed before first."""

    @settings(
        max_examples=cases,
        deadline=None,
        phases=(Phase.explicit, Phase.reuse, Phase.generate),  # run finds the least case by itself
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**32 - 1))
    def case(seed: int) -> None:
        run(seed)

    with hasty():
        case()

"""The kernel's overlayfs as second oracle: what we write it shows alike, what it writes we show alike.

One upper and work go back and forth between the kernel and us, with random operations at every turn; a plain directory
says what is right.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

import pytest

from tests.arena import Arena, Setting, run_seed, search
from tests.kernellog import quiet_kernel
from tests.support import USER_NAMESPACE, AsUser
from unionfs.layer.trees import Link
from unionfs.testing.operations import Op, Operations
from unionfs.testing.oracle import Duel, Seen, differences, snapshot
from unionfs.testing.stacks import Spec, random_stack, without_idle_whiteouts
from unionfs.testing.surfaces import HostSurface, Surface, TreeSurface


class Turns(Arena):
    """The subject is ours, then the kernel's, then ours, with every `remount`."""

    # The kernel's copy-up of data changes the time of a file that is opened for writing and not written to.
    loose = frozenset({"mtime"})
    kernel = True
    freezes = False
    modes = "redirect_dir=on,metacopy=on,index=on"

    @staticmethod
    def prepared(stack: list[Spec]) -> list[Spec]:
        return without_idle_whiteouts(stack)

    def subject(self) -> Surface:
        self.kernel = not self.kernel
        self.unmount_kernel()
        if self.freezes:
            self.freeze()
            self.freezes = False
        if not self.kernel:
            return super().subject()
        self.close_tree()
        return self.mount_kernel(self.modes)

    def unkept(self, seen: Seen) -> bool:
        return self.kernel  # It keeps what it likes.


def is_foreign(op: Op) -> bool:
    """Where the kernel's overlayfs is not as other file systems.

    With `trusted.*` marks it leaves a person's `user.overlay.*` as they are, whereas we read marks in both. It can't
    remove an ACL that is not there.
    """
    return b"user.overlay.opaque" in op or (op[0] == "removexattr" and op[2].startswith(b"system."))


def play(duel: Duel, operations: Operations, steps: int, without: tuple[str, ...] = ()) -> None:
    for _ in range(steps):
        op = operations.next()
        if op[0] not in without and not is_foreign(op):
            duel.step(op)
    duel.compare()


CASES = int(os.environ.get("UNIONFS_ORACLE_CASES", "24"))


@pytest.mark.slow
@pytest.mark.overlay
@pytest.mark.timeout(120 if CASES <= 24 else 0)
def test_back_and_forth(scratch: Path) -> None:
    setting = Setting(scratch, kind=Turns, steps=90, remount_every=15, skips=is_foreign)
    with quiet_kernel():
        search(lambda seed: run_seed(setting, seed), CASES)


def without_links(stack: list[Spec]) -> list[Spec]:
    return [{path: entry for path, entry in spec.items() if not isinstance(entry, Link)} for spec in stack]


class Frozen(Turns):
    """Uppers become lowers by hand."""

    def unkept(self, seen: Seen) -> bool:
        return True  # A copy in a lower is an object of its own.


def over_kernel_layers(top: Path, seed: int) -> None:
    rng = Random(seed)
    arena = Frozen(top, Frozen.prepared(without_links(random_stack(rng, 3))))
    duel = arena.duel()
    operations = Operations(rng, duel.reference, remounts=False)
    try:
        for kernel in (False, True, False):
            arena.kernel = not kernel  # the turn is the other's
            duel.step(("remount",))
            # Hard links that were copied up live in the index, which is no part of a layer.
            play(duel, operations, 25, without=("link",))
            arena.freezes = True
        for _ in range(4):
            duel.step(("remount",))
            play(duel, operations, 15)
    finally:
        duel.close()
        arena.close()


class Shown(Turns):
    """After our operations the kernel shows the tree, and we go on."""

    loose = frozenset()

    def subject(self) -> Surface:
        super().subject()
        if not self.kernel:
            return TreeSurface(self.tree())
        shown = differences(snapshot(HostSurface(f"{self.top}/plain")), snapshot(HostSurface(f"{self.top}/merged")))
        assert shown == [], "the kernel shows something else"
        self.unmount_kernel()
        self.kernel = False
        return TreeSurface(self.tree())

    def unkept(self, seen: Seen) -> bool:
        return False


@pytest.mark.slow
@pytest.mark.overlay
@pytest.mark.timeout(120 if CASES <= 24 else 0)
def test_what_we_write_the_kernel_shows(scratch: Path) -> None:
    setting = Setting(scratch, kind=Shown, steps=60, remount_every=20, skips=is_foreign)
    with quiet_kernel():
        search(lambda seed: run_seed(setting, seed), CASES)


@pytest.mark.slow
@pytest.mark.overlay
@pytest.mark.timeout(120 if CASES <= 24 else 0)
def test_layers_that_the_kernel_made(scratch: Path) -> None:
    with quiet_kernel():
        search(lambda seed: over_kernel_layers(scratch / "arena", seed), CASES // 2)


# In a user namespace: userxattr, without redirects, metacopies and index, which the kernel does not offer there


class UserTurns(Turns):
    modes = "userxattr"

    def __init__(self, top: Path, stack: list[Spec], *, root: bool) -> None:
        super().__init__(top, stack, root=root, redirect_dir=False, metacopy=False)

    @staticmethod
    def prepared(stack: list[Spec]) -> list[Spec]:
        return Turns.prepared(without_links(stack))

    def unkept(self, seen: Seen) -> bool:
        return True  # Only the machine's root may ask which object the kernel has copied up.


def in_namespace(top: str, cases: str) -> None:
    """What runs there."""
    plain = HostSurface(f"{top}/arena/plain")

    def skips(op: Op) -> bool:
        # A directory that merges can't be renamed without a redirect, and the kernel tears copied-up hard links apart.
        moves_directory = op[0] == "rename" and any(os.path.isdir(plain.at(path)) for path in op[1:3])
        return op[0] == "link" or moves_directory or is_foreign(op)

    setting = Setting(Path(top), root=False, kind=UserTurns, steps=60, remount_every=15, skips=skips)
    search(lambda seed: run_seed(setting, seed), int(cases))


@pytest.mark.slow
@pytest.mark.userns
@pytest.mark.overlay
@pytest.mark.timeout(120 if CASES <= 24 else 0)
def test_back_and_forth_in_a_user_namespace(as_user: AsUser) -> None:
    code = "import sys; from tests.test_union_kernel import in_namespace; in_namespace(*sys.argv[1:])"
    command = [*USER_NAMESPACE, sys.executable, "-c", code]
    as_user.run([*command, str(as_user.scratch), str(CASES)], timeout=100 + 2 * CASES)

"""A copy-on-write view of the host's own root, for one command."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

from unionfs.layer.memory import MemoryLayer
from unionfs.mount.engine import AUTO, MountOptions, mount_fastest
from unionfs.run.process import Command, Ended, real_directories
from unionfs.union.diff import Change
from unionfs.union.fs import UnionFS


def open_view(
    upper: str | None,
    work: str | None,
    hide: Iterable[str],
    *,
    above: Sequence[str] = (),
    user_namespace: bool = False,
) -> UnionFS:
    """The host's root with its other mounts as the lowest layer, ``above`` on it (the topmost first), and an upper
    or none.

    What the running system keeps in ``REAL`` is not part of it: there the union has empty directories, to mount on.
    ``hide``: where uppers and mountpoints are, so that the view does not hold itself. Nothing is flushed to disk:
    ``os.sync`` before the upper is relied on. Raises ``LayerError`` and ``UpperBusyError``.
    """
    real = real_directories()
    mountpoints = MemoryLayer.from_dict({path[1:]: {} for path in real}, label="mountpoints", read_only=True)
    return UnionFS(
        lower=[*above, mountpoints, "/"],
        upper=upper,
        work=work,
        hide=[*hide, *real],
        volatile=True,
        unmapped_as_root=user_namespace,
    )


def changes(fs: UnionFS, started_ns: int) -> list[Change]:
    """What changed in the view since ``started_ns``, in nanoseconds by the clock of file systems.

    A directory that differs in its time alone, while the host's has changed too, is not among it: something came or
    went on the host meanwhile.
    """
    return [change for change in fs.diff() if not _is_the_hosts(change, started_ns)]


def _is_the_hosts(change: Change, started_ns: int) -> bool:
    st = change.before
    return change.what == {"times"} and st is not None and stat.S_ISDIR(st.st_mode) and st.st_ctime_ns > started_ns


@contextlib.contextmanager
def waiting(argv: Sequence[str], *, fds: Mapping[int, int] | None = None) -> Iterator[Command]:
    """A command, forked before there are threads, that ends with the block if nobody started it."""
    command = Command(argv, fds=fds)
    try:
        yield command
    finally:
        command.abandon()


def run_in_view(fs: UnionFS, command: Command, mountpoint: str, engine: str = AUTO) -> Ended:
    """Mount the view, run the command in it, and unmount when all its processes have ended.

    By the fastest engine that can show it: not overlayfs, as long as ``open_view`` hides paths and has the host's other
    mounts in its lowest layer (``mount.kernelstack``). To be called where ``supervise`` runs its body. Raises
    ``MountError``.
    """
    # A second of trust in attributes makes a package manager three times as fast with fusepy; for that long the link
    # count of one name may not show what was done by another (libfuse 2 knows no inodes).
    options = MountOptions(sole=True, source="unionfs-try", lax=True)
    with mount_fastest(fs, mountpoint, options, engine):
        command.start(mountpoint, real_directories())
        return command.wait()

"""Namespaces and the mounts in them: ``unshare(2)``, ``mount(2)``, ``pivot_root(2)``; ``prctl(2)`` for supervisors.

Python's ``os`` has ``unshare`` from 3.12 on only, the others not at all.
"""

from __future__ import annotations

import ctypes
import errno
import os

from unionfs._sys.libc import check, function

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_unshare = function("unshare", ctypes.c_int)
_mount = function("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_pivot_root = function("pivot_root", ctypes.c_char_p, ctypes.c_char_p)
_prctl = function("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def unshare(flags: int) -> None:
    """Leave the namespaces that ``CLONE_*`` flags name, for new ones.

    Raises ``OSError``: ``EPERM`` (not permitted), ``ENOSPC`` or ``EUSERS`` (a limit), ``EINVAL`` (several threads).
    """
    check(_unshare(flags))


def mount(source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """``mount(2)``. Raises ``OSError`` that names the target."""
    names = [None if text is None else os.fsencode(text) for text in (source, target, fstype, data)]
    check(_mount(names[0], names[1], names[2], flags, names[3]), os.fsencode(target))


def pivot_root(new_root: str, put_old: str) -> None:
    """Make the mount at ``new_root`` the root of this mount namespace and move the old root to ``put_old``.

    Both may be ``"."``; then the old root lies on top of the new one, to be detached (pivot_root(2)).
    Raises ``OSError``: ``EINVAL`` where the present root is no mount point, as in a chroot or an initramfs.
    """
    if _pivot_root is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), new_root)
    check(_pivot_root(os.fsencode(new_root), os.fsencode(put_old)), os.fsencode(new_root))


def signal_at_parents_end(signum: int) -> None:
    """Have this process sent ``signum`` when the thread that forked it ends (``PR_SET_PDEATHSIG``)."""
    check(_prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0))


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans (``PR_SET_CHILD_SUBREAPER``)."""
    check(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))

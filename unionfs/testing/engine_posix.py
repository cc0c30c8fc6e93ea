"""POSIX to the letter, as tests that a mount engine is plugged into.

    from unionfs.testing.engine_posix import PosixSuite

    class TestMyEngine(PosixSuite):
        def mount(self, fs, mountpoint):
            return unionfs.mount.mount(fs, mountpoint, engine="mine")

Where POSIX leaves a choice, the tests ask for what Linux and its overlayfs do. ``engine_posix_base`` tells what each
test gets. One mount serves all tests of the class.
"""

from __future__ import annotations

from unionfs.testing.engine_posix_access import AccessPart
from unionfs.testing.engine_posix_attributes import AttributesPart
from unionfs.testing.engine_posix_data import DataPart
from unionfs.testing.engine_posix_listing import ListingPart
from unionfs.testing.engine_posix_locks import LocksPart
from unionfs.testing.engine_posix_modes import ModesPart
from unionfs.testing.engine_posix_names import NamesPart
from unionfs.testing.engine_posix_open import OpenPart
from unionfs.testing.engine_posix_rename import RenamePart
from unionfs.testing.engine_posix_times import TimesPart


class PosixSuite(
    AccessPart, AttributesPart, DataPart, ListingPart, LocksPart, ModesPart, NamesPart, OpenPart, RenamePart, TimesPart
):
    """All of it. ``mount`` is the factory; ``base`` may choose where the layers live."""

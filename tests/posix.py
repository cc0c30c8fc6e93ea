"""Where the POSIX suite of an engine has its layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support
from unionfs.testing.engine_posix import PosixSuite


class PosixOnScratch(PosixSuite):
    """The suite in a directory that goes when the class is done."""

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls) -> Iterator[Path]:
        directory = support.make_scratch()
        yield directory
        support.remove_scratch(directory)

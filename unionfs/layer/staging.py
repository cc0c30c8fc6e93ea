"""Staged files by name: the way that every writable layer can go. A file system with ``O_TMPFILE`` has a shorter
one."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Protocol

from unionfs._sys.rename import RENAME_NOREPLACE
from unionfs.layer.protocol import LayerDir, LayerFile, Marks

if TYPE_CHECKING:
    from unionfs.layer.protocol import WritableLayer


class _Nameable(Protocol):
    """A file that knows its name in staging."""

    staged: bytes | None


class StagedByName:
    """``stage``, ``dress``, ``place`` and ``discard`` of ``WritableLayer``, with a name in ``staging``."""

    def stage(self: WritableLayer, like: LayerDir | None = None, mode: int = 0o600) -> LayerFile:  # noqa: ARG002
        temp = self.temp_name()
        file = self.create(self.staging, temp, mode)
        _named(file).staged = temp
        return file

    def dress(self: WritableLayer, file: LayerFile, st: os.stat_result, marks: Marks) -> None:
        temp = _named(file).staged
        assert temp is not None
        file.setattr(uid=st.st_uid, gid=st.st_gid)
        file.setattr(mode=stat.S_IMODE(st.st_mode))
        self.set_marks(self.staging, temp, marks)

    def place(self: WritableLayer, file: LayerFile, d: LayerDir, name: bytes) -> None:
        temp = _named(file).staged
        assert temp is not None
        self.rename(self.staging, temp, d, name, RENAME_NOREPLACE)
        _named(file).staged = None

    def discard(self: WritableLayer, file: LayerFile) -> None:
        temp = _named(file).staged
        if temp is not None:
            self.unlink(self.staging, temp)
            _named(file).staged = None
        file.close()


def _named(file: LayerFile) -> _Nameable:
    return file  # type: ignore[return-value]

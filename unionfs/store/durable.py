"""Files that are either there whole or not there: staged, flushed, renamed, the directory flushed."""

from __future__ import annotations

import contextlib
import os
import stat

from unionfs._sys.syncfs import syncfs
from unionfs.store.steps import step

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_directory(path: str, mode: int = 0o700) -> None:
    """A new directory; not flushed. ``FileExistsError``."""
    step(f"mkdir {os.path.basename(path)}")
    os.mkdir(path, mode)


def put_file(path: str, data: bytes, tmp: str) -> None:
    """A file with these bytes, whole and flushed, in place of any other; it is made in the directory ``tmp``."""
    staged = os.path.join(tmp, os.urandom(8).hex())
    try:
        write_file(staged, data)
        move(staged, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)
        raise


def flush_directory(path: str) -> None:
    """The names in a directory to disk (fsync(2))."""
    step(f"fsync {os.path.basename(path)}")
    fd = os.open(path, _OPEN_DIR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_path(path: str, top: str) -> None:
    """``path`` and all directories above it to disk, up to ``top``: what was made there is found after a power loss."""
    flush_directory(path)
    while path != top:
        path = os.path.dirname(path)
        flush_directory(path)


def flush_tree(path: str) -> None:
    """Everything below ``path`` to disk: its file system's all (syncfs(2)), since a layer is many files."""
    step(f"syncfs {os.path.basename(path)}")
    fd = os.open(path, _OPEN_DIR)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def write_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """A new file with these bytes, flushed; its name is not. ``FileExistsError``."""
    step(f"write {os.path.basename(path)}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        step(f"fsync {os.path.basename(path)}")
        os.fsync(fd)


def move(path: str, path2: str) -> None:
    """Rename out of where leftovers are swept, so that the old name need not be flushed; the new one is."""
    step(f"rename {os.path.basename(path)}")
    os.rename(path, path2)
    flush_directory(os.path.dirname(path2))


def remove_tree(path: str) -> None:
    """``path`` and all below it go, whatever its permissions and its depth; nothing happens if it is not there.

    Directories in it are moved beside it on the way: ``path`` stands where leftovers are swept.
    """
    step(f"remove {os.path.basename(path)}")
    beside = os.path.dirname(path)
    todo = [path]
    while todo:
        at = todo.pop()
        try:
            entries = _listed(at)
        except NotADirectoryError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(at)
            continue
        except FileNotFoundError:
            continue
        for name in entries:
            inner = os.path.join(at, name)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.lstat(inner).st_mode):
                    out = os.path.join(beside, os.urandom(8).hex())
                    with contextlib.suppress(PermissionError):
                        os.chmod(inner, 0o700)  # Its own ".." changes.
                    os.rename(inner, out)
                    todo.append(out)
                else:
                    os.unlink(inner)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(at)


def _listed(path: str) -> list[str]:
    """The names in a directory that may deny its owner to look, and to change it."""
    if stat.S_ISLNK(os.lstat(path).st_mode):
        raise NotADirectoryError(path)
    if os.geteuid() != 0:
        with contextlib.suppress(PermissionError):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.chmod(path, 0o700)
    return os.listdir(path)

"""``UnionPath``: what ``pathlib.Path`` is, for paths of a union."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import PurePath, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self, TypeAlias

from unionfs.union.patterns import select

if TYPE_CHECKING:
    from unionfs.union.fs import UnionFS


# pathlib.Path.resolve, until Python 3.13 let a loop be.
_LOOPS_ARE_RUNTIME_ERRORS = sys.version_info < (3, 13)

Segment: TypeAlias = "str | os.PathLike[str]"


class UnionPath(PurePosixPath):
    """A path of one union, with the methods of ``pathlib.Path``; made by ``UnionFS.path``.

        hosts = fs.path("/etc") / "hosts"
        hosts.read_text()
        [path.name for path in hosts.parent.glob("*.conf")]

    A relative path starts at the union's root. Two are equal if they are the same path of the same union. It is no path
    of the host: ``os.fspath`` and the builtin ``open`` refuse it with ``TypeError``. It can't be pickled.
    """

    # Versions of Python differ in how a PurePath makes another one. So whatever makes one is done here, by way of
    # a plain PurePosixPath, and only what looks at a path is inherited.

    __slots__ = ("fs",)

    fs: UnionFS

    def __new__(cls, fs: UnionFS, *segments: Segment) -> Self:
        if sys.version_info >= (3, 12):
            self = super().__new__(cls)
        else:
            self = super().__new__(cls, *(_text(fs, segment) for segment in segments))
        self.fs = fs
        return self

    def __init__(self, fs: UnionFS, *segments: Segment) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(*(_text(fs, segment) for segment in segments))
        else:
            super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PurePath):
            return NotImplemented
        return isinstance(other, UnionPath) and self.fs is other.fs and str(self) == str(other)

    def __hash__(self) -> int:
        return hash((id(self.fs), str(self)))

    def __fspath__(self) -> NoReturn:
        raise TypeError(f"{self!r} is a path of a union, not of the host: use its own methods, or those of its fs")

    def __bytes__(self) -> bytes:
        return os.fsencode(str(self))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a path of a union can't be pickled, since the union can't")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def of(self, fs: object) -> str:
        """The path as a path of ``fs``. ``ValueError`` if it belongs to another union."""
        if self.fs is not fs:
            raise ValueError(f"{self!r} is a path of another union")
        return str(self)

    # Other paths

    def with_segments(self, *segments: Segment) -> Self:
        """A path of the same union."""
        return type(self)(self.fs, *segments)

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(str(self))

    def _bare(self, other: Segment) -> str:
        return _text(self.fs, other)

    def joinpath(self, *segments: Segment) -> Self:
        return self.with_segments(self._pure.joinpath(*map(self._bare, segments)))

    def __truediv__(self, key: Segment) -> Self:
        if not isinstance(key, str | os.PathLike):
            return NotImplemented
        return self.joinpath(key)

    def __rtruediv__(self, key: Segment) -> Self:
        if not isinstance(key, str | os.PathLike):
            return NotImplemented
        return self.with_segments(key, self)

    @property
    def parent(self) -> Self:
        return self.with_segments(self._pure.parent)

    @property
    def parents(self) -> tuple[Self, ...]:
        return tuple(map(self.with_segments, self._pure.parents))

    def with_name(self, name: str) -> Self:
        return self.with_segments(self._pure.with_name(name))

    def with_stem(self, stem: str) -> Self:
        return self.with_segments(self._pure.with_stem(stem))

    def with_suffix(self, suffix: str) -> Self:
        return self.with_segments(self._pure.with_suffix(suffix))

    def relative_to(self, other: Segment, /, *more: Segment, **walk_up: Any) -> Self:  # type: ignore[override]
        base = PurePosixPath(self._bare(other), *map(self._bare, more))
        return self.with_segments(self._pure.relative_to(base, **walk_up))

    def is_relative_to(self, other: Segment, /, *more: Segment) -> bool:
        return self._pure.is_relative_to(PurePosixPath(self._bare(other), *map(self._bare, more)))

    def match(self, path_pattern: str, **case_sensitive: Any) -> bool:
        return self._pure.match(self._bare(path_pattern), **case_sensitive)

    def full_match(self, pattern: str, **case_sensitive: Any) -> bool:
        """As ``PurePath.full_match``, from Python 3.13."""
        matches: bool = self._pure.full_match(self._bare(pattern), **case_sensitive)  # type: ignore[attr-defined]
        return matches

    def as_uri(self) -> NoReturn:
        raise NotImplementedError("a path of a union is no file URI")

    def absolute(self) -> Self:
        """From the root; nothing is resolved."""
        return self.with_segments("/", self)

    def resolve(self, strict: bool = False) -> Self:
        """Without symbolic links, ``.`` and ``..``. ``strict``: ``FileNotFoundError`` if there is no such path."""
        try:
            found = self.with_segments(self.fs.realpath(str(self), strict=strict))
        except OSError as error:
            if error.errno == errno.ELOOP and _LOOPS_ARE_RUNTIME_ERRORS:
                raise _loop(self) from None
            raise
        if not strict and _LOOPS_ARE_RUNTIME_ERRORS:
            try:
                found.stat()
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise _loop(found) from None
        return found

    def readlink(self) -> Self:
        """Where the symbolic link leads."""
        return self.with_segments(self.fs.readlink(str(self)))

    # What is there

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return self.fs.stat(str(self), follow_symlinks=follow_symlinks)

    def lstat(self) -> os.stat_result:
        return self.fs.lstat(str(self))

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self.fs.exists(str(self), follow_symlinks=follow_symlinks)

    def _mode(self, follow: bool = True) -> int:
        try:
            return self.stat(follow_symlinks=follow).st_mode
        except (OSError, ValueError):
            return 0

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISDIR(self._mode(follow_symlinks))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISREG(self._mode(follow_symlinks))

    def is_symlink(self) -> bool:
        return self.fs.islink(str(self))

    def is_mount(self) -> bool:
        """Whether it is the root: nothing is mounted inside a union."""
        return self.is_dir() and self.resolve() == self.with_segments("/")

    def is_junction(self) -> bool:
        return False

    def is_socket(self) -> bool:
        return stat.S_ISSOCK(self._mode())

    def is_fifo(self) -> bool:
        return stat.S_ISFIFO(self._mode())

    def is_block_device(self) -> bool:
        return stat.S_ISBLK(self._mode())

    def is_char_device(self) -> bool:
        return stat.S_ISCHR(self._mode())

    def samefile(self, other_path: Segment) -> bool:
        return self.fs.samefile(str(self), self._bare(other_path))

    def owner(self, *, follow_symlinks: bool = True) -> str:
        """The name that the host gives to the owner. ``KeyError`` if it has none."""
        import pwd

        return pwd.getpwuid(self.stat(follow_symlinks=follow_symlinks).st_uid).pw_name

    def group(self, *, follow_symlinks: bool = True) -> str:
        """The name that the host gives to the group. ``KeyError`` if it has none."""
        import grp

        return grp.getgrgid(self.stat(follow_symlinks=follow_symlinks).st_gid).gr_name

    # Listings

    def iterdir(self) -> Iterator[Self]:
        return (self / name for name in self.fs.listdir(str(self)))

    def glob(
        self, pattern: str, *, case_sensitive: bool | None = None, recurse_symlinks: bool = False
    ) -> Iterator[Self]:
        """As ``pathlib.Path.glob`` of the Python that runs."""
        return (self / found for found in select(self.fs, str(self), pattern, case_sensitive, recurse_symlinks))

    def rglob(
        self, pattern: str, *, case_sensitive: bool | None = None, recurse_symlinks: bool = False
    ) -> Iterator[Self]:
        """As ``pathlib.Path.rglob``."""
        if pattern.startswith("/"):
            raise NotImplementedError("Non-relative patterns are unsupported")
        if not pattern and sys.version_info < (3, 13):
            pattern = "."
        return self.glob("**/" + pattern, case_sensitive=case_sensitive, recurse_symlinks=recurse_symlinks)

    def walk(
        self,
        top_down: bool = True,
        on_error: Callable[[OSError], object] | None = None,
        follow_symlinks: bool = False,
    ) -> Iterator[tuple[Self, list[str], list[str]]]:
        """As ``pathlib.Path.walk``: unlike ``os.walk``, it counts links to directories as files unless it follows."""
        todo: list[Any] = [self]
        while todo:
            at = todo.pop()
            if isinstance(at, tuple):
                yield at
                continue
            dirs: list[str] = []
            others: list[str] = []
            try:
                with self.fs.scandir(str(at)) as entries:
                    for entry in entries:
                        (dirs if _leads_down(entry, follow_symlinks) else others).append(entry.name)
            except OSError as error:
                if on_error is not None:
                    on_error(error)
                continue
            if top_down:
                yield at, dirs, others
            else:
                todo.append((at, dirs, others))
            todo += [at / name for name in reversed(dirs)]

    # Files

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        if "b" not in mode:
            encoding = io.text_encoding(encoding)
        return self.fs.open(str(self), mode, buffering, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        return self.fs.read_bytes(str(self))

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        with self.open("r", -1, io.text_encoding(encoding), errors, newline) as file:
            return file.read()  # type: ignore[no-any-return]

    def write_bytes(self, data: bytes | bytearray | memoryview) -> int:
        return self.fs.write_bytes(str(self), data)

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        if not isinstance(data, str):
            raise TypeError(f"data must be str, not {type(data).__name__}")
        return self.fs.write_text(str(self), data, io.text_encoding(encoding), errors, newline)

    # Changes

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        self.fs.touch(str(self), mode, exist_ok)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        try:
            self.fs.mkdir(str(self), mode)
        except FileNotFoundError:
            if not parents or self.parent == self:
                raise
            self.parent.mkdir(parents=True, exist_ok=True)
            self.mkdir(mode, exist_ok=exist_ok)
        except OSError:
            if not exist_ok or not self.is_dir():
                raise

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        self.fs.chmod(str(self), mode, follow_symlinks=follow_symlinks)

    def lchmod(self, mode: int) -> None:
        self.fs.lchmod(str(self), mode)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.fs.unlink(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        self.fs.rmdir(str(self))

    def rename(self, target: Segment) -> Self:
        self.fs.rename(str(self), self._bare(target))
        return self.with_segments(target)

    def replace(self, target: Segment) -> Self:
        self.fs.replace(str(self), self._bare(target))
        return self.with_segments(target)

    def symlink_to(self, target: Segment, target_is_directory: bool = False) -> None:
        self.fs.symlink(self._bare(target), str(self), target_is_directory)

    def hardlink_to(self, target: Segment) -> None:
        self.fs.link(self._bare(target), str(self))


def _loop(path: UnionPath) -> RuntimeError:
    return RuntimeError(f"Symlink loop from {str(path)!r}")


def _text(fs: UnionFS, path: Segment) -> str:
    return path.of(fs) if isinstance(path, UnionPath) else os.fspath(path)


def _leads_down(entry: Any, follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)  # type: ignore[no-any-return]
    except OSError:
        return False

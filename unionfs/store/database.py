"""The metadata: one SQLite database in WAL mode, many processes.

A change is one transaction (``BEGIN IMMEDIATE``), flushed when it is reported as done (``synchronous=FULL``).

No connection lives through a fork: SQLite remembers locks for a whole process, and a child that inherits the memory has
not got the locks (sqlite.org, "How To Corrupt An SQLite Database File", 2.6). The log would be taken away under it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from unionfs.errors import StoreError
from unionfs.store.steps import step

VERSION = 1
_APPLICATION = 0x756E6673  # "unfs": file(1) and we know the database by it
_PATIENCE = 60.0  # seconds to wait for another process's transaction

_SCHEMA = """
CREATE TABLE layers (
    id TEXT PRIMARY KEY,
    parent TEXT REFERENCES layers (id),
    depth INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'ready')),
    container TEXT,
    diff_id TEXT,
    chain_id TEXT UNIQUE,
    same_as TEXT REFERENCES layers (id),
    tar_size INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER,
    size INTEGER,
    created TEXT NOT NULL DEFAULT '',
    author TEXT NOT NULL DEFAULT '',
    comment TEXT NOT NULL DEFAULT '',
    created_by TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX layers_by_parent ON layers (parent);
CREATE INDEX layers_by_same ON layers (same_as);
CREATE INDEX layers_by_state ON layers (state);
CREATE TABLE images (
    id TEXT PRIMARY KEY,
    manifest TEXT NOT NULL,
    layer TEXT REFERENCES layers (id),
    parent TEXT,
    container TEXT,
    made REAL NOT NULL
) STRICT;
CREATE INDEX images_by_layer ON images (layer);
CREATE TABLE tags (
    name TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images (id)
) STRICT;
CREATE INDEX tags_by_image ON tags (image);
CREATE TABLE containers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    image TEXT REFERENCES images (id),
    layer TEXT REFERENCES layers (id),
    upper TEXT NOT NULL,
    made REAL NOT NULL,
    command TEXT NOT NULL
) STRICT;
CREATE INDEX containers_by_image ON containers (image);
CREATE INDEX containers_by_layer ON containers (layer);
CREATE TABLE points (
    container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    layer TEXT NOT NULL REFERENCES layers (id),
    at REAL NOT NULL,
    why TEXT NOT NULL
) STRICT;
CREATE INDEX points_by_container ON points (container);
CREATE INDEX points_by_layer ON points (layer);
CREATE TABLE leases (
    token TEXT NOT NULL,
    layer TEXT NOT NULL REFERENCES layers (id)
) STRICT;
CREATE INDEX leases_by_layer ON leases (layer);
"""


class Database:
    """One store's metadata. Threads may share it. Raises ``StoreError`` for a database that can't be used."""

    def __init__(self, path: str, may_begin: Callable[[], bool]) -> None:
        """``may_begin``: whether a database may be made where there is none."""
        self.path = path
        self._may_begin = may_begin
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._depth = 0
        _OPEN.add(self)
        with self._lock, self.explained():
            self._open()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.OperationalError as error:
            text = str(error)
            if self._says_full(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path) from error
            if "locked" in text or "busy" in text:
                raise StoreError(
                    f"{self.path}: another process has been changing the store for {_PATIENCE:.0f} s"
                ) from error
            raise StoreError(f"{self.path}: {text}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path}: the store's database is damaged ({error}); see `unionfs fsck`") from error

    def _says_full(self, error: sqlite3.OperationalError) -> bool:
        """Whether a full disk is the reason. SQLite says so of its log and its database, but not of its other files."""
        kind = error.sqlite_errorcode & 0xFF
        if kind == sqlite3.SQLITE_FULL:
            return True
        if kind not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            return False
        with contextlib.suppress(OSError):
            return os.statvfs(os.path.dirname(self.path)).f_bavail == 0
        return False

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            # A store that lost its database must not get an empty one: all that it keeps would look left over.
            if not self._begun() and not self._may_begin() and not self._begun():
                raise StoreError(f"{self.path}: the store's database is missing or empty; see `unionfs fsck`")
            connection = sqlite3.connect(
                self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _begun(self) -> bool:
        try:
            return os.stat(self.path).st_size > 0
        except FileNotFoundError:
            return False

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA trusted_schema = OFF")
        if self._version(connection) == VERSION:
            return
        connection.execute("PRAGMA journal_mode = WAL")
        step("begin schema")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self._version(connection) != VERSION:  # Nobody was faster.
                for statement in _SCHEMA.split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
            step("commit schema")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _version(self, connection: sqlite3.Connection) -> int:
        application = int(connection.execute("PRAGMA application_id").fetchone()[0])
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if application not in (0, _APPLICATION) or (application == 0 and version):
            raise StoreError(f"{self.path}: a database of another program stands here")
        if application == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(f"{self.path}: a database of another program stands here")
        if version > VERSION:
            raise StoreError(
                f"{self.path}: the store was made by a newer unionfs (format {version}, this one knows {VERSION})"
            )
        return version

    @contextlib.contextmanager
    def transaction(self, name: str) -> Iterator[None]:
        """All changes of the block, or none; on disk at its end. One within another is a part of it."""
        with self._lock, self.explained():
            connection = self._open()
            if self._depth:
                yield
                return
            step(f"begin {name}")
            connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                step(f"commit {name}")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1
            step(f"after {name}")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Several questions to one state."""
        with self._lock, self.explained():
            connection = self._open()
            if self._depth:
                yield
                return
            connection.execute("BEGIN")
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if connection.in_transaction:
                    connection.execute("COMMIT")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """One statement, in a transaction; the number of rows that it changed."""
        with self._lock, self.explained():
            assert self._depth, "a change outside a transaction"
            return self._open().execute(statement, values).rowcount

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a question."""
        with self._lock, self.explained():
            return self._open().execute(statement, values).fetchall()

    def row(self, statement: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """Its first row."""
        with self._lock, self.explained():
            found: tuple[Any, ...] | None = self._open().execute(statement, values).fetchone()
            return found

    def damage(self) -> list[str]:
        """What SQLite itself finds wrong (``PRAGMA integrity_check``, ``foreign_key_check``)."""
        found = [str(row[0]) for row in self.rows("PRAGMA integrity_check(20)") if row[0] != "ok"]
        for table, _, parent, _ in self.rows("PRAGMA foreign_key_check"):
            found.append(f"a row of {table} points at one of {parent} that is not there")
        return found

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def before_fork(self) -> None:
        """Let go of the database; the next question opens it again."""
        self._lock.acquire()
        if not self._depth:
            self.close()

    def after_fork(self) -> None:
        """In the parent and in the child."""
        self._lock.release()


_OPEN: weakref.WeakSet[Database] = weakref.WeakSet()
_HELD: list[Database] = []


def _before_fork() -> None:
    _FORKING.acquire()
    for database in list(_OPEN):
        database.before_fork()
        _HELD.append(database)


def _after_fork() -> None:
    while _HELD:
        _HELD.pop().after_fork()
    _FORKING.release()


_FORKING = threading.Lock()
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)

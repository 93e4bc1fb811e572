"""SQLite files under STATE_DIR that all processes of a worker share: safe under concurrent writers and a kill."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger(__name__)


def private_dir(path: Path) -> Path:
    """Make `path` with its parents, readable by the owner alone, and return it.

    One that somebody else owns and has opened to us, as the root of a volume, is used as it is: what is made in it is
    ours alone all the same. Raises OSError where it cannot be made or written to.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        path.chmod(0o700)
    except PermissionError:
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise
    return path


def check_own(folder: Path) -> None:
    """Raise PermissionError where somebody else could have put things into `folder`, and OSError where it is not there.

    For a folder in a place where everybody may make one first.
    """
    link, found = folder.lstat(), folder.stat()
    if {link.st_uid, found.st_uid} != {os.geteuid()} or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone")


def open_database(path: Path, schema: str, *, timeout: float = 2.0) -> sqlite3.Connection:
    """Open a WAL database readable by its owner alone, with `schema` (idempotent SQL) applied.

    `timeout` is how long a writer waits for another, in seconds. The connection is in autocommit mode: open
    transactions with `BEGIN IMMEDIATE`. It may be used from several threads, one at a time.
    A damaged file is moved aside (`<name>.damaged`) and a new one begun: what it held can be fetched again or was
    already lost, and a worker that cannot start helps nobody.
    """
    return _opened(path, schema, timeout)[0]


class StateDatabase:
    """A file of `open_database`: opened at first use, anew when replaced or `failed`. One thread at a time."""

    def __init__(self, path: Path, schema: str, *, timeout: float = 2.0) -> None:
        self._path = path
        self._schema = schema
        self._timeout = timeout
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def connection(self) -> sqlite3.Connection:
        """The open file. Raises sqlite3.Error and OSError."""
        if self._connection is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    return self._connection
            self.close()
        self._connection, self._inode = _opened(self._path, self._schema, self._timeout)
        return self._connection

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` on the open file, and on a new one where this one proves damaged. Raises sqlite3.Error and OSError."""
        try:
            return work(self.connection())
        except (sqlite3.Error, OSError) as error:
            if not self.failed(error):
                raise
        return work(self.connection())

    def failed(self, error: Exception) -> bool:
        """Close after `error`, so that the next use opens anew. Whether that will be a new file, as this one was
        damaged: damage beyond the schema is met only by who reads there."""
        was_open = self._connection is not None
        self.close()
        if not (was_open and is_damage(error)):
            return False
        try:
            _set_aside(self._path, self._inode)
        except OSError as refused:
            _log.error("a damaged file cannot be moved aside", file=self._path.name, error=str(refused))
            return False
        return True

    def close(self) -> None:
        """Close; idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def remove_damaged(path: Path, *, before: float) -> int:
    """Delete what was moved aside of the database `path` and last written before this moment, in Unix seconds; how
    many files went. Raises OSError."""
    removed = 0
    for part in path.parent.glob(f"{path.name}*.damaged"):
        with contextlib.suppress(FileNotFoundError):  # another worker tidies as well
            if part.stat().st_mtime < before:
                part.unlink()
                removed += 1
    return removed


def is_damage(error: BaseException | None) -> bool:
    """Whether `error` is SQLite's for a file that itself is broken, rather than locked, full or out of reach."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _opened(path: Path, schema: str, timeout: float) -> tuple[sqlite3.Connection, int]:
    private_dir(path.parent)
    with _locked(path.parent, fcntl.LOCK_SH):
        try:
            return _open(path, schema, timeout), path.stat().st_ino
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            inode = path.stat().st_ino
    _set_aside(path, inode)
    with _locked(path.parent, fcntl.LOCK_SH):
        return _open(path, schema, timeout), path.stat().st_ino


def _set_aside(path: Path, inode: int) -> None:
    """Move the damaged database `inode`, closed by the caller, aside, unless another process already has."""
    with _locked(path.parent, fcntl.LOCK_EX):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino != inode:
                return
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            with contextlib.suppress(FileNotFoundError):
                part.replace(path.with_name(f"{path.name}{suffix}.damaged"))
    _log.error("a damaged file was moved aside and a new one begun", file=path.name)


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """While anybody opens a file of `folder` (LOCK_SH), nobody moves one aside (LOCK_EX)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system that cannot lock folders: as good as it goes
            fcntl.flock(descriptor, how)
        yield
    finally:
        with contextlib.suppress(OSError):  # by hand: a process forked meanwhile holds the descriptor, too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _open(path: Path, schema: str, timeout: float) -> sqlite3.Connection:
    if not path.exists():
        _create(path)
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA secure_delete=ON")  # what children said is overwritten when it goes
        connection.executescript(schema)
    except BaseException:  # whatever happened, the half-opened connection must close before the error goes on
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    # Made aside and linked into place: two that turn one new file to WAL at once are told "locked" without the wait
    # that SQLite keeps elsewhere. The file itself is never opened by hand: closing it would end SQLite's own locks.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as aside:
        new = Path(aside) / path.name
        with contextlib.closing(sqlite3.connect(new)) as connection:
            new.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
        with contextlib.suppress(FileExistsError):  # another was first
            path.hardlink_to(new)

"""SQLite files under STATE_DIR that all processes of a worker share: safe under concurrent writers and a kill."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path


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


def open_database(path: Path, schema: str, *, timeout: float = 2.0) -> sqlite3.Connection:
    """Open a WAL database readable by its owner alone, with `schema` (idempotent SQL) applied.

    `timeout` is how long a writer waits for another, in seconds. The connection is in autocommit mode: open
    transactions with `BEGIN IMMEDIATE`. It may be used from several threads, one at a time.
    A damaged file is moved aside (`<name>.damaged`) and a new one begun: what it held can be fetched again or was
    already lost, and a worker that cannot start helps nobody.
    """
    private_dir(path.parent)
    try:
        return _open(path, schema, timeout)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        set_aside(path)
        return _open(path, schema, timeout)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, rather than locked, full or out of reach."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def set_aside(path: Path) -> None:
    """Move a damaged database, closed by the caller, to `<name>.damaged`, so that a new one can begin."""
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):  # another process may be moving them as well
            part.replace(path.with_name(f"{path.name}{suffix}.damaged"))


def _open(path: Path, schema: str, timeout: float) -> sqlite3.Connection:
    if not path.exists():
        _create(path)
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
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

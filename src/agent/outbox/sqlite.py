"""The outbox as one SQLite file that every process of a worker shares."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from agent.errors import OutboxError
from agent.outbox.items import CLOCK_SLACK_S, DEAD_KEPT, DELIVERED_KEPT_S, Lane, OutboxItem, OutboxStats
from agent.outbox.reserve import DiskReserve
from agent.state import StateDatabase, is_damage

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS items(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, lane TEXT NOT NULL,
    body TEXT NOT NULL, created_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS items_lane ON items(kind, lane, seq);
CREATE INDEX IF NOT EXISTS items_age ON items(created_at);
CREATE TABLE IF NOT EXISTS lanes(
    kind TEXT NOT NULL, lane TEXT NOT NULL, ready_at REAL NOT NULL, owner TEXT, lease_until REAL NOT NULL DEFAULT 0,
    PRIMARY KEY(kind, lane)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lanes_ready ON lanes(kind, ready_at);
CREATE TABLE IF NOT EXISTS delivered(key TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS delivered_age ON delivered(at);
CREATE TABLE IF NOT EXISTS delivered_bodies(key TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead(
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, lane TEXT NOT NULL, body TEXT NOT NULL, created_at REAL NOT NULL,
    died_at REAL NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters(
    kind TEXT NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY(kind, name)) WITHOUT ROWID;
"""
_COUNT: Final = (
    "INSERT INTO counters(kind, name, value) VALUES(?, ?, ?) "
    "ON CONFLICT(kind, name) DO UPDATE SET value = value + excluded.value"
)
_ADD: Final = """
INSERT INTO items(key, kind, lane, body, created_at, not_before) SELECT ?1, ?2, ?3, ?4, ?5, ?6
WHERE NOT EXISTS(SELECT 1 FROM delivered WHERE key = ?1) AND NOT EXISTS(SELECT 1 FROM dead WHERE key = ?1)
ON CONFLICT(key) DO UPDATE SET body = excluded.body, not_before = excluded.not_before WHERE items.not_before > ?7
"""
# A lane that waits for an item on hold moves with it; one that waits after a failure keeps waiting.
_OPEN_LANE: Final = """
INSERT INTO lanes(kind, lane, ready_at) VALUES(?1, ?2, ?3) ON CONFLICT(kind, lane) DO UPDATE
SET ready_at = MIN(ready_at, excluded.ready_at)
WHERE NOT EXISTS(SELECT 1 FROM items WHERE kind = ?1 AND lane = ?2 AND attempts > 0)
"""


class SqliteOutbox:
    """An `OutboxStore` in `path`; opened at first use, and again when the file was replaced. A damaged file is moved
    aside as soon as that is noticed, with what waited in it.

    `max_age_s` and `max_items` bound what waits. With `durable` each commit reaches the disk (synchronous=FULL:
    a loss of power loses nothing); without, it survives a kill of the process, which is enough for the courier,
    whose lost marks only repeat a key. `clock` gives Unix seconds. `reserve` is given up when `add` finds the disk
    full, and kept again by `prune`.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_age_s: float = 7 * 86400.0,
        max_items: int = 100_000,
        durable: bool = True,
        lock_timeout_s: float = 2.0,
        clock: Callable[[], float] = time.time,
        reserve: DiskReserve | None = None,
    ) -> None:
        # Each commit of what visits put reaches the disk.
        schema = _SCHEMA + "PRAGMA synchronous=FULL;" if durable else _SCHEMA
        self._database = StateDatabase(path, schema, timeout=lock_timeout_s)
        self._reserve = reserve or DiskReserve(path.with_name(f"{path.name}.reserve"))
        self._max_age_s = max_age_s
        self._max_items = max_items
        self._clock = clock
        self._lock = threading.Lock()

    def add(self, items: Sequence[OutboxItem]) -> int:
        try:
            return self._add(items)
        except OutboxError as error:
            # A damaged file has been moved aside by now.
            if not is_damage(error.__cause__) and not (_disk_is_full(error.__cause__) and self._reserve.release()):
                raise
        return self._add(items)

    def _add(self, items: Sequence[OutboxItem]) -> int:
        now = self._clock()
        kept = 0
        with self._transaction() as db:
            for item in items:
                ready_at = now + item.hold_s
                kept += db.execute(
                    _ADD, (item.key, item.kind, item.lane, item.body, item.created_at, ready_at, now)
                ).rowcount
                db.execute(_OPEN_LANE, (item.kind, item.lane, ready_at))
            self._drop_surplus(db)
        return kept

    def knows(self, item: OutboxItem) -> bool:
        query = (
            "SELECT EXISTS(SELECT 1 FROM items WHERE key = ?1 AND body = ?2) "
            "OR EXISTS(SELECT 1 FROM dead WHERE key = ?1 AND body = ?2) "
            "OR EXISTS(SELECT 1 FROM delivered_bodies WHERE key = ?1 AND digest = ?3)"
        )
        with self._reading() as db:
            return bool(db.execute(query, (item.key, item.body, item.digest)).fetchone()[0])

    def claim(self, owner: str, kind: str, limit: int, lease_s: float) -> list[Lane]:
        now = self._clock()
        query = (
            "SELECT lane FROM lanes WHERE kind = ?1 AND (ready_at <= ?2 OR ready_at > ?3) "
            "AND (owner IS NULL OR lease_until <= ?2 OR lease_until > ?3) ORDER BY ready_at LIMIT ?4"
        )
        arguments = (kind, now, now + CLOCK_SLACK_S, limit)
        with self._reading() as db:
            # Most calls find nothing: they must not take the writers' lock.
            if db.execute(query, arguments).fetchone() is None:
                return []
        with self._transaction() as db:
            lanes = [Lane(kind, row[0]) for row in db.execute(query, arguments).fetchall()]
            db.executemany(
                "UPDATE lanes SET owner = ?, lease_until = ? WHERE kind = ? AND lane = ?",
                [(owner, now + lease_s, lane.kind, lane.device) for lane in lanes],
            )
        return lanes

    def head(self, lane: Lane, owner: str, lease_s: float) -> OutboxItem | None:
        now = self._clock()
        with self._transaction() as db:
            held = db.execute(
                "UPDATE lanes SET lease_until = ? WHERE kind = ? AND lane = ? AND owner = ?",
                (now + lease_s, lane.kind, lane.device, owner),
            ).rowcount
            if not held:
                return None
            row = db.execute(
                "SELECT kind, lane, body, key, created_at, attempts, not_before FROM items "
                "WHERE kind = ? AND lane = ? ORDER BY seq LIMIT 1",
                (lane.kind, lane.device),
            ).fetchone()
            if row is None:
                db.execute("DELETE FROM lanes WHERE kind = ? AND lane = ?", (lane.kind, lane.device))
                return None
            *fields, not_before = row
            if now < not_before < now + CLOCK_SLACK_S:
                db.execute(
                    "UPDATE lanes SET owner = NULL, ready_at = ? WHERE kind = ? AND lane = ?",
                    (not_before, lane.kind, lane.device),
                )
                return None
        return OutboxItem(*fields)

    def renew(self, owner: str, lanes: Collection[Lane], lease_s: float) -> None:
        until = self._clock() + lease_s
        with self._transaction() as db:
            db.executemany(
                "UPDATE lanes SET lease_until = ? WHERE kind = ? AND lane = ? AND owner = ?",
                [(until, lane.kind, lane.device, owner) for lane in lanes],
            )

    def delivered(self, lane: Lane, item: OutboxItem) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM items WHERE key = ?", (item.key,))
            new = db.execute("INSERT OR IGNORE INTO delivered VALUES(?, ?)", (item.key, self._clock())).rowcount
            db.execute("INSERT OR IGNORE INTO delivered_bodies VALUES(?, ?)", (item.key, item.digest))
            db.execute(_COUNT, (lane.kind, "delivered", new))

    def bury(self, lane: Lane, item: OutboxItem, reason: str) -> None:
        now = self._clock()
        with self._transaction() as db:
            new = db.execute(
                "INSERT OR IGNORE INTO dead VALUES(?, ?, ?, ?, ?, ?, ?)",
                (item.key, item.kind, item.lane, item.body, item.created_at, now, reason[:500]),
            ).rowcount
            db.execute("DELETE FROM items WHERE key = ?", (item.key,))
            db.execute(_COUNT, (lane.kind, "dead", new))

    def postpone(self, lane: Lane, owner: str, item: OutboxItem, delay_s: float) -> None:
        with self._transaction() as db:
            db.execute("UPDATE items SET attempts = attempts + 1 WHERE key = ?", (item.key,))
            db.execute(
                "UPDATE lanes SET owner = NULL, ready_at = ? WHERE kind = ? AND lane = ? AND owner = ?",
                (self._clock() + delay_s, lane.kind, lane.device, owner),
            )
            db.execute(_COUNT, (lane.kind, "retried", 1))

    def release(self, owner: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE lanes SET owner = NULL WHERE owner = ?", (owner,))

    def prune(self) -> int:
        self._reserve.keep()
        now = self._clock()
        with self._transaction() as db:
            dropped = self._drop(db, "created_at < ?", (now - self._max_age_s,)) + self._drop_surplus(db)
            forgotten = (now - DELIVERED_KEPT_S,)
            db.execute("DELETE FROM delivered_bodies WHERE key IN (SELECT key FROM delivered WHERE at < ?)", forgotten)
            db.execute("DELETE FROM delivered WHERE at < ?", forgotten)
            db.execute("DELETE FROM dead WHERE died_at < ?", (now - self._max_age_s,))
            db.execute(
                "DELETE FROM dead WHERE key IN (SELECT key FROM dead ORDER BY died_at DESC LIMIT -1 OFFSET ?)",
                (DEAD_KEPT,),
            )
        return dropped

    def stats(self, kinds: Collection[str]) -> dict[str, OutboxStats]:
        now = self._clock()
        with self._reading() as db:
            waiting = {
                row[0]: (row[1], max(0.0, now - row[2]))
                for row in db.execute("SELECT kind, COUNT(*), MIN(created_at) FROM items GROUP BY kind")
            }
            counters = {(row[0], row[1]): row[2] for row in db.execute("SELECT kind, name, value FROM counters")}
        return {
            kind: OutboxStats(
                *waiting.get(kind, (0, 0.0)),
                **{name: counters.get((kind, name), 0) for name in ("delivered", "retried", "dropped", "dead")},
            )
            for kind in kinds
        }

    def dead_items(self, limit: int = 100) -> list[tuple[OutboxItem, str]]:
        with self._reading() as db:
            rows = db.execute(
                "SELECT kind, lane, body, key, created_at, reason FROM dead ORDER BY died_at DESC LIMIT ?", (limit,)
            ).fetchall()
        return [(OutboxItem(*row[:5]), row[5]) for row in rows]

    def revive(self) -> int:
        now = self._clock()
        with self._transaction() as db:
            rows = db.execute("SELECT key, kind, lane, body, created_at FROM dead ORDER BY created_at, key").fetchall()
            db.execute("DELETE FROM dead")
            for row in rows:
                db.execute(_ADD, (*row, now, now))
                db.execute(_OPEN_LANE, (row[1], row[2], now))
        return len(rows)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _drop_surplus(self, db: sqlite3.Connection) -> int:
        # The span of row ids is an upper bound for their number that costs two index look-ups.
        span = db.execute("SELECT IFNULL((SELECT MAX(seq) FROM items) - (SELECT MIN(seq) FROM items) + 1, 0)")
        if span.fetchone()[0] <= self._max_items:
            return 0
        surplus = db.execute("SELECT COUNT(*) FROM items").fetchone()[0] - self._max_items
        if surplus <= 0:
            return 0
        return self._drop(db, "seq IN (SELECT seq FROM items ORDER BY seq LIMIT ?)", (surplus,))

    @staticmethod
    def _drop(db: sqlite3.Connection, where: str, arguments: tuple[float, ...]) -> int:
        counts = db.execute(f"SELECT kind, COUNT(*) FROM items WHERE {where} GROUP BY kind", arguments).fetchall()  # noqa: S608
        db.execute(f"DELETE FROM items WHERE {where}", arguments)  # noqa: S608
        db.executemany(_COUNT, [(kind, "dropped", count) for kind, count in counts])
        return sum(count for _, count in counts)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._database.connection()
            except (sqlite3.Error, OSError) as error:
                self._database.failed(error)
                raise OutboxError(f"the outbox cannot be read or written: {error}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:  # nothing may stay half-done, whatever happened; the error goes on
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def _disk_is_full(error: BaseException | None) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # The shared-memory file beside the log cannot grow: SQLite calls that an I/O error.
    full = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_WRITE)
    return getattr(error, "sqlite_errorcode", None) in full

"""The Manager API's answers on disk, shared by all processes of a worker and outliving each of them.

What is kept includes children's names and ages: the file and its folder are readable by their owner alone, deleted
rows are overwritten, and everything goes after `API_CACHE_MAX_AGE`.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

import structlog

from agent.briefing.profile import Part
from agent.errors import Unavailable
from agent.settings import Settings
from agent.state import StateDatabase
from agent.values import DeviceMac

T = TypeVar("T")

FILE_NAME: Final = "briefings.sqlite3"
_READ_DEADLINE: Final = 0.25
_WRITE_DEADLINE: Final = 1.5
_LOCK_TIMEOUT: Final = 1.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS answers (
    scope TEXT NOT NULL,
    mac TEXT NOT NULL,
    part TEXT NOT NULL,
    body TEXT NOT NULL,
    stored_at REAL NOT NULL,
    PRIMARY KEY (scope, mac, part)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_age ON answers (stored_at);
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept answer: its JSON, personal and so not in `repr`, and its age in seconds (negative after a clock was
    set back)."""

    body: str = field(repr=False)
    age: float

    def fresh(self, ttl: float) -> bool:
        """Whether it may stand for a live answer; `ttl` is in seconds."""
        return 0 <= self.age < ttl


class AnswerCache(Protocol):
    """A home for answers. Every method raises Unavailable, and nothing else, when the home cannot be used."""

    async def read(self, mac: DeviceMac) -> Mapping[Part, Entry]:
        """Everything known of a device that is not older than the greatest age."""

    async def put(self, mac: DeviceMac, part: Part, body: str) -> None:
        """Keep an answer from now on in place of the older one."""

    async def forget(self, mac: DeviceMac, part: Part) -> None:
        """Keep no answer any more."""

    async def purge(self) -> int:
        """Delete what is older than the greatest age, of all devices; how many answers went."""

    async def aclose(self) -> None:
        """Close; safe to call twice. Never raises."""


class SqliteCache:
    """`AnswerCache` in one file under STATE_DIR. All its work is done in one thread of its own.

    `scope` keeps the answers of different services apart. `max_age` is in seconds; `clock` gives Unix seconds, since
    ages must hold across processes and reboots. A damaged file is moved aside and a new one begun.
    """

    def __init__(self, path: Path, *, scope: str, max_age: float, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._scope = hashlib.sha256(scope.encode()).hexdigest()[:16]
        self._max_age = max_age
        self._clock = clock
        self._database = StateDatabase(path, _SCHEMA, timeout=_LOCK_TIMEOUT)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="briefing-cache")

    async def read(self, mac: DeviceMac) -> Mapping[Part, Entry]:
        """See AnswerCache. Gives up after 250 ms."""
        now = self._clock()
        query = "SELECT part, body, stored_at FROM answers WHERE scope = ? AND mac = ? AND stored_at >= ?"
        values = (self._scope, mac, now - self._max_age)
        rows = await self._run(lambda db: db.execute(query, values).fetchall(), _READ_DEADLINE)
        known = set(Part)
        return {Part(part): Entry(body, now - stored_at) for part, body, stored_at in rows if part in known}

    async def put(self, mac: DeviceMac, part: Part, body: str) -> None:
        """See AnswerCache."""
        statement = "INSERT OR REPLACE INTO answers (scope, mac, part, body, stored_at) VALUES (?, ?, ?, ?, ?)"
        values = (self._scope, mac, part.value, body, self._clock())
        await self._run(lambda db: db.execute(statement, values), _WRITE_DEADLINE)

    async def forget(self, mac: DeviceMac, part: Part) -> None:
        """See AnswerCache."""
        statement = "DELETE FROM answers WHERE scope = ? AND mac = ? AND part = ?"
        values = (self._scope, mac, part.value)
        await self._run(lambda db: db.execute(statement, values), _WRITE_DEADLINE)

    async def purge(self) -> int:
        """See AnswerCache; of every scope."""
        now = self._clock()
        return await self._run(lambda db: self._purge(db, now), _WRITE_DEADLINE)

    async def aclose(self) -> None:
        """Close after what has been begun; a disk that hangs is not waited for longer than 1.5 s."""
        try:
            closed = asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        except RuntimeError:  # already shut down
            return
        self._thread.shutdown(wait=False)
        try:
            await asyncio.wait_for(closed, _WRITE_DEADLINE)
        except TimeoutError:
            _log.warning("briefing cache did not close")

    async def _run(self, work: Callable[[sqlite3.Connection], T], deadline: float) -> T:
        try:
            running = asyncio.get_running_loop().run_in_executor(self._thread, self._database.run, work)
            return await asyncio.wait_for(running, deadline)
        except TimeoutError:
            raise Unavailable(f"the briefing cache did not answer within {deadline:g} s") from None
        except (sqlite3.Error, OSError, RuntimeError) as error:  # RuntimeError: the thread has been shut down
            raise Unavailable(f"the briefing cache cannot be used: {type(error).__name__}: {error}") from None

    def _purge(self, db: sqlite3.Connection, now: float) -> int:
        # An answer from a far future was kept by a wrong clock and would never age.
        statement = "DELETE FROM answers WHERE stored_at < ? OR stored_at > ?"
        return db.execute(statement, (now - self._max_age, now + self._max_age)).rowcount


def open_cache(settings: Settings, *, clock: Callable[[], float] = time.time) -> AnswerCache:
    """The cache the settings name. Opens nothing yet, so it cannot fail."""
    scope, max_age = settings.manager_api_url or "", settings.api_cache_max_age
    near = SqliteCache(settings.state_dir / FILE_NAME, scope=scope, max_age=max_age, clock=clock)
    if settings.redis_url is None:
        return near
    from agent.briefing.cache_redis import RedisCache, TieredCache

    return TieredCache(near, RedisCache(settings.redis_url, scope=scope, max_age=max_age, clock=clock))

"""Coming back: what a device was talking about and hearing, kept on disk for as long as its visit may be resumed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar

import structlog
from livekit.agents.llm import ChatContext
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.errors import ResumeError
from agent.settings import Settings
from agent.state import StateDatabase
from agent.values import DeviceMac

T = TypeVar("T")

_log = structlog.get_logger(__name__)

FILE_NAME: Final = "resume.db"
ITEMS_MAX: Final = 60
"""Items of a conversation that are kept, the last ones."""
BYTES_MAX: Final = 128 * 1024
"""Size of one kept conversation; older items go until it fits."""
DEVICES_MAX: Final = 5000
QUEUE_MAX: Final = 50

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS visits(
    mac TEXT PRIMARY KEY, began_at REAL NOT NULL, saved_at REAL NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS visits_saved ON visits(saved_at);
"""

TitleId = Annotated[str, Field(max_length=200)]


class Playing(BaseModel):
    """What was sounding: a title of the library by its id, where in it, and what was to follow."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["music", "story"]
    title_id: TitleId
    position_ms: int = Field(default=0, ge=0)
    queue: tuple[TitleId, ...] = Field(default=(), max_length=QUEUE_MAX)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a visit now. `greeted_returning`: this conversation has been welcomed back already."""

    chat: ChatContext = field(repr=False)
    playing: Playing | None = None
    greeted_returning: bool = False


@dataclass(frozen=True, slots=True)
class Resumed:
    """A conversation found again; `away_s` is how long ago it was last heard of, in seconds.

    `greeted_returning` tells whether the child has been welcomed back in it before: a device that flaps is not
    welcomed every time.
    """

    chat: ChatContext = field(repr=False)
    playing: Playing | None
    greeted_returning: bool
    away_s: float


class _Body(BaseModel):
    chat: dict[str, Any]
    playing: Playing | None = None
    greeted_returning: bool = False


class ResumeStore(Protocol):
    """Conversations by device. Methods block, may be called from any thread and raise ResumeError.

    What is older than the window is neither found nor kept; a window of 0 keeps nothing.
    """

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""

    def load(self, mac: DeviceMac) -> Resumed | None:
        """The device's conversation, None where there is none or it is too old, or cannot be read any more."""

    def save(self, mac: DeviceMac, began_at: float, body: str) -> bool:
        """Keep `body` (of `encode`) for the visit that began at `began_at`, Unix seconds.

        False when a later visit of the device has saved before: an old one that is still closing must not win.
        """

    def forget(self, mac: DeviceMac) -> None:
        """Drop what is kept of the device."""

    def close(self) -> None:
        """Close what is open; idempotent."""


class SqliteResumeStore:
    """A `ResumeStore` in one SQLite file: at most `devices_max` are kept, the oldest going first. `clock` gives Unix
    seconds, `window_s` is the window."""

    def __init__(
        self,
        path: Path,
        *,
        window_s: float,
        devices_max: int = DEVICES_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = StateDatabase(path, _SCHEMA)
        self._window_s = window_s
        self._devices_max = devices_max
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self._window_s > 0

    def load(self, mac: DeviceMac) -> Resumed | None:
        """See ResumeStore."""
        if not self.enabled:
            return None
        row = self._run(lambda db: db.execute("SELECT saved_at, body FROM visits WHERE mac = ?", (mac,)).fetchone())
        if row is None:
            return None
        # A clock that was set back makes no conversation younger than now.
        away_s = max(0.0, self._clock() - row[0])
        if away_s > self._window_s:
            return None
        resumed = decode(row[1], away_s)
        if resumed is None:
            self.forget(mac)
        return resumed

    def save(self, mac: DeviceMac, began_at: float, body: str) -> bool:
        """See ResumeStore."""
        if not self.enabled:
            return False
        now = self._clock()

        def write(db: sqlite3.Connection) -> int:
            saved = db.execute(
                "INSERT INTO visits VALUES(?, ?, ?, ?) ON CONFLICT(mac) DO UPDATE SET began_at = excluded.began_at, "
                "saved_at = excluded.saved_at, body = excluded.body WHERE excluded.began_at >= visits.began_at",
                (mac, began_at, now, body),
            ).rowcount
            self._delete_old(db, now)
            db.execute(
                "DELETE FROM visits WHERE mac IN (SELECT mac FROM visits ORDER BY saved_at DESC LIMIT -1 OFFSET ?)",
                (self._devices_max,),
            )
            return saved

        return bool(self._run(write))

    def forget(self, mac: DeviceMac) -> None:
        """See ResumeStore."""
        self._run(lambda db: db.execute("DELETE FROM visits WHERE mac = ?", (mac,)))

    def purge(self) -> int:
        """Delete what is older than the window, all of it where that is 0; how many conversations went."""
        now = self._clock()
        return self._run(lambda db: self._delete_old(db, now))

    def _delete_old(self, db: sqlite3.Connection, now: float) -> int:
        # One from a far future was kept by a wrong clock and would never age.
        statement = "DELETE FROM visits WHERE saved_at <= ? OR saved_at > ?"
        return db.execute(statement, (now - self._window_s, now + self._window_s)).rowcount

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            self._database.close()

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                return self._database.run(work)
            except (sqlite3.Error, OSError) as error:
                raise ResumeError(f"conversations cannot be kept or found: {error}") from error


def resume_store(settings: Settings) -> ResumeStore:
    """Where conversations are kept, as the settings say; nothing is opened before its first use."""
    near = SqliteResumeStore(settings.state_dir / FILE_NAME, window_s=settings.resume_window)
    if settings.redis_url is None:
        return near
    from agent.conversation.resume_redis import RedisResumeStore, TieredResumeStore

    return TieredResumeStore(near, RedisResumeStore(settings.redis_url, window_s=settings.resume_window))


def encode(snapshot: Snapshot) -> str:
    """The snapshot as text of at most `BYTES_MAX` bytes: the last items, without instructions, pictures and sound."""
    chat = snapshot.chat.copy(
        exclude_instructions=True, exclude_empty_message=True, exclude_handoff=True, exclude_config_update=True
    )
    keep = ITEMS_MAX
    while True:
        # Ours: truncating a copy leaves the session's own context alone.
        chat = chat.truncate(max_items=keep)
        items = chat.to_dict(exclude_timestamp=False, exclude_metrics=True)
        body = json.dumps(
            {
                "chat": items,
                "playing": snapshot.playing.model_dump() if snapshot.playing else None,
                "greeted_returning": snapshot.greeted_returning,
            },
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode("utf-8", "replace")  # half a character must not cost the conversation
        if len(body) <= BYTES_MAX or keep == 0:
            return body.decode()
        keep //= 2


def decode(body: str, away_s: float) -> Resumed | None:
    """What `encode` gave, heard of last `away_s` seconds ago; None where another version wrote it, most likely."""
    try:
        found = _Body.model_validate_json(body)
        chat = ChatContext.from_dict(found.chat)
    except (ValidationError, ValueError, KeyError, TypeError):
        _log.warning("resume_unreadable")
        return None
    return Resumed(chat, found.playing, found.greeted_returning, away_s)


class ResumeKeeper:
    """Keeps one visit's state on disk while it lasts: soon after each change, every `every_s` seconds, and at its end.

    `snapshot` is called in the event loop and must not wait; its chat context is copied there and written by a thread.
    A failing store is logged and tried again with the next save; it never reaches the visit. Belongs to the loop that
    calls `start`.
    """

    def __init__(
        self,
        store: ResumeStore,
        mac: DeviceMac,
        snapshot: Callable[[], Snapshot],
        *,
        debounce_s: float = 0.2,
        every_s: float = 15.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._mac = mac
        self._snapshot = snapshot
        self._debounce_s = debounce_s
        self._every_s = every_s
        self._began_at = clock()
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._forgotten = False
        self._one_at_a_time = asyncio.Lock()

    def start(self) -> None:
        """Begin keeping; does nothing where the window is 0."""
        if self._task is None and self._store.enabled:
            self._task = asyncio.create_task(self._keep(), name="resume")

    def changed(self) -> None:
        """Something has changed; it is on disk `debounce_s` later."""
        self._changed.set()

    async def forget(self) -> None:
        """The visit has ended for good: nothing of it is to be found again, whatever is saved later."""
        self._forgotten = True
        await self._try(lambda: self._store.forget(self._mac))

    async def aclose(self, timeout_s: float = 3.0) -> None:
        """Save for the last time, within `timeout_s`. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        self._closing.set()
        self._changed.set()
        _, late = await asyncio.wait([task], timeout=timeout_s)
        if late:
            task.cancel()
            _log.warning("resume_save_late")
            await asyncio.wait([task])

    async def _keep(self) -> None:
        last = False
        while not last:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._every_s)
            if self._changed.is_set() and not self._closing.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), self._debounce_s)
            # Only what is looked at after the end is certainly the end.
            last = self._closing.is_set()
            self._changed.clear()
            await self._save()

    async def _save(self) -> None:
        try:
            now = self._snapshot()
        except Exception:  # noqa: BLE001 — one bad moment must not cost the visit its keeper; it is logged whole
            _log.exception("resume_snapshot_failed")
            return
        # The session goes on changing its own context while the thread writes.
        frozen = Snapshot(now.chat.copy(), now.playing, now.greeted_returning)

        def write() -> None:
            if not self._forgotten:
                self._store.save(self._mac, self._began_at, encode(frozen))

        await self._try(write)

    async def _try(self, action: Callable[[], object]) -> None:
        try:
            async with self._one_at_a_time:
                await asyncio.to_thread(action)
        except ResumeError as error:
            _log.warning("resume_failed", error=str(error))

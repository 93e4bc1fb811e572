"""How a visit puts things into the outbox: at once in memory, a moment later on disk, never waiting for either."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from typing import Final, Protocol

import structlog

from agent.errors import OutboxError
from agent.outbox.items import OutboxItem, OutboxSink

_log = structlog.get_logger(__name__)

MAX_UNWRITTEN: Final = 10_000
_BATCH: Final = 200


class Outbox(Protocol):
    """What a conversation sees of the outbox."""

    def put(self, *items: OutboxItem) -> None:
        """Queue `items` in order. Never blocks, never raises, from any thread."""
        ...

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Wait until all that was put before is on disk. Raises OutboxError after `timeout_s`."""
        ...


class OutboxWriter:
    """An `Outbox` that writes through an own thread, one transaction for all that came together.

    While the disk refuses (full, read-only, locked) items stay in memory, in order, and are tried again with growing
    pauses of up to `longest_pause_s`; each failure is logged and counted. Beyond `max_unwritten` the oldest go.
    Make it in the process that uses it: threads do not survive a fork.
    """

    def __init__(self, store: OutboxSink, *, longest_pause_s: float = 5.0, max_unwritten: int = MAX_UNWRITTEN) -> None:
        self._store = store
        self._longest_pause_s = longest_pause_s
        self._max_unwritten = max_unwritten
        self._condition = threading.Condition()
        self._unwritten: deque[OutboxItem] = deque()
        self._writing = 0
        self._waiters: list[tuple[int, Future[None]]] = []
        self._put = 0
        self._done = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        self.failures = 0
        """How often a write failed."""
        self.dropped = 0
        """How many items were lost because memory was full, too, or the process ended."""

    @property
    def unwritten(self) -> int:
        """How many items are not on disk yet."""
        return len(self._unwritten)

    def put(self, *items: OutboxItem) -> None:
        with self._condition:
            if self._closing:
                self.dropped += len(items)
                _log.error("outbox_item_after_close", count=len(items))
                return
            self._unwritten.extend(items)
            self._put += len(items)
            # What is being written just now stands at the front and must stay there.
            while len(self._unwritten) > self._max_unwritten and self._writing == 0:
                self._unwritten.popleft()
                self._done += 1
                self.dropped += 1
                _log.error("outbox_memory_full", limit=self._max_unwritten)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    async def flush(self, timeout_s: float = 5.0) -> None:
        written: Future[None] = Future()
        with self._condition:
            if self._done >= self._put:
                return
            self._waiters.append((self._put, written))
        try:
            await asyncio.wait_for(asyncio.wrap_future(written), timeout_s)
        except TimeoutError:
            raise OutboxError(f"{self.unwritten} outbox items are not on disk yet") from None

    async def aclose(self, timeout_s: float = 5.0) -> int:
        """Write what is left within `timeout_s`, end the thread, close the store. Returns how many items were lost."""
        try:
            await self.flush(timeout_s)
        except OutboxError:
            _log.warning("outbox_flush_late", count=self.unwritten)
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        if self._thread is not None:
            # One write may still wait for the file's lock; it is bounded by the store's own timeout.
            await asyncio.to_thread(self._thread.join, timeout_s)
        with self._condition:
            lost = len(self._unwritten)
            self.dropped += lost
        if lost:
            _log.error("outbox_items_lost", count=lost)
        await asyncio.to_thread(self._store.close)
        return lost

    def _work(self) -> None:
        pause_s = 0.0
        while True:
            with self._condition:
                if pause_s:
                    self._condition.wait_for(lambda: self._closing, pause_s)
                self._condition.wait_for(lambda: self._unwritten or self._closing)
                if not self._unwritten or (self._closing and pause_s):
                    return
                batch = [self._unwritten[i] for i in range(min(_BATCH, len(self._unwritten)))]
                self._writing = len(batch)
            written = self._write(batch)
            with self._condition:
                self._writing = 0
                if not written:
                    pause_s = min(self._longest_pause_s, pause_s * 2 or 0.1)
                    continue
                pause_s = 0.0
                for _ in batch:
                    self._unwritten.popleft()
                self._done += len(batch)
                ready = [future for mark, future in self._waiters if mark <= self._done]
                self._waiters = [waiter for waiter in self._waiters if waiter[0] > self._done]
            for future in ready:
                if future.set_running_or_notify_cancel():
                    future.set_result(None)

    def _write(self, batch: list[OutboxItem]) -> bool:
        try:
            self._store.add(batch)
        except OutboxError as error:
            self.failures += 1
            _log.error("outbox_write_failed", error=str(error), unwritten=self.unwritten)
            return False
        except Exception:  # noqa: BLE001 — the thread is the only one that can save the other items; it must go on
            self.failures += 1
            _log.exception("outbox_write_broken", unwritten=self.unwritten)
            return False
        return True

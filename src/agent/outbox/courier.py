"""The worker's side of the outbox: hands every item to its receiver, in order per device, again until it is taken."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from agent.errors import OutboxError, RateLimited, ToyError, Unauthorised, Undeliverable
from agent.outbox.items import Deliverer, Lane, OutboxItem, OutboxStats, OutboxStore

_log = structlog.get_logger(__name__)
T = TypeVar("T")

LONGEST_DELAY_S: Final = 3600.0
"""No Retry-After is believed beyond this."""


@dataclass(frozen=True, slots=True)
class CourierTiming:
    """How the courier waits, in seconds. A killed courier's lanes are free again after `lease_s`."""

    poll_s: float = 0.5
    deliver_timeout_s: float = 60.0
    lease_s: float = 15.0
    first_delay_s: float = 1.0
    longest_delay_s: float = 60.0
    prune_s: float = 60.0

    def delay_s(self, attempts: int, jitter: float) -> float:
        """Pause after `attempts` failures: doubled each time, then between half and all of it by `jitter` (0–1)."""
        return min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(attempts - 1, 30)) * (0.5 + 0.5 * jitter)


class OutboxCourier:
    """Delivers what stands in `store` through `deliverers`, one callable a kind; other kinds wait.

    Lanes (a device and a kind) do not wait for one another, up to `lanes_at_once` a kind at a time. Errors that are
    neither retryable nor clearly final are repeated `doubtful_attempts` times before the item is set aside; retryable
    ones for as long as nothing of its kind gets through, else `stubborn_attempts` times.
    A store that fails is tried again; nothing here ever ends the worker.
    """

    def __init__(
        self,
        store: OutboxStore,
        deliverers: Mapping[str, Deliverer],
        *,
        timing: CourierTiming = CourierTiming(),
        lanes_at_once: int = 8,
        doubtful_attempts: int = 40,
        stubborn_attempts: int = 240,
        random_source: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._deliverers = dict(deliverers)
        self._timing = timing
        self._lanes_at_once = lanes_at_once
        self._doubtful_attempts = doubtful_attempts
        self._stubborn_attempts = stubborn_attempts
        self._taken: Counter[str] = Counter()
        self._taken_when_failed: dict[Lane, int] = {}
        self._random = random_source
        self._owner = uuid.uuid4().hex
        self._tasks: dict[Lane, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None
        # One thread: SQLite calls are short, and none may wait behind other users of the default pool.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox-courier")

    def start(self) -> None:
        """Begin delivering in the background, in the running loop."""
        if self._runner is None:
            self._runner = asyncio.create_task(self.run(), name="outbox-courier")

    async def run(self) -> None:
        """Deliver until `aclose`."""
        loop = asyncio.get_running_loop()
        next_prune = next_renewal = loop.time()
        while not self._closing:
            self._wake.clear()
            pause_s = self._timing.poll_s
            try:
                if loop.time() >= next_prune:
                    dropped = await self._call(self._store.prune)
                    next_prune = loop.time() + self._timing.prune_s
                    if dropped:
                        _log.warning("outbox_items_dropped", count=dropped)
                if self._tasks and loop.time() >= next_renewal:
                    # No other lane of ours: one whose task has ended early must be free again.
                    await self._call(self._store.renew, self._owner, list(self._tasks), self._timing.lease_s)
                    next_renewal = loop.time() + self._timing.lease_s / 3
                await self._claim()
            except OutboxError as error:
                pause_s = max(pause_s, 1.0)
                _log.error("outbox_unusable", error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_s)

    async def aclose(self, grace_s: float = 5.0) -> None:
        """Begin nothing new, let deliveries under way end within `grace_s`, give the lanes back. Idempotent."""
        self._closing = True
        self._wake.set()
        runner, self._runner = self._runner, None
        if runner is not None:
            await _settle([runner], grace_s)
        await _settle(list(self._tasks.values()), grace_s)
        try:
            await self._call(self._store.release, self._owner)
        except (OutboxError, RuntimeError) as error:  # RuntimeError: closed before
            _log.warning("outbox_release_failed", error=str(error))
        self._thread.shutdown(wait=False)
        await asyncio.to_thread(self._store.close)

    async def stats(self) -> dict[str, OutboxStats]:
        """State of each kind this courier delivers. Raises OutboxError."""
        return await self._call(self._store.stats, tuple(self._deliverers))

    def nudge(self) -> None:
        """Look for items now rather than at the next poll."""
        self._wake.set()

    async def _claim(self) -> None:
        for kind in self._deliverers:
            free = self._lanes_at_once - sum(1 for lane in self._tasks if lane.kind == kind)
            if free <= 0:
                continue
            for lane in await self._call(self._store.claim, self._owner, kind, free, self._timing.lease_s):
                if lane not in self._tasks:
                    task = asyncio.create_task(self._deliver_lane(lane), name=f"outbox-{kind}")
                    self._tasks[lane] = task
                    task.add_done_callback(functools.partial(self._lane_ended, lane))

    def _lane_ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        self._tasks.pop(lane, None)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("outbox_lane_broken", kind=lane.kind, exc_info=error)

    async def _deliver_lane(self, lane: Lane) -> None:
        while not self._closing:
            try:
                item = await self._call(self._store.head, lane, self._owner, self._timing.lease_s)
            except OutboxError as error:
                _log.error("outbox_unusable", error=str(error))
                return
            if item is None or not await self._deliver(lane, item):
                return

    async def _deliver(self, lane: Lane, item: OutboxItem) -> bool:
        """Hand over one item and note how it went; False when the lane has to wait."""
        try:
            async with asyncio.timeout(self._timing.deliver_timeout_s):
                await self._deliverers[item.kind](item)
        except Undeliverable as error:
            return await self._bury(lane, item, str(error))
        except Exception as error:  # noqa: BLE001 — a receiver's bug must not stop the other lanes; it is kept as the reason
            return await self._failed(lane, item, error)
        self._taken[item.kind] += 1
        self._taken_when_failed.pop(lane, None)
        await self._note(self._store.delivered, lane, item)
        return True

    async def _failed(self, lane: Lane, item: OutboxItem, error: Exception) -> bool:
        attempts = item.attempts + 1
        patient = isinstance(error, TimeoutError | Unauthorised | OSError) or (
            isinstance(error, ToyError) and error.retryable
        )
        stubborn = attempts >= self._stubborn_attempts and self._others_passed(lane, item.kind)
        if stubborn or (not patient and attempts >= self._doubtful_attempts):
            return await self._bury(lane, item, f"{type(error).__name__}: {error}")
        delay_s = self._timing.delay_s(attempts, self._random())
        if isinstance(error, RateLimited) and error.retry_after is not None:
            delay_s = min(LONGEST_DELAY_S, max(delay_s, error.retry_after))
        _log.warning(
            "outbox_delivery_failed",
            kind=item.kind,
            attempts=attempts,
            delay_s=round(delay_s, 1),
            error=f"{type(error).__name__}: {error}" if isinstance(error, ToyError) else type(error).__name__,
            exc_info=None if patient or isinstance(error, ToyError) else error,
        )
        await self._note(self._store.postpone, lane, self._owner, item, delay_s)
        return False

    def _others_passed(self, lane: Lane, kind: str) -> bool:
        """Whether any of its kind was taken since this lane failed last: then its receiver is not away."""
        before = self._taken_when_failed.get(lane)
        self._taken_when_failed[lane] = self._taken[kind]
        return before is not None and self._taken[kind] > before

    async def _bury(self, lane: Lane, item: OutboxItem, reason: str) -> bool:
        self._taken_when_failed.pop(lane, None)
        _log.error("outbox_item_refused", kind=item.kind, reason=reason)
        await self._note(self._store.bury, lane, item, reason)
        return True

    async def _note(self, method: Callable[..., None], *arguments: Any) -> None:
        """Write down what happened, however long the store refuses: forgetting it would repeat the delivery."""
        delay_s = 0.1
        while True:
            try:
                return await self._call(method, *arguments)
            except OutboxError as error:
                _log.error("outbox_unusable", error=str(error))
                if self._closing:
                    return None
            await asyncio.sleep(delay_s)
            delay_s = min(self._timing.longest_delay_s, delay_s * 2)

    def _call(self, method: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, method, *arguments)


async def _settle(tasks: list[asyncio.Task[None]], grace_s: float) -> None:
    """Wait for `tasks`, cancel what is left after `grace_s`, and wait for that, too."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=grace_s)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late)

"""Where the outbox lives: a file of this machine, or Redis, with the file for the times when Redis is away."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import structlog

from agent.errors import OutboxError, Undeliverable
from agent.outbox.courier import CourierTiming, OutboxCourier
from agent.outbox.items import Deliverer, OutboxItem, OutboxSink, OutboxStore
from agent.outbox.sqlite import SqliteOutbox
from agent.settings import Settings

log = structlog.get_logger(__name__)

Home = Literal["file", "redis"]

FILE_NAME: Final = "outbox.db"
FORWARD: Final = "forward"
"""The kind of an item in the file that is a whole item for Redis."""
_FORWARDING: Final = CourierTiming(longest_delay_s=2.0)
_WRITE_TIMEOUT: Final = 1.0


def file_store(settings: Settings, *, durable: bool = True) -> SqliteOutbox:
    """This machine's file; nothing is opened before its first use."""
    return SqliteOutbox(
        settings.state_dir / FILE_NAME,
        max_age_s=settings.outbox_max_age,
        max_items=settings.outbox_max_items,
        durable=durable,
    )


def shared_store(settings: Settings) -> OutboxStore | None:
    """The one in Redis; None where no REDIS_URL is set."""
    if settings.redis_url is None:
        return None
    from agent.outbox.redis import RedisOutbox

    return RedisOutbox(
        settings.redis_url,
        max_age_s=settings.outbox_max_age,
        max_items=settings.outbox_max_items,
        timeout_s=_WRITE_TIMEOUT,
    )


def existing_stores(settings: Settings) -> dict[Home, OutboxStore]:
    """The file, where there is one already, and Redis, where it is set; to be closed by the caller."""
    found: dict[Home, OutboxStore] = {}
    if (settings.state_dir / FILE_NAME).exists():
        found["file"] = file_store(settings)
    if (shared := shared_store(settings)) is not None:
        found["redis"] = shared
    return found


def writers_store(settings: Settings) -> OutboxSink:
    """Where visits put things."""
    file, shared = file_store(settings), shared_store(settings)
    return file if shared is None else SpooledOutbox(shared, file)


def open_couriers(settings: Settings, deliverers: Mapping[str, Deliverer]) -> dict[Home, OutboxCourier]:
    """The couriers of a worker, not started yet, to be closed in the reverse of this order.

    With Redis the file's courier carries what it finds there into Redis, whose courier delivers it: so a device's items
    keep their order whichever way they went.
    """
    file, shared = file_store(settings, durable=False), shared_store(settings)
    if shared is None:
        # Of a time with Redis: what waited for it goes straight to its receiver.
        return {"file": OutboxCourier(file, {**deliverers, FORWARD: _Unwrapping(deliverers)})}
    forward = _Forwarder(shared)
    forwarded = dict.fromkeys([*deliverers, FORWARD], forward)
    return {"redis": OutboxCourier(shared, deliverers), "file": OutboxCourier(file, forwarded, timing=_FORWARDING)}


class SpooledOutbox:
    """An `OutboxSink` that adds to `shared`, and to `file` while that is away or still holds what came before."""

    def __init__(self, shared: OutboxStore, file: OutboxStore) -> None:
        self._shared = shared
        self._file = file
        self._spooling = True  # an earlier process of this machine may have left something
        self._lock = threading.Lock()
        self._growing: set[str] = set()

    def add(self, items: Sequence[OutboxItem]) -> int:
        """See OutboxStore. Raises OutboxError where neither can be used."""
        with self._lock:
            self._growing.update(item.key for item in items if item.hold_s)
            if self._spooling:
                try:
                    self._spooling = bool(self._file.stats([FORWARD])[FORWARD].depth)
                except OutboxError as error:
                    log.warning("what waits in the outbox's file cannot be told", error=str(error))
                    return self._shared.add(items)
            if not self._spooling:
                try:
                    return self._shared.add(items)
                except OutboxError as error:
                    self._spooling = True
                    log.warning("items for Redis wait in a file", error=str(error))
            return self._file.add([_wrapped(item, grows=item.key in self._growing) for item in items])

    def close(self) -> None:
        """Close both; idempotent."""
        self._shared.close()
        self._file.close()


class _Forwarder:
    """Delivers the file's items into Redis."""

    def __init__(self, shared: OutboxStore) -> None:
        self._shared = shared

    async def __call__(self, item: OutboxItem) -> None:
        inner, grows = _unwrapped(item) if item.kind == FORWARD else (item, False)
        await asyncio.to_thread(self._add, inner, grows)

    def _add(self, item: OutboxItem, grows: bool) -> None:
        if not self._shared.add([item]) and grows and not self._shared.knows(item):
            # An earlier state of it was let go before this one came: what it has grown by must not be lost. It is known
            # where only Redis' answer was lost.
            self._shared.add([replace(item, key=f"{item.key}-later")])


class _Unwrapping:
    """Delivers what was put aside for Redis, where there is none any more."""

    def __init__(self, deliverers: Mapping[str, Deliverer]) -> None:
        self._deliverers = dict(deliverers)

    async def __call__(self, item: OutboxItem) -> None:
        inner, _ = _unwrapped(item)
        if inner.kind not in self._deliverers:
            raise Undeliverable(f"nobody takes items of the kind {inner.kind}")
        await self._deliverers[inner.kind](inner)


def _wrapped(item: OutboxItem, *, grows: bool) -> OutboxItem:
    inner = {"kind": item.kind, "body": item.body, "key": item.key, "hold_s": item.hold_s, "grows": grows}
    return OutboxItem(FORWARD, item.lane, json.dumps(inner), created_at=item.created_at)


def _unwrapped(item: OutboxItem) -> tuple[OutboxItem, bool]:
    try:
        inner = item.payload
        kind, body, key, hold_s, grows = (inner[name] for name in ("kind", "body", "key", "hold_s", "grows"))
        return OutboxItem(kind, item.lane, body, key, item.created_at, hold_s=float(hold_s)), bool(grows)
    except (ValueError, KeyError, TypeError) as error:
        raise Undeliverable(f"not an item that was put aside: {type(error).__name__}") from None

"""What the outbox holds, and what its store and its receivers promise."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

MAX_BODY_BYTES: Final = 256 * 1024
DELIVERED_KEPT_S: Final = 86400.0
"""How long a delivered key is remembered: longer than any process can still hold its item in memory."""
DEAD_KEPT: Final = 10_000
"""How many items that were set aside are kept; they are dropped when they are too old, too."""
CLOCK_SLACK_S: Final = 7200.0
"""Waits further ahead than this come from a clock that was set back, and are over."""

OutboxKind = Literal["chat", "memory"]
"""`chat`: a line of the chat history for the Manager API. `memory`: messages for Mem0."""


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """One thing to deliver. `key` makes repeats harmless; `lane` is the device, whose items keep their order.

    `body` is a JSON object as text; `created_at` is in Unix seconds; `attempts` counts failed deliveries. With
    `hold_s` it is delivered no sooner than that many seconds after it was added, and until then adding the same key
    again replaces it: so something that still grows is on disk already.
    """

    kind: str
    lane: str
    body: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    created_at: float = field(default_factory=time.time)
    attempts: int = 0
    hold_s: float = 0.0

    @classmethod
    def of(
        cls, kind: OutboxKind, lane: str, payload: Mapping[str, Any], *, key: str | None = None, hold_s: float = 0.0
    ) -> OutboxItem:
        """Build an item from a JSON object. Raises ValueError where it is no JSON or larger than 256 KiB."""
        try:
            body = json.dumps(dict(payload), separators=(",", ":"), allow_nan=False)
        except TypeError as error:
            raise ValueError(f"an outbox item must be JSON: {error}") from None
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"an outbox item may have {MAX_BODY_BYTES} bytes, this has {len(body)}")
        return cls(kind, lane, body, key or uuid.uuid4().hex, hold_s=hold_s)

    @property
    def digest(self) -> str:
        """Tells this body from others; not a secret's."""
        return hashlib.sha256(self.body.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def payload(self) -> dict[str, Any]:
        """The JSON object."""
        loaded = json.loads(self.body)
        if not isinstance(loaded, dict):
            raise ValueError("an outbox item's body must be a JSON object")
        return loaded


@dataclass(frozen=True, slots=True, order=True)
class Lane:
    """The items of one kind for one device: delivered in order, one at a time."""

    kind: str
    device: str


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """One kind's state: `depth` items wait, the oldest for `oldest_age_s`; the rest are totals since the file began.

    `retried` counts failed attempts that will be repeated, `dropped` what was too old or too much, `dead` what the
    receiver refused for ever.
    """

    depth: int = 0
    oldest_age_s: float = 0.0
    delivered: int = 0
    retried: int = 0
    dropped: int = 0
    dead: int = 0


class Deliverer(Protocol):
    """Hands one item to its receiver, repeating `item.key` there (header `Idempotency-Key` or metadata).

    Returning means delivered. `Undeliverable` sets the item aside for good. Retryable errors and `Unauthorised` are
    repeated until the item is too old; `RateLimited.retry_after` is honoured. Any other error may be the item's fault
    or a lying service's, so it is repeated a limited number of times before the item is set aside.
    """

    async def __call__(self, item: OutboxItem) -> None: ...


class OutboxSink(Protocol):
    """Where items are put. Methods block and may be called from any thread; all raise OutboxError."""

    def add(self, items: Sequence[OutboxItem]) -> int:
        """Keep `items` in order; a known key replaces an item on hold, else it is ignored, also when it was delivered
        or set aside long ago. Returns how many were kept.

        When it returns, they survive a kill of any process and a loss of power.
        """
        ...

    def close(self) -> None:
        """Close what is open; idempotent."""
        ...


class OutboxStore(OutboxSink, Protocol):
    """Where the queue lives.

    A lane is held by one owner at a time under a lease of `lease_s` seconds, so several workers may share a store.
    """

    def knows(self, item: OutboxItem) -> bool:
        """Whether `item` waits, was delivered within DELIVERED_KEPT_S or set aside with just this body."""
        ...

    def claim(self, owner: str, kind: str, limit: int, lease_s: float) -> list[Lane]:
        """Take up to `limit` lanes of `kind` that are ready and free, those ready for longest first."""
        ...

    def head(self, lane: Lane, owner: str, lease_s: float) -> OutboxItem | None:
        """The lane's first item, the lease renewed; None when it is empty or on hold (and given up), or not ours."""
        ...

    def renew(self, owner: str, lanes: Collection[Lane], lease_s: float) -> None:
        """Keep those of `lanes` that are still `owner`'s for another `lease_s` seconds."""
        ...

    def delivered(self, lane: Lane, item: OutboxItem) -> None:
        """Forget `item`, remember its key and count it."""
        ...

    def bury(self, lane: Lane, item: OutboxItem, reason: str) -> None:
        """Set `item` aside with `reason` and count it."""
        ...

    def postpone(self, lane: Lane, owner: str, item: OutboxItem, delay_s: float) -> None:
        """Give the lane up until `delay_s` from now; counts a failed attempt of `item`."""
        ...

    def release(self, owner: str) -> None:
        """Give up every lane of `owner` at once."""
        ...

    def prune(self) -> int:
        """Drop what is too old or too much, the oldest first, and count it. Returns how many."""
        ...

    def stats(self, kinds: Collection[str]) -> dict[str, OutboxStats]:
        """State of each of `kinds`."""
        ...

    def dead_items(self, limit: int = 100) -> list[tuple[OutboxItem, str]]:
        """The items set aside last, newest first, each with its reason."""
        ...

    def revive(self) -> int:
        """Put everything set aside back at the end of its lane, for when its receiver has been mended; how many."""
        ...

"""The data channel between a visit and its device: ordered sending, careful receiving."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

import structlog

from agent.device.calls import DeviceCalls
from agent.device.messages import AbortPlayback, DeviceAnswer, Ignored, Incoming, Outgoing, PlayMusic, PlayStory, parse
from agent.telemetry.meter import meter

log = structlog.get_logger(__name__)

MAX_QUEUED: Final = 256
"""Messages that wait to be sent; beyond, the oldest is dropped and counted."""
SEND_TIMEOUT: Final = 5.0
DRAIN_TIMEOUT: Final = 1.0
"""Seconds `aclose` gives the last messages."""
RATE: Final = 50.0
"""Messages a second that a device may send for long."""
BURST: Final = 100.0
DOUBLE_PRESS: Final = 0.15
"""Seconds within which a second `abort_playback` is the same press of the button."""
MAX_RUNNING: Final = 32
"""Handlers of one link that may run at once."""
MAX_ABORTS: Final = 8
"""And as many more for an abort, which must not wait for others."""

M = TypeVar("M", bound=Incoming)
Handler = Callable[[M], Awaitable[None] | None]


class Sender(Protocol):
    """What of `rtc.LocalParticipant` is used."""

    async def publish_data(
        self, payload: bytes | str, *, reliable: bool = ..., destination_identities: list[str] = ..., topic: str = ...
    ) -> None: ...


class RoomLike(Protocol):
    """What of `rtc.Room` is used."""

    @property
    def local_participant(self) -> Sender: ...
    def on(self, event: Any, callback: Any = ...) -> Any: ...
    def off(self, event: Any, callback: Any) -> None: ...


class TokenBucket:
    """Lets `rate` events a second through, `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()

    def take(self) -> bool:
        """Whether one more may pass now."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class DeviceLink:
    """A visit's link to its device. Make it on the room's loop, before or after connecting; `start` after connecting.

    It listens from the moment it is made, and what is sent before `start` goes out then, in order.
    `identity` is the only participant that is listened to and sent to. `counts` holds what was sent, received,
    ignored (by reason), flooded, dropped and doubled; `calls` are the device calls.
    """

    def __init__(
        self,
        room: RoomLike,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        calls: DeviceCalls | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self.calls = calls or DeviceCalls(self.publish)
        self._room = room
        self._identity = identity
        self._clock = clock
        self._queue: deque[tuple[Outgoing, asyncio.Future[None] | None]] = deque()
        self._wake = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._handlers: dict[type, list[Handler[Any]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._bucket = TokenBucket(RATE, BURST, clock)
        self._abort_bucket = TokenBucket(10.0, 10.0, clock)
        self._aborted_at = float("-inf")
        self._closed = False
        room.on("data_received", self._on_data)

    def start(self) -> None:
        """Begin to send. Once, after the room is connected."""
        if self._sender is not None:
            raise RuntimeError("a device link is started once")
        self._sender = asyncio.create_task(self._send_all(), name="device link")

    def on(self, kind: type[M], handler: Handler[M]) -> Callable[[], None]:
        """Call `handler` for each message of `kind`, in order of registration; returns what takes it back.

        A handler that returns an awaitable runs as a task that `aclose` ends. One that raises is logged and harms
        no other. An `AbortPlayback` comes once for each press, however often the device repeats it.
        """
        handlers = self._handlers.setdefault(kind, [])
        handlers.append(handler)

        def take_back() -> None:
            with suppress(ValueError):  # taken back twice
                handlers.remove(handler)

        return take_back

    def send(self, message: Outgoing) -> None:
        """Send in order, without waiting; failures are counted and logged. After `aclose` nothing is sent."""
        self._put(message, None)

    async def publish(self, message: Outgoing) -> None:
        """Send in order, and wait until it is sent. Raises ConnectionError where it could not be."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(message, sent)
        await sent

    async def aclose(self) -> None:
        """Stop listening, send what still waits (for DRAIN_TIMEOUT), end handlers and calls.

        May be called twice, and by a handler, which then is not ended.
        """
        if self._closed:
            return
        self._closed = True
        self._room.off("data_received", self._on_data)
        self.calls.close()
        self._wake.set()
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=DRAIN_TIMEOUT)
            self._sender.cancel()
        others = self._running - {asyncio.current_task()}
        for task in others:
            task.cancel()
        left = [task for task in (self._sender, *others) if task is not None]
        await asyncio.gather(*left, return_exceptions=True)
        while self._queue:
            self._drop(*self._queue.popleft())
        for what in self.counts:
            self._tell(what)

    # --- sending

    def _put(self, message: Outgoing, sent: asyncio.Future[None] | None) -> None:
        if self._closed:
            self._drop(message, sent)
            return
        if len(self._queue) >= MAX_QUEUED:
            self._drop(*self._queue.popleft())
        self._queue.append((message, sent))
        self._wake.set()

    def _drop(self, _message: Outgoing, sent: asyncio.Future[None] | None) -> None:
        self._count("dropped")
        if sent is not None and not sent.done():
            sent.set_exception(ConnectionError("the device link is closed or full"))

    async def _send_all(self) -> None:
        while True:
            while self._queue:
                message, sent = self._queue.popleft()
                if sent is not None and sent.done():
                    continue  # whoever wanted it waits no more
                await self._send_one(message, sent)
            if self._closed:
                return
            self._wake.clear()
            await self._wake.wait()

    async def _send_one(self, message: Outgoing, sent: asyncio.Future[None] | None) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._room.local_participant.publish_data(
                    message.payload,
                    reliable=True,
                    destination_identities=[self._identity],
                    topic=message.topic or "",
                )
        except Exception as error:  # noqa: BLE001 — the SDK raises bare Exceptions; one lost message ends no visit
            self._count("send_failed")
            if sent is not None and not sent.done():
                sent.set_exception(ConnectionError(f"not sent: {type(error).__name__}"))
            return
        except asyncio.CancelledError:
            self._drop(message, sent)
            raise
        self.counts["sent"] += 1
        if sent is not None and not sent.done():
            sent.set_result(None)

    # --- receiving

    def _on_data(self, packet: Any) -> None:
        sender = packet.participant.identity if packet.participant is not None else None
        data: bytes = packet.data
        # Others must not use up the device's share, and a flooding device must still be able to stop the sound.
        if sender == self._identity and not self._bucket.take():
            urgent = b'"abort_playback"' in data[:256] and self._abort_bucket.take()
            if not urgent:
                self._count("flooded")
                return
        message = parse(data, sender, self._identity)
        if isinstance(message, Ignored):
            self._count(f"ignored_{message.reason}")
            return
        self.counts["received"] += 1
        if isinstance(message, DeviceAnswer):
            self.calls.on_message(message)
        if isinstance(message, AbortPlayback) and self._is_double():
            self._count("doubled_abort")
            return
        if isinstance(message, PlayMusic | PlayStory):
            self._aborted_at = float("-inf")  # an abort after a new wish is a new one
        for handler in list(self._handlers.get(type(message), ())):
            self._run(handler, message)

    def _is_double(self) -> bool:
        now = self._clock()
        if now - self._aborted_at < DOUBLE_PRESS:
            return True
        self._aborted_at = now
        return False

    def _run(self, handler: Handler[Any], message: Incoming) -> None:
        if len(self._running) >= (MAX_RUNNING + MAX_ABORTS if isinstance(message, AbortPlayback) else MAX_RUNNING):
            self._count("busy")
            return
        try:
            outcome = handler(message)
        except Exception:  # noqa: BLE001 — a handler's bug must not reach the SDK, nor stop the other handlers
            self._failed(message)
            return
        if outcome is not None:
            task = asyncio.ensure_future(self._supervise(outcome, message))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _supervise(self, outcome: Awaitable[None], message: Incoming) -> None:
        try:
            await outcome
        except Exception:  # noqa: BLE001 — a handler's bug is logged, the visit goes on
            self._failed(message)

    def _failed(self, message: Incoming) -> None:
        if count := self._worth_a_line("handler_failed"):
            log.exception("device message handler failed", kind=type(message).__name__, count=count)

    def _count(self, what: str) -> None:
        if count := self._worth_a_line(what):
            log.warning("device message not handled", reason=what, count=count)

    def _worth_a_line(self, what: str) -> int:
        """Counts, and gives the 1st, 2nd, 4th, 8th … count, else 0: a flood of messages is not a flood of lines."""
        self.counts[what] += 1
        count = self.counts[what]
        if count & (count - 1):
            return 0
        self._tell(what)
        return count

    def _tell(self, what: str) -> None:
        # As seldom as lines: a flood of messages is not a flood of records either.
        if new := self.counts[what] - self._told[what]:
            meter.count("toy_device_messages", new, result=what)
            self._told[what] += new

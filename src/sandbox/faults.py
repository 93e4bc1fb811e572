"""How a stand-in behaves: its delays and its faults, settable while it runs, one vocabulary for every service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aiohttp import web


class Fault(StrEnum):
    """What goes wrong with a request."""

    HANG = "hang"
    """Takes the request and never answers."""
    STALL = "stall"
    """Begins to answer, then falls silent with the connection open."""
    RATE_LIMIT = "rate_limit"
    """429 with `Retry-After`."""
    ERROR = "error"
    """500."""
    UNAUTHORISED = "unauthorised"
    """401."""
    RESET = "reset"
    """Begins to answer, then resets the connection."""
    TRUNCATE = "truncate"
    """Begins to answer, then closes the connection as if that were all."""
    NONSENSE = "nonsense"
    """200, and a body that is not what the protocol promises."""


class Cut(Exception):
    """The fault has ended this answer: nothing more may be sent."""


@dataclass
class Behaviour:
    """Delays and fault of one service.

    `first` is the time to the first byte or token and `gap` the time between chunks, in seconds. A fault in the middle
    of an answer (stall, reset, truncate) strikes before chunk number `after`, counted from 0. `times` is how many
    requests the fault still strikes, None until healed. `requests` counts all, `faulted` those struck.
    """

    first: float = 0.0
    gap: float = 0.0
    fault: Fault | None = None
    after: int = 1
    times: int | None = None
    retry_after: float = 1.0
    requests: int = 0
    faulted: int = 0
    _healed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def fail(self, fault: Fault | str, *, times: int | None = None, after: int = 1, retry_after: float = 1.0) -> None:
        """Strike the next requests with `fault`; see the class for the other arguments."""
        self.fault, self.times, self.after, self.retry_after = Fault(fault), times, after, retry_after
        self._healed = asyncio.Event()

    def heal(self) -> None:
        """Work again; requests that hang or stall now are cut."""
        self.fault = self.times = None
        self._healed.set()

    def take(self) -> Fate:
        """Count a request and decide what becomes of it."""
        self.requests += 1
        fault = self.fault
        if fault is not None and self.times is not None:
            if self.times <= 0:
                fault = None
            else:
                self.times -= 1
        if fault is not None:
            self.faulted += 1
        return Fate(self, fault, self._healed)

    def update(self, values: dict[str, Any]) -> None:
        """Set from the control API's JSON: `first`, `gap`, `fault` (null heals), `times`, `after`, `retry_after`.

        Raises ValueError naming a field that is unknown or out of range.
        """
        unknown = values.keys() - {"first", "gap", "fault", "times", "after", "retry_after"}
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        for name in ("first", "gap", "retry_after"):
            if name in values:
                setattr(self, name, _not_negative(name, values[name]))
        if values.get("fault") is None:
            if "fault" in values:
                self.heal()
            return
        times = values.get("times")
        self.fail(
            values["fault"],
            times=None if times is None else int(_not_negative("times", times)),
            after=int(_not_negative("after", values.get("after", 1))),
            retry_after=self.retry_after,
        )

    def snapshot(self) -> dict[str, Any]:
        """State for the control API."""
        return {
            "first": self.first,
            "gap": self.gap,
            "fault": self.fault,
            "times": self.times,
            "after": self.after,
            "retry_after": self.retry_after,
            "requests": self.requests,
            "faulted": self.faulted,
        }


def _not_negative(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError(f"{name} must be a number that is not negative")
    return value


@dataclass
class Fate:
    """What becomes of one request: handlers call `before_answer`, then `before_chunk` ahead of every chunk."""

    behaviour: Behaviour
    fault: Fault | None
    _healed: asyncio.Event
    _chunk: int = 0

    @property
    def nonsense(self) -> bool:
        """Whether to answer 200 with rubbish."""
        return self.fault is Fault.NONSENSE

    async def before_answer(self, request: web.Request | None = None) -> None:
        """Wait the first delay. Raises HTTPException for an error reply, and Cut when a hang is healed.

        With `request` the hanging connection is aborted then.
        """
        if self.fault is Fault.HANG:
            await self._healed.wait()
            if request is not None:
                _abort(request)
            raise Cut
        if self.behaviour.first:
            await asyncio.sleep(self.behaviour.first)
        if self.fault is Fault.RATE_LIMIT:
            raise web.HTTPTooManyRequests(
                headers={"Retry-After": f"{self.behaviour.retry_after:g}"},
                text='{"error":{"message":"rate limit reached","type":"requests","code":"rate_limit_exceeded"}}',
                content_type="application/json",
            )
        if self.fault is Fault.ERROR:
            raise web.HTTPInternalServerError(
                text='{"error":{"message":"the server had an error","type":"server_error"}}',
                content_type="application/json",
            )
        if self.fault is Fault.UNAUTHORISED:
            raise unauthorised()

    async def before_chunk(
        self, cut: Callable[[], Awaitable[Any] | None], close: Callable[[], Awaitable[Any] | None]
    ) -> None:
        """Wait the gap; where the fault strikes, end the answer through `cut` (reset) or `close` and raise Cut."""
        index, self._chunk = self._chunk, self._chunk + 1
        if self.behaviour.gap and index:
            await asyncio.sleep(self.behaviour.gap)
        if index < self.behaviour.after:
            return
        if self.fault is Fault.STALL:
            await self._until_healed()
        elif self.fault is Fault.RESET:
            await _call(cut)
            raise Cut
        elif self.fault is Fault.TRUNCATE:
            await _call(close)
            raise Cut

    async def before_body(self, request: web.Request) -> None:
        """For an answer sent whole: the faults that strike in mid-answer end it before its body."""
        self._chunk = max(self._chunk, self.behaviour.after)
        await self.before_chunk(lambda: _abort(request), lambda: _close(request))

    async def _until_healed(self) -> None:
        await self._healed.wait()
        raise Cut


async def _call(action: Callable[[], Awaitable[Any] | None]) -> None:
    result = action()
    if result is not None:
        await result


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


class Stream:
    """A chunked HTTP answer that suffers its fate."""

    def __init__(self, request: web.Request, fate: Fate, content_type: str) -> None:
        self._request = request
        self._fate = fate
        self.response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-cache"})

    async def write(self, data: bytes) -> None:
        """Send one chunk after its gap. Raises Cut when the fault has struck."""
        if not self.response.prepared:
            await self.response.prepare(self._request)
        try:
            await self._fate.before_chunk(lambda: _abort(self._request), lambda: _close(self._request))
        except Cut:
            _close(self._request)
            raise
        await self.response.write(data)

    async def finish(self) -> web.StreamResponse:
        """End the answer properly."""
        if not self.response.prepared:
            await self.response.prepare(self._request)
        await self.response.write_eof()
        return self.response


def unauthorised(message: str = "Incorrect API key provided") -> web.HTTPUnauthorized:
    """The 401 that OpenAI-compatible services answer."""
    return web.HTTPUnauthorized(
        text=f'{{"error":{{"message":"{message}","type":"invalid_request_error","code":"invalid_api_key"}}}}',
        content_type="application/json",
    )


@web.middleware
async def swallow_cut(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn Cut into the end of a connection that is already gone."""
    try:
        return await handler(request)
    except Cut:
        _close(request)
        return web.Response(status=499)

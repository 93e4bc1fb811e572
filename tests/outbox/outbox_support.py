"""A receiver on a real socket with faults, and a deliverer that speaks to it; also run in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from agent.errors import RateLimited, Unavailable, Undeliverable
from agent.outbox.items import OutboxItem


@dataclass
class Receiver:
    """Keeps each key once. `faults(lane, attempt)` names what happens to a request: ok, hang, reset, lost or a status.

    `lost` keeps the item and then drops the connection: the sender cannot know that it arrived.
    """

    faults: Callable[[str, int], str] = lambda lane, attempt: "ok"
    kept: dict[str, list[str]] = field(default_factory=dict)
    requests: int = 0
    repeats: int = 0
    url: str = ""
    _keys: set[str] = field(default_factory=set)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Receiver:
        app = web.Application()
        app.router.add_post("/{lane}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def total(self) -> int:
        return sum(len(lines) for lines in self.kept.values())

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)

    async def _take(self, request: web.Request) -> web.StreamResponse:
        lane = request.match_info["lane"]
        key = request.headers["Idempotency-Key"]
        body = (await request.json())["text"]
        self.requests += 1
        fault = self.faults(lane, self.requests)
        async with self._changed:
            self._changed.notify_all()
        if fault == "hang":
            await asyncio.Event().wait()
        if fault in ("ok", "lost"):
            if key in self._keys:
                self.repeats += 1
            else:
                self._keys.add(key)
                self.kept.setdefault(lane, []).append(body)
            async with self._changed:
                self._changed.notify_all()
        if fault in ("reset", "lost"):
            assert request.transport is not None
            request.transport.abort()
        if fault == "429":
            return web.Response(status=429, headers={"Retry-After": "1"})
        return web.Response(status=200 if fault in ("ok", "lost", "reset") else int(fault))


class HttpDeliverer:
    """Posts an item's text to the receiver."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def __call__(self, item: OutboxItem) -> None:
        try:
            async with self._session.post(
                f"{self._url}/{item.lane}",
                json=item.payload,
                headers={"Idempotency-Key": item.key},
                timeout=aiohttp.ClientTimeout(total=1),
            ) as response:
                if response.status == 429:
                    raise RateLimited("patience", float(response.headers["Retry-After"]))
                if response.status == 422:
                    raise Undeliverable("validation")
                if response.status >= 500:
                    raise Unavailable(f"HTTP {response.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(type(error).__name__) from None


def line(lane: str, number: int, kind: str = "chat") -> OutboxItem:
    return OutboxItem.of(
        "memory" if kind == "memory" else "chat", lane, {"text": str(number)}, key=f"{kind}-{lane}-{number}"
    )

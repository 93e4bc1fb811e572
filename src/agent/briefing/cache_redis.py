"""The Manager API's answers in Redis: a device is known on whichever machine it lands. And beside it on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import structlog

from agent.briefing.cache import AnswerCache, Entry
from agent.briefing.profile import Part
from agent.errors import Unavailable
from agent.redis_client import FAILURES, PREFIX, connect_async
from agent.values import DeviceMac

T = TypeVar("T")

_READ_DEADLINE: Final = 0.15
_WRITE_DEADLINE: Final = 1.5
_FORGOTTEN: Final = ""
"""Stands for an answer that is kept no more, but may still be on another machine or in Redis. No answer is empty."""

_log = structlog.get_logger(__name__)


class RedisCache:
    """`AnswerCache` in Redis. A device's answers are one hash, which goes `max_age` seconds after its last change."""

    def __init__(self, url: str, *, scope: str, max_age: float, clock: Callable[[], float] = time.time) -> None:
        self._redis = connect_async(url, timeout=_WRITE_DEADLINE)
        self._scope = hashlib.sha256(scope.encode()).hexdigest()[:16]
        self._max_age = max_age
        self._clock = clock

    async def read(self, mac: DeviceMac) -> Mapping[Part, Entry]:
        """See AnswerCache. Gives up after 150 ms."""
        found = await self._ask(self._redis.hgetall(self._name(mac)), _READ_DEADLINE)
        now, known = self._clock(), set(Part)
        answers = {}
        for part, kept in found.items():
            try:
                stored_at, body = json.loads(kept)
                entry = Entry(str(body), now - float(stored_at))
            except (ValueError, TypeError):
                _log.warning("an answer in Redis cannot be read", part=part)
                continue
            if part in known and entry.age <= self._max_age:
                answers[Part(part)] = entry
        return answers

    async def put(self, mac: DeviceMac, part: Part, body: str) -> None:
        """See AnswerCache."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._name(mac), part.value, json.dumps([self._clock(), body]))
            pipe.expire(self._name(mac), max(1, round(self._max_age)))
            await self._ask(pipe.execute(), _WRITE_DEADLINE)

    async def forget(self, mac: DeviceMac, part: Part) -> None:
        """See AnswerCache."""
        await self._ask(self._redis.hdel(self._name(mac), part.value), _WRITE_DEADLINE)

    async def purge(self) -> int:
        """See AnswerCache: Redis does it by itself."""
        return 0

    async def aclose(self) -> None:
        """Close the connections."""
        try:
            async with asyncio.timeout(_WRITE_DEADLINE):
                await self._redis.aclose()
        except (TimeoutError, *FAILURES) as error:
            _log.warning("the briefing cache in Redis did not close", reason=type(error).__name__)

    def _name(self, mac: DeviceMac) -> str:
        return f"{PREFIX}briefing:{self._scope}:{mac}"

    async def _ask(self, question: Awaitable[T], deadline: float) -> T:
        try:
            async with asyncio.timeout(deadline):
                return await question
        except (TimeoutError, *FAILURES) as error:
            raise Unavailable(f"the briefing cache in Redis cannot be used: {type(error).__name__}") from None


class TieredCache:
    """`AnswerCache` of two: what is `near` (this machine's disk) and what is `shared`.

    Each part is read from where it is younger, written to both, and either may be away: that is logged, and only both
    together are Unavailable. What is forgotten is so on every machine.
    """

    def __init__(self, near: AnswerCache, shared: AnswerCache) -> None:
        self._near = near
        self._shared = shared

    async def read(self, mac: DeviceMac) -> Mapping[Part, Entry]:
        """See AnswerCache."""
        both = await self._both(lambda cache: cache.read(mac))
        found: dict[Part, Entry] = {}
        for answers in both:
            for part, entry in answers.items():
                # An age below nothing comes from a clock that was wrong: anything else is better.
                if part not in found or _rank(entry) < _rank(found[part]):
                    found[part] = entry
        return {part: entry for part, entry in found.items() if entry.body != _FORGOTTEN}

    async def put(self, mac: DeviceMac, part: Part, body: str) -> None:
        """See AnswerCache."""
        await self._both(lambda cache: cache.put(mac, part, body))

    async def forget(self, mac: DeviceMac, part: Part) -> None:
        """See AnswerCache."""
        await self.put(mac, part, _FORGOTTEN)

    async def purge(self) -> int:
        """See AnswerCache."""
        return sum(await self._both(lambda cache: cache.purge()))

    async def aclose(self) -> None:
        """Close both."""
        await self._near.aclose()
        await self._shared.aclose()

    async def _both(self, ask: Callable[[AnswerCache], Awaitable[T]]) -> list[T]:
        async def outcome(cache: AnswerCache) -> T | Unavailable:
            try:
                return await ask(cache)
            except Unavailable as error:
                return error

        outcomes = await asyncio.gather(outcome(self._near), outcome(self._shared))
        problems = [found for found in outcomes if isinstance(found, Unavailable)]
        if len(problems) == len(outcomes):
            raise problems[0]
        for problem in problems:
            _log.warning("one of two briefing caches is away", reason=str(problem))
        return [found for found in outcomes if not isinstance(found, Unavailable)]


def _rank(entry: Entry) -> tuple[bool, float]:
    return entry.age < 0, entry.age

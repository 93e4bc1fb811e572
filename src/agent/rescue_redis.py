"""What workers on several machines tell each other through Redis: who rescues a room, and which agents live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import structlog
from livekit import api

from agent.redis_client import FAILURES, PREFIX, connect_async

log = structlog.get_logger(__name__)

BEAT_EVERY: Final = 1.0
"""Seconds between two signs of life of a worker's agents."""
DEAD_AFTER: Final = 5.0
"""Seconds without one after which an agent is dead: LiveKit shows it for some twenty."""
UNHEARD_AFTER: Final = 1.5
"""Seconds without one that Redis has taken after which a worker says so in another way."""
_TRUSTED_AFTER: Final = 2 * DEAD_AFTER
_REMEMBERED: Final = 120
_TIMEOUT: Final = 1.0
_AGENTS: Final = f"{PREFIX}agents"
_BEAT: Final = """
local time = redis.call("TIME")
local now = time[1] + time[2] / 1e6
for _, agent in ipairs(ARGV) do redis.call("ZADD", KEYS[1], string.format("%.3f", now), agent) end
"""
_DEAD: Final = """
local time = redis.call("TIME")
local now, dead = time[1] + time[2] / 1e6, {}
for i = 2, #ARGV do
    local at = redis.call("ZSCORE", KEYS[1], ARGV[i])
    if at and now - at > tonumber(ARGV[1]) then table.insert(dead, ARGV[i]) end
end
return dead
"""
_FORGET: Final = """
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", redis.call("TIME")[1] - ARGV[1])
"""


class RedisClaims:
    """`Claims` through Redis. Without an answer as if nobody else were there: a second agent leaves by itself."""

    def __init__(self, url: str, name: str, *, ttl: float) -> None:
        self._redis = connect_async(url, timeout=_TIMEOUT)
        self._name = name
        self._ttl = ttl

    async def claim(self, room: api.Room) -> bool:
        """See Claims."""
        try:
            return bool(await self._redis.set(f"{PREFIX}rescue:{room.sid}", self._name, nx=True, ex=round(self._ttl)))
        except FAILURES as error:
            log.warning("rescues cannot be agreed upon", error=type(error).__name__)
            return True

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


class RedisHeartbeats:
    """`Heartbeats` through Redis, whose clock is everybody's. Run `run` as a task; `clock` is monotonic, in seconds.

    Who has not been heard by Redis for a while itself says nothing of others: they may all have been unheard.
    `unheard` is told, after each beat, whether others may take the agents that live here for dead.
    """

    def __init__(
        self,
        url: str,
        living: Callable[[], Collection[str]],
        *,
        unheard: Callable[[bool], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = connect_async(url, timeout=_TIMEOUT)
        self._living = living
        self._unheard = unheard
        self._clock = clock
        self._heard_at = float("-inf")
        self._heard_since = float("inf")
        self._beat = self._redis.register_script(_BEAT)
        self._dead = self._redis.register_script(_DEAD)
        self._forget = self._redis.register_script(_FORGET)

    async def run(self) -> None:
        """Tell of the agents that live here, until cancelled."""
        while True:
            await self.beat()
            await self._unheard(self._clock() - self._heard_at > UNHEARD_AFTER)
            await asyncio.sleep(BEAT_EVERY)

    async def beat(self) -> None:
        """Tell once. Failures are logged: the first of a row."""
        try:
            await self._beat(keys=[_AGENTS], args=list(self._living()))
            await self._forget(keys=[_AGENTS], args=[_REMEMBERED])
        except FAILURES as error:
            if self._heard_since != float("inf"):
                log.warning("other workers cannot hear that our agents live", error=type(error).__name__)
            self._heard_since = float("inf")
            return
        now = self._clock()
        if self._heard_since == float("inf") or now - self._heard_at > DEAD_AFTER:
            self._heard_since = now
        self._heard_at = now

    async def dead(self, agents: Collection[str]) -> frozenset[str]:
        """See Heartbeats."""
        now = self._clock()
        if not agents or now - self._heard_since < _TRUSTED_AFTER or now - self._heard_at > DEAD_AFTER:
            return frozenset()
        try:
            return frozenset(await self._dead(keys=[_AGENTS], args=[DEAD_AFTER, *agents]))
        except FAILURES as error:
            log.warning("other workers' agents cannot be asked for", error=type(error).__name__)
            return frozenset()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

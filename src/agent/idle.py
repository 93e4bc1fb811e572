"""How many warm processes wait for a room: as many as have lately been needed at once, between two bounds."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from agent.pool import PoolWatch

log = structlog.get_logger(__name__)

REFILL_S: Final = 10.0
"""Rooms within so many seconds are a burst: on a busy machine the pool is not full again any sooner."""
REMEMBERED_S: Final = 300.0
"""For so long a burst is prepared for."""
_EVERY_S: Final = 1.0


class IdleProcesses:
    """Sets the pool's number of warm processes, from `least` to `most`.

    `arrived` is told of each room; `run` follows until it is cancelled. A pool that was filled for a burst is emptied
    again when the burst has been forgotten.
    """

    def __init__(self, pool: PoolWatch, *, least: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._least = least
        self._most = most
        self._clock = clock
        self._arrivals: deque[float] = deque()

    @property
    def wanted(self) -> int:
        """Processes to keep warm now: the most rooms that came within REFILL_S, of the last REMEMBERED_S."""
        now = self._clock()
        while self._arrivals and self._arrivals[0] < now - REMEMBERED_S:
            self._arrivals.popleft()
        burst, first = 0, 0
        arrivals = list(self._arrivals)
        for last, at in enumerate(arrivals):
            while at - arrivals[first] > REFILL_S:
                first += 1
            burst = max(burst, last - first + 1)
        return min(self._most, max(self._least, burst))

    def arrived(self) -> None:
        """A room is about to take a process."""
        self._arrivals.append(self._clock())
        self._pool.want(self.wanted)

    async def adjust(self) -> None:
        """Want what is wanted now, and end what is too many."""
        self._pool.want(self.wanted)
        await self._pool.close_surplus()

    async def run(self) -> None:
        """Adjust every second until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.adjust()
            except Exception as error:  # whatever a process ends with, the others are looked after
                log.error("a warm process did not end well", exc_info=error)

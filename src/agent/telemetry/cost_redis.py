"""What each device has cost on each day on all machines, in Redis: so that a day's budget is granted once.

Each worker adds what it writes into its own books. Importing this imports redis-py: see `redis_client`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from agent.redis_client import FAILURES, PREFIX, connect

log = structlog.get_logger(__name__)

_TIMEOUT: Final = 0.5
_REST: Final = 5.0
"""After a failure Redis is left alone for so many seconds."""
_KEPT: Final = 3 * 86400


class DaySums:
    """Sums by day (`YYYY-MM-DD`) and device (its pseudonym). For one thread; a call blocks for half a second or so."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = connect(url, timeout=_TIMEOUT)
        self._clock = clock
        self._owed: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._rest_until = float("-inf")

    def add(self, day: str, device: str, amount: float) -> None:
        """Add a cost; never raises. What Redis does not take now is added with a later one."""
        if amount:
            self._owed[day, device] += amount
        if self._clock() >= self._rest_until:
            self._settle()

    def spent(self, day: str, device: str) -> float | None:
        """What the device has cost on all machines; None where Redis cannot be asked."""
        try:
            return float(self._redis.get(_name(day, device)) or 0.0)
        except (*FAILURES, ValueError) as error:
            log.warning("the day's costs on other machines are not known", reason=type(error).__name__)
            return None

    def close(self) -> None:
        """Try once more to add what Redis has not taken, and close."""
        self._settle()
        with suppress(*FAILURES):
            self._redis.close()

    def _settle(self) -> None:
        try:
            for (day, device), amount in list(self._owed.items()):
                with self._redis.pipeline(transaction=True) as pipe:
                    pipe.incrbyfloat(_name(day, device), amount)
                    pipe.expire(_name(day, device), _KEPT)
                    pipe.execute()
                del self._owed[day, device]
        except FAILURES as error:
            self._rest_until = self._clock() + _REST
            log.warning("costs are not in Redis yet", reason=type(error).__name__, devices=len(self._owed))


def _name(day: str, device: str) -> str:
    return f"{PREFIX}cost:{day}:{device}"

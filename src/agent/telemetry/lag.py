"""How late an event loop wakes up: what every child in it waits for."""

from __future__ import annotations

import asyncio
from typing import Final

from agent.telemetry.meter import Meter, meter

INTERVAL_S: Final = 1.0


class LagProbe:
    """Measures the running loop once a second. `process` is `worker` or `room`."""

    def __init__(self, process: str, *, interval: float = INTERVAL_S, to: Meter = meter) -> None:
        self._process = process
        self._interval = interval
        self._meter = to
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._next(self._loop)

    def stop(self) -> None:
        """End; safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + self._interval
        self._timer = loop.call_at(due, self._woke, loop, due)

    def _woke(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._meter.observe("toy_loop_lag_seconds", max(0.0, loop.time() - due), process=self._process)
        self._next(loop)

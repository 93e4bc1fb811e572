"""Liveness, readiness and what the worker is doing, over HTTP and for admission."""

from __future__ import annotations

import os
from collections import Counter
from types import TracebackType
from typing import Any, Self

import psutil
from aiohttp import web
from livekit.agents import AgentServer

from agent.process import read_problems
from agent.settings import Settings

_ROOMS_PER_CORE = 10
_MB_PER_ROOM = 100


class WorkerState:
    """What admission and the health server know of the running worker; lives in the worker's main process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.capacity = settings.max_rooms or default_capacity()
        self.draining = False
        self.registered = False
        self.refused: Counter[str] = Counter()
        self._server: AgentServer | None = None

    def attach(self, server: AgentServer) -> None:
        """Follow this server's registration and jobs."""
        self._server = server
        server.on("worker_registered", lambda *_: setattr(self, "registered", True))

    @property
    def active(self) -> int:
        """Rooms with a visit now."""
        return len(self._server.active_jobs) if self._server is not None and self.registered else 0

    def load(self) -> float:
        """Share of the capacity in use, 0 to 1: what LiveKit compares workers by."""
        return min(self.active / self.capacity, 1.0)

    def has_room(self) -> bool:
        """Whether one more visit fits."""
        return not self.draining and self.active < self.capacity

    def refuse(self, reason: str) -> None:
        """Count a refused room."""
        self.refused[reason] += 1

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Ready when registered, not draining, and processes are whole; with the reasons where not."""
        problems = read_problems(self.settings)
        report = {
            "registered": self.registered,
            "draining": self.draining,
            "active_calls": self.active,
            "max_concurrent_calls": self.capacity,
            "problems": problems,
        }
        return self.registered and not self.draining and not problems, report


def default_capacity() -> int:
    """Rooms that cores and memory of this machine carry."""
    cores = len(os.sched_getaffinity(0))
    memory_mb = psutil.virtual_memory().total // 2**20
    return max(1, min(cores * _ROOMS_PER_CORE, memory_mb // _MB_PER_ROOM))


class HealthServer:
    """`/` and `/live`: the worker's loop runs. `/ready`: rooms may come. An async context manager."""

    def __init__(self, settings: Settings, state: WorkerState) -> None:
        self._settings = settings
        self._state = state
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.get("/", self._live), web.get("/live", self._live), web.get("/ready", self._ready)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.http_host, self._settings.http_port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _live(self, _request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def _ready(self, _request: web.Request) -> web.Response:
        ready, report = self._state.readiness()
        return web.json_response({"ready": ready, **report}, status=200 if ready else 503)

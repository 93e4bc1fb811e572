"""Liveness, readiness, metrics and what the worker is doing, over HTTP and for admission."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil
from aiohttp import web
from livekit.agents import AgentServer
from livekit.agents.job import RunningJobInfo
from prometheus_client import CONTENT_TYPE_LATEST

from agent.errors import SettingsError
from agent.idle import IdleProcesses
from agent.pool import PoolWatch
from agent.process import read_problems
from agent.settings import Settings
from agent.telemetry.hub import MetricsHub

ROOMS_PER_CORE: Final = 4
"""Rooms in which somebody talks all the time, with three tenths of the core left: `scripts/bench capacity`."""
MB_PER_ROOM: Final = 80
"""Memory that a talking room has for itself, with a fifth to spare: `scripts/bench capacity`."""
MB_PER_WARM_PROCESS: Final = 25
MB_OF_WORKER: Final = 400
"""The worker itself, and what all its processes share."""
CONTROL_GROUP: Final = Path("/sys/fs/cgroup")
"""Where a container reads its own limits (cgroup version 2)."""
_REASONS: Final = ("identity", "full", "memory", "processes", "rate", "device_rate")
LOAD_TARGET: Final = 0.6
"""Reported loads stay below this while a room fits: from 0.65 on livekit-server (1.8) sends a worker none."""
ACCEPTED_S: Final = 6.0
"""For so long a room that was accepted may wait for its process, before it counts as one without an agent."""
WARM_GRACE_S: Final = 10.0
"""For so long no process may be warm before rooms are sent elsewhere: a burst takes them all for a moment."""


class WorkerState:
    """What admission and the health server know of the running worker; lives in the worker's main process.

    `free_mb` tells how many MB of memory are left.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        free_mb: Callable[[], int] = lambda: memory_mb()[1],
    ) -> None:
        self.settings = settings
        self.capacity = settings.max_rooms or default_capacity(settings)
        self.draining = False
        self.registered = False
        self.lacks: Mapping[str, str] = {}
        """What rooms are served without (see `process.lacks`): told among readiness' problems, no reason to send rooms
        elsewhere."""
        self.refused: Counter[str] = Counter()
        self.pool = PoolWatch(settings.num_idle_processes, stuck_s=settings.job_stuck_timeout, clock=clock)
        self.idle = IdleProcesses(self.pool, least=settings.num_idle_processes, most=most_idle(settings), clock=clock)
        self._clock = clock
        self._warm_at = float("-inf")
        self._server: AgentServer | None = None
        self._free_mb = free_mb
        self._accepted: dict[str, tuple[str, float]] = {}

    def attach(self, server: AgentServer) -> None:
        """Follow this server's registration and jobs."""
        self._server = server
        server.on("worker_registered", lambda *_: setattr(self, "registered", True))

    @property
    def connected(self) -> bool:
        """Whether LiveKit can send rooms now: registered there, and the connection has not been lost since."""
        return self.registered and not getattr(self._server, "_connecting", False)

    @property
    def active(self) -> int:
        """Rooms with a visit now."""
        return len(self._jobs())

    @property
    def taken(self) -> int:
        """Rooms with a visit now, or accepted and waiting for a process."""
        return self.active + len(self._waiting())

    @contextmanager
    def accepting(self, job_id: str, room: str) -> Iterator[None]:
        """Inside, a room is accepted and waits for its process: it takes a place, as one with a visit does."""
        self._accepted[job_id] = room, self._clock()
        self.idle.arrived()
        try:
            yield
        finally:
            del self._accepted[job_id]

    def rooms(self) -> frozenset[str]:
        """Names of the rooms with a visit now, or about to have one."""
        now = self._clock()
        about_to = (room for room, at in tuple(self._accepted.values()) if now - at < ACCEPTED_S)
        return frozenset([*(job.job.room.name for job in self._jobs()), *about_to])

    def agents(self) -> dict[str, str]:
        """Rooms of the visits now, by the identities of their agents."""
        return {job.accept_arguments.identity: job.job.room.name for job in self._jobs()}

    def _jobs(self) -> list[RunningJobInfo]:
        return self._server.active_jobs if self._server is not None and self.registered else []

    def _waiting(self) -> set[str]:
        # A job counts as running a moment before the framework says that it was launched.
        return set(self._accepted) - {job.job.id for job in self._jobs()}

    def can_rescue(self) -> bool:
        """Whether this worker could take a room that nobody serves."""
        return self.connected and self.has_room()

    @property
    def warm(self) -> int:
        """Processes that wait for a room."""
        pool = getattr(self._server, "_proc_pool", None)
        count = pool._warmed_proc_queue.qsize() if pool is not None else 0
        if count:
            self._warm_at = self._clock()
        return count

    def roles(self) -> dict[int, str]:
        """What each process of the pool does, by its id: `starting`, `warm` or `visit`."""
        pool = getattr(self._server, "_proc_pool", None)
        if pool is None:
            return {}
        warm = set(map(id, pool._warmed_proc_queue._queue))
        return {
            pid: "visit" if executor.running_job else "warm" if id(executor) in warm else "starting"
            for executor in pool.processes
            if (pid := getattr(executor, "pid", None)) is not None
        }

    def load(self) -> float:
        """What LiveKit compares workers by, from 0; 1 when no more room fits. Asked twice a second.

        Below LOAD_TARGET as long as one fits: from there on LiveKit's server offers a worker no room at all.
        """
        _ = self.warm  # so that readiness knows when one was last warm, however seldom it is asked
        return LOAD_TARGET * self.taken / (self.capacity + 1) if self.has_room() else 1.0

    def has_room(self) -> bool:
        """Whether one more visit fits, and a process for it can be had."""
        return self.obstacle() is None

    def obstacle(self) -> tuple[str, str] | None:
        """Why no room can be taken now: a reason to count, and words. None while one can."""
        if not self.pool.able:
            return "processes", self.pool.problem
        if self.draining:
            return "full", "the worker ends"
        if self.taken >= self.capacity:
            return "full", "the worker is full"
        if self._free_mb() < (len(self._waiting()) + 1) * MB_PER_ROOM:
            return "memory", "memory is short"
        return None

    def refuse(self, reason: str) -> None:
        """Count a refused room."""
        self.refused[reason] += 1

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Ready when connected, not draining, processes can be had and are whole, and one is warm; else with why."""
        problems = read_problems(self.settings)
        if self.pool.problem:
            problems["processes"] = self.pool.problem
        warm = self.warm
        warm_enough = not self.settings.num_idle_processes or self._clock() - self._warm_at <= WARM_GRACE_S
        report = {
            "registered": self.connected,
            "draining": self.draining,
            "warm_processes": warm,
            "active_calls": self.active,
            "max_concurrent_calls": self.capacity,
            "problems": {**self.lacks, **problems},
        }
        return self.connected and not self.draining and not problems and warm_enough, report

    async def show(self, hub: MetricsHub) -> None:
        """A source of the worker's gauges."""
        ready, report = self.readiness()
        hub.set("toy_ready", ready)
        hub.set("toy_registered", self.connected)
        hub.set("toy_draining", self.draining)
        hub.set("toy_degraded", len(report["problems"]))
        hub.set("toy_warm_processes", report["warm_processes"])
        hub.set("toy_warm_processes_wanted", self.idle.wanted)
        hub.replace("toy_process_failures", {(): self.pool.failed})
        hub.set("toy_visits_active", self.active)
        hub.set("toy_visits_capacity", self.capacity)
        hub.set("toy_utilisation_ratio", self.active / self.capacity)
        hub.replace("toy_refused", {(reason,): self.refused[reason] for reason in {*_REASONS, *self.refused}})


def default_capacity(settings: Settings, group: Path = CONTROL_GROUP) -> int:
    """Rooms that cores and memory carry, of this machine or of the container where that has less; at least 1."""
    total_mb, _ = memory_mb(group)
    left_mb = total_mb - MB_OF_WORKER - most_idle(settings) * MB_PER_WARM_PROCESS
    return max(1, min(int(cores(group) * ROOMS_PER_CORE), left_mb // MB_PER_ROOM))


def most_idle(settings: Settings) -> int:
    """The upper bound of warm processes; 0 where none are kept."""
    return max(settings.num_idle_processes, settings.max_idle_processes) if settings.num_idle_processes else 0


def cores(group: Path = CONTROL_GROUP) -> float:
    """Cores that this process may use, of the machine or of the container where that has less."""
    usable = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return min(usable, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # not in a container, or one without a limit ("max")
        return usable


def memory_mb(group: Path = CONTROL_GROUP) -> tuple[int, int]:
    """All and free memory in MB, of the machine or of the container where that has less.

    What files are kept in counts as free: it is given back when it is needed.
    """
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        limit, used = "max", 0
    with suppress(OSError, ValueError):
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(parts.get("inactive_file", 0)) + int(parts.get("active_file", 0))
    if limit.isdigit() and int(limit) < total:
        total, available = int(limit), max(0, min(available, int(limit) - used))
    return total // 2**20, available // 2**20


class HealthServer:
    """`/` and `/live`: the worker's loop runs. `/ready`: rooms may come. `/metrics`: for Prometheus. `/stats`: JSON.

    An async context manager.
    """

    def __init__(self, settings: Settings, state: WorkerState, hub: MetricsHub) -> None:
        self._settings = settings
        self._state = state
        self._hub = hub
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._live),
                web.get("/live", self._live),
                web.get("/ready", self._ready),
                web.get("/metrics", self._metrics),
                web.get("/stats", self._stats),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.http_host, self._settings.http_port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise SettingsError(
                f"HTTP_PORT: {self._settings.http_port} cannot be listened on at {self._settings.http_host}: "
                f"{os.strerror(error.errno or 0)}. Example: HTTP_PORT=8081, or 0 for any that is free"
            ) from None
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

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=await self._hub.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _stats(self, _request: web.Request) -> web.Response:
        state = self._state
        return web.json_response(
            {
                "active_calls": state.active,
                "max_concurrent_calls": state.capacity,
                "utilization_percent": round(state.active / state.capacity * 100, 1),
                "warm_processes": state.warm,
                "warm_processes_wanted": state.idle.wanted,
                "draining": state.draining,
                "refused": dict(state.refused),
                **self._hub.percentiles(),
            }
        )

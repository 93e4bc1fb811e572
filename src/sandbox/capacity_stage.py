"""Where capacity is measured: LiveKit server, stand-in providers, and workers beside each other by agent name."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from sandbox.bench_turn import Delays, providers
from sandbox.footprint import cpu_seconds
from sandbox.livekit_server import LiveKitServer
from sandbox.processes import REPO, WorkerProcess
from sandbox.staged import Staged

IDLE = 3
MANY = 200
"""Rooms a worker under test may take: what it can bear is what is looked for."""


@dataclass(frozen=True)
class Tested:
    """A worker and the name by which rooms ask for it."""

    name: str
    agent_name: str
    worker: WorkerProcess
    state: Path
    ours: bool = True

    async def settle(self, *, timeout: float = 90.0) -> None:
        """Wait until every job has ended and the pool is warm. Raises TimeoutError, ProcessFailed."""
        await self.worker.wait_until_ready(warm=1, timeout=timeout)
        async with asyncio.timeout(timeout):
            while True:
                if await self._settled():
                    return
                await asyncio.sleep(0.2)

    async def _settled(self) -> bool:
        if self.ours:
            stats = json.loads((await self.worker.health("/stats"))[1])
            return bool(stats["active_calls"] == 0 and stats["warm_processes"] >= IDLE)
        jobs = len(self.worker.events("received job request"))
        ended = len(self.worker.events("process exiting"))
        return ended >= jobs and self.worker.warmed >= IDLE + jobs

    def cpu_seconds(self) -> float:
        """CPU time of the worker and all its processes so far."""
        return cpu_seconds(self.worker.pid)


class Stage(Staged):
    """Started in order, stopped in reverse, as an async context manager."""

    def __init__(self, *, delays: Delays | None = None, talk: bool = True) -> None:
        self._delays = delays or Delays()
        self._talk = talk
        self._base: str | None = None
        self._stack = AsyncExitStack()
        self.server: LiveKitServer
        self.folder: Path

    async def _start(self) -> None:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="toy-capacity-")))
        self.server = await self._stack.enter_async_context(LiveKitServer(log_level="error"))
        if self._talk:
            self._base = await providers(self._stack, self._delays)

    async def worker(
        self, name: str, *, module: str | None = None, env: Mapping[str, str] | None = None, stack: AsyncExitStack
    ) -> Tested:
        """A warm worker that ends with `stack`: ours, or `module` of `sandbox.bench_workers`."""
        agent_name = f"capacity-{name.replace(' ', '-')}"
        state = self.folder / agent_name
        state.mkdir(exist_ok=True)
        full = {
            **self.server.environment,
            "AGENT_NAME": agent_name,
            "NUM_IDLE_PROCESSES": str(IDLE),
            "MAX_IDLE_PROCESSES": str(IDLE),
            "MAX_ROOMS": str(MANY),
            "JOINS_PER_MINUTE": "10000",
            "STATE_DIR": str(state),
            "GREETINGS_DIR": str(REPO / "greetings"),
            **({f"{kind}_BASE_URL": self._base for kind in ("LLM", "STT", "TTS")} if self._base else {}),
            **(env or {}),
        }
        command = [sys.executable, "-m", "sandbox.bench_workers", module] if module else None
        process = WorkerProcess(full, cwd=state, command=command, name=name)
        await stack.enter_async_context(process)
        tested = Tested(name, agent_name, process, state, ours=module is None)
        await tested.settle()
        return tested

    def server_cpu_seconds(self) -> float:
        """CPU time of the LiveKit server so far."""
        assert self.server.process is not None
        return cpu_seconds(self.server.process.pid)

    def providers_cpu_seconds(self) -> float:
        """CPU time of the stand-ins so far."""
        return sum(cpu_seconds(child.pid) for child in psutil.Process().children() if _is_providers(child))


def _is_providers(process: psutil.Process) -> bool:
    try:
        return "sandbox.providers" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def machine_busy_seconds() -> float:
    """CPU time that all programs of the machine have used since it started."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)

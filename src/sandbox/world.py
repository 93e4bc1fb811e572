"""The whole house on one machine: LiveKit server, Manager API and worker; for demo, tests and benchmarks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from sandbox.device import Device
from sandbox.livekit_server import LiveKitServer
from sandbox.manager_api import ManagerApi
from sandbox.processes import REPO, WorkerProcess
from sandbox.staged import Staged


class World(Staged):
    """Started in order, stopped in reverse, as an async context manager; nothing of it outlives the block.

    `server`, `manager` (None with `manager=False`), `worker` and `folder` (working and state directory of the worker)
    are there inside the block. `env` adds to the worker's settings or, with None, removes one. `command` replaces
    `python -m agent start`. The worker is ready and has `warm` idle processes when the block begins. `say` hears of
    each step as it is done. A `server` passed in is used as it is.
    """

    def __init__(
        self,
        *,
        env: Mapping[str, str | None] | None = None,
        manager: ManagerApi | bool = True,
        server: LiveKitServer | None = None,
        binary: Path | None = None,
        command: list[str] | None = None,
        warm: int = 1,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.manager = ManagerApi() if manager is True else manager or None
        self.warm = warm
        self._env = dict(env or {})
        self._given = server
        self._binary = binary
        self._command = command
        self._say = say
        self._stack = AsyncExitStack()
        self._devices: list[Device] = []
        self.server: LiveKitServer
        self.worker: WorkerProcess
        self.folder: Path

    async def _start(self) -> None:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="toy-world-")))
        begun = time.monotonic()

        def done(what: str) -> None:
            nonlocal begun
            self._say(f"{what} ({time.monotonic() - begun:.1f} s)")
            begun = time.monotonic()

        if self._given is None:
            self.server = await self._stack.enter_async_context(LiveKitServer(self._binary))
        else:
            self.server = self._given
        done(f"LiveKit server at {self.server.url}")
        if self.manager is not None:
            await self._stack.enter_async_context(self.manager)
            done(f"stand-in Manager API at {self.manager.url}")
        self.worker = WorkerProcess(self._environment(), cwd=self.folder, command=self._command)
        await self._stack.enter_async_context(self.worker)
        await self.worker.wait_until_ready(warm=self.warm)
        done(f"worker, {self.warm} warm process{'' if self.warm == 1 else 'es'}")
        self._stack.push_async_callback(self._send_devices_away)

    def _environment(self) -> dict[str, str | None]:
        env: dict[str, str | None] = {
            **self.server.environment,
            "STATE_DIR": str(self.folder / "state"),
            "GREETINGS_DIR": str(REPO / "greetings"),
            "NUM_IDLE_PROCESSES": str(max(1, self.warm)),
        }
        if self.manager is not None:
            env |= {"MANAGER_API_URL": self.manager.url, "MANAGER_API_SECRET": self.manager.secret}
        return {**env, **self._env}

    def device(self, **options: Any) -> Device:
        """A device that has not joined yet; see `Device`. It leaves with the world at the latest."""
        device = Device(self.server, **options)
        self._devices.append(device)
        return device

    async def _send_devices_away(self) -> None:
        for device in self._devices:
            await device.leave()

"""A real Redis server on loopback, which can be stopped, frozen and started again with what it has kept."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sandbox.processes import ManagedProcess, ProcessFailed, free_port, plain_environment

HOW_TO_GET: Final = "redis-server is not installed: apt-get install redis-server, or name it with REDIS_SERVER_BIN"


def find_redis_server(environ: Mapping[str, str] = os.environ) -> Path | None:
    """REDIS_SERVER_BIN, else `redis-server` on PATH; None where there is none."""
    found = shutil.which(environ.get("REDIS_SERVER_BIN") or "redis-server", path=environ.get("PATH"))
    return Path(found) if found else None


class RedisServer:
    """An async context manager. `url` stays the same over `stop` and `start`, and so does what it holds."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: ManagedProcess | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="toy-redis-"))

    @property
    def url(self) -> str:
        """What REDIS_URL should be."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self, *, timeout: float = 20.0) -> None:
        """Start and wait until it answers. Raises ProcessFailed."""
        binary = find_redis_server()
        if binary is None:
            raise ProcessFailed(HOW_TO_GET)
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        command = [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]
        self.process = ManagedProcess("the Redis server", command, env=plain_environment())
        self.process.start()
        await self.process.wait_for_line(
            lambda line: "Ready to accept connections" in line.text, timeout=timeout, what="it to be ready"
        )

    async def stop(self) -> None:
        """End it; what it was told to keep is on its disk."""
        if self.process is not None:
            await self.process.stop()

    async def aclose(self) -> None:
        """End it for good, with all it kept."""
        await self.stop()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

"""Which Mem0 serves, and the process of the self-hosted one: started by the worker, and again whenever it ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from agent.briefing.memory import Mem0Client
from agent.settings import Settings

_log = structlog.get_logger(__name__)

_SOCKET_PATH_MAX: Final = 100


def self_hosted(settings: Settings) -> bool:
    """Whether memories stay with us: there is no key for the hosted Mem0."""
    return settings.mem0_api_key is None


def mem0_socket(settings: Settings) -> Path:
    """Where the self-hosted Mem0 listens: in STATE_DIR, or in the temporary folder where that path is too long."""
    path = settings.state_dir.absolute() / "mem0" / "mem0.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"toy-{os.getuid()}-{name}" / "mem0.sock"


def open_memory(settings: Settings) -> Mem0Client:
    """A client of the Mem0 that serves here; it opens nothing before its first call."""
    if self_hosted(settings):
        return Mem0Client("http://mem0", socket=mem0_socket(settings))
    return Mem0Client(settings.mem0_host, settings.mem0_api_key)


class Mem0Process:
    """Keeps `command`, which must call `mem0_server.run`, running from `start` to `aclose`.

    Its standard input is held open: when this process dies, however it dies, the other one ends by itself.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        first_pause_s: float = 1.0,
        longest_pause_s: float = 60.0,
    ) -> None:
        self._command = tuple(command)
        self._environment = dict(environment) if environment is not None else None
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.starts = 0
        """How often it was started."""

    def start(self) -> None:
        """Begin, in the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_running(), name="mem0-process")

    async def aclose(self) -> None:
        """End the process, by force after some seconds. Idempotent."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _keep_running(self) -> None:
        pause_s = self._first_pause_s
        loop = asyncio.get_running_loop()
        while not self._closing.is_set():
            begun = loop.time()
            try:
                code = await self._run_once()
            except OSError as error:
                code = None
                _log.error("mem0_process_cannot_start", error=type(error).__name__)
            if self._closing.is_set():
                return
            _log.error("mem0_process_ended", code=code, pause_s=pause_s)
            if loop.time() - begun > self._longest_pause_s:
                pause_s = self._first_pause_s
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_s)
            pause_s = min(self._longest_pause_s, pause_s * 2)

    async def _run_once(self) -> int:
        self.starts += 1
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, env=self._environment
        )
        ended = asyncio.create_task(process.wait())
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait([ended, closing], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.terminate()
                await asyncio.wait([ended], timeout=8.0)
            if not ended.done():
                process.kill()
            return await ended
        finally:
            closing.cancel()
            if process.returncode is None:
                process.kill()
            ended.cancel()

"""Processes the sandbox starts: their lines are read, and none of them outlives the one who started it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import psutil

REPO = Path(__file__).resolve().parents[2]
_LINES_KEPT = 20_000
# A pipe from the starter to a shell that kills the group once the pipe breaks: works however the starter dies,
# and reaches grandchildren, which the kernel's parent-death signal does not.
_GUARD = 'read -r line || true; kill -KILL -- "-$1" 2>/dev/null; exit 0'


class ProcessFailed(RuntimeError):
    """A process did not start, ended by itself, or could not be stopped; the message ends with its last lines."""


@dataclass(frozen=True)
class Line:
    """One line a process wrote: when it arrived (seconds, monotonic and wall) and its JSON fields, if it is JSON."""

    text: str
    at: float
    wall: float
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def event(self) -> str:
        """The message of a log line, else the empty string (structlog writes `event`, the framework `message`)."""
        return str(self.fields.get("event") or self.fields.get("message") or "")


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def group_members(group: int) -> list[psutil.Process]:
    """Living processes (zombies are not) of a process group."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


class ManagedProcess:
    """A process in a group of its own, whose lines are kept and whose whole group ends with `stop()`, with the
    `async with` block, or with the death of whoever started it.

    `name` is used in messages. stdout and stderr arrive as one stream of `lines`.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.env = None if env is None else dict(env)
        self.cwd = cwd
        self.lines: deque[Line] = deque(maxlen=_LINES_KEPT)
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._guard: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process id, which is the group's too. Raises ProcessFailed before the start."""
        if self._process is None:
            raise ProcessFailed(f"{self.name} has not been started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; None while it runs."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start it. Raises ProcessFailed when the program cannot be executed."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                env=self.env,
                cwd=self.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                limit=1 << 22,
            )
        except OSError as error:
            raise ProcessFailed(f"{self.name} cannot be executed: {error}") from None
        try:
            self._guard = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                _GUARD,
                "guard",
                str(self._process.pid),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:  # without its guard it must not run, whatever the reason, a cancellation included
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while raw := await process.stdout.readline():
                text = raw.decode(errors="replace").rstrip("\n")
                self.lines.append(Line(text, time.monotonic(), time.time(), _fields(text)))
                self._notify()
            await process.wait()
        finally:
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def tail(self, count: int = 25) -> str:
        """The last lines it wrote."""
        return "\n".join(line.text for line in list(self.lines)[-count:]) or "(it wrote nothing)"

    async def wait_for_line(self, matches: Callable[[Line], bool], *, timeout: float, what: str = "a line") -> Line:
        """The first line, past or future, that `matches`. `timeout` is in seconds.

        Raises ProcessFailed when the process ends first or the time is up.
        """
        deadline = time.monotonic() + timeout
        seen: Line | None = None
        while True:
            changed = self._changed
            for line in self._after(seen):
                if matches(line):
                    return line
                seen = line
            if self._reader is None or self._reader.done():
                raise ProcessFailed(f"{self.name} ended ({self.returncode}) before {what}:\n{self.tail()}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise ProcessFailed(f"{self.name}: no {what} within {timeout:g} s:\n{self.tail()}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left)

    def _after(self, seen: Line | None) -> Iterable[Line]:
        lines = list(self.lines)
        if seen is None:
            return lines
        for index in range(len(lines) - 1, -1, -1):
            if lines[index] is seen:
                return lines[index + 1 :]
        return lines

    def events(self, event: str) -> list[Line]:
        """Every log line with this message."""
        return [line for line in self.lines if line.event == event]

    async def stop(self, *, grace: float = 10.0) -> int | None:
        """SIGTERM, then after `grace` seconds SIGKILL, to the process; SIGKILL to what is left of its group.

        Returns the exit code (negative: the signal). Safe to call twice and after a crash. Raises ProcessFailed
        when something survives even that.
        """
        if self._process is None:
            return None
        try:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                if grace > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._process.wait(), grace)
        finally:
            await asyncio.shield(self._kill())
        return self._process.returncode

    async def kill(self) -> None:
        """SIGKILL to the process alone, as a crash would end it. Its group is cleared by `stop`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert self._process is not None
        await asyncio.wait_for(self._process.wait(), 5)

    async def _kill(self) -> None:
        process, guard = self._process, self._guard
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.wait_for(process.wait(), 5)
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()
            await asyncio.wait_for(guard.wait(), 5)
        if self._reader is not None:
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(self._reader, 2)
        for _ in range(100):
            if not (left := await asyncio.to_thread(group_members, process.pid)):
                return
            await asyncio.sleep(0.02)
        raise ProcessFailed(f"{self.name} left processes behind: {[item.pid for item in left]}")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _fields(text: str) -> Mapping[str, Any]:
    if not text.startswith("{"):
        return {}
    try:
        parsed = json.loads(text)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def plain_environment(extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The variables a program needs anywhere (path, home, locale) and `extra`; None removes one.

    What a developer has set for the product, keys above all, does not reach a test's worker.
    """
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
    env: dict[str, str | None] = {name: os.environ.get(name) for name in kept}
    return {name: value for name, value in {**env, **(extra or {})}.items() if value is not None}


class WorkerProcess(ManagedProcess):
    """The worker, `python -m agent start`, in an environment of its own.

    `env` is added to `plain_environment()`; HTTP_PORT is a free one unless given. It runs in `cwd`, so that a
    developer's `.env` is not read.
    """

    def __init__(
        self,
        env: Mapping[str, str | None],
        *,
        cwd: Path,
        command: Sequence[str] | None = None,
        name: str = "the worker",
    ) -> None:
        self.http_port = int(env.get("HTTP_PORT") or free_port())
        full = plain_environment({"PYTHONUNBUFFERED": "1", **env, "HTTP_PORT": str(self.http_port)})
        super().__init__(name, command or [sys.executable, "-m", "agent", "start"], env=full, cwd=cwd)

    async def wait_until_ready(self, *, warm: int = 0, timeout: float = 60.0) -> None:
        """Wait for registration with LiveKit and for `warm` idle processes.

        Raises ProcessFailed when it ends first or `timeout` seconds are over.
        """
        deadline = time.monotonic() + timeout
        await self.wait_for_line(_registered, timeout=timeout, what="registration with LiveKit")
        while self._warm() < warm:
            if self.returncode is not None or time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name}: fewer than {warm} warm processes in {timeout:g} s:\n{self.tail()}")
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 0.5)

    def _warm(self) -> int:
        return len(self.events("process initialized")) + len(self.events("job runner initialized"))

    async def health(self, path: str = "/") -> tuple[int, str]:
        """Status and text of the worker's own health server."""
        timeout = aiohttp.ClientTimeout(total=3)
        url = f"http://127.0.0.1:{self.http_port}{path}"
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as answer:
            return answer.status, await answer.text()


def _registered(line: Line) -> bool:
    return line.event == "registered worker" or "registered worker" in line.text

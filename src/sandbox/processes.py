"""Processes the sandbox starts: their lines are read, and none of them outlives the one who started it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import psutil

T = TypeVar("T")

REPO = Path(__file__).resolve().parents[2]
RUN_MARKER = "SANDBOX_RUN"
"""Set in the environment it is handed down to every process of a run, by which all of them can be found again."""
_LINES_KEPT = 20_000
# A pipe from the starter to a shell that kills the group once the pipe breaks: works however the starter dies,
# and reaches grandchildren, which the kernel's parent-death signal does not. `-s KILL`: Debian's shell takes no `--`
# after `-KILL`.
_GUARD = 'read -r line || true; kill -s KILL -- "-$1" 2>/dev/null; exit 0'


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


def marked_processes(run: str) -> list[psutil.Process]:
    """Living processes whose environment carries this RUN_MARKER, this one left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(RUN_MARKER) == run:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


class ManagedProcess:
    """A process in a group of its own, whose lines are kept and whose whole group ends with `stop()`, with the
    `async with` block, or with the death of whoever started it.

    `name` is used in messages. stdout and stderr arrive as one stream of `lines`, read by a thread, so that a process
    may be started in one event loop and used from another.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.env = None if env is None else dict(env)
        self.cwd = cwd
        self._lines: deque[Line] = deque(maxlen=_LINES_KEPT)
        self._listeners: set[Callable[[], None]] = set()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def lines(self) -> list[Line]:
        """What it has written so far, as much of it as is kept."""
        with self._lock:
            return list(self._lines)

    @property
    def pid(self) -> int:
        """Process id, which is the group's too. Raises ProcessFailed before the start."""
        if self._process is None:
            raise ProcessFailed(f"{self.name} has not been started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs or before it does."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it. Raises ProcessFailed when the program cannot be executed."""
        quiet = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                self.command,
                env=self.env,
                cwd=self.cwd,
                stdin=quiet,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ProcessFailed(f"{self.name} cannot be executed: {error}") from None
        guard = ["/bin/sh", "-c", _GUARD, "guard", str(self._process.pid)]
        try:
            self._guard = subprocess.Popen(
                guard, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
            )
        except BaseException:  # without its guard it must not run, whatever the reason
            self._process.kill()
            self._process.wait()
            raise
        self._reader = threading.Thread(target=self._read, args=[self._process], name=f"lines of {self.name}")
        self._reader.daemon = True
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for raw in stream:
                text = raw.decode(errors="replace").rstrip("\n")
                line = Line(text, time.monotonic(), time.time(), _fields(text))
                with self._lock:
                    self._lines.append(line)
                self._tell()
        process.wait()
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            with contextlib.suppress(RuntimeError):  # that listener's loop has been closed meanwhile
                listener()

    def tail(self, count: int = 25) -> str:
        """The last lines it wrote."""
        return "\n".join(line.text for line in self.lines[-count:]) or "(it wrote nothing)"

    def events(self, event: str) -> list[Line]:
        """Every log line with this message."""
        return [line for line in self.lines if line.event == event]

    async def wait_for_line(self, matches: Callable[[Line], bool], *, timeout: float, what: str = "a line") -> Line:
        """The first line, past or future, that `matches`. `timeout` is in seconds.

        Raises ProcessFailed when the process ends first or the time is up.
        """
        return await self.wait_until(
            lambda: next((line for line in self.lines if matches(line)), None), timeout=timeout, what=what
        )

    async def wait_until(self, condition: Callable[[], T | None], *, timeout: float, what: str = "it") -> T:
        """The first true value of a condition on `lines`, looked at after every line.

        Raises ProcessFailed when the process ends first or `timeout` seconds are over.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def listener() -> None:
            loop.call_soon_threadsafe(changed.set)

        with self._lock:
            self._listeners.add(listener)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    changed.clear()
                    ended = self._reader is None or not self._reader.is_alive()
                    value = condition()
                    if value:
                        return value
                    if ended:
                        raise ProcessFailed(f"{self.name} ended ({self.returncode}) before {what}:\n{self.tail()}")
                    # The look at the reader may come between its last word and its end.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), 1)
        except TimeoutError:
            raise ProcessFailed(f"{self.name}: no {what} within {timeout:g} s:\n{self.tail()}") from None
        finally:
            with self._lock:
                self._listeners.discard(listener)

    async def wait(self, *, timeout: float) -> int:
        """Exit code once it has ended by itself and its last line is read. Raises ProcessFailed after `timeout` s."""
        deadline = time.monotonic() + timeout
        while (code := self.returncode) is None:
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} still runs after {timeout:g} s:\n{self.tail()}")
            await asyncio.sleep(0.02)
        if self._reader is not None:
            await asyncio.to_thread(self._reader.join, 5)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, not to its group. SIGKILL ends it as a crash would."""
        if self._process is not None:
            self._process.send_signal(number)

    async def stop(self, *, grace: float = 10.0) -> int | None:
        """SIGTERM, then after `grace` seconds SIGKILL, to the process; SIGKILL to what is left of its group.

        Returns the exit code (negative: the signal). Safe to call twice and after a crash; completes even where the
        caller is cancelled. Raises ProcessFailed when something survives even that.
        """
        return await asyncio.shield(asyncio.to_thread(self.stop_blocking, grace=grace))

    def stop_blocking(self, *, grace: float = 10.0) -> int | None:
        """As `stop`, for where no event loop runs."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None and grace > 0:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(5)
        if self._reader is not None:
            self._reader.join(5)
        deadline = time.monotonic() + 3
        while left := group_members(process.pid):
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} left processes behind: {[item.pid for item in left]}")
            time.sleep(0.02)
        return process.returncode

    async def __aenter__(self) -> Self:
        self.start()
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
    kept = ("PATH", RUN_MARKER, "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
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
        what = f"registration with LiveKit and {warm} warm processes"
        await self.wait_until(
            lambda: bool(self.events("registered worker")) and self.warmed >= warm,
            timeout=timeout,
            what=what,
        )

    @property
    def warmed(self) -> int:
        """How many processes (threads, under the thread executor) have been warmed since the start."""
        return len(self.events("process initialized")) + len(self.events("job runner initialized"))

    async def health(self, path: str = "/") -> tuple[int, str]:
        """Status and text of the worker's own health server."""
        timeout = aiohttp.ClientTimeout(total=3)
        url = f"http://127.0.0.1:{self.http_port}{path}"
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as answer:
            return answer.status, await answer.text()

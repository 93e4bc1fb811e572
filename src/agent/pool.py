"""Whether processes for rooms can be had. The framework starts a new one as soon as one fails, ten times a second and
for ever, and takes rooms meanwhile; here each new try waits longer, and it is known that there is none to be had."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog
from livekit.agents import AgentServer

log = structlog.get_logger(__name__)

FAILURES: Final = 3
"""So many processes in a row that could not be started, and no warm one: rooms are sent elsewhere."""
HANGING_S: Final = 15.0
"""For so long a process may be starting before it counts as one that hangs: usual are one or two seconds."""
STEADY_S: Final = 10.0
"""A process that lives for so long without a room, or gets a room, is a good one."""
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 60.0


class Pool(Protocol):
    """What of the framework's `ProcPool` is used."""

    def on(self, event: Any, callback: Any) -> Any: ...
    def set_target_idle_processes(self, num_idle_processes: int) -> None: ...

    _default_num_idle_processes: int
    _warmed_proc_queue: asyncio.Queue[Any]


class PoolWatch:
    """Follows the framework's pool from its first process on. Belongs to the worker's event loop.

    `wanted` idle processes are kept while all is well; after a failure none is started for a while, then one, and all
    of them once one starts. A process fails that does not start, or ends before it had a room. `stuck_s`: a process
    whose event loop does not answer for so long is killed. `failed` counts them all.
    """

    def __init__(self, wanted: int, *, stuck_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.failed = 0
        self._wanted = wanted
        self._stuck_s = stuck_s
        self._clock = clock
        self._pool: Pool | None = None
        self._starting: dict[Any, float] = {}
        self._idle: set[Any] = set()
        self._in_a_row = 0
        self._reason = ""
        self._retry_at = float("-inf")
        self._retry: asyncio.TimerHandle | None = None
        self._settling: set[asyncio.TimerHandle] = set()

    def follow(self, pool: Pool) -> None:
        """Once, before the pool starts."""
        self._pool = pool
        pool.on("process_created", self._on_created)
        pool.on("process_ready", self._on_ready)
        pool.on("process_job_launched", self._on_launched)
        pool.on("process_closed", self._on_closed)

    def want(self, idle: int) -> None:
        """Keep so many idle processes from now on; after failures, as soon as processes can be started again."""
        self._wanted = idle
        if not self._in_a_row:
            self._aim(idle)

    async def close_surplus(self) -> None:
        """End idle processes beyond those wanted, the one that has waited longest first; they are no failures."""
        while self._pool is not None and self._pool._warmed_proc_queue.qsize() > self._wanted:
            process = self._pool._warmed_proc_queue.get_nowait()
            self._idle.discard(process)
            await process.aclose()

    def close(self) -> None:
        """The pool is about to close: processes that end from now on end as they should."""
        self._pool = None
        for timer in (self._retry, *self._settling):
            if timer is not None:
                timer.cancel()
        self._settling.clear()

    @property
    def problem(self) -> str:
        """Why no process can be had, for people; empty while they can."""
        hanging = self._hanging_s()
        if hanging >= HANGING_S:
            return f"a process has been starting for {hanging:.0f} s"
        if self._in_a_row < FAILURES:
            return ""
        wait = max(0.0, self._retry_at - self._clock())
        return f"{self._in_a_row} processes in a row failed ({self._reason}), the next try is in {wait:.0f} s"

    @property
    def able(self) -> bool:
        """Whether a room may come: a process waits for one, or can be had."""
        if self._idle or not self.problem:
            return True
        # Where no process is kept idle, a room is the next try.
        return not self._wanted and self._hanging_s() < HANGING_S and self._clock() >= self._retry_at

    def _hanging_s(self) -> float:
        # LiveKit's loads are asked for from another thread: what is looked at must not change meanwhile.
        return max((self._clock() - since for since in tuple(self._starting.values())), default=0.0)

    def _on_created(self, process: Any) -> None:
        self._starting[process] = self._clock()
        options = getattr(process, "_opts", None)
        if options is not None and hasattr(options, "ping_timeout"):  # a thread has none: it cannot be killed
            options.ping_timeout = self._stuck_s

    def _on_ready(self, process: Any) -> None:
        self._starting.pop(process, None)
        self._idle.add(process)
        if self._retry is not None:
            self._retry.cancel()
        self._aim(self._wanted)
        timer: asyncio.TimerHandle

        def settle() -> None:
            self._settling.discard(timer)
            if process in self._idle:
                self._well()

        timer = asyncio.get_running_loop().call_later(STEADY_S, settle)
        self._settling.add(timer)

    def _on_launched(self, process: Any) -> None:
        if process in self._idle:
            self._idle.discard(process)
            self._well()

    def _on_closed(self, process: Any) -> None:
        was_idle = process in self._idle
        self._idle.discard(process)
        was_starting = self._starting.pop(process, None) is not None
        if self._pool is None or not (was_idle or was_starting):
            return
        self.failed += 1
        self._in_a_row += 1
        self._reason = _why(process)
        wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(self._in_a_row - 1, 10))
        self._retry_at = self._clock() + wait
        self._aim(0)
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(wait, self._try_one)
        log.error("a process could not be started", reason=self._reason, in_a_row=self._in_a_row, retry_in_s=wait)

    def _well(self) -> None:
        if self._in_a_row:
            log.info("processes can be started again", failed=self._in_a_row)
        self._in_a_row = 0

    def _try_one(self) -> None:
        self._aim(min(len(self._idle) + 1, self._wanted))

    def _aim(self, idle: int) -> None:
        if self._pool is not None:
            # The framework keeps no more than it was made with, whatever it is told.
            self._pool._default_num_idle_processes = self._wanted
            self._pool.set_target_idle_processes(idle)


class PooledServer(AgentServer):
    """The framework's server, whose pool is watched from before its first process."""

    def __init__(self, watch: PoolWatch, **options: Any) -> None:
        self._watch = watch
        super().__init__(**options)

    # The framework makes its pool and starts it within one method.
    @property
    def _proc_pool(self) -> Any:
        return self._pool

    @_proc_pool.setter
    def _proc_pool(self, pool: Any) -> None:
        self._pool = pool
        self._watch.follow(pool)

    async def aclose(self) -> None:
        """As the framework's; processes that end from now on are no failures."""
        self._watch.close()
        await super().aclose()


def _why(process: Any) -> str:
    """What is known of a process's end: the signal that ended it, or what it said while it started."""
    code = getattr(process, "exitcode", None)
    if isinstance(code, int) and code < 0:
        return signal.Signals(-code).name
    told = getattr(process, "_initialize_fut", None)
    error = told.exception() if told is not None and told.done() and not told.cancelled() else None
    if error is not None:
        return " ".join(f"{type(error).__name__} {error}".split())[:300]
    return f"it ended with code {code}"

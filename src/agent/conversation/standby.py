"""Several providers for one thing: the best that works is asked first, and the next stands by to take over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from livekit.agents.utils.aio import cancel_and_wait

from agent.errors import AllProvidersFailed
from agent.telemetry.meter import meter

T = TypeVar("T")
R = TypeVar("R")

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Candidate(Generic[T]):
    """One provider. `failures` counts since the last success, `total_failures` since the start."""

    name: str
    client: T
    resting_until: float = 0.0
    failures: int = 0
    total_failures: int = 0
    failed_at: float = float("-inf")


class Lineup(Generic[T]):
    """Providers of one kind in order of preference.

    One that failed rests for `rest` seconds, doubled with each failure in a row up to `longest_rest`; meanwhile the
    others are asked first, so that a child waits for a dead provider once and not at every sentence.
    """

    def __init__(
        self,
        kind: str,
        clients: Sequence[tuple[str, T]],
        *,
        rest: float = 15.0,
        longest_rest: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self.candidates = [Candidate(name, client) for name, client in clients]
        self._rest = rest
        self._longest_rest = longest_rest
        self._clock = clock

    def order(self) -> list[Candidate[T]]:
        """Whom to ask, best first: those that work in order of preference, then those that rest, soonest back first."""
        now = self._clock()
        return sorted(self.candidates, key=lambda c: max(c.resting_until - now, 0.0))

    @property
    def first(self) -> T | None:
        """Who is asked next; None when there is nobody."""
        order = self.order()
        return order[0].client if order else None

    def failed(self, candidate: Candidate[T], error: BaseException) -> None:
        """Let a provider rest."""
        candidate.failures += 1
        candidate.total_failures += 1
        candidate.failed_at = self._clock()
        rest = min(self._rest * 2 ** (candidate.failures - 1), self._longest_rest)
        candidate.resting_until = self._clock() + rest
        meter.count("toy_provider_errors", kind=self.kind, provider=candidate.name, error=type(error).__name__)
        log.warning(
            "provider failed",
            kind=self.kind,
            provider=candidate.name,
            error=type(error).__name__,
            rest_s=round(rest, 1),
        )

    def worked(self, candidate: Candidate[T], asked_at: float) -> None:
        """A provider has answered: it is among the first again, unless it has failed since it was asked."""
        if candidate is not self.candidates[0]:
            meter.count("toy_provider_fallbacks", kind=self.kind, provider=candidate.name)
        if candidate.failed_at >= asked_at:
            return
        if candidate.failures:
            log.info("provider recovered", kind=self.kind, provider=candidate.name)
        candidate.failures = 0
        candidate.resting_until = 0.0

    async def race(
        self,
        begin: Callable[[T], Awaitable[R]],
        *,
        patience: float,
        deadline: float,
        discard: Callable[[R], Awaitable[None]] | None = None,
    ) -> tuple[Candidate[T], R]:
        """The first answer anybody gives.

        The best provider is asked; when it fails the next is asked at once, when it is silent for `patience` seconds
        the next is asked beside it. A single provider is asked twice. `begin` must clean up when cancelled; an answer
        that comes too late is given to `discard`. Raises AllProvidersFailed when all failed, or after `deadline`
        seconds.
        """
        order = self.order()
        waiting = order * 2 if len(order) == 1 else order
        asked: dict[asyncio.Task[R], Candidate[T]] = {}
        silent: set[asyncio.Task[R]] = set()  # for longer than is waited for anybody
        began = self._clock()
        ends = asyncio.get_running_loop().time() + deadline
        reasons: list[str] = []
        winner: asyncio.Task[R] | None = None
        try:
            while waiting or asked:
                if waiting:
                    candidate, *waiting = waiting
                    asked[asyncio.ensure_future(begin(candidate.client))] = candidate
                left = ends - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                done, _ = await asyncio.wait(
                    asked, timeout=min(left, patience) if waiting else left, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    silent.update(asked)
                for task in done:
                    candidate = asked.pop(task)
                    error = task.exception()
                    if error is None:
                        winner = task
                        self.worked(candidate, began)
                        for other, late in asked.items():
                            if other in silent and late is not candidate:
                                self.failed(late, TimeoutError())
                        return candidate, task.result()
                    if not isinstance(error, Exception):
                        raise error
                    reasons.append(f"{candidate.name}: {type(error).__name__}")
                    self.failed(candidate, error)
            for candidate in set(asked.values()):
                reasons.append(f"{candidate.name}: silent")
                self.failed(candidate, TimeoutError())
            raise AllProvidersFailed(self.kind, f"{self.kind}: {', '.join(reasons) or 'no provider is configured'}")
        finally:
            await self._call_off([task for task in asked if task is not winner], discard)

    async def _call_off(self, tasks: list[asyncio.Task[R]], discard: Callable[[R], Awaitable[None]] | None) -> None:
        await cancel_and_wait(*tasks)
        for task in tasks:
            if not task.cancelled() and task.exception() is None and discard is not None:
                await discard(task.result())

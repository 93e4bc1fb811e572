"""Tasks that run beside everything else, and are heard of when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog
from livekit.agents.utils.aio import cancel_and_wait

log = structlog.get_logger(__name__)


def run_beside(stack: AsyncExitStack, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    """Run `work` until it ends or `stack` is closed, which waits for it; a failure is logged as soon as it happens."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(partial(_log_failure, log, "a part of the worker failed"))
    stack.push_async_callback(cancel_and_wait, task)
    return task


class Tasks:
    """Tasks of one owner, which `aclose` ends: a failure is logged, with the logger given, as soon as it happens."""

    def __init__(self, logger: Any, *, failed: str) -> None:
        self._log = logger
        self._failed = failed
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` until it ends or `aclose` is called."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def aclose(self) -> None:
        """End those that still run; returns once they have."""
        await cancel_and_wait(*self._running)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        _log_failure(self._log, self._failed, task)


def _log_failure(logger: Any, failed: str, task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error(failed, part=task.get_name(), exc_info=error)

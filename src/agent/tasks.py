"""Tasks that run beside everything else, and are heard of when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

import structlog
from livekit.agents.utils.aio import cancel_and_wait

log = structlog.get_logger(__name__)


def run_beside(stack: AsyncExitStack, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    """Run `work` until it ends or `stack` is closed, which waits for it; a failure is logged as soon as it happens."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_failure)
    stack.push_async_callback(cancel_and_wait, task)
    return task


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a part of the worker failed", part=task.get_name(), exc_info=error)

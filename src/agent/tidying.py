"""What is kept of children below STATE_DIR goes by its age, whether or not anybody comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from agent.briefing import cache
from agent.conversation import resume
from agent.errors import ResumeError, Unavailable
from agent.outbox import home
from agent.settings import Settings
from agent.state import remove_damaged
from agent.telemetry.cost import KEPT_DAYS, cost_path

log = structlog.get_logger(__name__)

EVERY_S: Final = 300.0


async def keep_tidy(settings: Settings) -> None:
    """Tidy up every EVERY_S seconds, until cancelled. What waits in the outbox is the courier's to drop."""
    while True:
        await tidy(settings)
        await asyncio.sleep(EVERY_S)


async def tidy(settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
    """Delete briefings, conversations and damaged files that are too old. Makes no file; never raises for a disk."""
    for purge in (_purge_conversations, _purge_briefings, _purge_damaged):
        try:
            await purge(settings, clock)
        except (Unavailable, ResumeError, OSError) as error:
            log.warning("what is too old cannot be deleted now", error=str(error))


async def _purge_conversations(settings: Settings, clock: Callable[[], float]) -> None:
    path = settings.state_dir / resume.FILE_NAME
    if not path.exists():
        return
    conversations = resume.SqliteResumeStore(path, window_s=settings.resume_window, clock=clock)
    try:
        await asyncio.to_thread(conversations.purge)
    finally:
        await asyncio.to_thread(conversations.close)


async def _purge_briefings(settings: Settings, clock: Callable[[], float]) -> None:
    if not (settings.state_dir / cache.FILE_NAME).exists():
        return
    briefings = cache.open_cache(settings, clock=clock)
    try:
        await briefings.purge()
    finally:
        await briefings.aclose()


async def _purge_damaged(settings: Settings, clock: Callable[[], float]) -> None:
    for path, age_s in _kept_s(settings).items():
        await asyncio.to_thread(remove_damaged, path, before=clock() - age_s)


def _kept_s(settings: Settings) -> Mapping[Path, float]:
    """For how many seconds the content of each file is kept."""
    return {
        settings.state_dir / cache.FILE_NAME: settings.api_cache_max_age,
        settings.state_dir / resume.FILE_NAME: settings.resume_window,
        settings.state_dir / home.FILE_NAME: settings.outbox_max_age,
        cost_path(settings): KEPT_DAYS * 86400.0,
    }

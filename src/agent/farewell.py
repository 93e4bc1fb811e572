"""How a visit ends in words: what sounds is silenced, the goodbye is said, the room is closed behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from livekit.agents import JobContext
from livekit.api import TwirpError

from agent.conversation.conversation import Conversation
from agent.conversation.playback import Playback
from agent.conversation.recorded import Recorded

log = structlog.get_logger(__name__)

_HANG_UP_DEADLINE: Final = 3.0


class Farewell:
    """Says goodbye in whatever state a visit is; `conversation` and `playback` tell what of it is up by then."""

    def __init__(
        self,
        ctx: JobContext,
        recorded: Recorded,
        *,
        conversation: Callable[[], Conversation | None],
        playback: Callable[[], Playback | None],
        leave: Callable[[str], None],
    ) -> None:
        self._ctx = ctx
        self._recorded = recorded
        self._conversation = conversation
        self._playback = playback
        self._leave = leave

    async def say(self, reason: str) -> None:
        """Say goodbye and end the visit for `reason`, whether or not the goodbye could be said."""
        self._silence()
        conversation = self._conversation()
        try:
            if conversation is not None:
                await conversation.goodbye(None)
            else:
                await self._recorded.say("goodbye")
        except Exception:  # whatever the goodbye met, the visit ends: one that goes on costs
            log.exception("the goodbye was not said")
        await self._close_room()
        self._leave(reason)

    async def say_with_worker(self) -> None:
        """Not the visit has ended but its worker, whose time to wait for it is over: the model is asked no more.

        Nothing is said where no conversation has begun.
        """
        if self._conversation() is None:
            return
        log.info("the worker ends, the visit says goodbye")
        self._silence()
        await self._recorded.say("goodbye")
        await self._close_room()

    def _silence(self) -> None:
        playback = self._playback()
        if playback is not None:
            playback.stop()

    async def _close_room(self) -> None:
        # The device hangs up with its room: one that stayed would wait for an agent.
        try:
            async with asyncio.timeout(_HANG_UP_DEADLINE):
                await self._ctx.delete_room()
        except (TimeoutError, TwirpError, OSError) as error:
            log.warning("the room cannot be closed", error=type(error).__name__)

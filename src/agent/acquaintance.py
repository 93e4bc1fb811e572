"""What is known by now of a device and its child, from all who know something, and what it leads to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from livekit.agents import JobContext

from agent.briefing.desk import BriefingDesk
from agent.briefing.memory import user_id
from agent.briefing.profile import Briefing
from agent.briefing.prompt import Prompt, PromptWriter
from agent.conversation.resume import Resumed, resume_store
from agent.device.identity import RoomIdentity
from agent.errors import ResumeError
from agent.greeting.bank import Greeting
from agent.greeting.languages import normalise
from agent.process import Shared
from agent.values import RESCUE

log = structlog.get_logger(__name__)

_METADATA_MAX: Final = 16_384
_RECALL_DEADLINE: Final = 0.5


class Acquaintance:
    """One visit's. `look_up` and `fetch` once; everything else answers at any time from what there is by then."""

    def __init__(self, ctx: JobContext, device: RoomIdentity, shared: Shared) -> None:
        self._ctx = ctx
        self._device = device
        self._shared = shared
        self._settings = shared.settings
        self._cached: Briefing | None = None
        self.briefing: Briefing | None = None
        self.memories: Sequence[str] = ()
        self.resumed: Resumed | None = None

    async def look_up(self, desk: BriefingDesk) -> None:
        """What is known already, on this machine or in Redis."""
        await asyncio.gather(self._recall(), self._peek(desk))

    async def fetch(self, desk: BriefingDesk) -> Briefing:
        """Ask for everything."""
        self.briefing = await desk.fetch()
        return self.briefing

    async def _recall(self) -> None:
        if self._settings.resume_window:
            try:
                self.resumed = await asyncio.wait_for(asyncio.to_thread(self._find_earlier), _RECALL_DEADLINE)
            except TimeoutError:
                log.warning("an earlier conversation is not found in time: this one begins anew")

    async def _peek(self, desk: BriefingDesk) -> None:
        self._cached = await desk.peek()

    def _find_earlier(self) -> Resumed | None:
        store = resume_store(self._settings)
        try:
            return store.load(self._device.mac)
        except ResumeError as error:
            log.warning("conversations cannot be found again", error=str(error))
            return None
        finally:
            store.close()

    def _attribute(self, name: str) -> str | None:
        participant = self._ctx.room.remote_participants.get(self._device.participant_identity)
        return participant.attributes.get(name) if participant is not None else None

    @cached_property
    def zone(self) -> ZoneInfo:
        """The device's time zone, else the setting's."""
        for name in (self._attribute("time_zone"), self._settings.time_zone):
            try:
                if name:
                    return ZoneInfo(name)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                log.warning("the device's time zone is unknown")
        return ZoneInfo("UTC")

    @property
    def memory_user(self) -> str:
        """Whose memory it is: the child's where its profile has an id, else the device's."""
        known = self.briefing or self._cached
        child = known.child if known is not None else None
        return user_id(self._device.mac, child.profile_id if child is not None else None)

    def languages(self) -> list[str | None]:
        """Languages, best first; the last is the setting's."""
        return [
            self._attribute("language"),
            _language_in(self._ctx.job.room.metadata),
            self.briefing.language if self.briefing is not None else None,
            self._cached.language if self._cached is not None else None,
            self._settings.greeting_language,
        ]

    @property
    def language(self) -> str | None:
        """The tag of the best language that somebody named; None where only the setting does."""
        return next((tag for language in self.languages()[:-1] if (tag := normalise(language))), None)

    def greeting(self) -> Greeting | None:
        """What the device should hear first: None where nothing recorded fits."""
        known = self.briefing or self._cached
        bank = self._shared.bank
        languages = self.languages()
        if known is not None and known.bind_code is not None:
            return bank.bind_code(known.bind_code, languages) or bank.sentence("bind_first", languages)
        if self._ctx.job.metadata == RESCUE and self.resumed is not None:
            back = bank.sentence("im_back", languages)
            if back is not None:
                return back
        age = known.child.age if known is not None and known.child is not None else None
        returning = self.resumed is not None and not self.resumed.greeted_returning
        return bank.choose(languages, age=age, returning=returning)

    def change_character(self, template: str) -> None:
        """The device has another prompt from now on."""
        assert self.briefing is not None
        self.briefing = replace(self.briefing, prompt=template)

    def prompt(self) -> Prompt:
        """What the model is told; once the briefing is there."""
        assert self.briefing is not None
        writer = self._shared.writer or PromptWriter(token_budget=self._settings.prompt_token_budget)
        return writer.write(
            self.briefing.prompt,
            self.briefing.child,
            self.memories,
            language=self.language,
            now=datetime.now(self.zone),
        )


def _language_in(metadata: str) -> str | None:
    """`language` of a room's metadata, where that is a JSON object of reasonable size."""
    if not metadata or len(metadata) > _METADATA_MAX:
        return None
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    language = found.get("language") if isinstance(found, dict) else None
    return language if isinstance(language, str) else None

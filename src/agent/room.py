"""The life of one visit: identify → connect and fetch side by side → greet → converse → persist."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import structlog
from livekit.agents import JobContext
from livekit.agents.utils.aio import cancel_and_wait

from agent.briefing.desk import BriefingDesk
from agent.briefing.profile import Briefing
from agent.device.identity import identify_room
from agent.greeting.bank import Greeting
from agent.process import Kit
from agent.speaker.speaker import Speaker
from agent.telemetry.timeline import Timeline

log = structlog.get_logger(__name__)


async def entrypoint(ctx: JobContext) -> None:
    """LiveKit's entrypoint: one visit, from the job to its conversation."""
    visit = Visit(ctx)
    ctx.proc.userdata["visit"] = visit
    await visit.run()


async def on_session_end(ctx: JobContext) -> None:
    """LiveKit's last call while the room is still there: persist and close."""
    visit = ctx.proc.userdata.pop("visit", None)
    if visit is not None:
        await visit.aclose()


class Visit:
    """One device in one room."""

    def __init__(self, ctx: JobContext) -> None:
        self.ctx = ctx
        self.kit = Kit.of(ctx.proc)
        self.settings = self.kit.shared.settings
        self.device = identify_room(ctx.job.room.name)
        self.timeline = Timeline()
        self.stack = AsyncExitStack()
        self.speaker = Speaker()
        self.desk = BriefingDesk(self.settings, mac=self.device.mac, room_name=ctx.job.room.name)
        self.known: Briefing | None = None
        self.briefing: Briefing | None = None
        self.greeting: Greeting | None = None
        self.greeting_over = asyncio.Event()

    async def run(self) -> None:
        """Greet as soon as somebody listens; everything else comes up beside it."""
        for name, when in _dispatch_marks(self.ctx):
            self.timeline.mark_wall(name, when)
        await self.stack.enter_async_context(self.desk)
        self.stack.push_async_callback(self.speaker.aclose)
        self.ctx.room.on("disconnected", lambda *_: self.timeline.mark("disconnected"))
        briefing = asyncio.create_task(self._fetch(), name="briefing")
        self.stack.push_async_callback(partial(cancel_and_wait, briefing))
        await self._connect()
        await self.speaker.publish(self.ctx.room)
        self.timeline.mark("published")
        await self.speaker.wait_for_listener()
        self.timeline.mark("subscribed")
        self._greet()
        await briefing
        await self.greeting_over.wait()
        log.info("greeting finished", t0_wall=self.timeline.t0_wall, marks=self.timeline.marks)

    async def _connect(self) -> None:
        single = {"auto": None, "true": True, "false": False}[self.settings.single_peer_connection]
        await self.ctx.connect(single_peer_connection=single)
        self.timeline.mark("connected")

    async def _fetch(self) -> None:
        self.known = await self.desk.peek()
        self.briefing = await self.desk.fetch()
        self.timeline.mark("briefing_ready")

    def _greet(self) -> None:
        known = self.briefing or self.known
        languages = [known.language if known else None, self.settings.greeting_language]
        self.greeting = self.kit.shared.bank.choose(languages)
        if self.greeting is None:
            self.greeting_over.set()
            return
        self.speaker.on_audible = self._audible
        self.speaker.play(self.greeting.pcm, on_end=self._greeted)

    def _audible(self, audible: bool) -> None:
        if audible:
            self.timeline.mark("first_frame")

    def _greeted(self, _played: int, _interrupted: bool) -> None:
        self.timeline.mark("greeting_end")
        self.greeting_over.set()

    async def aclose(self) -> None:
        """Persist, then close everything in reverse order."""
        await self.stack.aclose()


def _dispatch_marks(ctx: JobContext) -> list[tuple[str, float]]:
    info = ctx._info
    return [
        ("job_received", info.received_at),
        ("job_accepted", info.accepted_at),
        ("job_assigned", info.assigned_at),
        ("process_given", info.launched_at),
    ]

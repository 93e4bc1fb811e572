"""One device in one room: what it holds, in the order in which it starts, and the reverse in which it stops."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import structlog
from livekit.agents import JobContext
from livekit.agents.utils.aio import cancel_and_wait

from agent.acquaintance import Acquaintance
from agent.attendance import Attendance
from agent.briefing.desk import BriefingDesk
from agent.briefing.mem0_process import open_memory
from agent.briefing.memory import Recollection
from agent.briefing.profile import Briefing
from agent.conversation.conversation import Conversation, Scene
from agent.conversation.ear import Ear
from agent.conversation.history import ChatHistory
from agent.conversation.playback import Playback
from agent.conversation.presence import Presence
from agent.conversation.providers import Providers
from agent.conversation.recorded import Recorded
from agent.conversation.resume import ResumeKeeper, Snapshot, resume_store
from agent.conversation.tools import Toolbox
from agent.conversation.turn_taking import noise_cancellation
from agent.device.identity import identify_room
from agent.device.link import DeviceLink
from agent.device.messages import (
    AbortPlayback,
    CleanupRequest,
    EndPrompt,
    PlayMusic,
    PlayStory,
    speech_created,
)
from agent.device.pulse import Pulse
from agent.errors import AllProvidersFailed
from agent.farewell import Farewell
from agent.greeting.bank import Greeting
from agent.outbox.home import writers_store
from agent.outbox.writer import OutboxWriter
from agent.process import Kit
from agent.serving import Served, ServingMark
from agent.speaker.speaker import Speaker
from agent.tasks import Tasks
from agent.telemetry.cost import UsageMeter
from agent.telemetry.meter import meter
from agent.telemetry.timeline import Timeline
from agent.telemetry.tracing import flush_traces, trace_visit
from agent.telemetry.visit_record import VisitRecord
from agent.values import device_key

log = structlog.get_logger(__name__)


class Visit:
    """Made by the entrypoint, in the job's event loop; `aclose` undoes whatever was reached."""

    def __init__(self, ctx: JobContext) -> None:
        self.timeline = Timeline()
        self.ctx = ctx
        self.kit = Kit.of(ctx.proc)
        self.settings = self.kit.shared.settings
        self.device = identify_room(ctx.job.room.name)
        self.record = VisitRecord(self.settings, job_id=ctx.job.id, mac=self.device.mac, timeline=self.timeline)
        who = self.who = {
            "visit": self.device.uuid or ctx.job.id,
            "device": device_key(self.device.mac, self.settings.device_salt.get_secret_value()),
        }
        ctx.log_context_fields = {**ctx.log_context_fields, **who}
        self.usage = UsageMeter(self.settings, who["device"])
        self.log = log.bind(**who)
        self.link = DeviceLink(ctx.room, self.device.participant_identity)
        self.presence = Presence(self.link.send)
        self.ear = Ear(ctx.room, self.device.participant_identity, noise_cancellation=noise_cancellation(self.settings))
        self.speaker = Speaker()
        self.attendance = Attendance(
            ctx.room,
            self.device.participant_identity,
            grace=self.settings.device_grace,
            leave=self.leave,
            on_dropped=self._on_dropped,
            on_came=self._on_came,
            on_room_lost=self._on_room_lost,
        )
        self.desk = BriefingDesk(self.settings, mac=self.device.mac, room_name=ctx.job.room.name)
        self.about = Acquaintance(ctx, self.device, self.kit.shared)
        self.recorded = Recorded(
            self.link,
            self.speaker,
            lambda purpose: self.kit.shared.bank.sentence(purpose, self.about.languages()),
        )
        self.greeting: Greeting | None = None
        self.greeted = asyncio.Event()
        self.conversation: Conversation | None = None
        self.playback: Playback | None = None
        self.providers: Providers | None = None
        self.recollection: Recollection | None = None
        self._farewell = Farewell(
            ctx,
            self.recorded,
            conversation=lambda: self.conversation,
            playback=lambda: self.playback,
            leave=self.leave,
        )
        self._fetching: asyncio.Task[Briefing] | None = None
        self._tasks = Tasks(self.log, failed="a part of the visit failed")
        self.spawn = self._tasks.spawn
        self._steps: asyncio.Task[None] | None = None
        self._leaving = False
        self._listened = False
        self._hushed = False
        self._stack = AsyncExitStack()

    # In order

    async def run(self) -> None:
        """Bring everything up; returns when the conversation is, or as soon as nobody is left to talk to."""
        # A task of its own: the framework takes an entrypoint that was cancelled for one that need not be closed.
        steps = self._steps = asyncio.create_task(self._run_steps(), name="visit")
        try:
            await asyncio.wait({steps})
        finally:
            await cancel_and_wait(steps)
        if not steps.cancelled():
            steps.result()

    async def _run_steps(self) -> None:
        await self.prepare()
        if await self.connect():
            await self.greet()
            await self.converse()

    async def prepare(self) -> None:
        """Open what needs no room; the briefing starts here and nothing waits for it before the greeting."""
        for name, at in _dispatch_moments(self.ctx):
            self.timeline.mark_wall(name, at)
        self.record.begin(self.kit.warm)
        self._stack.callback(self.record.end)
        push = self._stack.push_async_callback
        await self._stack.enter_async_context(self.desk)
        push(self.speaker.aclose)
        push(self.ear.aclose)
        push(self.link.aclose)
        push(self._tasks.aclose)
        self.attendance.follow()
        self._stack.callback(self.attendance.close)
        self.link.on(AbortPlayback, self._on_abort)
        self.link.on(CleanupRequest, lambda _: self.leave("cleanup requested"))
        self.link.on(EndPrompt, self._on_end_prompt)
        self.speaker.on_audible = self._on_audible
        self._fetching = self.spawn(self._fetch(), "briefing")
        self.spawn(self._mark_serving(), "serving mark")
        self._open_providers()
        if self.settings.budget_per_day:
            self.spawn(self.usage.load_earlier(), "earlier costs")

    async def connect(self) -> bool:
        """Join the room and publish the one track; False where another agent has them, and this one leaves."""
        single = {"auto": None, "true": True, "false": False}[self.settings.single_peer_connection]
        await self.ctx.connect(single_peer_connection=single)
        self.timeline.mark("connected")
        if self.attendance.second:
            self.leave("another agent was there first")
            return False
        self.link.start()
        await self.speaker.publish(self.ctx.room)
        self.timeline.mark("published")
        return True

    async def greet(self) -> None:
        """Say the recorded greeting as soon as the device listens; with what is known by then, waiting for nothing."""
        if not self.attendance.here:
            self.attendance.expect(self.settings.device_wait, "no device came")
        await self.speaker.wait_for_listener()
        await self.attendance.wait_for_device()
        self.timeline.mark("subscribed")
        self.attendance.expect(None)
        self._listened = True
        if self.settings.enable_presynth_greeting.on_for(self.device.mac, "enable_presynth_greeting"):
            self.greeting = self.about.greeting()
        if self.greeting is None:
            self.greeted.set()
            return
        self.record.greeting(language=self.greeting.language, recorded=True)
        self.speaker.play(self.greeting.pcm, on_end=self._on_greeted)
        self.link.send(
            speech_created("say", user_initiated=True, created_at=time.time(), text=self.greeting.text or None)
        )
        await self.speaker.wait_until_ahead()

    async def converse(self) -> None:
        """Bring the conversation up behind the greeting."""
        assert self._fetching is not None
        playback = self.playback = self._open_playback()
        outbox = OutboxWriter(writers_store(self.settings))
        self._stack.push_async_callback(outbox.aclose)
        history = ChatHistory(outbox, self.device.mac, self.ctx.job.room.name)
        self._stack.push_async_callback(history.aclose)
        briefing = await self._fetching
        if self.recollection is not None:
            await self.recollection.ask_for(self.about.memory_user)
            self.about.memories = await self.recollection.in_time() or self.recollection.take_late() or ()
        history.decide(
            chat_history=briefing.chat_history if self.settings.manager_api_url is not None else 0,
            memory_user=self.about.memory_user if self.recollection is not None else None,
        )
        language = self.about.language
        scene = Scene(
            self.settings,
            self.link,
            self.presence,
            self.ear,
            self.speaker,
            playback,
            history,
            self.providers,
            self.kit.shared.vad,
            self.recorded,
            self.timeline.mark,
            self.spawn,
        )
        conversation = self.conversation = Conversation(scene, briefing, language=language)
        self._stack.push_async_callback(conversation.aclose)
        self.record.watch(conversation.session)
        earlier = self.about.resumed.chat if self.about.resumed is not None else None
        await conversation.start(
            self.about.prompt(),
            greeting=self.greeting,
            earlier=earlier,
            tools=self._toolbox(playback).tools,
            recollection=self.recollection,
        )
        keeper = ResumeKeeper(resume_store(self.settings), self.device.mac, self._snapshot)
        keeper.start()
        keeper.changed()
        conversation.session.on("conversation_item_added", lambda _: keeper.changed())
        playback.on_change = keeper.changed
        self._stack.push_async_callback(keeper.aclose)
        self.timeline.mark("session_ready")
        self.usage.budget.on_exhausted = self._on_budget_exhausted
        self.usage.budget.check()
        self.spawn(self._report_greeting(), "greeting report")
        self.spawn(self._play_on(playback), "media after the greeting")

    async def aclose(self) -> None:
        """Persist, then close everything in reverse order."""
        self.timeline.mark("end")
        self.attendance.expect(None)
        if not self._leaving and self.attendance.here and self.ctx.room.isconnected():
            await self._farewell.say_with_worker()
        await self._stack.aclose()
        self.log.info(
            "visit ended",
            t0_wall=self.timeline.t0_wall,
            marks=self.timeline.marks,
            variants=self.record.variants,
            turns=self.timeline.turns,
            usage=self.usage.report(),
            memories=self.recollection.report() if self.recollection is not None else None,
            data_channel=dict(self.link.counts),
            words_dropped=self.ear.dropped,
        )
        trace_visit(self.timeline, {**self.who, **self.record.variants, **self.usage.report()})
        await asyncio.to_thread(flush_traces)

    # Beside it

    def leave(self, reason: str) -> None:
        """End the job; everything is persisted first."""
        self.timeline.mark("leaving")
        self._leaving = True
        self._give_up()
        self.ctx.shutdown(reason)

    def _give_up(self) -> None:
        """Nobody is left to greet: what has not been reached is not tried any more."""
        if self._steps is not None:
            self._steps.cancel()

    async def _mark_serving(self) -> None:
        mark = ServingMark(self.settings)
        self._stack.push_async_callback(asyncio.to_thread, mark.clear)
        try:
            await asyncio.to_thread(mark.set, Served(self.ctx.job.room.name, self.ctx.token_claims().identity))
        except OSError as error:
            # Should this process be killed, its room is found once LiveKit has noticed: later, but found.
            self.log.warning("the visit cannot be marked as served", error=error.strerror)

    def _open_providers(self) -> None:
        plan = self.kit.shared.plan
        if plan is None:
            return
        if plan.problems:
            self.log.error("nobody will answer the child", problems=plan.problems)
            return
        self.providers = plan.open(on_failed=self._on_providers_failed, on_metrics=self.usage.collect)
        self._stack.push_async_callback(self.providers.aclose)
        self.providers.warm()

    def _remember(self) -> None:
        if not self.settings.mem0_enabled.on_for(self.device.mac, "mem0_enabled"):
            return
        memory = open_memory(self.settings)
        self._stack.push_async_callback(memory.aclose)
        self.recollection = Recollection(
            memory,
            self.about.memory_user,
            deadline_ms=self.settings.mem0_deadline_ms,
            on_late=self._on_late_memories if self.settings.conversation_mode == "realtime" else None,
        )
        self._stack.push_async_callback(self.recollection.aclose)

    def _on_late_memories(self, late: tuple[str, ...]) -> None:
        # In realtime mode no turn begins here that they could join.
        if self.conversation is not None:
            self.about.memories = late
            self.spawn(self.conversation.instruct(self.about.prompt()), "late memories")

    def _open_playback(self) -> Playback:
        playback = Playback(
            self.settings,
            library=self.kit.shared.library,
            link=self.link,
            speaker=self.speaker,
            spawn=self.spawn,
            sorry=self.recorded.say,
        )
        self._stack.push_async_callback(playback.aclose)
        self.spawn(playback.warm(), "media connection")
        pulse = Pulse(
            self.ctx.room,
            self.device.participant_identity,
            wanted=lambda: playback.sounding,
            on_beat=playback.device_there,
        )
        self.spawn(pulse.run(), "the device's pulse")
        self.link.on(PlayMusic, lambda wish: playback.play_wish("music", wish.song_name or "", wish.language))
        self.link.on(PlayStory, lambda wish: playback.play_wish("story", wish.story_name or "", wish.category))
        return playback

    def _toolbox(self, playback: Playback) -> Toolbox:
        async def switch(mode: str) -> None:
            self.about.change_character(await self.desk.update_mode(mode))
            if self.conversation is not None:
                await self.conversation.instruct(self.about.prompt())

        return Toolbox(
            playback,
            self.link.calls,
            zone=self.about.zone,
            switch=switch,
            goodbye=lambda: self._say_goodbye("the child said goodbye"),
        )

    async def _play_on(self, playback: Playback) -> None:
        """Behind the greeting: what played when the device was last here, else what the room is for.

        Nothing where the child, or who ends the visit, has asked for silence by then.
        """
        await self.greeted.wait()
        if self._hushed or playback.stops:
            return
        resumed = self.about.resumed
        playing = resumed.playing if resumed is not None else None
        if playing is not None and await playback.restore(playing):
            if self.device.mode != "conversation":
                playback.go_on_endlessly(self.device.mode)
            return
        if self.device.mode != "conversation" and not playback.stops:
            await playback.play_any(self.device.mode, endless=True)

    def _snapshot(self) -> Snapshot:
        assert self.conversation is not None
        playing = self.playback.snapshot() if self.playback is not None else None
        return Snapshot(self.conversation.context, playing, greeted_returning=self.about.resumed is not None)

    async def _fetch(self) -> Briefing:
        await self.about.look_up(self.desk)
        self._remember()  # of the last known child, so that nothing waits for the live answer
        briefing = await self.about.fetch(self.desk)
        self.record.briefed(
            sources={part.value: source.value for part, source in briefing.sources.items()},
            timings_ms=briefing.timings_ms,
            problems=briefing.problems,
            asked=self.settings.manager_api_url is not None,
        )
        self.timeline.mark("briefing_ready")
        return briefing

    async def _report_greeting(self) -> None:
        await self.greeted.wait()
        briefing = self.about.briefing
        self.log.info(
            "greeting finished",
            t0_wall=self.timeline.t0_wall,
            marks=self.timeline.marks,
            variants=self.record.variants,
            greeting=self.greeting.id if self.greeting is not None else None,
            sources={part.value: source.value for part, source in briefing.sources.items()} if briefing else {},
            briefing_ms=dict(briefing.timings_ms) if briefing else {},
            memories=self.recollection.report() if self.recollection is not None else None,
        )

    # What happens meanwhile

    def _on_audible(self, audible: bool) -> None:
        if audible:
            self.record.audible()
        self.presence.audible(audible)

    def _on_greeted(self, _samples: int, _interrupted: bool) -> None:
        self.timeline.mark("greeting_end")
        self.greeted.set()

    def _on_abort(self, _message: AbortPlayback) -> None:
        self.timeline.mark("aborted")
        self._hushed = True
        self.speaker.stop_speech()
        if self.playback is not None:
            self.playback.stop()
        if self.conversation is not None:
            self.conversation.stop()

    async def _on_end_prompt(self, message: EndPrompt) -> None:
        self.timeline.mark("goodbye")
        self._hushed = True
        self.speaker.stop_recorded()
        if self.conversation is None or not self.conversation.started:
            if self._listened:
                self._give_up()
            await self._farewell.say("asked to end")
            return
        if self.playback is not None:
            self.playback.stop()
        await self.conversation.goodbye(message.prompt)

    def _on_came(self) -> None:
        self.timeline.mark("device_came")

    def _on_dropped(self, dropped: bool) -> None:
        if self.playback is not None:
            self.playback.dropped(dropped)

    def _on_room_lost(self) -> None:
        self.timeline.mark("disconnected")
        self._give_up()

    def _on_providers_failed(self, error: AllProvidersFailed) -> None:
        if self.conversation is not None:
            self.conversation.apologise(error)

    def _on_budget_exhausted(self, scope: str) -> None:
        self.log.warning("budget is exhausted, the visit ends", scope=scope, **self.usage.report())
        meter.count("toy_budget_exhausted", scope=scope)
        self._say_goodbye("the budget is exhausted")

    def _say_goodbye(self, reason: str) -> None:
        self.spawn(self._farewell.say(reason), "goodbye")


def _dispatch_moments(ctx: JobContext) -> list[tuple[str, float]]:
    # The framework keeps them for its own root span; they are wall-clock times of the worker's process.
    info = ctx._info
    return [
        ("job_received", info.received_at),
        ("job_accepted", info.accepted_at),
        ("job_assigned", info.assigned_at),
        ("process_given", info.launched_at),
    ]

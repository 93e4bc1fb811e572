"""One device in one room: what it holds, in the order in which it starts, and the reverse in which it stops."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from livekit import rtc
from livekit.agents import JobContext
from livekit.agents.utils.aio import cancel_and_wait
from livekit.api import TwirpError

from agent.briefing.desk import BriefingDesk
from agent.briefing.mem0_process import open_memory
from agent.briefing.memory import Recollection, user_id
from agent.briefing.profile import Briefing
from agent.briefing.prompt import Prompt, PromptWriter
from agent.conversation.conversation import Conversation, Scene
from agent.conversation.ear import Ear
from agent.conversation.history import ChatHistory
from agent.conversation.playback import Playback
from agent.conversation.presence import Presence
from agent.conversation.providers import Providers
from agent.conversation.resume import Resumed, ResumeKeeper, ResumeStore, Snapshot
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
from agent.errors import AllProvidersFailed, ResumeError
from agent.greeting.bank import Greeting
from agent.outbox.sqlite import outbox_store
from agent.outbox.writer import OutboxWriter
from agent.process import Kit
from agent.serving import Served, ServingMark
from agent.speaker.speaker import Speaker
from agent.telemetry.cost import UsageMeter
from agent.telemetry.meter import meter
from agent.telemetry.timeline import Timeline
from agent.telemetry.tracing import flush_traces, trace_visit
from agent.telemetry.visit_record import VisitRecord
from agent.values import RESCUE, device_key

log = structlog.get_logger(__name__)

_HANG_UP_DEADLINE: Final = 3.0
_JOB_IDENTITY: Final = "agent-AJ_"  # what the framework calls the agent of a job
_LEFT_FOR_GOOD: Final = frozenset(
    {
        rtc.DisconnectReason.CLIENT_INITIATED,
        rtc.DisconnectReason.ROOM_DELETED,
        rtc.DisconnectReason.USER_REJECTED,
        rtc.DisconnectReason.PARTICIPANT_REMOVED,
    }
)


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
        self.desk = BriefingDesk(self.settings, mac=self.device.mac, room_name=ctx.job.room.name)
        self.known: Briefing | None = None
        self.briefing: Briefing | None = None
        self.greeting: Greeting | None = None
        self.greeted = asyncio.Event()
        self.conversation: Conversation | None = None
        self.playback: Playback | None = None
        self.providers: Providers | None = None
        self.recollection: Recollection | None = None
        self.memories: Sequence[str] = ()
        self.resumed: Resumed | None = None
        self._fetching: asyncio.Task[Briefing] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: asyncio.TimerHandle | None = None
        self._steps: asyncio.Task[None] | None = None
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
        await self.connect()
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
        push(self._end_tasks)
        self._follow_device()
        self.link.on(AbortPlayback, self._on_abort)
        self.link.on(CleanupRequest, lambda _: self.leave("cleanup requested"))
        self.link.on(EndPrompt, self._on_end_prompt)
        self.speaker.on_audible = self._on_audible
        self._fetching = self.spawn(self._fetch(), "briefing")
        self.spawn(self._mark_serving(), "serving mark")
        self._open_providers()
        self._remember()
        if self.settings.budget_per_day:
            self.spawn(self.usage.load_earlier(), "earlier costs")

    async def connect(self) -> None:
        """Join the room and publish the one track."""
        single = {"auto": None, "true": True, "false": False}[self.settings.single_peer_connection]
        await self.ctx.connect(single_peer_connection=single)
        self.timeline.mark("connected")
        if self._is_second():
            self.leave("another agent was there first")
            return
        self.link.start()
        await self.speaker.publish(self.ctx.room)
        self.timeline.mark("published")

    async def greet(self) -> None:
        """Say the recorded greeting as soon as the device listens; with what is known by then, waiting for nothing."""
        if not self._device_here():
            self._expect_device(self.settings.device_wait, "no device came")
        await self.speaker.wait_for_listener()
        self.timeline.mark("subscribed")
        self._expect_device(None)
        if self.settings.enable_presynth_greeting.on_for(self.device.mac, "enable_presynth_greeting"):
            self.greeting = self._choose()
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
        outbox = OutboxWriter(outbox_store(self.settings))
        self._stack.push_async_callback(outbox.aclose)
        history = ChatHistory(outbox, self.device.mac, self.ctx.job.room.name)
        self._stack.push_async_callback(history.aclose)
        if self.recollection is not None:
            self.memories = await self.recollection.in_time() or ()
        briefing = self.briefing = await self._fetching
        history.decide(
            chat_history=briefing.chat_history if self.settings.manager_api_url is not None else 0,
            memory_user=user_id(self.device.mac) if self.recollection is not None else None,
        )
        language = next((language for language in self.languages()[:-1] if language), None)
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
            lambda purpose: self.kit.shared.bank.sentence(purpose, self.languages()),
            self.timeline.mark,
            self.spawn,
        )
        conversation = self.conversation = Conversation(scene, briefing, language=language)
        self._stack.push_async_callback(conversation.aclose)
        self.record.watch(conversation.session)
        earlier = self.resumed.chat if self.resumed is not None else None
        await conversation.start(
            self._write_prompt(briefing, language),
            greeting=self.greeting,
            earlier=earlier,
            tools=self._toolbox(playback, language).tools,
            recollection=self.recollection,
        )
        keeper = ResumeKeeper(self._resume_store(), self.device.mac, self._snapshot)
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
        self._expect_device(None)
        await self._stack.aclose()
        self.log.info(
            "visit ended",
            t0_wall=self.timeline.t0_wall,
            marks=self.timeline.marks,
            variants=self.record.variants,
            turns=self.timeline.turns,
            usage=self.usage.report(),
            data_channel=dict(self.link.counts),
            words_dropped=self.ear.dropped,
        )
        trace_visit(self.timeline, {**self.who, **self.record.variants, **self.usage.report()})
        await asyncio.to_thread(flush_traces)

    # Beside it

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a task that the visit supervises: a failure is logged, and it ends with the visit at the latest."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def leave(self, reason: str) -> None:
        """End the job; everything is persisted first."""
        self.timeline.mark("leaving")
        self._give_up()
        self.ctx.shutdown(reason)

    def _give_up(self) -> None:
        """Nobody is left to greet: what has not been reached is not tried any more."""
        if self._steps is not None:
            self._steps.cancel()

    async def _mark_serving(self) -> None:
        mark = ServingMark(self.settings)
        self._stack.push_async_callback(asyncio.to_thread, mark.clear)
        await asyncio.to_thread(mark.set, Served(self.ctx.job.room.name, self.ctx.token_claims().identity))

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
        self.recollection = Recollection(memory, user_id(self.device.mac), deadline_ms=self.settings.mem0_deadline_ms)
        self._stack.push_async_callback(self.recollection.aclose)

    def _open_playback(self) -> Playback:
        playback = Playback(
            self.settings,
            library=self.kit.shared.library,
            link=self.link,
            speaker=self.speaker,
            spawn=self.spawn,
            sorry=self._say_recorded,
        )
        self._stack.push_async_callback(playback.aclose)
        self.spawn(playback.warm(), "media connection")
        self.link.on(PlayMusic, lambda wish: playback.play_wish("music", wish.song_name or "", wish.language))
        self.link.on(PlayStory, lambda wish: playback.play_wish("story", wish.story_name or "", wish.category))
        return playback

    def _toolbox(self, playback: Playback, language: str | None) -> Toolbox:
        async def switch(mode: str) -> None:
            template = await self.desk.update_mode(mode)
            assert self.briefing is not None
            self.briefing = replace(self.briefing, prompt=template)
            if self.conversation is not None:
                await self.conversation.instruct(self._write_prompt(self.briefing, language))

        return Toolbox(
            playback,
            self.link.calls,
            zone=self.zone,
            switch=switch,
            goodbye=lambda: self._say_goodbye("the child said goodbye"),
        )

    async def _play_on(self, playback: Playback) -> None:
        """Behind the greeting: what played when the device was last here, else what the room is for."""
        await self.greeted.wait()
        playing = self.resumed.playing if self.resumed is not None else None
        if playing is not None and await playback.restore(playing):
            if self.device.mode != "conversation":
                playback.go_on_endlessly(self.device.mode)
            return
        if self.device.mode != "conversation":
            await playback.play_any(self.device.mode, endless=True)

    async def _say_recorded(self, purpose: str) -> None:
        if self.conversation is not None:
            await self.conversation.say_recorded(purpose)

    def _resume_store(self) -> ResumeStore:
        return ResumeStore(self.settings.state_dir / "resume.db", window_s=self.settings.resume_window)

    def _find_earlier(self) -> Resumed | None:
        store = self._resume_store()
        try:
            return store.load(self.device.mac)
        except ResumeError as error:
            self.log.warning("conversations cannot be found again", error=str(error))
            return None
        finally:
            store.close()

    def _snapshot(self) -> Snapshot:
        assert self.conversation is not None
        playing = self.playback.snapshot() if self.playback is not None else None
        return Snapshot(self.conversation.context, playing, greeted_returning=self.resumed is not None)

    def _write_prompt(self, briefing: Briefing, language: str | None) -> Prompt:
        writer = self.kit.shared.writer or PromptWriter(token_budget=self.settings.prompt_token_budget)
        now = datetime.now(self.zone)
        return writer.write(briefing.prompt, briefing.child, self.memories, language=language, now=now)

    async def _fetch(self) -> Briefing:
        self.resumed = await asyncio.to_thread(self._find_earlier) if self.settings.resume_window else None
        self.known = await self.desk.peek()
        self.briefing = await self.desk.fetch()
        self.record.briefed(
            sources={part.value: source.value for part, source in self.briefing.sources.items()},
            timings_ms=self.briefing.timings_ms,
            problems=self.briefing.problems,
            asked=self.settings.manager_api_url is not None,
        )
        self.timeline.mark("briefing_ready")
        return self.briefing

    def _attribute(self, name: str) -> str | None:
        participant = self.ctx.room.remote_participants.get(self.device.participant_identity)
        return participant.attributes.get(name) if participant is not None else None

    @cached_property
    def zone(self) -> ZoneInfo:
        """The device's time zone, else the setting's."""
        for name in (self._attribute("time_zone"), self.settings.time_zone):
            try:
                if name:
                    return ZoneInfo(name)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                self.log.warning("the device's time zone is unknown")
        return ZoneInfo("UTC")

    def languages(self) -> list[str | None]:
        """Languages known by now, best first."""
        return [
            self._attribute("language"),
            _language_in(self.ctx.job.room.metadata),
            self.briefing.language if self.briefing is not None else None,
            self.known.language if self.known is not None else None,
            self.settings.greeting_language,
        ]

    def _choose(self) -> Greeting | None:
        known = self.briefing or self.known
        bank = self.kit.shared.bank
        languages = self.languages()
        if known is not None and known.bind_code is not None:
            return bank.bind_code(known.bind_code, languages) or bank.sentence("bind_first", languages)
        if self.ctx.job.metadata == RESCUE and self.resumed is not None:
            back = bank.sentence("im_back", languages)
            if back is not None:
                return back
        age = known.child.age if known is not None and known.child is not None else None
        returning = self.resumed is not None and not self.resumed.greeted_returning
        return bank.choose(languages, age=age, returning=returning)

    async def _report_greeting(self) -> None:
        await self.greeted.wait()
        briefing = self.briefing
        self.log.info(
            "greeting finished",
            t0_wall=self.timeline.t0_wall,
            marks=self.timeline.marks,
            variants=self.record.variants,
            greeting=self.greeting.id if self.greeting is not None else None,
            sources={part.value: source.value for part, source in briefing.sources.items()} if briefing else {},
            briefing_ms=dict(briefing.timings_ms) if briefing else {},
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
        self.speaker.stop_speech()
        if self.playback is not None:
            self.playback.stop()
        if self.conversation is not None:
            self.conversation.stop()

    async def _on_end_prompt(self, message: EndPrompt) -> None:
        self.timeline.mark("goodbye")
        self.speaker.stop_recorded()
        if self.playback is not None:
            self.playback.stop()
        if self.conversation is not None:
            await self.conversation.goodbye(message.prompt)

    def _on_providers_failed(self, error: AllProvidersFailed) -> None:
        if self.conversation is not None:
            self.conversation.apologise(error)

    def _on_budget_exhausted(self, scope: str) -> None:
        self.log.warning("budget is exhausted, the visit ends", scope=scope, **self.usage.report())
        meter.count("toy_budget_exhausted", scope=scope)
        self._say_goodbye("the budget is exhausted")

    def _say_goodbye(self, reason: str) -> None:
        self.spawn(self._end_politely(reason), "goodbye")

    async def _end_politely(self, reason: str) -> None:
        if self.playback is not None:
            self.playback.stop()
        if self.conversation is not None:
            await self.conversation.goodbye(None)
        # The device hangs up with its room: one that stayed would wait for an agent.
        try:
            async with asyncio.timeout(_HANG_UP_DEADLINE):
                await self.ctx.delete_room()
        except (TimeoutError, TwirpError, OSError) as error:
            self.log.warning("the room cannot be closed", error=type(error).__name__)
        self.leave(reason)

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("a part of the visit failed", part=task.get_name(), exc_info=error)

    async def _end_tasks(self) -> None:
        await cancel_and_wait(*self._tasks)

    # The device's coming and going

    def _is_second(self) -> bool:
        """Whether another job's agent is here: a rescue and a late first job may meet, and a room has one track."""
        return any(
            other.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT and other.identity.startswith(_JOB_IDENTITY)
            for other in self.ctx.room.remote_participants.values()
        )

    def _device_here(self) -> bool:
        return self.device.participant_identity in self.ctx.room.remote_participants

    def _follow_device(self) -> None:
        room, identity = self.ctx.room, self.device.participant_identity

        def on_left(participant: rtc.RemoteParticipant) -> None:
            if participant.identity != identity:
                return
            if participant.disconnect_reason in _LEFT_FOR_GOOD:
                self.leave("the device left")
            else:
                hold_media(True)
                self._expect_device(self.settings.device_grace, "the device did not come back")

        def on_came(participant: rtc.RemoteParticipant) -> None:
            if participant.identity == identity:
                self.timeline.mark("device_came")
                self._expect_device(None)
                hold_media(False)

        def on_quality(participant: rtc.Participant, quality: int) -> None:
            if participant.identity == identity:
                hold_media(quality == rtc.ConnectionQuality.QUALITY_LOST)

        def hold_media(dropped: bool) -> None:
            if self.playback is not None:
                self.playback.dropped(dropped)

        def on_disconnected(*_: object) -> None:
            self.timeline.mark("disconnected")
            self._give_up()

        events: list[tuple[Any, Callable[..., None]]] = [
            ("participant_disconnected", on_left),
            ("participant_connected", on_came),
            ("connection_quality_changed", on_quality),
            ("disconnected", on_disconnected),
        ]
        for event, handler in events:
            room.on(event, handler)
            self._stack.callback(room.off, event, handler)

    def _expect_device(self, seconds: float | None, otherwise: str = "") -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if seconds is not None:
            self._waiting = asyncio.get_running_loop().call_later(seconds, partial(self.leave, otherwise))


def _language_in(metadata: str) -> str | None:
    """`language` of a room's metadata, where that is a JSON object of reasonable size."""
    if not metadata or len(metadata) > 16_384:
        return None
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    language = found.get("language") if isinstance(found, dict) else None
    return language if isinstance(language, str) else None


def _dispatch_moments(ctx: JobContext) -> list[tuple[str, float]]:
    # The framework keeps them for its own root span; they are wall-clock times of the worker's process.
    info = ctx._info
    return [
        ("job_received", info.received_at),
        ("job_accepted", info.accepted_at),
        ("job_assigned", info.assigned_at),
        ("process_given", info.launched_at),
    ]

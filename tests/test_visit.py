"""How a visit ends, and what it begins by itself: whole visits in a room in memory, with real speaker and session."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from livekit.agents import APIConnectionError, APIConnectOptions
from livekit.agents.llm import LLM, ChatChunk, ChatContext, ChoiceDelta, LLMStream
from livekit.agents.tts import TTS, AudioEmitter, ChunkedStream, TTSCapabilities

from agent.briefing.desk import BriefingDesk
from agent.briefing.profile import Briefing
from agent.conversation.turn_taking import load_vad
from agent.greeting.bank import Greeting, GreetingBank
from agent.process import Kit, Shared
from agent.settings import Settings
from agent.visit import Visit

MAC = "02:00:00:00:00:01"
DEADLINE = 30.0
RATE = 24_000


def recording(purpose: str, seconds: float = 0.2) -> Greeting:
    pcm = np.full(int(RATE * seconds), 3000, np.int16)
    return Greeting(f"en_{purpose}", f"A {purpose}.", "en", "default", pcm, purpose=purpose)


BANK = GreetingBank(tuple(map(recording, ("greeting", "goodbye", "provider_down"))))


class Room:
    """As much of a room as a visit needs; the device is in it, listens, and may speak by `receive`."""

    def __init__(self) -> None:
        self.listeners: dict[str, list[Callable[..., None]]] = {}
        self.told: list[dict[str, Any]] = []
        self.changed = asyncio.Event()
        self.device = SimpleNamespace(identity=MAC, kind=0, attributes={}, track_publications={})
        self.remote_participants = {MAC: self.device}
        self.local_participant = self
        self.closed = False

    def on(self, event: str, callback: Callable[..., None]) -> None:
        self.listeners.setdefault(event, []).append(callback)

    def off(self, event: str, callback: Callable[..., None]) -> None:
        self.listeners[event].remove(callback)

    def isconnected(self) -> bool:
        return not self.closed

    async def publish_track(self, *_: Any) -> Any:
        async def subscribed() -> None: ...

        return SimpleNamespace(wait_for_subscription=subscribed)

    async def publish_data(self, payload: bytes | str, **_: Any) -> None:
        self.told.append(json.loads(payload))
        self.changed.set()

    def receive(self, message: dict[str, Any]) -> None:
        packet = SimpleNamespace(data=json.dumps(message).encode(), participant=self.device, topic=None)
        for listener in list(self.listeners["data_received"]):
            listener(packet)


class Job:
    """A job's context around a room in memory; `ended` is why the visit left."""

    def __init__(self, settings: Settings, *, name: str = "u_020000000001", plan: Any = None) -> None:
        vad = load_vad("silero") if plan is not None else None
        kit = Kit(Shared(settings, BANK, vad, None, plan, None), None)
        self.room = Room()
        self.proc = SimpleNamespace(userdata={"kit": kit})
        self.job = SimpleNamespace(id="AJ_1", metadata="", room=SimpleNamespace(name=name, metadata=""))
        self.log_context_fields: dict[str, Any] = {}
        self._info = SimpleNamespace(received_at=0.0, accepted_at=0.0, assigned_at=0.0, launched_at=0.0)
        self.ended: str | None = None

    async def connect(self, **_: Any) -> None: ...

    def token_claims(self) -> Any:
        return SimpleNamespace(identity="agent-AJ_1")

    def shutdown(self, reason: str) -> None:
        self.ended = reason
        self.room.changed.set()

    async def delete_room(self) -> None:
        self.room.closed = True
        self.room.changed.set()


class World:
    """A visit and the ear of its device."""

    def __init__(self, job: Job, desk: Gate | None = None) -> None:
        self.job, self.room = job, job.room
        self.visit = Visit(cast("Any", job))
        if desk is not None:
            self.visit.desk = desk
        self.running = asyncio.create_task(self.visit.run())

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not true():
                self.room.changed.clear()
                await self.room.changed.wait()

    @property
    def states(self) -> list[str]:
        told = [message["data"] for message in self.room.told if message["type"] == "agent_state_changed"]
        return [data["new_state"] for data in told]

    @property
    def said(self) -> list[str]:
        return [message["data"].get("text") for message in self.room.told if message["type"] == "speech_created"]

    def audible(self) -> bool:
        return self.states[-1:] == ["speaking"]

    def silent(self) -> bool:
        return self.states[-1:] == ["listening"]

    async def aclose(self) -> None:
        await asyncio.wait_for(self.running, DEADLINE)
        await self.visit.aclose()


class Gate(BriefingDesk):
    """A desk that has nothing to tell until it is opened."""

    opened: asyncio.Event

    async def fetch(self) -> Briefing:
        await self.opened.wait()
        return await super().fetch()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, state_dir=tmp_path, metrics_port=0)  # type: ignore[call-arg]


@pytest.fixture
async def enter(settings: Settings) -> AsyncIterator[Callable[..., World]]:
    worlds: list[World] = []

    def begin(*, gated: bool = False, **about: Any) -> World:
        job, desk = Job(about.pop("settings", settings), **about), None
        if gated:
            desk = Gate(settings, mac=cast("Any", MAC), room_name="u_020000000001")
            desk.opened = asyncio.Event()
        worlds.append(World(job, desk))
        return worlds[-1]

    yield begin
    for world in worlds:
        await world.aclose()


async def test_asked_to_end_before_there_is_a_conversation_it_says_goodbye_and_ends(
    enter: Callable[..., World],
) -> None:
    world = enter(gated=True)
    await world.until(world.audible)
    world.room.receive({"type": "end_prompt", "prompt": "Say goodbye."})
    await world.until(lambda: world.job.ended)
    assert world.said == ["A greeting.", "A goodbye."]
    await world.until(world.silent)
    assert world.room.closed
    assert world.visit.conversation is None


class Model(LLM):
    """Fails, or has these words, or none, to say."""

    def __init__(self, *, fails: bool = False, words: str = "") -> None:
        super().__init__()
        self.fails = fails
        self.words = words

    def chat(self, *, chat_ctx: ChatContext, tools: Any = None, **_: Any) -> LLMStream:  # type: ignore[override]
        return Reply(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=APIConnectOptions(max_retry=0))


class Reply(LLMStream):
    async def _run(self) -> None:
        model = cast("Model", self._llm)
        if model.fails:
            raise APIConnectionError(retryable=False)
        self._event_ch.send_nowait(ChatChunk(id="1", delta=ChoiceDelta(role="assistant", content=model.words)))


class Mute(TTS):
    def __init__(self) -> None:
        super().__init__(capabilities=TTSCapabilities(streaming=False), sample_rate=RATE, num_channels=1)

    def synthesize(self, text: str, *, conn_options: Any = None) -> ChunkedStream:
        return Silence(tts=self, input_text=text, conn_options=APIConnectOptions(max_retry=0))


class Silence(ChunkedStream):
    """No sound for what is to be said; where there are words it never comes."""

    async def _run(self, output_emitter: AudioEmitter) -> None:
        output_emitter.initialize(request_id="1", sample_rate=RATE, num_channels=1, mime_type="audio/pcm")
        if self.input_text:
            await asyncio.Event().wait()


class Plan:
    """Providers with one model."""

    problems: tuple[str, ...] = ()

    def __init__(self, model: Model) -> None:
        self.model = model

    def open(self, **_: Any) -> Plan:
        return self

    def warm(self) -> None: ...

    def pipeline(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(stt=None, llm=self.model, tts=Mute())

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("fails", [True, False])
async def test_asked_to_end_while_the_model_says_nothing_it_says_the_recorded_goodbye(
    enter: Callable[..., World], fails: bool
) -> None:
    world = enter(plan=Plan(Model(fails=fails)))
    await asyncio.wait_for(asyncio.shield(world.running), DEADLINE)
    await asyncio.wait_for(world.visit.greeted.wait(), DEADLINE)
    await world.until(world.silent)
    before = len(world.room.told)
    world.room.receive({"type": "end_prompt", "prompt": "Say goodbye."})
    await world.until(lambda: world.said[-1] == "A goodbye." and world.audible())
    await world.until(world.silent)
    states = [m["data"] for m in world.room.told[before:] if m["type"] == "agent_state_changed"]
    assert states[-1] == {"old_state": "speaking", "new_state": "listening"}
    assert world.job.ended is None, "the gateway hangs up"
    world.visit.leave("the test is over")


async def test_the_recorded_goodbye_is_heard_though_the_models_own_has_begun_without_a_voice(
    enter: Callable[..., World],
) -> None:
    world = enter(plan=Plan(Model(words="Good night, sleep well.")))
    await asyncio.wait_for(asyncio.shield(world.running), DEADLINE)
    await asyncio.wait_for(world.visit.greeted.wait(), DEADLINE)
    await world.until(world.silent)
    world.room.receive({"type": "end_prompt", "prompt": "Say goodbye."})
    await world.until(lambda: world.said[-1] == "A goodbye." and world.audible())
    begun = time.monotonic()
    await world.until(world.silent)
    assert time.monotonic() - begun > 0.1, "it was cut off"
    world.visit.leave("the test is over")


def broken(_words: str) -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("fails", [True, False])
async def test_a_visit_ends_whatever_becomes_of_its_goodbye(enter: Callable[..., World], fails: bool) -> None:
    world = enter()
    await asyncio.wait_for(asyncio.shield(world.running), DEADLINE)
    if fails:
        world.visit.recorded.on_said = broken
    else:
        world.visit.recorded.patience = -10.0
    on_exhausted = world.visit.usage.budget.on_exhausted
    assert on_exhausted is not None
    on_exhausted("visit")
    await world.until(lambda: world.job.ended)
    assert world.room.closed


async def test_the_button_during_the_greeting_leaves_a_music_room_silent(enter: Callable[..., World]) -> None:
    world = enter(gated=True, name="u_020000000001_music")
    await world.until(world.audible)
    world.room.receive({"type": "abort_playback"})
    cast("Gate", world.visit.desk).opened.set()
    await asyncio.wait_for(asyncio.shield(world.running), DEADLINE)
    await ended(world, "media after the greeting")
    assert world.said == ["A greeting."], "without a library a room that plays says that it has found nothing"
    world.visit.leave("the test is over")


async def test_a_music_room_that_nobody_stops_begins_to_play(enter: Callable[..., World]) -> None:
    world = enter(name="u_020000000001_music")
    await asyncio.wait_for(asyncio.shield(world.running), DEADLINE)
    await ended(world, "media after the greeting")
    assert world.said == ["A greeting.", "A provider_down."]
    world.visit.leave("the test is over")


async def test_stop_during_the_greeting_leaves_a_music_room_silent(enter: Callable[..., World]) -> None:
    world = enter(name="u_020000000001_music", gated=True)
    cast("Gate", world.visit.desk).opened.set()
    world.visit.greeted = Late()
    await asyncio.wait_for(asyncio.shield(world.running), DEADLINE)
    assert world.visit.playback is not None
    world.visit.playback.stop()
    cast("Late", world.visit.greeted).now.set()
    await ended(world, "media after the greeting")
    assert world.said == ["A greeting."]
    world.visit.leave("the test is over")


class Late(asyncio.Event):
    """Is set for nobody before `now` is."""

    def __init__(self) -> None:
        super().__init__()
        self.now = asyncio.Event()

    async def wait(self) -> Any:
        await super().wait()
        return await self.now.wait()


async def ended(world: World, part: str) -> None:
    """A part of the visit has ended."""
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == part]
    if tasks:
        await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE)

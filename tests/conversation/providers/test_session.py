"""The real session on the pipeline, without a room: a spoken conversation, and every provider failing within it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from livekit.agents import Agent, AgentSession
from provider_speech import Loudspeaker, Microphone

from agent.conversation.providers import ProviderPlan
from agent.conversation.turn_taking import load_vad, session_options
from agent.errors import AllProvidersFailed
from agent.settings import Settings
from sandbox.faults import Fault
from sandbox.providers import ProviderServer
from sandbox.replies import Rules

MakeSettings = Callable[..., Settings]
REPLY = "Well hello, my friend. It is so nice to hear you today!"


class Talk:
    def __init__(self, session: AgentSession[None], microphone: Microphone, loudspeaker: Loudspeaker) -> None:
        self.session = session
        self.microphone = microphone
        self.loudspeaker = loudspeaker
        self.failures: asyncio.Queue[AllProvidersFailed] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.answered = asyncio.Event()
        self.told = asyncio.Event()
        session.on("close", lambda _: self.closed.set())
        session.on("conversation_item_added", self._added)

    def _added(self, event: Any) -> None:
        role = getattr(event.item, "role", None)
        if role == "assistant":
            self.answered.set()
        elif role == "user":
            self.told.set()

    async def answer(self, words: str = "hello who are you") -> float:
        """Say something; seconds of sound in the answer."""
        self.answered.clear()
        self.microphone.say(words)
        seconds = await asyncio.wait_for(self.loudspeaker.played.get(), 25)
        await asyncio.wait_for(self.answered.wait(), 5)
        return seconds


@pytest.fixture
async def talk(main: ProviderServer, standby: ProviderServer, make_settings: MakeSettings) -> AsyncIterator[Talk]:
    for server in (main, standby):
        server.chat.script = Rules(otherwise=REPLY)
    plan = ProviderPlan(make_settings())
    failures: list[Callable[[AllProvidersFailed], None]] = []
    providers = plan.open(on_failed=lambda error: failures[0](error))
    providers.warm()
    vad = load_vad()
    pipeline = providers.pipeline(vad, language="en")
    session: AgentSession[None] = AgentSession(
        stt=pipeline.stt, llm=pipeline.llm, tts=pipeline.tts, vad=vad, **session_options(plan.settings, age=10)
    )
    microphone, loudspeaker = Microphone(), Loudspeaker()
    session.input.audio, session.output.audio = microphone, loudspeaker
    talk = Talk(session, microphone, loudspeaker)
    failures.append(talk.failures.put_nowait)
    await session.start(Agent(instructions="You are a toy."), record=False)
    yield talk
    await session.aclose()
    await providers.aclose()


SECONDS = len(REPLY) * 0.06


async def test_a_spoken_conversation(talk: Talk, main: ProviderServer) -> None:
    for turn in (1, 2):
        assert await talk.answer() == pytest.approx(SECONDS, rel=0.1)
        said = [item.text_content for item in talk.session.history.items if item.type == "message"]
        assert said == ["hello there", REPLY] * turn
    assert main.chat.calls[-1].request.system == "You are a toy."
    # The reply prepared while the silence lasted is the one that was spoken: nothing was asked twice.
    assert len(main.chat.calls) == 2


@pytest.mark.parametrize("service", ["transcription", "chat", "speech"])
@pytest.mark.parametrize("fault", [Fault.STALL, Fault.RESET])
async def test_one_provider_failing_in_the_middle_of_the_talk_is_not_heard(
    talk: Talk, main: ProviderServer, service: str, fault: Fault
) -> None:
    await talk.answer()
    main.behaviours[service].fail(fault, after=3)
    assert await talk.answer() == pytest.approx(SECONDS, rel=0.25)
    assert talk.failures.empty()
    main.behaviours[service].heal()
    assert await talk.answer() == pytest.approx(SECONDS, rel=0.1)


@pytest.mark.parametrize(
    ("service", "kind"),
    [("transcription", "speech-to-text"), ("chat", "language model"), ("speech", "voice")],
)
async def test_when_all_of_a_kind_fail_it_is_made_known_and_the_visit_goes_on(
    talk: Talk, main: ProviderServer, standby: ProviderServer, service: str, kind: str
) -> None:
    for server in (main, standby):
        server.behaviours[service].fail(Fault.ERROR)
    for _ in range(4):  # more often than the session bears by default
        talk.told.clear()
        talk.microphone.say("hello who are you")
        failure = await asyncio.wait_for(talk.failures.get(), 25)
        assert failure.kind == kind
        if service != "transcription":  # what was not understood is no turn
            await asyncio.wait_for(talk.told.wait(), 10)
    for server in (main, standby):
        server.behaviours[service].heal()
    while not talk.loudspeaker.played.empty():
        talk.loudspeaker.played.get_nowait()
    assert await talk.answer() == pytest.approx(SECONDS, rel=0.1)
    assert not talk.closed.is_set()

"""The real session on the Realtime stand-in, with the companion and the speaker: faces, tools and what was heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from livekit.agents import AgentSession
from livekit.agents.llm import ChatContext, ChatMessage, function_tool
from livekit.agents.voice import ConversationItemAddedEvent

from agent.conversation.companion import Companion
from agent.conversation.emotion import Emotion
from agent.conversation.providers import ProviderPlan
from agent.conversation.turn_taking import session_options
from agent.settings import Settings
from agent.speaker.speaker import SAMPLE_RATE, Speaker
from sandbox.providers import ProviderServer
from sandbox.replies import Rules, ToolCall
from speaker_alone import Listener, Watch

MakeSettings = Callable[..., Settings]
STORY = "Once upon a time there was a bear. It lived in a deep dark forest with its two best friends. THE END."
PER_CHARACTER = 0.06


class Talk:
    """A started session; `faces` are the emotions it was told, in order."""

    def __init__(self, session: AgentSession[None], companion: Companion, faces: list[Emotion | None]) -> None:
        self.session = session
        self.companion = companion
        self.faces = faces
        self.watch = Watch()
        self._said: asyncio.Queue[str] = asyncio.Queue()
        session.on("conversation_item_added", self._added)

    def _added(self, event: ConversationItemAddedEvent) -> None:
        if isinstance(event.item, ChatMessage) and event.item.role == "assistant":
            self._said.put_nowait(event.item.text_content or "")

    async def answer(self, words: str, *, stop_after: float | None = None) -> str:
        """Type something; what is remembered of the answer, which is stopped after so many seconds of sound."""
        self.session.generate_reply(user_input=words)
        if stop_after is not None:
            self.watch.left = int(stop_after * SAMPLE_RATE)
            await asyncio.wait_for(self.watch.reached.wait(), 30)
            await self.session.interrupt(force=True)
        return await asyncio.wait_for(self._said.get(), 30)


@pytest.fixture
async def talk(make_settings: MakeSettings, main: ProviderServer) -> AsyncIterator[Talk]:
    @function_tool
    async def weather() -> str:
        """The weather."""
        return "sunny"

    main.realtime.script = Rules(
        said=[("weather", ToolCall("weather")), ("story", f"😊 {STORY}"), ("hello", "😆 Hello!")],
        after_tool=[("weather: (.*)", "It is \\1.")],
    )
    plan = ProviderPlan(make_settings(conversation_mode="realtime"))
    providers = plan.open(on_failed=lambda _: None)
    providers.warm()
    faces: list[Emotion | None] = []
    companion = Companion(
        "You are a toy.", context=ChatContext.empty(), tools=[weather], on_emotion=faces.append, realtime=True
    )
    session: AgentSession[None] = AgentSession(
        llm=providers.realtime(on_lost_reply=lambda: None),
        **{**session_options(plan.settings, age=6, realtime=True), "vad": None},
    )
    talk = Talk(session, companion, faces)
    speaker = Speaker()
    speaker.attach_ambience(talk.watch)
    speaker.on("playback_started", lambda _: setattr(talk.watch, "sounding", True))
    await speaker.publish(cast("Any", Listener()))
    await speaker.wait_for_listener()
    session.output.audio = speaker
    await session.start(companion, record=False)
    yield talk
    await session.aclose()
    await speaker.aclose()
    await providers.aclose()


async def test_the_face_is_read_from_the_transcript_on_the_socket_opened_ahead(
    talk: Talk, main: ProviderServer
) -> None:
    assert await talk.answer("hello") == "😆 Hello!"
    assert talk.faces == [Emotion("😆", "laughing")]
    assert main.realtime.connections == 1


async def test_tools_are_called_and_their_results_said(talk: Talk, main: ProviderServer) -> None:
    assert await talk.answer("what is the weather") == "It is sunny."
    assert "weather" in main.realtime.sessions[0].requests[0].tools
    assert talk.faces == [None]


async def test_only_what_was_heard_of_a_story_is_remembered(talk: Talk, main: ProviderServer) -> None:
    remembered = await talk.answer("tell me a story", stop_after=1.5)
    assert f"😊 {STORY}".startswith(remembered)
    [truncated] = main.realtime.sessions[0].truncated
    heard = truncated["audio_end_ms"] / 1000 / PER_CHARACTER
    assert heard - 10 <= len(remembered) <= heard


async def test_new_instructions_are_told_in_mid_conversation(talk: Talk, main: ProviderServer) -> None:
    await talk.answer("hello")
    await talk.companion.update_instructions("You are a toy. The child has a dog called Bruno.")
    await talk.answer("hello")
    assert "Bruno" in main.realtime.sessions[0].requests[-1].system

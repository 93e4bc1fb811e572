"""What is remembered of a reply that was interrupted: the words that were heard, by the real session and speaker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from livekit.agents import AgentSession
from livekit.agents.llm import ChatContext, ChatMessage
from livekit.agents.voice.io import PlaybackFinishedEvent

from agent.conversation.companion import Companion
from agent.conversation.providers import ProviderPlan
from agent.conversation.turn_taking import load_vad, session_options
from agent.settings import Settings
from agent.speaker.speaker import SAMPLE_RATE, Speaker
from sandbox.faults import Fault
from sandbox.providers import ProviderServer
from sandbox.replies import Rules
from speaker_alone import Listener, Watch

MakeSettings = Callable[..., Settings]
ENGLISH = (
    "Once upon a time there was a bear. It lived in a deep dark forest with its two best friends. "
    "Every day the three of them went for a walk along the river. One day they found a golden key. THE END."
)
CHINESE = "从前有一只小熊，它和两个好朋友住在森林里。他们每天都沿着河边散步。有一天他们找到了一把金钥匙。故事讲完了。"
PER_CHARACTER = 0.06


class Talk:
    def __init__(self, session: AgentSession[None], speaker: Speaker) -> None:
        self.session = session
        self.watch = Watch()
        self.ended: list[PlaybackFinishedEvent] = []
        speaker.attach_ambience(self.watch)
        speaker.on("playback_started", lambda _: setattr(self.watch, "sounding", True))
        speaker.on("playback_finished", self.ended.append)

    async def tell(self, seconds: float | None) -> str | None:
        """Ask for a story and stop it after so many seconds of sound; what is remembered of it."""
        handle = self.session.generate_reply(user_input="tell me a story")
        if seconds is not None:
            self.watch.left = int(seconds * SAMPLE_RATE)
            await asyncio.wait_for(self.watch.reached.wait(), 30)
            await self.session.interrupt(force=True)
        async with asyncio.timeout(60):
            await handle.wait_for_playout()
        last = self.session.history.items[-1]
        assert isinstance(last, ChatMessage)
        return last.text_content if last.role == "assistant" else None


@pytest.fixture
async def talk(make_settings: MakeSettings) -> AsyncIterator[Talk]:
    plan = ProviderPlan(make_settings())
    providers = plan.open(on_failed=lambda _: None)
    pipeline = providers.pipeline(load_vad(), language="en")
    session: AgentSession[None] = AgentSession(
        stt=pipeline.stt, llm=pipeline.llm, tts=pipeline.tts, **session_options(plan.settings, age=6)
    )
    speaker = Speaker()
    await speaker.publish(cast("Any", Listener()))
    await speaker.wait_for_listener()
    session.output.audio = speaker
    await session.start(Companion("You are a toy.", context=ChatContext.empty()), record=False)
    yield Talk(session, speaker)
    await session.aclose()
    await speaker.aclose()
    await providers.aclose()


@pytest.mark.parametrize("story", [ENGLISH, CHINESE], ids=["english", "chinese"])
async def test_only_what_was_heard_of_a_story_is_remembered(talk: Talk, main: ProviderServer, story: str) -> None:
    main.chat.script = Rules(said=[("go on", "Yes.")], otherwise=f"😊 {story}")
    remembered = await talk.tell(2.0)
    [end] = talk.ended
    assert end.interrupted
    heard = int(end.playback_position / PER_CHARACTER)
    assert remembered is not None
    assert remembered.startswith("😊 ")
    words = remembered.removeprefix("😊 ")
    assert story.startswith(words)
    # Whole words: the one that was interrupted is not counted.
    assert heard - 10 <= len(words) <= heard
    if story is ENGLISH:
        assert story[len(words)] in " .,"
    # The model goes on from there.
    async with asyncio.timeout(30):
        await talk.session.generate_reply(user_input="go on").wait_for_playout()
    assert [m["content"] for m in main.chat.calls[1].request.messages if m["role"] == "assistant"] == [remembered]


async def test_a_reply_that_ended_before_its_first_word_was_never_said(talk: Talk, main: ProviderServer) -> None:
    main.chat.script = Rules(otherwise=f"Abracadabrasimsalabim{'bim' * 30}. {ENGLISH}")
    assert await talk.tell(0.2) is None


async def test_a_reply_to_its_end_is_remembered_as_it_was_written(talk: Talk, main: ProviderServer) -> None:
    main.chat.script = Rules(otherwise="😊 I have 3 bears.")
    assert await talk.tell(None) == "😊 I have 3 bears."


async def test_what_no_voice_could_say_is_not_remembered(
    talk: Talk, main: ProviderServer, standby: ProviderServer
) -> None:
    main.chat.script = Rules(otherwise=ENGLISH)
    main.speech.behaviour.fail(Fault.RESET, after=5)
    standby.speech.behaviour.fail(Fault.ERROR)
    remembered = await talk.tell(None)
    assert remembered is None or (ENGLISH.startswith(remembered) and "friends" not in remembered)

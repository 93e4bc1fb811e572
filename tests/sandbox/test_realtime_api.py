"""The Realtime stand-in as the real plugin sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from livekit import rtc
from livekit.agents import APIConnectOptions, llm
from livekit.plugins.openai.realtime import RealtimeModel
from openai.types.realtime.realtime_audio_input_turn_detection import ServerVad

from sandbox.faults import Fault
from sandbox.providers import ProviderServer
from sandbox.replies import Rules, ToolCall

PATIENT = APIConnectOptions(max_retry=5, retry_interval=0.01, timeout=2.0)


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer(answers=["tell me a joke"]) as server:
        yield server


@pytest.fixture
async def session(server: ProviderServer) -> AsyncIterator[Any]:
    async with aiohttp.ClientSession() as http:
        model = RealtimeModel(
            base_url=server.v1,
            api_key="x",
            http_session=http,
            conn_options=PATIENT,
            turn_detection=ServerVad(type="server_vad", threshold=0.5, prefix_padding_ms=300, silence_duration_ms=200),
        )
        session = model.session()
        await session.update_instructions("You are a toy.")
        yield session
        await session.aclose()
        await model.aclose()


class Listener:
    """Collects what the plugin's session says."""

    def __init__(self, session: Any) -> None:
        self.generations: asyncio.Queue[llm.GenerationCreatedEvent] = asyncio.Queue()
        self.transcripts: asyncio.Queue[str] = asyncio.Queue()
        self.seen: list[str] = []
        self.reconnected = asyncio.Event()
        session.on("generation_created", self.generations.put_nowait)
        session.on("input_speech_started", lambda _: self.seen.append("started"))
        session.on("input_speech_stopped", lambda _: self.seen.append("stopped"))
        session.on("session_reconnected", lambda _: self.reconnected.set())
        session.on("input_audio_transcription_completed", lambda ev: self.transcripts.put_nowait(ev.transcript))

    async def reply(self) -> tuple[str, float, list[llm.FunctionCall]]:
        """Text, seconds of sound and function calls of the next generation."""
        generation = await asyncio.wait_for(self.generations.get(), 5)
        text, seconds = "", 0.0
        async for message in generation.message_stream:
            async for frame in message.audio_stream:
                seconds += frame.duration
            async for delta in message.text_stream:
                text += delta
        return text, seconds, [call async for call in generation.function_stream]


def talk(session: Any, seconds: float, level: float) -> None:
    wave = np.sin(np.arange(int(24000 * seconds)) * 0.1) * level
    for part in np.array_split(wave.astype(np.int16), max(1, int(seconds / 0.05))):
        session.push_audio(rtc.AudioFrame(part.tobytes(), 24000, 1, part.size))


async def test_hears_a_turn_transcribes_it_and_answers_in_sound(server: ProviderServer, session: Any) -> None:
    server.realtime.script = Rules(said=[("joke", "Why did the chicken cross the road?")])
    listener = Listener(session)
    talk(session, 1.0, 8000)
    talk(session, 0.6, 0)
    text, seconds, calls = await listener.reply()
    assert text == "Why did the chicken cross the road?"
    assert seconds == pytest.approx(len(text) * 0.06, abs=0.05)
    assert calls == []
    assert listener.seen == ["started", "stopped"]
    assert await listener.transcripts.get() == "tell me a joke"
    [told] = server.realtime.sessions[0].requests
    assert (told.system, told.last_user) == ("You are a toy.", "tell me a joke")


async def test_calls_a_function_and_speaks_after_its_result(server: ProviderServer, session: Any) -> None:
    server.realtime.script = Rules(
        said=[("hi", ToolCall("play_music", {"name": "baby shark"}))], after_tool=[("play_music: (.+)", r"Playing \1.")]
    )
    listener = Listener(session)
    chat = llm.ChatContext.empty()
    chat.add_message(role="user", content="hi")
    await session.update_chat_ctx(chat)
    session.generate_reply()
    _, _, [call] = await listener.reply()
    assert (call.name, call.arguments) == ("play_music", '{"name": "baby shark"}')
    chat = session.chat_ctx.copy()
    chat.insert(llm.FunctionCallOutput(call_id=call.call_id, name=call.name, output="Baby Shark", is_error=False))
    await session.update_chat_ctx(chat)
    session.generate_reply()
    assert (await listener.reply())[0] == "Playing Baby Shark."


async def test_speech_over_a_reply_cancels_it(server: ProviderServer, session: Any) -> None:
    server.realtime.behaviour.gap = 0.2
    server.realtime.script = Rules(otherwise="word " * 60)
    listener = Listener(session)
    session.generate_reply(instructions="go on")
    replying = asyncio.create_task(listener.reply())
    await asyncio.wait_for(first_sound(server), 5)
    talk(session, 0.5, 8000)
    _, seconds, _ = await asyncio.wait_for(replying, 10)
    assert seconds < 5


async def first_sound(server: ProviderServer) -> None:
    while not any(item.get("role") == "assistant" for s in server.realtime.sessions for item in s.items):
        await asyncio.to_thread(lambda: None)


async def test_a_dropped_socket_is_opened_again_with_the_conversation(server: ProviderServer, session: Any) -> None:
    listener = Listener(session)
    chat = llm.ChatContext.empty()
    chat.add_message(role="user", content="my name is Mia")
    await session.update_chat_ctx(chat)
    await server.realtime.drop_connections()
    await asyncio.wait_for(listener.reconnected.wait(), 5)
    session.generate_reply()
    assert (await listener.reply())[0]
    assert server.realtime.connections == 2
    [told] = server.realtime.sessions[1].requests
    assert (told.system, told.last_user) == ("You are a toy.", "my name is Mia")


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.HANG])
async def test_a_silent_reply_stays_open_until_dropped(server: ProviderServer, session: Any, fault: Fault) -> None:
    await asyncio.wait_for(connected(server), 5)
    server.realtime.behaviour.fail(fault, times=1)
    listener = Listener(session)
    created = session.generate_reply()
    replying = asyncio.create_task(listener.reply())
    done, _ = await asyncio.wait([replying], timeout=0.5)
    assert not done
    await server.realtime.drop_connections()
    await asyncio.wait_for(listener.reconnected.wait(), 5)
    if fault is Fault.STALL:
        await replying
        await created
    else:
        replying.cancel()
        with pytest.raises(llm.RealtimeError):
            await created


async def connected(server: ProviderServer) -> None:
    while not (server.realtime.sessions and server.realtime.sessions[0].config.get("instructions")):
        await asyncio.to_thread(lambda: None)


async def test_a_reset_in_mid_reply_reconnects(server: ProviderServer, session: Any) -> None:
    await asyncio.wait_for(connected(server), 5)
    server.realtime.behaviour.fail(Fault.RESET, times=1, after=2)
    listener = Listener(session)
    session.generate_reply()
    await listener.reply()
    await asyncio.wait_for(listener.reconnected.wait(), 5)
    session.generate_reply()
    assert (await listener.reply())[0]

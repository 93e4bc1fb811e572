"""The OpenAI stand-ins as the real plugins see them, healthy and under every fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, APIStatusError, APITimeoutError, llm
from livekit.plugins import openai

from agent.greeting.espeak import synthesise
from sandbox.faults import Fault
from sandbox.hearing import Hearing
from sandbox.providers import ProviderServer
from sandbox.replies import Rules, ToolCall

ONCE = APIConnectOptions(max_retry=0, timeout=2.0)


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer(answers=["hello there"]) as server:
        yield server


@llm.function_tool
async def play_music(name: str) -> str:
    """Play a song.

    Args:
        name: its title
    """
    return name


def context(*said: str, system: str = "You are a toy.") -> llm.ChatContext:
    chat = llm.ChatContext.empty()
    chat.add_message(role="system", content=system)
    for text in said:
        chat.add_message(role="user", content=text)
    return chat


async def ask(model: openai.LLM, chat: llm.ChatContext, tools: list[Any] | None = None) -> list[llm.ChatChunk]:
    async with model.chat(chat_ctx=chat, tools=tools or [], conn_options=ONCE) as stream:
        return [chunk async for chunk in stream]


def text_of(chunks: list[llm.ChatChunk]) -> str:
    return "".join(c.delta.content or "" for c in chunks if c.delta)


def model_at(server: ProviderServer) -> openai.LLM:
    return openai.LLM(model="gpt-4.1-mini", base_url=server.v1, api_key="x")


async def test_streams_a_scripted_reply_and_records_what_the_model_was_told(server: ProviderServer) -> None:
    server.chat.script = Rules(said=[(r"i am (\w+)", r"Hello \1, nice to meet you!")])
    chunks = await ask(model_at(server), context("I am Mia"))
    assert text_of(chunks) == "Hello Mia, nice to meet you!"
    assert sum(1 for c in chunks if c.delta and c.delta.content) > 3
    [call] = server.chat.calls
    assert call.request.system == "You are a toy."
    assert call.request.last_user == "I am Mia"
    assert call.finished


async def test_usage_counts_the_cached_prefix(server: ProviderServer) -> None:
    long = "You are a kind toy. " * 400
    first = await ask(model_at(server), context("one", system=long))
    second = await ask(model_at(server), context("one", "two", system=long))
    usages = [next(c.usage for c in chunks if c.usage) for chunks in (first, second)]
    assert usages[0].prompt_cached_tokens == 0
    assert usages[1].prompt_cached_tokens >= 1024
    assert usages[1].prompt_cached_tokens < usages[1].prompt_tokens


async def test_calls_a_tool_and_speaks_after_its_result(server: ProviderServer) -> None:
    server.chat.script = Rules(
        said=[(r"play (?P<song>.+)", ["Sure! ", ToolCall("play_music", {"name": r"\g<song>"})])],
        after_tool=[(r"play_music: (.+)", r"Now playing \1.")],
    )
    chat = context("play baby shark")
    chunks = await ask(model_at(server), chat, [play_music])
    [call] = [call for c in chunks if c.delta for call in c.delta.tool_calls]
    assert (call.name, call.arguments) == ("play_music", '{"name": "baby shark"}')
    assert server.chat.calls[0].request.tools == ("play_music",)
    chat.insert(llm.FunctionCall(call_id=call.call_id, name=call.name, arguments=call.arguments))
    chat.insert(llm.FunctionCallOutput(call_id=call.call_id, name=call.name, output="Baby Shark Dance", is_error=False))
    assert text_of(await ask(model_at(server), chat, [play_music])) == "Now playing Baby Shark Dance."


@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [
        (Fault.HANG, APITimeoutError, None),
        (Fault.STALL, APITimeoutError, None),
        (Fault.RATE_LIMIT, APIStatusError, 429),
        (Fault.ERROR, APIStatusError, 500),
        (Fault.UNAUTHORISED, APIStatusError, 401),
        (Fault.RESET, APIConnectionError, None),
        (Fault.TRUNCATE, APIConnectionError, None),
        (Fault.NONSENSE, APIConnectionError, None),
    ],
)
async def test_every_fault_reaches_the_plugin_and_heals(
    server: ProviderServer, fault: Fault, error: type[Exception], status: int | None
) -> None:
    server.chat.behaviour.fail(fault, times=1, after=3, retry_after=7)
    model = model_at(server)
    with pytest.raises(error) as raised:
        await ask(model, context("hi"))
    if status is not None:
        assert isinstance(raised.value, APIStatusError)
        assert raised.value.status_code == status
    assert server.chat.behaviour.faulted == 1
    assert text_of(await ask(model, context("hi")))


async def test_rate_limit_names_its_patience(server: ProviderServer) -> None:
    import aiohttp

    server.chat.behaviour.fail(Fault.RATE_LIMIT, retry_after=7)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer x"}) as http,
        http.post(f"{server.v1}/chat/completions", json=body) as reply,
    ):
        assert (reply.status, reply.headers["Retry-After"]) == (429, "7")


async def test_stall_in_mid_reply_lets_the_beginning_through(server: ProviderServer) -> None:
    server.chat.script = Rules(otherwise="One two three four five six.")
    server.chat.behaviour.fail(Fault.STALL, after=3)
    got: list[str] = []

    async def listen() -> None:
        async with model_at(server).chat(chat_ctx=context("hi"), conn_options=ONCE) as stream:
            async for chunk in stream:
                got.append((chunk.delta.content or "") if chunk.delta else "")

    with pytest.raises(APITimeoutError):
        await listen()
    assert "".join(got) == "One two three"
    assert not server.chat.calls[0].finished


async def test_a_stopped_server_refuses_and_answers_again_on_the_same_port(server: ProviderServer) -> None:
    model = model_at(server)
    await server.stop()
    with pytest.raises(APIConnectionError):
        await ask(model, context("hi"))
    await server.start()
    assert text_of(await ask(model, context("hi")))


def frame(samples: np.ndarray, rate: int) -> rtc.AudioFrame:
    return rtc.AudioFrame(samples.tobytes(), rate, 1, samples.size)


def loud_frame() -> rtc.AudioFrame:
    wave = np.sin(np.arange(16000) * 0.1) * 8000
    return frame(wave.astype(np.int16), 16000)


def ears_at(server: ProviderServer) -> openai.STT:
    return openai.STT(model="gpt-4o-mini-transcribe", base_url=server.v1, api_key="x", language="en")


async def test_transcribes_with_a_fixed_answer_and_keeps_silence_silent(server: ProviderServer) -> None:
    heard = await ears_at(server).recognize(loud_frame(), conn_options=ONCE)
    assert heard.alternatives[0].text == "hello there"
    [call] = server.transcription.calls
    assert (call.language, call.model, call.seconds) == ("en", "gpt-4o-mini-transcribe", 1.0)
    silence = await ears_at(server).recognize(frame(np.zeros(16000, np.int16), 16000), conn_options=ONCE)
    assert silence.alternatives[0].text == ""


async def test_decodes_spoken_sentences() -> None:
    sentences = ["Hello, who are you?", "Tell me a story about a dragon", "What is my name?"]
    async with ProviderServer(sentences=sentences) as server:
        for sentence in sentences:
            pcm, rate = synthesise(sentence)
            heard = await ears_at(server).recognize(frame(pcm, rate), conn_options=APIConnectOptions(max_retry=0))
            assert heard.alternatives[0].text == sentence


async def test_an_answer_nobody_waited_for_is_not_taken_for_the_next() -> None:
    sentences = ["Hello, who are you?", "What is my name?"]
    hearing = Hearing(sentences)
    await hearing.start()
    first = asyncio.create_task(hearing.recognise(*synthesise(sentences[0])))
    await asyncio.to_thread(lambda: None)
    first.cancel()
    assert await hearing.recognise(*synthesise(sentences[1])) == sentences[1]
    await hearing.close()


async def test_a_grammar_with_unknown_words_is_refused_by_name() -> None:
    hearing = Hearing(["play the zzxqv"])
    with pytest.raises(ValueError, match="zzxqv"):
        await hearing.start()


@pytest.mark.parametrize("fault", [Fault.RATE_LIMIT, Fault.ERROR, Fault.RESET, Fault.TRUNCATE])
async def test_transcription_faults(server: ProviderServer, fault: Fault) -> None:
    server.transcription.behaviour.fail(fault, times=1)
    ears = ears_at(server)
    with pytest.raises(APIError):
        await ears.recognize(loud_frame(), conn_options=ONCE)
    assert (await ears.recognize(loud_frame(), conn_options=ONCE)).alternatives[0].text == "hello there"


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.STALL])
async def test_a_silent_transcriber_stays_silent_until_healed(server: ProviderServer, fault: Fault) -> None:
    server.transcription.behaviour.fail(fault)
    hearing = asyncio.create_task(ears_at(server).recognize(loud_frame(), conn_options=ONCE))
    done, _ = await asyncio.wait([hearing], timeout=1.0)
    assert not done
    server.transcription.behaviour.heal()
    with pytest.raises(APIConnectionError):
        await hearing


async def test_streamed_transcription(server: ProviderServer) -> None:
    import aiohttp

    form = aiohttp.FormData({"model": "m", "stream": "true"})
    form.add_field("file", loud_frame().to_wav_bytes(), filename="a.wav", content_type="audio/wav")
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer x"}) as http,
        http.post(f"{server.v1}/audio/transcriptions", data=form) as reply,
    ):
        body = await reply.text()
    assert '"transcript.text.done", "text": "hello there"' in body


async def speak(voice: openai.TTS, text: str) -> float:
    seconds = 0.0
    async with voice.synthesize(text, conn_options=ONCE) as stream:
        async for audio in stream:
            seconds += audio.frame.duration
    return seconds


@pytest.mark.parametrize("model", ["gpt-4o-mini-tts", "tts-1"])
async def test_speaks_pcm_streamed_or_plain(server: ProviderServer, model: str) -> None:
    voice = openai.TTS(model=model, voice="nova", base_url=server.v1, api_key="x", response_format="pcm")
    assert await speak(voice, "Hello there, little one") == pytest.approx(23 * 0.06, abs=0.05)
    [call] = server.speech.calls
    assert (call.text, call.voice, call.format, call.finished) == ("Hello there, little one", "nova", "pcm", True)


@pytest.mark.parametrize("fault", [Fault.RATE_LIMIT, Fault.ERROR, Fault.RESET, Fault.TRUNCATE])
async def test_speech_faults(server: ProviderServer, fault: Fault) -> None:
    server.speech.behaviour.fail(fault, times=1, after=2)
    voice = openai.TTS(model="tts-1", voice="nova", base_url=server.v1, api_key="x", response_format="pcm")
    with pytest.raises(APIError):
        await speak(voice, "Hello there, little one, how are you today?")
    assert await speak(voice, "Hello") > 0


async def test_control_sets_delays_faults_and_script_over_http(server: ProviderServer) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as http:
        async with http.post(
            f"{server.url}/_control/chat", json={"first": 0.01, "fault": "error", "times": 1}
        ) as reply:
            assert (await reply.json())["fault"] == "error"
        async with http.post(f"{server.url}/_control/chat", json={"fautl": "error"}) as reply:
            assert reply.status == 400
            assert "fautl" in await reply.text()
        async with http.post(f"{server.url}/_control/nobody", json={}) as reply:
            assert reply.status == 404
        async with http.put(f"{server.url}/_control/script", json={"said": [["hi", "ho"]]}) as reply:
            assert reply.status == 200
        async with http.put(f"{server.url}/_control/script", json={"said": [["(", "ho"]]}) as reply:
            assert reply.status == 400
    with pytest.raises(APIStatusError):
        await ask(model_at(server), context("hi"))
    assert text_of(await ask(model_at(server), context("hi"))) == "ho"

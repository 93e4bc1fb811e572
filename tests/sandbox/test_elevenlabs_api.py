"""The ElevenLabs stand-in as the real plugin sees it, healthy and under every fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from livekit.agents import APIConnectOptions, APIError
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT
from livekit.plugins import elevenlabs

from sandbox.faults import Fault
from sandbox.providers import ProviderServer

ONCE = APIConnectOptions(max_retry=0, timeout=2.0)
TEXT = "Once upon a time there was a dragon. It loved to sing."
SECONDS = len(TEXT) * 0.06


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as server:
        yield server


@pytest.fixture
async def voice(server: ProviderServer) -> AsyncIterator[elevenlabs.TTS]:
    async with aiohttp.ClientSession() as http:
        voice = elevenlabs.TTS(
            voice_id="v1",
            api_key="x",
            base_url=server.v1,
            encoding="pcm_24000",
            http_session=http,
            model="eleven_flash_v2_5",
        )
        yield voice
        await voice.aclose()


async def speak(voice: elevenlabs.TTS, text: str = TEXT) -> tuple[float, str]:
    seconds, words = 0.0, ""
    async with voice.stream(conn_options=ONCE) as stream:
        for piece in text.split(" "):
            stream.push_text(piece + " ")
        stream.end_input()
        async for audio in stream:
            seconds += audio.frame.duration
            words += "".join(audio.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, []))
    return seconds, words


async def test_speaks_with_alignment_over_one_socket(server: ProviderServer, voice: elevenlabs.TTS) -> None:
    for _ in range(2):
        seconds, words = await speak(voice)
        assert seconds == pytest.approx(SECONDS, abs=0.2)
        assert words.split() == TEXT.split()
    assert server.elevenlabs.connections == 1
    assert [c.finished for c in server.elevenlabs.contexts] == [True, True]
    assert server.elevenlabs.contexts[0].voice_id == "v1"


async def test_streamed_endpoint(server: ProviderServer, voice: elevenlabs.TTS) -> None:
    seconds = 0.0
    async with voice.synthesize("Hello there", conn_options=ONCE) as stream:
        async for audio in stream:
            seconds += audio.frame.duration
    assert seconds == pytest.approx(11 * 0.06, abs=0.05)


@pytest.mark.parametrize("fault", list(Fault))
async def test_every_fault_reaches_the_plugin(server: ProviderServer, voice: elevenlabs.TTS, fault: Fault) -> None:
    server.elevenlabs.behaviour.fail(fault, times=1, after=2)
    with pytest.raises(APIError):
        await speak(voice)
    assert server.elevenlabs.behaviour.faulted == 1
    server.elevenlabs.behaviour.heal()
    assert (await speak(voice))[0] > 0


async def test_a_dropped_socket_is_opened_again(server: ProviderServer, voice: elevenlabs.TTS) -> None:
    await speak(voice)
    await server.elevenlabs.drop_connections()
    await asyncio.wait_for(speak_until_it_works(voice), 5)
    assert server.elevenlabs.connections == 2


async def speak_until_it_works(voice: elevenlabs.TTS) -> None:
    while True:
        try:
            await speak(voice)
        except APIError:
            continue
        return


async def test_a_wrong_key_is_refused() -> None:
    async with ProviderServer(key="right") as server, aiohttp.ClientSession() as http:
        voice = elevenlabs.TTS(api_key="wrong", base_url=server.v1, encoding="pcm_24000", http_session=http)
        with pytest.raises(APIError):
            await speak(voice)
        await voice.aclose()

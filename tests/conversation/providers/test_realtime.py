from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from livekit import rtc
from livekit.agents import APIConnectOptions, llm

from agent.conversation import realtime
from agent.conversation.realtime import RealtimeSockets, SteadyRealtime, reply_watching_session
from agent.errors import AllProvidersFailed
from agent.telemetry.meter import meter
from sandbox.faults import Fault
from sandbox.providers import ProviderServer

QUICK = APIConnectOptions(max_retry=1000, retry_interval=0.05, timeout=1.0)


class Scene:
    """One Realtime conversation and what it makes known."""

    def __init__(self, server: ProviderServer, http: Any) -> None:
        self.failures: list[AllProvidersFailed] = []
        self.lost_replies = asyncio.Queue[None]()
        self.reconnected = asyncio.Event()
        self.generations: asyncio.Queue[llm.GenerationCreatedEvent] = asyncio.Queue()
        self.fatal: list[Any] = []
        self.model = SteadyRealtime(
            model="gpt-realtime",
            base_url=server.v1,
            api_key="x",
            sockets=RealtimeSockets(http),
            language="en-GB",
            on_failed=self.failures.append,
            on_lost_reply=lambda: self.lost_replies.put_nowait(None),
            connect=QUICK,
        )
        self.session = self.model.session()
        self.session.on("generation_created", self.generations.put_nowait)
        self.session.on("session_reconnected", lambda _: self.reconnected.set())
        self.session.on("error", lambda e: None if e.recoverable else self.fatal.append(e))

    async def reply(self) -> str:
        generation = await asyncio.wait_for(self.generations.get(), 10)
        text = ""
        async for message in generation.message_stream:
            async for _ in message.audio_stream:
                pass
            async for delta in message.text_stream:
                text += delta
        return text

    def talk(self) -> None:
        for level, seconds in ((8000, 0.8), (0, 0.5)):
            wave = (np.sin(np.arange(int(24000 * seconds)) * 0.1) * level).astype(np.int16)
            self.session.push_audio(rtc.AudioFrame(wave.tobytes(), 24000, 1, wave.size))


@pytest.fixture
async def scene(main: ProviderServer) -> AsyncIterator[Scene]:
    async with reply_watching_session(reply_silence=0.5) as http:
        scene = Scene(main, http)
        await scene.session.update_instructions("You are a toy.")
        while not (main.realtime.sessions and main.realtime.sessions[0].config.get("instructions")):
            await asyncio.to_thread(lambda: None)
        yield scene
        await scene.session.aclose()
        await scene.model.aclose()


async def test_turns_are_detected_by_the_server_as_settled(scene: Scene, main: ProviderServer) -> None:
    scene.talk()
    assert await scene.reply()
    heard = main.realtime.sessions[0].config["audio"]["input"]
    assert {
        k: heard["turn_detection"][k] for k in ("type", "threshold", "prefix_padding_ms", "silence_duration_ms")
    } == {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 200,
    }
    assert heard["transcription"]["language"] == "en"


async def test_a_dropped_socket_is_opened_again_and_the_talk_goes_on(scene: Scene, main: ProviderServer) -> None:
    await main.realtime.drop_connections()
    await asyncio.wait_for(scene.reconnected.wait(), 10)
    scene.talk()
    assert await scene.reply()
    assert main.realtime.sessions[1].requests[0].system == "You are a toy."
    assert scene.lost_replies.empty()
    assert scene.failures == []


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.STALL, Fault.RESET, Fault.TRUNCATE])
async def test_a_reply_that_will_not_come_is_made_known_after_reconnecting(
    scene: Scene, main: ProviderServer, fault: Fault
) -> None:
    main.realtime.behaviour.fail(fault, times=1, after=1)
    scene.talk()
    await asyncio.wait_for(scene.lost_replies.get(), 10)
    assert scene.fatal == []
    main.realtime.behaviour.heal()
    while not scene.generations.empty():
        scene.generations.get_nowait()
    scene.session.generate_reply()
    assert await scene.reply()


async def test_rubbish_closes_the_socket_and_not_the_visit(scene: Scene, main: ProviderServer) -> None:
    await main.realtime.sessions[0].say_rubbish()
    await asyncio.wait_for(scene.reconnected.wait(), 10)
    assert scene.fatal == []
    scene.talk()
    assert await scene.reply()


@pytest.fixture
def counted() -> Iterator[list[list[Any]]]:
    records: list[list[Any]] = []
    meter.use(records.append)
    yield records
    meter.use(None)


async def test_a_long_outage_is_counted_made_known_once_and_outlived(
    scene: Scene, main: ProviderServer, counted: list[list[Any]]
) -> None:
    await main.stop()
    while not scene.failures:
        await asyncio.to_thread(lambda: None)
    await main.start()
    await asyncio.wait_for(scene.reconnected.wait(), 10)
    assert [failure.kind for failure in scene.failures] == ["realtime"]
    errors = [record[2] for record in counted if record[1] == "toy_provider_errors"]
    assert len(errors) >= 2
    assert {error["kind"] for error in errors} == {"realtime"}
    assert scene.fatal == []
    scene.talk()
    assert await scene.reply()


@pytest.fixture
async def sockets(main: ProviderServer) -> AsyncIterator[RealtimeSockets]:
    async with reply_watching_session() as http:
        sockets = RealtimeSockets(http)
        yield sockets
        await sockets.aclose()


async def opened(sockets: RealtimeSockets, server: ProviderServer) -> aiohttp.ClientWebSocketResponse:
    url, headers = f"{server.v1.replace('http', 'ws')}/realtime?model=gpt-realtime", {"Authorization": "Bearer x"}
    return await asyncio.wait_for(sockets.ws_connect(url, headers), 10)


async def test_a_socket_opened_ahead_is_the_conversations_first(sockets: RealtimeSockets, main: ProviderServer) -> None:
    sockets.open_ahead(base_url=main.v1, model="gpt-realtime", api_key="x")
    first = await opened(sockets, main)
    assert main.realtime.connections == 1
    assert json.loads((await first.receive(10)).data)["type"] == "session.created"
    await opened(sockets, main)
    assert main.realtime.connections == 2


async def test_a_server_that_was_down_before_the_talk_is_asked_again(
    sockets: RealtimeSockets, main: ProviderServer
) -> None:
    await main.stop()
    sockets.open_ahead(base_url=main.v1, model="gpt-realtime", api_key="x")
    with pytest.raises(aiohttp.ClientError):
        await opened(sockets, main)
    await main.start()
    assert not (await opened(sockets, main)).closed


def test_a_reply_is_given_up_sooner_than_a_child_gives_up() -> None:
    assert realtime.REPLY_SILENCE <= 8

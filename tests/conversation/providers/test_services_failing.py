"""Every service stopped, hung or lying in the middle of a conversation: it goes on, and no line or memory is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import tenacity
from livekit.agents import Agent, AgentSession
from livekit.agents.llm import ChatMessage
from provider_speech import Loudspeaker, Microphone
from pydantic import SecretStr

from agent.briefing.manager_api import ManagerApiClient
from agent.briefing.memory import Mem0Client
from agent.briefing.profile import Voice
from agent.conversation.history import ChatHistory, chat_deliverer, memory_deliverer
from agent.conversation.providers import ProviderPlan
from agent.conversation.turn_taking import load_vad, session_options
from agent.outbox.courier import CourierTiming, OutboxCourier
from agent.outbox.sqlite import SqliteOutbox
from agent.outbox.writer import OutboxWriter
from agent.settings import Settings
from sandbox.faults import Fault
from sandbox.manager_api import DEMO_MAC, DEMO_SECRET, Call, ManagerApi
from sandbox.providers import ProviderServer
from sandbox.replies import Rules

PROVIDERS = ["transcription", "chat", "speech", "elevenlabs"]
SERVICES = [*PROVIDERS, "mem0-add", "manager"]
STOPPED = "stopped"
QUICK = CourierTiming(poll_s=0.02, first_delay_s=0.01, longest_delay_s=0.05)


class House:
    """A server for each service, one that stands by, and a conversation whose words go through an outbox."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.path = folder / "outbox.db"
        self.manager = ManagerApi()
        self.servers = {name: self._server() for name in [*PROVIDERS, "mem0-add", "standby"]}
        self.mem0 = self.servers["mem0-add"].mem0
        self.mem0.key_field = "outbox_key"
        self.microphone, self.loudspeaker = Microphone(), Loudspeaker()
        self.said: asyncio.Queue[ChatMessage] = asyncio.Queue()

    def _server(self) -> ProviderServer:
        script = Rules(said=[("(one|two|three|hello)", "You said \\1, my friend.")])
        return ProviderServer(script=script, answers=["hello there"])

    async def open(self, voice: Voice | None) -> None:
        for server in (*self.servers.values(), self.manager):
            await self.stack.enter_async_context(server)
        settings = Settings(
            _env_file=None,  # type: ignore[call-arg]
            stt_base_url=self.servers["transcription"].v1,
            llm_base_url=self.servers["chat"].v1,
            tts_base_url=self.servers["speech"].v1,
            elevenlabs_base_url=self.servers["elevenlabs"].v1,
            fallback_openai_base_url=self.servers["standby"].v1,
        )
        memory = Mem0Client(self.servers["mem0-add"].url, SecretStr("m0"), add_timeout_s=10.0)
        manager = ManagerApiClient(self.manager.url, SecretStr(DEMO_SECRET), deadline=10.0)
        deliverers = {"chat": chat_deliverer(manager.report_chat), "memory": memory_deliverer(memory)}
        self.courier = OutboxCourier(SqliteOutbox(self.path), deliverers, timing=QUICK)
        writer = OutboxWriter(SqliteOutbox(self.path))
        self.history = ChatHistory(writer, DEMO_MAC, "room", turns_per_memory=1)
        self.history.decide(chat_history=1, memory_user="child")
        for opened in (memory, manager, self.courier, writer):
            self.stack.push_async_callback(opened.aclose)
        self.courier.start()
        self.failures: list[Any] = []
        providers = ProviderPlan(settings).open(on_failed=self.failures.append)
        self.stack.push_async_callback(providers.aclose)
        pipeline = providers.pipeline(load_vad(), voice=voice, language="en")
        self.session: AgentSession[None] = AgentSession(
            stt=pipeline.stt,
            llm=pipeline.llm,
            tts=pipeline.tts,
            vad=pipeline.stt.detector,
            **session_options(settings, age=10),
        )
        self.session.on("conversation_item_added", self._added)
        self.session.input.audio, self.session.output.audio = self.microphone, self.loudspeaker
        self.stack.push_async_callback(self.session.aclose)
        await self.session.start(Agent(instructions="You are a toy."), record=False)

    def _added(self, event: Any) -> None:
        self.history.add(event.item)
        if isinstance(event.item, ChatMessage):
            self.said.put_nowait(event.item)

    async def turn(self, words: str, *, aloud: bool) -> None:
        """Say or type something and hear an answer."""
        if aloud:
            self.microphone.say(words)
        else:
            self.session.generate_reply(user_input=words)
        async with asyncio.timeout(30):
            assert (await self.said.get()).role == "user"
            assert (await self.said.get()).role == "assistant"
            assert await self.loudspeaker.played.get() > 0.5

    async def strike(self, service: str, fault: str) -> None:
        if service == "manager":
            if fault == STOPPED:
                await self.manager.__aexit__(None, None, None)
            else:
                self.manager.fail(fault, Call.CHAT_REPORT)
        elif fault == STOPPED:
            await self.servers[service].stop()
        else:
            self.servers[service].behaviours[service].fail(fault)

    async def felt(self, service: str, fault: str) -> None:
        """Return once the service was asked while it was struck."""
        if service in PROVIDERS:
            standby = self.servers["speech" if service == "elevenlabs" else "standby"]
            kind = {"transcription": standby.transcription, "chat": standby.chat}.get(service, standby.speech)
            assert kind.calls, "the next one has answered"
            return
        behaviours = self.servers["mem0-add"].behaviours | {"manager": self.manager.behaviour[Call.CHAT_REPORT]}
        kind_of = {"manager": "chat", "mem0-add": "memory"}
        async with asyncio.timeout(30):
            while not (behaviours[service].faulted or (await self.courier.stats())[kind_of[service]].retried):
                await asyncio.to_thread(lambda: None)

    async def heal(self, service: str, fault: str) -> None:
        if service == "manager":
            self.manager.heal()
            if fault == STOPPED:
                await self.manager.__aenter__()
        elif fault == STOPPED:
            await self.servers[service].start()
        else:
            self.servers[service].behaviours[service].heal()

    @tenacity.retry(wait=tenacity.wait_fixed(0.05), stop=tenacity.stop_after_delay(30), reraise=True)
    async def delivered(self, lines: int, memories: int) -> None:
        stats = await self.courier.stats()
        assert (stats["chat"].delivered, stats["memory"].delivered) == (lines, memories)
        assert not any(state.depth or state.dead or state.dropped for state in stats.values())


@pytest.fixture
async def house(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        house = House(tmp_path, stack)
        eleven = request.node.callspec.params["service"] == "elevenlabs"
        await house.open(Voice("elevenlabs", "v123") if eleven else None)
        yield house


@pytest.mark.parametrize("fault", [STOPPED, Fault.HANG, Fault.NONSENSE])
@pytest.mark.parametrize("service", SERVICES)
async def test_the_talk_goes_on_and_every_line_and_memory_arrives_once_and_in_order(
    house: House, service: str, fault: str
) -> None:
    aloud = service == "transcription"
    await house.turn("hello one", aloud=aloud)
    await house.strike(service, fault)
    await house.turn("hello two", aloud=aloud)
    await house.felt(service, fault)
    await house.heal(service, fault)
    await house.turn("hello three", aloud=aloud)
    assert await house.history.aclose()
    await house.delivered(lines=6, memories=3)

    said = [item for item in house.session.history.items if isinstance(item, ChatMessage)]
    keys = Counter(report["idempotencyKey"] for report in house.manager.reports)
    assert len(keys) == 6
    assert set(keys.values()) == {1}
    assert [report["content"] for report in house.manager.reports] == [item.text_content for item in said]
    assert [memory.memory for memory in house.mem0.memories] == [m.text_content for m in said if m.role == "user"]
    assert len(house.mem0.deliveries()) == 3
    assert house.failures == []

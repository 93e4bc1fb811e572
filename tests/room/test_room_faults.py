"""What a child notices, and what is kept, when services are slow, fail, lie, or the worker itself is killed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from room_support import memory_settings, own_errors, provider_settings, visit_ended

from agent.briefing.memory import user_id
from agent.values import DeviceMac
from sandbox.device import Device, random_mac
from sandbox.faults import Fault
from sandbox.manager_api import CHILD, DEMO_MAC, Call
from sandbox.manager_api import Device as KnownDevice
from sandbox.processes import WorkerProcess
from sandbox.providers import ProviderServer
from sandbox.replies import Rules, ToolCall, text_of
from sandbox.world import World
from world_support import AGAIN, ANSWERS, HELLO, StartWorld, greeted, small_talk, talk

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
async def providers() -> AsyncIterator[ProviderServer]:
    async with small_talk() as server:
        server.mem0.key_field = "outbox_key"
        yield server


def env(providers: ProviderServer, **more: str) -> dict[str, str]:
    return {**provider_settings(providers), **memory_settings(providers), **more}


async def arrived(world: World, mac: str = DEMO_MAC) -> Device:
    device = world.device(mac=mac)
    await device.join()
    await greeted(device)
    return device


def told(providers: ProviderServer, call: int) -> str:
    """All that the model was told in its call."""
    return "\n".join(text_of(message) for message in providers.chat.calls[call].request.messages)


async def waiting_items(worker: WorkerProcess) -> int:
    """Items in the outbox, from the worker's own metrics."""
    _, text = await worker.health("/metrics")
    return sum(round(float(line.split()[-1])) for line in text.splitlines() if line.startswith("toy_outbox_items{"))


async def test_memories_are_there_for_the_first_words_and_late_ones_join(
    start_world: StartWorld, providers: ProviderServer
) -> None:
    other = random_mac()
    asha = user_id(DeviceMac(DEMO_MAC), "17")
    providers.mem0.remember(asha, "The child has a cat called Mimi.")
    providers.mem0.remember(user_id(DeviceMac(DEMO_MAC)), "The child who had this toy before has a dog called Bruno.")
    providers.mem0.search_behaviour.first = 0.3
    world = await start_world(env=env(providers), warm=2)
    assert world.manager is not None
    for mac in (DEMO_MAC, other):  # one child with two toys
        world.manager.devices[DeviceMac(mac)] = KnownDevice(child={**CHILD, "id": 17})
    device = await arrived(world)
    await talk(device, HELLO)
    assert "Mimi" in told(providers, 0), "300 ms are waited for"
    assert "Bruno" not in told(providers, 0)
    await device.send({"type": "cleanup_request", "session_id": device.room_name})
    await device.wait_for_mark("agent_left", timeout=30)
    (ended,) = await visit_ended(world)
    assert "leaving" in ended.fields["marks"], "the agent leaves, the device has not"
    await world.worker.wait_until(lambda: bool(providers.mem0.added), timeout=30, what="what the visit leaves")
    await device.leave()

    # Longer than the greeting and the first words of the child take together.
    providers.mem0.search_behaviour.first = 9.0
    device = await arrived(world, other)
    first = len(providers.chat.calls)
    await talk(device, HELLO)
    assert "Mimi" not in told(providers, first), "9 s are not"
    await world.worker.wait_for_line(lambda line: line.event == "memory_late", timeout=30)
    second = len(providers.chat.calls)
    await talk(device, AGAIN)
    assert any("Mimi" in told(providers, call) for call in range(second, len(providers.chat.calls)))
    await device.leave()
    await visit_ended(world, 2)
    await world.worker.wait_until(lambda: len(providers.mem0.added) >= 2, timeout=30, what="both visits' memories")
    assert {added.user_id for added in providers.mem0.added} == {asha}
    assert not own_errors(world)


async def test_nothing_is_lost_when_everything_is_down_and_the_worker_is_killed(
    start_world: StartWorld, providers: ProviderServer
) -> None:
    world = await start_world(env=env(providers), warm=2)
    manager = world.manager
    assert manager is not None
    manager.fail(Fault.ERROR, Call.CHAT_REPORT)
    providers.mem0.add_behaviour.fail(Fault.HANG)
    device = await arrived(world)
    await talk(device, HELLO)
    await device.leave()
    await visit_ended(world)
    device = await arrived(world)
    await talk(device, AGAIN)
    # Two greetings, two questions, two answers, and what the first visit leaves to remember.
    for _ in range(100):
        if await waiting_items(world.worker) >= 7:
            break
        await device.wait_for_silence(0.2)
    assert await waiting_items(world.worker) >= 7
    os.killpg(world.worker.pid, signal.SIGKILL)
    await device.leave()
    manager.heal()
    providers.mem0.add_behaviour.heal()
    async with WorkerProcess(world._environment(), cwd=world.folder) as second:
        await second.wait_until(lambda: len(manager.reports) >= 6, timeout=60, what="every chat line")
        await second.wait_until(lambda: bool(providers.mem0.memories), timeout=60, what="the memory")
    lines = [line["content"] for line in manager.reports]
    assert [*lines[1:3], *lines[4:]] == [HELLO, ANSWERS[HELLO], AGAIN, ANSWERS[AGAIN]], "in order"
    assert set(Counter(line["idempotencyKey"] for line in manager.reports).values()) == {1}
    remembered = [memory.memory for memory in providers.mem0.memories]
    assert remembered.count(HELLO) == 1
    assert "" not in providers.mem0.deliveries()


@pytest.mark.parametrize(
    ("service", "fault"), [("chat", Fault.NONSENSE), ("transcription", Fault.ERROR), ("speech", Fault.STALL)]
)
async def test_a_provider_that_fails_is_told_in_words_and_the_visit_goes_on(
    start_world: StartWorld, providers: ProviderServer, service: str, fault: Fault
) -> None:
    world = await start_world(env=env(providers))
    device = await arrived(world)
    providers.behaviours[service].fail(fault)
    before = len(device.messages)
    await device.say(HELLO)
    apology = await device.wait_for_message(
        "speech_created", where=lambda m: bool(m.data.get("text")), after=before, timeout=60
    )
    assert apology.data["source"] == "say"
    await device.wait_for_state("listening", after=device.messages.index(apology), timeout=30)
    providers.behaviours[service].heal()
    await device.wait_for_silence(1.0)
    for _ in range(4):  # what was on its way when it failed may still end in words
        before = len(device.messages)
        await device.say(AGAIN)
        reply = await device.wait_for_message("speech_created", after=before, timeout=40)
        await device.wait_for_silence(1.5, timeout=40)
        if reply.data["source"] == "generate_reply":
            break
    else:
        pytest.fail("the visit did not recover")
    assert device.audio_tracks == 1
    await device.leave()
    await visit_ended(world)


async def test_words_before_the_session_is_ready_are_answered(
    start_world: StartWorld, providers: ProviderServer
) -> None:
    world = await start_world(env=env(providers))
    assert world.manager is not None
    world.manager.delay(1.5)
    device = world.device(mac=DEMO_MAC)
    await device.join()
    await device.say(HELLO)
    heard = await device.wait_for_message("user_input_transcribed", timeout=40)
    assert heard.data["transcript"] == HELLO
    await device.wait_for_message("speech_created", where=lambda m: m.data["source"] == "generate_reply", timeout=40)
    await device.leave()
    (ended,) = await visit_ended(world)
    assert ended.fields["marks"]["session_ready"] > 1500
    assert ended.fields["words_dropped"] == 0


async def test_a_child_that_comes_back_is_known(start_world: StartWorld, providers: ProviderServer) -> None:
    world = await start_world(env=env(providers), warm=2)
    device = await arrived(world)
    await talk(device, HELLO)
    await device.leave()
    await visit_ended(world)
    before = len(providers.chat.calls)
    back = await arrived(world)
    await talk(back, AGAIN)
    assert HELLO in told(providers, before)
    assert ANSWERS[HELLO] in told(providers, before)
    await back.leave()
    await visit_ended(world, 2)
    greetings = [line.fields["greeting"] for line in world.worker.events("greeting finished")]
    assert "returning" in str(greetings[1])


async def test_realtime_has_memory_tools_and_faces_and_goes_on_after_its_socket_was_dropped(
    start_world: StartWorld, providers: ProviderServer
) -> None:
    settings = env(providers, CONVERSATION_MODE="realtime", REALTIME_BASE_URL=providers.v1, OPENAI_API_KEY="sandbox")
    providers.realtime.script = Rules(
        said=[("hello", f"😆 {ANSWERS[HELLO]}"), ("more", ToolCall("date_and_time"))],
        after_tool=[("date_and_time: .*20", ANSWERS[AGAIN])],
    )
    providers.mem0.remember(user_id(DeviceMac(DEMO_MAC)), "The child has a dog called Bruno.")
    providers.mem0.search_behaviour.first = 3.0  # too late for the briefing
    world = await start_world(env=settings)
    device = await arrived(world)
    await talk(device, HELLO)
    face = await device.wait_for_message("llm")
    assert face.json is not None
    assert (face.json["text"], face.json["emotion"]) == ("😆", "laughing")
    await world.worker.wait_for_line(lambda line: line.event == "memory_late", timeout=30)
    assert providers.realtime.connections == 1, "the one that was opened beside the connect"
    await providers.realtime.drop_connections()
    await device.wait_for_silence(1.0)
    await talk(device, AGAIN)
    assert device.audio_tracks == 1
    assert "Bruno" in providers.realtime.sessions[-1].requests[-1].system
    await device.leave()
    await visit_ended(world)
    assert world.manager is not None
    reports = world.manager.reports
    await world.worker.wait_until(lambda: len(reports) >= 5, timeout=30, what="chat lines")
    lines = [line["content"] for line in reports]
    assert [line for line in lines if line != lines[0]] == [HELLO, f"😆 {ANSWERS[HELLO]}", AGAIN, ANSWERS[AGAIN]]
    assert not own_errors(world)

"""A child speaks and is answered: real worker, real room, the real plugins against stand-ins."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from room_support import memory_settings, provider_settings, visit_ended

from sandbox.manager_api import DEMO_MAC
from sandbox.providers import ProviderServer
from sandbox.replies import Rules
from world_support import StartWorld

pytestmark = pytest.mark.timeout(150)

HELLO = "hello there little friend"


@pytest.fixture
async def providers() -> AsyncIterator[ProviderServer]:
    """Stand-ins for every provider that understand one sentence."""
    script = Rules(said=[("hello", "Hello my friend! How are you?")], otherwise="Welcome to our little room.")
    async with ProviderServer(script=script, sentences=[HELLO]) as server:
        yield server


def _env(providers: ProviderServer) -> dict[str, str]:
    return {**provider_settings(providers), **memory_settings(providers)}


async def test_a_child_is_heard_answered_and_remembered(start_world: StartWorld, providers: ProviderServer) -> None:
    world = await start_world(env=_env(providers))
    device = world.device(mac=DEMO_MAC)
    await device.join()
    await device.wait_for_state("speaking")
    await device.wait_for_state("listening", timeout=20)
    before = len(device.messages)
    await device.say(HELLO)
    heard = await device.wait_for_message("user_input_transcribed", after=before, timeout=20)
    assert heard.data["transcript"] == HELLO
    await device.wait_for_state("speaking", after=before, timeout=20)
    spoken = len(device.messages)
    await device.wait_for_state("listening", after=spoken, timeout=20)
    assert device.audio_tracks == 1
    await device.leave()
    await visit_ended(world)
    assert world.manager is not None
    reports = world.manager.reports
    await world.worker.wait_until(lambda: len(reports) >= 3, timeout=20, what="three chat lines")
    assert [line["chatType"] for line in reports] == [2, 1, 2]
    assert reports[1]["content"] == HELLO
    assert reports[2]["content"] == "Hello my friend! How are you?"
    assert len({line["idempotencyKey"] for line in reports}) == len(reports)
    await world.worker.wait_until(lambda: bool(providers.mem0.added), timeout=20, what="a memory")
    said = [message["content"] for message in providers.mem0.added[0].messages]
    assert HELLO in said
    first_call = providers.chat.calls[0].request.messages
    assert first_call[0]["role"] == "system"
    assert "{{" not in first_call[0]["content"]
    assert reports[0]["content"] in [message["content"] for message in first_call], "the greeting is in the context"


async def test_with_the_recorded_greeting_off_the_model_greets(
    start_world: StartWorld, providers: ProviderServer
) -> None:
    world = await start_world(env={**_env(providers), "ENABLE_PRESYNTH_GREETING": "false"})
    device = world.device(mac=DEMO_MAC)
    await device.join()
    await device.wait_for_sound(timeout=20)
    await device.wait_for_state("listening", timeout=30)
    assert providers.speech.calls
    assert device.audio_tracks == 1
    await device.leave()
    await visit_ended(world)


async def test_a_child_nobody_can_answer_hears_so(start_world: StartWorld) -> None:
    world = await start_world()
    device = world.device(mac=DEMO_MAC)
    await device.join()
    await device.wait_for_state("speaking")
    await device.wait_for_state("listening", timeout=20)
    before = len(device.messages)
    await device.say(HELLO)
    apology = await device.wait_for_message("speech_created", after=before, timeout=20)
    assert apology.data["text"]
    await device.wait_for_state("speaking", after=before, timeout=20)
    await device.leave()
    await visit_ended(world)


async def test_a_goodbye_is_said_and_seen_to_end(start_world: StartWorld, providers: ProviderServer) -> None:
    world = await start_world(env=_env(providers))
    device = world.device(mac=DEMO_MAC)
    await device.join()
    await device.wait_for_state("listening", timeout=20)
    before = len(device.messages)
    await device.send({"type": "end_prompt", "session_id": device.room_name, "prompt": "Say goodbye."})
    await device.wait_for_state("speaking", after=before, timeout=20)
    spoken = len(device.messages)
    await device.wait_for_state("listening", after=spoken, timeout=20)
    await device.leave()
    await visit_ended(world)

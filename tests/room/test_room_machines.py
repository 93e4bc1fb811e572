"""Two machines, one LiveKit server, one Redis: load is shared, and a machine that dies takes nothing with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from livekit.agents.utils.aio import cancel_and_wait
from room_support import memory_settings, own_errors, provider_settings

from agent.conversation.resume_redis import RedisResumeStore
from agent.rescue import ALIVE, EVERY
from agent.rescue_redis import DEAD_AFTER
from agent.values import DeviceMac
from sandbox.device import Device
from sandbox.manager_api import DEMO_MAC
from sandbox.processes import WorkerProcess
from sandbox.providers import ProviderServer
from sandbox.redis_server import RedisServer
from sandbox.replies import text_of
from sandbox.toxiproxy import Toxiproxy
from sandbox.world import World
from world_support import AGAIN, ANSWERS, HELLO, StartWorld, greeted, small_talk, talk

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
async def providers() -> AsyncIterator[ProviderServer]:
    async with small_talk() as server:
        yield server


@pytest.fixture
async def machines(
    start_world: StartWorld, providers: ProviderServer, redis: RedisServer, tmp_path: Path
) -> AsyncIterator[tuple[World, WorkerProcess]]:
    """A world, and a second worker with a folder of its own; a room fits on each."""
    env = {**provider_settings(providers), **memory_settings(providers), "REDIS_URL": redis.url, "MAX_ROOMS": "1"}
    world = await start_world(env=env)
    async with WorkerProcess({**world._environment(), "STATE_DIR": str(tmp_path / "state")}, cwd=tmp_path) as second:
        await second.wait_until_ready(warm=1)
        yield world, second


async def kept(device: Device, redis: RedisServer, words: str) -> None:
    """Wait until the shared store has these words of the device."""
    store = RedisResumeStore(redis.url, window_s=300)
    for _ in range(150):
        found = await asyncio.to_thread(store.load, DeviceMac(device.mac))
        if found is not None and any(words in (item.text_content or "") for item in found.chat.messages()):
            store.close()
            return
        await device.wait_for_silence(0.2)
    raise AssertionError("the conversation was not kept")


def greetings(worker: WorkerProcess) -> int:
    return len(worker.events("greeting finished"))


async def who_greets_first(one: WorkerProcess, other: WorkerProcess) -> tuple[WorkerProcess, WorkerProcess]:
    """Both, the one that has greeted a device before the other."""
    waits = [
        asyncio.create_task(worker.wait_until(lambda w=worker: greetings(w) > 0, timeout=60)) for worker in (one, other)
    ]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    await cancel_and_wait(*waits)
    return (one, other) if greetings(one) else (other, one)


async def test_a_machine_that_alone_loses_redis_keeps_its_visits(
    start_world: StartWorld, redis: RedisServer, tmp_path: Path
) -> None:
    async with Toxiproxy() as toxiproxy:
        way = await toxiproxy.proxy("redis", redis.url)
        world = await start_world(env={"REDIS_URL": way.instead_of(redis.url)})
        device = world.device()
        await device.join()
        await greeted(device)
        env = {**world._environment(), "REDIS_URL": redis.url, "STATE_DIR": str(tmp_path / "state")}
        async with WorkerProcess(env, cwd=tmp_path) as second:
            await second.wait_until_ready(warm=1)
            await signs(world, device, 0)
            await way.enable(False)
            await signs(world, device, 1)
            # Long enough for the other to find it dead, had it not been told.
            await device.wait_for_silence(DEAD_AFTER + 2 * EVERY, timeout=60)
            assert not second.events("a device was alone in its room, an agent is sent")
            await way.heal()
            await signs(world, device, 0)
            await device.leave()


async def signs(world: World, device: Device, number: int) -> None:
    """Wait until so many agents in the device's room say in LiveKit that they live."""
    for _ in range(150):
        people = await world.server.participants(device.room_name)
        if sum(bool(person.attributes.get(ALIVE)) for person in people) == number:
            return
        await device.wait_for_silence(0.2)
    raise AssertionError(f"not {number}: {[dict(person.attributes) for person in people]}")


async def test_a_machine_that_dies_takes_neither_visit_nor_words_with_it(
    machines: tuple[World, WorkerProcess], providers: ProviderServer, redis: RedisServer
) -> None:
    world, second = machines
    assert world.manager is not None
    device = world.device(mac=DEMO_MAC)
    await device.join()
    await greeted(device)
    first, other = await who_greets_first(world.worker, second)
    full = world.device()
    await full.join()
    await greeted(full)
    await other.wait_until(lambda: greetings(other) > 0, timeout=20, what="the other room")
    assert greetings(first) == 1, "a machine that is full gets no room"
    await full.leave()
    await other.wait_until(lambda: other.events("visit ended"), timeout=40, what="the other room's end")
    await talk(device, HELLO)
    await kept(device, redis, ANSWERS[HELLO])

    before = len(device.messages)
    state = Path(str((first.env or {})["STATE_DIR"]))
    os.killpg(first.pid, signal.SIGKILL)
    await first.wait(timeout=10)
    shutil.rmtree(state)
    back = await device.wait_for_message("speech_created", after=before, timeout=60)
    assert back.data["text"] == "I'm back! Let's go on."
    await device.wait_for_state("listening", after=len(device.messages), timeout=30)
    calls = len(providers.chat.calls)
    await talk(device, AGAIN)
    told = "\n".join(text_of(message) for message in providers.chat.calls[calls].request.messages)
    assert ANSWERS[HELLO] in told, "the conversation goes on where it was"
    await device.leave()
    await other.wait_until(lambda: len(other.events("visit ended")) >= 2, timeout=40, what="the visit's end")
    manager = world.manager

    def lines() -> list[str]:
        said = [line for line in manager.reports if line["macAddress"] == DEMO_MAC]
        assert set(Counter(line["idempotencyKey"] for line in said).values()) == {1}
        return [line["content"] for line in said]

    await other.wait_until(lambda: len(lines()) >= 6, timeout=60, what="every chat line")
    assert [line for line in lines() if line in {*ANSWERS, *ANSWERS.values()}] == [
        HELLO,
        ANSWERS[HELLO],
        AGAIN,
        ANSWERS[AGAIN],
    ]
    assert not own_errors(world)

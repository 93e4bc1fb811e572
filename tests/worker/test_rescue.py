"""No child is left alone: a worker that comes late, a visit that is killed, a worker that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import pytest
from livekit import api

from agent.rescue import MetadataClaims
from sandbox.device import Device
from sandbox.livekit_server import LiveKitServer
from sandbox.processes import WorkerProcess
from sandbox.world import World
from world_support import StartWorld, greeted

pytestmark = pytest.mark.timeout(240)


def visit_process(world: World) -> int:
    """The process of the latest visit, as its log names it."""
    return int(world.worker.events("greeting finished")[-1].fields["pid"])


async def agents_in(world: World, device: Device) -> list[str]:
    people = await world.server.participants(device.room_name)
    return [person.identity for person in people if person.kind == api.ParticipantInfo.Kind.AGENT]


@pytest.mark.world
async def test_a_device_that_came_before_any_worker_is_greeted() -> None:
    async with LiveKitServer() as server, Device(server) as device, World(server=server) as world:
        await device.wait_for_sound(timeout=60)
        assert device.audio_tracks == 1
        assert world.worker.events("a device was alone in its room, an agent is sent")
        await device.leave()


async def test_a_visit_that_is_killed_goes_on_in_another_process(start_world: StartWorld) -> None:
    world = await start_world(warm=2)
    device = world.device()
    await device.join()
    await greeted(device)
    await world.worker.wait_for_line(lambda line: line.event == "greeting finished", timeout=20)
    before = len(device.messages)
    os.kill(visit_process(world), signal.SIGKILL)
    back = await device.wait_for_message("speech_created", after=before, timeout=60)
    assert back.data["text"] == "I'm back! Let's go on."
    await device.wait_for_state("speaking", after=before, timeout=20)
    assert len(await agents_in(world, device)) == 1
    await device.leave()


async def test_a_worker_that_is_killed_is_replaced(start_world: StartWorld) -> None:
    world = await start_world()
    device = world.device()
    await device.join()
    await greeted(device)
    await world.worker.wait_for_line(lambda line: line.event == "greeting finished", timeout=20)
    before = len(device.messages)
    os.killpg(world.worker.pid, signal.SIGKILL)
    second = WorkerProcess(world._environment(), cwd=world.folder)
    async with second:
        back = await device.wait_for_message("speech_created", after=before, timeout=90)
        assert back.data["text"] == "I'm back! Let's go on."
        await device.leave()


async def test_a_second_agent_in_a_room_leaves_it_to_the_first(start_world: StartWorld) -> None:
    world = await start_world(env={"AGENT_NAME": "toy"}, warm=2)
    device = world.device(agent_name="toy")
    await device.join()
    await greeted(device)
    first = await agents_in(world, device)
    async with world.server.client() as livekit:
        again = api.CreateAgentDispatchRequest(room=device.room_name, agent_name="toy")
        await livekit.agent_dispatch.create_dispatch(again)
    await world.worker.wait_until(lambda: world.worker.events("visit ended"), timeout=30, what="the second's end")
    (ended,) = world.worker.events("visit ended")
    assert "published" not in dict(ended.fields["marks"])
    assert device.audio_tracks == 1
    assert len(first) == 1
    async with asyncio.timeout(20):
        while await agents_in(world, device) != first:  # its connection ends after its visit
            pass
    await device.leave()


async def test_only_one_of_many_claims_a_room(livekit_server: LiveKitServer) -> None:
    room = await livekit_server.create_room("claimed", metadata=json.dumps({"language": "hi"}))
    async with livekit_server.client() as livekit:
        claims = [MetadataClaims(livekit, f"worker {number}") for number in range(5)]
        won = await asyncio.gather(*(claim.claim(room) for claim in claims))
        assert sum(won) == 1
        (now,) = (await livekit.room.list_rooms(api.ListRoomsRequest(names=["claimed"]))).rooms
        assert json.loads(now.metadata)["language"] == "hi", "what was there stays"
        assert not await claims[0].claim(now), "nobody else tries for a while"
        later = MetadataClaims(livekit, "later", clock=lambda: time.time() + 60)
        assert await later.claim(now)
        await livekit.room.delete_room(api.DeleteRoomRequest(room="claimed"))

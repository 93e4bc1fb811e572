"""Devices that leave too early, drop, come twice or all at once; rooms that are no device's."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack

import pytest
from livekit.api import TwirpError
from livekit.protocol.models import ParticipantInfo
from room_support import SAME, heard_greeting, leftover_files, open_files, own_errors, private_mb, visit_ended

from sandbox.device import random_mac
from sandbox.processes import group_members
from sandbox.vanishing import VanishingDevice
from world_support import StartWorld

pytestmark = pytest.mark.timeout(180)


async def test_a_device_that_leaves_at_once_or_during_the_greeting_ends_its_visit(start_world: StartWorld) -> None:
    world = await start_world(warm=2)
    at_once = world.device()
    await at_once.join()
    await at_once.leave()
    during = world.device()
    await during.join()
    await during.wait_for_sound()
    await during.leave()
    # Somebody who is in the room before it takes no greeting away.
    staying = world.device()
    observer = world.device(room=staying.room_name)
    await observer.join()
    await observer.wait_for_mark("track_subscribed")
    await staying.join()
    await staying.wait_for_state("listening", timeout=20)
    assert min(heard_greeting(staying)) > SAME
    await staying.leave()
    await observer.leave()
    ended = await visit_ended(world, 3, timeout=60)
    came_last = [line.fields["marks"] for line in ended if "device_came" in line.fields["marks"]]
    assert [marks["device_came"] < marks["first_frame"] for marks in came_last] == [True]
    assert not own_errors(world)


async def test_a_device_that_leaves_during_the_connect(start_world: StartWorld) -> None:
    world = await start_world()
    device = world.device()
    await device.join()
    await world.worker.wait_for_line(lambda line: line.event == "received job request", timeout=10)
    await device.leave()
    await visit_ended(world, 1, timeout=60)
    assert not own_errors(world)


async def test_three_devices_at_once(start_world: StartWorld) -> None:
    world = await start_world(warm=2)
    devices = [world.device() for _ in range(3)]
    await asyncio.gather(*(device.join(timeout=40) for device in devices))
    await asyncio.gather(*(device.wait_for_sound(timeout=60) for device in devices))
    assert all(device.audio_tracks == 1 for device in devices)
    await asyncio.gather(*(device.leave() for device in devices))
    await visit_ended(world, 3, timeout=60)


async def test_more_devices_at_once_than_processes_wait(start_world: StartWorld) -> None:
    world = await start_world(warm=2, env={"MAX_ROOMS": "10"})
    macs = [random_mac() for _ in range(10)]
    rooms = [f"{uuid.uuid4()}_{mac.replace(':', '')}" for mac in macs]
    async with AsyncExitStack() as stack:
        # A process each: every room of a process hears every event of its others, and many starve each other.
        devices = [VanishingDevice(world.server, mac=mac, room=room) for mac, room in zip(macs, rooms, strict=True)]
        for device in devices:
            await stack.enter_async_context(device)
        await asyncio.gather(*(device.wait_for_mark("first_sound", timeout=90) for device in devices))
        for room in rooms:
            people = await world.server.participants(room)
            agents = [person for person in people if person.kind == ParticipantInfo.Kind.AGENT]
            assert [len(agent.tracks) for agent in agents] == [1]
    await visit_ended(world, 10, timeout=60)


async def test_two_visits_of_one_device_at_once(start_world: StartWorld) -> None:
    world = await start_world(warm=2)
    mac = random_mac()
    first, second = world.device(mac=mac), world.device(mac=mac)
    await asyncio.gather(first.join(), second.join())
    for device in (first, second):
        await device.wait_for_state("listening", timeout=20)
        assert device.audio_tracks == 1
    await first.leave()
    await visit_ended(world, 1)
    await second.abort()
    await second.leave()
    await visit_ended(world, 2)


async def test_a_device_that_comes_back_finds_its_visit(start_world: StartWorld) -> None:
    world = await start_world(env={"DEVICE_GRACE": "30"})
    device = world.device()
    await device.join()
    await device.wait_for_state("listening", timeout=20)
    back = world.device(mac=device.mac, visit=device.visit)
    await back.join()  # LiveKit ends the old connection of the same identity: what a toy on bad Wi-Fi does
    await device.wait_for_mark("left")
    await back.wait_for_mark("agent_there")
    assert not world.worker.events("visit ended")
    before = len(back.messages)
    await back.send({"type": "end_prompt", "session_id": back.room_name, "prompt": "Say goodbye."})
    await back.wait_for_message("speech_created", after=before, timeout=30)
    await back.leave()
    await visit_ended(world)
    assert len(world.worker.events("received job request")) == 1


HOSTILE = {
    "long": "x" * 10_000,
    "emoji": f"{uuid.uuid4()}_🧸🧸🧸",
    "path": "../../etc/passwd_6825ddba3978/..",
    "no MAC": str(uuid.uuid4()),
    "spaces": " 6825ddba3978 ",
    "almost": f"{uuid.uuid4()}_6825ddba397",
}


async def test_hostile_room_names_are_refused_without_a_process(start_world: StartWorld) -> None:
    world = await start_world(warm=1)
    jobs, refused_by_server = 0, list[str]()
    for name in HOSTILE.values():
        try:
            await world.server.create_room(name, agent_name="")
        except TwirpError as error:  # LiveKit itself refuses some names: then no worker is asked
            refused_by_server.append(str(error))
            continue
        jobs += 1
    assert jobs >= 3, refused_by_server
    await world.worker.wait_until(
        lambda: len(world.worker.events("room refused")) >= jobs, timeout=15, what=f"{jobs} refused rooms"
    )
    assert all(line.fields["reason"] for line in world.worker.events("room refused"))
    assert len(world.worker.events("process initialized")) == 1
    device = world.device()
    await device.join()
    await device.wait_for_sound()


@pytest.mark.timeout(400)
async def test_a_hundred_rooms_leave_no_trace(start_world: StartWorld) -> None:
    world = await start_world(warm=2)

    async def visit() -> None:
        device = world.device()
        await device.join()
        await device.wait_for_sound(timeout=15)
        await device.leave()

    for _ in range(10):
        await visit()
    await visit_ended(world, 10, timeout=60)
    files, descriptors = leftover_files(world.folder), open_files(world.worker.pid)
    memory = private_mb(world.worker.pid)
    processes = len(group_members(world.worker.pid))
    for _ in range(90):
        await visit()
    await visit_ended(world, 100, timeout=60)
    await world.worker.wait_until(
        lambda: len(world.worker.events("process exiting")) >= 100, timeout=30, what="the last process's exit"
    )
    assert leftover_files(world.folder) - files == set()
    assert open_files(world.worker.pid) <= descriptors + 5
    assert private_mb(world.worker.pid) < memory * 1.25 + 5
    assert len(group_members(world.worker.pid)) <= processes + 1

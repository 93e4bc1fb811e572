from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agent_stub import RATE, AgentStub

from agent.device.identity import identify_room
from sandbox.audio import Pcm, align, resample, sweep
from sandbox.device import LOUD, MIC_RATE, Device, DeviceTimeout, Recording, RoomForm, random_mac, room_name
from sandbox.livekit_server import LiveKitServer
from sandbox.vanishing import VanishingDevice

MakeDevice = Callable[..., Device]


async def test_the_contract_of_identity_attributes_and_microphone(
    livekit_server: LiveKitServer, device_factory: MakeDevice
) -> None:
    device = device_factory(language="hi")
    await device.join()
    (participant,) = await livekit_server.participants(device.room_name)
    assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", participant.identity)
    assert dict(participant.attributes) == {
        "device_mac": device.mac,
        "device_uuid": device.visit,
        "room_type": "device_session",
        "language": "hi",
    }
    published = device.room.local_participant.track_publications.values()
    assert [publication.name for publication in published] == ["microphone"]
    assert device.room_name == f"{device.visit}_{device.mac.replace(':', '')}"


@pytest.mark.parametrize("form", ["plain", "mac", "device", "bare", "colons", "conversation", "music", "story"])
def test_every_room_name_is_one_the_product_understands(form: RoomForm) -> None:
    mac = random_mac()
    assert identify_room(room_name(mac, "2b1f6f0e-6a53-4c3c-9d5c-7a8f5b6d1c11", form)).mac == mac


@pytest.mark.alone
async def test_what_the_agent_plays_is_heard_whole_its_first_100_ms_included(
    livekit_server: LiveKitServer, device_factory: MakeDevice
) -> None:
    device = device_factory()
    reference = sweep(2.0, RATE)
    await device.join()
    async with AgentStub(livekit_server, device.room_name) as agent:
        await device.wait_for_mark("track_subscribed", timeout=30)
        await agent.play(reference)
        await device.wait_for_silence(0.3)
    await device.wait_for_mark("agent_left")
    heard = device.heard
    offset, correlation = align(heard.samples, reference)
    assert correlation > 0.9
    assert align(heard.samples, reference[: RATE // 10])[1] > 0.8
    assert heard.first_loud is not None
    assert abs(offset - heard.first_loud) < RATE * 0.06
    assert heard.arrival_of(heard.first_loud) == device.marks["first_sound"]
    order = ["connect_started", "joined", "agent_there", "track_subscribed", "first_sound", "agent_left"]
    assert sorted(device.marks, key=device.marks.__getitem__) == order
    assert device.audio_tracks == 1


async def test_a_second_track_is_counted_and_does_not_mix_into_the_first(
    livekit_server: LiveKitServer, device_factory: MakeDevice
) -> None:
    device = device_factory(rate=48_000)
    await device.join()
    async with AgentStub(livekit_server, device.room_name) as agent:
        await device.wait_for_mark("track_subscribed", timeout=30)
        await agent.publish()
        await device.wait_until(lambda: len(device.recordings) == 2 or None)
    assert device.audio_tracks == 2
    assert {recording.sample_rate for recording in device.recordings} == {48_000}


async def test_an_agent_that_is_there_first_is_seen_and_heard(
    livekit_server: LiveKitServer, device_factory: MakeDevice
) -> None:
    device = device_factory()
    async with AgentStub(livekit_server, device.room_name) as agent:
        await device.join()
        await device.wait_for_mark("track_subscribed", timeout=30)
        assert device.audio_tracks == 1
        await agent.play(sweep(0.3, RATE))
        assert await device.wait_for_sound() >= device.marks["joined"]


@pytest.mark.alone
async def test_speech_reaches_the_agent_with_silence_around_it(
    livekit_server: LiveKitServer, device_factory: MakeDevice
) -> None:
    device = device_factory()
    await device.join()
    async with AgentStub(livekit_server, device.room_name) as agent:
        await device.wait_for_mark("agent_there", timeout=30)
        await asyncio.wait_for(agent.hears.wait(), 20)
        spoken = sweep(1.0, MIC_RATE)
        await device.say(spoken)
        await device.say("Good night.")
        await device.leave()
    assert agent.microphones == ["microphone"]
    # The microphone was a stream before: its first samples are what an open one carries when nobody speaks.
    assert np.abs(agent.heard[: MIC_RATE // 50].astype(int)).max() < LOUD
    assert align(agent.heard, spoken, MIC_RATE)[1] > 0.8
    assert agent.heard.size > spoken.size * 1.5


async def test_every_message_is_kept_as_it_came(livekit_server: LiveKitServer, device_factory: MakeDevice) -> None:
    device = device_factory()
    await device.join()
    sent = [
        (b'{"type":"agent_state_changed","data":{"old_state":"idle","new_state":"speaking"}}', ""),
        (b'{"type":"llm","text":"\xf0\x9f\x98\x80","emotion":"laughing"}', "emotion"),
        (b"[1,2]", ""),
        (b"\xff\x00 not text", "odd"),
        (b'{"type":"agent_state_changed","data":{"old_state":"speaking","new_state":"listening"}}', ""),
    ]
    async with AgentStub(livekit_server, device.room_name) as agent:
        await device.wait_for_mark("agent_there", timeout=30)
        for payload, topic in sent:
            await agent.room.local_participant.publish_data(payload, topic=topic)
        listening = await device.wait_for_state("listening")
        assert (await device.wait_for_message(topic="emotion")).json == json.loads(sent[1][0])
    assert [(message.raw, message.topic) for message in device.messages] == sent
    assert [message.type for message in device.messages] == [
        "agent_state_changed",
        "llm",
        "",
        "",
        "agent_state_changed",
    ]
    assert [message.json is None for message in device.messages] == [False, False, True, True, False]
    assert {message.sender for message in device.messages} == {"agent-stub"}
    assert listening.at >= device.messages[0].at


async def test_what_the_device_sends_arrives(livekit_server: LiveKitServer, device_factory: MakeDevice) -> None:
    device = device_factory()
    await device.join()
    async with AgentStub(livekit_server, device.room_name) as agent:
        await device.wait_for_mark("agent_there", timeout=30)
        await device.send({"type": "end_prompt", "prompt": "शुभ रात्रि"}, topic="x")
        await device.send(b"\x00\x01")
        await device.abort()
        packets = [await asyncio.wait_for(agent.received.get(), 5) for _ in range(4)]
    assert json.loads(packets[0].data) == {"type": "end_prompt", "prompt": "शुभ रात्रि"}
    assert packets[0].topic == "x"
    assert packets[1].data == b"\x00\x01"
    assert [json.loads(packet.data)["type"] for packet in packets[2:]] == ["abort_playback"] * 2
    assert {packet.participant.identity for packet in packets if packet.participant} == {device.mac}


async def test_waiting_in_vain_says_for_what_and_what_there_was(device_factory: MakeDevice) -> None:
    device = device_factory()
    await device.join()
    with pytest.raises(DeviceTimeout, match=r"no message music_playback_started music_control within 0\.05 s; marks"):
        await device.wait_for_message("music_playback_started", topic="music_control", timeout=0.05)
    with pytest.raises(DeviceTimeout, match="no sound within"):
        await device.wait_for_sound(timeout=0.05)


async def test_a_device_that_leaves_is_gone_and_may_leave_twice(
    livekit_server: LiveKitServer, device_factory: MakeDevice
) -> None:
    device = device_factory()
    await device.join()
    await device.leave()
    await device.leave()
    assert await livekit_server.participants(device.room_name) == []
    assert device.marks["left"] >= device.marks["joined"]
    assert not device.errors


async def test_a_room_that_is_closed_marks_the_device_as_left(
    livekit_server: LiveKitServer, device_factory: MakeDevice
) -> None:
    device = device_factory()
    await device.join()
    await livekit_server.delete_room(device.room_name)
    await device.wait_for_mark("left")


@pytest.mark.alone
async def test_devices_at_once_each_hear_their_own(livekit_server: LiveKitServer, device_factory: MakeDevice) -> None:
    devices = [device_factory() for _ in range(3)]
    await asyncio.gather(*(device.join() for device in devices))

    sweeps = [sweep(0.6, RATE, low=low, high=low + 2000) for low in (300.0, 2600.0, 4900.0)]

    async def greet(device: Device, own: Pcm) -> None:
        async with AgentStub(livekit_server, device.room_name) as agent:
            await device.wait_for_mark("track_subscribed", timeout=60)
            await agent.play(own)
            await device.wait_for_sound(timeout=30)
            await device.wait_for_silence(0.3)

    await asyncio.gather(*map(greet, devices, sweeps))
    own = []
    for index, device in enumerate(devices):
        heard = [align(device.heard.samples, reference)[1] for reference in sweeps]
        own.append(heard.pop(index))
        assert max(heard) < 0.1
    assert min(own) > 0.6
    assert np.median(own) > 0.85
    assert len({device.room_name for device in devices}) == len(devices)


async def test_a_device_that_vanishes_says_no_goodbye(livekit_server: LiveKitServer) -> None:
    mac = random_mac()
    room = room_name(mac, "2b1f6f0e-6a53-4c3c-9d5c-7a8f5b6d1c11")
    device = VanishingDevice(livekit_server, mac=mac, room=room)
    async with device, AgentStub(livekit_server, room) as agent:
        await device.wait_for_mark("agent_there")
        await device.drop()
        assert device.returncode == -9
        assert agent.room.isconnected()


def test_a_recording_knows_its_first_loud_sample_and_when_it_came() -> None:
    recording = Recording("TR_1", RATE)
    recording.add(np.full(240, LOUD - 1, np.int16), 1.0)
    assert recording.first_loud is None
    recording.add(np.array([0, -1, -LOUD, 0], np.int16), 1.01)
    recording.add(np.array([-32768], np.int16), 1.02)
    assert recording.first_loud == 242
    assert recording.arrival_of(242) == 1.01
    assert recording.arrival_of(239) == 1.0
    assert recording.last_loud_at == 1.02
    with pytest.raises(IndexError):
        recording.arrival_of(245)


def test_the_lowest_sample_is_loud() -> None:
    assert Recording("TR_1", RATE).add(np.array([-32768], np.int16), 0.0)


def test_a_reference_at_another_rate_is_still_found(tmp_path: Path) -> None:
    reference = sweep(0.5, RATE)
    assert align(resample(reference, RATE, 48_000), resample(reference, RATE, 48_000), 48_000)[1] > 0.99

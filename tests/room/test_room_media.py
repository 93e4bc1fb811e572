"""Songs in a real room: asked for, interrupted, paused, gone on with, stopped; by child, button and parent's app."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from room_support import own_errors, provider_settings, visit_ended

from agent.library import catalogue
from agent.settings import Settings
from sandbox.audio import align
from sandbox.device import Device
from sandbox.manager_api import DEMO_MAC
from sandbox.processes import REPO
from sandbox.providers import ProviderServer
from sandbox.replies import Rules, ToolCall
from sandbox.vanishing import VanishingDevice
from sandbox.world import World
from world_support import StartWorld, greeted

pytestmark = pytest.mark.timeout(240)

PLAY, HELLO, PAUSE, GO_ON, STOP = "tell me about the tortoise", "hello there little friend", "pause", "go on", "stop"
SAMPLE = REPO / "sample"
STORY = "stories/Adventure/tortoise_and_hare.ogg"
RATE = 24_000


@pytest.fixture(scope="session")
def loaded_state(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """A STATE_DIR with the sample library in it."""
    state = tmp_path_factory.mktemp("media-state")
    settings = Settings(_env_file=None, state_dir=state, model_dir=model_dir)  # type: ignore[call-arg]
    assert catalogue.run(["load", str(SAMPLE)], settings) == 0
    return state


@pytest.fixture
async def providers() -> AsyncIterator[ProviderServer]:
    script = Rules(
        said=[
            ("tortoise", ToolCall("play_story", {"story": "the tortoise and the hare"})),
            ("hello", "😆 Hello!"),
        ],
        otherwise="Oh.",
    )
    async with ProviderServer(script=script, sentences=[PLAY, HELLO, PAUSE, GO_ON, STOP]) as server:
        yield server


@pytest.fixture
def env(providers: ProviderServer, loaded_state: Path, model_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Settings of a worker with the sample library."""
    state = tmp_path / "state"
    shutil.copytree(loaded_state, state, symlinks=True)
    return {
        "STATE_DIR": str(state),
        "MODEL_DIR": str(model_dir),
        "CATALOGUE_DIR": str(SAMPLE),
        **provider_settings(providers),
    }


@pytest.fixture
async def world(start_world: StartWorld, env: dict[str, str]) -> World:
    return await start_world(env=env)


def sound_of(name: str) -> NDArray[np.int16]:
    """A file of the sample library, 24 kHz mono."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    with av.open(str(SAMPLE / name)) as file:
        frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])


def titles(device: Device, kind: str) -> int:
    return sum(message.type == f"music_playback_{kind}" for message in device.messages)


async def arrived(world: World) -> Device:
    device = world.device(mac=DEMO_MAC)
    await device.join()
    await greeted(device)
    return device


async def seconds_heard(device: Device, since: int, seconds: float) -> NDArray[np.int16]:
    """What the device heard from a sample of its recording on; waits for so much of it."""
    length = since + round(seconds * device.rate)
    await device.wait_until(lambda: device.heard.length >= length, timeout=seconds + 20, what="sound")
    return device.heard.samples[since:length]


async def test_a_story_is_played_held_while_the_child_speaks_paused_gone_on_with_and_stopped(
    world: World, providers: ProviderServer
) -> None:
    story = sound_of(STORY)
    device = await arrived(world)

    await device.say(PLAY)
    started = await device.wait_for_message("music_playback_started", timeout=30)
    assert started.topic == "music_control"
    assert (started.json or {})["title"] == "The Tortoise and the Hare"
    begun = device.heard.length
    heard = await seconds_heard(device, begun, 4.0)
    assert align(heard, story[: 2 * RATE], RATE)[1] > 0.6

    # The child speaks: silence, an answer with a face, and the story goes on where it was held.
    before = len(device.messages)
    await device.say(HELLO)
    await device.wait_for_state("listening", after=before, timeout=20)
    face = await device.wait_for_message("llm", topic="emotion", after=before, timeout=30)
    assert face.json == {"type": "llm", "text": "😆", "emotion": "laughing"}
    await device.wait_for_state("speaking", after=before, timeout=20)
    assert titles(device, "started") == 1
    assert titles(device, "stopped") == 0
    calls = len(providers.chat.calls)
    await seconds_heard(device, device.heard.length, 4.0)  # the answer's sound is over by then

    # Control words need no model.
    before = len(device.messages)
    await device.say(PAUSE)
    await device.wait_for_message("user_input_transcribed", where=lambda m: m.data["transcript"] == PAUSE, timeout=20)
    paused = await device.wait_for_silence(2.5, timeout=20)
    held_at, correlation = align(story, loud_end(device, 1.0), RATE)
    assert correlation > 0.6
    await device.say(GO_ON)
    await device.wait_for_sound(after=paused + 1.0, timeout=20)
    again = device.heard.length
    resumed_at, correlation = align(story, (await seconds_heard(device, again, 2.0))[RATE:], RATE)
    assert correlation > 0.6
    # It goes on at the second where it was held: one second was heard before the part compared here.
    assert abs(resumed_at - (held_at + 2 * RATE)) < RATE
    await device.say(STOP)
    await device.wait_for_message("music_playback_stopped", timeout=20)
    await device.wait_for_silence(1.5, timeout=20)
    assert titles(device, "started") == titles(device, "stopped") == 1
    assert len(providers.chat.calls) == calls
    assert device.audio_tracks == 1
    await device.leave()
    await visit_ended(world)
    assert not own_errors(world)


def loud_end(device: Device, seconds: float) -> NDArray[np.int16]:
    """The last sound the device heard, up to its last loud sample."""
    samples = device.heard.samples
    last = int(np.flatnonzero(np.abs(samples.astype(np.int32)) > 300)[-1])
    return samples[last - round(seconds * RATE) : last]


async def test_the_parents_app_plays_the_button_stops_and_hostile_messages_do_no_harm(world: World) -> None:
    device = await arrived(world)

    def wish(name: str, **arguments: str) -> dict[str, object]:
        call = {"name": name, "arguments": arguments}
        return {"type": "function_call", "function_call": call, "source": "mobile_app", "request_id": "req_1"}

    await device.abort()
    await device.send(wish("play_music", song_name="row your boat"))
    started = await device.wait_for_message("music_playback_started", timeout=30)
    assert (started.json or {})["title"] == "Row Row Row Your Boat"
    await device.send(b"\xff" * 100)
    await device.send(b"[" * 10_000)
    await device.send({"type": "function_call", "function_call": {"name": "rm", "arguments": {}}})
    before = len(device.messages)
    await device.send(wish("play_story", story_name="tortoise and the hare"))
    await device.wait_for_message("music_playback_stopped", after=before, timeout=20)
    story = await device.wait_for_message("music_playback_started", after=before, timeout=20)
    assert "Tortoise" in (story.json or {})["title"]
    before = len(device.messages)
    await device.abort()
    await device.wait_for_message("music_playback_stopped", after=before, timeout=20)
    await device.wait_for_silence(1.0, timeout=10)
    before = len(device.messages)
    await device.send(wish("play_music", song_name="the quarterly report"))
    sorry = await device.wait_for_message("speech_created", after=before, timeout=20)
    assert sorry.data["text"]
    assert titles(device, "started") == titles(device, "stopped") == 2
    assert device.audio_tracks == 1
    await device.leave()
    await visit_ended(world)
    assert not own_errors(world)


async def test_a_music_room_plays_at_once_and_goes_on_when_the_device_comes_back(
    start_world: StartWorld, env: dict[str, str]
) -> None:
    # A quiet room's sound goes on all the time: the device must see speech and songs end all the same.
    world = await start_world(env={**env, "BACKGROUND_AUDIO": "true"})
    first = world.device(mac=DEMO_MAC, room=f"{uuid.uuid4()}_{DEMO_MAC.replace(':', '')}_music")
    await first.join()
    started = await first.wait_for_message("music_playback_started", timeout=40)
    title = (started.json or {})["title"]
    await seconds_heard(first, first.heard.length, 3.0)
    await first.leave()
    await visit_ended(world)
    back = world.device(mac=DEMO_MAC)
    await back.join()
    again = await back.wait_for_message("music_playback_started", timeout=40)
    assert (again.json or {})["title"] == title
    before = len(back.messages)
    await back.abort()
    await back.wait_for_message("music_playback_stopped", timeout=20)
    await back.wait_for_state("listening", after=before, timeout=20)
    await back.leave()
    await visit_ended(world, 2)
    assert not own_errors(world)


async def test_a_device_that_vanishes_and_comes_back_has_missed_nothing_of_its_story(
    start_world: StartWorld, env: dict[str, str]
) -> None:
    world = await start_world(env={**env, "DEVICE_GRACE": "90"})
    room = f"{uuid.uuid4()}_{DEMO_MAC.replace(':', '')}_story"
    async with VanishingDevice(world.server, mac=DEMO_MAC, room=room) as vanishing:
        await vanishing.wait_for_line(
            lambda line: line.fields.get("heard_s", 0) >= 4, timeout=60, what="4 s of a story"
        )
        await vanishing.drop()
        told = [line.fields for line in vanishing.lines]
    heard_s = max(line.get("heard_s", 0) for line in told)
    (title,) = [line["json"]["title"] for line in told if line.get("type") == "music_playback_started"]
    # LiveKit takes its time to find out; all the while the story goes on without a listener.
    await world.worker.wait_for_line(
        lambda line: line.event == "media waits for the device", timeout=60, what="the device is missed"
    )
    back = world.device(mac=DEMO_MAC, room=room)
    await back.join()
    await back.wait_for_sound(timeout=30)
    begun = back.heard.length
    at, correlation = align(sound_of(file_of(title)), await seconds_heard(back, begun, 2.0), RATE)
    assert correlation > 0.6
    # It was heard up to `heard_s` and a quarter of a second; the first sound back came before the part compared here.
    since_back = begun - int(np.flatnonzero(np.abs(back.heard.samples.astype(np.int32)) > 300)[0])
    assert -3.0 < (at - since_back) / RATE - heard_s < 0.5
    assert back.audio_tracks == 1
    await back.leave()
    await visit_ended(world)
    assert not own_errors(world)


def file_of(title: str) -> str:
    """A story's file in the sample library."""
    for metadata in SAMPLE.glob("stories/*/metadata.json"):
        entry = json.loads(metadata.read_text()).get(title)
        if entry is not None:
            return str((metadata.parent / entry["filename"]).relative_to(SAMPLE))
    raise LookupError(title)

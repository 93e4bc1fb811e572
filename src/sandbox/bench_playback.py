"""`scripts/bench playback`: songs in a real room, from a source 100 ms and 1 Mbit/s away, as the device hears them.

The parent's app asks for a song; the button and the spoken word stop it; "pause" and "go on" hold it; and a long story
plays in real time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from agent.library import catalogue, model_files
from agent.settings import Settings
from sandbox.audio import Pcm, align, speak, sweep
from sandbox.bench_report import print_table, summary, write_json
from sandbox.device import Device
from sandbox.media_files import encode
from sandbox.media_server import MediaServer
from sandbox.processes import REPO
from sandbox.providers import ProviderServer
from sandbox.world import World

RATE = 24_000
MODELS = REPO / ".state" / "models"
SONG, STORY = "The Rising Tone", "The Long Story"
STOP, PAUSE, GO_ON = "stop", "pause", "go on"
WAIT = 30.0


def wish(kind: str, **arguments: str) -> dict[str, Any]:
    """What the parent's app sends."""
    call = {"name": kind, "arguments": arguments}
    return {"type": "function_call", "function_call": call, "source": "mobile_app", "request_id": "req_1"}


def make_library(folder: Path, server: MediaServer, minutes: float) -> tuple[Pcm, Path]:
    """A song and a long story, loaded and served; returns the song's sound and the STATE_DIR."""
    song = sweep(40, RATE)
    files = {
        "music/English/tone.mp3": (SONG, song),
        "stories/Long/story.mp3": (STORY, np.tile(sweep(20, RATE), max(1, round(minutes * 3)))),
    }
    for name, (title, sound) in files.items():
        path = folder / "catalogue" / name
        path.parent.mkdir(parents=True)
        entry = {title: {"romanized": title, "filename": path.name, "alternatives": [], "keywords": []}}
        (path.parent / "metadata.json").write_text(json.dumps(entry))
        server.files[f"/{name}"] = encode(sound, "mp3", bit_rate=64_000, stereo=False)
        path.write_bytes(server.files[f"/{name}"])
    settings = Settings(_env_file=None, state_dir=folder / "state", model_dir=MODELS)  # type: ignore[call-arg]
    model_files.ensure(settings)
    if catalogue.run(["load", str(folder / "catalogue")], settings):
        raise RuntimeError("the catalogue could not be loaded")
    return song, folder / "state"


async def begin(device: Device, message: dict[str, Any]) -> float:
    """Ask for a title; milliseconds until its first loud sample has arrived."""
    asked = time.monotonic()
    await device.send(message)
    return (await device.wait_for_sound(after=asked, timeout=WAIT) - asked) * 1000


async def silence_after(device: Device, begun: float) -> float:
    """Milliseconds from `begun` until the last loud sample; negative where it had come before."""
    await device.wait_for_silence(0.6, timeout=WAIT)
    last = device.heard.last_loud_at
    assert last is not None
    return (last - begun) * 1000


async def hold(device: Device, words: dict[str, Pcm], song: Pcm) -> float:
    """Milliseconds lost (positive) or repeated (negative) between "pause" and "go on"."""
    await device.say(words[PAUSE])
    await device.wait_for_silence(1.0, timeout=WAIT)
    held = device.heard.samples
    end = int(np.flatnonzero(np.abs(held.astype(np.int32)) > 1000)[-1])
    await device.say(words[GO_ON])
    await device.wait_for_sound(after=time.monotonic(), timeout=WAIT)
    await asyncio.sleep(1.0)
    after = device.heard.samples[held.size :]
    start = held.size + int(np.flatnonzero(np.abs(after.astype(np.int32)) > 1000)[0])
    edge, window = RATE // 40, RATE // 2
    before_at, _ = align(song, held[end - window - edge : end - edge], RATE)
    after_at, _ = align(song, device.heard.samples[start + edge : start + edge + window], RATE)
    return ((after_at - edge) - (before_at + window + edge)) / RATE * 1000


async def visit(world: World, song: Pcm, rounds: int) -> dict[str, list[float]]:
    """Every figure but the long story's."""
    words = {word: cut(await asyncio.to_thread(speak, word)) for word in (STOP, PAUSE, GO_ON)}
    device = world.device()
    await device.join()
    await device.wait_for_state("speaking", timeout=WAIT)
    await device.wait_for_silence(1.0, timeout=WAIT)
    found: dict[str, list[float]] = {"wish to first sound": [], "button to silence": [], "end of “stop” to silence": []}
    held: list[float] = []
    for _ in range(rounds):
        await device.wait_for_silence(0.6, timeout=WAIT)
        found["wish to first sound"].append(await begin(device, wish("play_music", song_name=SONG)))
        await asyncio.sleep(1.0)
        pressed = time.monotonic()
        await device.abort()
        found["button to silence"].append(await silence_after(device, pressed))
        await begin(device, wish("play_music", song_name=SONG))
        await asyncio.sleep(1.0)
        before = len(device.messages)
        await device.say(words[STOP])
        said = time.monotonic()
        await device.wait_for_message("music_playback_stopped", after=before, timeout=WAIT)
        found["end of “stop” to silence"].append(await silence_after(device, said))
        await begin(device, wish("play_music", song_name=SONG))
        await asyncio.sleep(2.0)
        held.append(await hold(device, words, song))
        await device.abort()
    await device.leave()
    found["lost or repeated by pause and go on (absolute)"] = [abs(value) for value in held]
    return found


async def long_story(world: World, minutes: float) -> dict[str, Any]:
    """Gaps at the device over 20 ms, and the visit's memory, over a story in real time."""
    device = world.device()
    earlier = len(world.worker.events("greeting finished"))
    await device.join()
    await device.wait_for_state("speaking", timeout=WAIT)
    await device.wait_for_silence(1.0, timeout=WAIT)
    await world.worker.wait_until(
        lambda: len(world.worker.events("greeting finished")) > earlier, timeout=WAIT, what="the end of the greeting"
    )
    process = psutil.Process(int(world.worker.events("greeting finished")[-1].fields["pid"]))
    await begin(device, wish("play_story", story_name=STORY))
    begun = device.heard.length
    memory = []
    for _ in range(10):
        await asyncio.sleep(minutes * 6 - 0.5)
        memory.append(round(process.memory_full_info().uss / 2**20, 1))
    loud = np.abs(device.heard.samples[begun:].astype(np.int32)) > 100
    edges = np.flatnonzero(loud)
    gaps = np.diff(edges) / RATE * 1000
    await device.abort()
    await device.leave()
    return {
        "minutes": minutes,
        "gaps_over_20_ms": [round(float(gap), 1) for gap in gaps[gaps > 20]],
        "longest_gap_ms": round(float(gaps.max()), 1),
        "private_memory_mb": memory,
    }


def cut(speech: Pcm) -> Pcm:
    """Without the quiet end."""
    return speech[: int(np.flatnonzero(np.abs(speech.astype(np.int32)) > 300)[-1]) + 1]


async def run(rounds: int, minutes: float, out: Path) -> None:
    """Measure, print and keep."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        media = await stack.enter_async_context(MediaServer(latency=0.1, bandwidth=1_000_000))
        song, state = await asyncio.to_thread(make_library, folder, media, minutes)
        providers = await stack.enter_async_context(ProviderServer(sentences=[STOP, PAUSE, GO_ON]))
        env = {
            "STATE_DIR": str(state),
            "MODEL_DIR": str(MODELS),
            "MEDIA_BASE_URL": media.url,
            "MEDIA_PRIVATE_NETWORK": "true",
            "STT_BASE_URL": providers.v1,
            "LLM_BASE_URL": providers.v1,
            "TTS_BASE_URL": providers.v1,
        }
        world = await stack.enter_async_context(World(env=env))
        figures = await visit(world, song, rounds) if rounds else {}
        story = await long_story(world, minutes) if minutes else None
    if figures:
        print_table("Playback at the device, source at 100 ms and 1 Mbit/s", figures, None)
    if story is not None:
        print(
            f"a story of {story['minutes']:g} minutes: longest gap {story['longest_gap_ms']} ms, "
            f"over 20 ms: {story['gaps_over_20_ms']}; private memory {story['private_memory_mb']} MB"
        )
    report = {name: {**summary(values), "samples": values} for name, values in figures.items()}
    write_json(out / "bench-playback.json", {"figures": report, "story": story})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench playback", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the story; 0: none")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    asyncio.run(run(options.rounds, options.minutes, options.out))


if __name__ == "__main__":
    main()

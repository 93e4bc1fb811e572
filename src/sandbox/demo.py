"""`scripts/demo`: a whole visit on this machine, without a key, as a table, a sound and a picture."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from livekit import rtc
from rich.console import Console
from rich.table import Table

from agent.errors import LibraryError, ToyError
from agent.library import catalogue, model_files
from agent.settings import Settings
from sandbox.audio import Pcm, write_wav
from sandbox.device import Device, DeviceTimeout
from sandbox.go_programs import ServerMissing
from sandbox.livekit_server import find_or_install_livekit_server
from sandbox.manager_api import DEMO_MAC
from sandbox.picture import Moment, Span, draw_visit
from sandbox.processes import REPO, ProcessFailed, WorkerProcess
from sandbox.providers import ProviderServer
from sandbox.replies import Rules, ToolCall
from sandbox.world import World

MODELS = REPO / ".state" / "models"
_LISTEN_S = 20.0
_SILENCE_S = 1.0
_INTERRUPTED = 130

_console = Console(stderr=False, highlight=False)


HELLO, PLAY, ASK, PAUSE, GO_ON, STOP = (
    "hello there little friend",
    "play twinkle twinkle",
    "what is your name",
    "pause",
    "go on",
    "stop",
)
SCRIPT = Rules(
    said=[
        ("hello", "😊 Hello my friend! How nice that you are here."),
        ("twinkle", ToolCall("play_music", {"song": "twinkle twinkle"})),
        ("name", "😉 I am your little toy, and I love to sing."),
    ],
    otherwise="I am listening.",
)


@dataclass(frozen=True)
class Visit:
    """What one visit left: its moments, what lasted, what was said (ms, who, words), and what the device heard (mono
    int16 at `rate`, the first at `starts_ms`)."""

    moments: list[Moment]
    spans: list[Span]
    said: list[tuple[float, str, str]]
    samples: Pcm
    rate: int
    starts_ms: float


async def visit(world: World) -> Visit:
    """The device joins, is greeted, talks, hears a song, interrupts it, lets it go on, stops it, and leaves.

    Raises DeviceTimeout when something of it does not happen.
    """
    device = world.device(mac=DEMO_MAC, rate=48_000)
    await device.join()
    await device.wait_for_sound()
    await device.wait_for_silence(_SILENCE_S, timeout=_LISTEN_S)
    worker = await _marks_of_worker(world.worker, device)
    spoken: list[Span] = []

    async def say(words: str) -> int:
        begun, before = _now_ms(device), len(device.messages)
        await device.say(words)
        spoken.append(Span(words, begun, _now_ms(device), row=1))
        await device.wait_for_message("user_input_transcribed", after=before, timeout=_LISTEN_S)
        return before

    before = await say(HELLO)
    await device.wait_for_state("speaking", after=before, timeout=_LISTEN_S)
    await device.wait_for_silence(_SILENCE_S, timeout=_LISTEN_S)
    await say(PLAY)
    await device.wait_for_message("music_playback_started", timeout=_LISTEN_S)
    await _hear(device, 4.0)
    before = await say(ASK)
    await device.wait_for_state("speaking", after=before, timeout=_LISTEN_S)
    await _hear(device, 6.0)
    await say(PAUSE)
    paused = await device.wait_for_silence(_SILENCE_S, timeout=_LISTEN_S)
    await say(GO_ON)
    await device.wait_for_sound(after=paused, timeout=_LISTEN_S)
    await _hear(device, 3.0)
    await say(STOP)
    await device.wait_for_message("music_playback_stopped", timeout=_LISTEN_S)
    await device.wait_for_silence(_SILENCE_S, timeout=_LISTEN_S)
    await device.leave()
    heard = device.heard
    begins = (heard.arrivals[0] - heard.chunks[0].size / heard.sample_rate - device.marks["joined"]) * 1000
    return Visit(
        _moments(device, worker),
        [*spoken, *_songs(device)],
        await _said(world, device),
        heard.samples,
        heard.sample_rate,
        begins,
    )


def _now_ms(device: Device) -> float:
    return (time.monotonic() - device.marks["joined"]) * 1000


async def _hear(device: Device, seconds: float) -> None:
    length = device.heard.length + round(seconds * device.heard.sample_rate)
    await device.wait_until(lambda: device.heard.length >= length, timeout=seconds + _LISTEN_S, what="sound")


def _songs(device: Device) -> list[Span]:
    """From each `music_playback_started` to its end."""
    spans = []
    begun: tuple[str, float] | None = None
    for message in device.messages:
        at = (message.at - device.marks["joined"]) * 1000
        if message.type == "music_playback_started":
            begun = (str((message.json or {}).get("title")), at)
        elif message.type == "music_playback_stopped" and begun is not None:
            spans.append(Span(f"♪ {begun[0]}", begun[1], at, row=0))
            begun = None
    return spans


async def _said(world: World, device: Device) -> list[tuple[float, str, str]]:
    """The transcript: what the device was shown of the child's words, and the agent's lines as they were reported."""
    child = [
        ((message.at - device.marks["joined"]) * 1000, "child", str(message.data["transcript"]))
        for message in device.messages
        if message.type == "user_input_transcribed"
    ]
    songs = [(span.starts_ms, "song", span.name) for span in _songs(device)]
    assert world.manager is not None
    reports = world.manager.reports
    await world.worker.wait_until(lambda: len(reports) >= 4, timeout=_LISTEN_S, what="the transcript")
    utterances = [
        (message.at - device.marks["joined"]) * 1000 for message in device.messages if message.type == "speech_created"
    ]
    lines = [str(report["content"]) for report in reports if report["chatType"] == 2]
    agent = [(at, "agent", line) for at, line in zip(utterances, lines, strict=False)]
    return sorted([*child, *songs, *agent])


async def _marks_of_worker(worker: WorkerProcess, device: Device) -> dict[str, float]:
    """The worker's own marks of this visit, in milliseconds from the device's join (one machine, one wall clock)."""
    line = await worker.wait_for_line(
        lambda line: line.event == "greeting finished", timeout=15, what="the end of the greeting in the worker's log"
    )
    offset = (float(line.fields["t0_wall"]) - device.t0_wall) * 1000
    return {name: offset + float(ms) for name, ms in line.fields["marks"].items()}


def _moments(device: Device, worker: dict[str, float]) -> list[Moment]:
    own = {name: device.since_joined_ms(name) for name in ("joined", "agent_there", "track_subscribed", "first_sound")}
    return [
        Moment("joined", own["joined"]),
        Moment("agent there", own["agent_there"]),
        Moment("track subscribed", own["track_subscribed"]),
        Moment("first sound", own["first_sound"]),
        Moment("briefing ready", worker.get("briefing_ready")),
        Moment("session ready", worker.get("session_ready")),
        Moment("left", device.since_joined_ms("left")),
    ]


def timeline_table(moments: Sequence[Moment]) -> Table:
    """The visit's moments in the order in which they came, those not reached last."""
    table = Table(title="The visit, in milliseconds from the device's join", title_justify="left")
    table.add_column("moment")
    table.add_column("ms", justify="right")
    table.add_column("since the last", justify="right")
    last: float | None = None
    for moment in sorted(moments, key=lambda moment: (moment.ms is None, moment.ms or 0.0)):
        if moment.ms is None:
            table.add_row(moment.name, "not reached", "")
            continue
        table.add_row(moment.name, f"{moment.ms:.0f}", "" if last is None else f"+{moment.ms - last:.0f}")
        last = moment.ms
    return table


def transcript_table(said: Sequence[tuple[float, str, str]]) -> Table:
    """Who said what, when."""
    table = Table(title="What was said and played", title_justify="left")
    table.add_column("ms", justify="right")
    table.add_column("who")
    table.add_column("what")
    for ms, who, words in said:
        table.add_row(f"{ms:.0f}", who, words)
    return table


def save(visit: Visit, out: Path) -> list[Path]:
    """Write what the device heard and its picture; returns their paths."""
    sound, picture = out / "demo.wav", out / "demo.png"
    write_wav(sound, visit.samples, visit.rate)
    first = next((moment.ms for moment in visit.moments if moment.name == "first sound"), None)
    title = "A toy joins a room" + (f": first sound after {first:.0f} ms" if first is not None else "")
    draw_visit(picture, visit.samples, visit.rate, visit.starts_ms, visit.moments, spans=visit.spans, title=title)
    return [sound, picture]


async def run(out: Path, binary: Path) -> None:
    """Start the world, play the visit in it, show and save what came of it."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toy-demo-")))
        await asyncio.to_thread(load_library, folder)
        _step("sample library with six songs and four stories")
        sentences = [HELLO, PLAY, ASK, PAUSE, GO_ON, STOP]
        providers = await stack.enter_async_context(ProviderServer(script=SCRIPT, sentences=sentences))
        _step(f"stand-ins for speech, model and voice at {providers.url}")
        env = {
            "STATE_DIR": str(folder),
            "MODEL_DIR": str(MODELS),
            "CATALOGUE_DIR": str(REPO / "sample"),
            "STT_BASE_URL": providers.v1,
            "LLM_BASE_URL": providers.v1,
            "TTS_BASE_URL": providers.v1,
        }
        world = await stack.enter_async_context(World(env=env, binary=binary, say=_step))
        begun = time.monotonic()
        done = await visit(world)
        _step(f"a device joined, talked, heard a song and left ({time.monotonic() - begun:.1f} s)")
    _console.print(timeline_table(done.moments))
    _console.print(transcript_table(done.said))
    for path in await asyncio.to_thread(save, done, out):
        _console.print(f"Written: {path}", soft_wrap=True)


def load_library(state: Path) -> None:
    """Load the sample library as an operator would; the embedding model is fetched once. Raises ToyError."""
    settings = Settings(_env_file=None, state_dir=state, model_dir=MODELS)  # type: ignore[call-arg]
    model_files.ensure(settings)
    if catalogue.run(["load", str(REPO / "sample")], settings, Console(quiet=True)):
        raise LibraryError("the sample library could not be loaded")


def _step(text: str) -> None:
    _console.print(f"[green]✓[/] {text}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 done, 1 a step failed (a sentence says which), 130 interrupted. Leaves no process behind."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=REPO / "out", help="folder of demo.wav and demo.png (out)")
    given = parser.parse_args(arguments)
    # The client library warns of every server older than itself; here the version is chosen on purpose.
    logging.getLogger("livekit").setLevel(logging.ERROR)
    try:
        asyncio.run(run(given.out, find_or_install_livekit_server()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Interrupted; everything that was started has been stopped.", file=sys.stderr)
        return _INTERRUPTED
    except (ServerMissing, ProcessFailed, DeviceTimeout, rtc.ConnectError, ToyError, OSError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

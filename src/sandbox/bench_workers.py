"""The workers that benchmarks compare with: the floor and the stock ways. `python -m sandbox.bench_workers NAME`.

All take AGENT_NAME, LIVEKIT_* and NUM_IDLE_PROCESSES from the environment, and nothing else is tuned.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from livekit import rtc
from livekit.agents import Agent, AgentServer, AgentSession, JobContext
from livekit.plugins import openai

from agent.settings import load_settings
from agent.telemetry.logs import configure_logs
from sandbox.audio import read_wav, tone

RATE = 24_000


async def floor(ctx: JobContext) -> None:
    """Connect, publish a track, push a tone once somebody has subscribed: nothing else."""
    source = rtc.AudioSource(RATE, 1)
    track = rtc.LocalAudioTrack.create_audio_track("tone", source)
    await ctx.connect()
    publication = await ctx.room.local_participant.publish_track(
        track, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    )
    await publication.wait_for_subscription()
    for frame in _frames(tone(2.0, RATE)):
        await source.capture_frame(frame)


async def stock(ctx: JobContext) -> None:
    """The documented way: start the session, then let it say a recorded sound."""
    session: AgentSession[None] = AgentSession()
    await session.start(Agent(instructions="You are a toy."), room=ctx.room)
    samples, rate = read_wav(Path(os.environ["GREETINGS_DIR"]) / "en_default.wav")
    assert rate == RATE

    async def recorded() -> AsyncIterator[rtc.AudioFrame]:
        for frame in _frames(samples):
            yield frame

    session.say("Hello!", audio=recorded())


async def talking(ctx: JobContext) -> None:
    """A stock conversation: the same providers as the worker's, everything else as the framework has it."""
    base = os.environ["LLM_BASE_URL"]
    session: AgentSession[None] = AgentSession(
        stt=openai.STT(base_url=base, api_key="none"),
        llm=openai.LLM(model="gpt-4.1-mini", base_url=base, api_key="none"),
        # The stand-in speaks no mp3, which is this plugin's default.
        tts=openai.TTS(base_url=base, api_key="none", response_format="pcm"),
    )
    await session.start(Agent(instructions="You are a toy."), room=ctx.room)


def _frames(samples: np.ndarray[tuple[int], np.dtype[np.int16]]) -> list[rtc.AudioFrame]:
    step = RATE // 20
    return [
        rtc.AudioFrame(part.tobytes(), RATE, 1, len(part))
        for part in (samples[start : start + step] for start in range(0, len(samples), step))
    ]


async def _main(name: str) -> None:
    settings = load_settings(None)
    configure_logs(settings)
    server = AgentServer(
        ws_url=settings.livekit_url,
        api_key=settings.livekit_api_key,
        api_secret=settings.livekit_api_secret.get_secret_value(),
        host="127.0.0.1",
        port=0,
        num_idle_processes=settings.num_idle_processes,
        # By default the load is the machine's CPU, and LiveKit gives a worker at 100 % no room: on a shared machine
        # that is a coin toss, and it is not what is compared here.
        load_fnc=lambda: 0.0,
        load_threshold=float("inf"),
    )
    entrypoint = {"floor": floor, "stock": stock, "talking": talking}[name]
    server.rtc_session(entrypoint, agent_name=settings.agent_name)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.create_task(server.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if running.done():
        running.result()
    await server.aclose()
    await running


if __name__ == "__main__":
    # Job processes find the entrypoint by its module's real name, not by __main__.
    from sandbox import bench_workers

    asyncio.run(bench_workers._main(sys.argv[1]))

"""The smallest worker there can be: `python example_worker.py start`. It sends a message, then a sweep, as an agent."""

from __future__ import annotations

from livekit import rtc
from livekit.agents import AgentServer, JobContext, cli

from sandbox.audio import sweep

SECONDS = 2.0
RATE = 24_000
MESSAGE = b'{"type":"speech_created","data":{"source":"say"}}'


def no_load(_server: AgentServer) -> float:
    """Take every room: the machine that tests run on may be busy."""
    return 0.0


server = AgentServer(load_fnc=no_load, num_idle_processes=1, port=0)


@server.rtc_session()
async def greet(ctx: JobContext) -> None:
    """Publish one track, and play once somebody listens."""
    source = rtc.AudioSource(RATE, 1)
    track = rtc.LocalAudioTrack.create_audio_track("agent-voice", source)
    await ctx.connect()
    publication = await ctx.room.local_participant.publish_track(track)
    await publication.wait_for_subscription()
    await ctx.room.local_participant.publish_data(MESSAGE, topic="example")
    samples = sweep(SECONDS, RATE)
    for start in range(0, samples.size, RATE // 20):
        part = samples[start : start + RATE // 20]
        await source.capture_frame(rtc.AudioFrame(part.tobytes(), RATE, 1, part.size))


if __name__ == "__main__":
    cli.run_app(server)

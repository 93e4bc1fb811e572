"""What the child says, from the moment its microphone is there: kept until the session listens."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import structlog
from livekit import rtc
from livekit.agents.utils.aio import cancel_and_wait
from livekit.agents.voice import io

SAMPLE_RATE = 16_000
FRAME_MS = 32
"""A window of the voice activity detector: one wake-up for each, and none waits for the next frame."""
MAX_KEPT_SECONDS = 20.0

log = structlog.get_logger(__name__)


class Ear(io.AudioInput):
    """The session's audio input: 16 kHz mono frames of the device's microphone, in order, none lost before the start.

    Make it before connecting; it listens to the microphone of `identity` alone and follows it when the device comes
    back. `noise_cancellation` is LiveKit's filter for it, None for none. At most MAX_KEPT_SECONDS wait for the session;
    the oldest beyond are dropped and counted in `dropped`.
    """

    def __init__(self, room: rtc.Room, identity: str, *, noise_cancellation: Any = None) -> None:
        super().__init__(label="Ear")
        self._noise_cancellation = noise_cancellation
        self._room = room
        self._identity = identity
        self._frames: deque[rtc.AudioFrame] = deque()
        self._arrived = asyncio.Event()
        self._track: rtc.Track | None = None
        self._stream: rtc.AudioStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._old: set[asyncio.Task[None]] = set()
        self._closed = False
        self._listening = False
        self.dropped = 0
        room.on("track_subscribed", self._on_subscribed)
        room.on("track_unsubscribed", self._on_unsubscribed)

    async def __anext__(self) -> rtc.AudioFrame:
        while not self._frames:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        self._listening = True
        return self._frames.popleft()

    async def aclose(self) -> None:
        """Stop listening; whoever iterates is at the end."""
        self._closed = True
        self._room.off("track_subscribed", self._on_subscribed)
        self._room.off("track_unsubscribed", self._on_unsubscribed)
        self._leave_stream()
        await cancel_and_wait(*self._old)
        self._arrived.set()

    def _on_subscribed(
        self, track: rtc.Track, _publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        if participant.identity != self._identity or track.kind != rtc.TrackKind.KIND_AUDIO:
            return
        self._leave_stream()
        self._track = track
        self._stream = rtc.AudioStream(
            track,
            sample_rate=SAMPLE_RATE,
            num_channels=1,
            frame_size_ms=FRAME_MS,
            capacity=0,
            noise_cancellation=self._noise_cancellation,
        )
        self._task = asyncio.create_task(self._hear(self._stream), name="ear")

    def _on_unsubscribed(
        self, track: rtc.Track, _publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        if participant.identity == self._identity and track is self._track:
            self._leave_stream()

    def _leave_stream(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._old.add(self._task)
            self._task.add_done_callback(self._old.discard)
            self._task = None
        self._track = self._stream = None

    async def _hear(self, stream: rtc.AudioStream) -> None:
        try:
            async for event in stream:
                self._frames.append(event.frame)
                if len(self._frames) * FRAME_MS > MAX_KEPT_SECONDS * 1000:
                    self._frames.popleft()
                    self.dropped += 1
                self._arrived.set()
        finally:
            await stream.aclose()

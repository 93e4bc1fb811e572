"""An agent without a worker: a participant whose identity says so, with one audio track and data messages."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import numpy as np
from livekit import rtc
from livekit.agents.utils.aio import cancel_and_wait

from sandbox.audio import Pcm
from sandbox.livekit_server import LiveKitServer

RATE = 24_000
_FRAME = RATE // 20
PATIENCE = 30.0


class AgentStub:
    """Joins `room` as an agent would; `heard` is what it hears of the microphone, mono int16 at 16 kHz.

    `hears` is set by the first of it.
    """

    def __init__(self, server: LiveKitServer, room: str) -> None:
        self.room = rtc.Room()
        self.source = rtc.AudioSource(RATE, 1)
        self._server = server
        self._name = room
        self._chunks: list[Pcm] = []
        self._recorder: asyncio.Task[None] | None = None
        self.received: asyncio.Queue[rtc.DataPacket] = asyncio.Queue()
        self.microphones: list[str] = []
        self.hears = asyncio.Event()

    @property
    def heard(self) -> Pcm:
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)

    async def __aenter__(self) -> Self:
        self.room.on("data_received", self.received.put_nowait)
        self.room.on("track_subscribed", self._subscribed)
        async with asyncio.timeout(PATIENCE):
            await self.room.connect(self._server.url, self._server.token("agent-stub", self._name))
            await self.publish()
        return self

    async def publish(self) -> rtc.LocalTrackPublication:
        track = rtc.LocalAudioTrack.create_audio_track("agent-voice", self.source)
        return await self.room.local_participant.publish_track(track)

    def _subscribed(
        self, track: rtc.Track, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        self.microphones.append(publication.name)
        self._recorder = asyncio.create_task(self._record(rtc.AudioStream(track, sample_rate=16_000)))

    async def _record(self, stream: rtc.AudioStream) -> None:
        try:
            async for event in stream:
                self._chunks.append(np.frombuffer(event.frame.data, np.int16).copy())
                self.hears.set()
        finally:
            await stream.aclose()

    async def play(self, samples: Pcm) -> None:
        """Play samples at RATE to their end."""
        for start in range(0, samples.size, _FRAME):
            part = samples[start : start + _FRAME]
            await self.source.capture_frame(rtc.AudioFrame(part.tobytes(), RATE, 1, part.size))
        await self.source.wait_for_playout()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._recorder is not None:
            # The stream of one who vanished may not end by itself.
            await cancel_and_wait(self._recorder)
        async with asyncio.timeout(PATIENCE):
            await self.room.disconnect()
            await self.source.aclose()

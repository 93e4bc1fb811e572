"""What the ear listens to: the device's microphone, whatever other tracks come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from livekit import rtc

from agent.conversation.ear import SAMPLE_RATE, Ear

ME = "02:00:00:00:00:01"
DEADLINE = 20.0


class Room:
    """Tells of tracks."""

    def __init__(self) -> None:
        self.listeners: dict[str, Callable[..., None]] = {}

    def on(self, event: str, callback: Callable[..., None]) -> None:
        self.listeners[event] = callback

    def off(self, event: str, _: Callable[..., None]) -> None:
        del self.listeners[event]

    def tell(self, event: str, track: rtc.Track, identity: str = ME) -> None:
        self.listeners[event](track, None, SimpleNamespace(identity=identity))


class Microphone:
    """A track that sounds at one level."""

    def __init__(self, level: int) -> None:
        self.source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=1000)
        self.track = rtc.LocalAudioTrack.create_audio_track("microphone", self.source)
        self.level = level

    async def sound(self) -> None:
        """Until cancelled."""
        block = np.full(SAMPLE_RATE // 100, self.level, np.int16)
        while True:
            await self.source.capture_frame(rtc.AudioFrame(block.tobytes(), SAMPLE_RATE, 1, len(block)))


@pytest.fixture
async def microphones() -> AsyncIterator[list[Microphone]]:
    made = [Microphone(3000), Microphone(12000)]
    sounding = [asyncio.create_task(one.sound()) for one in made]
    yield made
    for task in sounding:
        task.cancel()
    await asyncio.gather(*sounding, return_exceptions=True)
    for one in made:
        await one.source.aclose()


async def hears(ear: Ear, level: int) -> bool:
    """Whether frames of this level come in the end."""
    try:
        async with asyncio.timeout(DEADLINE):
            async for frame in ear:
                if abs(int(np.frombuffer(frame.data, np.int16)[-1]) - level) < 100:
                    return True
    except TimeoutError:
        pass
    return False


async def test_the_end_of_another_track_leaves_the_microphone_heard(microphones: list[Microphone]) -> None:
    room, (old, new) = Room(), microphones
    ear = Ear(cast("Any", room), ME)
    room.tell("track_subscribed", old.track)
    assert await hears(ear, old.level)
    room.tell("track_subscribed", new.track, "somebody else")
    room.tell("track_unsubscribed", new.track, "somebody else")
    room.tell("track_subscribed", new.track)
    room.tell("track_unsubscribed", old.track)
    assert await hears(ear, new.level), "the device has come back before its old track was gone"
    room.tell("track_unsubscribed", new.track)
    room.tell("track_subscribed", old.track)
    assert await hears(ear, old.level)
    await ear.aclose()

"""Sound to feed a detector or a session with, faster than real time; a session's microphone and loudspeaker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
from livekit import rtc
from livekit.agents.voice import io

from agent.greeting.espeak import synthesise
from sandbox.hearing import Samples, resample

RATE = 16_000


def spoken(text: str) -> Samples:
    """A sentence at 16 kHz, without silence at its ends."""
    pcm, rate = synthesise(text)
    samples = resample(pcm, rate, RATE)
    loud = np.nonzero(np.abs(samples) > 300)[0]
    return samples[loud[0] : loud[-1] + 1]


def quiet(seconds: float) -> Samples:
    """A quiet room."""
    return np.random.default_rng(1).normal(0, 5, int(RATE * seconds)).astype(np.int16)


def frames(*sounds: Samples) -> Iterator[rtc.AudioFrame]:
    """20 ms each."""
    whole = np.concatenate(sounds)
    for start in range(0, len(whole) - 319, 320):
        yield rtc.AudioFrame(whole[start : start + 320].tobytes(), RATE, 1, 320)


class Microphone(io.AudioInput):
    """Sound in real time: silence unless something is to be said."""

    def __init__(self) -> None:
        super().__init__(label="microphone")
        self._frames: list[rtc.AudioFrame] = []
        self._room = list(frames(quiet(0.4)))
        self._next = time.perf_counter()

    def say(self, text: str) -> None:
        self._frames = list(frames(spoken(text)))

    async def __anext__(self) -> rtc.AudioFrame:
        self._next = max(self._next + 0.02, time.perf_counter() - 0.1)
        tick = asyncio.Event()
        asyncio.get_running_loop().call_later(max(0.0, self._next - time.perf_counter()), tick.set)
        await tick.wait()
        return self._frames.pop(0) if self._frames else self._room[0]


class Loudspeaker(io.AudioOutput):
    """Takes sound at once; `heard` counts its seconds and `played` the utterances that ended."""

    def __init__(self) -> None:
        super().__init__(label="loudspeaker", capabilities=io.AudioOutputCapabilities(pause=False), sample_rate=24_000)
        self.heard = 0.0
        self.utterance = 0.0
        self.played: asyncio.Queue[float] = asyncio.Queue()

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self.utterance:
            self.on_playback_started(created_at=time.time())
        self.heard += frame.duration
        self.utterance += frame.duration

    def flush(self) -> None:
        super().flush()
        self._end(interrupted=False)

    def clear_buffer(self) -> None:
        self._end(interrupted=True)

    def _end(self, *, interrupted: bool) -> None:
        if self.utterance:
            self.on_playback_finished(playback_position=self.utterance, interrupted=interrupted)
            self.played.put_nowait(self.utterance)
            self.utterance = 0.0

"""Sound to feed a detector or a session with, faster than real time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from livekit import rtc

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

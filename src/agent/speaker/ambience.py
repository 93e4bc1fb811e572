"""Background and thinking sounds, made rather than recorded: seamless loops the speaker mixes under everything."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.speaker.gain import Ramp
from agent.speaker.pcm import SAMPLE_RATE, Samples

_LOOP: Final = 4 * SAMPLE_RATE
_NOISE_PEAK: Final = 160.0
_NOTE_PEAK: Final = 900.0
_NOTES: Final = ((0.0, 659.3), (0.35, 784.0), (2.0, 587.3), (2.35, 784.0))
_RAMP: Final = SAMPLE_RATE * 3 // 10
_HEARD_UNDER_SPEECH: Final = 0.3


@cache
def background_loop() -> NDArray[np.float32]:
    """Four seconds of soft brownish noise, like a quiet room; made of whole periods, so its ends meet."""
    bins = _LOOP // 2 + 1
    frequencies = np.fft.rfftfreq(_LOOP, 1 / SAMPLE_RATE)
    weights = np.where((frequencies > 60) & (frequencies < 2500), 1 / np.maximum(frequencies, 60) ** 0.8, 0)
    phases = np.random.default_rng(7).uniform(0, 2 * np.pi, bins)
    sound = np.fft.irfft(weights * np.exp(1j * phases), _LOOP)
    return np.asarray(sound / np.abs(sound).max() * _NOISE_PEAK, np.float32)


@cache
def thinking_loop() -> NDArray[np.float32]:
    """Four seconds with a few soft plucked notes, silent at both ends."""
    sound = np.zeros(_LOOP)
    for begin, pitch in _NOTES:
        start = round(begin * SAMPLE_RATE)
        times = np.arange(SAMPLE_RATE * 8 // 10) / SAMPLE_RATE
        shape = (1 - np.exp(-times * 250)) * np.exp(-times * 6) * np.clip((0.8 - times) * 20, 0, 1)
        sound[start : start + len(times)] += shape * np.sin(2 * np.pi * pitch * times)
    return np.asarray(sound / np.abs(sound).max() * _NOTE_PEAK, np.float32)


class Ambience:
    """Pulled by the speaker like media. `background` turns the quiet room on for good; thinking comes and goes."""

    def __init__(self, *, background: bool = True, on_wake: Callable[[], None] | None = None) -> None:
        self.on_wake = on_wake
        self._position = 0
        self._thinking_position = 0
        self._background = Ramp(0.0)
        self._thinking = Ramp(0.0)
        self._duck = Ramp(1.0)
        self.background(background)

    def background(self, on: bool) -> None:
        """The quiet room comes or goes."""
        self._background.to(1.0 if on else 0.0, _RAMP)
        self._wake()

    def thinking(self, on: bool) -> None:
        """The thinking sound begins anew, or fades."""
        if on and self._thinking.target == 0.0:
            self._thinking_position = 0
        self._thinking.to(1.0 if on else 0.0, _RAMP // 3)
        self._wake()

    def pull(self, samples: int) -> Samples | None:
        """Exactly `samples` of 24 kHz mono, or None when nothing is on. Never blocks."""
        if not any(ramp.level or ramp.target for ramp in (self._background, self._thinking)):
            return None
        positions = np.arange(samples)
        out = background_loop()[(self._position + positions) % _LOOP] * self._background.take(samples)
        out = out + thinking_loop()[(self._thinking_position + positions) % _LOOP] * self._thinking.take(samples)
        self._position = (self._position + samples) % _LOOP
        self._thinking_position = (self._thinking_position + samples) % _LOOP
        return np.asarray(np.rint(out * self._duck.take(samples)), np.int16)

    def give_back(self, samples: int) -> None:
        """Nobody misses a moment of it."""

    def duck(self, on: bool) -> None:
        """Softer under speech."""
        target = _HEARD_UNDER_SPEECH if on else 1.0
        if self._duck.target != target:
            self._duck.to(target, _RAMP // 2)

    def _wake(self) -> None:
        if self.on_wake is not None:
            self.on_wake()

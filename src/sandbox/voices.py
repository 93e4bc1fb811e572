"""What the stand-in voices sound like: espeak-ng, or a hum as long as the text that needs no package."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from agent.greeting.espeak import synthesise
from sandbox.hearing import Samples, resample

RATE = 24_000

Voice = Callable[[str], bytes]
"""Text to mono 16-bit 24 kHz PCM."""


def hum(pitch: float = 220.0, *, per_character: float = 0.06, level: float = 0.25) -> Voice:
    """A voice that hums, `per_character` seconds a character, with a dip between words and no silence inside.

    Two voices with different `pitch` (Hz) can be told apart in a recording.
    """

    def speak(text: str) -> bytes:
        parts: list[Samples] = []
        for word in re.findall(r"\S+\s*", text):
            length = max(1, round(len(word) * per_character * RATE))
            time = np.arange(length) / RATE
            envelope = 0.35 + 0.65 * np.sin(np.pi * np.arange(length) / length)
            parts.append((np.sin(2 * np.pi * pitch * time) * envelope * level * 32767).astype(np.int16))
        return np.concatenate(parts).tobytes() if parts else b""

    return speak


def espeak(language: str = "en", *, words_per_minute: int = 160) -> Voice:
    """A voice by espeak-ng, whose sentences `Hearing` understands. Speaking raises MediaError when it is not there."""

    @lru_cache(maxsize=256)
    def speak(text: str) -> bytes:
        if not text.strip():
            return b""
        samples, rate = synthesise(text, language, words_per_minute=words_per_minute)
        return resample(samples, rate, RATE).tobytes()

    return speak

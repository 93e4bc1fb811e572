"""What the media tests share: a sound no moment of which is like another, and readers that wait without sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import numpy as np
from yarl import URL

from agent.speaker.media_bytes import MediaLimits
from agent.speaker.media_http import MediaHttp
from agent.speaker.media_source import Mark, MediaSource
from agent.speaker.media_url import HttpLocation
from agent.speaker.pcm import SAMPLE_RATE, Samples
from sandbox.media_files import encode

QUICK = MediaLimits(stall=0.3, attempts=3, backoff=0.001, max_backoff=0.002, start=5.0)


@cache
def noise(seconds: float = 12.0, seed: int = 1) -> Samples:
    """Band-limited noise at 24 kHz: it aligns with itself at one place only."""
    count = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=count))
    frequencies = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    spectrum[(frequencies < 200) | (frequencies > 4000)] = 0
    sound = np.fft.irfft(spectrum, count)
    return np.asarray(sound / np.abs(sound).max() * 20000, np.int16)


@cache
def encoded(form: str, seconds: float = 12.0) -> bytes:
    """`noise(seconds)` as a file."""
    return encode(noise(seconds), form)


@asynccontextmanager
async def reading(
    url: str,
    http: MediaHttp,
    *,
    start: int = 0,
    marks: tuple[Mark, ...] = (),
    limits: MediaLimits = QUICK,
) -> AsyncIterator[Reader]:
    """A source of a file on a media server, with its reader."""
    reader = Reader()
    async with MediaSource.open(
        HttpLocation(URL(url, encoded=True)), http, start=start, marks=marks, limits=limits, on_data=reader.wake
    ) as source:
        reader.source = source
        yield reader


class Reader:
    """Pulls a source dry, sleeping only until it has more."""

    def __init__(self, source: MediaSource | None = None) -> None:
        self.source = source
        self._data = asyncio.Event()

    def wake(self) -> None:
        self._data.set()

    async def read(self, samples: int, step: int = 480) -> Samples:
        """The next `samples`, or fewer at the end."""
        assert self.source is not None
        parts: list[Samples] = []
        count = 0
        while count < samples:
            self._data.clear()
            block = self.source.read(min(step, samples - count))
            if block is None:
                await self._data.wait()
                continue
            if not len(block):
                break
            parts.append(block)
            count += len(block)
        return np.concatenate(parts) if parts else np.zeros(0, np.int16)

    async def all(self) -> Samples:
        return await self.read(1 << 62)


def lag(heard: Samples, reference: Samples, reach: int = 2000) -> tuple[int, float]:
    """By how many samples `heard` is late against `reference`, within `reach`, and how alike they are then (0 to 1)."""
    size = min(len(heard), len(reference)) - 2 * reach
    window = reference[reach : reach + size].astype(float)
    products = np.correlate(heard[: size + 2 * reach].astype(float), window, "valid")
    index = int(np.argmax(products))
    found = heard[index : index + size].astype(float)
    likeness = float(products[index] / np.sqrt((found @ found) * (window @ window)))
    return index - reach, likeness

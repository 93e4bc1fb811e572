"""Titles, sources in memory, and a speaker's ear for the player's tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from media_support import noise

from agent.errors import MediaError
from agent.library.titles import Title
from agent.speaker.media_source import Mark
from agent.speaker.pcm import SAMPLE_RATE, Samples
from agent.speaker.player_types import StopReason

BLOCK = 480


def title(number: int, name: str = "") -> Title:
    return Title(number, "music", name or f"Song {number}", "English", filename=f"{number}.mp3")


class MemorySource:
    """Keeps MediaSource's contract over samples in memory; `feed` releases them, `break_with` fails after them."""

    def __init__(self, sound: Samples, start: int, on_data: Callable[[], None] | None) -> None:
        self._sound = sound
        self._on_data = on_data
        self._position = min(start, len(sound))
        self._released = len(sound)
        self._error: MediaError | None = None
        self._wake_at = 0
        self.closed = False

    def hold_at(self, sample: int) -> None:
        self._released = max(min(sample, len(self._sound)), self._position)

    def feed(self, samples: int) -> None:
        self._released = min(self._released + samples, len(self._sound))
        self._announce()

    def break_with(self, message: str) -> None:
        self._error = MediaError(message)
        self._announce()

    def _announce(self) -> None:
        if self._on_data is not None and (self.complete or 0 < self._wake_at <= self.buffered):
            self._wake_at = 0
            self._on_data()

    def read(self, samples: int, at_least: int = 0) -> Samples | None:
        assert not self.closed
        if self.buffered == 0 and self._error is not None:
            raise self._error
        if self.buffered == 0 and self.complete:
            return np.zeros(0, np.int16)
        if self.buffered == 0 or (self.buffered < at_least and not self.complete):
            self._wake_at = max(at_least, 1)
            return None
        count = min(samples, self.buffered)
        self._position += count
        return self._sound[self._position - count : self._position]

    def marks(self) -> tuple[Mark, ...]:
        return ()

    async def aclose(self) -> None:
        self.closed = True

    @property
    def position(self) -> int:
        return self._position

    @property
    def duration(self) -> float | None:
        return len(self._sound) / SAMPLE_RATE

    @property
    def buffered(self) -> int:
        return self._released - self._position

    @property
    def complete(self) -> bool:
        return self._released >= len(self._sound) or self._error is not None


class Shelf:
    """Opens titles as MemorySources: `noise` of 12 seconds each, seeded by the title's id, unless put otherwise."""

    def __init__(self) -> None:
        self.sounds: dict[int, Samples] = {}
        self.missing: set[int] = set()
        self.held: dict[int, int] = {}
        self.opened: list[tuple[int, int]] = []
        self.sources: list[MemorySource] = []

    def open(
        self, title: Title, start: int = 0, marks: tuple[Mark, ...] = (), on_data: Callable[[], None] | None = None
    ) -> MemorySource:
        if title.id in self.missing:
            raise MediaError("no such file")
        self.opened.append((title.id, start))
        sound = self.sounds.get(title.id)
        source = MemorySource(noise(12.0, title.id) if sound is None else sound, start, on_data)
        if title.id in self.held:
            source.hold_at(self.held[title.id])
        self.sources.append(source)
        return source

    @property
    def last(self) -> MemorySource:
        return self.sources[-1]


class Log:
    """A listener that keeps everything it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, str]] = []

    def started(self, title: Title) -> None:
        self.told.append(("started", title.id, ""))

    def stopped(self, title: Title, reason: StopReason) -> None:
        self.told.append(("stopped", title.id, str(reason)))

    def problem(self, title: Title, error: MediaError) -> None:
        self.told.append(("problem", title.id, str(error)))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ear:
    """Keeps what was pulled; may give some of it back, as a speaker does that empties its queue."""

    def __init__(self, pull: Callable[[int], Samples | None], give_back: Callable[[int], None]) -> None:
        self._pull = pull
        self._give_back = give_back
        self.heard: deque[Samples] = deque()

    def listen(self, samples: int) -> int:
        """Pull blocks until `samples` came or there was silence; returns how many came."""
        count = 0
        while count < samples:
            block = self._pull(BLOCK)
            if block is None:
                break
            assert block.dtype == np.int16
            assert len(block) == BLOCK
            self.heard.append(block)
            count += BLOCK
        return count

    def lose(self, blocks: int) -> None:
        for _ in range(blocks):
            self.heard.pop()
        self._give_back(blocks * BLOCK)

    @property
    def sound(self) -> Samples:
        return np.concatenate(self.heard) if self.heard else np.zeros(0, np.int16)

"""One title while it plays: its position to the sample, and the last seconds of it, to be played once more."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

import numpy as np

from agent.errors import MediaError
from agent.speaker.media_source import Mark
from agent.speaker.pcm import SAMPLE_RATE, Samples
from agent.speaker.play_queue import Entry

_TAPE: Final = 2 * SAMPLE_RATE
_FIRST: Final = SAMPLE_RATE // 25
_REFILL: Final = SAMPLE_RATE * 2 // 5
_NOTHING: Final[Samples] = np.zeros(0, np.int16)


class Source(Protocol):
    """Where a track's samples come from; `agent.speaker.media_source.MediaSource` is one."""

    def read(self, samples: int, at_least: int = 0) -> Samples | None: ...
    def marks(self) -> tuple[Mark, ...]: ...
    async def aclose(self) -> None: ...
    @property
    def position(self) -> int: ...
    @property
    def duration(self) -> float | None: ...
    @property
    def complete(self) -> bool: ...


class Track:
    """A title and its source. `position` is the sample that comes next (24 kHz, from the title's start).

    `patience` is for how many samples may be asked in vain until the source counts as broken.
    """

    def __init__(self, entry: Entry, source: Source, start: int, *, sounded: bool = False, patience: int) -> None:
        self.entry = entry
        self.source = source
        self.position = start
        self.announced = sounded
        self._tape: deque[Samples] = deque()
        self._taped = 0
        self._again: deque[Samples] = deque()
        self._patience = patience
        self._in_vain = 0
        self._needed = _FIRST
        self._begun = False

    @property
    def begun(self) -> bool:
        """Whether a sample of it has been taken."""
        return self._begun

    def take(self, samples: int) -> Samples | None:
        """The next 1 to `samples`; none at the end; None while the source has too few. Raises MediaError."""
        if self._again:
            block = self._again.popleft()
            if len(block) > samples:
                self._again.appendleft(block[samples:])
                block = block[:samples]
        else:
            fresh = self._fresh(samples)
            if fresh is None or not len(fresh):
                return fresh
            block = fresh
        self.position += len(block)
        self._record(block)
        return block

    def _fresh(self, samples: int) -> Samples | None:
        source = self.source
        block = source.read(samples, self._needed)
        if block is None:
            if self._begun:
                self._needed = _REFILL
            self._in_vain += samples
            if self._in_vain > self._patience:
                raise MediaError("the source is too slow")
            return None
        self._needed = self._in_vain = 0
        if len(block) and not self._begun:
            # A source that could not begin at the very sample says where it did.
            self.position = source.position - len(block)
            self._begun = True
        return block

    def _record(self, block: Samples) -> None:
        self._tape.append(block)
        self._taped += len(block)
        while self._taped - len(self._tape[0]) >= _TAPE:
            self._taped -= len(self._tape.popleft())

    def rewind(self, samples: int) -> bool:
        """Take the last `samples` back; False, and nothing changed, when they are no longer at hand."""
        if samples > self._taped:
            return False
        self.position -= samples
        self._taped -= samples
        while samples:
            block = self._tape.pop()
            keep = max(len(block) - samples, 0)
            if keep:
                self._tape.append(block[:keep])
                block = block[keep:]
            self._again.appendleft(block)
            samples -= len(block)
        return True

    @property
    def ending(self) -> bool:
        """Whether all that is left of it is at hand."""
        return self.source.complete

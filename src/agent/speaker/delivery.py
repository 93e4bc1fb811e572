"""What the player has handed to the speaker, so that what never sounded can be taken back."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from agent.speaker.pcm import SAMPLE_RATE
from agent.speaker.track import Track

_REMEMBERED: Final = 3 * SAMPLE_RATE


@dataclass(slots=True)
class Delivery:
    """One pulled block: how long it was, and how many samples of which tracks it was made of, in order."""

    length: int
    parts: list[tuple[Track, int]] = field(default_factory=list)


class Deliveries:
    """The last three seconds that were pulled."""

    def __init__(self) -> None:
        self._blocks: deque[Delivery] = deque()
        self._length = 0

    def add(self, block: Delivery) -> None:
        """The newest block."""
        self._blocks.append(block)
        self._length += block.length
        while self._length - self._blocks[0].length >= _REMEMBERED:
            self._length -= self._blocks.popleft().length

    def take_back(self, samples: int, track: Track | None) -> int:
        """Forget the last `samples` pulled; returns how many samples of `track` were among them."""
        lost = 0
        while samples > 0 and self._blocks:
            block = self._blocks.pop()
            self._length -= block.length
            kept = max(block.length - samples, 0)
            samples -= block.length
            shorter = Delivery(kept)
            for owner, count in block.parts:
                stay = min(count, kept)
                kept -= stay
                shorter.parts.append((owner, stay))
                if owner is track:
                    lost += count - stay
            if shorter.length:
                self._blocks.append(shorter)
                self._length += shorter.length
        return lost

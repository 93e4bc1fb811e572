"""The named moments of one visit, from one monotonic clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

TURNS_KEPT: Final = 100


class Timeline:
    """Marks of one visit, in milliseconds after `start`; the first setting of a name wins.

    `t0_wall` is the wall-clock time of `start` (Unix seconds), so that marks of several machines can be laid side
    by side. Marking costs a dictionary entry; everything that reads it runs after the greeting.
    """

    __slots__ = ("_clock", "_marks", "_start", "_turns", "_wall", "t0_wall")

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._start = clock()
        self.t0_wall = wall()
        self._marks: dict[str, float] = {}
        self._turns: deque[Mapping[str, float]] = deque(maxlen=TURNS_KEPT)

    def now(self) -> float:
        """Milliseconds since `start`."""
        return round((self._clock() - self._start) * 1000, 2)

    def at_wall(self, unix_seconds: float) -> float:
        """Milliseconds of a recent moment of the wall clock; right also where that was set since `start`."""
        return round(self.now() - (self._wall() - unix_seconds) * 1000, 2)

    def mark(self, name: str) -> float:
        """Set `name` to now unless it is set; returns its milliseconds."""
        return self._marks.setdefault(name, self.now())

    def mark_at(self, name: str, at_ms: float) -> None:
        """Set `name` to a moment that has passed, unless it is set."""
        self._marks.setdefault(name, round(at_ms, 2))

    def mark_wall(self, name: str, unix_seconds: float) -> None:
        """Set `name` to a moment that another process took from the wall clock; 0 means unknown and sets nothing."""
        if unix_seconds:
            self._marks.setdefault(name, round((unix_seconds - self.t0_wall) * 1000, 2))

    def get(self, name: str) -> float | None:
        """Milliseconds of `name`, None if it has not happened."""
        return self._marks.get(name)

    def between(self, first: str, last: str) -> float | None:
        """Milliseconds from `first` to `last`, None unless both have happened."""
        a, b = self._marks.get(first), self._marks.get(last)
        return None if a is None or b is None else round(b - a, 2)

    def turn(self, moments: Mapping[str, float]) -> None:
        """Keep a turn; of a long visit, the last TURNS_KEPT. What is added to `moments` later is seen in `turns`.

        Names that end in `_at` are moments like marks, those that end in `_ms` say how long a part took.
        """
        self._turns.append(moments)

    @property
    def turns(self) -> list[Mapping[str, float]]:
        """The turns kept, earliest first: what a child said with its answer, or words that nobody had asked for."""
        return [dict(turn) for turn in self._turns]

    @property
    def marks(self) -> Mapping[str, float]:
        """All marks so far, earliest first."""
        return dict(sorted(self._marks.items(), key=lambda item: item[1]))

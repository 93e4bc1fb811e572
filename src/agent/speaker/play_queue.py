"""What plays, what played, and what plays next."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agent.library.titles import Title

_PAST: Final = 50
_LONGEST: Final = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One place in the queue; the same title may stand in several. `order` is that of adding."""

    title: Title
    order: int


class PlayQueue:
    """Titles in the order they play. At most 1,000 wait; more are dropped."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._past: deque[Entry] = deque(maxlen=_PAST)
        self._upcoming: deque[Entry] = deque()
        self._added = 0
        self.current: Entry | None = None
        self.shuffled = False

    @property
    def upcoming(self) -> tuple[Title, ...]:
        """What plays next, in order."""
        return tuple(entry.title for entry in self._upcoming)

    @property
    def next(self) -> Entry | None:
        """What plays after the current one."""
        return self._upcoming[0] if self._upcoming else None

    @property
    def last(self) -> Title | None:
        """What played last before the current one."""
        return self._past[-1].title if self._past else None

    def replace(self, titles: Iterable[Title]) -> Entry | None:
        """Play these instead of everything; returns the first."""
        self.clear()
        self.add(titles)
        return self.advance()

    def add(self, titles: Iterable[Title], *, first: bool = False) -> int:
        """Put titles at the end, or ahead of all others; returns how many found room."""
        entries: list[Entry] = []
        for title in titles:
            if len(self._upcoming) + len(entries) >= _LONGEST:
                break
            entries.append(Entry(title, self._added))
            self._added += 1
        if self.shuffled and not first:
            waiting = [*self._upcoming, *entries]
            self._rng.shuffle(waiting)
            self._upcoming = deque(waiting)
        elif first:
            self._upcoming.extendleft(reversed(entries))
        else:
            self._upcoming.extend(entries)
        return len(entries)

    def advance(self) -> Entry | None:
        """Move on to the next title; None at the end."""
        if self.current is not None:
            self._past.append(self.current)
        self.current = self._upcoming.popleft() if self._upcoming else None
        return self.current

    def back(self) -> Entry | None:
        """Return to the title before; None, and nothing changed, where there is none."""
        if not self._past:
            return None
        if self.current is not None:
            self._upcoming.appendleft(self.current)
        self.current = self._past.pop()
        return self.current

    def shuffle(self, on: bool) -> None:
        """Mix what waits, or put it back into the order of adding."""
        self.shuffled = on
        waiting = list(self._upcoming)
        if on:
            self._rng.shuffle(waiting)
        else:
            waiting.sort(key=lambda entry: entry.order)
        self._upcoming = deque(waiting)

    def clear(self) -> None:
        """Nothing plays, nothing waits; what played stays known."""
        if self.current is not None:
            self._past.append(self.current)
        self.current = None
        self._upcoming.clear()
        self.shuffled = False

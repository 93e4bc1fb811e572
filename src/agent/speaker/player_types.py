"""What a player is, whom it tells, and what it needs to come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from agent.errors import MediaError
from agent.library.titles import Title
from agent.speaker.media_source import Mark
from agent.speaker.track import Source


class State(StrEnum):
    """What the player does."""

    IDLE = "idle"
    STARTING = "starting"
    PLAYING = "playing"
    PAUSED = "paused"


class Hold(StrEnum):
    """Who keeps the player paused; it goes on when nobody does."""

    USER = "user"
    SPEECH = "speech"
    DROP = "drop"


class StopReason(StrEnum):
    """Why a title that had started stopped."""

    ENDED = "ended"
    STOPPED = "stopped"
    SKIPPED = "skipped"
    BROKEN = "broken"
    CLOSED = "closed"


class PlayerEvents(Protocol):
    """Who is told. `stopped` comes exactly once for each `started`, and before the next `started`."""

    def started(self, title: Title) -> None:
        """The title's first sample is on its way to the child."""

    def stopped(self, title: Title, reason: StopReason) -> None:
        """It sounds no more."""

    def problem(self, title: Title, error: MediaError) -> None:
        """It cannot be played, or not to its end; the next one plays."""


class OpenSource(Protocol):
    """Begins to load a title; `agent.speaker.media_store.MediaStore.open` is one."""

    def __call__(
        self, title: Title, start: int = 0, marks: tuple[Mark, ...] = (), on_data: Callable[[], None] | None = None
    ) -> Source: ...


@dataclass(frozen=True, slots=True)
class PlayerSnapshot:
    """What is needed to go on at the same second. `position` in samples of 24 kHz."""

    title: Title
    position: int
    marks: tuple[Mark, ...] = ()
    upcoming: tuple[Title, ...] = ()
    paused: bool = False
    volume: int = 100

    def to_dict(self) -> dict[str, Any]:
        """JSON's types only."""
        return {
            "title": _title_to_dict(self.title),
            "position": self.position,
            "marks": [[mark.byte, mark.sample] for mark in self.marks],
            "upcoming": [_title_to_dict(title) for title in self.upcoming],
            "paused": self.paused,
            "volume": self.volume,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PlayerSnapshot:
        """Raises ValueError for what `to_dict` did not make."""
        try:
            return cls(
                title=_title_from_dict(data["title"]),
                position=int(data["position"]),
                marks=tuple(Mark(int(byte), int(sample)) for byte, sample in data["marks"]),
                upcoming=tuple(_title_from_dict(title) for title in data["upcoming"]),
                paused=bool(data["paused"]),
                volume=int(data["volume"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a player's snapshot: {error!r}") from error


def _title_to_dict(title: Title) -> dict[str, Any]:
    names = ("id", "kind", "title", "section", "romanized", "filename")
    return {name: getattr(title, name) for name in names}


def _title_from_dict(data: dict[str, Any]) -> Title:
    return Title(**data)

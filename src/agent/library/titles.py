"""What the library knows of one song or story, wherever it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["music", "story"]

KINDS: Final[tuple[Kind, ...]] = ("music", "story")


@dataclass(frozen=True, slots=True)
class Title:
    """One song or story. Texts are kept in the script they were written in; an absent one is empty.

    `id` is stable across loads: 0 <= id < 2**63. `section` is a song's language or a story's category, spelt as in the
    catalogue. `filename` is a path relative to the section's folder and never leaves it.
    """

    id: int
    kind: Kind
    title: str
    section: str
    romanized: str = ""
    alternatives: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    filename: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything the title is called: the title itself, its romanised form, its alternatives; no repeats."""
        return tuple(dict.fromkeys(name for name in (self.title, self.romanized, *self.alternatives) if name))

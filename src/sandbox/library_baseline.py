"""The origin's search, as the contract describes it: what the library must beat.

Vector search with threshold 0.3 and limit 15, other languages' scores times 0.7 (case-sensitive), the first hit plays;
else a fuzzy score over a scroll of 1,000 points; else a random one of the first 100.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.library.titles import Title

_THRESHOLD = 0.3
_LIMIT = 15
_SCROLL = 1000
_OTHER_LANGUAGE = 0.7
_FUZZY_MINIMUM = 0.3

Near = Callable[[str, int], list[tuple[Title, float]]]


@dataclass(frozen=True, slots=True)
class Baseline:
    """`near(text, limit)` is the vector search, best first."""

    titles: Sequence[Title]
    near: Near

    def search(self, request: str, section: str | None = None, rng: random.Random | None = None) -> list[Title]:
        """What it plays first, and what else it found; never empty for a catalogue with titles."""
        hits = [
            (title, score if section is None or title.section == section else score * _OTHER_LANGUAGE)
            for title, score in self.near(request, _LIMIT)
            if score >= _THRESHOLD
        ]
        if hits:
            return [title for title, _ in sorted(hits, key=lambda hit: -hit[1])]
        scored = [(title, fuzzy(request, title)) for title in self.titles[:_SCROLL]]
        found = [(title, score) for title, score in scored if score >= _FUZZY_MINIMUM]
        if found:
            return [title for title, _ in sorted(found, key=lambda hit: -hit[1])[:_LIMIT]]
        return [(rng or random.Random(0)).choice(list(self.titles[:100]))]


def fuzzy(request: str, title: Title) -> float:
    """The origin's fuzzy score of one title."""
    query = request.lower().strip()
    name = title.title.lower()
    if query == name:
        return 1.0
    if title.romanized and query == title.romanized.lower():
        return 0.95
    if any(query == other.lower() for other in title.alternatives):
        return 0.9
    if any(query == word.lower() for word in title.keywords):
        return 0.85
    for text, score in (
        (name, 0.8),
        (title.romanized.lower(), 0.75),
        *((other.lower(), 0.7) for other in title.alternatives),
        *((word.lower(), 0.65) for word in title.keywords),
    ):
        if text and (query in text or text in query):
            return score
    words = {word for word in query.split() if len(word) > 2}
    for text, score in (
        (name, 0.6),
        (title.romanized.lower(), 0.55),
        *((other.lower(), 0.5) for other in title.alternatives),
        *((word.lower(), 0.45) for word in title.keywords),
    ):
        if words & set(text.split()):
            return score
    letters, known = set(query), set(name)
    return 0.4 * len(letters & known) / max(1, len(letters | known))

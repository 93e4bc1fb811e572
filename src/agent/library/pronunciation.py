"""How a word in Latin letters is said: one character for each phone, by a list of English words and by rules.

Both come from pronunciation.json, which says how it was made. The rules read every letter with its neighbours, so any
word has a pronunciation; foreign ones get an English reading, the same whenever they are asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Final

# Where the rules look, in this order: distances from the letter that is read.
NEIGHBOURS: Final = (1, -1, 2, -2, 3, -3, 4)
EDGE: Final = "_" * 5
FIRST_PHONE: Final = "A"

# What a letter is read as, and what it is read as where the next neighbour in turn is a certain letter.
Rule = tuple[str, dict[str, "Rule"]]


@dataclass(frozen=True, slots=True)
class Pronunciations:
    """`phones[i]` (in ARPAbet) is written as the character `FIRST_PHONE` + i. `words` are what `rules` get wrong."""

    phones: tuple[str, ...]
    words: dict[str, str]
    rules: dict[str, Rule]

    def say(self, word: str) -> str:
        """The phones of a lower-case ASCII word; characters without a rule are silent."""
        return self.words.get(word) or self.by_rules(word)

    def by_rules(self, word: str) -> str:
        """The same without looking the word up."""
        padded = EDGE + word + EDGE
        out: list[str] = []
        for place, letter in enumerate(word, len(EDGE)):
            rule = self.rules.get(letter)
            if rule is None:
                continue
            for distance in NEIGHBOURS:
                closer = rule[1].get(padded[place + distance])
                if closer is None:
                    break
                rule = closer
            out.append(rule[0])
        return "".join(out)


@cache
def pronunciations() -> Pronunciations:
    """What is in use; the first call reads the file, some 10 ms."""
    stored = json.loads(resources.files("agent.library").joinpath("pronunciation.json").read_text("utf-8"))
    return Pronunciations(tuple(stored["phones"]), stored["words"], stored["rules"])


@lru_cache(maxsize=16384)
def say(word: str) -> str:
    """The phones of one folded word, a character each; empty for a word without letters."""
    return pronunciations().say(word)


def said(words: Iterable[str]) -> str:
    """The phones of several words, without gaps."""
    return "".join(map(say, words))

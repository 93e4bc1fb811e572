"""Where a reply may be cut for the voice: the first phrases early, the later ones in whole sentences."""

from __future__ import annotations

import re
from typing import Final

from agent.speaker.heard import may_cut

MINIMA: Final = (2, 16)
"""Characters of the first phrases, which may be clauses: `Well,` is enough to begin with."""
LATER_MIN: Final = 60
FIRST_MAX: Final = 70

_ABBREVIATIONS: Final = frozenset(
    {"mr", "mrs", "ms", "dr", "prof", "vs", "etc", "e.g", "i.e", "mt", "st", "rs", "nr", "jr", "sr", "u.s", "u.k"}
)
_CLOSERS: Final = "\"'”’»)]}"
_SENTENCE_END: Final = re.compile(rf"(?:[.!?…]+[{re.escape(_CLOSERS)}]*(?=\s)|[。！？｡]+[」』”’）]*|[।॥]+(?=\s)|\n+)")
_CLAUSE_END: Final = re.compile(rf"(?:[,;:][{re.escape(_CLOSERS)}]*(?=\s)|\s[–—-](?=\s)|[，、；：])")


class PhraseSplitter:
    """Takes a reply as it is written and gives it out in phrases to speak; joined they are the reply.

    The first two phrases end with a clause, so that the voice can begin and has no gap after a short beginning; then
    whole sentences follow, several short ones together, because a voice speaks them better and is asked less often.
    Decimals, initials and common abbreviations end nothing.
    """

    def __init__(self) -> None:
        self._text = ""
        self._given = 0

    def push(self, text: str) -> list[str]:
        """Add text; returns the phrases that are complete now."""
        self._text += text
        phrases = []
        while (end := self._cut()) is not None:
            phrases.append(self._text[:end])
            self._text = self._text[end:]
            self._given += 1
        return phrases

    def flush(self) -> list[str]:
        """The rest, as nothing follows."""
        rest, self._text = self._text, ""
        self._given += bool(rest)
        return [rest] if rest else []

    def _cut(self) -> int | None:
        early = self._given < len(MINIMA)
        minimum = MINIMA[self._given] if early else LATER_MIN
        ends = [m.end() for m in _SENTENCE_END.finditer(self._text) if not self._is_abbreviation(m)]
        if early:
            ends += [m.end() for m in _CLAUSE_END.finditer(self._text)]
            if not ends and len(self._text) > FIRST_MAX and (end := self._word_end(minimum)) is not None:
                ends = [end]
        return min((end for end in ends if len(self._text[:end].strip()) >= minimum), default=None)

    def _word_end(self, minimum: int) -> int | None:
        """Where a long beginning may be cut: at its last space, else between characters of a script without them."""
        space = self._text.rfind(" ", minimum, FIRST_MAX)
        if space != -1:
            return space
        return next((place for place in range(FIRST_MAX, minimum, -1) if may_cut(self._text, place)), None)

    def _is_abbreviation(self, match: re.Match[str]) -> bool:
        if match.group()[0] != ".":
            return False
        word = self._text[: match.start()].rsplit(maxsplit=1)[-1:] or [""]
        bare = word[0].strip("(\"'“‘").lower()
        return bare in _ABBREVIATIONS or (len(bare) == 1 and bare.isalpha() and bare not in {"i", "a"})


def speakable(text: str) -> bool:
    """Whether a voice has anything to say for it."""
    return any(character.isalnum() for character in text)

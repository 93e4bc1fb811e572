"""How much of a text has been heard, from how long its sound is."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

USERDATA_TRANSCRIPT: Final = "toy.transcript"
"""Where a frame names the `Transcript` of its utterance, for text that is not told frame by frame."""
USUAL_RATE: Final = 14.0
"""Units of text a voice speaks in a second."""

# A syllable or a whole word each: they take about three times as long as a letter.
_LONG: Final = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
# Scripts that set no spaces between words.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff65\U00020000-\U0003ffff]"
)
_JOINING: Final = "\u200d\ufe0e\ufe0f"
# Vowels written after (Thai, Lao) and before their consonant, and signs that set the next one below.
_JOINS_LEFT: Final = _JOINING + "\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3"
_JOINS_RIGHT: Final = _JOINING + "\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4\u17d2\u1039"


def units(text: str) -> int:
    """How long a text takes to say, in letters: a Chinese character, kana or Korean syllable counts three."""
    return len(text) + 2 * len(_LONG.findall(text))


def whole_words(text: str, spoken: float) -> int:
    """How many characters of `text` are whole words within its first `spoken` units.

    Scripts without spaces are cut between characters as they are written, never inside one.
    """
    said, end = 0.0, 0
    for place, character in enumerate(text):
        if may_cut(text, place):
            end = place
        said += units(character)
        if said > spoken + 1e-6:
            return end
    return len(text)


def may_cut(text: str, place: int) -> bool:
    """Whether a word, or a character of a script without spaces, begins at this place of `text`."""
    if place == 0 or text[place].isspace() or text[place - 1].isspace():
        return True
    if unicodedata.category(text[place])[0] == "M" or text[place] in _JOINS_LEFT or text[place - 1] in _JOINS_RIGHT:
        return False
    return bool(_UNSPACED.match(text[place]) or _UNSPACED.match(text[place - 1]))


@dataclass(slots=True)
class _Phrase:
    """A text and where its sound begins and ends, in samples; `end` is None where that is not known yet."""

    text: str
    start: int
    end: int | None = None


class Transcript:
    """What an utterance says, as it becomes known along with its sound or beside it."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._phrases: list[_Phrase] = []

    def add(self, text: str, at: int) -> None:
        """`text` sounds from sample `at` on; more of it belongs to the same phrase, and an empty text ends that."""
        phrase = self._phrases[-1] if self._phrases else None
        if phrase is None or phrase.end is not None:
            if text:
                self._phrases.append(_Phrase(text, at))
        elif text:
            phrase.text += text
        else:
            phrase.end = at

    def heard(self, sounded: int, received: int) -> str | None:
        """The words that were heard whole when `sounded` of the `received` samples were; None where no text was told.

        Within a phrase text counts as spread evenly over its sound; the length of one that has no end yet is
        estimated.
        """
        if not self._phrases:
            return None
        text = ""
        for phrase in self._phrases:
            if sounded <= phrase.start:
                break
            length = units(phrase.text)
            usual = phrase.start + int(length / USUAL_RATE * self._sample_rate)
            end = phrase.end if phrase.end is not None else max(received, usual)
            share = (sounded - phrase.start) / max(end - phrase.start, 1)
            text += phrase.text[: whole_words(phrase.text, share * length)]
            if share < 1:
                break
        # An emoji alone is nothing that was said.
        return text.strip() if any(character.isalnum() for character in text) else ""

"""The asking in front of a name, recognised by its sound where its words were misheard: "delete the story of"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np

from agent.library.lexical import fold
from agent.library.mishearing import channel
from agent.library.pronunciation import said, say

_ASKING: Final = (
    "play", "play me", "play the song", "play the story", "can you play", "could you play", "could you please play me",
    "can you play the song called", "please play", "put on", "sing", "sing me", "let's listen to", "let's hear",
    "I want to hear", "I wanna hear", "I'd like to hear", "I'd like to listen to", "I want to listen to",
    "tell me", "tell me the story of", "tell us", "can you tell me", "can you tell me the story of",
    "could you tell us the story", "please tell me", "read", "read me", "read the story of", "please read me",
    "can you read me", "the story called", "the song called", "the story of",
)  # fmt: skip
# How much of a request is listened to for the asking, and how surely and how early it must have been said.
_PHONES: Final = 32
_SURE: Final = 0.4
_START: Final = 2
_TRIED: Final = 3


@cache
def _phrases() -> tuple[str, ...]:
    return tuple(said(fold(phrase)) for phrase in _ASKING)


def without_misheard_asking(words: Sequence[str]) -> tuple[str, ...]:
    """What of a request's words follows the asking, () where none is recognised or nothing follows it."""
    heard = said(words)[:_PHONES]
    odds, ends = channel().evidence(_phrases(), heard)
    share = odds / channel().most(_phrases())
    for place in np.argsort(-odds, kind="stable")[:_TRIED].tolist():
        end = int(ends[place])
        if share[place] >= _SURE and channel().start(_phrases()[place], heard, end) <= _START:
            gone = 0
            for number, word in enumerate(words):
                if 2 * (end - gone) < len(say(word)) or end <= gone:
                    return tuple(words[number:]) if number else ()
                gone += len(say(word))
            return ()
    return ()

"""Words of requests and titles: folding to comparable tokens, their stems, what carries no meaning, and grams."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from agent.library.phonetic import romanise

_APOSTROPHES: Final = re.compile(r"['’‘`ʼ´]")
_NOT_WORD: Final = re.compile(r"[^a-z0-9]+")
_AND: Final = re.compile(r"\s*[&+]\s*")


def _list(text: str) -> list[str]:
    return text.split()


_SMALL: Final = _list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS: Final = _list("ten twenty thirty forty fifty sixty seventy eighty ninety")

# What a sentence needs and a title is not known by, in the languages children ask in (as `fold` writes them).
FUNCTION_WORDS: Final = frozenset(
    _list("""
    a an the and or of to in on at by for with from as is are was were be been am do does did has have had that which
    who whose what where when why how it its this these those there here he she they we you i me my your his her their
    our us them him will would can could should may might must not no so if then than too very just also into up out
    down over off one some any im id ive ill lets thats whos
    der die das den dem des ein eine einen einem einer und oder von vom zu zum zur im am auf mit fur ist sind ich du er
    sie wir mir mich dir nicht wie was wo
    le la les l un une des du de d et ou a au aux en sur pour avec est sont je tu il elle nous on qui que ce cette
    mon ma
    el los las lo una unos unas y o del al con por para es son yo mi me te se que
    os as um uma e da do dos das no na nos nas em com por para eu meu minha
    ka ki ke ko se mein me hai hain ho aur ek ye yeh wo woh mera meri hum tum
    de shi le ge zhe na
    """)
)


def _number(token: str) -> str:
    if not token.isdigit() or len(token) > 2:
        return token
    value = int(token)
    if value < 20:
        return _SMALL[value]
    return _TENS[value // 10 - 1] + (" " + _SMALL[value % 10] if value % 10 else "")


@lru_cache(maxsize=4096)
def fold(text: str) -> tuple[str, ...]:
    """The words of `text`, romanised, in lower-case ASCII, numbers below a hundred as English words.

    Two spellings of one name in whatever scripts fold to the same or to similar words. Nothing is thrown away but
    punctuation: a text without letters or digits folds to ().
    """
    text = romanise(_AND.sub(" and ", _APOSTROPHES.sub("", text)))
    words = _NOT_WORD.sub(" ", _APOSTROPHES.sub("", text)).split()
    return tuple(part for word in words for part in _number(word).split())


@lru_cache(maxsize=16384)
def stem(word: str) -> str:
    """An English word without its commonest endings; other words mostly unchanged."""
    if len(word) > 4 and not word.endswith("ss"):
        for ending, replacement in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", "e"), ("s", "")):
            if word.endswith(ending):
                word = word[: -len(ending)] + replacement
                break
        if len(word) > 3 and word[-1] == word[-2] and word[-1] in "bdgmnprt":
            word = word[:-1]
    elif len(word) == 4 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word[-1] == "e" else word


def content_words(words: Sequence[str]) -> tuple[str, ...]:
    """`words` without function words; all of them where nothing else would be left."""
    kept = tuple(word for word in words if word not in FUNCTION_WORDS)
    return kept or tuple(words)


def grams(words: Iterable[str], size: int = 3) -> list[str]:
    """Overlapping character grams of the words joined without spaces, with markers at both ends."""
    joined = f"<{''.join(words)}>"
    return [joined[place : place + size] for place in range(max(1, len(joined) - size + 1))]


def phone_grams(phones: str) -> list[str]:
    """Pairs of neighbouring phones, and of phones with one between them, which may have been misheard."""
    marked = f"<{phones}>"
    return [marked[place : place + 2] for place in range(len(marked) - 1)] + [
        marked[place] + "?" + marked[place + 2] for place in range(len(marked) - 2)
    ]

"""What recognisers can be told of the language spoken: a hint they do not know has every sentence refused."""

from __future__ import annotations

from typing import Final

from agent.greeting.languages import normalise

# Whisper's, by ISO 639-1: what OpenAI's models and their like take.
_KNOWN: Final = frozenset(
    "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha he hi hr ht hu hy id is it "
    "ja ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl sn "
    "so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo zh".split()
)


def hint(language: str | None) -> str | None:
    """The code to name for `language`, in whatever spelling; None where the recogniser is to find out by itself."""
    tag = normalise(language)
    primary = tag.split("-")[0] if tag else None
    return primary if primary in _KNOWN else None

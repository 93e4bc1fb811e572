"""Words that control what sounds, understood without a model: "stop", "next", "pause", "go on", "again", "louder"."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Final

_LONGEST: Final = 60
_UNHEARD: Final = frozenset("\u093c\u09bc\u0a3c\u0abc\u0b3c\u0cbc'’")
_UNSPACED: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_GREETINGS: Final = ("hey", "hello", "hi", "ok", "okay", "hallo", "hola", "सुनो")


class Control(StrEnum):
    """What a spoken control word asks for."""

    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    NEXT = "next"
    PREVIOUS = "previous"
    AGAIN = "again"
    LOUDER = "louder"
    QUIETER = "quieter"


@dataclass(frozen=True, slots=True)
class _Language:
    """One language's table. `with_things` are the phrases that may name what they are about: "stop the music"."""

    phrases: dict[str, Control]
    with_things: frozenset[str]
    things: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


class ControlWords:
    """Finds control words in transcripts. `names` are those the toy listens to: "stop, Toy" is a stop."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        called = tuple(filter(None, map(_normal, names)))
        self._names = called + tuple(_normal(f"{greeting} {name}") for name in called for greeting in _GREETINGS)

    def match(self, transcript: str, language: str | None = None, *, final: bool = True) -> Control | None:
        """The control a transcript is as a whole; None for every other sentence, whatever words are in it.

        `language` (BCP 47) is tried first, then all others: children mix them, and recognisers guess. With `final`
        False, of a transcript that may go on, only a stop or a pause counts: what can be taken back.
        """
        if len(transcript) > _LONGEST:
            return None
        text = _normal(transcript)
        if not text:
            return None
        for table in _ordered(language):
            control = self._find(text, table)
            if control is not None:
                return control if final or control in {Control.STOP, Control.PAUSE} else None
        return None

    def _find(self, text: str, table: _Language) -> Control | None:
        """The phrase that is left when polite words and names are taken off either end, in whatever order."""
        seen, waiting = {text}, [text]
        while waiting:
            candidate = waiting.pop()
            control = table.phrases.get(candidate) or table.phrases.get(_once(candidate))
            if control is not None:
                return control
            for rest in _shorter(candidate, table.things, table.things):
                if rest in table.with_things:
                    return table.phrases[rest]
            for shorter in _shorter(candidate, (*self._names, *table.before), (*self._names, *table.after)):
                if shorter not in seen:
                    seen.add(shorter)
                    waiting.append(shorter)
        return None


def match(transcript: str, language: str | None = None, *, final: bool = True) -> Control | None:
    """`ControlWords().match`, for a toy without a name."""
    return _NAMELESS.match(transcript, language, final=final)


def _shorter(text: str, before: Iterable[str], after: Iterable[str]) -> Iterator[str]:
    for word in before:
        if rest := _without_start(text, word):
            yield rest
    for word in after:
        if rest := _without_end(text, word):
            yield rest


def _without_start(text: str, word: str) -> str | None:
    if not text.startswith(word) or len(text) == len(word):
        return None
    rest = text[len(word) :]
    return rest.lstrip() if rest[0] == " " or _UNSPACED.match(word[-1]) else None


def _without_end(text: str, word: str) -> str | None:
    if not text.endswith(word) or len(text) == len(word):
        return None
    rest = text[: -len(word)]
    return rest.rstrip() if rest[-1] == " " or _UNSPACED.match(word[0]) else None


def _once(text: str) -> str:
    """A phrase said several times in a row, once: "stop stop stop"."""
    words = text.split()
    for size in range(1, len(words) // 2 + 1):
        if len(words) % size == 0 and words == words[:size] * (len(words) // size):
            return " ".join(words[:size])
    for size in range(1, len(text) // 2 + 1):
        if _UNSPACED.match(text) and len(text) % size == 0 and text == text[:size] * (len(text) // size):
            return text[:size]
    return text


def _normal(text: str) -> str:
    """Words in one spelling: no case, punctuation, accents or nukta; scripts without spaces without any."""
    decomposed = unicodedata.normalize("NFKD", text.casefold()).replace("\u0901", "\u0902")
    kept = []
    for char in decomposed:
        category = unicodedata.category(char)
        if char in _UNHEARD or category == "Cf" or "\u0300" <= char <= "\u036f":
            continue
        kept.append(char if category[0] in "LMN" else " ")
    words = unicodedata.normalize("NFC", " ".join("".join(kept).split()))
    return re.sub(rf"(?<={_UNSPACED.pattern}) (?={_UNSPACED.pattern})", "", words)


@cache
def _tables() -> dict[str, _Language]:
    data = tomllib.loads(files(__package__).joinpath("control_words.toml").read_text("utf-8"))
    return {language: _table(rows) for language, rows in data.items()}


def _table(rows: dict[str, list[str]]) -> _Language:
    def spellings(name: str) -> list[str]:
        return [_normal(phrase) for phrase in rows.get(name, [])]

    phrases: dict[str, Control] = {}
    for control in Control:
        for phrase in spellings(control):
            phrases.setdefault(phrase, control)
    alone = set(spellings("alone"))
    with_things = {
        phrase
        for phrase, control in phrases.items()
        if phrase not in alone and control not in {Control.LOUDER, Control.QUIETER}
    }
    return _Language(
        phrases, frozenset(with_things), *(tuple(spellings(name)) for name in ("things", "before", "after"))
    )


def _ordered(language: str | None) -> list[_Language]:
    tables = _tables()
    base = (language or "").replace("_", "-").split("-")[0].lower()
    first = [tables[base]] if base in tables else []
    return first + [table for name, table in tables.items() if name != base]


_NAMELESS: Final = ControlWords()

"""Text of a prompt: values made harmless, sentences without holes, an estimate of tokens."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

HOLE: Final = "\ue000"
"""Stands where a template wanted a value that nobody knows."""
NAME_HOLE: Final = "\ue001"
"""The same for the child's name, which "the child" can often replace."""
USED: Final = "\ue002"
"""Before and after the number of a value that was written here."""
PRIVATE: Final = re.compile(r"[\ue000-\uf8ff]")

_JOINERS: Final = "\u200c\u200d"
_MARKUP: Final = re.compile(r"[<>{}`|\\]")
# What goes on in lower case is the same sentence: 'Say "Hello!" first.'
_SENTENCE_END: Final = re.compile(r"(?<=[.!?…।])(?=\s+[^a-z\s])|(?<=[.!?…।][\"'”’)])(?=\s+[^a-z\s])|(?<=[。！？])")
_LIST_MARKER: Final = re.compile(r"\d{1,3}[.)] ")
# No two neighbours of a pattern may take the same holes: a template can write tens of thousands in a row.
_PARENTHESIS: Final = re.compile(rf"\s?[(\[（][^()\[\]（）{HOLE}{NAME_HOLE}]*[{HOLE}{NAME_HOLE}][^()\[\]（）]*[)\]）]")
_RELATIVE: Final = re.compile(
    rf",\s(?:and\s)?(?:who|whose|which|aged?)\b[^,.;!?{HOLE}{NAME_HOLE}]*[{HOLE}{NAME_HOLE}][^,.;!?]*,?", re.IGNORECASE
)
# A sentence that speaks of the name itself, holds words to be said, or has no others, makes no sense with another word
# in its place.
_ABOUT_NAME: Final = re.compile(
    rf"\b(?:name|named|names|call|called|hello|hi|hey|dear|say|greet\w*)\b|[\"“”«»‘]|[:：]\W{{0,3}}{NAME_HOLE}|^\W*$",
    re.IGNORECASE,
)


def harmless(value: str, limit: int) -> str:
    """`value` as data: one line, no control or private characters, no markup, at most `limit` characters."""
    kept = (
        " " if char.isspace() else char
        for char in unicodedata.normalize("NFC", value[: limit * 8])
        if char.isspace() or char in _JOINERS or unicodedata.category(char)[0] != "C"
    )
    return " ".join(_MARKUP.sub(" ", "".join(kept)).split())[:limit].strip()


def without_holes(text: str) -> str:
    """Drop what depends on a hole: its parenthesis or relative clause, else its sentence; and headings left alone."""
    lines: list[str] = []
    emptied = False
    for line in text.split("\n"):
        whole = line if not _holed(line) else _mend_line(line)
        if emptied and (not whole.strip() or whole.rstrip().endswith(":")):
            # The list under a heading has gone: so must the heading.
            while lines and not lines[-1].strip():
                lines.pop()
            if lines and lines[-1].rstrip().endswith(":"):
                lines.pop()
        gone = _holed(line) and not _wordy(whole)
        if not gone:
            lines.append(whole)
        emptied = gone or (emptied and not whole.strip())
    if emptied:
        while lines and (not lines[-1].strip() or lines[-1].rstrip().endswith(":")):
            lines.pop()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def estimate_tokens(text: str) -> int:
    """About how many tokens: four ASCII characters each, one and a half of any other."""
    plain = sum(1 for char in text if char < "\x80")
    return round(plain / 4 + (len(text) - plain) / 1.5)


def _holed(text: str) -> bool:
    return HOLE in text or NAME_HOLE in text


def _wordy(text: str) -> bool:
    return any(char.isalnum() for char in text)


def _mend_line(line: str) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    # Runs of blanks would make the patterns below slow.
    text = " ".join(line.split())
    marker = _LIST_MARKER.match(text)
    number = marker[0] if marker else ""
    sentences = [_mend_sentence(part) for part in _SENTENCE_END.split(text[len(number) :])]
    mended = "".join(part for part in sentences if part).strip()
    return indent + number + mended if mended else ""


def _mend_sentence(sentence: str) -> str:
    if not _holed(sentence):
        return sentence
    sentence = _PARENTHESIS.sub("", sentence)
    sentence = _RELATIVE.sub(lambda match: "," if match[0].endswith(",") else "", sentence)
    sentence = re.sub(r",\s*(?=[.;!?]|$)", "", sentence)
    if NAME_HOLE in sentence and not _ABOUT_NAME.search(sentence):
        sentence = sentence.replace(NAME_HOLE, "the child")
        if sentence.lstrip().startswith("the child"):
            sentence = sentence.replace("the child", "The child", 1)
    return "" if _holed(sentence) or not _wordy(sentence) else sentence

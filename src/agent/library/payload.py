"""A title as the payload of a Qdrant point, and back. What is read was written by others and is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agent.errors import LibraryError
from agent.library.titles import Kind, Title, confined

SECTION_FIELDS: Final[Mapping[Kind, str]] = {"music": "language", "story": "category"}
"""Which payload field holds a title's section."""

_MAX_TEXT: Final = 500
_MAX_WORDS: Final = 200


def to_payload(title: Title) -> dict[str, Any]:
    """The payload of a title; absent texts are empty."""
    return {
        "title": title.title,
        SECTION_FIELDS[title.kind]: title.section,
        "romanized": title.romanized,
        "alternatives": list(title.alternatives),
        "keywords": list(title.keywords),
        "filename": title.filename,
    }


def from_payload(kind: Kind, number: int, payload: Mapping[str, Any]) -> Title:
    """The title of a payload: a missing field is empty, an unknown one is passed over.

    Raises LibraryError where there is no title, or a filename that leaves its folder.
    """
    title = one_text(payload.get("title"))
    if not title:
        raise LibraryError("it has no title")
    if not 0 <= number < 2**63:
        raise LibraryError("its id is not an integer from 0 to 2**63")
    filename = one_text(payload.get("filename"))
    section = one_text(payload.get(SECTION_FIELDS[kind]))
    if filename and not confined(filename):
        raise LibraryError("its filename leaves its folder")
    if section and not confined(section):
        raise LibraryError("its section cannot be a folder's name")
    return Title(
        id=number,
        kind=kind,
        title=title,
        section=section,
        romanized=one_text(payload.get("romanized")),
        alternatives=many_texts(payload.get("alternatives")),
        keywords=many_texts(payload.get("keywords")),
        filename=filename,
    )


def one_text(value: Any) -> str:
    """`value` as a line of text: control signs and lone surrogates dropped, at most 500 characters; else empty."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    kept = "".join(sign if sign.isprintable() or sign in _JOINERS else " " for sign in str(value)[: 4 * _MAX_TEXT])
    return " ".join(kept.split())[:_MAX_TEXT].strip()


# Not printable by themselves, but what some scripts are written with.
_JOINERS: Final = "\u200c\u200d"


def many_texts(value: Any) -> tuple[str, ...]:
    """`value` (a list, or one text with commas) as texts without repeats, at most 200."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        return ()
    texts = (one_text(item) for item in value[: 5 * _MAX_WORDS])
    return tuple(dict.fromkeys(text for text in texts if text))[:_MAX_WORDS]

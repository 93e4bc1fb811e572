"""What the library knows of one song or story, wherever it is kept."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["music", "story"]

KINDS: Final[tuple[Kind, ...]] = ("music", "story")


@dataclass(frozen=True, slots=True)
class Title:
    """One song or story. Texts are kept in the script they were written in; an absent one is empty.

    `id` is stable across loads: 0 <= id < 2**63. `section` is a song's language or a story's category, spelt as in the
    catalogue. `filename` is a path relative to the section's folder and never leaves it.
    """

    id: int
    kind: Kind
    title: str
    section: str
    romanized: str = ""
    alternatives: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    filename: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything the title is called: the title itself, its romanised form, its alternatives; no repeats."""
        return tuple(dict.fromkeys(name for name in (self.title, self.romanized, *self.alternatives) if name))


def stable_id(kind: Kind, section: str, title: str) -> int:
    """The id a title has wherever it is loaded first: 0 <= id < 2**63, from its kind, section and title alone.

    Texts that look the same (Unicode normal form C, surrounding blanks) count as the same.
    """
    parts = (kind, *(unicodedata.normalize("NFC", part).strip() for part in (section, title)))
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8]) >> 1


def confined(filename: str) -> bool:
    """Whether `filename` is a relative path that stays in its folder: no `..`, root, drive, scheme or control sign."""
    if not filename or len(filename) > 1000 or any(unicodedata.category(sign) in {"Cc", "Cs"} for sign in filename):
        return False
    if filename[0] in "/\\~" or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", filename):
        return False
    return not {"..", "."} & set(re.split(r"[/\\]", filename))


def embedded_text(title: Title) -> str:
    """What of a title its vector is made from: a sentence of what it is about, then its names.

    Vectors are there for descriptions; names are found by their letters and sounds. So the keywords come first, and
    names in a script that the usual model reads letter by letter are left out where there are others.
    """
    names = [name for name in title.names if _is_latin(name)] or list(title.names)
    about = ", ".join([word for word in title.keywords if _is_latin(word)] or title.keywords)
    kind = "song" if title.kind == "music" else "story"
    return f"A {kind} about {about}: {'. '.join(names)}" if about else f"A {kind}: {'. '.join(names)}"


def _is_latin(text: str) -> bool:
    return all(ord(char) < 0x250 or not char.isalpha() for char in text)

"""How words sound, whatever they are written in: romanisation of every script and a key of consonant classes.

Both sides of a comparison go through the same functions, so a rule needs to be consistent, not linguistically exact.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from anyascii import anyascii


def _list(text: str) -> list[str]:
    return text.split()


# The Indic blocks of Unicode (Devanagari to Malayalam) share one layout: the offset in the block names the letter.
_INDIC_START: Final = 0x0900
_INDIC_END: Final = 0x0D80
_VIRAMA: Final = 0x4D
_NUKTA: Final = 0x3C
_CONSONANTS: Final = dict(
    zip(
        range(0x15, 0x3A),
        _list("k kh g gh n ch chh j jh n t th d dh n t th d dh n n p ph b bh m y r r l l zh v sh sh s h"),
        strict=True,
    )
)
_VOWELS: Final = dict(zip(range(0x05, 0x15), _list("a a i i u u ri li e e e ai o o o au"), strict=True))
_SIGNS: Final = dict(zip(range(0x3E, 0x4D), _list("a i i u u ri ri e e e ai o o o au"), strict=True))
_OTHERS: Final = {0x01: "n", 0x02: "n", 0x03: "h", 0x70: "n"} | {
    0x7A + place: letter for place, letter in enumerate("nnrllk")
}
# Scripts whose languages leave the inherent vowel of a last consonant unspoken.
_DROPS_LAST_VOWEL: Final = frozenset({0x0900, 0x0980, 0x0A00, 0x0A80})


def _indic(run: str) -> str:
    """One word in an Indic script, in Latin letters, with the inherent vowels that the script does not write."""
    out: list[str] = []
    inherent = False  # the last letter is a consonant whose inherent vowel is still undecided
    block = 0
    for char in run:
        code = ord(char)
        block, offset = code & ~0x7F, code & 0x7F
        if offset in _CONSONANTS:
            out.extend(("a", _CONSONANTS[offset]) if inherent else (_CONSONANTS[offset],))
            inherent = True
        elif offset == _NUKTA:
            if out and out[-1] in {"j", "ph"}:
                out[-1] = {"j": "z", "ph": "f"}[out[-1]]
        elif offset in _SIGNS:
            out.append(_SIGNS[offset])
            inherent = False
        elif offset == _VIRAMA:
            inherent = False
        else:
            if inherent:
                out.append("a")
                inherent = False
            if 0x66 <= offset <= 0x6F:
                out.append(str(offset - 0x66))
            else:
                out.append(_VOWELS.get(offset) or _OTHERS.get(offset, ""))
    if inherent and block not in _DROPS_LAST_VOWEL:
        out.append("a")
    return "".join(out)


_INDIC_RUN: Final = re.compile(f"[{chr(_INDIC_START)}-{chr(_INDIC_END - 1)}\u200c\u200d]+")
_SYLLABLE: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SYLLABIC: Final = re.compile(r"[\u2e80-\u2fdf\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]+")


def _syllables(match: re.Match[str]) -> str:
    return f" {_SYLLABLE.sub(' ', anyascii(match[0]))} "


@lru_cache(maxsize=4096)
def romanise(text: str) -> str:
    """`text` in lower-case ASCII. Chinese and Korean come syllable by syllable; Indic scripts with inherent vowels."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _INDIC_RUN.sub(lambda match: _indic(match[0].replace("\u200c", "").replace("\u200d", "")), text)
    text = _SYLLABIC.sub(_syllables, text)
    return anyascii(text).lower()


# Applied in order to a lower-case ASCII word. Capitals are the classes: what is written differently for one sound,
# or often heard for another, falls together. Voiced and unvoiced stops are one class, as they are in Tamil spelling
# and in noisy speech.
_RULES: Final = tuple(
    (re.compile(pattern), sound)
    for pattern, sound in (
        (r"^(?:kn|gn|pn|mn)", "N"),
        (r"^wr", "R"),
        (r"^ps", "S"),
        (r"^x", "C"),
        (r"^(?:y|h)(?=[aeiou])", ""),
        (r"sch(?=o)", "SK"),
        (r"tch|dge?(?=[eiy]|$)|sch|zh|chh", "C"),
        (r"ch(?=r)|ck|cq", "K"),
        (r"[cst]i(?=on|ou|al)", "C"),
        (r"ch|sh|j", "C"),
        (r"ph", "F"),
        (r"gh(?=t)|(?<=[aeiou])gh$|(?<=[aeiou])gh(?=[bcdfklmnprstvw])", ""),
        (r"c(?=[eiy])", "S"),
        (r"mb$", "M"),
        (r"x", "KS"),
        (r"qu", "KV"),
        (r"[ckgq]", "K"),
        (r"[td]", "T"),
        (r"[pb]", "P"),
        (r"[vw]", "V"),
        (r"[sz]", "S"),
        (r"f", "F"),
        (r"m", "M"),
        (r"n", "N"),
        (r"l", "L"),
        (r"r", "R"),
        (r"^[aeiouy]+", "A"),
        (r"[aeiouy]+", "a"),
        (r"[^A-Za0-9]", ""),
        (r"(.)\1+", r"\1"),
    )
)
_DOUBLED: Final = re.compile(r"(.)\1+")


@lru_cache(maxsize=65536)
def syllable_key(word: str) -> str:
    """The consonant classes of one ASCII word with `a` for any vowels between them and `A` for leading ones."""
    for pattern, sound in _RULES:
        word = pattern.sub(sound, word)
    return word


@lru_cache(maxsize=65536)
def sound_key(word: str) -> str:
    """The consonant classes of one ASCII word, a leading vowel as `A`; empty for a word without letters or digits."""
    return _DOUBLED.sub(r"\1", syllable_key(word).replace("a", ""))

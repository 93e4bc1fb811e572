"""Language tags as people and devices write them: `hi-IN`, `zh_CN`, `hin`, `Hindi`, `हिन्दी`.

A table, not `langcodes`: that library is 60 ms of import in every warm process, and knows names only with a
further package. This one is looked at on the way to the first sound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_TAG: Final = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8}){0,6}")
_MAX_LENGTH: Final = 64

# Primary subtag: its other codes (ISO 639-2 and -3, macrolanguage members) and its names, all lower case.
_OTHER_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "ar": ("ara", "arabic", "العربية"),
    "as": ("asm", "assamese", "অসমীয়া"),
    "bn": ("ben", "bengali", "bangla", "বাংলা"),
    "cs": ("ces", "cze", "czech", "čeština"),
    "da": ("dan", "danish", "dansk"),
    "de": ("deu", "ger", "german", "deutsch"),
    "el": ("ell", "gre", "greek", "ελληνικά"),
    "en": ("eng", "english"),
    "es": ("spa", "spanish", "español", "castilian"),
    "fa": ("fas", "per", "persian", "farsi", "فارسی"),
    "fi": ("fin", "finnish", "suomi"),
    "fr": ("fra", "fre", "french", "français"),
    "gu": ("guj", "gujarati", "ગુજરાતી"),
    "he": ("heb", "iw", "hebrew", "עברית"),
    "hi": ("hin", "hindi", "हिन्दी", "हिंदी"),
    "hu": ("hun", "hungarian", "magyar"),
    "id": ("ind", "in", "indonesian", "bahasa indonesia"),
    "it": ("ita", "italian", "italiano"),
    "ja": ("jpn", "japanese", "日本語"),
    "kn": ("kan", "kannada", "ಕನ್ನಡ"),
    "ko": ("kor", "korean", "한국어"),
    "ml": ("mal", "malayalam", "മലയാളം"),
    "mr": ("mar", "marathi", "मराठी"),
    "ms": ("msa", "may", "zsm", "malay", "bahasa melayu"),
    "ne": ("nep", "nepali", "नेपाली"),
    "nl": ("nld", "dut", "dutch", "nederlands"),
    "no": ("nor", "nb", "nob", "nn", "norwegian", "norsk"),
    "or": ("ori", "ory", "odia", "oriya", "ଓଡ଼ିଆ"),
    "pa": ("pan", "punjabi", "panjabi", "ਪੰਜਾਬੀ"),
    "pl": ("pol", "polish", "polski"),
    "pt": ("por", "portuguese", "português"),
    "ro": ("ron", "rum", "romanian", "română"),
    "ru": ("rus", "russian", "русский"),
    "sv": ("swe", "swedish", "svenska"),
    "ta": ("tam", "tamil", "தமிழ்"),
    "te": ("tel", "telugu", "తెలుగు"),
    "th": ("tha", "thai", "ไทย"),
    "tr": ("tur", "turkish", "türkçe"),
    "uk": ("ukr", "ukrainian", "українська"),
    "ur": ("urd", "urdu", "اردو"),
    "vi": ("vie", "vietnamese", "tiếng việt"),
    "zh": ("zho", "chi", "cmn", "chinese", "mandarin", "中文", "汉语", "漢語", "普通话", "普通話", "国语", "國語"),
}
_PRIMARY: Final = {name: tag for tag, names in _OTHER_NAMES.items() for name in (tag, *names)}


def normalise(text: object) -> str | None:
    """The BCP 47 tag, lower case, its primary subtag the shortest ISO 639 code; None where it is none.

    Names in English or in the language itself count, with or without a remark in brackets: `Chinese (Simplified)`.
    """
    if not isinstance(text, str) or len(text) > _MAX_LENGTH:
        return None
    plain = re.split(r"[(,;]", text, maxsplit=1)[0].strip().lower()
    if named := _PRIMARY.get(plain):
        return named
    tag = plain.split(".")[0].replace("_", "-")
    if not _TAG.fullmatch(tag):
        return None
    primary, *rest = tag.split("-")
    return "-".join((_PRIMARY.get(primary, primary), *rest))


def lookup_order(tag: str) -> Iterator[str]:
    """RFC 4647 lookup: the tag, then shorter and shorter ones: `zh-hant-tw`, `zh-hant`, `zh`."""
    while tag:
        yield tag
        tag = tag.rpartition("-")[0]
        if len(tag) > 2 and tag[-2] == "-":  # a single-letter subtag never stands last
            tag = tag[:-2]

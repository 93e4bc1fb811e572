"""Numbers, times, telephone numbers, money and measures as they are said in a language."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Final

from num2words import num2words

_LONGEST: Final = 15
_CURRENCY: Final = "$€£₹¥"
# What follows a number and belongs to no other word.
_END: Final = r"(?![\w°%])"
# Thousands and decimals: 1,234.5 (also 1,00,000) here, 1.234,5 there, where a full stop may be decimal too.
_POINT_NUMBER: Final = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?"
_COMMA_NUMBER: Final = r"(?:\d{1,3}(?:[.\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:[.,]\d+(?![.,]\d))?"

# A number with all that may belong to it; what comes after such a match decides nothing any more.
EXTENT: Final = re.compile(
    rf"(?:[{_CURRENCY}]\s?|[+\-−](?=\d))?\(?\d(?:[\d.,:/()–−~-]|[ \u00a0](?=[\d(–−~-])){{0,60}}"
    rf"[ \u00a0]?(?P<suffix>[A-Za-z\u0900-\u0dff点钟万亿°%{_CURRENCY}/.']{{0,12}}(?:[ \u00a0][\u0900-\u0dff]{{0,8}})?)"
)
BEHIND: Final = 24
"""As many characters before a number may decide how it is said."""
_AFTER: Final = ("clock", "scales", "call_after")
_LISTS: Final = (*_AFTER, "call")
_SCALES: Final = ("hundred", "thousand", "million", "millions", "billion", "billions", "trillion",
                  "lakh", "lakhs", "crore", "crores")  # fmt: skip
_SUFFIXES: Final = ("am", "a.m.", "pm", "p.m.", "st", "nd", "rd", "th", "°C", "°F", "%", *_CURRENCY)

_NO_LETTER: Final = r"(?![\w\u0300-\u036f\u0900-\u0dff])"
_UNSPACED: Final = "点钟万亿"
_IDEOGRAPH: Final = re.compile("[\u3400-\u9fff]")
# Between "call" and what is called.
_BETWEEN: Final = r"(?:\W+(?:the|le|la|el|al|a|il|o|die|der|den|het|on|up|to|at|unter|नंबर|number))?\W*"
_CALLED: Final = re.compile(r"(\d{3,4})(?![\w])(?![.,:/-]\d)(?![ \u00a0]\d)")
_COUNT: Final = re.compile(r"\d{1,4}(?:[-–]\d{1,4}){2,}(?![\w/:-])(?![.,]\d)")
_EQUALS: Final = r"(?=[ \u00a0]?=)"

_UNCHANGED: Final = re.compile(r"\d+(?:\.\d+){2,}|\d{4}-\d{2}-\d{2}|\d{1,4}(?:/\d{1,4}){2}")
_PHONE: Final = re.compile(
    r"(?:(?:\+\d{1,3}[ \u00a0-]?)?(?:\(\d{1,5}\)[ \u00a0-]?|\d{1,5}-)(?:\d{1,6}-)*\d{2,8}"
    r"|\+?\d{1,5}(?:[ \u00a0]\d{2,8}){1,6}|\+?\d{7,20})(?![.,:/-]?\d)"
)
_HOURS: Final = r"([01]?\d|2[0-4]):([0-5]\d)(?![:\d])"
_TIME: Final = re.compile(rf"{_HOURS}(?:[ \u00a0]?([ap])(?:\.m\.|m\b))?", re.IGNORECASE)
_CLOCK: Final = re.compile(r"(1[0-2]|0?[1-9])[ \u00a0]?([ap])(?:\.m\.|m\b)", re.IGNORECASE)
_FRACTION: Final = re.compile(rf"(\d+)/(\d+){_END}(?!/)")
_ORDINAL: Final = re.compile(r"(\d+)(?:st|nd|rd|th)\b")


@dataclass(frozen=True, slots=True)
class _Patterns:
    """What holds a number, as numbers are written in a language and with the words that stand beside them."""

    time_and_word: re.Pattern[str]
    time_before_word: re.Pattern[str]
    call: re.Pattern[str]
    called: re.Pattern[str]
    scaled: re.Pattern[str]
    range: re.Pattern[str]
    sum: re.Pattern[str]
    money: re.Pattern[str]
    percent: re.Pattern[str]
    measure: re.Pattern[str]
    minus: re.Pattern[str]
    plain: re.Pattern[str]


def _any_of(words: Iterable[str]) -> str:
    """A pattern for one of these as a whole word, the longest that fits; for none of them one that never matches."""
    ends = {word: "" if word[-1] in _UNSPACED else _NO_LETTER for word in words}
    starts = {word: "" if _IDEOGRAPH.match(word) else r"(?<!\w)" for word in words}
    patterns = (starts[word] + re.escape(word) + ends[word] for word in sorted(words, key=len, reverse=True))
    return f"(?:{'|'.join(patterns) or '(?!)'})"


@cache
def _patterns(language: str) -> _Patterns:
    table = _tables().get(language, {})
    number = _COMMA_NUMBER if table.get("comma_decimals") else _POINT_NUMBER
    clock = table.get("clock", ())
    money = rf"([{_CURRENCY}])[ \u00a0]?({number})"
    scale = _any_of((*_SCALES, *table.get("scales", ())))
    return _Patterns(
        # "7:30 Uhr" is said as "7:30"; in "8:00 Uhr", and where the word goes on, it stays behind the numbers alone.
        time_and_word=re.compile(rf"{_HOURS}[ \u00a0]?{_any_of(clock)}", re.IGNORECASE),
        time_before_word=re.compile(rf"{_HOURS}(?=[ \u00a0]?(?:{'|'.join(clock) or '(?!)'}))", re.IGNORECASE),
        call=re.compile(rf"{_any_of(table.get('call', ()))}{_BETWEEN}\Z", re.IGNORECASE),
        called=re.compile(rf"[ \u00a0]?{_any_of(table.get('call_after', ()))}", re.IGNORECASE),
        scaled=re.compile(rf"{money}[ \u00a0]?({scale})", re.IGNORECASE),
        range=re.compile(rf"({number})([–−~-]|[ \u00a0][–−-][ \u00a0])({number})(?![\w:/-])"),
        sum=re.compile(rf"{number}(?:[ \u00a0]?[–−-][ \u00a0]?{number})+{_EQUALS}"),
        money=re.compile(money + _END),
        percent=re.compile(rf"({number})[ \u00a0]?%(?!\w)"),
        measure=re.compile(rf"({number})[ \u00a0]?(°[CF]|°|km/h|[A-Za-z]{{1,3}}|[{_CURRENCY}])(?![\w/])"),
        minus=re.compile(rf"[-−]({number}){_END}"),
        plain=re.compile(rf"\+?({number})"),
    )


@cache
def _tables() -> dict[str, dict[str, Any]]:
    text = files(__package__).joinpath("spoken_numbers.toml").read_text("utf-8")
    return tomllib.loads(text)


@cache
def _suffixes() -> tuple[str, ...]:
    tables = _tables().values()
    units = (name for table in tables for name, said in table.items() if isinstance(said, list) and name not in _LISTS)
    words = (word for table in (*tables, {"scales": _SCALES}) for name in _AFTER for word in table.get(name, ()))
    return tuple(dict.fromkeys(name.lower() for name in (*_SUFFIXES, *units, *words)))


def may_go_on(extent: re.Match[str]) -> bool:
    """Whether what follows a match of EXTENT could change how its number is said."""
    suffix = extent["suffix"].lower()
    return any(known.startswith(suffix) for known in _suffixes())


@lru_cache(maxsize=4096)
def _words(number: int, language: str, to: str = "cardinal") -> str:
    said: str = num2words(number, lang=language, to=to)  # type: ignore[no-untyped-call]
    return " ".join(said.replace(",", "").split())


class NumberReader:
    """Says numbers in the language of a BCP 47 tag; one it has no words for keeps its digits."""

    def __init__(self, language: str) -> None:
        tag = language.replace("_", "-")
        base, _, region = tag.partition("-")
        self._table = _tables().get(base.lower(), {})
        self._in: str | None = self._table.get("words")
        if self._in == "en" and region.upper() == "IN":
            self._in = "en_IN"
        self._limit = int(self._table.get("limit", 10**_LONGEST - 1))
        self._comma = bool(self._table.get("comma_decimals", False))
        self._patterns = patterns = _patterns(base.lower())
        self._space = str(self._table.get("join", " "))
        self._behind = ""
        self._rules: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str | None]], ...] = (
            (_UNCHANGED, re.Match.group),
            (_CALLED, self._number_to_call),
            (patterns.time_and_word, self._time_and_word),
            (patterns.time_before_word, self._time_before_word),
            (_TIME, self._time),
            (_CLOCK, self._clock),
            (patterns.scaled, lambda match: self._amount(match[1], match[2], scale=match[3])),
            (patterns.money, lambda match: self._amount(match[1], match[2])),
            (patterns.percent, lambda match: self._filled("percent", n=match[1])),
            (patterns.measure, lambda match: self._amount(match[2], match[1])),
            (patterns.sum, self._minuses),
            (patterns.range, self._range),
            (_PHONE, self._phone),
            (_COUNT, self._count),
            (_FRACTION, lambda match: self._table.get(match[0])),
            (_ORDINAL, self._ordinal),
            (patterns.minus, lambda match: self._filled("minus", n=match[1])),
            (patterns.plain, self._plain),
        )

    def read(self, text: str, start: int = 0, *, behind: str = "") -> tuple[int, str]:
        """The number at `start` of `text`: where it ends, and how it is said after up to BEHIND characters `behind`."""
        self._behind = behind
        for pattern, say in self._rules:
            match = pattern.match(text, start)
            if match is not None and (said := say(match)) is not None:
                return match.end(), said
        return start + 1, text[start]

    def _filled(self, name: str, **numbers: str) -> str | None:
        template = self._table.get(name)
        if template is None:
            return None
        return str(template).format(**{key: self._number(number) for key, number in numbers.items()})

    def _number_to_call(self, match: re.Match[str]) -> str | None:
        if self._patterns.called.match(match.string, match.end()):
            return self._digits(match[1])
        counts = match[1].endswith("00") and re.match(r"[ \u00a0]\w", match.string[match.end() :])
        return self._digits(match[1]) if not counts and self._patterns.call.search(self._behind) else None

    def _range(self, match: re.Match[str]) -> str | None:
        """From a lower number to a higher one; what can be no range is a difference."""
        sign = match[2].strip()
        if re.search(r"\d[-–−]\Z", self._behind):
            return None
        if sign == "−" or (sign != "~" and self._value(match[1]) >= self._value(match[3])):
            return self._minuses(match)
        if sign == "-" != match[2]:
            return None  # a hyphen with spaces is a pause
        return self._filled("range", a=match[1], b=match[3])

    def _minuses(self, match: re.Match[str]) -> str | None:
        """Numbers taken from each other one after the other."""
        template = self._table.get("less")
        if template is None:
            return None
        first, *others = re.findall(r"\d(?:[\d.,\u00a0\u202f]*\d)?", match[0])
        said = self._number(first)
        for other in others:
            said = str(template).format(a=said, b=self._number(other))
        return said

    def _count(self, match: re.Match[str]) -> str | None:
        """Numbers that are counted up or down: one after the other."""
        if not self._table:
            return None
        return str(self._table.get("list", ", ")).join(map(self._number, re.findall(r"\d+", match[0])))

    def _value(self, written: str) -> float:
        whole, fraction = self._split(written)
        return float(f"{whole}.{fraction or 0}")

    def _plain(self, match: re.Match[str]) -> str:
        digits = match[1]
        if match[0] == digits and re.fullmatch(r"(?:1[1-9]|20)\d\d", digits) and self._in in {"en", "en_IN"}:
            return _words(int(digits), "en", "year")
        return self._number(digits)

    def _number(self, written: str) -> str:
        """A number as it was written, with whatever separators, in words."""
        whole, fraction = self._split(written)
        if self._in is None:
            return written
        if len(whole) > _LONGEST or (len(whole) > 1 and whole[0] == "0"):
            said = self._digits(whole)
        elif int(whole) > self._limit:
            return written
        else:
            said = _words(int(whole), self._in)
        if fraction:
            point = self._table.get("point")
            if point is None:
                return written
            said += f" {point} {self._digits(fraction)}"
        return said

    def _split(self, written: str) -> tuple[str, str]:
        """The digits before and after the decimal sign."""
        whole, fraction = written, ""
        if match := re.fullmatch(r"(.*)([.,])(\d+)", written):
            thousands = "." if self._comma else ","
            if match[2] != thousands or (self._comma and len(match[3]) != 3):
                whole, fraction = match[1], match[3]
        return re.sub(r"\D", "", whole), fraction

    def _digits(self, digits: str) -> str:
        if self._in is None:
            return " ".join(digits)
        return " ".join(_words(int(digit), self._in) for digit in digits)

    def _phone(self, match: re.Match[str]) -> str | None:
        written = match[0]
        groups = re.findall(r"\d+", written)
        lengths = [len(group) for group in groups]
        marked = written[0] in "+(0" or "-" in written
        if len(groups) == 1:
            likely = written[0] == "+" or lengths[0] >= 10
        else:
            likely = max(lengths) >= (3 if marked else 4) or (written[0] == "0" and min(lengths) > 1)
        if not likely or not 7 <= sum(lengths) <= 20:
            return None
        plus = "plus " if written[0] == "+" and self._in is not None else ""
        return plus + ", ".join(self._digits(group) for group in groups)

    def _time(self, match: re.Match[str]) -> str:
        hour, minute = str(int(match[1])), str(int(match[2]))
        half = f" {match[3].upper()} M" if match.re is _TIME and match[3] else ""
        said: str | None
        if int(minute) == 0:
            said = self._number(hour) if half else self._filled("hour", h=hour)
        elif int(minute) < 10 and "early" in self._table:
            said = self._filled("early", h=hour, m=minute)
        else:
            said = self._filled("time", h=hour, m=minute)
        return match[0] if said is None else said + half

    def _time_and_word(self, match: re.Match[str]) -> str | None:
        return self._time(match) if int(match[2]) else None

    def _time_before_word(self, match: re.Match[str]) -> str | None:
        hour, minute = (self._number(str(int(part))) for part in match.groups())
        return f"{hour} {minute}" if int(match[2]) else hour

    def _clock(self, match: re.Match[str]) -> str:
        return f"{self._number(str(int(match[1])))} {match[2].upper()} M"

    def _amount(self, unit: str, number: str, *, scale: str = "") -> str | None:
        """Money, or a measure: a number, perhaps of millions, with a unit the language has a name for."""
        names = self._table.get("degrees" if unit == "°" else unit)
        if not isinstance(names, list):
            return None
        if scale:
            between = self._table.get("of", self._space)
            return f"{self._number(number)}{self._space}{scale}{between}{names[1]}"
        if unit not in _CURRENCY:
            return self._counted(number, names)
        whole, fraction = self._split(number)
        if len(fraction) == 2 and fraction != "00":
            return self._counted(whole, names) + self._space + self._number(str(int(fraction)))
        return self._counted(number if fraction.strip("0") else whole, names)

    def _counted(self, number: str, names: list[str]) -> str:
        return self._number(number) + self._space + names[0 if number == "1" else 1]

    def _ordinal(self, match: re.Match[str]) -> str | None:
        if self._in not in {"en", "en_IN"} or len(match[1]) > _LONGEST:
            return None
        return _words(int(match[1]), "en", "ordinal")

"""The one filter between what the model writes and what the voice says.

Every script passes as it is. Markdown, addresses, tags and emoji go, numbers become words. It works on a stream: what
is decided leaves at once, and only a tail that could still become something else is held back, so that a text is the
same however it is cut.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

from agent.conversation.spoken_numbers import BEHIND, EXTENT, NumberReader, may_go_on

EMOJI: Final = (
    "\u203c\u2049\u20e3\u2122\u00a9\u00ae\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\ufe0e\ufe0f\U0001f000-\U0001fbff\U000e0000-\U000e007f"
)
"""Emoji, their parts and symbols nobody says, as the inside of a character class."""

_SPACES: Final = re.compile(r"[\s|]+")
_KEYCAP: Final = re.compile("[0-9#*]\ufe0f?\u20e3")
_EMOJI: Final = re.compile(f"[{EMOJI}]+")
_PLAIN: Final = re.compile(rf"[^\s\d*_~`#\\\[\]!<>|+\-−$€£₹¥(•{EMOJI}\u0000-\u001f\u00ad\u200b-\u200f\u202a-\u202e"
                           r"\u2060-\u206f\ufeff\ud800-\udfff]+")  # fmt: skip
_RULE: Final = re.compile(r"[-*_=:|][-*_=:| \t]{2,}(?=\n|\Z)")
_RULE_SO_FAR: Final = re.compile(r"[-*_=:| \t]*\Z")
_FENCE: Final = re.compile(r"(?:`{3,}|~{3,})[^\n`]*(?=\n|\Z)")
_BULLET: Final = re.compile(r"(?:[-*+•](?=\s)|>)\s?")
_LINK_TARGET: Final = re.compile(r"\]\((?:[^()\n]|\([^()\n]*\)){0,500}\)")
_LINK_SO_FAR: Final = re.compile(r"\]\([^\n]{0,500}\Z")
_TAG: Final = re.compile(r"</?[A-Za-z!][^<>\n]{0,200}>")
_TAG_SO_FAR: Final = re.compile(r"<(?:/?[A-Za-z!][^<>\n]{0,200}|/)?\Z")
_ADDRESS: Final = re.compile(
    r"(?:https?://(?:www\.)?|www\.)([^\s/:?#<>\"'）)\]*_`|]+)([^\s<>\"'）)\]*`|]*)", re.IGNORECASE
)
_ADDRESS_STARTS: Final = ("https://", "http://", "www.")
_TIMES: Final = re.compile(r"\*\s*(?=\d)")
_TIMES_SO_FAR: Final = re.compile(r"\*\s*\Z")
_NUMBER_START: Final = re.compile(r"\d|[$€£₹¥]\s?\d|[+\-−]\d|\(\d{2,}\)|\+\(")
_NUMBER_START_SO_FAR: Final = re.compile(r"(?:[$€£₹¥]\s?|[+\-−]|\+?\(\d*)\Z")
_DIGITS: Final = re.compile(r"\d+")
_ENDING: Final = frozenset(".,!?;:…。，！？；：、।॥")
# Scripts that set no spaces between words.
_UNSPACED: Final = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


class SpokenText:
    """Takes a text in pieces and gives out what is to be said. `language` is a BCP 47 tag."""

    def __init__(self, language: str = "en") -> None:
        self._numbers = NumberReader(language)
        self._held = ""
        self._said = ""
        self._space = ""
        self._before = ""
        self._behind = ""
        self._line_start = True
        self._dropped = False
        self._counted = False

    def push(self, text: str) -> str:
        """Add text; returns what is certain now."""
        self._held += text
        return self._run(final=False)

    def flush(self) -> str:
        """The rest, as nothing follows. The filter is as new then."""
        rest = self._run(final=True)
        self._said = self._space = self._before = self._behind = ""
        self._line_start, self._dropped, self._counted = True, False, False
        return rest

    def _run(self, *, final: bool) -> str:
        out: list[str] = []
        text, at = self._held, 0
        while at < len(text):
            end = self._step(text, at, final, out)
            if end is None:
                break
            self._before = text[end - 1]
            self._behind = (self._behind + text[at:end])[-BEHIND:]
            at = end
        self._held = text[at:]
        return "".join(out)

    def _step(self, text: str, at: int, final: bool, out: list[str]) -> int | None:
        """Consume one thing at `at`; returns where it ends, None while it could still become another."""
        char = text[at]
        if char.isspace() or char == "|":
            return self._spaces(text, at)
        if self._line_start and (end := self._line_mark(text, at, final)) != at:
            return end
        open_ended = not final
        if char in "0123456789#*" and open_ended and text[at + 1 :] in {"", "\ufe0f"}:
            return None
        if match := _KEYCAP.match(text, at) or _EMOJI.match(text, at):
            self._dropped = True
            return match.end()
        if _NUMBER_START.match(text, at) and not (char in "-−+" and _joins(self._before)):
            return self._number(text, at, final, out)
        if open_ended and _NUMBER_START_SO_FAR.match(text, at):
            return None
        if char in "*_~`#[]!<\\":
            return self._mark(text, at, final, out)
        if not _joins(self._before) and (end := self._address(text, at, final, out)) != at:
            return end
        if match := _PLAIN.match(text, at):
            # Up to the next place where an address may begin.
            end = _word_end(text, at, match.end())
            self._say(text[at:end], out)
            return end
        return self._odd(text, at, out)

    def _spaces(self, text: str, at: int) -> int:
        match = _SPACES.match(text, at)
        assert match is not None
        if "\n" in match[0]:
            self._line_start, self._space = True, "\n"
        elif not self._space:
            self._space = " "
        return match.end()

    def _line_mark(self, text: str, at: int, final: bool) -> int | None:
        """What only means something at a line's start; `at` itself when there is no such thing."""
        if text[at] in "-*_=:" and (match := _RULE.match(text, at)):
            if match.end() == len(text) and not final:
                return None
            return match.end()
        if not final and text[at] in "-*_=:" and _RULE_SO_FAR.match(text, at):
            return None
        if match := _FENCE.match(text, at):
            if match.end() == len(text) and not final:
                return None
            return match.end()
        if not final and re.fullmatch(r"`{1,2}|~{1,2}|[+•]", text[at:]):
            return None
        if match := _BULLET.match(text, at):
            return match.end()
        return at

    def _number(self, text: str, at: int, final: bool, out: list[str]) -> int | None:
        extent = EXTENT.match(text, at)
        if extent is None:
            self._say(text[at], out)
            return at + 1
        if not final and (text[extent.end() :] == "\ufe0f" or (extent.end() == len(text) and may_go_on(extent))):
            return None
        if text[at].isdigit() and _joins(self._before) and self._before.isalpha():
            digits = _DIGITS.match(text, at)
            end = digits.end() if digits else at + 1
            said = text[at:end]
        else:
            end, said = self._read(text, at, extent.end())
        if self._dropped and not self._space and _joins(self._said):
            self._space = " "
        self._say(said, out)
        self._counted = True
        return end

    def _read(self, text: str, at: int, extent: int) -> tuple[int, str]:
        # One character more than may belong to the number: it shows where words end.
        window = text[at : extent + 1]
        if keycap := re.search("[0-9]\ufe0f?\u20e3", text[at : extent + 2]):
            window = window[: keycap.start()]
        end, said = self._numbers.read(window, behind=self._behind)
        rest = window[end : end + 1]
        if rest.isalpha() and not _UNSPACED.match(rest) and said != window[:end] and window[end - 1 : end].isdigit():
            # A name such as 3D or MP3 rather than a number.
            name = _DIGITS.search(window)
            end = name.end() if name else 1
            said = window[:end]
        return at + end, said

    def _mark(self, text: str, at: int, final: bool, out: list[str]) -> int | None:
        """A character of markdown or a tag: it goes, with what belongs to it."""
        char, last = text[at], at + 1 == len(text)
        if char == "!":
            if last and not final:
                return None
            if text[at + 1 : at + 2] != "[":
                self._say(char, out)
            return at + 1
        if char == "]":
            if match := _LINK_TARGET.match(text, at):
                return match.end()
            if not final and (last or _LINK_SO_FAR.match(text, at)):
                return None
        if char == "<":
            if match := _TAG.match(text, at):
                self._dropped = True
                return match.end()
            if not final and _TAG_SO_FAR.match(text, at):
                return None
            if not text[at + 1 : at + 2].isalpha():
                self._say(char, out)
                return at + 1
        if char == "*" and self._counted:
            if not final and _TIMES_SO_FAR.match(text, at):
                return None
            if _TIMES.match(text, at):
                self._say("×", out)
                return at + 1
        if char == "_":
            if last and not final:
                return None
            if _joins(self._before) and _joins(text[at + 1 : at + 2]):
                self._space = self._space or " "
        self._dropped = True
        return at + 1

    def _address(self, text: str, at: int, final: bool, out: list[str]) -> int | None:
        """An address of the web: its host is said."""
        rest = text[at : at + 8].lower()
        if not final and any(start.startswith(rest) for start in _ADDRESS_STARTS):
            return None
        match = _ADDRESS.match(text, at)
        if match is None:
            return at
        if match.end() == len(text) and not final:
            return None
        host = match[1].rstrip(".,!?;:")
        if not host:
            return at
        end = match.end() if match[2] else match.start(1) + len(host)
        while text[end - 1] in ".,!?;:":
            end -= 1
        self._say(host, out)
        return end

    def _odd(self, text: str, at: int, out: list[str]) -> int:
        """Characters one by one: joiners belong to letters, invisible ones to nobody."""
        char = text[at]
        if char in "\u200c\u200d":
            if self._before and unicodedata.category(self._before)[0] in "LM" and not _EMOJI.match(self._before):
                out.append(char)
            return at + 1
        if unicodedata.category(char) in {"Cc", "Cf", "Cs"}:
            return at + 1
        self._say(char, out)
        return at + 1

    def _say(self, text: str, out: list[str]) -> None:
        if self._space and self._said:
            # What stood between the word and its full stop is gone: so is the space.
            if not (self._dropped and self._space == " " and text[0] in _ENDING):
                out.append(self._space)
        elif self._dropped and _joins(self._said) and _joins(text[0]) and _EMOJI.match(self._before):
            out.append(" ")
        out.append(text)
        self._said = text[-1]
        self._space = ""
        self._line_start = self._dropped = self._counted = False


def _joins(char: str) -> bool:
    """Whether a character is part of a word in a script that sets spaces between words."""
    return bool(char) and (char.isalnum() or unicodedata.category(char)[0] == "M") and not _UNSPACED.match(char)


def _word_end(text: str, start: int, end: int) -> int:
    """The first place after `start` where a new word begins, at most `end`."""
    for index in range(start + 1, end):
        if text[index] in "hHwW" and not _joins(text[index - 1]):
            return index
    return end


def spoken(text: str, language: str = "en") -> str:
    """A whole text as it is to be said."""
    filtering = SpokenText(language)
    return filtering.push(text) + filtering.flush()


async def spoken_stream(text: AsyncIterable[str], language: str = "en") -> AsyncIterator[str]:
    """A stream of text as it is to be said; every piece leaves as soon as it is certain."""
    filtering = SpokenText(language)
    async for piece in text:
        if said := filtering.push(piece):
            yield said
    if rest := filtering.flush():
        yield rest

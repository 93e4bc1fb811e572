"""What of a stranger's log text stands literally in its code.

A library may put a child's words into any text it logs. What its author wrote cannot quote a child, and says to whoever
reads the log what happened. Job processes hand their texts over ready made, so the author's part is told apart where
the record is made.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

CUT: Final = "…"
"""Stands for what was put into a text."""
OURS: Final = ("agent", "__main__")
"""First parts of the names of loggers whose texts are known to hold nothing personal."""
_ENGINE: Final = ("livekit", "%s:%s:%s - %s")
"""WebRTC's engine hands its texts over; it sees sound and bytes, no words."""
_SHORTEST_PIECE: Final = 4
_ASYNCIO: Final = re.compile(
    r"Task exception was never retrieved|Future exception was never retrieved|Task was destroyed but it is pending!"
    r"|Exception in callback|Unhandled exception in event loop|Fatal (?:read|write) error on [a-z ]+transport"
    r"|unhandled exception during asyncio.run\(\) shutdown"
)
"""What asyncio's exception handler is given as text."""

Factory = Callable[..., logging.LogRecord]


def is_ours(logger: str) -> bool:
    """Whether a logger of this name is this project's."""
    return logger.split(".")[0] in OURS


def mark_literal_texts() -> None:
    """Give every stranger's record made in this process (and its forks) `literal`, its text as its code has it.

    Where that is not the whole text, `place` tells the line of code. Calling again changes nothing.
    """
    made_by = logging.getLogRecordFactory()
    if not isinstance(made_by, _Marking):
        logging.setLogRecordFactory(_Marking(made_by))


class _Marking:
    def __init__(self, make: Factory) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        if record.name and not is_ours(record.name):  # a copy is made without a name
            record.literal = text = _literal(record)
            if CUT in text:
                record.place = f"{record.filename}:{record.lineno}"
        return record


def _literal(record: logging.LogRecord) -> str:
    text = str(record.msg)
    if (record.name, text) == _ENGINE:
        return record.getMessage().partition("\n")[0]
    if record.name == "asyncio" and (found := _ASYNCIO.match(text)):
        return found[0]
    template = _pieces(text, _constants(record))
    return _filled(template, record.args) if record.args else template


def _constants(record: logging.LogRecord) -> list[str]:
    """The texts in the code of the function that logs, longest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if (code.co_filename, frame.f_lineno, code.co_name) == (record.pathname, record.lineno, record.funcName):
            found = [text for text in code.co_consts if isinstance(text, str) and len(text) >= _SHORTEST_PIECE]
            return sorted(found, key=len, reverse=True)
        frame = frame.f_back
    return []


def _pieces(text: str, constants: list[str]) -> str:
    if not text:
        return ""
    for constant in constants:
        before, found, after = text.partition(constant)
        if found:
            return _pieces(before, constants) + found + _pieces(after, constants)
    return CUT


def _filled(template: str, args: Any) -> str:
    """The template with its numbers, and without all else that was put in."""
    values = iter(args if isinstance(args, tuple) else ())

    def fill(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        value = next(values, None)
        try:
            return found[0] % value if isinstance(value, int | float) else CUT
        except (TypeError, ValueError, OverflowError):  # a number that the text's author did not expect
            return CUT

    return re.sub(r"%%|%(?:\(\w+\))?[-+ #0-9.]*[a-zA-Z]", fill, template)

"""What must not be in a log is taken out where the log is written, whoever wrote it.

Secrets go always; a child's name and words and a device's address go unless LOG_PERSONAL_DATA lets them in. Records of
other libraries are read by what is known to be harmless, not by what is known to be personal: their next version may
log something new.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import SecretStr

from agent.settings import Settings
from agent.telemetry.literal import CUT, is_ours
from agent.values import device_key

_SHORTEST_SECRET: Final = 6
_HEX2: Final = "[0-9A-Fa-f]{2}"
_ESCAPED: Final = "%(?:25)*"
"""A percent sign of an address, escaped however often."""
_MAC_IN_PAIRS: Final = re.compile(
    rf"{_HEX2}(?:(?P<apart>[:\-_]|{_ESCAPED}(?:3[Aa]|2[Dd]|5[Ff]|20|2[Ee]))|(?<!\d[0-9A-Fa-f]{{2}})(?P<loose>[ .]))"
    rf"{_HEX2}(?:(?(apart)(?P=apart)|(?P=loose)){_HEX2}){{4}}"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}"
)
_HEX_RUN: Final = re.compile(
    r"(?P<uuid>[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})(?P<tail>[0-9A-Fa-f]{12,})?"
    rf"|(?P<escape>{_ESCAPED}{_HEX2})?(?P<run>[0-9A-Fa-f]{{12,}})"
)
_IDS: Final = (16, 32, 40, 64)
"""Lengths of spans, traces and hashes in hexadecimal digits."""
_TOKENS: Final = (
    (re.compile(r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), "<token>"),
    (re.compile(r"(?i)\b(bearer|token) [\w.~+/=-]{6,}"), r"\1 <secret>"),
    (re.compile(r"://[^/\s:@]*:[^/\s@]+@"), "://<secret>@"),
    (re.compile(r"(?i)\b((?:access_|api_?)?(?:token|key|secret|password))=[^\s&\"']{4,}"), r"\1=<secret>"),
)
_META: Final = frozenset(
    {
        "event",
        "level",
        "logger",
        "timestamp",
        "process",
        "at",
        "exception",
        "visit",
        "device",
        "_record",
        "_from_structlog",
    }
)
_HARMLESS: Final = _META | {
    "agent_name",
    "attempt",
    "dispatch_id",
    "error_type",
    "host",
    "id",
    "job_id",
    "kind",
    "label",
    "model",
    "node_id",
    "packages",
    "pid",
    "place",
    "plugin",
    "protocol",
    "provider",
    "reason",
    "region",
    "room",
    "room_name",
    "rtc-version",
    "server",
    "speech_id",
    "status",
    "thread_name",
    "trace_id",
    "url",
    "version",
    "worker_id",
}
_MARGIN: Final = re.compile(r"^ *[|+] ")
"""What an exception group draws before the lines of its members."""
_STRUCTURE: Final = re.compile(
    r"^(?:(?:Exception Group )?Traceback \(most recent call last\):"
    r"|During handling of the above exception, another exception occurred:"
    r"|The above exception was the direct cause of the following exception:)$"
)
_SEPARATOR: Final = re.compile(r"^ *\+[-+]*(?: (?:\d+|\.\.\.) -*)?$")
_PLACE: Final = re.compile(r'^  File "[^"]*", line \d+(, in .*)?$')
_REPEATED: Final = re.compile(r"^  \[Previous line repeated \d+ more times?\]$")
_TYPE: Final = re.compile(r"^([\w.<>]+)(?:: |:?$)")
_SAFE_MODULES: Final = ("agent.errors.", "aiohttp.", "sqlite3.", "asyncio.", "concurrent.futures.")
_SAFE_TYPES: Final = frozenset(
    {
        "AttributeError",
        "BlockingIOError",
        "BrokenPipeError",
        "ConnectionError",
        "ConnectionAbortedError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "EOFError",
        "FileExistsError",
        "FileNotFoundError",
        "ImportError",
        "IsADirectoryError",
        "MemoryError",
        "ModuleNotFoundError",
        "NameError",
        "NotADirectoryError",
        "NotImplementedError",
        "OSError",
        "PermissionError",
        "ProcessLookupError",
        "RecursionError",
        "TimeoutError",
        "TypeError",
        "UnboundLocalError",
    }
)


class Scrubber:
    """Cleans texts, values and whole records by these settings."""

    def __init__(self, settings: Settings) -> None:
        self._personal = settings.log_personal_data
        self._salt = settings.device_salt.get_secret_value()
        secrets = sorted(_secrets(settings), key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, secrets))) if secrets else None

    def text(self, text: str) -> str:
        """Without secrets and, where they are not let in, without MAC addresses."""
        if self._secrets is not None:
            text = self._secrets.sub("<secret>", text)
        for pattern, instead in _TOKENS:
            text = pattern.sub(instead, text)
        return text if self._personal else _MAC_IN_PAIRS.sub(self._hide, _HEX_RUN.sub(self._hide_run, text))

    def value(self, value: Any) -> Any:
        """The same for anything a record may carry; what is no plain value becomes text."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item) for item in value]
        return self.text(str(value))

    def record(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """A whole record. Of a stranger's text only `literal` stays (see there), of its fields only numbers and known
        ones; `hidden` names the others.
        """
        ours = is_ours(str(event.get("logger", "")))
        kept: dict[str, Any] = {}
        hidden: list[str] = []
        for key, value in event.items():
            if key.startswith("_"):
                kept[key] = value
            elif key == "literal":
                continue
            elif key == "event" and not ours and not self._personal:
                kept[key] = self.text(str(event.get("literal", CUT)))
            elif self._personal:
                kept[key] = self.value(value)
            elif key.startswith("personal_"):
                continue
            elif not ours and isinstance(value, BaseException):
                kept[key] = _kind_of(value)
            elif ours or key in _HARMLESS or value is None or isinstance(value, bool | int | float):
                kept[key] = self.value(value)
            else:
                hidden.append(key)
        if not self._personal and isinstance(kept.get("exception"), str):
            kept["exception"] = without_messages(kept["exception"])
        if hidden:
            kept["hidden"] = hidden
        return kept

    def _hide(self, match: re.Match[str]) -> str:
        digits = re.sub(rf"{_ESCAPED}{_HEX2}|[^0-9A-Fa-f]", "", match[0])
        return self._pseudonym(digits)

    def _hide_run(self, match: re.Match[str]) -> str:
        if match["uuid"]:
            return match["uuid"] + (self._pseudonym(match["tail"]) if match["tail"] else "")
        run = match["run"]
        before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
        glued = before.isalpha() or after.isalpha()
        if not glued and len(run) > 12 and (len(run) in _IDS or run.isdigit()):
            return match[0]
        return (match["escape"] or "") + self._pseudonym(run[:12] if after.isalpha() else run[-12:])

    def _pseudonym(self, digits: str) -> str:
        mac = digits.lower()
        return "device:" + device_key(":".join(mac[i : i + 2] for i in range(0, 12, 2)), self._salt)


def _kind_of(error: BaseException) -> str:
    """Its type, and the HTTP status it carries: "WSServerHandshakeError 401"."""
    status = getattr(error, "status", None)
    return f"{type(error).__name__} {status}" if isinstance(status, int) else type(error).__name__


def without_messages(traceback: str) -> str:
    """A traceback whose exceptions keep their types, but their messages only where these cannot quote a child.

    A ValueError says what value was wrong, a validation error repeats the answer it refused. Only lines known to be
    a traceback's own stay: places in code with the code there, types, and what joins several exceptions to one text.
    """
    lines: list[str] = []
    in_message = in_code = False
    for line in traceback.splitlines():
        margin = found[0] if (found := _MARGIN.match(line)) else ""
        body = line[len(margin) :]
        if _STRUCTURE.match(body) or _SEPARATOR.match(line):
            in_message = in_code = False
        elif place := _PLACE.match(body):
            # A place without a function is a SyntaxError's, and what follows is the text that was parsed.
            in_message, in_code = False, place[1] is not None
        elif _REPEATED.match(body) or (in_code and body.startswith("    ")):
            pass
        elif body.strip() and not body.startswith(" ") and not in_message:
            in_message, in_code = True, False
            kind = found[1] if (found := _TYPE.match(body)) else "?"
            safe = kind.startswith(_SAFE_MODULES) or kind in _SAFE_TYPES
            line = line if safe else margin + kind
        elif body.strip():
            continue
        lines.append(line)
    return "\n".join(lines)


def _secrets(settings: Settings) -> Iterable[str]:
    for _, value in settings:
        if isinstance(value, SecretStr) and len(value.get_secret_value().strip()) >= _SHORTEST_SECRET:
            yield value.get_secret_value().strip()

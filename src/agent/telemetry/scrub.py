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
from agent.values import device_key

_SHORTEST_SECRET: Final = 6
_HEX2: Final = "[0-9A-Fa-f]{2}"
_UUID_SO_FAR: Final = "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-"
_MAC: Final = re.compile(
    rf"(?<!{_UUID_SO_FAR})(?<![0-9A-Fa-f])"
    rf"(?:[0-9A-Fa-f]{{12}}|{_HEX2}([:\-_ .]|%3[Aa]){_HEX2}(?:\1{_HEX2}){{4}}"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4})(?![0-9A-Fa-f])"
)
_TOKENS: Final = (
    (re.compile(r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), "<token>"),
    (re.compile(r"(?i)\b(bearer|token) [\w.~+/=-]{6,}"), r"\1 <secret>"),
    (re.compile(r"://[^/\s:@]*:[^/\s@]+@"), "://<secret>@"),
    (re.compile(r"(?i)\b((?:access_|api_?)?(?:token|key|secret|password))=[^\s&\"']{4,}"), r"\1=<secret>"),
)
_OURS: Final = ("agent", "__main__")
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
_TYPE_LINE: Final = re.compile(r"^((?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*))(?::.*)?$", re.DOTALL)
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
        return text if self._personal else _MAC.sub(self._hide, text)

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
        """A whole record. Of strangers' fields only numbers and known ones stay; `hidden` names the others."""
        ours = str(event.get("logger", "")).split(".")[0] in _OURS
        kept: dict[str, Any] = {}
        hidden: list[str] = []
        for key, value in event.items():
            if key.startswith("_"):
                kept[key] = value
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
        digits = re.sub(r"%3[aA]|[^0-9A-Fa-f]", "", match[0]).lower()
        return "device:" + device_key(":".join(digits[i : i + 2] for i in range(0, 12, 2)), self._salt)


def _kind_of(error: BaseException) -> str:
    """Its type, and the HTTP status it carries: "WSServerHandshakeError 401"."""
    status = getattr(error, "status", None)
    return f"{type(error).__name__} {status}" if isinstance(status, int) else type(error).__name__


def without_messages(traceback: str) -> str:
    """A traceback whose exceptions keep their types, but their messages only where these cannot quote a child.

    A ValueError says what value was wrong, a validation error repeats the answer it refused.
    """
    lines: list[str] = []
    in_message = False
    for line in traceback.splitlines():
        plain = line.lstrip("| +-")
        if plain.startswith(("Traceback ", "File ", "During handling", "The above exception", "Exception Group")):
            in_message = False
        elif not line.startswith(" ") and not in_message and (found := _TYPE_LINE.match(line)):
            in_message = True
            safe = found[1].startswith(_SAFE_MODULES) or found[1] in _SAFE_TYPES
            lines.append(line if safe else found[1])
            continue
        if not in_message or not line.strip():
            lines.append(line)
    return "\n".join(lines)


def _secrets(settings: Settings) -> Iterable[str]:
    for _, value in settings:
        if isinstance(value, SecretStr) and len(value.get_secret_value().strip()) >= _SHORTEST_SECRET:
            yield value.get_secret_value().strip()

"""What this worker and a device say to each other over the data channel, and nothing else.

Outward: functions that build the exact message. Inward: `parse`, which turns bytes into a frozen value or says why
they are ignored. It never raises, whatever the bytes are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

AgentState = Literal["initializing", "idle", "listening", "thinking", "speaking"]
JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

MAX_MESSAGE_BYTES: Final = 16 * 1024
"""Longer messages from a device are ignored unread."""
MAX_TEXT: Final = 3500
"""Characters of a transcript or an utterance that are sent: with every script the message stays below 16 KiB."""
MUSIC_TOPIC: Final = "music_control"
EMOTION_TOPIC: Final = "emotion"
FUNCTION_TOPIC: Final = "mcp_function_call"

# Not `isprintable`: joiners, which Hindi and others need, count as unprintable there.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_MAX_ID: Final = 128
_MAX_TITLE: Final = 200
_MAX_PROMPT: Final = 2000


# --- agent to device ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message for the device: JSON in UTF-8, sent reliably. `topic` None: without a topic."""

    topic: str | None
    payload: bytes = field(repr=False)


def agent_state_changed(old_state: AgentState, new_state: AgentState) -> Outgoing:
    """Every change of state; media and the recorded greeting count as speaking."""
    return _event("agent_state_changed", {"old_state": old_state, "new_state": new_state})


def user_input_transcribed(transcript: str, *, is_final: bool, language: str | None) -> Outgoing:
    """What the child said. Gateways show interim transcripts like final ones: send the final ones."""
    data: dict[str, JsonValue] = {"transcript": transcript[:MAX_TEXT], "is_final": is_final, "language": language}
    return _event("user_input_transcribed", data)


def speech_created(source: str, *, user_initiated: bool, created_at: float, text: str | None = None) -> Outgoing:
    """Just before each utterance, the greeting included. `created_at` is in seconds since the epoch."""
    data: dict[str, JsonValue] = {"source": source, "user_initiated": user_initiated, "created_at": created_at}
    if text is not None:
        data["text"] = text[:MAX_TEXT]
    return _event("speech_created", data)


def agent_false_interruption(*, resumed: bool) -> Outgoing:
    """The child was taken to interrupt but did not."""
    return _event("agent_false_interruption", {"resumed": resumed})


def music_playback_started(title: str, *, language: str | None, message: str) -> Outgoing:
    """A song or a story begins."""
    return _outgoing(
        MUSIC_TOPIC,
        {
            "type": "music_playback_started",
            "title": title[:_MAX_TITLE],
            "language": language,
            "message": message[:MAX_TEXT],
        },
    )


def music_playback_stopped() -> Outgoing:
    """It ended. The caller sends exactly one for each `music_playback_started`."""
    return _outgoing(MUSIC_TOPIC, {"type": "music_playback_stopped"})


def emotion(emoji: str, name: str) -> Outgoing:
    """The face that goes with a reply: one emoji and its name, such as `laughing`."""
    return _outgoing(EMOTION_TOPIC, {"type": "llm", "text": emoji, "emotion": name})


def function_call(name: str, arguments: Mapping[str, JsonValue], *, request_id: str, timestamp: str) -> Outgoing:
    """A call of the device. `timestamp` is ISO 8601; use `DeviceCalls`, which checks names, arguments and ids."""
    return _outgoing(
        FUNCTION_TOPIC,
        {
            "type": "function_call",
            "function_call": {"name": name, "arguments": dict(arguments)},
            "timestamp": timestamp,
            "request_id": request_id,
        },
    )


def _event(kind: str, data: dict[str, JsonValue]) -> Outgoing:
    return _outgoing(None, {"type": kind, "data": data})


def _outgoing(topic: str | None, message: dict[str, JsonValue]) -> Outgoing:
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Outgoing(topic, text.encode("utf-8", "replace"))  # a lone surrogate must not cost the message


# --- device to agent ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Who is here. Informative: the room's name has told it already."""

    device_mac: str | None = None
    device_uuid: str | None = None
    timestamp: str | float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class AgentReady:
    """The gateway is ready to relay sound."""

    message: str | None = None
    timestamp: str | float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class AbortPlayback:
    """Everything that sounds stops."""

    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class EndPrompt:
    """Say a short goodbye now; `prompt` says how."""

    session_id: str | None = None
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class CleanupRequest:
    """Persist and leave."""

    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class PlayMusic:
    """The parent's app asks for a song; without a name any will do."""

    song_name: str | None = None
    language: str | None = None
    source: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class PlayStory:
    """The parent's app asks for a story; without a name any will do."""

    story_name: str | None = None
    category: str | None = None
    source: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceAnswer:
    """The answer to a device call, whatever shape it came in.

    `name` is the function where the answer tells it (`self_…`); `value` is the JSON of its text where it is JSON.
    """

    ok: bool
    request_id: str | None = None
    name: str | None = None
    value: JsonValue = field(default=None, repr=False)
    error: str | None = None


class Why(StrEnum):
    """Why a message was ignored."""

    ALIEN = "alien_sender"
    TOO_LARGE = "too_large"
    BROKEN = "broken_json"
    UNKNOWN_TYPE = "unknown_type"
    UNKNOWN_FUNCTION = "unknown_function"


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing to act on."""

    reason: Why


Incoming = DeviceInfo | AgentReady | AbortPlayback | EndPrompt | CleanupRequest | PlayMusic | PlayStory | DeviceAnswer


def parse(data: bytes, sender_identity: str | None, expected_identity: str) -> Incoming | Ignored:
    """Read one message. Only the type counts: topics are ignored, and every field may be missing or of a wrong kind,
    which makes it None. Never raises."""
    if sender_identity != expected_identity:
        return Ignored(Why.ALIEN)
    if len(data) > MAX_MESSAGE_BYTES:
        return Ignored(Why.TOO_LARGE)
    try:
        message = json.loads(bytes(data).decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):  # broken JSON or UTF-8, NaN, numbers of thousands of digits, deep nesting
        return Ignored(Why.BROKEN)
    if not isinstance(message, dict):
        return Ignored(Why.BROKEN)
    kind = message.get("type")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    return reader(message) if reader else Ignored(Why.UNKNOWN_TYPE)


def _device_info(message: dict[str, Any]) -> DeviceInfo:
    return DeviceInfo(
        device_mac=_text(message, "device_mac"),
        device_uuid=_text(message, "device_uuid"),
        timestamp=_timestamp(message),
        source=_text(message, "source"),
    )


def _agent_ready(message: dict[str, Any]) -> AgentReady:
    return AgentReady(
        message=_text(message, "message", _MAX_PROMPT), timestamp=_timestamp(message), source=_text(message, "source")
    )


def _function_call(message: dict[str, Any]) -> PlayMusic | PlayStory | Ignored:
    call = _mapping(message, "function_call")
    arguments = _mapping(call, "arguments")
    source, request_id = _text(message, "source"), _text(message, "request_id")
    match call.get("name"):
        case "play_music":
            song = _text(arguments, "song_name", _MAX_TITLE)
            return PlayMusic(song, _text(arguments, "language"), source, request_id)
        case "play_story":
            story = _text(arguments, "story_name", _MAX_TITLE)
            return PlayStory(story, _text(arguments, "category"), source, request_id)
        case _:
            return Ignored(Why.UNKNOWN_FUNCTION)


def _mcp(message: dict[str, Any]) -> DeviceAnswer:
    payload = _mapping(message, "payload")
    number = payload.get("id")
    request_id = _text(message, "request_id")
    if request_id is None and isinstance(number, int | str) and not isinstance(number, bool):
        request_id = f"req_{number}"[:_MAX_ID]  # the gateway makes the id of the digits
    result = payload.get("result")
    failed = payload.get("error")
    if failed is not None or (isinstance(result, dict) and result.get("isError") is True):
        reason = _text(failed, "message") if isinstance(failed, dict) else _first_text(result)
        return DeviceAnswer(ok=False, request_id=request_id, error=reason or "the device reports an error")
    text = _first_text(result)
    return DeviceAnswer(ok=True, request_id=request_id, value=result if text is None else _json_or_text(text))


def _control_response(message: dict[str, Any]) -> DeviceAnswer:
    action = _text(message, "action") or _text(message, "command")
    return _older_answer(message, action, message.get("current_value"))


def _function_response(message: dict[str, Any]) -> DeviceAnswer:
    return _older_answer(message, _text(message, "function_name"), message.get("result"))


def _older_answer(message: dict[str, Any], name: str | None, value: JsonValue) -> DeviceAnswer:
    # Success must be said: what is not told to have worked is not told to the child as done.
    ok = message.get("success") is True
    return DeviceAnswer(
        ok=ok,
        request_id=_text(message, "request_id"),
        name=None if name is None else name if name.startswith("self_") else f"self_{name}",
        value=_json_or_text(value) if isinstance(value, str) else value,
        error=None if ok else _text(message, "error", _MAX_TITLE) or "the device reports an error",
    )


_READERS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "device_info": _device_info,
        "agent_ready": _agent_ready,
        "abort_playback": lambda message: AbortPlayback(_text(message, "session_id")),
        "end_prompt": lambda message: EndPrompt(_text(message, "session_id"), _text(message, "prompt", _MAX_PROMPT)),
        "cleanup_request": lambda message: CleanupRequest(_text(message, "session_id")),
        "function_call": _function_call,
        "mcp": _mcp,
        "device_control_response": _control_response,
        "function_response": _function_response,
    }
)


def _text(message: Mapping[str, Any], key: str, limit: int = _MAX_ID) -> str | None:
    """A field's text without control characters or surrogates, at most `limit` characters; None where there is none."""
    value = message.get(key)
    if not isinstance(value, str):
        return None
    return _CONTROL.sub(" ", value[: limit * 2]).strip()[:limit] or None


def _mapping(message: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = message.get(key)
    return value if isinstance(value, dict) else {}


def _timestamp(message: Mapping[str, Any]) -> str | float | None:
    value = message.get("timestamp")
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return _text(message, "timestamp")


def _first_text(result: object) -> str | None:
    content = result.get("content") if isinstance(result, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    text = first.get("text") if isinstance(first, dict) else None
    return text if isinstance(text, str) else None


def _json_or_text(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

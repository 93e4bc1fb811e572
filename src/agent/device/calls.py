"""Calls of the device: the argument rules of each function, and the wait for its answer."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from agent.device.messages import DeviceAnswer, JsonValue, Outgoing, function_call
from agent.errors import InvalidCall

DEFAULT_DEADLINE: Final = 3.0
"""Seconds a device has to answer."""
MAX_PENDING: Final = 32
_MAX_REMEMBERED: Final = 256
_MODE: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True)
class Answered:
    """The device did it; `value` is what it told, None where nothing."""

    value: JsonValue = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """The device answered that it could not."""

    error: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Nothing is known: the device kept silent, the call could not be sent, too many wait, or the visit is over."""

    reason: Literal["silence", "not_sent", "busy", "closed"] = "silence"


CallResult = Answered | Failed | NoAnswer


@dataclass(frozen=True, slots=True)
class _Number:
    low: int
    high: int
    default: int | None = None


# None stands for a word (the light's mode).
_FUNCTIONS: Final[Mapping[str, Mapping[str, _Number | None]]] = {
    "self_set_volume": {"volume": _Number(0, 100)},
    "self_volume_up": {"step": _Number(1, 100, 10)},
    "self_volume_down": {"step": _Number(1, 100, 10)},
    "self_get_volume": {},
    "self_mute": {},
    "self_unmute": {},
    "self_set_light_color": {"red": _Number(0, 255), "green": _Number(0, 255), "blue": _Number(0, 255)},
    "self_set_light_mode": {"mode": None},
    "self_set_rainbow_speed": {"speed_ms": _Number(50, 1000)},
    "self_get_battery_status": {},
}
FUNCTIONS: Final = tuple(_FUNCTIONS)
"""The names a device can be called by."""


def check_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The arguments as the device may get them: rounded, numbers out of range brought to its end.

    Raises InvalidCall for an unknown function, a missing or unknown argument, or one of a wrong kind.
    """
    rules = _FUNCTIONS.get(name)
    if rules is None:
        raise InvalidCall("the device has no such function")
    if unknown := [key for key in arguments if key not in rules]:
        raise InvalidCall(f"{name} takes no argument {str(unknown[0])[:40]!r}")
    checked: dict[str, JsonValue] = {}
    for key, rule in rules.items():
        value = arguments.get(key)
        if rule is None:
            checked[key] = _word(name, key, value)
        else:
            checked[key] = _number(name, key, rule.default if value is None else value, rule)
    return checked


class RequestIds:
    """`req_<milliseconds since the epoch>`, each used once: two in one millisecond differ all the same.

    Gateways read the digits as a number and reach the device with null for any other form.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._last = 0

    def __call__(self) -> str:
        """The next id."""
        self._last = max(self._last + 1, int(self._now() * 1000))
        return f"req_{self._last}"


class DeviceCalls:
    """Calls that wait for the device's answer. One per visit, on the visit's loop.

    `counts` tells how many answers were of use (`answered`) or not (`late`: after the deadline or twice; `alien`: to
    no call of ours), and how many calls met `silence` or were `not_sent`.
    """

    def __init__(
        self,
        send: Callable[[Outgoing], Awaitable[None]],
        *,
        now: Callable[[], float] = time.time,
        ids: Callable[[], str] | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._send = send
        self._now = now
        self._ids = ids or RequestIds(now)
        self._pending: dict[str, tuple[str, asyncio.Future[CallResult]]] = {}
        self._over: OrderedDict[str, str] = OrderedDict()
        self._closed = False

    async def call(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, deadline: float = DEFAULT_DEADLINE
    ) -> CallResult:
        """Call the device and wait at most `deadline` seconds, sending included, for what it answers.

        Raises InvalidCall for arguments that cannot be sent. What goes wrong on the way is a NoAnswer, never an error.
        """
        checked = check_arguments(name, arguments or {})
        if self._closed:
            return NoAnswer("closed")
        if len(self._pending) >= MAX_PENDING:
            self.counts["busy"] += 1
            return NoAnswer("busy")
        request_id = self._ids()
        timestamp = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        answer: asyncio.Future[CallResult] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = (name, answer)
        sent = False
        try:
            async with asyncio.timeout(deadline):
                await self._send(function_call(name, checked, request_id=request_id, timestamp=timestamp))
                sent = True
                return await answer
        except TimeoutError:
            return self._unanswered("silence" if sent else "not_sent")
        except OSError:  # ConnectionError included: the room is gone
            return self._unanswered("not_sent")
        finally:
            self._pending.pop(request_id, None)
            self._over[request_id] = name
            while len(self._over) > _MAX_REMEMBERED:
                self._over.popitem(last=False)

    def on_message(self, message: DeviceAnswer) -> bool:
        """Give the answer to the call that waits for it. False, and counted, where none does."""
        request_id = message.request_id
        if request_id is None and message.name is not None:
            # Older devices name only the function: the call of it that has waited longest.
            request_id = next((key for key, (name, _) in self._pending.items() if name == message.name), None)
        waiting = self._pending.get(request_id) if request_id is not None else None
        if waiting is None or request_id is None:
            known = request_id in self._over if request_id else message.name in self._over.values()
            self.counts["late" if known else "alien"] += 1
            return False
        name, answer = waiting
        if message.name is not None and message.name != name:
            self.counts["alien"] += 1
            return False
        del self._pending[request_id]
        self._over[request_id] = name
        if answer.done():
            return False
        self.counts["answered"] += 1
        answer.set_result(
            Answered(message.value) if message.ok else Failed(message.error or "the device reports an error")
        )
        return True

    def close(self) -> None:
        """End every wait with NoAnswer; later calls get it at once."""
        self._closed = True
        for _, answer in self._pending.values():
            if not answer.done():
                answer.set_result(NoAnswer("closed"))

    def _unanswered(self, reason: Literal["silence", "not_sent"]) -> NoAnswer:
        self.counts[reason] += 1
        return NoAnswer(reason)


@dataclass(frozen=True, slots=True)
class Battery:
    """The device's battery; what it did not tell is None."""

    percentage: int
    charging: bool | None = None
    state: str | None = None
    voltage_mv: int | None = None

    @classmethod
    def read(cls, value: JsonValue) -> Battery | None:
        """From an answer's value (an object, a number, or `40%`). None where it holds no percentage of 0 to 100."""
        fields = value if isinstance(value, dict) else {"percentage": value}
        percentage = _whole(fields.get("percentage", fields.get("level")))
        if percentage is None or not 0 <= percentage <= 100:
            return None
        charging, state = fields.get("charging"), fields.get("state")
        return cls(
            percentage=percentage,
            charging=charging if isinstance(charging, bool) else None,
            state=state[:40] if isinstance(state, str) else None,
            voltage_mv=_whole(fields.get("voltage_mv")),
        )


def read_volume(value: JsonValue) -> int | None:
    """The volume, 0 to 100, in an answer's value: a number, an object that names it, or a device status."""
    if isinstance(value, dict):
        speaker = value.get("audio_speaker")
        fields = speaker if isinstance(speaker, dict) else value
        value = next((fields[key] for key in ("volume", "current_volume", "new_volume") if key in fields), None)
    volume = _whole(value)
    return volume if volume is not None and 0 <= volume <= 100 else None


def _whole(value: JsonValue) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,6}\s?%?", value.strip()):
        return int(value.strip().rstrip("% "))
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        return None
    return round(value)


def _number(name: str, key: str, value: object, rule: _Number) -> int:
    if value is None:
        raise InvalidCall(f"{name} needs the argument {key}")
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or (isinstance(value, float) and math.isnan(value))
    ):
        raise InvalidCall(f"{name}: {key} must be a number from {rule.low} to {rule.high}")
    return round(min(max(value, rule.low), rule.high))


def _word(name: str, key: str, value: object) -> str:
    word = value.strip().lower() if isinstance(value, str) and len(value) <= 64 else ""
    if not _MODE.fullmatch(word):
        raise InvalidCall(f"{name}: {key} must be a word such as rainbow")
    return word

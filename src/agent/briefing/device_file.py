"""The device file (TOML): the Manager API's answers for those who run none."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agent.briefing.profile import DEFAULT_CHAT_HISTORY, ChatType, Child, Models
from agent.briefing.wire import Age, ChatHistory, Interests, Line, OptionalLine, Prompt, VoiceAnswer
from agent.errors import IdentityError, NotFound, Rejected, SettingsError
from agent.settings import LANGUAGE_PATTERN
from agent.values import DeviceMac

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
_LOCAL_AGENT: Final = "local"
_MAC_LIKE: Final = re.compile(r"[0-9A-Fa-f]{2}(?:[:-]?[0-9A-Fa-f]{2}){5}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


ChildId = Annotated[OptionalLine, BeforeValidator(_number_as_text)]
"""The child's own id, the same on each of its toys."""


class _ChildSection(_Strict):
    name: Line
    age: Age = None
    age_group: OptionalLine = None
    gender: OptionalLine = None
    interests: Interests = ()
    id: ChildId = None


class _VoiceSection(VoiceAnswer):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _DeviceSection(_Strict):
    agent_id: Line | None = None
    prompt: Prompt | None = None
    language: Annotated[str, Field(pattern=LANGUAGE_PATTERN)] | None = None
    chat_history: ChatHistory | None = None
    voice: _VoiceSection | None = None
    child: _ChildSection | None = None


def _mac(text: str) -> str:
    try:
        return DeviceMac(text)
    except IdentityError as error:
        raise ValueError(str(error)) from None


class _File(_Strict):
    default: _DeviceSection | None = None
    devices: dict[Annotated[str, AfterValidator(_mac)], _DeviceSection] = {}
    modes: dict[Line, Prompt] = {}


class DeviceFile:
    """`Directory` that answers from memory.

    A device without a section of its own is answered from `[default]`, or NotFound where there is none. A device's
    section takes what it does not say from `[default]`, except the child: a child belongs to one device.
    """

    def __init__(self, content: _File) -> None:
        self._content = content

    async def agent_id(self, mac: DeviceMac) -> str:
        """The section's `agent_id`, else `local`."""
        own, default = self._sections(mac)
        return own.agent_id or default.agent_id or _LOCAL_AGENT

    async def agent_prompt(self, mac: DeviceMac) -> str:
        """The section's `prompt`. Raises NotFound where neither it nor `[default]` has one."""
        own, default = self._sections(mac)
        prompt = own.prompt or default.prompt
        if prompt is None:
            raise NotFound("agent-prompt: the device file has no prompt for this device")
        return prompt

    async def agent_models(self, mac: DeviceMac, client_id: str) -> Models:  # noqa: ARG002 — the protocol's signature
        """Voice, language and chat history."""
        own, default = self._sections(mac)
        voice = own.voice or default.voice
        history = own.chat_history if own.chat_history is not None else default.chat_history
        return Models(
            voice=voice.value() if voice else None,
            chat_history=DEFAULT_CHAT_HISTORY if history is None else history,
            language=own.language or default.language,
        )

    async def child_profile(self, mac: DeviceMac) -> Child | None:
        """The section's child."""
        child = self._sections(mac)[0].child
        if child is None:
            return None
        return Child(child.name, child.age, child.age_group, child.gender, child.interests, profile_id=child.id)

    async def update_mode(self, agent_id: str, mode_name: str) -> str:  # noqa: ARG002 — the protocol's signature
        """The prompt of `[modes]` with this exact name, for this visit: the file is not written."""
        prompt = self._content.modes.get(mode_name)
        if prompt is None:
            raise Rejected("update-mode: the device file has no mode of this name")
        return prompt

    async def report_chat(
        self,
        mac: DeviceMac,  # noqa: ARG002 — the protocol's signature
        *,
        session_id: str,  # noqa: ARG002
        chat_type: ChatType,  # noqa: ARG002
        content: str,  # noqa: ARG002
        report_time: int,  # noqa: ARG002
        idempotency_key: str | None = None,  # noqa: ARG002
    ) -> bool:
        """Always False: nobody keeps it."""
        return False

    async def health(self) -> None:
        """A file that was read lives."""

    async def aclose(self) -> None:
        """Nothing is open."""

    def _sections(self, mac: DeviceMac) -> tuple[_DeviceSection, _DeviceSection]:
        default = self._content.default
        own = self._content.devices.get(mac, default)
        if own is None:
            raise NotFound("the device file does not know this device and has no [default]")
        return own, default or _DeviceSection()


def load_device_file(path: Path) -> DeviceFile:
    """Read and check the file; it blocks. Raises SettingsError: the file, each wrong key, its problem."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SettingsError(f"DEVICE_FILE: {path} is larger than {MAX_FILE_BYTES // 1024 // 1024} MiB")
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"DEVICE_FILE: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"DEVICE_FILE: {path} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # TOML's own errors, and Python's for numbers of thousands of digits
        raise SettingsError(f"DEVICE_FILE: {path} is not valid TOML: {_without_content(str(error))}") from None
    try:
        content = _File.model_validate(raw)
    except ValidationError as error:
        problems = [f"{path}: {_where(item['loc'], raw)}: {_problem(item)}" for item in error.errors()[:20]]
        raise SettingsError("DEVICE_FILE: " + "\n             ".join(problems)) from None
    devices = raw.get("devices", {})
    if len(content.devices) != len(devices):
        raise SettingsError(f"DEVICE_FILE: {path}: devices: two sections name the same MAC address")
    return DeviceFile(content)


def _where(location: tuple[int | str, ...], raw: dict[str, Any]) -> str:
    """The key's path; a device by its place in the file, since a MAC address does not belong in a log."""
    keys = [str(key) for key in location if key != "[key]"]
    devices = raw.get("devices")
    if len(keys) > 1 and keys[0] == "devices" and isinstance(devices, dict) and keys[1] in devices:
        keys[:2] = [f"devices (section {list(devices).index(keys[1]) + 1} of {len(devices)})"]
    return _MAC_LIKE.sub("(a MAC address)", ".".join(keys))


def _without_content(problem: str) -> str:
    """What is wrong and where, without what stands there: a MAC address does not belong in a log."""
    what, place = re.match(r"[^'\"(]*", problem), re.search(r"\(at [^()]*\)$", problem)
    return " ".join(part for part in (what and what[0].strip(), place and place[0]) if part) or "nested too deeply"


def _problem(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    return str(item["msg"]).removeprefix("Value error, ")

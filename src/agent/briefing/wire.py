"""The Manager API's answers at the border: hostile bytes in, plain values or a typed error out."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from agent.briefing.profile import DEFAULT_CHAT_HISTORY, Child, Models, Voice
from agent.errors import Malformed, MustBindFirst, NotFound, Rejected, Unauthorised
from agent.settings import LANGUAGE_PATTERN

T = TypeVar("T")

UNAUTHORISED: Final = 401
GENERIC: Final = 500
DEVICE_NOT_FOUND: Final = 10041
MUST_BIND_FIRST: Final = 10042

_LANGUAGE: Final = re.compile(LANGUAGE_PATTERN)
_BIND_CODE: Final = re.compile(r"(?<![0-9A-Za-z:])[0-9]{4,8}(?![0-9A-Za-z:])")
_SHORT_CODE: Final = re.compile(r"[0-9A-Za-z]{4,8}")
_ABOUT_FAILURE: Final = re.compile(
    r"internal|exception|error|fail|time.?out|服务器|内部|异常|错误|失败|超时", re.IGNORECASE
)
_INTERESTS_MAX: Final = 30
_PROFILE_ID_MAX: Final = 100


def clean(text: str) -> str:
    """`text` on one line, without control characters and outer blanks."""
    return "".join(char for char in " ".join(text.split()) if unicodedata.category(char) != "Cc").strip()


def _blank_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and not clean(value) else value


def _language(value: Any) -> str | None:
    text = value.strip().replace("_", "-") if isinstance(value, str) else ""
    return text if len(text) <= 35 and _LANGUAGE.fullmatch(text) else None


def _interests(value: Any) -> Any:
    """A plain list, a JSON list inside a string, or words with commas."""
    if value is None:
        return ()
    if isinstance(value, str):
        try:
            value = _WORDS.validate_json(value)
        except ValueError:
            value = re.split(r"[,;，、；]", value)
    if not isinstance(value, list | tuple):
        return value
    words = [clean(word)[:100] if isinstance(word, str) else word for word in value[:_INTERESTS_MAX]]
    return tuple(word for word in words if word != "")


def _profile_id(value: Any) -> str | None:
    """A number or a short text; anything else counts as not said, and the memory is the device's."""
    text = clean(value) if isinstance(value, str) else str(value) if type(value) is int else ""
    return text if 0 < len(text) <= _PROFILE_ID_MAX else None


_WORDS: Final = TypeAdapter(list[str])

Line = Annotated[str, AfterValidator(clean), Field(min_length=1, max_length=200)]
"""A required one-line text."""
OptionalLine = Annotated[Line | None, BeforeValidator(_blank_is_none)]
"""A one-line text, or nothing."""
Age = Annotated[Annotated[int, Field(ge=0, le=120)] | None, BeforeValidator(_blank_is_none)]
"""Years."""
Interests = Annotated[tuple[str, ...], BeforeValidator(_interests)]
"""What a child likes."""
ProfileId = Annotated[str | None, BeforeValidator(_profile_id)]
"""The child's own id."""
LanguageTag = Annotated[str | None, BeforeValidator(_language)]
"""A BCP 47 tag; anything else counts as not said."""
ChatHistory = Annotated[int, Field(ge=0, le=2)]
"""0 none, 1 text, 2 text and sound."""
Prompt = Annotated[str, Field(min_length=1, max_length=200_000, pattern=r"\S")]
"""A template that is not blank."""


class _Envelope(BaseModel):
    code: Annotated[int, Field(strict=True)]
    msg: str | None = None
    data: Any = None


class _ChildAnswer(BaseModel):
    name: Line
    age: Age = None
    age_group: OptionalLine = Field(default=None, alias="ageGroup")
    gender: OptionalLine = None
    interests: Interests = ()
    profile_id: ProfileId = Field(default=None, alias="id")


class VoiceAnswer(BaseModel):
    """A voice's description; providers call the same thing `voice` or `voice_id`."""

    model_config = ConfigDict(extra="ignore")

    type: Line
    voice: OptionalLine = None
    voice_id: OptionalLine = None
    model: OptionalLine = None

    def value(self) -> Voice:
        """As the rest of the house knows it."""
        kind = "edge" if self.type == "edge_tts" else self.type
        return Voice(type=kind, voice=self.voice or self.voice_id, model=self.model)


class _ModelsAnswer(BaseModel):
    selected_module: dict[str, Any]
    TTS: dict[str, Any] = {}
    chat_history_conf: ChatHistory | None = None
    language: LanguageTag = None


class Envelope:
    """A reply of the Manager API. Raises Malformed when the bytes are no such thing.

    `call` names the call in errors, which never repeat the reply itself: it may carry a child's name or a MAC.
    """

    __slots__ = ("_body", "_call")

    def __init__(self, call: str, raw: bytes) -> None:
        self._call = call
        try:
            self._body = _Envelope.model_validate_json(raw)
        except ValueError:  # pydantic's, or Python's own for text that cannot be decoded; both quote the reply
            raise Malformed(f"{call}: the answer is no envelope of code, msg and data") from None

    @property
    def code(self) -> int:
        """0, or the kind of error."""
        return self._body.code

    def data(self) -> Any:
        """The payload. Raises the typed error of a non-zero code."""
        code, call = self._body.code, self._call
        if code == 0:
            return self._body.data
        if code == UNAUTHORISED:
            raise Unauthorised(f"{call}: the Manager API refuses MANAGER_API_SECRET")
        if code == DEVICE_NOT_FOUND:
            raise NotFound(f"{call}: device not found")
        if code == MUST_BIND_FIRST:
            raise MustBindFirst(f"{call}: the device must be bound first", bind_code(self._body.msg or ""))
        raise Rejected(f"{call}: refused with code {code}", code)

    def agent_id(self) -> str:
        """Raises NotFound for a device that has no agent."""
        data = _blank_is_none(self.data())
        if data is None:
            raise NotFound(f"{self._call}: the device has no agent")
        return self._parse(_AGENT_ID, data)

    def prompt(self) -> str:
        """The template, as it is."""
        return self._parse(_PROMPT, self.data())

    def models(self) -> Models:
        """Voice, language, chat history. Raises Malformed when the selected voice is not described."""
        answer = self._parse(_MODELS, self.data())
        selected = answer.selected_module.get("TTS")
        voice = None
        if selected is not None and selected != "":
            described = answer.TTS.get(selected) if isinstance(selected, str) else None
            voice = self._parse(_VOICE, described).value()
        history = DEFAULT_CHAT_HISTORY if answer.chat_history_conf is None else answer.chat_history_conf
        return Models(voice=voice, chat_history=history, language=answer.language)

    def child(self) -> Child | None:
        """None when there is no profile: code 500, as long as its message does not speak of a failure instead."""
        message = self._body.msg or ""
        if self.code == GENERIC and not _ABOUT_FAILURE.search(message):
            return None
        data = self.data()
        if data is None:
            return None
        answer = self._parse(_CHILD, data)
        return Child(
            answer.name, answer.age, answer.age_group, answer.gender, answer.interests, profile_id=answer.profile_id
        )

    def reported(self) -> bool:
        """Whether a chat line was kept."""
        return self._parse(_BOOL, self.data())

    def _parse(self, adapter: TypeAdapter[T], data: Any) -> T:
        try:
            return adapter.validate_python(data)
        except (ValidationError, RecursionError):
            raise Malformed(f"{self._call}: the answer's data has an unexpected shape") from None


def bind_code(message: str) -> str:
    """The code in a "must be bound first" message, empty when it carries none."""
    codes: list[str] = _BIND_CODE.findall(message[:1000])
    if codes:
        return min(codes, key=lambda code: abs(len(code) - 6))
    whole = message.strip()
    return whole if _SHORT_CODE.fullmatch(whole) and any(char.isdigit() for char in whole) else ""


_AGENT_ID: Final[TypeAdapter[str]] = TypeAdapter(Line)
_PROMPT: Final[TypeAdapter[str]] = TypeAdapter(Prompt)
_MODELS: Final = TypeAdapter(_ModelsAnswer)
_VOICE: Final = TypeAdapter(VoiceAnswer)
_CHILD: Final = TypeAdapter(_ChildAnswer)
_BOOL: Final[TypeAdapter[bool]] = TypeAdapter(Annotated[bool, Field(strict=True)])

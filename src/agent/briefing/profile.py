"""What a briefing is made of: the child, the voice, and where each part came from. Plain values, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from agent.values import DeviceMac

DEFAULT_CHAT_HISTORY: Final = 1
"""Chat is reported unless the Manager API says otherwise: it checks the parent's choice again on each report."""


class Source(StrEnum):
    """Where a part of the briefing came from, best first."""

    LIVE = "live"
    """The Manager API, or the device file, just now."""
    CACHED = "cached"
    """The cache, younger than `API_CACHE_TTL`."""
    LAST_KNOWN = "last_known"
    """The cache, older than that, because the live answer failed."""
    DEFAULT = "default"
    """Nothing is known."""


class Part(StrEnum):
    """The four questions of a briefing."""

    AGENT_ID = "agent_id"
    PROMPT = "prompt"
    MODELS = "models"
    CHILD = "child"


class ChatType(StrEnum):
    """Who said a line of the chat history; `wire` is the Manager API's number."""

    USER = "user"
    AGENT = "agent"

    @property
    def wire(self) -> int:
        """1 is the user, 2 the agent."""
        return 1 if self is ChatType.USER else 2


@dataclass(frozen=True, slots=True)
class Child:
    """The child as its parents described it. Personal throughout: `repr` shows nothing of it.

    `age` is in years. `age_group` and `gender` are the Manager API's words, such as `Late Elementary` and `male`.
    `profile_id` is the same on every toy of the child; None where nobody gives one.
    """

    name: str = field(repr=False)
    age: int | None = field(default=None, repr=False)
    age_group: str | None = field(default=None, repr=False)
    gender: str | None = field(default=None, repr=False)
    interests: tuple[str, ...] = field(default=(), repr=False)
    profile_id: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Voice:
    """The voice a device's owner chose.

    `type` is the Manager API's TTS type, kept even when nobody here knows it; `edge_tts` is written `edge`.
    `voice` and `model` are the provider's own names, None where the provider's default is meant.
    """

    type: str
    voice: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Models:
    """How a device talks.

    `chat_history` is 0 (keep none), 1 (text) or 2 (text and sound). `language` is a BCP 47 tag.
    """

    voice: Voice | None = None
    chat_history: int = DEFAULT_CHAT_HISTORY
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Briefing:
    """Who the child is and how to talk to it, as far as it is known; every part may be a default.

    `prompt` is the raw Jinja2 template. `bind_code` is None for a device that may talk, else what the child should
    hear read out before anything works (empty where the Manager API asked for binding but gave no code).
    `sources` has every `Part`. `timings_ms` has the parts that were asked, in milliseconds. `problems` names, per part
    (and `cache`, `device_file`), the kind of error behind a part that is not live: an error class and no message.
    """

    agent_id: str | None = None
    prompt: str | None = field(default=None, repr=False)
    voice: Voice | None = None
    chat_history: int = DEFAULT_CHAT_HISTORY
    language: str | None = None
    child: Child | None = None
    bind_code: str | None = None
    sources: Mapping[Part, Source] = field(default_factory=lambda: dict.fromkeys(Part, Source.DEFAULT))
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


class Directory(Protocol):
    """Whoever knows devices, children and prompts: the Manager API or the device file.

    Every method raises a `RemoteError`: NotFound (no such device, or it has no agent), MustBindFirst, Unauthorised,
    Unavailable, Malformed or Rejected, and nothing else.
    """

    async def agent_id(self, mac: DeviceMac) -> str:
        """Id of the agent the device talks to."""

    async def agent_prompt(self, mac: DeviceMac) -> str:
        """The agent's prompt, a Jinja2 template."""

    async def agent_models(self, mac: DeviceMac, client_id: str) -> Models:
        """Voice, language and chat history; `client_id` is the room's name."""

    async def child_profile(self, mac: DeviceMac) -> Child | None:
        """The child; None when the device has none."""

    async def update_mode(self, agent_id: str, mode_name: str) -> str:
        """Give the agent the template of this exact name and return its prompt."""

    async def report_chat(
        self,
        mac: DeviceMac,
        *,
        session_id: str,
        chat_type: ChatType,
        content: str,
        report_time: int,
        idempotency_key: str | None = None,
    ) -> bool:
        """Report one line of the chat; False when the device has no agent, so that nobody keeps it.

        `session_id` is the room's name, `report_time` is in Unix seconds. Never repeated here; with an
        `idempotency_key` a repeat can be told from a second line.
        """

    async def health(self) -> None:
        """Return when the service lives."""

    async def aclose(self) -> None:
        """Close what is open; safe to call twice."""

"""The prompt of a visit: rules, the owner's template, the child, then what changes from visit to visit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from typing import Any, Final

import structlog

from agent.briefing.profile import Child
from agent.briefing.prompt_template import (
    NAME_MAX,
    VARIABLES,
    WORD_MAX,
    WORDS_MAX,
    Template,
    TemplateCompiler,
    TemplateRefused,
    Words,
)
from agent.briefing.prompt_text import HOLE, PRIVATE, USED, estimate_tokens, harmless, without_holes

_log = structlog.get_logger(__name__)

EMOJIS: Final = tuple("😶🙂😆😂😔😠😭😍😳😲😱🤔😉😎😌🤤😘😏😴😜🙄")
"""What devices of this contract can show."""
MEMORIES_MAX: Final = 20
MEMORY_MAX: Final = 300
TEMPLATE_TEXT_MAX: Final = 60_000
"""Characters a rendered template may have."""

_MARKER: Final = re.compile(r"<memory\s*/?>", re.IGNORECASE)
_MARKER_END: Final = re.compile(r"</memory\s*>", re.IGNORECASE)
_RAW_TAG: Final = re.compile(r"\{\{.*?(?:\}\}|$)|\{%.*?(?:%\}|$)|\{#.*?(?:#\}|$)", re.DOTALL)
_POINTER: Final = "(it stands in <memory> at the end)"
_NOTHING_YET: Final = "nothing yet"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is told, ready for the system role.

    The first `stable_length` characters are the same at each visit of this child, so that providers can cache them;
    memories and time follow. `tokens` is an estimate. `warnings` are for the operator and hold nothing personal.
    `used_default` is True when the owner's template could not be used, or there was none.
    """

    text: str = field(repr=False)
    stable_length: int
    tokens: int
    warnings: tuple[str, ...]
    used_default: bool


class PromptWriter:
    """Writes prompts. Construct once per process; `write` needs one to a few milliseconds, and up to some tens for the
    largest templates that are accepted.

    `token_budget` is the length above which a warning is given.
    """

    def __init__(self, *, token_budget: int, emojis: Sequence[str] = EMOJIS) -> None:
        self._token_budget = token_budget
        self._emojis = ",".join(emojis)
        self._compiler = TemplateCompiler()
        self._rules = _shipped("prompt_rules.jinja").strip()
        self._default = self._compiler.compile(_shipped("prompt_default.jinja"))
        self._compiled: dict[str, Template] = {}

    def write(
        self,
        template: str | None,
        child: Child | None = None,
        memories: Sequence[str] = (),
        *,
        language: str | None = None,
        now: datetime | None = None,
    ) -> Prompt:
        """The prompt from the owner's `template` (Jinja2, None: the default) and what is known. Never raises.

        `memories` are one sentence each, most useful first; `language` is a BCP 47 tag; `now` is the child's time.
        """
        warnings: list[str] = []
        values = self._values(child)
        body, told = "", set[str]()
        used_default = template is None or not template.strip()
        if not used_default:
            try:
                body, told = self._render(self._compile(template or ""), values)
                if not body:
                    raise TemplateRefused("the template leaves no text")
            except TemplateRefused as error:
                warnings.append(f"the default prompt is used: {error}")
                used_default = True
        if used_default:
            body, told = self._render(self._default, values)
        body, marked = _move_memory(body)
        parts = [self._rules, body, _about(values, told), _speak(language)]
        stable = "\n\n".join(part for part in parts if part)
        changing = "\n\n".join(part for part in (_memory_block(memories, marked), _time(now)) if part)
        text = f"{stable}\n\n{changing}" if changing else stable
        tokens = estimate_tokens(text)
        if tokens > self._token_budget:
            warnings.append(f"the prompt has about {tokens} tokens, PROMPT_TOKEN_BUDGET is {self._token_budget}")
        for warning in warnings:
            _log.warning("prompt_warning", warning=warning)
        return Prompt(text, len(stable), tokens, tuple(warnings), used_default)

    def _compile(self, source: str) -> Template:
        if source not in self._compiled:
            self._compiled.clear()
            self._compiled[source] = self._compiler.compile(PRIVATE.sub("", source))
        return self._compiled[source]

    @staticmethod
    def _render(template: Template, values: dict[str, Any]) -> tuple[str, set[str]]:
        """The text without holes and marks, and the variables whose values stand in it."""
        raw = template.render(values)
        if len(raw) > TEMPLATE_TEXT_MAX:
            raise TemplateRefused(f"the template gives {len(raw)} characters, {TEMPLATE_TEXT_MAX} are allowed")
        text = without_holes(_RAW_TAG.sub(HOLE, raw))
        marks = re.compile(f"{USED}([0-9]+){USED}")
        told = {VARIABLES[int(number)] for number in marks.findall(text)} | template.iterated
        return PRIVATE.sub("", marks.sub("", text)).strip(), told

    def _values(self, child: Child | None) -> dict[str, Any]:
        values: dict[str, Any] = {"emojiList": self._emojis}
        if child is None:
            return values
        interests = (harmless(word, WORD_MAX) for word in child.interests[:WORDS_MAX])
        values |= {
            "child_name": harmless(child.name, NAME_MAX),
            "child_age": child.age,
            "age_group": harmless(child.age_group or "", NAME_MAX),
            "child_gender": harmless(child.gender or "", NAME_MAX),
            "child_interests": Words(word for word in interests if word),
        }
        return values


def _shipped(name: str) -> str:
    return resources.files("agent.briefing").joinpath(name).read_text(encoding="utf-8")


def _about(values: dict[str, Any], told: set[str]) -> str:
    """What is known of the child and not said above already."""
    labels = {
        "child_name": "Name",
        "child_age": "Age",
        "age_group": "Age group",
        "child_gender": "Gender",
        "child_interests": "Likes",
    }
    facts = [
        f"- {label}: {values[name]}"
        for name, label in labels.items()
        if name not in told and values.get(name) not in (None, "", ())
    ]
    if "age_group" not in told and values.get("child_age") is not None:
        facts = [fact for fact in facts if not fact.startswith("- Age group:")]
    return "\n".join(["About the child:", *facts]) if facts else ""


def _move_memory(body: str) -> tuple[str, bool]:
    """Replace the `<memory>` marker by a pointer to the block at the end; whether there was one.

    The block changes with every visit, and whatever stands behind it cannot be cached.
    """
    marker = _MARKER.search(body)
    if marker is None:
        return body, False
    end = _MARKER_END.search(body, marker.end()) if not marker[0].endswith("/>") else None
    before, after = body[: marker.start()], body[(end or marker).end() :]
    after = _MARKER_END.sub("", _MARKER.sub("", after))
    return re.sub(r"\n{3,}", "\n\n", before + _POINTER + after).strip(), True


def harmless_memories(memories: Sequence[str]) -> list[str]:
    """The first MEMORIES_MAX memories as lines of up to MEMORY_MAX characters that carry no orders for the model."""
    return [line for memory in memories[:MEMORIES_MAX] if (line := harmless(memory, MEMORY_MAX))]


def _memory_block(memories: Sequence[str], marked: bool) -> str:
    lines = harmless_memories(memories)
    if not lines and not marked:
        return ""
    return "\n".join(["<memory>", *(f"- {line}" for line in lines or [_NOTHING_YET]), "</memory>"])


def _speak(language: str | None) -> str:
    tag = harmless(language or "", 35)
    return f"Speak the language with the BCP 47 tag {tag}, unless the child speaks another." if tag else ""


def _time(now: datetime | None) -> str:
    return f"It is {now:%A}, {now.day} {now:%B} {now.year}, {now:%H:%M}." if now else ""

"""What a scripted language model answers: rules over the conversation, for tests, demo and benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """The model wants a tool: its name and arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


Reply = str | ToolCall | Sequence["str | ToolCall"]
"""Text, a tool call, or several of them in order."""


@dataclass(frozen=True)
class ChatRequest:
    """What the model was told, as it came over the wire."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[str, ...] = ()
    model: str = ""
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> str:
        """All system and developer messages, joined by blank lines."""
        return "\n\n".join(text_of(m) for m in self.messages if m.get("role") in {"system", "developer"})

    @property
    def last_user(self) -> str:
        """The last user message, empty when there is none."""
        return next((text_of(m) for m in reversed(self.messages) if m.get("role") == "user"), "")

    @property
    def tool_result(self) -> tuple[str, str] | None:
        """Name and text of the tool result that ends the conversation so far; None when something else does."""
        if not self.messages or self.messages[-1].get("role") != "tool":
            return None
        result = self.messages[-1]
        call_id = result.get("tool_call_id")
        calls = (call for m in self.messages for call in m.get("tool_calls") or ())
        name = next((call["function"]["name"] for call in calls if call.get("id") == call_id), "")
        return name, text_of(result)


Script = Callable[[ChatRequest], Reply]


def text_of(message: dict[str, Any]) -> str:
    """The text of a chat message whose content is a string or a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))


@dataclass
class Rules:
    """A script of regular expressions, tried in order against the last thing said.

    `said` maps patterns over the user's words to replies, `after_tool` patterns over `<tool name>: <result>` to what is
    said once the tool has answered. Groups are available to texts and to tool arguments as `\\1` or `\\g<name>`.
    Words no rule knows are answered with `otherwise`; a tool result no rule knows is read out.
    """

    said: list[tuple[str, Reply]] = field(default_factory=list)
    after_tool: list[tuple[str, Reply]] = field(default_factory=list)
    otherwise: Reply = "I heard you. Tell me more about that, please."

    def __call__(self, request: ChatRequest) -> Reply:
        result = request.tool_result
        if result is not None:
            name, text = result
            return _first(self.after_tool, f"{name}: {text}", text or "Done.")
        return _first(self.said, request.last_user, self.otherwise)


def _first(rules: Sequence[tuple[str, Reply]], text: str, otherwise: Reply) -> Reply:
    for pattern, reply in rules:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            return _expand(reply, match)
    return otherwise


def _expand(reply: Reply, match: re.Match[str]) -> Reply:
    if isinstance(reply, str):
        return match.expand(reply) if "\\" in reply else reply
    if isinstance(reply, ToolCall):
        return ToolCall(
            reply.name, {k: match.expand(v) if isinstance(v, str) else v for k, v in reply.arguments.items()}
        )
    return [part for item in reply for part in parts_of(_expand(item, match))]


def parts_of(reply: Reply) -> list[str | ToolCall]:
    """The reply as a list."""
    return [reply] if isinstance(reply, (str, ToolCall)) else list(reply)


def tokens(text: str) -> list[str]:
    """The text in the small pieces a model streams; joined they are the text."""
    return re.findall(r"\s*\S{1,6}|\s+$", text)


def count_tokens(messages: Sequence[dict[str, Any]]) -> int:
    """Roughly how many tokens the messages are: four characters each."""
    return len(json.dumps(list(messages), ensure_ascii=False)) // 4 if messages else 0


def script_from_json(value: Any) -> Rules:
    """A script from `{"said":[["pattern","text"|{"tool","arguments"}],…],"after_tool":[…],"otherwise":"…"}`.

    Raises ValueError when it has another shape or a pattern does not compile.
    """
    if not isinstance(value, dict):
        raise ValueError("a script is an object")

    def reply(item: Any) -> Reply:
        if isinstance(item, str):
            return item
        if isinstance(item, dict) and isinstance(item.get("tool"), str):
            return ToolCall(item["tool"], dict(item.get("arguments") or {}))
        if isinstance(item, list):
            return [part for one in item for part in parts_of(reply(one))]
        raise ValueError("a reply is a text, {tool, arguments} or a list of these")

    def rules(name: str) -> list[tuple[str, Reply]]:
        found = []
        for rule in value.get(name, []):
            if not (isinstance(rule, list) and len(rule) == 2 and isinstance(rule[0], str)):
                raise ValueError(f"{name}: a rule is [pattern, reply]")
            try:
                re.compile(rule[0])
            except re.error as error:
                raise ValueError(f"{name}: {rule[0]!r} is not a regular expression: {error}") from None
            found.append((rule[0], reply(rule[1])))
        return found

    made = Rules(said=rules("said"), after_tool=rules("after_tool"))
    if "otherwise" in value:
        made.otherwise = reply(value["otherwise"])
    return made

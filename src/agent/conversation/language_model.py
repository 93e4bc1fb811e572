"""A language model that finishes its sentence: when a provider fails or falls silent, the next one goes on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import structlog
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, APITimeoutError, llm
from livekit.agents.llm import ChatChunk, ChatContext, LLMStream, Tool, ToolChoice
from livekit.agents.types import NOT_GIVEN, NotGivenOr

from agent.conversation.standby import Candidate, Lineup
from agent.errors import AllProvidersFailed
from agent.values import whole_text

FIRST_TOKEN_PATIENCE: Final = 2.5
FIRST_TOKEN_DEADLINE: Final = 10.0
TOKEN_GAP: Final = 2.5
BREAKS_PER_REPLY: Final = 3

GO_ON: Final = (
    "Your last message broke off in the middle. Go on with exactly the word that comes next, and finish it shortly. "
    "Repeat nothing of it, and do not mention the break."
)

log = structlog.get_logger(__name__)


class SteadyLLM(llm.LLM[Any]):
    """Asks the first model of the lineup that works, and lets another go on where one breaks off.

    A model that has not begun after `first_token_patience` seconds gets company: who begins first answers. One that is
    silent for `token_gap` seconds in mid-reply, or fails there, is replaced; what it had said is not said again. When
    nobody is left, `on_failed` hears of it and the reply ends as it stands, without an error.
    """

    def __init__(
        self,
        lineup: Lineup[llm.LLM[Any]],
        *,
        on_failed: Callable[[AllProvidersFailed], None],
        first_token_patience: float = FIRST_TOKEN_PATIENCE,
        first_token_deadline: float = FIRST_TOKEN_DEADLINE,
        token_gap: float = TOKEN_GAP,
    ) -> None:
        super().__init__()
        self.lineup = lineup
        self.on_failed = on_failed
        self.first_token_patience = first_token_patience
        self.first_token_deadline = first_token_deadline
        self.token_gap = token_gap

    @property
    def model(self) -> str:
        """The model that is asked next."""
        first = self.lineup.first
        return first.model if first else "none"

    @property
    def provider(self) -> str:
        """The provider that is asked next."""
        first = self.lineup.first
        return first.provider if first else "none"

    def prewarm(self, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Nothing: the sockets are warmed for all providers together, as soon as the visit starts."""

    def chat(
        self,
        *,
        chat_ctx: ChatContext,
        tools: list[Tool] | None = None,
        conn_options: APIConnectOptions = APIConnectOptions(max_retry=0),  # noqa: B008 — frozen
        parallel_tool_calls: NotGivenOr[bool] = NOT_GIVEN,
        tool_choice: NotGivenOr[ToolChoice] = NOT_GIVEN,
        extra_kwargs: NotGivenOr[dict[str, Any]] = NOT_GIVEN,
    ) -> LLMStream:
        """One reply."""
        options = {
            "parallel_tool_calls": parallel_tool_calls,
            "tool_choice": tool_choice,
            "extra_kwargs": extra_kwargs,
        }
        return _SteadyStream(self, _sendable(chat_ctx), tools or [], replace(conn_options, max_retry=0), options)


class _SteadyStream(LLMStream):
    def __init__(
        self,
        model: SteadyLLM,
        chat_ctx: ChatContext,
        tools: list[Tool],
        conn_options: APIConnectOptions,
        options: dict[str, Any],
    ) -> None:
        super().__init__(model, chat_ctx=chat_ctx, tools=tools, conn_options=conn_options)
        self._steady = model
        self._options = options
        self._said = ""
        self._half = ""
        self._called = False

    async def _run(self) -> None:
        context = self._chat_ctx
        for _ in range(BREAKS_PER_REPLY + 1):
            try:
                candidate, (stream, first) = await self._steady.lineup.race(
                    lambda client, context=context: self._begin(client, context),  # type: ignore[misc]
                    patience=self._steady.first_token_patience,
                    deadline=self._steady.first_token_deadline,
                    discard=lambda begun: begun[0].aclose(),
                )
            except AllProvidersFailed as error:
                self._give_up(error)
                return
            if await self._pass_on(candidate, stream, first):
                return
            context = _continuation(self._chat_ctx, self._said)
        self._give_up(AllProvidersFailed(self._steady.lineup.kind, "the reply broke off too often"))

    async def _begin(self, client: llm.LLM[Any], context: ChatContext) -> tuple[LLMStream, ChatChunk]:
        timeout = self._steady.first_token_deadline
        stream = client.chat(
            chat_ctx=context,
            tools=self._tools,
            conn_options=APIConnectOptions(max_retry=0, timeout=timeout),
            **self._options,
        )
        try:
            async for chunk in stream:
                if chunk.has_response():
                    return stream, chunk
            raise APIConnectionError("the model answered nothing")
        except BaseException:  # also when cancelled: whoever gives up the stream closes it
            await stream.aclose()
            raise

    async def _pass_on(self, candidate: Candidate[llm.LLM[Any]], stream: LLMStream, first: ChatChunk) -> bool:
        """Hand the stream through; False when it broke off and somebody should go on."""
        seam = _Seam(self._said) if self._said else None
        chunk: ChatChunk | None = first
        try:
            while chunk is not None:
                self._send(chunk, seam)
                chunk = await asyncio.wait_for(anext(stream, None), self._steady.token_gap)
        except (APIError, TimeoutError) as error:
            self._flush(first.id, seam)
            problem = APITimeoutError() if isinstance(error, TimeoutError) else error
            self._steady.lineup.failed(candidate, problem)
            log.warning(
                "reply broke off", provider=candidate.name, characters=len(self._said), called_tool=self._called
            )
            return self._called  # a tool call that is out is acted upon: the reply goes on after its result
        finally:
            await stream.aclose()
        self._flush(first.id, seam)
        return True

    def _send(self, chunk: ChatChunk, seam: _Seam | None) -> None:
        delta = chunk.delta
        if delta is not None:
            self._called = self._called or bool(delta.tool_calls)
            if delta.content:
                # Some servers cut an emoji in two: its first half waits for the second.
                text = self._half + delta.content
                self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
                delta.content = whole_text(text)
            for call in delta.tool_calls:
                call.name, call.arguments = whole_text(call.name), whole_text(call.arguments)
            if delta.content and seam is not None:
                delta.content = seam.push(delta.content)
            self._said += delta.content or ""
        self._event_ch.send_nowait(chunk)

    def _flush(self, request_id: str, seam: _Seam | None) -> None:
        rest = seam.flush() if seam is not None else ""
        if rest:
            self._said += rest
            self._event_ch.send_nowait(ChatChunk(id=request_id, delta=llm.ChoiceDelta(role="assistant", content=rest)))

    def _give_up(self, error: AllProvidersFailed) -> None:
        log.error("no language model answers", error=str(error), characters=len(self._said))
        self._steady.on_failed(error)


def _sendable(context: ChatContext) -> ChatContext:
    """`context` as it is, or a copy without the half characters with which no later request could be encoded."""
    changed: dict[int, Any] = {}
    for place, item in enumerate(context.items):
        update: dict[str, Any] = {}
        if item.type == "message":
            content = [whole_text(part) if isinstance(part, str) else part for part in item.content]
            update = {"content": content} if content != item.content else {}
        elif item.type == "function_call" and whole_text(item.arguments) != item.arguments:
            update = {"arguments": whole_text(item.arguments)}
        elif item.type == "function_call_output" and whole_text(item.output) != item.output:
            update = {"output": whole_text(item.output)}
        if update:
            changed[place] = item.model_copy(update=update)
    if not changed:
        return context
    copy = context.copy()
    copy.items = [changed.get(place, item) for place, item in enumerate(context.items)]
    return copy


def _continuation(context: ChatContext, said: str) -> ChatContext:
    if not said:
        return context
    copy = context.copy()
    copy.add_message(role="assistant", content=said)
    copy.add_message(role="system", content=GO_ON)
    return copy


class _Seam:
    """Joins a continuation to what was said, without what the other model says a second time.

    Models that begin anew, or with the last words once more, are heard only from the first new word on; a word that
    broke off in its middle is finished.
    """

    WORDS = 8

    def __init__(self, said: str) -> None:
        self._said = said
        self._held: str | None = ""

    def push(self, text: str) -> str:
        """What may be passed on; empty while it could still be a repetition."""
        if self._held is None:
            return text
        self._held += text
        new, said = _words(self._held), _words(self._said)
        whole, part = (new[:-1], new[-1]) if new and self._held[-1].isalnum() else (new, "")
        repeats = whole == said[: len(whole)] and (
            len(whole) >= len(said) or said[len(whole)].startswith(part) or part.startswith(said[len(whole)])
        )
        if (repeats and len(whole) < len(said)) or len(whole) < min(self.WORDS, len(said)):
            return ""
        return self.flush()

    def flush(self) -> str:
        """The rest, when nothing more comes."""
        held, self._held = self._held or "", None
        matches, said = list(_WORD.finditer(held)), _words(self._said)
        new = [match.group().lower() for match in matches]
        for count in range(min(len(new), len(said)), 0, -1):
            head, tail = new[:count], said[-count:]
            broken = head[-1].startswith(tail[-1]) and (count > 1 or len(tail[-1]) > 2)
            if head[:-1] == tail[:-1] and (head[-1] == tail[-1] or broken):
                return held[matches[count - 1].start() + len(tail[-1]) :]
        if held[:1].isalnum() and not self._said[-1:].isspace():
            return f" {held}"
        return held


_WORD: Final = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]

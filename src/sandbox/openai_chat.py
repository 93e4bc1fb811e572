"""A stand-in for OpenAI's chat completions: scripted replies, streamed token by token, tool calls, usage."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from sandbox.faults import Behaviour, Cut, Stream, unauthorised
from sandbox.replies import ChatRequest, Rules, Script, ToolCall, count_tokens, parts_of, tokens

CACHE_MINIMUM = 1024
CACHE_STEP = 128


@dataclass
class ChatCall:
    """One request and what came of it: `sent` is the text that left, `finished` whether the whole reply did."""

    request: ChatRequest
    at: float
    prompt_tokens: int
    cached_tokens: int
    sent: str = ""
    finished: bool = False


class ChatApi:
    """`POST /v1/chat/completions` and `GET /v1/models`.

    `script` decides the replies and may be changed at any time; `calls` keeps every request. Prompt caching is counted
    as OpenAI counts it: the longest prefix shared with an earlier request, from 1,024 tokens on, in steps of 128.
    """

    def __init__(
        self, script: Script | None = None, *, key: str | None = None, models: Collection[str] | None = None
    ) -> None:
        self.script: Script = script or Rules()
        self.models = models
        self.behaviour = Behaviour()
        self.calls: list[ChatCall] = []
        self.key = key
        self._ids = itertools.count(1)
        self._arrived = asyncio.Condition()

    def routes(self) -> list[web.RouteDef]:
        """Routes below `/v1`."""
        return [web.post("/v1/chat/completions", self._complete), web.get("/v1/models", self._models)]

    async def wait_for_calls(self, count: int) -> list[ChatCall]:
        """Wait until at least `count` requests have come, and return them all."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.calls) >= count)
        return self.calls

    async def _models(self, request: web.Request) -> web.Response:
        check_bearer(request, self.key)
        model = {"id": "gpt-4.1-mini", "object": "model", "created": 0, "owned_by": "sandbox"}
        return web.json_response({"object": "list", "data": [model]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        check_bearer(request, self.key)
        body = await read_json(request)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not isinstance(body.get("model"), str):
            raise bad_request("model and messages are needed")
        check_model(body["model"], self.models)
        chat = ChatRequest(
            tuple(messages), tuple(t["function"]["name"] for t in body.get("tools") or ()), body["model"], body
        )
        call = ChatCall(chat, time.monotonic(), count_tokens(messages), self._cached(chat))
        self.calls.append(call)
        async with self._arrived:
            self._arrived.notify_all()
        fate = self.behaviour.take()
        await fate.before_answer()
        if fate.nonsense:
            kind = "text/event-stream" if body.get("stream") else "application/json"
            return web.Response(text='data: {"choices":[{"delta":{"content": oops\n\n', content_type=kind)
        reply = parts_of(self.script(chat))
        if not body.get("stream"):
            await fate.before_body(request)
            call.sent = "".join(part for part in reply if isinstance(part, str))
            call.finished = True
            return web.json_response(self._whole(chat, reply, call))
        out = Stream(request, fate, "text/event-stream")
        try:
            await self._stream(out, chat, reply, call, bool((body.get("stream_options") or {}).get("include_usage")))
        except Cut:
            return out.response
        call.finished = True
        return await out.finish()

    async def _stream(
        self, out: Stream, chat: ChatRequest, reply: list[str | ToolCall], call: ChatCall, usage: bool
    ) -> None:
        base = {"id": f"chatcmpl-{next(self._ids)}", "object": "chat.completion.chunk", "created": int(time.time())}
        base["model"] = chat.model

        async def send(delta: dict[str, Any], finish: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            await out.write(_event({**base, "choices": [choice], **({"usage": None} if usage else {})}))

        role: dict[str, Any] = {"role": "assistant"}
        called = 0
        for part in reply:
            if isinstance(part, str):
                for token in tokens(part):
                    await send({**role, "content": token})
                    call.sent += token
                    role = {}
                continue
            function = {"name": part.name, "arguments": ""}
            await send(
                {
                    **role,
                    "tool_calls": [{"index": called, "id": self._call_id(), "type": "function", "function": function}],
                }
            )
            role = {}
            arguments = json.dumps(part.arguments, ensure_ascii=False)
            for piece in (arguments[i : i + 12] for i in range(0, len(arguments), 12)):
                await send({"tool_calls": [{"index": called, "function": {"arguments": piece}}]})
            called += 1
        await send({}, "tool_calls" if called else "stop")
        if usage:
            await out.write(_event({**base, "choices": [], "usage": _usage(call)}))
        await out.write(b"data: [DONE]\n\n")

    def _whole(self, chat: ChatRequest, reply: list[str | ToolCall], call: ChatCall) -> dict[str, Any]:
        calls = [
            {
                "id": self._call_id(),
                "type": "function",
                "function": {"name": part.name, "arguments": json.dumps(part.arguments)},
            }
            for part in reply
            if isinstance(part, ToolCall)
        ]
        message: dict[str, Any] = {"role": "assistant", "content": call.sent or None}
        if calls:
            message["tool_calls"] = calls
        return {
            "id": f"chatcmpl-{next(self._ids)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": chat.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
            "usage": _usage(call),
        }

    def _call_id(self) -> str:
        return f"call_{next(self._ids)}"

    def _cached(self, chat: ChatRequest) -> int:
        now = json.dumps(chat.messages, ensure_ascii=False)
        shared = (
            max((_common(now, json.dumps(c.request.messages, ensure_ascii=False)) for c in self.calls), default=0) // 4
        )
        return shared // CACHE_STEP * CACHE_STEP if shared >= CACHE_MINIMUM else 0


def _common(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _usage(call: ChatCall) -> dict[str, Any]:
    completion = len(tokens(call.sent))
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": call.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": call.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def check_bearer(request: web.Request, key: str | None) -> None:
    """Raise 401 unless the request carries the key; None lets everybody in who sends any."""
    sent = request.headers.get("Authorization", "")
    if not sent.startswith("Bearer ") or (key is not None and sent != f"Bearer {key}"):
        raise unauthorised()


def check_model(model: str, known: Collection[str] | None) -> None:
    """Raise 404 for a model the server does not have; None has all."""
    if known is not None and model not in known:
        error = {"message": f"The model `{model}` does not exist", "type": "invalid_request_error"}
        raise web.HTTPNotFound(text=json.dumps({"error": error}), content_type="application/json")


async def read_json(request: web.Request) -> dict[str, Any]:
    """The request's JSON object. Raises 400 for anything else."""
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    return body


def bad_request(message: str) -> web.HTTPBadRequest:
    """The 400 that OpenAI-compatible services answer."""
    return web.HTTPBadRequest(
        text=json.dumps({"error": {"message": message, "type": "invalid_request_error"}}),
        content_type="application/json",
    )

"""Whatever a language model's server streams over a real socket: words and calls, or a reply that ends without one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fuzz_support import JSON, TEXT, Answering, Run, fuzz, http, objects
from hypothesis import example, given
from hypothesis import strategies as st
from livekit.agents import llm
from livekit.plugins import openai

from agent.conversation.language_model import SteadyLLM
from agent.conversation.resume import Snapshot, decode, encode
from agent.conversation.standby import Lineup
from agent.errors import AllProvidersFailed

CALLED = objects("name", "arguments", values=TEXT) | objects("name", "arguments")
CALLS = st.lists(
    st.fixed_dictionaries(
        {"index": st.sampled_from([0, 0, 1]) | JSON},
        optional={"id": TEXT | JSON, "type": st.just("function"), "function": CALLED | JSON},
    ),
    max_size=3,
)
DELTAS = st.fixed_dictionaries({}, optional={"role": TEXT, "content": TEXT | JSON, "tool_calls": CALLS | JSON}) | JSON
CHOICES = st.lists(
    st.fixed_dictionaries(
        {"index": st.just(0), "delta": DELTAS},
        optional={"finish_reason": st.sampled_from(["stop", "length", "tool_calls", "content_filter"]) | JSON},
    )
    | JSON,
    max_size=2,
)
CHUNKS = st.fixed_dictionaries(
    {"id": st.just("c1") | JSON, "object": st.just("chat.completion.chunk"), "choices": CHOICES | JSON},
    optional={
        "usage": objects("prompt_tokens", "completion_tokens", "total_tokens") | JSON,
        "error": JSON,
        "model": JSON,
    },
)
EVENTS = CHUNKS.map(lambda chunk: b"data: " + json.dumps(chunk).encode()) | st.sampled_from(
    [b"data: [DONE]", b"data:", b": ping", b"event: error\ndata: {}", b"data: {", b"data: \xff", b"id: \0", b"retry: x"]
)
# Most of a stream is as it should be, so that what is not is met in the middle of a reply.
RIGHT = st.fixed_dictionaries({}, optional={"role": st.just("assistant"), "content": TEXT, "tool_calls": CALLS}).map(
    lambda delta: b"data: " + json.dumps({"id": "c1", "choices": [{"index": 0, "delta": delta}]}).encode()
)
STREAMS = st.builds(
    lambda events, end: b"\n\n".join(events) + end,
    st.lists(RIGHT | RIGHT | RIGHT | EVENTS, max_size=6),
    st.sampled_from([b"\n\n", b"\n\ndata: [DONE]\n\n", b""]),
)
ANSWERS = (
    STREAMS.map(lambda body: http(200, body, "Content-Type: text/event-stream"))
    | st.builds(
        lambda status, body, kind: http(status, body, f"Content-Type: {kind}"),
        st.sampled_from([200, 200, 200, 200, 400, 401, 429, 500]),
        STREAMS | JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=100),
        st.sampled_from(["text/event-stream", "text/event-stream", "application/json", "text/html"]),
    )
    | st.binary(max_size=100)
)


def said(*contents: object) -> bytes:
    chunks = [{"id": "c1", "choices": [{"index": 0, "delta": {"content": content}}]} for content in contents]
    body = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    return http(200, body + b"data: [DONE]\n\n", "Content-Type: text/event-stream")


@pytest.fixture(scope="module")
def client(run: Run, server: Answering) -> Iterator[openai.LLM]:
    async def make() -> openai.LLM:
        return openai.LLM(model="m", base_url=f"{server.url}/v1", api_key="x")

    made = run(make())
    yield made
    run(made.aclose())


async def ask(
    client: openai.LLM, context: llm.ChatContext, failures: list[AllProvidersFailed]
) -> tuple[str, list[llm.FunctionToolCall]]:
    """The reply's words and calls."""
    model = SteadyLLM(
        Lineup("language model", [("0", client)]),
        on_failed=failures.append,
        first_token_patience=2.0,
        first_token_deadline=2.0,
        token_gap=2.0,
    )
    text, calls = "", []
    async with model.chat(chat_ctx=context) as stream:
        async for chunk in stream:
            if chunk.delta is not None:
                text += chunk.delta.content or ""
                calls += chunk.delta.tool_calls
    return text, calls


@fuzz(0.6)
@given(answer=ANSWERS)
@example(answer=said("Once ", "upon ", 5, "a time."))
@example(answer=said("Once ", None, ["a"], {"b": 1}))
@example(answer=said("\ud800", "\0"))
@example(answer=http(200, b"data: " + b"[" * 50_000 + b"\n\n", "Content-Type: text/event-stream"))
@example(answer=http(200, b"data: " + b"9" * 5000 + b"\n\n", "Content-Type: text/event-stream"))
def test_any_stream_is_a_reply_that_ends(run: Run, server: Answering, client: openai.LLM, answer: bytes) -> None:
    failures: list[AllProvidersFailed] = []
    context = llm.ChatContext.empty()
    context.add_message(role="user", content="tell me a story")
    server.answer = answer
    text, calls = run(ask(client, context, failures))
    text.encode()
    for call in calls:
        call.name.encode()
        call.arguments.encode()


def test_an_emoji_that_was_cut_in_two_is_one(run: Run, server: Answering, client: openai.LLM) -> None:
    server.answer = said("So funny \ud83d", "\ude06", " haha \ud83d", "!")
    assert run(ask(client, llm.ChatContext.empty(), []))[0] == "So funny 😆 haha !"


@fuzz(0.4)
@given(user=TEXT, output=TEXT, arguments=TEXT)
@example(user="\ud83d", output="ok", arguments="{}")
@example(user="hello", output="\ud83d", arguments="{}")
@example(user="hello", output="ok", arguments='{"a":"\ud83d"}')
def test_whatever_was_said_can_be_answered_and_found_again(
    run: Run, server: Answering, client: openai.LLM, user: str, output: str, arguments: str
) -> None:
    context = llm.ChatContext.empty()
    context.add_message(role="user", content=f"? {user}")
    context.items.append(llm.FunctionCall(call_id="1", name="play", arguments=arguments))
    context.items.append(llm.FunctionCallOutput(call_id="1", name="play", output=output, is_error=False))
    failures: list[AllProvidersFailed] = []
    server.answer = said("Once upon a time.")
    assert run(ask(client, context, failures)) == ("Once upon a time.", [])
    assert not failures
    kept = decode(encode(Snapshot(context)), 1.0)
    assert kept is not None
    assert len(kept.chat.items) == len(context.items)

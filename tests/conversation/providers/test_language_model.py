from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from livekit.agents import llm
from livekit.plugins import openai

from agent.conversation.language_model import GO_ON, SteadyLLM, _Seam
from agent.conversation.standby import Lineup
from agent.errors import AllProvidersFailed
from sandbox.faults import Fault
from sandbox.providers import ProviderServer
from sandbox.replies import Rules, ToolCall

REPLY = "Once upon a time there was a dragon who loved to sing all day."


class Scene:
    def __init__(self, *servers: ProviderServer, patience: float = 1.0) -> None:
        self.failures: list[AllProvidersFailed] = []
        clients = [openai.LLM(model="m", base_url=s.v1, api_key="x") for s in servers]
        self.clients = clients
        self.model = SteadyLLM(
            Lineup("language model", [(str(i), client) for i, client in enumerate(clients)]),
            on_failed=self.failures.append,
            first_token_patience=patience,
            first_token_deadline=patience * 3 + 0.1,
            token_gap=patience,
        )
        self.context = llm.ChatContext.empty()
        self.context.add_message(role="user", content="tell me a story")

    async def ask(self) -> tuple[str, list[llm.FunctionToolCall]]:
        text, calls = "", []
        async with self.model.chat(chat_ctx=self.context) as stream:
            async for chunk in stream:
                if chunk.delta:
                    text += chunk.delta.content or ""
                    calls += chunk.delta.tool_calls
        return text, calls


@pytest.fixture
async def scene(main: ProviderServer, standby: ProviderServer) -> AsyncIterator[Scene]:
    for server in (main, standby):
        server.chat.script = Rules(otherwise=REPLY)
    scene = Scene(main, standby)
    yield scene
    for client in scene.clients:
        await client.aclose()


async def test_answers_with_the_first(scene: Scene, standby: ProviderServer) -> None:
    assert await scene.ask() == (REPLY, [])
    assert standby.chat.calls == []


@pytest.mark.parametrize("fault", list(Fault))
async def test_every_fault_before_the_first_token_is_covered(scene: Scene, main: ProviderServer, fault: Fault) -> None:
    main.chat.behaviour.fail(fault, after=0)
    assert await scene.ask() == (REPLY, [])
    assert scene.failures == []


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.RESET, Fault.TRUNCATE])
@pytest.mark.parametrize("after", [1, 2, 3, 5, 8, 11])
async def test_a_reply_that_breaks_off_is_finished_by_the_other_without_repeating(
    scene: Scene, main: ProviderServer, standby: ProviderServer, fault: Fault, after: int
) -> None:
    main.chat.behaviour.fail(fault, after=after)
    assert await scene.ask() == (REPLY, [])
    messages = standby.chat.calls[0].request.messages
    assert messages[-1]["content"] == GO_ON
    assert messages[-2]["role"] == "assistant"
    assert REPLY.startswith(messages[-2]["content"])


async def test_a_model_that_goes_on_as_asked_is_joined_with_a_space(
    scene: Scene, main: ProviderServer, standby: ProviderServer
) -> None:
    main.chat.script = Rules(otherwise="The sun is")
    main.chat.behaviour.fail(Fault.STALL, after=3)
    standby.chat.script = Rules(otherwise="very warm today.")
    assert (await scene.ask())[0] == "The sun is very warm today."


async def test_a_broken_provider_rests_so_that_the_next_turn_is_quick(
    scene: Scene, main: ProviderServer, standby: ProviderServer
) -> None:
    main.chat.behaviour.fail(Fault.HANG)
    await scene.ask()
    await scene.ask()
    assert len(main.chat.calls) == 1
    assert len(standby.chat.calls) == 2


@pytest.fixture
async def patient_scene(main: ProviderServer, standby: ProviderServer) -> AsyncIterator[Scene]:
    """One that is not hurried by a busy machine."""
    scene = Scene(main, standby, patience=3.0)
    yield scene
    for client in scene.clients:
        await client.aclose()


async def test_a_tool_call_that_is_out_is_not_made_twice(
    patient_scene: Scene, main: ProviderServer, standby: ProviderServer
) -> None:
    main.chat.script = Rules(otherwise=[ToolCall("play_music", {"name": "x"}), ToolCall("pause", {})])
    main.chat.behaviour.fail(Fault.STALL, after=4)
    _, calls = await patient_scene.ask()
    assert [call.name for call in calls] == ["play_music"]
    assert standby.chat.calls == []


async def test_when_nobody_answers_the_hook_hears_it_and_the_reply_ends_empty(
    scene: Scene, main: ProviderServer, standby: ProviderServer
) -> None:
    main.chat.behaviour.fail(Fault.ERROR)
    await standby.stop()
    assert await scene.ask() == ("", [])
    [failure] = scene.failures
    assert failure.kind == "language model"
    main.chat.behaviour.heal()
    assert await scene.ask() == (REPLY, [])


async def test_when_nobody_can_go_on_the_beginning_stands(
    scene: Scene, main: ProviderServer, standby: ProviderServer
) -> None:
    main.chat.behaviour.fail(Fault.STALL, after=4)
    standby.chat.behaviour.fail(Fault.ERROR)
    text, _ = await scene.ask()
    assert text
    assert REPLY.startswith(text)
    assert len(scene.failures) == 1


async def test_an_empty_answer_counts_as_none(scene: Scene, main: ProviderServer) -> None:
    main.chat.script = Rules(otherwise="")
    assert await scene.ask() == (REPLY, [])


@pytest.mark.parametrize(
    ("said", "more", "whole"),
    [
        ("Hello my", " friend, come in.", "Hello my friend, come in."),
        ("Hello my", "friend, come in.", "Hello my friend, come in."),
        ("Hello my", "my friend, come in.", "Hello my friend, come in."),
        ("Hello my", "Hello my friend, come in.", "Hello my friend, come in."),
        ("Hello my fri", "friend, come in.", "Hello my friend, come in."),
        ("Hello my fri", "Hello my friend, come in.", "Hello my friend, come in."),
        ("Hello my friend", ", come in.", "Hello my friend, come in."),
        ("Hello my friend.", " Come in.", "Hello my friend. Come in."),
        ("One two three four five six seven eight nine ten", " one two and done.", None),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_seams(said: str, more: str, whole: str | None, size: int) -> None:
    seam = _Seam(said)
    joined = said + "".join(seam.push(more[i : i + size]) for i in range(0, len(more), size)) + seam.flush()
    assert joined == (whole or said + more)

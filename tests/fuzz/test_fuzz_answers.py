"""Whatever the Manager API and Mem0 answer over a real socket: a briefing with defaults, memories, or a typed error."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

import pytest
from fuzz_support import JSON, TEXT, Answering, Run, fuzz, http, objects
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter

from agent.briefing.desk import BriefingDesk
from agent.briefing.manager_api import ManagerApiClient
from agent.briefing.memory import MAX_ANSWER_BYTES, Mem0Client
from agent.briefing.profile import Briefing, ChatType, Models, Part
from agent.briefing.prompt import PromptWriter
from agent.errors import RemoteError
from agent.settings import Settings
from agent.values import DeviceMac

MAC = DeviceMac("68:25:dd:ba:39:78")
SECRET = "s3cret-of-the-manager"
DEADLINE_S = 0.1
"""Most answers come within some milliseconds; the rest are those that never end, and retries."""
WRITER = PromptWriter(token_budget=100_000)

DATA = (
    JSON
    | objects("name", "age", "ageGroup", "gender", "interests")
    | st.builds(
        lambda modules, **rest: {"selected_module": modules, **rest},
        objects("TTS", values=TEXT) | JSON,
        TTS=st.dictionaries(TEXT, objects("type", "voice", "voice_id", "model"), max_size=2) | JSON,
        chat_history_conf=JSON,
        language=JSON,
    )
)
ENVELOPES = st.fixed_dictionaries(
    {"code": st.sampled_from([0, 0, 0, 401, 500, 10041, 10042]) | JSON}, optional={"msg": TEXT | JSON, "data": DATA}
)
BODIES = ENVELOPES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200)
HEADERS = st.sampled_from(
    [
        (),
        ("Content-Type: application/json; charset=utf-99",),
        ("Content-Encoding: gzip",),
        ("Content-Encoding: deflate",),
        ("Transfer-Encoding: chunked",),
        ("Retry-After: 0",),
        ("Retry-After: \u0665",),
        ("Location: //elsewhere.invalid/",),
        ("Set-Cookie: a=b; Path=/",),
        ("X: " + "y" * 9000,),
    ]
)
STATUSES = st.sampled_from([200, 200, 200, 200, 201, 204, 302, 400, 401, 404, 429, 500, 999])
ANSWERS = st.builds(lambda status, body, headers: http(status, body, *headers), STATUSES, BODIES, HEADERS) | st.one_of(
    st.binary(max_size=200),
    st.builds(lambda body, cut: http(200, body)[:-cut], BODIES, st.integers(1, 30)),
    st.binary(max_size=80).map(lambda data: b"HTTP/1.1 200 OK\r\n" + data),
)


async def refused(call: Coroutine[Any, Any, Any]) -> Any:
    """What a call gives, None where it raises one of the errors that it may."""
    try:
        return await call
    except RemoteError as error:
        told = str(error)
    assert SECRET not in told
    assert MAC not in told
    return None


@fuzz()
@given(answer=ANSWERS)
@example(answer=http(200, json.dumps({"code": 0, "data": {"name": "\ud800" * 8, "interests": "\ud800"}}).encode()))
@example(answer=http(200, b'{"code":0,"data":' + b"[" * 100_000))
@example(answer=http(200, b'{"code":0,"data":{"name":"x","age":' + b"9" * 5000 + b"}}"))
@example(answer=http(429, b"", "Retry-After: 1"))
@example(answer=b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")
@example(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}")
def test_any_answer_of_the_manager_api_is_a_value_or_a_typed_error(run: Run, server: Answering, answer: bytes) -> None:
    async def ask() -> None:
        client = ManagerApiClient(server.url, SecretStr(SECRET), deadline=DEADLINE_S)
        try:
            assert isinstance(await refused(client.agent_id(MAC)), str | None)
            assert isinstance(await refused(client.update_mode("agent", "Story")), str | None)
            models = await refused(client.agent_models(MAC, "room"))
            TypeAdapter(Models | None).validate_python(models, strict=True)
            await refused(client.health())
            line = {"session_id": "s", "chat_type": ChatType.USER, "content": "\ud800 hello", "report_time": 1}
            assert await refused(client.report_chat(MAC, **line)) in (True, False, None)
        finally:
            await client.aclose()

    server.answer = answer
    run(ask())


@fuzz(0.6)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=2), parallel=st.booleans())
def test_any_answers_make_a_briefing_and_a_prompt(
    run: Run, server: Answering, tmp_path_factory: pytest.TempPathFactory, answers: list[bytes], parallel: bool
) -> None:
    settings = Settings(
        _env_file=None,
        manager_api_url=server.url,
        manager_api_secret=SECRET,
        manager_api_deadline_ms=round(DEADLINE_S * 1000),
        enable_parallel_api="true" if parallel else "false",
        state_dir=tmp_path_factory.getbasetemp() / "state",
    )  # type: ignore[call-arg]

    async def fetch() -> None:
        # The second visit has what the first one kept.
        for answer in answers:
            server.answer = answer
            async with BriefingDesk(settings, mac=MAC, room_name="room") as desk:
                before = await desk.peek()
                assert before is None or isinstance(before, Briefing)
                briefing = await desk.fetch()
            assert set(briefing.sources) == set(Part)
            assert briefing.chat_history in (0, 1, 2)
            assert not {*briefing.problems.values()} - {kind.__name__ for kind in kinds(RemoteError)}
            prompt = WRITER.write(briefing.prompt, briefing.child, language=briefing.language)
            assert prompt.text

    run(fetch())


def kinds(error: type[Exception]) -> set[type[Exception]]:
    """An error and all that are derived from it."""
    return {error}.union(*(kinds(kind) for kind in error.__subclasses__()))


RESULTS = st.lists(objects("memory", "id", "score"), max_size=4)
MEMORIES = JSON | RESULTS | st.fixed_dictionaries({"results": RESULTS | JSON})


@fuzz()
@given(
    answer=ANSWERS
    | st.builds(
        lambda status, value, headers: http(status, json.dumps(value).encode(), *headers), STATUSES, MEMORIES, HEADERS
    )
)
@example(answer=http(200, b"[" * 100_000))
@example(answer=http(200, b'{"results":[{"memory":"x","score":' + b"9" * 5000 + b"}]}"))
@example(answer=http(200, b" " * (MAX_ANSWER_BYTES + 1)))
@example(answer=http(429, b"", "Retry-After: \u0665"))
def test_any_answer_of_mem0_is_memories_or_a_typed_error(run: Run, server: Answering, answer: bytes) -> None:
    async def ask() -> None:
        client = Mem0Client(server.url, SecretStr(SECRET), timeout_s=DEADLINE_S, add_timeout_s=DEADLINE_S)
        try:
            found = await refused(client.recall("who", user_id=MAC))
            assert found is None or all(isinstance(memory, str) and memory.strip() for memory in found)
            if found:
                assert WRITER.write(None, memories=found).text
            await refused(client.remember([{"role": "user", "content": "\ud800"}], user_id=MAC, key="k"))
            await client.warm()
        finally:
            await client.aclose()

    server.answer = answer
    run(ask())

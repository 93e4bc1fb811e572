from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr

from agent.briefing.mem0_process import mem0_socket, open_memory, self_hosted
from agent.briefing.memory import Mem0Client, Memory, Message, Recollection, user_id
from agent.errors import Malformed, RateLimited, Rejected, Unauthorised, Unavailable
from agent.settings import Settings
from agent.values import DeviceMac
from sandbox.faults import Fault, swallow_cut
from sandbox.mem0_api import Mem0Api

MAC = DeviceMac("68:25:dd:ba:39:78")
ME = str(MAC)


@pytest.fixture
def api() -> Mem0Api:
    return Mem0Api(key="m0-key", key_field="outbox_key")


@asynccontextmanager
async def serving(api: Mem0Api) -> AsyncIterator[str]:
    app = web.Application(middlewares=[swallow_cut])
    app.add_routes(api.routes())
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        api.search_behaviour.heal()
        api.add_behaviour.heal()
        await runner.cleanup()


@pytest.fixture
async def url(api: Mem0Api) -> AsyncIterator[str]:
    async with serving(api) as url:
        yield url


@pytest.fixture
async def memory(url: str) -> AsyncIterator[Mem0Client]:
    client = Mem0Client(url, SecretStr("m0-key"), timeout_s=5)
    yield client
    await client.aclose()
    await client.aclose()


async def test_what_was_remembered_is_recalled_for_its_child_only(memory: Mem0Client, api: Mem0Api) -> None:
    api.remember(ME, "I have a dog named Rex")
    await memory.remember([Message(role="user", content="I am afraid of spiders")], user_id=ME, key="k1")
    await memory.remember([Message(role="user", content="I am another child")], user_id="other", key="k2")
    found = await memory.recall("Does the child have a dog?", user_id=ME)
    assert found[0] == "I have a dog named Rex"
    assert set(found) == {"I have a dog named Rex", "I am afraid of spiders"}
    assert await memory.recall("Does the child have a dog?", user_id=ME, limit=1) == found[:1]


async def test_the_key_travels_with_every_repeat(memory: Mem0Client, api: Mem0Api) -> None:
    for _ in range(2):
        await memory.remember([Message(role="user", content="hi")], user_id=ME, key="k1", metadata={"session": "s"})
    assert api.deliveries() == {"k1": 2}
    assert api.added[0].metadata == {"session": "s", "outbox_key": "k1"}
    assert len(api.memories) == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.ERROR, Unavailable),
        (Fault.HANG, Unavailable),
        (Fault.STALL, Unavailable),
        (Fault.RESET, Unavailable),
        (Fault.TRUNCATE, Unavailable),
        (Fault.NONSENSE, Malformed),
        (Fault.RATE_LIMIT, RateLimited),
    ],
)
async def test_every_fault_has_its_error_and_passes(url: str, api: Mem0Api, fault: Fault, error: type) -> None:
    client = Mem0Client(url, SecretStr("m0-key"), timeout_s=0.3, add_timeout_s=0.3)
    message = [Message(role="user", content="hi")]
    api.search_behaviour.fail(fault, times=1, retry_after=7)
    api.add_behaviour.fail(fault, times=1, retry_after=7)
    with pytest.raises(error) as caught:
        await client.recall("what", user_id=ME)
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after == 7
    with pytest.raises(error):
        await client.remember(message, user_id=ME, key="k1")
    assert ME not in str(caught.value)
    await client.recall("what", user_id=ME)
    await client.remember(message, user_id=ME, key="k1")
    await client.aclose()


async def test_a_wrong_key_and_a_dead_server_are_told_apart(url: str) -> None:
    wrong = Mem0Client(url, SecretStr("other"))
    with pytest.raises(Unauthorised, match="MEM0_API_KEY"):
        await wrong.recall("what", user_id=ME)
    await wrong.aclose()
    dead = Mem0Client("http://127.0.0.1:1")
    with pytest.raises(Unavailable):
        await dead.recall("what", user_id=ME)
    await dead.warm()
    await dead.aclose()


async def test_a_refused_request_is_rejected(memory: Mem0Client) -> None:
    with pytest.raises(Rejected) as caught:
        await memory.remember([], user_id=ME, key="k1")
    assert caught.value.code == 400


@pytest.mark.parametrize(
    "answer",
    [b"[]", b'[{"memory":"a"}]', b'{"results":[]}', b"{}", b"null", b'{"results":[{}]}', b"[" * 5000, b"\xff", b""],
)
async def test_only_the_contracts_shapes_are_taken(answer: bytes) -> None:
    async def answered(_: web.Request) -> web.Response:
        return web.Response(body=answer, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v3/memories/search/", answered)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = Mem0Client(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    try:
        if answer in (b"[]", b'{"results":[]}'):
            assert await client.recall("what", user_id=ME) == []
        elif answer == b'[{"memory":"a"}]':
            assert await client.recall("what", user_id=ME) == ["a"]
        else:
            with pytest.raises(Malformed):
                await client.recall("what", user_id=ME)
    finally:
        await client.aclose()
        await runner.cleanup()


async def test_an_endless_answer_is_cut_off() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"[" * 65536)

    app = web.Application()
    app.router.add_post("/v3/memories/search/", endless)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = Mem0Client(f"http://127.0.0.1:{runner.addresses[0][1]}")
    with pytest.raises(Malformed, match="longer than"):
        await client.recall("what", user_id=ME)
    await client.aclose()
    await runner.cleanup()


def test_a_memory_belongs_to_the_child_where_its_profile_has_an_id_else_to_the_device() -> None:
    assert user_id(MAC) == "68:25:dd:ba:39:78"
    other = DeviceMac("000000000001")
    assert user_id(MAC, "17") == user_id(other, "17") != user_id(MAC, "18")


def test_the_key_decides_who_hosts(tmp_path: Path) -> None:
    hosted = Settings(_env_file=None, mem0_api_key="m0-x", state_dir=tmp_path)  # type: ignore[call-arg,arg-type]
    own = Settings(_env_file=None, state_dir=tmp_path)  # type: ignore[call-arg]
    assert (self_hosted(hosted), self_hosted(own)) == (False, True)
    assert mem0_socket(own) == tmp_path / "mem0" / "mem0.sock"
    deep = Settings(_env_file=None, state_dir=tmp_path / ("x" * 90))  # type: ignore[call-arg]
    assert len(str(mem0_socket(deep))) < 100
    assert mem0_socket(deep) == mem0_socket(deep)
    assert isinstance(open_memory(own), Mem0Client)


class SlowMemory:
    """Answers when it is let go; `error` instead of an answer."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.go = asyncio.Event()
        self.asked: list[tuple[str, str, int]] = []
        self._error = error

    async def recall(self, query: str, *, user_id: str, limit: int = 5) -> list[str]:
        self.asked.append((query, user_id, limit))
        await self.go.wait()
        if self._error is not None:
            raise self._error
        return ["has a dog"]

    async def remember(
        self, messages: Sequence[Message], *, user_id: str, key: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        raise AssertionError("not asked for")

    async def aclose(self) -> None: ...


async def test_memories_in_time_are_there_for_the_first_words() -> None:
    slow = SlowMemory()
    slow.go.set()
    memory: Memory = slow
    rec = Recollection(memory, ME, deadline_ms=10_000, limit=3)
    assert await rec.in_time() == ("has a dog",)
    assert rec.outcome == "in_time"
    assert rec.took_ms is not None
    assert rec.take_late() is None
    assert await rec.in_time() == ("has a dog",), "asking again is allowed"
    assert slow.asked[0][1:] == (ME, 3)
    await rec.aclose()


async def test_memories_of_another_child_are_dropped_and_its_own_asked_for() -> None:
    slow = SlowMemory()
    slow.go.set()
    rec = Recollection(slow, ME, deadline_ms=10_000)
    assert await rec.in_time() == ("has a dog",)
    await rec.ask_for(ME)
    assert len(slow.asked) == 1, "the same one is not asked for twice"
    slow.go.clear()
    await rec.ask_for("child:18")
    assert rec.outcome == "waiting"
    slow.go.set()
    assert await rec.in_time() == ("has a dog",)
    assert [user for _, user, _ in slow.asked] == [ME, "child:18"]
    await rec.aclose()


async def test_late_memories_of_another_child_join_no_turn() -> None:
    slow = SlowMemory()
    late = asyncio.Event()
    rec = Recollection(slow, ME, deadline_ms=10, on_late=lambda _: late.set())
    assert await rec.in_time() is None
    slow.go.set()
    await late.wait()
    slow.go.clear()
    await rec.ask_for("child:18")
    assert rec.take_late() is None
    await rec.aclose()
    assert rec.take_late() is None


async def test_late_memories_join_once_at_a_later_turn() -> None:
    slow = SlowMemory()
    late: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
    rec = Recollection(slow, ME, deadline_ms=10, on_late=late.set_result)
    assert await rec.in_time() is None
    assert rec.take_late() is None
    slow.go.set()
    assert await late == ("has a dog",)
    assert rec.outcome == "late"
    assert rec.take_late() == ("has a dog",)
    assert rec.take_late() is None
    assert await rec.in_time() is None
    await rec.aclose()


@pytest.mark.parametrize("error", [Unavailable("down"), Malformed("nonsense"), ZeroDivisionError("a bug")])
async def test_a_failing_memory_is_none_and_counted(error: Exception) -> None:
    slow = SlowMemory(error)
    slow.go.set()
    rec = Recollection(slow, ME, deadline_ms=10_000)
    assert await rec.in_time() is None
    assert rec.outcome == "failed"
    await rec.aclose()


async def test_a_visit_that_ends_first_stops_asking() -> None:
    rec = Recollection(SlowMemory(), ME, deadline_ms=10)
    assert await rec.in_time() is None
    await rec.aclose()
    assert rec.outcome == "cancelled"
    assert await rec.in_time() is None
    early = Recollection(SlowMemory(), ME, deadline_ms=10_000)
    await early.aclose()
    assert await early.in_time() is None

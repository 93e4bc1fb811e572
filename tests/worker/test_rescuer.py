"""The look for forsaken rooms against an API that answers as LiveKit, late, wrongly, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from google.protobuf.message import Message
from livekit import api
from livekit.agents.utils.aio import cancel_and_wait
from livekit.protocol.models import ParticipantInfo

from agent.rescue import ALIVE, LifeSigns, NoHeartbeats, Rescuer
from agent.rescue_redis import RedisHeartbeats
from agent.settings import Settings
from sandbox.processes import free_port

ROOMS = [f"2b1f6f0e-6a53-4c3c-9d5c-7a8f5b6d1c1{number}_6825ddbbf3a{number}" for number in range(9)]
Answer = Message | tuple[int, str]


class LiveKitApi:
    """Answers `method` with what `answers[method]` makes of the request's body, and counts requests by method."""

    def __init__(self) -> None:
        self.rooms = [ROOMS[0]]
        self.asked: list[str] = []
        self.dispatched: list[str] = []
        self.answers: dict[str, Callable[[bytes], Awaitable[Answer]]] = {}
        self.changed = asyncio.Condition()

    async def answer(self, request: web.Request) -> web.Response:
        method, body = request.path.rsplit("/", 1)[1], await request.read()
        async with self.changed:
            self.asked.append(method)
            self.changed.notify_all()
        own = self.answers.get(method)
        found = await own(body) if own is not None else self._usual(method, body)
        if isinstance(found, Message):
            return web.Response(body=found.SerializeToString())
        return web.Response(status=found[0], text=found[1], content_type="application/json")

    def _usual(self, method: str, body: bytes) -> Message:
        if method == "ListRooms":
            return api.ListRoomsResponse(rooms=[api.Room(name=name, num_participants=1) for name in self.rooms])
        if method == "ListParticipants":
            mac = api.ListParticipantsRequest.FromString(body).room.rsplit("_", 1)[1]
            identity = ":".join(mac[at : at + 2] for at in range(0, 12, 2))
            agent = ParticipantInfo(identity="agent-dead", kind=ParticipantInfo.Kind.AGENT)
            return api.ListParticipantsResponse(participants=[ParticipantInfo(identity=identity), agent])
        if method == "RemoveParticipant":
            return api.RemoveParticipantResponse()
        assert method == "CreateDispatch"
        self.dispatched.append(api.CreateAgentDispatchRequest.FromString(body).room)
        return api.AgentDispatch()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(condition)


class AllMine:
    """Claims that are always granted."""

    async def claim(self, room: api.Room) -> bool:
        return True

    async def aclose(self) -> None:
        """Holds nothing."""


class AllDead(NoHeartbeats):
    """Every agent is known to be dead."""

    async def dead(self, agents: object) -> frozenset[str]:
        return frozenset({"agent-dead"})


@pytest.fixture
def livekit() -> LiveKitApi:
    return LiveKitApi()


@pytest.fixture
async def client(livekit: LiveKitApi) -> AsyncIterator[api.LiveKitAPI]:
    app = web.Application()
    app.router.add_post("/twirp/{service}/{method}", livekit.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = api.LiveKitAPI(f"http://127.0.0.1:{runner.addresses[0][1]}", "key", "secret" * 8)
    yield client
    await client.aclose()
    await runner.cleanup()


@pytest.fixture
def rescuer(client: api.LiveKitAPI, tmp_path: Path) -> Rescuer:
    settings = Settings(_env_file=None, state_dir=tmp_path)  # type: ignore[call-arg]
    return Rescuer(settings, client, AllMine(), AllDead(), serving=frozenset, able=lambda: True)


async def test_who_says_that_it_lives_is_not_taken_for_dead(livekit: LiveKitApi, rescuer: Rescuer) -> None:
    usual = livekit._usual

    async def signed(body: bytes) -> Answer:
        found = usual("ListParticipants", body)
        assert isinstance(found, api.ListParticipantsResponse)
        found.participants[1].attributes[ALIVE] = "1"
        return found

    livekit.answers["ListParticipants"] = signed
    assert await rescuer.look() == 0
    del livekit.answers["ListParticipants"]
    assert await rescuer.look() == 1


async def test_the_sign_is_given_once_and_taken_back_and_tried_again_where_it_failed(
    livekit: LiveKitApi, client: api.LiveKitAPI
) -> None:
    agents = {"agent-1": ROOMS[1], "agent-2": ROOMS[2]}
    signs = LifeSigns(client, lambda: agents)
    told: list[tuple[str, str]] = []
    failures: list[Answer] = [(503, '{"code": "unavailable", "msg": "later"}'), (200, "no protocol buffer at all")]

    async def update(body: bytes) -> Answer:
        if failures:
            return failures.pop()
        request = api.UpdateParticipantRequest.FromString(body)
        assert agents[request.identity] == request.room
        told.append((request.identity, request.attributes[ALIVE]))
        return ParticipantInfo()

    livekit.answers["UpdateParticipant"] = update
    await signs.show(False)
    assert livekit.asked == []
    for _ in range(4):
        await signs.show(True)
    assert failures == []
    assert sorted(told) == [("agent-1", "1"), ("agent-2", "1")]
    del agents["agent-2"]
    await signs.show(False)
    await signs.show(False)
    assert told[2:] == [("agent-1", "")]


async def test_who_cannot_reach_redis_knows_that_others_may_take_it_for_dead() -> None:
    heard: asyncio.Queue[bool] = asyncio.Queue()
    beating = RedisHeartbeats(f"redis://127.0.0.1:{free_port()}/0", list, unheard=heard.put)
    running = asyncio.create_task(beating.run())
    try:
        assert await asyncio.wait_for(heard.get(), 20)
    finally:
        await cancel_and_wait(running)
        await beating.aclose()


async def refused(body: bytes) -> Answer:
    return 404, '{"code": "not_found", "msg": "no such participant"}'


async def test_a_dead_agent_that_has_gone_by_itself_does_not_keep_the_next_away(
    livekit: LiveKitApi, rescuer: Rescuer
) -> None:
    livekit.answers["RemoveParticipant"] = refused
    assert await rescuer.look() == 1
    assert livekit.dispatched == [ROOMS[0]]


async def test_a_room_that_has_gone_is_no_failure(livekit: LiveKitApi, rescuer: Rescuer) -> None:
    livekit.answers["ListParticipants"] = refused
    assert await rescuer.look() == 0


async def test_a_room_that_fails_does_not_keep_others_from_their_agents(livekit: LiveKitApi, rescuer: Rescuer) -> None:
    async def odd(body: bytes) -> Answer:
        request = api.ListParticipantsRequest.FromString(body)
        return (400, "[]") if request.room == ROOMS[0] else livekit._usual("ListParticipants", body)

    livekit.rooms = ROOMS
    livekit.answers["ListParticipants"] = odd
    with pytest.raises(AttributeError):
        await rescuer.look()
    assert sorted(livekit.dispatched) == ROOMS[1:]


@pytest.mark.parametrize("answer", [(200, "<html><body>maintenance</body></html>"), (400, "[]"), (500, "nothing")])
async def test_answers_that_are_none_do_not_end_the_rescuer(
    livekit: LiveKitApi, rescuer: Rescuer, answer: Answer
) -> None:
    async def nonsense(body: bytes) -> Answer:
        return answer

    livekit.answers["ListRooms"] = nonsense
    running = asyncio.create_task(rescuer.run())
    await livekit.until(lambda: "ListRooms" in livekit.asked)
    livekit.answers.clear()
    try:
        async with asyncio.timeout(30):
            while not livekit.dispatched:
                rescuer.wake()
                await asyncio.wait([running], timeout=0.05)
                assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_claimed_room_gets_its_agent_although_the_look_ends(livekit: LiveKitApi, rescuer: Rescuer) -> None:
    go = asyncio.Event()

    async def slow(body: bytes) -> Answer:
        await go.wait()
        return api.RemoveParticipantResponse()

    livekit.answers["RemoveParticipant"] = slow
    running = asyncio.create_task(rescuer.run())
    await livekit.until(lambda: "RemoveParticipant" in livekit.asked)
    running.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    await asyncio.wait([running], timeout=30)
    assert running.cancelled()
    assert livekit.dispatched == [ROOMS[0]]

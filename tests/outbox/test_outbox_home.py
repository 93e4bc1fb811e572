"""Redis as the outbox's home, and the file that stands in for it: in order, and nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest
from outbox_support import HttpDeliverer, Receiver, line

from agent.errors import OutboxError
from agent.outbox.courier import OutboxCourier
from agent.outbox.home import (
    FORWARD,
    SpooledOutbox,
    _Forwarder,
    file_store,
    open_couriers,
    shared_store,
    writers_store,
)
from agent.outbox.items import Lane, OutboxItem, OutboxSink
from agent.outbox.sqlite import SqliteOutbox
from agent.redis_client import connect
from agent.settings import Settings
from sandbox.processes import free_port
from sandbox.redis_server import RedisServer


@pytest.fixture
async def own_redis(redis_server: RedisServer) -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


def settings(folder: Path, redis: RedisServer) -> Settings:
    return Settings(_env_file=None, state_dir=folder, redis_url=redis.url)  # type: ignore[call-arg]


class Worker:
    """The couriers of one machine, delivering to the receiver."""

    def __init__(self, where: Settings, receiver: Receiver) -> None:
        self._where = where
        self._receiver = receiver
        self._couriers: list[OutboxCourier] = []

    async def __aenter__(self) -> Worker:
        self._http = aiohttp.ClientSession()
        self._couriers = list(
            open_couriers(self._where, {"chat": HttpDeliverer(self._http, self._receiver.url)}).values()
        )
        for courier in self._couriers:
            courier.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for courier in reversed(self._couriers):
            await courier.aclose()
        await self._http.close()


def put(sink: OutboxSink, *numbers: int, lane: str = "aa") -> None:
    sink.add([line(lane, number) for number in numbers])


async def test_any_machines_worker_delivers_what_another_has_put(tmp_path: Path, redis: RedisServer) -> None:
    put(writers_store(settings(tmp_path / "one", redis)), 1, 2, 3)
    assert not waiting(settings(tmp_path / "one", redis))
    async with Receiver() as receiver, Worker(settings(tmp_path / "other", redis), receiver):
        await receiver.until(lambda: receiver.total == 3)
    assert receiver.kept == {"aa": ["1", "2", "3"]}


async def test_what_waited_for_a_redis_that_is_there_no_more_is_delivered(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    gone = Settings(_env_file=None, state_dir=tmp_path, redis_url=url)  # type: ignore[call-arg]
    put(writers_store(gone), 1, 2)
    assert waiting(gone) == 2
    alone = Settings(_env_file=None, state_dir=tmp_path)  # type: ignore[call-arg]
    put(writers_store(alone), 3)
    async with Receiver() as receiver, Worker(alone, receiver):
        await receiver.until(lambda: receiver.total == 3)
    assert sorted(receiver.kept["aa"]) == ["1", "2", "3"]


def waiting(where: Settings) -> int:
    store = file_store(where)
    try:
        return store.stats(["forward"])["forward"].depth
    finally:
        store.close()


async def test_while_redis_is_away_items_wait_in_the_file_and_keep_their_order(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    where = settings(tmp_path, own_redis)
    sink = writers_store(where)
    put(sink, 1)
    await own_redis.stop()
    put(sink, 2)
    put(sink, 3)
    assert waiting(where) == 2
    await own_redis.start()
    put(sink, 4)  # behind what waits in the file, although Redis is back
    assert waiting(where) == 3
    async with Receiver() as receiver, Worker(where, receiver):
        await receiver.until(lambda: receiver.total == 4)
        assert receiver.kept == {"aa": ["1", "2", "3", "4"]}
        put(sink, 5)
        await receiver.until(lambda: receiver.total == 5)
    assert waiting(where) == 0
    assert receiver.repeats == 0
    sink.close()


async def test_what_waited_in_the_file_before_redis_was_used_is_delivered(tmp_path: Path, redis: RedisServer) -> None:
    where = settings(tmp_path, redis)
    before = writers_store(where.model_copy(update={"redis_url": None}))
    put(before, 1, 2)
    before.close()
    async with Receiver() as receiver, Worker(where, receiver):
        await receiver.until(lambda: receiver.total == 2)
    assert receiver.kept == {"aa": ["1", "2"]}


def held(text: str, hold_s: float) -> OutboxItem:
    return OutboxItem.of("chat", "aa", {"text": text}, key="growing", hold_s=hold_s)


async def test_what_grew_while_redis_was_away_replaces_what_it_holds(tmp_path: Path, own_redis: RedisServer) -> None:
    where = settings(tmp_path, own_redis)
    sink = writers_store(where)
    sink.add([held("a", 3600)])
    await own_redis.stop()
    sink.add([held("ab", 3600)])
    sink.add([held("abc", 0)])
    await own_redis.start()
    async with Receiver() as receiver, Worker(where, receiver):
        await receiver.until(lambda: receiver.total == 1)
    assert receiver.kept == {"aa": ["abc"]}
    sink.close()


async def test_what_grew_after_it_was_let_go_is_not_lost(tmp_path: Path, own_redis: RedisServer) -> None:
    where = settings(tmp_path, own_redis)
    shared = shared_store(where)
    assert shared is not None
    sink = writers_store(where)
    sink.add([held("a", 0)])
    await own_redis.stop()
    sink.add([held("ab", 3600)])
    sink.add([held("abc", 0)])
    await own_redis.start()
    assert shared.claim("elsewhere", "chat", 1, 60) == [Lane("chat", "aa")]
    early = shared.head(Lane("chat", "aa"), "elsewhere", 60)
    assert early is not None
    shared.delivered(Lane("chat", "aa"), early)
    shared.release("elsewhere")
    async with Receiver() as receiver, Worker(where, receiver):
        await receiver.until(lambda: receiver.total == 1)
    assert receiver.kept == {"aa": ["abc"]}
    sink.close()
    shared.close()


class LosesAnswers(SqliteOutbox):
    """A real store, as Redis would be one, whose answer to an `add` comes too late while `losing`."""

    losing = False

    def add(self, items: Sequence[OutboxItem]) -> int:
        kept = super().add(items)
        if self.losing:
            raise OutboxError("TimeoutError")
        return kept


@pytest.mark.parametrize("delivered_first", [False, True])
async def test_an_answer_that_was_lost_doubles_nothing(tmp_path: Path, delivered_first: bool) -> None:
    shared, file = LosesAnswers(tmp_path / "shared.db"), SqliteOutbox(tmp_path / "file.db")
    sink = SpooledOutbox(shared, file)
    sink.add([held("a", 3600)])
    shared.losing = True
    sink.add([held("ab", 0)])
    shared.losing = False
    delivered: list[str] = []

    async def deliver(item: OutboxItem) -> None:
        delivered.append(item.payload["text"])

    async def carry(item: OutboxItem) -> None:
        await forward(item)
        carried.set()

    forward, carried = _Forwarder(shared), asyncio.Event()
    last, carrier = OutboxCourier(shared, {"chat": deliver}), OutboxCourier(file, {FORWARD: carry})
    for courier in (last, carrier) if delivered_first else (carrier, last):
        courier.start()
        async with asyncio.timeout(20):
            while (await courier.stats()).popitem()[1].depth:
                courier.nudge()
    assert carried.is_set()
    assert shared.stats(["chat"])["chat"].depth == 0
    assert delivered == ["ab"]
    await carrier.aclose()
    await last.aclose()


async def test_a_redis_without_memory_is_emptied(tmp_path: Path, own_redis: RedisServer) -> None:
    where = settings(tmp_path, own_redis)
    sink, shared = writers_store(where), shared_store(where)
    assert shared is not None
    put(sink, 1, 2)
    put(sink, 1, lane="bb")
    refused = OutboxItem.of("chat", "cc", {"text": "no"})
    sink.add([refused])
    client = connect(own_redis.url, timeout=10)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    with pytest.raises(OutboxError):
        shared.add([line("aa", 3)])
    put(sink, 3)
    assert waiting(where) == 1
    lanes = shared.claim("me", "chat", 5, 60)
    assert lanes == [Lane("chat", name) for name in ("aa", "bb", "cc")]
    shared.renew("me", lanes, 60)
    postponed = shared.head(lanes[1], "me", 60)
    assert postponed is not None
    shared.postpone(lanes[1], "me", postponed, 0)
    shared.bury(lanes[2], refused, "no")
    shared.release("me")
    assert shared.claim("me", "chat", 1, 60) == [Lane("chat", "aa")]
    while (item := shared.head(Lane("chat", "aa"), "me", 60)) is not None:
        shared.delivered(Lane("chat", "aa"), item)
    shared.delivered(lanes[1], line("dd", 1))  # not there any more
    shared.prune()
    state = shared.stats(["chat"])["chat"]
    assert (state.depth, state.delivered, state.retried, state.dead) == (1, 3, 1, 1)
    client.close()
    sink.close()
    shared.close()


async def test_a_file_that_cannot_be_asked_does_not_keep_items_from_redis(tmp_path: Path, redis: RedisServer) -> None:
    (tmp_path / "file").write_text("no folder")
    where = settings(tmp_path / "file", redis)
    sink, shared = writers_store(where), shared_store(where)
    assert shared is not None
    put(sink, 1)
    assert shared.stats(["chat"])["chat"].depth == 1
    sink.close()
    shared.close()


async def test_with_neither_home_it_is_said(tmp_path: Path, own_redis: RedisServer) -> None:
    (tmp_path / "file").write_text("no folder")
    sink = writers_store(settings(tmp_path / "file", own_redis))
    await own_redis.stop()
    with pytest.raises(OutboxError):
        put(sink, 1)
    sink.close()


async def test_a_redis_that_was_emptied_begins_anew(tmp_path: Path, redis: RedisServer) -> None:
    where = settings(tmp_path, redis)
    sink = writers_store(where)
    put(sink, 1)
    client = connect(redis.url, timeout=10)
    client.flushall()  # its scripts stay, its sequence does not
    client.script_flush()
    client.close()
    put(sink, 2)
    async with Receiver() as receiver, Worker(where, receiver):
        await receiver.until(lambda: receiver.total == 1)
    assert receiver.kept == {"aa": ["2"]}
    sink.close()

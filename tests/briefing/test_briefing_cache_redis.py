"""Answers in a real Redis: found from another machine, younger ones preferred, and no need for Redis to be there."""

from __future__ import annotations

from pathlib import Path

import pytest
from briefing_support import Clock, bytes_in

from agent.briefing.cache import FILE_NAME, SqliteCache
from agent.briefing.cache_redis import RedisCache, TieredCache
from agent.briefing.profile import Part
from agent.errors import Unavailable
from agent.redis_client import connect_async
from sandbox.manager_api import DEMO_MAC as MAC
from sandbox.processes import free_port
from sandbox.redis_server import RedisServer


def machine(folder: Path, url: str, clock: Clock) -> TieredCache:
    """The cache of a machine whose own state is in `folder`."""
    near = SqliteCache(folder / FILE_NAME, scope="api", max_age=1000, clock=clock)
    return TieredCache(near, RedisCache(url, scope="api", max_age=1000, clock=clock))


async def test_what_one_machine_has_learnt_another_knows(tmp_path: Path, redis: RedisServer) -> None:
    clock = Clock()
    one, other = machine(tmp_path / "one", redis.url, clock), machine(tmp_path / "other", redis.url, clock)
    await one.put(MAC, Part.CHILD, '{"name":"Wilhelmina"}')
    clock.now += 10
    assert (await other.read(MAC))[Part.CHILD].body == '{"name":"Wilhelmina"}'
    assert (await other.read(MAC))[Part.CHILD].age == 10
    await other.put(MAC, Part.CHILD, '"younger"')
    assert (await one.read(MAC))[Part.CHILD].body == '"younger"', "though it has an older one on disk"
    await one.forget(MAC, Part.CHILD)
    third = machine(tmp_path / "third", redis.url, clock)
    assert await third.read(MAC) == {}
    for cache in (one, other, third):
        await cache.aclose()


async def test_what_one_machine_forgets_is_found_on_none(tmp_path: Path, redis: RedisServer) -> None:
    clock = Clock()
    one, other = machine(tmp_path / "one", redis.url, clock), machine(tmp_path / "other", redis.url, clock)
    for cache in (one, other):
        await cache.put(MAC, Part.CHILD, '{"name":"Wilhelmina"}')
        await cache.put(MAC, Part.PROMPT, '"p"')
    clock.now += 10
    await one.forget(MAC, Part.CHILD)
    assert set(await one.read(MAC)) == set(await other.read(MAC)) == {Part.PROMPT}
    clock.now += 10
    await other.put(MAC, Part.CHILD, '{"name":"Theodor"}')
    assert (await one.read(MAC))[Part.CHILD].body == '{"name":"Theodor"}'
    away = machine(tmp_path / "one", f"redis://127.0.0.1:{free_port()}/0", clock)
    clock.now += 10
    await away.forget(MAC, Part.CHILD)
    assert Part.CHILD not in await one.read(MAC), "though Redis has not heard of it"
    for cache in (one, other, away):
        await cache.aclose()
    assert b"Wilhelmina" not in bytes_in(tmp_path / "one")


async def test_redis_forgets_by_itself(redis: RedisServer) -> None:
    clock = Clock()
    cache = RedisCache(redis.url, scope="api", max_age=1000, clock=clock)
    await cache.put(MAC, Part.PROMPT, '"p"')
    client = connect_async(redis.url, timeout=10)
    (name,) = [name async for name in client.scan_iter()]
    assert 0 < await client.ttl(name) <= 1000
    clock.now += 1001
    assert await cache.read(MAC) == {}
    other = RedisCache(redis.url, scope="another service", max_age=1000, clock=clock)
    assert await other.read(MAC) == {}
    await client.hset(name, mapping={"prompt": "no JSON", "child": '["no time", "x"]', "from the future": '[1, "y"]'})
    assert await cache.read(MAC) == {}
    for open_one in (client, cache, other):
        await open_one.aclose()


async def test_without_redis_the_disk_answers(tmp_path: Path) -> None:
    clock = Clock()
    cache = machine(tmp_path, f"redis://127.0.0.1:{free_port()}/0", clock)
    await cache.put(MAC, Part.PROMPT, '"p"')
    assert (await cache.read(MAC))[Part.PROMPT].body == '"p"'
    assert await cache.purge() == 0
    await cache.aclose()


async def test_without_the_disk_redis_answers_and_without_both_it_is_said(tmp_path: Path, redis: RedisServer) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = machine(tmp_path / "file", redis.url, Clock())
    await cache.put(MAC, Part.PROMPT, '"p"')
    assert (await cache.read(MAC))[Part.PROMPT].body == '"p"'
    await cache.aclose()
    neither = machine(tmp_path / "file", f"redis://127.0.0.1:{free_port()}/0", Clock())
    with pytest.raises(Unavailable):
        await neither.read(MAC)
    await neither.aclose()


async def test_a_younger_answer_wins_and_one_from_the_future_does_not(tmp_path: Path, redis: RedisServer) -> None:
    wrong, right = Clock(), Clock()
    wrong.now = right.now + 500
    ahead, cache = machine(tmp_path / "ahead", redis.url, wrong), machine(tmp_path / "here", redis.url, right)
    await cache.put(MAC, Part.PROMPT, '"right"')
    await ahead.put(MAC, Part.PROMPT, '"of a clock that is ahead"')
    assert (await cache.read(MAC))[Part.PROMPT].body == '"right"'
    await ahead.aclose()
    await cache.aclose()

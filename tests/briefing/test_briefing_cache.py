"""The cache on real files: shared by processes, killed at any moment, damaged, full, locked, purged."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import stat
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from briefing_process import body_of, mac_of
from briefing_support import ALL_LIVE, Clock, desk_for

from agent.briefing.cache import FILE_NAME, SqliteCache
from agent.briefing.profile import Part, Source
from agent.errors import Unavailable
from agent.values import DeviceMac
from sandbox.manager_api import DEMO_MAC, Call, ManagerApi

MAC = DEMO_MAC
Spawn = Callable[..., Awaitable[Process]]
OTHER = DeviceMac("00:00:00:00:00:02")
DAY = 86400.0


def cache_at(path: Path, clock: Clock | None = None, *, scope: str = "test", max_age: float = 30 * DAY) -> SqliteCache:
    return SqliteCache(path, scope=scope, max_age=max_age, clock=clock or Clock())


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """Starts processes; what still runs at the test's end is killed."""
    started: list[Process] = []

    async def start(*arguments: str) -> Process:
        script = str(Path(__file__).with_name("briefing_process.py"))
        started.append(await asyncio.create_subprocess_exec(sys.executable, script, *arguments, stdout=PIPE))
        return started[-1]

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


def check(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


async def test_what_is_put_is_read_until_replaced_or_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    cache = cache_at(tmp_path / FILE_NAME, clock)
    assert await cache.read(MAC) == {}
    await cache.put(MAC, Part.CHILD, '"first"')
    clock.now += 7
    await cache.put(MAC, Part.PROMPT, '"prompt"')
    await cache.put(OTHER, Part.PROMPT, '"other"')
    known = await cache.read(MAC)
    assert {part: (entry.body, entry.age) for part, entry in known.items()} == {
        Part.CHILD: ('"first"', 7),
        Part.PROMPT: ('"prompt"', 0),
    }
    assert "first" not in repr(known)
    await cache.put(MAC, Part.CHILD, "null")
    await cache.forget(MAC, Part.PROMPT)
    known = await cache.read(MAC)
    assert {part: (entry.body, entry.age) for part, entry in known.items()} == {Part.CHILD: ("null", 0)}
    await cache.aclose()
    await cache.aclose()
    with pytest.raises(Unavailable):
        await cache.read(MAC)


async def test_ages_decide(tmp_path: Path) -> None:
    clock = Clock()
    cache = cache_at(tmp_path / FILE_NAME, clock, max_age=1000)
    await cache.put(MAC, Part.PROMPT, '"p"')
    assert (await cache.read(MAC))[Part.PROMPT].fresh(1)
    assert not (await cache.read(MAC))[Part.PROMPT].fresh(0)
    clock.now += 10
    assert not (await cache.read(MAC))[Part.PROMPT].fresh(10)
    clock.now -= 20  # the clock was set back: the entry comes from the future
    assert not (await cache.read(MAC))[Part.PROMPT].fresh(300)
    clock.now += 1010
    assert Part.PROMPT in await cache.read(MAC)
    clock.now += 1
    assert await cache.read(MAC) == {}
    await cache.aclose()


async def test_purge_goes_by_age_across_all_services(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / FILE_NAME
    ours, theirs = cache_at(path, clock), cache_at(path, clock, scope="another service")
    await ours.put(MAC, Part.CHILD, '{"name":"Wilhelmina"}')
    await theirs.put(MAC, Part.CHILD, '{"name":"Wilhelmina"}')
    clock.now += 29 * DAY
    await ours.put(OTHER, Part.CHILD, '"young"')
    assert await ours.purge() == 0
    clock.now += 2 * DAY
    assert await ours.purge() == 2
    clock.now -= 31 * DAY
    assert Part.CHILD in await ours.read(OTHER)
    await ours.aclose()
    await theirs.aclose()
    assert b"Wilhelmina" not in path.read_bytes()  # overwritten, not merely unlinked


async def test_a_wrong_clock_leaves_nothing_for_ever(tmp_path: Path) -> None:
    clock = Clock()
    cache = cache_at(tmp_path / FILE_NAME, clock)
    clock.now += 100 * DAY
    await cache.put(MAC, Part.CHILD, '"from a far future"')
    clock.now -= 100 * DAY
    assert await cache.purge() == 1
    await cache.aclose()


async def test_a_visit_purges_what_others_left(tmp_path: Path) -> None:
    clock = Clock()
    cache = cache_at(tmp_path / FILE_NAME, clock)
    await cache.put(OTHER, Part.CHILD, '{"name":"Wilhelmina"}')
    await cache.aclose()
    clock.now += 31 * DAY
    async with ManagerApi() as api, desk_for(api, tmp_path, clock=clock) as desk:
        await desk.fetch()
    assert b"Wilhelmina" not in (tmp_path / FILE_NAME).read_bytes()


async def test_only_the_owner_may_read(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    before = os.umask(0)
    try:
        cache = cache_at(folder / FILE_NAME)
        await cache.put(MAC, Part.CHILD, '"x"')
        files = sorted(folder.iterdir())
        assert [path.name for path in files] == [FILE_NAME, FILE_NAME + "-shm", FILE_NAME + "-wal"]
        for path in (folder, *files):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name
        await cache.aclose()
    finally:
        os.umask(before)


async def test_what_one_process_keeps_another_finds(tmp_path: Path, spawn: Spawn) -> None:
    path = tmp_path / FILE_NAME
    process = await spawn("write", str(path), "1", "3")
    assert await asyncio.wait_for(process.wait(), 60) == 0
    cache = SqliteCache(path, scope="kill", max_age=30 * DAY)
    assert (await cache.read(mac_of(1, 2)))[Part.PROMPT].body == body_of(1, 2)
    await cache.aclose()


async def test_processes_write_at_once_and_nothing_is_lost(tmp_path: Path, spawn: Spawn) -> None:
    path, count = tmp_path / FILE_NAME, 150
    processes = [await spawn("write", str(path), str(lane), str(count)) for lane in range(3)]
    cache = SqliteCache(path, scope="kill", max_age=30 * DAY)
    for number in range(count):  # a fourth, in this process, with their file
        await cache.put(mac_of(9, number), Part.PROMPT, body_of(9, number))
    codes = [(await asyncio.wait_for(process.communicate(), 100), process.returncode)[1] for process in processes]
    assert codes == [0, 0, 0]
    for lane in (0, 1, 2, 9):
        for number in range(count):
            assert (await cache.read(mac_of(lane, number)))[Part.PROMPT].body == body_of(lane, number)
    await cache.aclose()
    assert check(path) == "ok"


async def test_a_kill_at_any_moment_loses_nothing_that_was_kept(tmp_path: Path, spawn: Spawn) -> None:
    path = tmp_path / FILE_NAME
    chance = random.Random(7)
    survivor = await spawn("write", str(path), "200", "400")
    kept: list[tuple[int, int]] = []
    for lane in range(8):
        process = await spawn("write", str(path), str(lane), "100000")
        last = -1
        for _ in range(chance.randrange(1, 60)):
            last = int(await said(process))
        process.kill()
        rest, _ = await process.communicate()
        numbers = [int(line) for line in rest.decode().splitlines(keepends=True) if line.endswith("\n")]
        kept += [(lane, number) for number in range(max([last, *numbers]) + 1)]
    await asyncio.wait_for(survivor.communicate(), 100)
    assert survivor.returncode == 0
    cache = SqliteCache(path, scope="kill", max_age=30 * DAY)
    for lane, number in [*kept, *((200, number) for number in range(400))]:
        assert (await cache.read(mac_of(lane, number)))[Part.PROMPT].body == body_of(lane, number)
    await cache.aclose()
    assert check(path) == "ok"
    assert not (tmp_path / (FILE_NAME + ".damaged")).exists()


@pytest.mark.parametrize("content", [b"this is no database, " * 500, os.urandom(9000)])
async def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    async with ManagerApi() as api:
        for sources in (ALL_LIVE, dict.fromkeys(Part, Source.CACHED)):
            async with desk_for(api, tmp_path) as desk:
                briefing = await desk.fetch()
            assert briefing.sources == sources
            assert briefing.problems == {}
    assert (tmp_path / (FILE_NAME + ".damaged")).read_bytes() == content


async def test_damage_inside_the_file_is_met_when_it_is_read(tmp_path: Path) -> None:
    path, clock = tmp_path / FILE_NAME, Clock()
    cache = cache_at(path, clock)
    for number in range(100):
        await cache.put(mac_of(1, number), Part.PROMPT, body_of(1, number))
    await cache.aclose()
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + os.urandom(len(raw) - 4096))
    cache = cache_at(path, clock)
    assert await cache.read(mac_of(1, 5)) == {}
    await cache.put(MAC, Part.PROMPT, '"new"')
    assert Part.PROMPT in await cache.read(MAC)
    aside = tmp_path / (FILE_NAME + ".damaged")
    assert aside.exists()
    await cache.aclose()
    assert check(path) == "ok"


async def test_an_entry_nobody_understands_is_asked_anew(tmp_path: Path) -> None:
    clock = Clock()
    async with ManagerApi() as api:
        cache = cache_at(tmp_path / FILE_NAME, clock, scope=api.url)
        await cache.put(MAC, Part.MODELS, '{"of": "another version"')
        await cache.put(MAC, Part.CHILD, '{"name": 3}')
        await cache.aclose()
        async with desk_for(api, tmp_path, clock=clock) as desk:
            assert await desk.peek() is None
            assert (await desk.fetch()).sources == ALL_LIVE


async def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with ManagerApi() as api, desk_for(api, tmp_path / "file" / "state") as desk:
        assert await desk.peek() is None
        briefing = await desk.fetch()
    assert briefing.sources == ALL_LIVE
    assert briefing.problems == {"cache": "Unavailable"}


@pytest.mark.parametrize(
    ("limit", "peeked", "problems"),
    [
        (100, False, {"cache": "Unavailable"}),  # not even the shared-memory file fits
        (80_000, True, {}),  # what is there can be read, and the long prompt, which comes last, is not added
    ],
)
async def test_a_full_disk(tmp_path: Path, spawn: Spawn, limit: int, peeked: bool, problems: dict[str, str]) -> None:
    async with ManagerApi() as api:
        async with desk_for(api, tmp_path, clock=time.time) as desk:
            await desk.fetch()
        api.device().prompt = "a long prompt " * 10_000
        api.delay(0.5, Call.AGENT_PROMPT)
        process = await spawn("visit", str(tmp_path), api.url, str(api.secret), str(limit))
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0
        assert b"briefing cache cannot be used" in output
        assert json.loads(output.splitlines()[-1]) == {"peeked": peeked, "sources": ["live"], "problems": problems}
        cache = SqliteCache(tmp_path / FILE_NAME, scope=api.url, max_age=30 * DAY)
        assert "a long prompt" not in (await cache.read(MAC))[Part.PROMPT].body
        await cache.aclose()
    assert check(tmp_path / FILE_NAME) == "ok"


async def test_a_writer_that_never_ends_stops_no_visit(tmp_path: Path) -> None:
    async with ManagerApi() as api:
        async with desk_for(api, tmp_path) as desk:
            await desk.fetch()
        holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        try:
            holder.execute("BEGIN IMMEDIATE")
            async with desk_for(api, tmp_path, api_cache_ttl=0) as desk:
                assert await desk.peek() is not None  # readers do not wait for writers
                briefing = await desk.fetch()
            assert briefing.sources == ALL_LIVE
        finally:
            holder.close()


async def test_a_file_nobody_may_even_read_stops_no_visit(tmp_path: Path) -> None:
    async with ManagerApi() as api:
        async with desk_for(api, tmp_path) as desk:
            await desk.fetch()
        holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        try:
            holder.execute("PRAGMA locking_mode = EXCLUSIVE")
            holder.execute("BEGIN IMMEDIATE")
            holder.execute("DELETE FROM answers")
            async with desk_for(api, tmp_path) as desk:
                assert await desk.peek() is None
                briefing = await desk.fetch()
            assert briefing.sources == ALL_LIVE
            assert briefing.problems == {"cache": "Unavailable"}
        finally:
            holder.close()

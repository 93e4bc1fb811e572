"""The worker's watcher and the services it feeds, against a Qdrant server that misbehaves in every known way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_catalogue import SONGS, STORIES
from watching import foreign_fill, watching

from agent.errors import LibraryError, Unavailable
from agent.library.embedding import Embedder
from agent.library.home import Entry, Home
from agent.library.home_server import ServerHome
from agent.library.homes import snapshot_root
from agent.library.services import ServiceCache, prepare
from agent.library.status import read_status
from agent.library.titles import Kind
from agent.library.watcher import CatalogueWatcher
from agent.settings import Settings
from sandbox.faults import Fault
from sandbox.qdrant_server import QdrantServer

Make = Callable[..., Settings]
Fill = Callable[[Home], None]


@pytest.fixture
def settings(make_settings: Make, server: QdrantServer) -> Settings:
    return make_settings(qdrant_url=server.url, qdrant_timeout_ms=1000, catalogue_refresh=1)


def test_a_filled_server_is_copied_and_searched(settings: Settings, server_home: ServerHome, fill: Fill) -> None:
    fill(server_home)
    with watching(settings) as watcher:
        assert watcher.check_blocking()
        cache = prepare(settings)
        assert cache.music.status.ready
        assert cache.music.status.titles == len(SONGS)
        assert cache.music.search_blocking("twinkle little star").title == SONGS[0]
        assert cache.stories.search_blocking("the tortoise and the hare").title == STORIES[0]
        assert cache.music.ready
        assert cache.stories.ready


def test_away_at_the_start_then_there(
    settings: Settings, server_home: ServerHome, server: QdrantServer, fill: Fill
) -> None:
    fill(server_home)
    server.fail(Fault.RESET)
    with watching(settings) as watcher:
        assert not watcher.check_blocking()
        cache = prepare(settings)
        assert not cache.music.status.ready
        assert "Qdrant at 127.0.0.1 does not answer" in cache.music.status.reason
        with pytest.raises(Unavailable, match="does not answer"):
            cache.music.search_blocking("twinkle")
        server.heal()
        assert watcher.check_blocking()
        assert cache.music.search_blocking("twinkle twinkle little star").title == SONGS[0]
        assert cache.music.status.reason == ""


def test_nobody_listens_at_the_address(make_settings: Make, unused_tcp_port: int) -> None:
    settings = make_settings(qdrant_url=f"http://127.0.0.1:{unused_tcp_port}", qdrant_timeout_ms=200)
    with watching(settings) as watcher:
        assert not watcher.check_blocking()
    assert "does not answer" in prepare(settings).stories.status.reason


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_in_the_middle_leaves_the_last_good_copy(
    settings: Settings, server_home: ServerHome, server: QdrantServer, fill: Fill, fault: Fault
) -> None:
    fill(server_home)
    with watching(settings) as watcher:
        assert watcher.check_blocking()
        cache = prepare(settings)
        server.fail(fault, after=0)
        assert not watcher.check_blocking()
        assert cache.music.search_blocking("wheels on the bus").title == SONGS[2]
        assert cache.music.status.ready
        reason = cache.music.status.reason
        assert "Qdrant at 127.0.0.1" in reason
        expected = {
            Fault.UNAUTHORISED: "QDRANT_API_KEY",
            Fault.NONSENSE: "not Qdrant's",
            Fault.ERROR: "HTTP 500",
            Fault.RATE_LIMIT: "patience",
        }.get(fault, "does not answer")
        assert expected in reason
        server.heal()
        assert watcher.check_blocking()
        assert cache.music.status.reason == ""


def test_a_wrong_vector_size_is_refused_with_a_sentence(
    settings: Settings, server: QdrantServer, entries: dict[Kind, list[Entry]]
) -> None:
    wide = {
        kind: [replace(entry, vector=np.resize(entry.vector, 768)) for entry in items]
        for kind, items in entries.items()
    }
    foreign_fill(server, wide, 768)
    with watching(settings) as watcher:
        assert not watcher.check_blocking()
    cache = prepare(settings)
    assert "holds vectors of 768 numbers, the embedding model all-MiniLM-L6-v2 makes 384" in cache.music.status.reason
    with pytest.raises(Unavailable, match="EMBEDDING_MODEL"):
        cache.music.search_blocking("twinkle")


def test_another_named_model_is_refused(
    settings: Settings, server: QdrantServer, server_home: ServerHome, fill: Fill
) -> None:
    fill(server_home)
    server.metadata("xiaozhi_music")["embedding_model"] = "intfloat/multilingual-e5-small"
    with watching(settings) as watcher:
        assert not watcher.check_blocking()
    cache = prepare(settings)
    assert "was made with the embedding model intfloat/multilingual-e5-small" in cache.music.status.reason
    assert cache.stories.status.ready


def test_a_missing_and_an_empty_collection_say_what_to_do(settings: Settings, server: QdrantServer) -> None:
    server.create("xiaozhi_music", 384)
    with watching(settings) as watcher:
        assert not watcher.check_blocking()
    cache = prepare(settings)
    assert "collection xiaozhi_music in Qdrant at 127.0.0.1 is empty" in cache.music.status.reason
    assert "collection xiaozhi_stories does not exist" in cache.stories.status.reason
    for service in (cache.music, cache.stories):
        with pytest.raises(Unavailable, match="catalogue load"):
            service.search_blocking("twinkle")


def test_a_collection_that_vanishes_is_still_played_from(
    settings: Settings, server: QdrantServer, server_home: ServerHome, fill: Fill
) -> None:
    fill(server_home)
    with watching(settings) as watcher:
        watcher.check_blocking()
        server.drop("xiaozhi_music")
        assert not watcher.check_blocking()
        cache = prepare(settings)
        assert cache.music.search_blocking("baa baa black sheep").title == SONGS[3]
        assert "does not exist" in cache.music.status.reason


def test_a_read_only_key_reads_and_may_not_load(
    make_settings: Make, server: QdrantServer, entries: dict[Kind, list[Entry]], fill: Fill
) -> None:
    foreign_fill(server, entries)
    server.api_key, server.read_only_key = "everything", "reading"
    settings = make_settings(qdrant_url=server.url, qdrant_api_key="reading")
    with watching(settings) as watcher:
        assert watcher.check_blocking()
    assert server.calls["PUT collections/*/index"] == 2
    assert prepare(settings).music.search_blocking("twinkle twinkle little star").title is not None
    reader = ServerHome(server.url, {"music": "xiaozhi_music", "story": "xiaozhi_stories"}, api_key="reading")
    with pytest.raises(Exception, match="QDRANT_API_KEY"):
        fill(reader)
    reader.close()


def test_a_half_finished_load_is_not_shown(
    settings: Settings, server: QdrantServer, server_home: ServerHome, fill: Fill, entries: dict[Kind, list[Entry]]
) -> None:
    fill(server_home)
    with watching(settings) as watcher:
        watcher.check_blocking()
        cache = prepare(settings)
        with server_home.loading("music", "all-MiniLM-L6-v2", 384) as loading:
            loading.remove([title.id for title in SONGS[:5]])
            watcher.check_blocking()
            cache.refresh()
            assert cache.music.status.titles == len(SONGS)
        watcher.check_blocking()
        cache.refresh()
        assert cache.music.status.titles == len(SONGS) - 5


def test_what_this_library_emptied_is_empty_and_says_so_at_every_look(
    settings: Settings, server_home: ServerHome, fill: Fill
) -> None:
    fill(server_home)
    with watching(settings) as watcher:
        assert watcher.check_blocking()
        cache = prepare(settings)
        with server_home.loading("music", "all-MiniLM-L6-v2", 384) as loading:
            loading.remove([title.id for title in SONGS])
        for _ in range(2):
            assert not watcher.check_blocking()
            cache.refresh()
            assert cache.music.status.titles == 0
            assert "is empty" in cache.music.status.reason


def test_a_change_while_it_is_read_is_not_copied(
    settings: Settings, server: QdrantServer, server_home: ServerHome, fill: Fill, entries: dict[Kind, list[Entry]]
) -> None:
    fill(server_home)
    scrolls = 0

    def meddle(call: str) -> None:
        nonlocal scrolls
        scrolls += call.endswith("scroll")
        if scrolls == 2:  # the second pass over the music, with its vectors
            scrolls += 1
            server.put("xiaozhi_music", 7, entries["music"][0].vector.tolist(), {"title": "Half of a load"})

    server.before_answer = meddle
    with watching(settings) as watcher:
        watcher.check_blocking()
        cache = prepare(settings)
        assert not cache.music.status.ready
        assert cache.stories.status.ready
        server.before_answer = None
        watcher.check_blocking()
        cache.refresh()
        assert cache.music.status.titles == len(SONGS) + 1


def test_a_well_server_is_asked_little(
    settings: Settings, server: QdrantServer, server_home: ServerHome, fill: Fill
) -> None:
    fill(server_home)
    with watching(settings) as watcher:
        watcher.check_blocking()
        server.calls.clear()
        for _ in range(5):
            assert watcher.check_blocking()
        assert server.calls == {"GET collections/*": 10}


def test_a_restart_reads_the_copy_instead_of_the_server(
    settings: Settings, server: QdrantServer, server_home: ServerHome, fill: Fill
) -> None:
    fill(server_home)
    with watching(settings) as watcher:
        watcher.check_blocking()
    server.calls.clear()
    with watching(settings) as watcher:
        assert watcher.check_blocking()
    assert server.calls["POST collections/*/points/scroll"] == 2
    server.fail(Fault.HANG)
    cache = prepare(settings)
    assert cache.music.search_blocking("twinkle twinkle little star").title == SONGS[0]


async def test_running_it_recovers_by_itself_and_ends_when_told(
    settings: Settings, server: QdrantServer, server_home: ServerHome, fill: Fill
) -> None:
    fill(server_home)
    server.fail(Fault.ERROR, times=3)
    cache = prepare(settings)
    told: asyncio.Queue[bool] = asyncio.Queue()

    class Told(CatalogueWatcher):
        async def check(self) -> bool:
            well = await super().check()
            told.put_nowait(well)
            return well

    watcher = Told(settings)
    running = asyncio.create_task(watcher.run())
    seen = [await asyncio.wait_for(told.get(), 30)]
    while not seen[-1]:
        seen.append(await asyncio.wait_for(told.get(), 30))
    assert seen[0] is False
    answer = await cache.music.search("twinkle twinkle little star")
    assert answer.title == SONGS[0]
    await watcher.aclose()
    await asyncio.wait_for(running, 10)


async def test_a_hanging_server_does_not_keep_the_watcher_from_ending(settings: Settings, server: QdrantServer) -> None:
    server.fail(Fault.HANG)
    watcher = CatalogueWatcher(settings)
    running = asyncio.create_task(watcher.run())
    await asyncio.wait_for(watcher.aclose(), 20)
    await asyncio.wait_for(running, 10)


def test_a_bug_in_a_client_is_told_and_survived(make_settings: Make) -> None:
    settings = make_settings(qdrant_url="http://127.0.0.1:1")

    def broken(_: Settings) -> Home:
        raise ZeroDivisionError("somebody's bug")

    watcher = CatalogueWatcher(settings, broken)
    assert not watcher.check_blocking()
    watcher.close_blocking()
    assert "ZeroDivisionError" in read_status(snapshot_root(settings))["music"].reason


def test_status_keeps_its_beginning(settings: Settings, server: QdrantServer) -> None:
    server.fail(Fault.ERROR)
    root = snapshot_root(settings)
    with watching(settings) as watcher:
        watcher.check_blocking()
        first = read_status(root)["music"]
        watcher.check_blocking()
        second = read_status(root)["music"]
    assert second.since == first.since
    assert second.checked_at >= first.checked_at
    assert second.retryable


def test_a_damaged_status_is_no_status(settings: Settings) -> None:
    root = snapshot_root(settings)
    root.mkdir(parents=True)
    (root / "status.json").write_text("{")
    assert read_status(root) == {}


def test_without_model_files_words_alone_are_searched(
    make_settings: Make, server: QdrantServer, server_home: ServerHome, fill: Fill, tmp_path: Any
) -> None:
    fill(server_home)
    settings = make_settings(qdrant_url=server.url, model_dir=tmp_path / "no models")
    with watching(settings) as watcher:
        assert watcher.check_blocking()
    cache = prepare(settings)
    assert cache.music.status.ready
    assert "download-files" in cache.music.status.reason
    assert cache.music.search_blocking("twinkle twinkle little star").title == SONGS[0]


def test_a_copy_made_with_another_model_is_refused_by_the_processes(
    make_settings: Make, server: QdrantServer, server_home: ServerHome, fill: Fill, embedder: Embedder, tmp_path: Any
) -> None:
    fill(server_home)
    settings = make_settings(qdrant_url=server.url)
    with watching(settings) as watcher:
        watcher.check_blocking()
    other = make_settings(qdrant_url=server.url, embedding_model="another/model", model_dir=tmp_path / "none")
    cache: ServiceCache = prepare(other)
    assert not cache.music.status.ready
    with pytest.raises(LibraryError, match="was made with the embedding model all-MiniLM-L6-v2"):
        cache.music.search_blocking("twinkle")

"""Collections that another program fills: small ids or UUIDs, no metadata, whatever payload it likes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_catalogue import COLLECTIONS, SONGS
from structlog.testing import capture_logs
from watching import foreign_fill, watching

from agent.library.catalogue_files import read_catalogue
from agent.library.embedding import Embedder
from agent.library.home import Entry, Home
from agent.library.home_server import ServerHome
from agent.library.ingest import VectorCache, load
from agent.library.payload import to_payload
from agent.library.services import prepare
from agent.library.titles import Kind
from agent.settings import Settings
from sandbox.qdrant_server import QdrantServer

Make = Callable[..., Settings]
Fill = Callable[[Home], None]


@pytest.fixture
def settings(make_settings: Make, server: QdrantServer) -> Settings:
    return make_settings(qdrant_url=server.url, qdrant_timeout_ms=1000, catalogue_refresh=1)


def test_a_collection_that_others_filled_is_read_as_it_is(
    settings: Settings, server: QdrantServer, entries: dict[Kind, list[Entry]]
) -> None:
    foreign_fill(server, entries)
    server.put("xiaozhi_music", 90, entries["music"][0].vector.tolist(), {"title": "Bare"})
    server.put("xiaozhi_music", 91, entries["music"][0].vector.tolist(), {"filename": "no-title.mp3"})
    server.put(
        "xiaozhi_music", 92, entries["music"][0].vector.tolist(), {"title": "Bad", "filename": "../../etc/passwd"}
    )
    with watching(settings) as watcher:
        assert watcher.check_blocking()
    cache = prepare(settings)
    assert cache.music.status.titles == len(SONGS) + 1
    assert cache.music.search_blocking("bare").title is not None
    found = cache.music.search_blocking("incy wincy spider").title
    assert found is not None
    assert (found.id, found.title, found.filename) == (1, SONGS[1].title, SONGS[1].filename)


def uuid_fill(server: QdrantServer, entries: dict[Kind, list[Entry]]) -> None:
    """Fill the collections as a program does that gives its points UUIDs."""
    for kind, name in COLLECTIONS.items():
        server.create(name, 384)
        for entry in entries[kind]:
            number = str(uuid.uuid5(uuid.NAMESPACE_URL, entry.title.title))
            server.put(name, number, entry.vector.tolist(), {**to_payload(entry.title), "uploaded_by": "somebody"})


def test_a_collection_with_uuids_is_read_and_loaded_into(
    settings: Settings,
    server: QdrantServer,
    server_home: ServerHome,
    entries: dict[Kind, list[Entry]],
    embedder: Embedder,
    tmp_path: Path,
) -> None:
    uuid_fill(server, entries)
    with watching(settings) as watcher:
        assert watcher.check_blocking()
    found = prepare(settings).music.search_blocking("incy wincy spider").title
    assert found is not None
    assert found.title == SONGS[1].title
    assert server_home.search("music", entries["music"][1].vector, limit=1)[0][0] == found.id
    folder = tmp_path / "tree" / "music" / "English"
    folder.mkdir(parents=True)
    changed = {"filename": "new.mp3", "alternatives": list(SONGS[1].alternatives)}
    (folder / "metadata.json").write_text(json.dumps({SONGS[1].title: changed}))
    with closing(VectorCache(tmp_path / "vectors.db", embedder)) as cache:
        (loaded,) = load(read_catalogue(tmp_path / "tree"), server_home, cache, embedder, prune=True)
    assert (loaded.added, loaded.changed, loaded.removed) == (0, 1, len(SONGS) - 1)
    ((point, payload),) = server.payloads("xiaozhi_music").items()
    assert str(point) == str(uuid.uuid5(uuid.NAMESPACE_URL, SONGS[1].title))
    assert (payload["filename"], payload["uploaded_by"]) == ("new.mp3", "somebody")
    assert [title.id for title in server_home.titles("music")] == [found.id]


def test_points_that_are_no_titles_are_told_once(
    settings: Settings, server: QdrantServer, entries: dict[Kind, list[Entry]]
) -> None:
    foreign_fill(server, entries)
    for number in range(90, 100):
        server.put("xiaozhi_music", number, entries["music"][0].vector.tolist(), {"name": "of another sort"})
    with watching(settings) as watcher, capture_logs() as logs:
        for _ in range(3):
            assert watcher.check_blocking()
        (told,) = [line for line in logs if line["event"] == "qdrant_points_unusable"]
        assert (told["points"], told["examples"][0]) == (10, "90: it has no title")
        server.put("xiaozhi_music", 100, entries["music"][0].vector.tolist(), {"name": "one more"})
        assert watcher.check_blocking()
    assert [line["points"] for line in logs if line["event"] == "qdrant_points_unusable"] == [10, 11]


@pytest.mark.parametrize("filled_before", [False, True])
def test_a_collection_without_a_single_title_says_so(
    settings: Settings, server: QdrantServer, entries: dict[Kind, list[Entry]], filled_before: bool
) -> None:
    if filled_before:
        foreign_fill(server, entries)
    else:
        server.create("xiaozhi_music", 384)
    with watching(settings) as watcher:
        watcher.check_blocking()
        for number in range(len(SONGS)):
            server.put("xiaozhi_music", number, entries["music"][0].vector.tolist(), {"name": "of another sort"})
        for _ in range(3):
            assert not watcher.check_blocking()
        cache = prepare(settings)
        assert f"none of the {len(SONGS)} points of collection xiaozhi_music" in cache.music.status.reason
        assert cache.music.status.ready == filled_before


def test_vectors_of_an_unnamed_other_model_are_noticed(
    settings: Settings, server: QdrantServer, entries: dict[Kind, list[Entry]]
) -> None:
    turned, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((384, 384)))
    other = {
        kind: [replace(entry, vector=(turned @ entry.vector).astype(np.float32)) for entry in items]
        for kind, items in entries.items()
    }
    foreign_fill(server, other)
    with watching(settings) as watcher:
        assert not watcher.check_blocking()
    assert "are not those of the embedding model all-MiniLM-L6-v2" in prepare(settings).music.status.reason


def test_the_payload_index_is_made_where_it_is_missing(
    settings: Settings, server: QdrantServer, entries: dict[Kind, list[Entry]], server_home: ServerHome
) -> None:
    foreign_fill(server, entries)
    vector = entries["music"][0].vector
    with pytest.raises(Exception, match="Index required"):
        server_home.search("music", vector, sections={"English"})
    with watching(settings) as watcher:
        watcher.check_blocking()
    assert server_home.search("music", vector, sections={"English"}, limit=1)[0][0] == 0


def test_a_load_by_others_is_shown_when_it_has_settled(
    settings: Settings, server: QdrantServer, entries: dict[Kind, list[Entry]]
) -> None:
    server.old = True
    foreign_fill(server, entries)
    with watching(settings) as watcher:
        watcher.check_blocking()
        cache = prepare(settings)
        for number in range(3):
            changed = replace(entries["music"][0].title, title=f"Brand New Song {number}", filename=f"n{number}.mp3")
            server.put("xiaozhi_music", 100 + number, entries["music"][0].vector.tolist(), to_payload(changed))
            watcher.check_blocking()
            cache.refresh()
            assert cache.music.status.titles == len(SONGS)
        watcher.check_blocking()
        cache.refresh()
        assert cache.music.status.titles == len(SONGS) + 3


@pytest.mark.parametrize("restarted", [False, True])
def test_a_collection_that_others_make_anew_is_played_from_until_it_is_filled(
    settings: Settings, server: QdrantServer, entries: dict[Kind, list[Entry]], restarted: bool
) -> None:
    foreign_fill(server, entries)
    with ExitStack() as stack:
        watcher = stack.enter_context(watching(settings))
        assert watcher.check_blocking()
        if restarted:
            watcher = stack.enter_context(watching(settings))
        cache = prepare(settings)
        server.drop("xiaozhi_music")
        server.create("xiaozhi_music", 384)
        for _ in range(4):
            assert not watcher.check_blocking()
            assert cache.music.search_blocking("baa baa black sheep").title is not None
            assert "collection xiaozhi_music in Qdrant at 127.0.0.1 is empty" in cache.music.status.reason
        changed = [
            replace(entry, title=replace(entry.title, title="New " + entry.title.title)) for entry in entries["music"]
        ]
        for number, entry in enumerate(changed):
            server.put("xiaozhi_music", number, entry.vector.tolist(), to_payload(entry.title))
        assert watcher.check_blocking()
        assert watcher.check_blocking()
        found = cache.music.search_blocking("new baa baa black sheep").title
        assert found is not None
        assert found.title == "New Baa Baa Black Sheep"
        assert cache.music.status.reason == ""


def test_a_point_without_a_direction_is_found_by_its_words(
    settings: Settings, server: QdrantServer, entries: dict[Kind, list[Entry]]
) -> None:
    foreign_fill(server, entries)
    server.put("xiaozhi_music", 500, [0.0] * 384, {"title": "No Direction", "filename": "x.mp3"})
    with watching(settings) as watcher:
        watcher.check_blocking()
    cache = prepare(settings)
    assert cache.music.status.titles == len(SONGS) + 1
    found = cache.music.search_blocking("no direction").title
    assert found is not None
    assert found.id == 500

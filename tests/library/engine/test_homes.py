"""One contract for every home: embedded, a server over REST with Qdrant's engine, and qdrant-client's local mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from small_catalogue import SONGS, STORIES, song

from agent.errors import LibraryError, RemoteError
from agent.library.embedding import Embedder
from agent.library.home import Entry, Home
from agent.library.titles import Kind

Fill = Callable[[Home], None]


def test_a_home_without_a_catalogue_says_so(home: Home) -> None:
    assert not home.state("music").exists
    with pytest.raises((LibraryError, RemoteError)):
        home.titles("music")


def test_what_was_loaded_is_read_back_whole(home: Home, fill: Fill, entries: dict[Kind, list[Entry]]) -> None:
    fill(home)
    assert home.titles("music") == sorted(SONGS, key=lambda title: title.id)
    assert home.titles("story") == sorted(STORIES, key=lambda title: title.id)
    state = home.state("music")
    assert (state.exists, state.count, state.dimension, state.model) == (True, len(SONGS), 384, "all-MiniLM-L6-v2")
    assert not state.loading
    expected = {entry.title.id: entry.vector for entry in entries["music"]}
    for entry in home.entries("music"):
        assert np.allclose(entry.vector, expected[entry.title.id], atol=1e-6)


@pytest.mark.parametrize("sections", [None, {"Hindi"}, {"Hindi", "Kannada"}, {"hindi"}, {"Klingon"}, set()])
def test_search_is_the_nearest_by_cosine_within_the_sections(
    home: Home, fill: Fill, entries: dict[Kind, list[Entry]], embedder: Embedder, sections: set[str] | None
) -> None:
    fill(home)
    vector = embedder.embed("a horse made of wood")
    inside = [entry for entry in entries["music"] if sections is None or entry.title.section in sections]
    expected = sorted(((float(entry.vector @ vector), entry.title.id) for entry in inside), reverse=True)[:3]
    found = home.search("music", vector, sections=sections, limit=3)
    assert [number for number, _ in found] == [number for _, number in expected]
    assert [score for _, score in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_a_second_load_replaces_and_removes(home: Home, fill: Fill, entries: dict[Kind, list[Entry]]) -> None:
    fill(home)
    before = home.state("music").version
    gone, changed = entries["music"][0], entries["music"][1]
    with home.loading("music", "all-MiniLM-L6-v2", 384) as loading:
        loading.put([replace(changed, title=replace(changed.title, keywords=("eight legs",)))])
        loading.remove([gone.title.id, 12345])
    titles = {title.id: title for title in home.titles("music")}
    assert gone.title.id not in titles
    assert titles[changed.title.id].keywords == ("eight legs",)
    assert len(titles) == len(SONGS) - 1
    assert home.state("music").version != before


def test_vectors_of_another_model_or_size_are_refused(home: Home, fill: Fill) -> None:
    fill(home)
    with pytest.raises(LibraryError, match="EMBEDDING_MODEL"), home.loading("music", "another-model", 384):
        pass
    with pytest.raises(LibraryError, match="384 numbers"), home.loading("music", "another-model", 768):
        pass
    assert home.titles("music") == sorted(SONGS, key=lambda title: title.id)


def test_a_load_that_fails_leaves_a_library_that_can_be_loaded_again(home: Home, fill: Fill) -> None:
    fill(home)

    class Broke(Exception):
        pass

    with pytest.raises(Broke), home.loading("music", "all-MiniLM-L6-v2", 384):
        raise Broke
    state = home.state("music")
    assert state.count == len(SONGS)
    assert not state.loading
    fill(home)
    assert home.state("music").count == len(SONGS)


def test_every_script_and_many_titles_survive(home: Home) -> None:
    rng = np.random.default_rng(1)
    names = ["गीत", "పాట", "பாடல்", "儿歌", "أغنية", "Пісня", "Été à l'école", "👩‍👧 song"]
    titles = [song(f"{names[number % len(names)]} {number}", "English") for number in range(700)]
    made = [Entry(title, vector) for title, vector in zip(titles, _unit(rng, 700), strict=True)]
    with home.loading("music", "m", 384) as loading:
        loading.put(made)
    assert home.titles("music") == sorted(titles, key=lambda title: title.id)
    vector = made[400].vector
    assert home.search("music", vector, limit=1)[0][0] == titles[400].id


def _unit(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    made = rng.standard_normal((count, 384)).astype(np.float32)
    return list(made / np.linalg.norm(made, axis=1, keepdims=True))

"""An index that another release packed is packed again by the watcher, and no load is lost to that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from small_catalogue import SONGS, song

from agent.library.home import Entry, Home
from agent.library.home_embedded import EmbeddedHome
from agent.library.homes import snapshot_root
from agent.library.snapshot import SnapshotStore, index_mark
from agent.library.titles import Kind
from agent.library.watcher import CatalogueWatcher
from agent.settings import Settings


class LoadedMeanwhile(EmbeddedHome):
    """Another process loads `entry` just before the lock is asked for."""

    def __init__(self, root: Path, entry: Entry) -> None:
        super().__init__(root)
        self._root_of_all = root
        self._entry = entry

    @contextmanager
    def locked(self, kind: Kind, *, wait: bool = True) -> Iterator[bool]:
        put(EmbeddedHome(self._root_of_all), self._entry)
        with super().locked(kind, wait=wait) as mine:
            yield mine


def put(home: EmbeddedHome, entry: Entry) -> None:
    with home.loading("music", "all-MiniLM-L6-v2", 384) as loading:
        loading.put([entry])


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture
def store(settings: Settings, fill: Callable[[Home], None]) -> SnapshotStore:
    """The small catalogue as another release packed it."""
    fill(EmbeddedHome(snapshot_root(settings)))
    store = SnapshotStore(snapshot_root(settings), "music")
    current = store.current()
    assert current is not None
    meta = store.folder / current / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "index_mark": "another release"}))
    return store


def look(settings: Settings, home: EmbeddedHome) -> bool:
    watcher = CatalogueWatcher(settings, lambda _: home)
    try:
        return watcher.check_blocking()
    finally:
        watcher.close_blocking()


def titles(store: SnapshotStore) -> set[str]:
    snapshot = store.open()
    assert snapshot is not None
    return {title.title for title in snapshot.titles()}


def test_an_index_of_another_release_is_packed_again(settings: Settings, store: SnapshotStore) -> None:
    with closing(EmbeddedHome(snapshot_root(settings))) as home:
        assert look(settings, home)
    meta = store.meta()
    assert meta is not None
    assert meta.index_mark == index_mark()
    assert titles(store) == {title.title for title in SONGS}


def test_it_is_left_alone_while_a_load_is_at_work(
    settings: Settings, store: SnapshotStore, entries: dict[Kind, list[Entry]]
) -> None:
    home = EmbeddedHome(snapshot_root(settings))
    before = store.current()
    with home.loading("music", "all-MiniLM-L6-v2", 384) as loading:
        loading.put([Entry(song("Brand New"), entries["music"][0].vector)])
        assert look(settings, home)
        assert store.current() == before
    assert "Brand New" in titles(store)


def test_what_was_loaded_meanwhile_stays_current(
    settings: Settings, store: SnapshotStore, entries: dict[Kind, list[Entry]]
) -> None:
    entry = Entry(song("Brand New"), entries["music"][0].vector)
    assert look(settings, LoadedMeanwhile(snapshot_root(settings), entry))
    assert titles(store) == {"Brand New", *(title.title for title in SONGS)}

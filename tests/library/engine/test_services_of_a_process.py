"""What a process tells of its songs and stories when a room begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.greeting.bank import GreetingBank
from agent.library.home import Home
from agent.library.homes import open_home, snapshot_root
from agent.library.services import prepare
from agent.process import Kit, Shared
from agent.settings import Settings
from agent.telemetry.instruments import INSTRUMENTS

Make = Callable[..., Settings]


def _kit(settings: Settings) -> Kit:
    return Kit(Shared(settings, GreetingBank(), None, prepare(settings), None, None), None)


def test_songs_and_stories_are_warm_only_while_there_are_titles(
    make_settings: Make, tmp_path: Path, fill: Callable[[Home], None]
) -> None:
    settings = make_settings(catalogue_dir=tmp_path)
    kit = _kit(settings)
    assert (kit.warm["music"], kit.warm["stories"]) == (False, False)
    home = open_home(settings)
    fill(home)
    home.close()
    assert (kit.warm["music"], kit.warm["stories"]) == (True, True)


def test_without_a_place_to_play_from_nothing_is_missed(make_settings: Make) -> None:
    assert {"music", "stories"}.isdisjoint(_kit(make_settings()).warm)


def test_every_service_is_shown_before_it_is_first_missed(make_settings: Make, tmp_path: Path) -> None:
    warm = _kit(make_settings(catalogue_dir=tmp_path)).warm
    assert {service for service, _ in INSTRUMENTS["toy_service_cache"].known} == set(warm)


def test_a_library_that_was_mended_is_found_again(
    make_settings: Make, tmp_path: Path, fill: Callable[[Home], None]
) -> None:
    settings = make_settings(catalogue_dir=tmp_path)
    home = open_home(settings)
    fill(home)
    (damaged,) = (path for path in snapshot_root(settings).glob("music/*/ids.npy") if not path.parent.is_symlink())
    damaged.write_bytes(b"damaged")
    cache = prepare(settings)
    assert not cache.music.ready
    assert not cache.music.refresh(), "it is as it was"
    fill(home)
    home.close()
    assert cache.music.refresh()
    assert cache.music.ready

"""What children say finds the titles of the sample library, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.library import catalogue
from agent.library.services import ServiceCache, prepare
from agent.settings import Settings
from sandbox.processes import REPO


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> ServiceCache:
    """The sample library, loaded as an operator would."""
    state = tmp_path_factory.mktemp("state")
    settings = Settings(_env_file=None, state_dir=state, model_dir=model_dir)  # type: ignore[call-arg]
    assert catalogue.run(["load", str(REPO / "sample")], settings) == 0
    return prepare(settings)


@pytest.mark.parametrize(
    ("request_", "title"),
    [
        ("Twinkle Twinkle Little Star", "Twinkle Twinkle Little Star"),
        ("please play twinkle twinkle", "Twinkle Twinkle Little Star"),
        ("twinkel twinkel litle star", "Twinkle Twinkle Little Star"),
        ("row your boat", "Row Row Row Your Boat"),
        ("liang zhi lao hu", "两只老虎"),
        ("两只老虎", "两只老虎"),
        ("frere jacques", "Frère Jacques"),
    ],
)
def test_a_song_is_found_by_what_is_said(library: ServiceCache, request_: str, title: str) -> None:
    found = library.music.search_blocking(request_).title
    assert found is not None
    assert found.title == title


@pytest.mark.parametrize("request_", ["play despacito", "the wheels on the bus", "play the quarterly report"])
def test_what_is_not_there_is_not_replaced_by_something_else(library: ServiceCache, request_: str) -> None:
    answer = library.music.search_blocking(request_)
    assert answer.title is None
    assert answer.nearest


def test_another_one_is_another_one_until_all_were_heard(library: ServiceCache) -> None:
    heard: list[int] = []
    for _ in range(6):
        title = library.music.search_blocking("any song", history=heard).title
        assert title is not None
        assert title.id not in heard
        heard.append(title.id)

"""What children ask for without a name, or by another one, in a small catalogue of several languages and scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.library import catalogue
from agent.library.services import ServiceCache, prepare
from agent.settings import Settings

TREE: dict[str, dict[str, dict[str, Any]]] = {
    "music/English": {
        "The Itsy Bitsy Spider": {"alternatives": ["Incy Wincy Spider"], "keywords": ["spider", "rain", "water spout"]},
        "Twinkle Twinkle Little Star": {"keywords": ["star", "night", "sky"]},
        "The Wheels on the Bus": {"keywords": ["bus", "wheels"]},
        "Baa Baa Black Sheep": {"keywords": ["sheep", "wool"]},
        "Old MacDonald Had a Farm": {"keywords": ["farm", "animals", "cow"]},
        "Humpty Dumpty": {"keywords": ["egg", "wall"]},
    },
    "music/Hindi": {
        "लकड़ी की काठी": {"romanized": "Lakdi Ki Kathi", "keywords": ["horse", "wooden"]},
        "मछली जल की रानी है": {"romanized": "Machli Jal Ki Rani Hai", "keywords": ["fish", "water"]},
        "चंदा मामा दूर के": {"romanized": "Chanda Mama Door Ke", "keywords": ["moon", "uncle"]},
    },
    "music/Kannada": {
        "ಚಂದಮಾಮ ಬಾ": {"romanized": "Chandamama Baa", "keywords": ["moon"]},
        "ಆನೆ ಬಂತೊಂದಾನೆ": {"romanized": "Aane Bantondaane", "keywords": ["elephant"]},
    },
    "music/Chinese": {"小兔子乖乖": {"romanized": "Xiao Tuzi Guaiguai", "keywords": ["rabbit", "wolf", "door"]}},
    "stories/Adventure": {
        "The Tortoise and the Hare": {"keywords": ["tortoise", "hare", "rabbit", "race"]},
        "The Lion and the Mouse": {"keywords": ["lion", "mouse", "net"]},
    },
    "stories/Bedtime": {
        "Goldilocks": {"keywords": ["bears", "girl", "porridge", "chair"]},
        "The Princess and the Pea": {"keywords": ["princess", "pea", "mattress"]},
    },
    "stories/Fantasy": {"Jack and the Beanstalk": {"keywords": ["giant", "beans", "castle"]}},
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> ServiceCache:
    """The catalogue of TREE, loaded as an operator would."""
    root = tmp_path_factory.mktemp("library")
    for place, entries in TREE.items():
        (root / "tree" / place).mkdir(parents=True)
        named = {
            name: {**entry, "filename": f"{number}.mp3"} for number, (name, entry) in enumerate(entries.items(), 1)
        }
        (root / "tree" / place / "metadata.json").write_text(json.dumps(named, ensure_ascii=False), encoding="utf-8")
    settings = Settings(_env_file=None, state_dir=root / "state", model_dir=model_dir)  # type: ignore[call-arg]
    assert catalogue.run(["load", str(root / "tree")], settings) == 0
    return prepare(settings)


@pytest.mark.parametrize(
    ("kind", "said", "title"),
    [
        ("music", "the one about the spider", "The Itsy Bitsy Spider"),
        ("music", "the song with the egg that fell off the wall", "Humpty Dumpty"),
        ("music", "play the song about the sheep with the wool", "Baa Baa Black Sheep"),
        ("music", "a song about a farm with animals", "Old MacDonald Had a Farm"),
        ("music", "the song about the wooden horse", "लकड़ी की काठी"),
        ("music", "the hindi song about the fish", "मछली जल की रानी है"),
        ("music", "the kannada song about an elephant", "ಆನೆ ಬಂತೊಂದಾನೆ"),
        ("story", "a story about a rabbit", "The Tortoise and the Hare"),
        ("story", "tell me the story about the bears", "Goldilocks"),
        ("story", "the story with the princess on the mattress", "The Princess and the Pea"),
        ("story", "the one with the giant and the beans", "Jack and the Beanstalk"),
        ("story", "a story about a lion and a mouse", "The Lion and the Mouse"),
    ],
)
def test_a_title_is_found_by_what_it_is_about(library: ServiceCache, kind: str, said: str, title: str) -> None:
    service = library.music if kind == "music" else library.stories
    found = service.search_blocking(said).title
    assert found is not None
    assert found.title == title


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("चंदा मामा दूर के", "चंदा मामा दूर के"),
        ("chanda mama door ke", "चंदा मामा दूर के"),
        ("chanda mama dur ke sunao", "चंदा मामा दूर के"),
        ("लकड़ी की काठी सुनाओ", "लकड़ी की काठी"),
        ("lakdi ki kaathi", "लकड़ी की काठी"),
        ("machli jal ki rani", "मछली जल की रानी है"),
        ("मछली जल की रानी", "मछली जल की रानी है"),
        ("play aane bantondaane", "ಆನೆ ಬಂತೊಂದಾನೆ"),
        ("ಆನೆ ಬಂತೊಂದಾನೆ ಹಾಡು ಹಾಕು", "ಆನೆ ಬಂತೊಂದಾನೆ"),
        ("xiao tuzi guaiguai", "小兔子乖乖"),
        ("请播放小兔子乖乖", "小兔子乖乖"),
        ("小兔子乖乖", "小兔子乖乖"),
        ("इट्सी बिट्सी स्पाइडर", "The Itsy Bitsy Spider"),
    ],
)
def test_a_title_is_found_in_whatever_script_it_is_said(library: ServiceCache, said: str, title: str) -> None:
    found = library.music.search_blocking(said).title
    assert found is not None
    assert found.title == title


@pytest.mark.parametrize(
    ("said", "language"),
    [
        ("something in Hindi", "Hindi"),
        ("play something in hindi please", "Hindi"),
        ("a Hindi song", "Hindi"),
        ("हिंदी गाना सुनाओ", "Hindi"),
        ("any song in Kannada", "Kannada"),
        ("ಕನ್ನಡ ಹಾಡು ಹಾಕು", "Kannada"),
        ("play a chinese song", "Chinese"),
        ("放一首中文歌", "Chinese"),
        ("ein englisches Lied bitte", "English"),
    ],
)
def test_any_song_of_a_language_is_one_of_that_language(library: ServiceCache, said: str, language: str) -> None:
    for _ in range(6):
        answer = library.music.search_blocking(said)
        assert answer.kind == "random"
        assert answer.title is not None
        assert answer.title.section == language


@pytest.mark.parametrize("section", ["Kannada", "kannada", "kn", "KN", "ಕನ್ನಡ", "kn-IN"])
def test_a_language_goes_by_any_of_its_names(library: ServiceCache, section: str) -> None:
    found = {library.music.search_blocking("play something", section).title for _ in range(30)}
    assert {title.section for title in found if title} == {"Kannada"}
    moon = library.music.search_blocking("the song about the moon", section).title
    assert moon is not None
    assert moon.title == "ಚಂದಮಾಮ ಬಾ"


@pytest.mark.parametrize("said", ["bedtime story", "tell me a bedtime story please"])
def test_a_story_of_a_category_is_one_of_that_category(library: ServiceCache, said: str) -> None:
    answer = library.stories.search_blocking(said)
    assert answer.kind == "random"
    assert answer.title is not None
    assert answer.title.section == "Bedtime"


@pytest.mark.parametrize("category", ["bedtime story", "Bedtime stories", "bedtime", "BEDTIME"])
@pytest.mark.parametrize("said", ["", "a story", "bedtime story"])
def test_a_category_may_be_named_with_a_word_too_many(library: ServiceCache, said: str, category: str) -> None:
    answer = library.stories.search_blocking(said, category)
    assert answer.title is not None
    assert answer.title.section == "Bedtime"


@pytest.mark.parametrize("category", ["any", "story"])
def test_a_category_that_is_none_is_any(library: ServiceCache, category: str) -> None:
    assert library.stories.search_blocking("", category).kind == "random"


def test_a_language_that_is_not_there_is_not_replaced_where_it_is_named_apart(library: ServiceCache) -> None:
    assert library.music.search_blocking("any song", "Spanish").kind == "not_found"


@pytest.mark.parametrize("said", ["something in French", "play a Spanish song", "any song in Tamil"])
def test_a_language_that_is_not_there_is_not_replaced_by_another(library: ServiceCache, said: str) -> None:
    answer = library.music.search_blocking(said)
    assert (answer.kind, answer.title) == ("not_found", None)


@pytest.mark.parametrize("said", ["play something", "any song", "गाना सुनाओ", "放一首歌"])
def test_anything_is_anything_of_the_whole_set_and_nothing_twice(library: ServiceCache, said: str) -> None:
    heard: list[int] = []
    for _ in range(12):
        title = library.music.search_blocking(said, history=heard).title
        assert title is not None
        assert title.id not in heard
        heard.append(title.id)
    again = library.music.search_blocking(said, history=heard).title
    assert again is not None
    assert again.id != heard[-1]


def test_any_of_several_that_are_about_it_will_do_unless_one_is_meant(library: ServiceCache) -> None:
    moon = {"चंदा मामा दूर के", "ಚಂದಮಾಮ ಬಾ"}
    found = library.music.search_blocking("a song about the moon").title
    assert found is not None
    assert found.title in moon
    which = library.music.search_blocking("the song about the moon")
    assert which.title is None
    assert {title.title for title in which.nearest[:2]} == moon


@pytest.mark.parametrize("said", ["the one about the dentist", "a song about submarines", "play the tax return song"])
def test_what_no_title_is_about_is_not_found(library: ServiceCache, said: str) -> None:
    answer = library.music.search_blocking(said)
    assert (answer.kind, answer.title) == ("not_found", None)
    assert answer.nearest

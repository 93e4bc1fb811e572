"""Titles made of words that ask ("Let It Go"), and wishes made of the same words ("play it again")."""

from __future__ import annotations

import random

import pytest

from agent.library.ranking import TitleIndex
from agent.library.titles import Title, stable_id


def index(*names: str) -> TitleIndex:
    return TitleIndex.build(
        Title(stable_id("music", "English", name), "music", name, "English", filename=f"{name}.mp3") for name in names
    )


OTHERS = (
    "Baa Baa Black Sheep", "Twinkle Twinkle Little Star", "The Wheels on the Bus", "Hot Cross Buns", "Humpty Dumpty",
    "Jingle Bells", "Old MacDonald Had a Farm", "Itsy Bitsy Spider",
)  # fmt: skip
ASKING = (
    "Let It Go", "I Love You", "The Hello Song", "This Is Me", "Hello Hello", "Your Song", "Please Please Me", "Again",
    "Another One", "The Story of Us", "Sing a Song", "Let It Go Now",
)  # fmt: skip
LIBRARY = index(*OTHERS, *ASKING)
PLAIN = index(*OTHERS)


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("let it go", "Let It Go"),
        ("play let it go", "Let It Go"),
        ("let it go please", "Let It Go"),
        ("let it go song", "Let It Go"),
        ("can you play me let it go again", "Let It Go"),
        ("play the song called let it go", "Let It Go"),
        ("play let it go now", "Let It Go Now"),
        ("sing I love you", "I Love You"),
        ("I love you song", "I Love You"),
        ("hello song", "The Hello Song"),
        ("play the hello song", "The Hello Song"),
        ("play this is me", "This Is Me"),
        ("put on hello hello", "Hello Hello"),
        ("play your song", "Your Song"),
        ("play please please me", "Please Please Me"),
        ("tell me the story of us", "The Story of Us"),
        ("again", "Again"),
        ("another one", "Another One"),
        ("sing a song", "Sing a Song"),
    ],
)
def test_a_title_of_asking_words_is_found_within_a_sentence(said: str, title: str) -> None:
    answer = LIBRARY.search(said)
    assert answer.kind == "found"
    assert answer.title is not None
    assert answer.title.title == title


@pytest.mark.parametrize(
    "said",
    [
        "let it go",
        "play let it go",
        "let it go please",
        "please play me let it go for me",
        "let it go song",
        "sing I love you",
        "I love you story",
        "play the song this is me",
        "put on hello hello",
        "play the hello song",
    ],
)
def test_such_a_title_that_is_not_there_is_not_replaced_by_any_other(said: str) -> None:
    answer = PLAIN.search(said)
    assert (answer.kind, answer.title) == ("not_found", None)


@pytest.mark.parametrize("library", [LIBRARY, PLAIN], ids=["with such titles", "without"])
@pytest.mark.parametrize(
    "said",
    [
        "",
        "play some music",
        "play a song",
        "can you please play a song for me",
        "any song",
        "something",
        "anything you like",
        "surprise me",
        "play something for me please",
        "another one please",
        "play another song please",
        "the next one please",
        "let me hear a song",
        "I would love to hear a story",
        "I'd love a song",
        "is there any music",
        "do you have a song for me",
        "hello toy, can you play music",
        "put it on",
        "play it for me",
        "play a song for my daddy",
        "sing with me",
        "sing a song for you and me please",
        "play me one of your songs",
        "I want to listen to music",
        "spiel ein Lied",
        "गाना सुनाओ",
        "放一首歌",
        "play",
        "one more",
    ],
)
def test_what_names_nothing_asks_for_any_one(library: TitleIndex, said: str) -> None:
    assert library.search(said, rng=random.Random(3)).kind == "random"


@pytest.mark.parametrize(
    "said",
    [
        "again please", "play it again", "do it again", "once more", "the same again", "play the English song again",
        "फिर से गाना सुनाओ", "वही गाना फिर से", "phir se gaana sunao", "noch einmal", "encore une fois",
        "otra vez por favor",
    ],
)  # fmt: skip
def test_again_is_the_one_that_was_heard(said: str) -> None:
    last = LIBRARY.search("jingle bells").title
    assert last is not None
    a_story = 1
    assert LIBRARY.search(said, history=[last.id, a_story]).title == last


@pytest.mark.parametrize(
    "said", ["phir koi aur gaana sunao", "spiel einmal ein anderes Lied", "otra canción por favor"]
)
def test_another_is_not_again(said: str) -> None:
    last = LIBRARY.search("jingle bells").title
    assert last is not None
    assert LIBRARY.search(said, history=[last.id]).title != last


@pytest.mark.parametrize(
    ("said", "title"), [("play hello", "Hello"), ("the song called mama", "Mama"), ("play kanna", "Kanna")]
)
def test_a_name_of_one_such_word_is_found(said: str, title: str) -> None:
    answer = index(*OTHERS, "Hello", "Mama", "Kanna").search(said)
    assert (answer.kind, answer.title and answer.title.title) == ("found", title)


def test_a_part_of_a_name_and_again_is_that_name() -> None:
    library = index(*OTHERS, "Let It Go From Frozen")
    last = library.search("jingle bells").title
    assert last is not None
    answer = library.search("play let it go again", history=[last.id])
    assert answer.title != last


def test_a_sentence_of_any_length_is_understood() -> None:
    assert LIBRARY.search("play " * 5000 + "it").kind == "random"

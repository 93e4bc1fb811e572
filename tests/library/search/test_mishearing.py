"""Names are recognised by their sounds, phone by phone, in what a recogniser made of a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from agent.library.lexical import fold, phone_grams
from agent.library.mishearing import channel
from agent.library.pronunciation import FIRST_PHONE, pronunciations, said, say

NAMES = ("Hot Cross Buns", "Rock a Bye Baby", "Bobby Shafto", "The Crow and the Pitcher", "Jingle Bells")


def phones(text: str) -> list[str]:
    """In ARPAbet."""
    return [pronunciations().phones[ord(sign) - ord(FIRST_PHONE)] for sign in said(fold(text))]


def test_words_are_said_by_the_dictionary_where_it_has_them() -> None:
    assert phones("The king's two knights") == "DH AH K IH NG Z T UW N AY T S".split()


def test_any_other_word_is_said_by_rules() -> None:
    assert "khichdi" not in pronunciations().words
    assert phones("shimper") == "SH IH M P ER".split()
    assert say("khichdi")
    assert say("liang")


@pytest.mark.parametrize("text", ["", "1234567", "!?"])
def test_what_has_no_letters_has_no_sound(text: str) -> None:
    assert said(fold(text)) == ""


@pytest.mark.parametrize(
    ("heard", "name"),
    [
        ("hey can you play that song cold cocked cross loans", "Hot Cross Buns"),
        ("lee roth combined baby", "Rock a Bye Baby"),
        ("books on bobby through it so", "Bobby Shafto"),
        ("i want to hear that bro and the theater", "The Crow and the Pitcher"),
        ("playing jingle bells", "Jingle Bells"),
    ],
)
def test_the_name_that_was_misheard_is_the_likeliest(heard: str, name: str) -> None:
    odds, _ = channel().evidence([said(fold(each)) for each in NAMES], said(fold(heard)))
    assert NAMES[int(odds.argmax())] == name
    assert odds.max() > 5.0


def test_a_name_heard_as_it_is_said_gets_all_it_can_and_is_located() -> None:
    name, heard = said(fold("jingle bells")), said(fold("please play jingle bells for me"))
    odds, ends = channel().evidence([name], heard)
    assert odds[0] == pytest.approx(channel().most([name])[0], rel=1e-5)
    end = int(ends[0])
    assert heard[channel().start(name, heard, end) : end] == name


def test_speech_without_the_name_says_nothing_for_it() -> None:
    odds, _ = channel().evidence([said(fold("Bobby Shafto")), ""], said(fold("quiet")))
    assert odds[0] < 2.0
    assert odds[1] == 0.0


def test_nothing_heard_and_no_names_are_answered_too() -> None:
    odds, ends = channel().evidence(["", say("star")], "")
    assert ends.tolist() == [0, 0]
    assert odds[1] < 0.0
    assert channel().evidence([], say("star"))[0].shape == (0,)
    assert np.array_equal(channel().most(["", ""]), np.zeros(2, np.float32))


def test_grams_of_phones_leave_room_for_one_that_was_misheard() -> None:
    assert set(phone_grams("ABC")) & set(phone_grams("AXC")) == {"<A", "C>", "A?C"}

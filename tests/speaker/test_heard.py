from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.speaker.heard import Transcript, units, whole_words

RATE = 24_000
STORY = "Once upon a time there was a bear."
CHINESE = "从前有一只小熊，它住在森林里。"
THAI = "กาลครั้งหนึ่งนานมาแล้ว"


@pytest.mark.parametrize(
    ("text", "spoken", "heard"),
    [
        (STORY, 0, ""),
        (STORY, 3, ""),
        (STORY, 4, "Once"),
        (STORY, 9.9, "Once upon"),
        (STORY, 1000, STORY),
        (CHINESE, 2, ""),
        (CHINESE, 9, CHINESE[:3]),
        ("Say 你好吗 now", 4 + 6, "Say 你好"),
        ("안녕하세요 친구", 16, "안녕하세요"),
    ],
)
def test_words_count_once_they_are_whole(text: str, spoken: float, heard: str) -> None:
    assert text[: whole_words(text, spoken)].rstrip() == heard


@given(st.text() | st.sampled_from([STORY, CHINESE, THAI]), st.floats(0, 60))
def test_no_more_than_was_spoken_and_no_sign_is_torn(text: str, spoken: float) -> None:
    end = whole_words(text, spoken)
    assert units(text[:end]) <= spoken + 1e-3
    if 0 < end < len(text) and not text[end - 1].isspace() and not text[end].isspace():
        assert not unicodedata.category(text[end]).startswith("M")
    assert whole_words(text, units(text)) == len(text)


def test_a_thai_phrase_is_cut_between_its_signs() -> None:
    heard = THAI[: whole_words(THAI, units(THAI) / 2)]
    assert 0 < len(heard) < len(THAI)


def told(*parts: tuple[str, int]) -> Transcript:
    transcript = Transcript(RATE)
    for text, at in parts:
        transcript.add(text, at)
    return transcript


def test_phrases_that_have_sounded_are_whole_and_the_last_one_is_cut_by_its_own_length() -> None:
    slow = told(("Well, ", 0), ("", RATE), (STORY, RATE), ("", 11 * RATE))
    assert slow.heard(RATE, 11 * RATE) == "Well,"
    assert slow.heard(6 * RATE, 11 * RATE) == "Well, Once upon a time"
    assert slow.heard(11 * RATE, 11 * RATE) == f"Well, {STORY}"


def test_a_phrase_that_is_still_coming_counts_by_the_usual_speed() -> None:
    coming = told((STORY, 0))
    assert coming.heard(RATE, RATE) == "Once upon a"
    assert coming.heard(RATE, 100 * RATE) == ""


def test_text_told_along_with_the_sound_is_one_phrase() -> None:
    transcript = Transcript(RATE)
    for place, word in enumerate(STORY.split(" ")):
        transcript.add(f"{word} ", place * RATE)
    assert transcript.heard(4 * RATE, 8 * RATE) == "Once upon a time"


def test_a_face_alone_is_nothing_and_no_text_is_not_known() -> None:
    assert told(("😊 ", 0), (STORY, 0)).heard(1, 10 * RATE) == ""
    assert told(("😊 ", 0), (STORY, 0), ("", RATE)).heard(RATE, RATE) == f"😊 {STORY}"
    assert told().heard(RATE, RATE) is None

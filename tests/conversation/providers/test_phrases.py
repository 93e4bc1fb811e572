from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.conversation.phrases import LATER_MIN, PhraseSplitter, speakable


def split(text: str, size: int = 4) -> list[str]:
    splitter = PhraseSplitter()
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    return [phrase for part in parts for phrase in splitter.push(part)] + splitter.flush()


@given(st.text(max_size=300), st.integers(1, 20))
def test_nothing_is_lost_or_added(text: str, size: int) -> None:
    assert "".join(split(text, size)) == text


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Well hello, how are you today? I am fine.", "Well hello,"),
        ("What a nice day! Shall we play?", "What a nice day!"),
        ("Oh, yes! Let us play something.", "Oh,"),
        ("Dr. Smith has 3.5 apples. He eats them.", "Dr. Smith has 3.5 apples."),
        ("Mt. Everest is in no U.S. state. It is in Nepal.", "Mt. Everest is in no U.S. state."),
        ("आज मौसम अच्छा है। चलो खेलते हैं।", "आज मौसम अच्छा है।"),
        ("从前有一条龙，它喜欢唱歌。它很开心。", "从前有一条龙，"),
    ],
)
def test_the_first_phrase_ends_with_the_first_clause(text: str, first: str) -> None:
    assert split(text)[0] == first


def test_a_long_first_sentence_without_a_clause_is_cut_at_a_word() -> None:
    text = "Once there was a very small dragon who lived on top of a very high mountain with his mother and father."
    first = split(text)[0]
    assert len(first) <= 70
    assert text.startswith(first + " ")


@pytest.mark.parametrize(
    "text",
    [
        "กาลครั้งหนึ่งนานมาแล้วมีกระต่ายน้อยตัวหนึ่งอาศัยอยู่ในป่าใหญ่กับแม่และพี่น้องอีกสามตัวทุกวันกระต่ายน้อยจะออกไปหาแครอท",
        "ກາລະຄັ້ງໜຶ່ງດົນນານມາແລ້ວມີກະຕ່າຍນ້ອຍໂຕໜຶ່ງອາໄສຢູ່ໃນປ່າໃຫຍ່ກັບແມ່ແລະພີ່ນ້ອງອີກສາມໂຕທຸກໆວັນກະຕ່າຍນ້ອຍຈະອອກໄປຫາແຄຣອດ",
        "កាលពីព្រេងនាយមានទន្សាយតូចមួយរស់នៅក្នុងព្រៃធំជាមួយម្ដាយនិងបងប្អូនបីនាក់ទៀតរាល់ថ្ងៃទន្សាយតូចចេញទៅរកការ៉ុត",
        "ဟိုးရှေးရှေးတုန်းကယုန်ကလေးတစ်ကောင်ဟာတောအုပ်ကြီးထဲမှာမေမေနဲ့မောင်နှမသုံးကောင်နဲ့အတူနေထိုင်ခဲ့ပါတယ်",
    ],
)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_long_beginning_without_spaces_is_cut_between_characters_as_they_are_written(text: str, size: int) -> None:
    phrases = split(text, size)
    assert "".join(phrases) == text
    assert all(len(phrase) > 1 for phrase in phrases)
    assert len(phrases[0]) <= 70
    for before, after in pairwise(phrases):
        assert unicodedata.category(after[0])[0] != "M"
        assert before[-1] not in "เแโใไເແໂໃໄ\u17d2\u1039"
        assert after[0] not in "ะาำະາຳ"


def test_a_word_of_any_length_is_whole() -> None:
    word = "Hurr" + "a" * 100 + "y"
    assert split(word + " we won. Yes!") == [word + " we won.", " Yes!"]


def test_later_phrases_are_whole_sentences_and_not_too_short() -> None:
    text = "Hello! " + "This, I honestly think, is a short one. " * 12
    phrases = split(text)
    assert phrases[:2] == ["Hello!", " This, I honestly think,"]
    assert all(p.rstrip().endswith(".") for p in phrases[2:])
    assert all(len(p.strip()) >= LATER_MIN for p in phrases[2:-1])


def test_a_short_beginning_is_followed_soon() -> None:
    first, second, *_ = split("Well, there was a little dragon, who lived with his mother on a very high mountain.")
    assert (first, second) == ("Well,", " there was a little dragon,")


def test_the_first_phrase_is_out_as_soon_as_its_clause_is_over() -> None:
    splitter = PhraseSplitter()
    assert splitter.push("Well hello,") == []
    assert splitter.push(" how") == ["Well hello,"]


@pytest.mark.parametrize(
    ("text", "expected"), [("…!? ", False), ("🙂", False), ("ok", True), ("नमस्ते", True), ("7", True)]
)
def test_what_is_speakable(text: str, expected: bool) -> None:
    assert speakable(text) is expected

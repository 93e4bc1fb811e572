"""Which greeting a child hears."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.greeting.bank import Greeting, GreetingBank
from agent.greeting.choose import choose_style
from agent.greeting.languages import lookup_order, normalise


def recording(name: str, purpose: str = "greeting") -> Greeting:
    language, _, style = name.partition("_")
    if name == "fallback":
        language, style = "en", "fallback"
    pcm = np.full(240, len(name), dtype=np.int16)
    return Greeting(id=name, text=name, language=language, style=style, pcm=pcm, purpose=purpose)


NAMES = ["en_default", "en_child_friendly", "en_returning", "zh_default", "hi_default", "hi_returning", "fallback"]
BANK = GreetingBank(tuple(recording(name) for name in NAMES))


@pytest.mark.parametrize(
    ("languages", "how", "expected"),
    [
        (["en"], {}, "en_default"),
        (["en"], {"age": 4}, "en_child_friendly"),
        (["en"], {"age": 6.9}, "en_child_friendly"),
        (["en"], {"age": 7}, "en_default"),
        (["en"], {"age": 0}, "en_default"),
        (["en"], {"age": -3}, "en_default"),
        (["en"], {"age": float("nan")}, "en_default"),
        (["en"], {"age": True}, "en_default"),
        (["en"], {"age": 4, "returning": True}, "en_returning"),
        (["en"], {"age": 9, "style": "child_friendly"}, "en_child_friendly"),
        (["en"], {"style": "pirate"}, "en_default"),
        (["hi"], {"age": 4}, "hi_default"),
        (["hi"], {"returning": True}, "hi_returning"),
        (["zh"], {"returning": True}, "zh_default"),
        (["hi-IN"], {}, "hi_default"),
        (["hi_IN"], {}, "hi_default"),
        (["zh-Hant-TW"], {}, "zh_default"),
        (["cmn-CN"], {}, "zh_default"),
        (["zho"], {}, "zh_default"),
        (["EN-us"], {}, "en_default"),
        (["en_US.UTF-8"], {}, "en_default"),
        (["Hindi"], {}, "hi_default"),
        (["हिन्दी"], {}, "hi_default"),
        (["Chinese (Simplified)"], {}, "zh_default"),
        (["普通话"], {}, "zh_default"),
        ([None, "hi", "en"], {}, "hi_default"),
        (["", " ", "hi"], {}, "hi_default"),
        (["ta-IN", None, "zh"], {}, "zh_default"),
        (["ta"], {}, "fallback"),
        (["ta"], {"age": 4}, "fallback"),
        (["🧸", "x" * 5000, "../en", "en\0"], {}, "fallback"),
        ([], {}, "fallback"),
    ],
)
def test_the_choice(languages: list[str | None], how: dict[str, Any], expected: str) -> None:
    chosen = BANK.choose(languages, **how)
    assert chosen is not None
    assert chosen.id == expected


def test_without_a_fallback_any_greeting_is_better_than_none() -> None:
    chosen = GreetingBank((recording("hi_default"),)).choose(["ta"])
    assert chosen is not None
    assert chosen.id == "hi_default"


def test_an_empty_bank_has_nothing_and_sentences_are_no_greetings() -> None:
    assert GreetingBank().choose(["en"]) is None
    assert GreetingBank((recording("en_default", purpose="goodbye"),)).choose(["en"]) is None


def test_a_regional_recording_serves_its_language() -> None:
    bank = GreetingBank((recording("en-gb_default"), recording("en-us_default"), recording("fallback")))
    for asked, expected in (("en-US", "en-us_default"), ("en-IN", "en-gb_default"), ("en", "en-gb_default")):
        chosen = bank.choose([asked])
        assert chosen is not None
        assert chosen.id == expected


@given(
    st.lists(st.none() | st.text(max_size=80), max_size=5),
    st.none() | st.integers() | st.floats(),
    st.none() | st.text(max_size=20),
)
def test_a_choice_is_always_made(languages: list[str | None], age: float | None, style: str | None) -> None:
    assert BANK.choose(languages, age=age, style=style) in BANK.greetings


def test_hostile_types_from_attributes_are_passed_over() -> None:
    languages: Any = [5, b"hi", {"a": 1}, ["en"], "hi"]
    chosen = BANK.choose(languages, age="four")  # type: ignore[arg-type]
    assert chosen is not None
    assert chosen.id == "hi_default"


def test_a_style_follows_from_age_and_return() -> None:
    assert choose_style(None) == "default"
    assert choose_style(5) == "child_friendly"
    assert choose_style(None, returning=True) == "returning"


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("sr-Latn-RS", "sr-latn-rs"),
        ("nb", "no"),
        ("iw", "he"),
        ("tlh", "tlh"),
        ("en-", None),
        ("e", None),
        ("123", None),
        (7, None),
        (None, None),
    ],
)
def test_tags_are_brought_to_one_form(text: object, tag: str | None) -> None:
    assert normalise(text) == tag


def test_lookup_goes_from_the_whole_tag_to_the_language() -> None:
    assert list(lookup_order("zh-hant-x-tw")) == ["zh-hant-x-tw", "zh-hant", "zh"]

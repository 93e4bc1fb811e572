from __future__ import annotations

import tomllib
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.conversation.control_words import Control, ControlWords, match

TABLES = tomllib.loads(files("agent.conversation").joinpath("control_words.toml").read_text("utf-8"))
PHRASES = [
    (language, control, phrase)
    for language, rows in TABLES.items()
    for control in Control
    for phrase in rows.get(control, [])
]


@pytest.mark.parametrize(("language", "control", "phrase"), PHRASES)
def test_every_phrase_of_every_table_is_understood(language: str, control: str, phrase: str) -> None:
    assert match(phrase, language) == control
    assert match(f" {phrase.capitalize()}! ", f"{language}-XX") == control


def test_every_greeting_language_has_every_control() -> None:
    for language in ("en", "zh", "hi", "kn", "te", "ta", "de", "fr", "es"):
        assert set(Control) <= TABLES[language].keys()


@pytest.mark.parametrize(
    ("transcript", "control"),
    [
        ("Stop.", "stop"),
        ("STOP!!!", "stop"),
        ("Please stop.", "stop"),
        ("Okay, stop now.", "stop"),
        ("Stop it, please!", "stop"),
        ("No, stop!", "stop"),
        ("Stop. Stop. Stop.", "stop"),
        ("stop stop", "stop"),
        ("Can you please stop the music now?", "stop"),
        ("Could you stop singing, please", "stop"),
        ("That's enough, thanks.", "stop"),
        ("that’s enough", "stop"),
        ("Next!", "next"),
        ("Next song, please.", "next"),
        ("Skip this song", "next"),
        ("Pause the story", "pause"),
        ("Wait a minute, please", "pause"),
        ("Go on.", "resume"),
        ("Go on, please", "resume"),
        ("Continue the story", "resume"),
        ("Keep going!", "resume"),
        ("Again, again!", "again"),
        ("Play it again", "again"),
        ("One more time please", "again"),
        ("Louder!", "louder"),
        ("Turn it up a little bit", "louder"),
        ("Too loud!", "quieter"),
        ("Go back", "previous"),
        ("बंद करो!", "stop"),
        ("गाना बंद करो", "stop"),
        ("कृपया रुकिए।", "stop"),
        ("अब बस करो ना", "stop"),
        ("रुको रुको रुको", "stop"),
        ("चुप हो जाओ", "stop"),
        ("अगला गाना चलाओ प्लीज", "next"),
        ("जोर से", "louder"),
        ("ज़ोर से", "louder"),
        ("फिर से सुनाओ", "again"),
        ("आगे सुनाओ", "resume"),
        ("gaana band karo", "stop"),
        ("停！", "stop"),
        ("停一下。", "stop"),
        ("请停一下", "stop"),
        ("停停停", "stop"),
        ("停 一 下", "stop"),
        ("好了，别唱了。", "stop"),
        ("把音乐关掉", None),
        ("音乐关掉", "stop"),
        ("下一首", "next"),
        ("下一首吧", "next"),
        ("暂停一下", "pause"),
        ("继续讲故事", "resume"),
        ("再来一遍", "again"),
        ("大声一点", "louder"),
        ("小声点好吗？", "quieter"),
        ("好大声啊", "quieter"),
        ("好小声", "louder"),
        ("no more volume", "quieter"),
        ("ನಿಲ್ಲಿಸಿ", "stop"),
        ("పాట ఆపు", "stop"),
        ("பாட்டை நிறுத்து", "stop"),
        ("Hör bitte auf", None),
        ("Hör auf, bitte!", "stop"),
        ("Mach bitte weiter", "resume"),
        ("Arrête la musique, s'il te plaît.", "stop"),
        ("Arrete", "stop"),
        ("Para la música, por favor", "stop"),
        ("Más alto", "louder"),
    ],
)
def test_what_children_say(transcript: str, control: str | None) -> None:
    assert match(transcript) == control


@pytest.mark.parametrize(
    "transcript",
    [
        "", " ", "?!", "…",
        "Don't stop", "don't stop telling me about the bear", "Please don't stop the music",
        "I saw a stop sign", "The bus stop is over there", "Why did it stop?", "When does the rain stop",
        "stop sign", "stopping", "nonstop", "he can't stop laughing", "stop it or I will tell mom about the cake",
        "What comes next?", "What's next", "The next day the prince came", "next week is my birthday", "next to me",
        "Can you pause the washing machine", "I want to go on holiday", "Let's go on an adventure", "go on a trip",
        "Tell me that again later", "again and again he tried", "Once upon a time", "louder than a lion",
        "a lion is louder", "play the song", "play music", "play twinkle twinkle", "play a story about dogs",
        "Play a quiet song", "quiet music", "back story", "I am back", "wait for me",
        "I can't wait", "stop for me",
        "repeat after me", "turn around", "the music", "a song", "music", "yes", "no", "okay", "please", "thanks",
        "now",
        "can you", "it", "hello", "good night", "continue to the left", "this is enough for two people",
        "skip rope", "I like to skip", "volume", "the volume of a cube", "cancel culture", "from the start of time",
        "मत रोको", "बंद मत करो", "बस में कौन है", "बस आ गई", "बस स्टॉप कहाँ है", "अगले साल", "फिर क्या हुआ",
        "फिर कहानी",
        "दरवाज़ा बंद करो", "बत्ती बंद कर दो", "मैं रुका नहीं", "एक गाना सुनाओ", "गाना चलाओ",
        "धीरे धीरे कछुआ चला", "नहीं", "हाँ", "कहानी",
        "别停", "不要停", "停车场在哪里", "车停了", "公共汽车停在这里", "下一首歌是什么", "继续努力学习", "我们等妈妈",
        "大声说话的人",
        "播放音乐",
        "放一首歌", "安静的夜晚", "好", "音乐", "小明小声地说", "再来一块蛋糕", "我喜欢唱歌",
        "ನಿಲ್ಲಿಸಬೇಡ", "ఆపవద్దు", "நிறுத்தாதே", "நான் பாட்டு பாடினேன்",
        "Hör nicht auf", "die Haltestelle", "ich warte auf dich", "Wie geht es weiter mit dem Bären", "lauter Kinder",
        "N'arrête pas", "l'arrêt de bus", "le jour suivant", "encore une histoire de loup",
        "No pares", "para mi hermana", "¿para qué?", "otra historia de osos", "el siguiente día",
        "stop " * 30,
    ],
)  # fmt: skip
def test_an_ordinary_sentence_controls_nothing(transcript: str) -> None:
    assert match(transcript) is None


@pytest.mark.parametrize("transcript", ["Stop, Zuzu!", "Zuzu, stop", "hey zuzu please stop the song", "ok Zuzu stop"])
def test_the_toys_name_may_be_said(transcript: str) -> None:
    assert ControlWords(["Zuzu", ""]).match(transcript) is Control.STOP
    assert match(transcript) is None
    assert ControlWords(["Zuzu"]).match("Zuzu") is None
    assert ControlWords(["小智"]).match("小智，停一下") is Control.STOP


def test_what_may_go_on_counts_only_where_it_can_be_taken_back() -> None:
    assert match("stop", final=False) is Control.STOP
    assert match("wait", final=False) is Control.PAUSE
    assert match("next", final=False) is None
    assert match("go on", final=False) is None


@pytest.mark.parametrize("language", [None, "en", "hi-IN", "zh_CN", "xx", ""])
def test_a_wrong_guess_of_the_language_does_not_matter(language: str | None) -> None:
    assert match("बंद करो", language) is Control.STOP
    assert match("停一下", language) is Control.STOP
    assert match("please stop", language) is Control.STOP


def test_no_phrase_means_two_things() -> None:
    meanings: dict[str, set[str]] = {}
    for _, control, phrase in PHRASES:
        meanings.setdefault(phrase, set()).add(control)
    assert {phrase for phrase, found in meanings.items() if len(found) > 1} == set()


@given(st.text(max_size=80))
def test_any_text_is_survived(text: str) -> None:
    assert match(text) is None or match(text) in set(Control)

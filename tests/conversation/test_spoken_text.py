from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.conversation.spoken_text import SpokenText, spoken, spoken_stream

LANGUAGES = ["en", "en-IN", "hi", "zh", "ta", "te", "kn", "de", "fr", "es", "xx"]


@pytest.mark.parametrize(
    "text",
    [
        "नमस्ते! तुम कैसे हो? क्‍षमा करें।",
        "你好！今天我们做什么呢？",
        "வணக்கம்! நீங்கள் எப்படி இருக்கிறீர்கள்?",
        "ನಮಸ್ಕಾರ, ಹೇಗಿದ್ದೀರಾ?",
        "నమస్కారం! మీరు ఎలా ఉన్నారు?",
        "നന്‍ അവന്‍ പോയി",
        "می‌خواهم بروم",
        "こんにちは、元気ですか？",
        "안녕하세요!",
        "สวัสดีครับ",
        "Grüße aus Köln: Äpfel, Öl und Straße.",
        "¿Qué tal? ¡Muy bien!",
        "Well-known words — and 'quotes', “these” too… (really).",
        "क्ष ज़ फ़ ड़ ँ ं ः ॐ ।॥",
        "e\u0301 a\u0308 n\u0303",
        "ＡＢＣ，全角",
        "½ of it, x² and H₂O",
    ],
)
def test_what_is_to_be_said_is_left_alone(text: str) -> None:
    assert spoken(text, "xx") == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Hello **World**!", "Hello World!"),
        ("###### Deep\nnext", "Deep\nnext"),
        ("*one* _two_ ***three*** __four__ ~~five~~ `six`", "one two three four five six"),
        ("un*frigging*believable", "unfriggingbelievable"),
        ("snake_case and __dunder__", "snake case and dunder"),
        ("- apples\n* pears\n+ plums\n• figs", "apples\npears\nplums\nfigs"),
        ("  - nested\n    * deeper", "nested\ndeeper"),
        ("> quoted\n>> twice", "quoted\ntwice"),
        ("one\n---\ntwo\n***\nthree\n- - -\nfour", "one\ntwo\nthree\nfour"),
        ("see [the page](http://x.org/a_(b)?c=1) now", "see the page now"),
        ("![a cat](cat.png) sits", "a cat sits"),
        ("wow! [really](x)", "wow! really"),
        ("go to https://www.example.com/a/b?c=d#e, please.", "go to example.com, please."),
        ("http://example.com.", "example.com."),
        ("www.example.org is it", "example.org is it"),
        ("```python\ncode here\n```\nafter", "code here\nafter"),
        ("a <b>bold</b> word<br>next", "a bold wordnext"),
        ("a < b and c > d", "a < b and c > d"),
        ("| a | b |\n|---|---|\n| c | d |", "a b\nc d"),
        (r"\*not a list\* and \_this\_", "not a list and this"),
        ("#fun and C#", "fun and C"),
        ("5 * 3", "five × three"),
        ("[laughs] yes", "laughs yes"),
        ("我**爱**你", "我爱你"),
        ("**नमस्ते** दुनिया", "नमस्ते दुनिया"),
        ("hmm, www", "hmm, www"),
        ("WWW. and https:// here", "WWW. and https:// here"),
        ("h ht htt http", "h ht htt http"),
    ],
)
def test_markdown_is_not_said(text: str, said: str) -> None:
    assert spoken(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Great 😀!", "Great!"),
        ("Hi😀there", "Hi there"),
        ("😀 Hello", "Hello"),
        ("👨‍👩‍👧‍👦 family", "family"),
        ("thumbs 👍🏽 up", "thumbs up"),
        ("🇮🇳 🇩🇪 flags", "flags"),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿 England", "England"),
        ("1️⃣ first 2⃣ second *️⃣ #️⃣", "first second"),
        ("I ❤️ you ☀️ ✨ ⭐ ♪ → ok", "I you ok"),
        ("❤️‍🔥 fire", "fire"),
        ("我爱你😀！", "我爱你！"),
        ("नमस्ते 🙏🏽।", "नमस्ते।"),
        ("😀\n\n😀 two", "two"),
        ("a\u200bb\ufeffc\u00add\u202e", "abcd"),
        ("toy™ ©️ ®", "toy"),
        ("😀😀😀", ""),
    ],
)
def test_emoji_are_not_said(text: str, said: str) -> None:
    assert spoken(text) == said


@pytest.mark.parametrize(
    ("language", "text", "said"),
    [
        ("en", "I have 25 apples.", "I have twenty-five apples."),
        ("en", "1,234,000 stars", "one million two hundred and thirty-four thousand stars"),
        ("en-IN", "1,00,000 people", "one lakh people"),
        ("en", "pi is 3.14.", "pi is three point one four."),
        ("en", "1, 2, 3, go", "one, two, three, go"),
        ("en", "1 2 3 4 5 6 7 8 9 10", "one two three four five six seven eight nine ten"),
        ("en", "in 1984", "in nineteen eighty-four"),
        ("en", "the 3rd of 21st", "the third of twenty-first"),
        ("en", "at 7:30 pm.", "at seven thirty P M."),
        ("en", "at 7:05 or 7:00 or 15:30", "at seven oh five or seven o'clock or fifteen thirty"),
        ("en", "at 7 a.m. sharp", "at seven A M sharp"),
        ("en", "call 555-123-4567", "call five five five, one two three, four five six seven"),
        ("en", "+91 98765 43210", "plus nine one, nine eight seven six five, four three two one zero"),
        ("en", "(555) 123-4567", "five five five, one two three, four five six seven"),
        ("en", "080 12345678", "zero eight zero, one two three four five six seven eight"),
        ("en", "9876543210", "nine eight seven six five four three two one zero"),
        ("en", "5 km, 1 kg, 20°C and 50%", "five kilometres, one kilogram, twenty degrees Celsius and fifty percent"),
        ("en", "$5.50, €1 and ₹100", "five dollars fifty, one euro and one hundred rupees"),
        ("en", "ages 5-10", "ages five to ten"),
        ("en", "1/2 or 3/4", "one half or three quarters"),
        ("en", "-5 degrees", "minus five degrees"),
        ("en", "agent 007", "agent zero zero seven"),
        ("en", "MP3, 3D, B12 and R2D2", "MP3, 3D, B12 and R2D2"),
        ("en", "version 1.2.3 of 2024-05-01", "version 1.2.3 of 2024-05-01"),
        ("en", "5 men and 5 minutes", "five men and five minutes"),
        ("en", "**5** apples, `7` pears", "five apples, seven pears"),
        ("en", "1. one\n2. two", "one. one\ntwo. two"),
        ("en", "(5) +5 a-5", "(five) five a-five"),
        ("en", "1111111111111111", "one one one one one one one one one one one one one one one one"),
        ("de", "3,5 Meter um 7:30", "drei Komma fünf Meter um sieben Uhr dreißig"),
        ("de", "1.234 Äpfel, 5 €", "eintausendzweihundertvierunddreißig Äpfel, fünf Euro"),
        ("fr", "25 % et 5 km", "vingt-cinq pour cent et cinq kilomètres"),
        ("fr", "06 12 34 56 78", "zéro six, un deux, trois quatre, cinq six, sept huit"),
        ("es", "25 manzanas a las 7:30", "veinticinco manzanas a las siete y treinta"),
        ("hi", "मेरे पास 5 सेब हैं, 7:30 पर", "मेरे पास 5 सेब हैं, 7 बजकर 30 मिनट पर"),
        ("hi", "₹50 और 5 km", "50 रुपये और 5 किलोमीटर"),
        ("hi", "98765 43210", "9 8 7 6 5, 4 3 2 1 0"),
        ("hi", "५ सेब", "५ सेब"),
        ("zh", "我有5个苹果，50%，7:30", "我有5个苹果，百分之50，7点30分"),
        ("ta", "7:00", "7 மணி"),
        ("te", "25 పిల్లలు, 125", "ఇరవై అయిదు పిల్లలు, 125"),
        ("kn", "5ನೇ ಪಾಠ", "5ನೇ ಪಾಠ"),
        ("xx", "7:30, 5 km, 25%", "7:30, 5 km, 25%"),
        # Differences, ranges and countdowns.
        ("en", "What is 10-3?", "What is ten minus three?"),
        ("en", "7 – 2 = 5, 7 - 2 = 5, 7−2", "seven minus two = five, seven minus two = five, seven minus two"),
        ("en", "3-5 = -2 and 10-3-2 = 5", "three minus five = minus two and ten minus three minus two = five"),
        ("en", "8-8=0", "eight minus eight=zero"),
        ("en", "3-2-1, liftoff! 1-2-3 go", "three, two, one, liftoff! one, two, three go"),
        ("en", "5–10, pages 10-12.", "five to ten, pages ten to twelve."),
        ("en", "room 5 - 6 chairs, B1-2-3", "room five - six chairs, B1-two-three"),
        ("de", "10-3=7, 3,5-2", "zehn minus drei=sieben, drei Komma fünf minus zwei"),
        ("fr", "10-3", "dix moins trois"),
        ("hi", "10-3=7, 3-2-1, 10-15", "10 माइनस 3=7, 3, 2, 1, 10 से 15"),
        ("zh", "10-3=7，3-2-1，3-5", "10减3=7，3、2、1，3到5"),
        ("ta", "10-3=7", "10 மைனஸ் 3=7"),
        ("xx", "10-3=7, 3-2-1", "10-3=7, 3-2-1"),
        # Times that come with their word.
        ("en", "7:00 o'clock, 7:30 o'clock", "seven o'clock, seven thirty"),
        ("de", "um 8:00 Uhr, um 7:30 Uhr.", "um acht Uhr, um sieben Uhr dreißig."),
        ("de", "um 0:00 Uhr", "um null Uhr"),
        ("fr", "à 8:00 heures, à 7:30 heures", "à huit heures, à sept heures trente"),
        ("hi", "8:00 बजे, सुबह 7:30 बजे उठो", "8 बजे, सुबह 7 बजकर 30 मिनट उठो"),
        ("zh", "8:00点，8:30点，8:00点钟", "8点，8点30分，8点钟"),
        ("ta", "7:30 மணிக்கு, 8:00 மணிக்கு", "7 30 மணிக்கு, 8 மணிக்கு"),
        ("kn", "7:30 ಗಂಟೆಗೆ", "ಏಳು ಮೂವತ್ತು ಗಂಟೆಗೆ"),
        # Money in millions.
        ("en", "$5 million, $1.5 billion!", "five million dollars, one point five billion dollars!"),
        ("en", "₹5 lakh and $5 millionaires", "five lakh rupees and five dollars millionaires"),
        ("fr", "$5 millions", "cinq millions de dollars"),
        ("hi", "₹5 लाख, ₹5 लाखों", "5 लाख रुपये, 5 रुपये लाखों"),
        ("zh", "¥5万", "5万元"),
        # Numbers to call.
        ("en", "Call 911! Or dial the 112 now.", "Call nine one one! Or dial the one one two now."),
        ("en", "Recall 911 or call 100 friends", "Recall nine hundred and eleven or call one hundred friends"),
        ("de", "Ruf die 112 an", "Ruf die eins eins zwei an"),
        ("es", "Llama al 112", "Llama al uno uno dos"),
        ("hi", "हेल्पलाइन 1098, 112 पर कॉल करो, 112 पर बैठो", "हेल्पलाइन 1 0 9 8, 1 1 2 पर कॉल करो, 112 पर बैठो"),
        ("zh", "请拨打110，有110个", "请拨打1 1 0，有110个"),
    ],
)  # fmt: skip
def test_numbers_are_said_in_the_language(language: str, text: str, said: str) -> None:
    assert spoken(text, language) == said


pieces = st.sampled_from(
    ["**", "*", "_", "__", "~~", "`", "```", "# ", "## ", "- ", "> ", "[", "](", ")", "](http://x.y/z)", "http://a.b/c",
     "https://", "www.", "<b>", "</b>", "<", ">", "!", "![", "|", "---", "\n", "\n\n", " ", "  ", ".", ",", ":", "-",
     "1", "25", "1,234", "3.5", "7:30", " pm", "%", " km", "$", "€5", "555-123-4567", "+", "(", "1/2",
     "3rd", "°C", "=", " - ", "–", "~", "−", "10-3", "-", "call ", "911", " Uhr", " o'clock",
     " million", " बजे", " पर कॉल", " लाख", "点钟", "万", " மணிக்கு",
     "😀", "👨‍👩‍👧", "👍🏽", "🇮🇳", "1️⃣", "❤️", "\ufe0f", "\u200d", "\u20e3", "hello", "World", "h", "http", "é",
     "नमस्ते", "क्‍ष", "你好", "苹果", "வணக்கம்", "ನಮಸ್ಕಾರ", "ന്‍", "こんにちは", "안녕", "می‌خواهم", "。", "।", "\\", "•"]
)  # fmt: skip
texts = st.lists(pieces, max_size=14).map("".join) | st.text(max_size=30)


@settings(max_examples=600)
@given(texts, st.sampled_from(LANGUAGES), st.data())
@example("5 < 3 [a](b", "en", None)
def test_it_does_not_matter_how_a_text_is_cut(text: str, language: str, data: st.DataObject | None) -> None:
    whole = spoken(text, language)
    if data is None:
        cuts = list(range(len(text)))
    else:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    filtering = SpokenText(language)
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert "".join(map(filtering.push, parts)) + filtering.flush() == whole


@settings(max_examples=600)
@given(texts, st.sampled_from(LANGUAGES))
def test_one_character_at_a_time_is_the_same(text: str, language: str) -> None:
    filtering = SpokenText(language)
    assert "".join(map(filtering.push, text)) + filtering.flush() == spoken(text, language)


prose = st.lists(
    st.text(st.characters(categories=["L", "M", "Zs", "Pd", "Po", "Pi", "Pf"], exclude_characters="*#\\@&\u2049\u203c/"
            "\u3030\u303d•|!ℹ"), min_size=1, max_size=8), max_size=8,
).map(" ".join)  # fmt: skip


@settings(max_examples=600)
@given(prose, st.sampled_from(LANGUAGES))
def test_no_letter_or_mark_of_any_script_is_lost(text: str, language: str) -> None:
    def kept(text: str) -> list[str]:
        return [char for char in text if unicodedata.category(char)[0] in "LM" and char not in "\ufe0f\ufe0e\u20e3"]

    assert kept(spoken(text, language)) == kept(text)


tame = st.sampled_from(
    ["**bold**", "*it*", "`code`", "# Head\n", "- item\n", "[text](http://x.y/z)", "http://a.bc/d", "😀", "👍🏽", "1️⃣",
     "25", "7:30 pm", "5 km", "$5.50", "555-123-4567", "3rd", "hello", "World.", "नमस्ते", "你好", "வணக்கம்", "ന്‍",
     "!", "?", "—", "don't", "\n", "<b>x</b>", "5 * 3", "(12)", "-5", "1/2", "50%", "क्‍ष", "MP3"]
)  # fmt: skip


@settings(max_examples=600)
@given(st.lists(tame, max_size=10).map(" ".join), st.sampled_from(LANGUAGES))
def test_what_was_filtered_once_is_not_changed_again(text: str, language: str) -> None:
    once = spoken(text, language)
    assert spoken(once, language) == once


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (["Hello", " there", ", my", " friend", "."], ["Hello", " there", ", my", " friend", "."]),
        (["**Bold", " words** now"], ["Bold", " words now"]),
        (["I have ", "2", "5", " apples"], ["I have", "", "", " twenty-five apples"]),
        (["at 7", ":3", "0 and"], ["at", "", " seven thirty and"]),
        (["go 👍", "🏽 on"], ["go", " on"]),
        (["see [a", "](http", "://x.y)", " b"], ["see a", "", "", " b"]),
    ],
)
def test_only_an_undecided_tail_waits(pieces: list[str], said: list[str]) -> None:
    filtering = SpokenText()
    assert [filtering.push(piece) for piece in pieces] == said


async def test_a_stream_is_said_as_it_comes() -> None:
    async def reply() -> AsyncIterator[str]:
        for piece in ("😀 ", "You have ", "1", "2", " *stars*", "!"):
            yield piece

    assert [piece async for piece in spoken_stream(reply(), "en")] == ["You have", " twelve stars", "!"]


async def test_a_text_without_an_end_is_said_to_its_end() -> None:
    async def reply() -> AsyncIterator[str]:
        for piece in ("it is", " 7"):
            yield piece

    assert "".join([piece async for piece in spoken_stream(reply(), "en")]) == "it is seven"


@pytest.mark.parametrize("unit", ["*", "[", "<", "1", "](", "| ", "- ", "<a", "1,", "h", "(1", "www.", "![", "`", "😀"])
def test_a_long_run_of_anything_is_dealt_with(unit: str) -> None:
    filtering = SpokenText()
    text = unit * 10_000
    steps = [filtering.push(text[at : at + 50]) for at in range(0, len(text), 50)]
    assert len("".join(steps) + filtering.flush()) < 10 * len(text)

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from agent.conversation.emotion import EMOTION_OF, EMOTIONS, Emotion, emotion_named, split_emotion


async def split(*pieces: str) -> tuple[Emotion | None, str]:
    async def reply() -> AsyncIterator[str]:
        for piece in pieces:
            yield piece

    emotion, rest = await split_emotion(reply())
    return emotion, "".join([piece async for piece in rest])


def test_the_device_knows_every_name() -> None:
    assert set(EMOTIONS) == {
        "neutral", "happy", "laughing", "funny", "sad", "angry", "crying", "loving", "embarrassed", "surprised",
        "shocked", "thinking", "winking", "cool", "relaxed", "delicious", "kissy", "confident", "sleepy", "silly",
        "confused",
    }  # fmt: skip
    for name in EMOTIONS:
        found = emotion_named(name)
        assert found is not None
        assert EMOTION_OF[found.emoji] == name
    assert emotion_named("hungry") is None


@pytest.mark.parametrize(
    ("pieces", "name", "rest"),
    [
        (["😆 Ha ha!"], "laughing", "Ha ha!"),
        (["😆", " Ha", " ha!"], "laughing", "Ha ha!"),
        ([" ", "\n", "🤔Hmm"], "thinking", "Hmm"),
        (["❤️ I love you"], "loving", "I love you"),
        (["❤", "\ufe0f", " I love you"], "loving", "I love you"),
        (["❤️\u200d", "🔥 hot"], "loving", "hot"),
        (["👍", "🏽", "!"], "happy", "!"),
        (["😵\u200d💫 what"], "confused", "what"),
        (["😴"], "sleepy", ""),
        (["😀😀 two"], "happy", "😀 two"),
        (["Hello 😀"], None, "Hello 😀"),
        (["  Hello"], None, "  Hello"),
        (["नमस्ते"], None, "नमस्ते"),
        (["你", "好"], None, "你好"),
        (["5 apples"], None, "5 apples"),
        (["🚜 a tractor"], None, "a tractor"),
        ([], None, ""),
        (["", " "], None, " "),
    ],
)
async def test_the_emoji_is_taken_off_the_reply(pieces: list[str], name: str | None, rest: str) -> None:
    emotion, said = await split(*pieces)
    assert (emotion and emotion.name) == name
    assert said == rest


async def test_a_reply_without_an_emoji_is_not_held_up() -> None:
    asked: list[int] = []

    async def reply() -> AsyncIterator[str]:
        for number, piece in enumerate(("Hel", "lo")):
            asked.append(number)
            yield piece

    emotion, rest = await split_emotion(reply())
    assert emotion is None
    assert asked == [0]
    assert [piece async for piece in rest] == ["Hel", "lo"]

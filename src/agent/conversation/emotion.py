"""The face that goes with a reply: the emoji the model begins it with."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Final

from agent.conversation.spoken_text import EMOJI

_FACES: Final = {
    "neutral": "😶😐😑🫥🤐",
    "happy": "🙂😊😀😃😄😁☺🥳🤗😺🎉👍🙌👏🌟✨⭐🌈🥰🎵🎶",
    "laughing": "😆😹",
    "funny": "😂🤣",
    "sad": "😔😢🙁☹😞😟🥺😿💔",
    "angry": "😠😡🤬👿😤😾",
    "crying": "😭",
    "loving": "😍❤♥💕💖💗💓💞💛💚💙💜🧡😻💝",
    "embarrassed": "😳🫣😬🙈",
    "surprised": "😲😮😯🤯🙀",
    "shocked": "😱😨😰😧",
    "thinking": "🤔🧐💭🤨",
    "winking": "😉",
    "cool": "😎🤠",
    "relaxed": "😌😇🍃🧘",
    "delicious": "🤤😋🍰🍪🍎",
    "kissy": "😘😚😗😙😽💋",
    "confident": "😏💪🦸",
    "sleepy": "😴😪🥱💤🌙🛌",
    "silly": "😜😝😛🤪🤡",
    "confused": "🙄😕😵🫤🤷❓",
}
EMOTIONS: Final = tuple(_FACES)
"""Every emotion the device knows."""
EMOTION_OF: Final = {face: name for name, faces in _FACES.items() for face in faces}
"""The emotion each emoji stands for; the first emoji of an emotion is the device's own."""

_PART: Final = "(?:[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0000-\U000e007f]|\u200d[^\\s\\w])"
_REST_OF_EMOJI: Final = re.compile(f"{_PART}+")
_REST_SO_FAR: Final = re.compile(f"{_PART}*\u200d?\\Z")
_ONE: Final = re.compile(f"[{EMOJI}]")


@dataclass(frozen=True, slots=True)
class Emotion:
    """An emoji and the name the device knows it by: one of EMOTIONS."""

    emoji: str
    name: str


def emotion_named(name: str) -> Emotion | None:
    """The device's own emoji for an emotion; None for a name it does not know."""
    faces = _FACES.get(name)
    return Emotion(faces[0], name) if faces else None


def first_emotion(text: str) -> Emotion | None:
    """The emotion whose emoji `text` begins with, blanks aside."""
    face = text.lstrip()[:1]
    name = EMOTION_OF.get(face)
    return None if name is None else Emotion(face, name)


async def split_emotion(text: AsyncIterable[str]) -> tuple[Emotion | None, AsyncIterator[str]]:
    """The emotion a reply begins with, and the reply without that emoji; nothing of the reply is lost otherwise.

    Returns with the first visible character: a reply without an emoji is not held up. An emoji that stands for no
    emotion is None, and is dropped like the others.
    """
    source = aiter(text)
    head = ""
    async for piece in source:
        head += piece
        if head.strip():
            break
    begun = head.lstrip()
    if not begun or not _ONE.match(begun):
        return None, _joined(head, source)
    return first_emotion(begun), _without_rest(begun[1:], source)


async def _joined(head: str, source: AsyncIterator[str]) -> AsyncIterator[str]:
    if head:
        yield head
    async for piece in source:
        yield piece


async def _without_rest(head: str, source: AsyncIterator[str]) -> AsyncIterator[str]:
    """Drop what still belongs to the emoji (variation, skin, joined parts) and the space after it."""
    while _REST_SO_FAR.match(head) or not head.strip():
        piece = await anext(source, None)
        if piece is None:
            break
        head += piece
    if match := _REST_OF_EMOJI.match(head):
        head = head[match.end() :]
    async for piece in _joined(head.lstrip(), source):
        yield piece

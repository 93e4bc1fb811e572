"""A handful of songs and stories in several scripts."""

from __future__ import annotations

from typing import Any

from agent.library.titles import Kind, Title, stable_id

COLLECTIONS: dict[Kind, str] = {"music": "xiaozhi_music", "story": "xiaozhi_stories"}


def song(title: str, language: str = "English", **fields: Any) -> Title:
    return Title(stable_id("music", language, title), "music", title, language, filename=f"{title}.mp3", **fields)


def story(title: str, category: str = "Bedtime", **fields: Any) -> Title:
    return Title(stable_id("story", category, title), "story", title, category, filename=f"{title}.mp3", **fields)


SONGS = [
    song("Twinkle Twinkle Little Star", keywords=("star", "night")),
    song("Itsy Bitsy Spider", alternatives=("Incy Wincy Spider",)),
    song("The Wheels on the Bus"),
    song("Baa Baa Black Sheep"),
    song("लकड़ी की काठी", "Hindi", romanized="Lakdi Ki Kaathi", keywords=("horse",)),
    song("ಚಂದಮಾಮ", "Kannada", romanized="Chandamama", keywords=("moon",)),
    song("Nani Teri Morni", "Hindi"),
]
STORIES = [
    story("The Tortoise and the Hare", keywords=("rabbit", "race")),
    story("Goldilocks and the Three Bears"),
    story("The Lion and the Mouse", "Adventure"),
    story("Jack and the Beanstalk", "Fantasy"),
]

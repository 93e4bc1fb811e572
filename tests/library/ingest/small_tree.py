"""A catalogue folder of a few titles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., tuple[int, str]]
Listed = Callable[..., list[dict[str, Any]]]

TREE: dict[str, dict[str, dict[str, Any]]] = {
    "music/English": {
        "Baby Shark Dance": {"filename": "shark.mp3", "alternatives": ["baby shark"], "keywords": ["sea"]},
        "The Wheels on the Bus": {"filename": "bus.mp3"},
    },
    "music/Kannada": {"ಚಂದಮಾಮ": {"filename": "moon.mp3", "romanized": "Chandamama"}},
    "stories/Bedtime": {"The Tortoise and the Hare": {"filename": "hare.mp3", "keywords": ["rabbit", "race"]}},
}


def write_tree(root: Path, tree: dict[str, dict[str, dict[str, Any]]]) -> None:
    """A catalogue's metadata.json files, each with the sound files it names (of no sound)."""
    for place, entries in tree.items():
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metadata.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
        for entry in entries.values():
            if isinstance(entry, dict) and isinstance(name := entry.get("filename"), str) and "/" not in name:
                (folder / name).touch()

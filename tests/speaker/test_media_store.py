"""The player over real files, a real server and real decoders."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from media_support import QUICK, encoded, lag, noise
from player_support import BLOCK, Log

from agent.errors import MediaError
from agent.library.titles import Title
from agent.speaker.media_source import Mark, MediaSource
from agent.speaker.media_store import MediaStore
from agent.speaker.pcm import SAMPLE_RATE, Samples
from agent.speaker.player import MediaPlayer
from agent.speaker.player_types import Hold
from sandbox.media_files import encode
from sandbox.media_server import MediaServer

SONG = Title(1, "music", "लकड़ी की काठी", "Hindi", filename="लकड़ी की काठी.mp3")
STORY = Title(2, "story", "Little Bear", "Bedtime", filename="bear.m4a")


def tree(root: Path) -> Path:
    for title, form in ((SONG, "mp3"), (STORY, "m4a-end")):
        folder = root / ("music" if title.kind == "music" else "stories") / title.section
        folder.mkdir(parents=True)
        (folder / title.filename).write_bytes(encoded(form))
    return root


class Unhurried:
    """A source that gives whole blocks only: pulled faster than real time, it makes pauses, never holes."""

    def __init__(self, source: MediaSource) -> None:
        self._source = source

    def read(self, samples: int, at_least: int = 0) -> Samples | None:
        return self._source.read(samples, max(samples, at_least))

    def marks(self) -> tuple[Mark, ...]:
        return self._source.marks()

    async def aclose(self) -> None:
        await self._source.aclose()

    @property
    def position(self) -> int:
        return self._source.position

    @property
    def duration(self) -> float | None:
        return self._source.duration

    @property
    def complete(self) -> bool:
        return self._source.complete


class Speaker:
    """Pulls as the room's speaker does: awake while there is sound, else until it is woken."""

    def __init__(self, store: MediaStore) -> None:
        self._wake = asyncio.Event()
        self.log = Log()
        self._store = store
        self.player = MediaPlayer(self._open, self.log, on_wake=self._wake.set)
        self.heard: list[Samples] = []

    def _open(
        self, title: Title, start: int = 0, marks: tuple[Mark, ...] = (), on_data: Callable[[], None] | None = None
    ) -> Unhurried:
        return Unhurried(self._store.open(title, start, marks, on_data))

    async def listen(self, samples: int) -> Samples:
        """The next `samples`, fewer when the player comes to its end."""
        parts: list[Samples] = []
        while len(parts) * BLOCK < samples:
            self._wake.clear()
            block = self.player.pull(BLOCK)
            if block is not None:
                parts.append(block)
            elif self.player.current is None:
                break
            else:
                await self._wake.wait()
        self.heard += parts
        return np.concatenate(parts) if parts else np.zeros(0, np.int16)


@pytest.mark.parametrize("place", ["disk", "net"])
async def test_a_queue_plays_from_wherever_titles_are_kept(place: str, tmp_path: Path) -> None:
    async with MediaServer(tree(tmp_path)) as server:
        store = MediaStore(catalogue_dir=tmp_path) if place == "disk" else MediaStore(base_url=server.url)
        assert store.known
        await store.warm()
        speaker = Speaker(store)
        speaker.player.play([SONG, STORY])
        heard = await speaker.listen(1 << 40)
        await speaker.player.aclose()
        await store.aclose()
    assert lag(heard[: 5 * SAMPLE_RATE], noise()[: 5 * SAMPLE_RATE]) == (0, pytest.approx(1, abs=0.05))
    second = heard[len(heard) - 10 * SAMPLE_RATE :][: 5 * SAMPLE_RATE]
    assert lag(second, noise()[2 * SAMPLE_RATE :][: 5 * SAMPLE_RATE], 12_000)[1] > 0.95
    assert [(what, number) for what, number, _ in speaker.log.told] == [
        ("started", 1),
        ("stopped", 1),
        ("started", 2),
        ("stopped", 2),
    ]
    assert [thread.name for thread in threading.enumerate() if thread.name == "media-decode"] == []


@pytest.mark.parametrize("form", ["mp3", "mp3-vbr", "m4a", "opus", "flac", "wav"])
async def test_a_new_visit_goes_on_at_the_same_second(form: str, tmp_path: Path) -> None:
    async with MediaServer() as server:
        server.files["/music/Hindi/लकड़ी की काठी.mp3"] = encode(noise(), form)
        store = MediaStore(base_url=server.url)
        speaker = Speaker(store)
        speaker.player.play([SONG, STORY])
        first = await speaker.listen(6 * SAMPLE_RATE)
        speaker.player.pause(Hold.DROP)
        speaker.player.give_back(5 * BLOCK)
        taken = speaker.player.snapshot()
        assert taken is not None
        await speaker.player.aclose()
        await store.aclose()

        store = MediaStore(base_url=server.url)
        speaker = Speaker(store)
        speaker.player.restore(taken)
        second = await speaker.listen(4 * SAMPLE_RATE)
        await speaker.player.aclose()
        await store.aclose()
    joined = np.concatenate([first[: len(first) - 5 * BLOCK], second])
    before, _ = lag(joined[: 5 * SAMPLE_RATE], noise()[: 5 * SAMPLE_RATE])
    after, likeness = lag(joined[6 * SAMPLE_RATE : 9 * SAMPLE_RATE], noise()[6 * SAMPLE_RATE : 9 * SAMPLE_RATE])
    assert abs(after - before) <= 2
    assert likeness > 0.9


async def test_a_broken_server_costs_a_title_not_the_player(tmp_path: Path) -> None:
    async with MediaServer(tree(tmp_path)) as server:
        missing = Title(3, "music", "Gone", "Hindi", filename="gone.mp3")
        nonsense = Title(4, "music", "Odd", "Hindi", filename="odd.mp3")
        astray = Title(5, "music", "Away", "Hindi", filename="../../away.mp3")
        server.files["/music/Hindi/odd.mp3"] = b"<html></html>" * 1000
        store = MediaStore(base_url=server.url, limits=QUICK)
        speaker = Speaker(store)
        speaker.player.play([missing, nonsense, SONG, astray, STORY])
        assert len(await speaker.listen(4 * SAMPLE_RATE)) == 4 * SAMPLE_RATE
        assert speaker.player.current == SONG
        speaker.player.next()
        assert len(await speaker.listen(4 * SAMPLE_RATE)) == 4 * SAMPLE_RATE
        assert speaker.player.current == STORY
        await speaker.player.aclose()
        await store.aclose()
    assert [number for what, number, _ in speaker.log.told if what == "problem"] == [3, 4, 5]


async def test_no_place_to_play_from(tmp_path: Path) -> None:
    store = MediaStore()
    assert not store.known
    await store.warm()
    with pytest.raises(MediaError, match="MEDIA_BASE_URL"):
        store.open(SONG)
    await store.aclose()

"""What the player relies on in a source, held by the real one and by the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from media_support import noise
from player_support import MemorySource

from agent.errors import MediaError
from agent.speaker.media_source import MediaSource
from agent.speaker.media_url import FileLocation
from agent.speaker.pcm import SAMPLE_RATE
from agent.speaker.track import Source
from sandbox.media_files import encode

SECONDS = 2.0
START = SAMPLE_RATE // 2


@asynccontextmanager
async def made(kind: str, folder: Path, on_data: Callable[[], None], start: int = 0) -> AsyncIterator[Source]:
    if kind == "memory":
        source = MemorySource(noise(SECONDS), start, on_data)
        try:
            yield source
        finally:
            await source.aclose()
    else:
        (folder / "x").write_bytes(encode(noise(SECONDS), "flac"))
        async with MediaSource.open(FileLocation(folder, ("x",)), start=start, on_data=on_data) as real:
            yield real


@pytest.mark.parametrize("kind", ["memory", "real"])
@pytest.mark.parametrize("start", [0, START])
async def test_a_source_gives_its_sound_in_order_and_then_nothing(kind: str, start: int, tmp_path: Path) -> None:
    data = asyncio.Event()
    async with made(kind, tmp_path, data.set, start) as source:
        parts: list[np.ndarray] = []
        while True:
            data.clear()
            at = source.position
            block = source.read(480, at_least=960)
            if block is None:
                await data.wait()
                continue
            assert block.dtype == np.int16
            assert len(block) <= 480
            if not len(block):
                break
            assert source.position - len(block) == (at if parts else start)
            parts.append(block)
        heard = np.concatenate(parts)
        assert source.complete
        assert source.duration == pytest.approx(SECONDS)
        assert len(heard) == len(noise(SECONDS)) - start
        assert np.corrcoef(heard, noise(SECONDS)[start:])[0, 1] > 0.95
        assert isinstance(source.marks(), tuple)
        again = source.read(480)
        assert again is not None
        assert len(again) == 0


@pytest.mark.parametrize("kind", ["memory", "real"])
async def test_a_broken_source_wakes_its_reader_and_says_so(kind: str, tmp_path: Path) -> None:
    data = asyncio.Event()
    source: Source
    if kind == "memory":
        memory = MemorySource(noise(SECONDS), 0, data.set)
        memory.hold_at(0)
        assert memory.read(480) is None
        memory.break_with("broken")
        source = memory
    else:
        source = MediaSource.open(FileLocation(tmp_path, ("missing",)), on_data=data.set)
    await data.wait()
    with pytest.raises(MediaError):
        source.read(480)
    await source.aclose()

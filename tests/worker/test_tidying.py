"""What is kept of children goes by its age though nobody comes, and leaves no trace in the files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.briefing import cache
from agent.briefing.profile import Part
from agent.conversation import resume
from agent.outbox import home
from agent.settings import Settings
from agent.telemetry.cost import cost_path
from agent.tidying import tidy
from agent.values import DeviceMac

MAC = DeviceMac("68:25:dd:ba:39:78")
SECRET = "Asha likes dinosaurs"
HOUR, DAY = 3600.0, 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_758_700_000.0

    def __call__(self) -> float:
        return self.now


def _settings(folder: Path, **values: object) -> Settings:
    return Settings(_env_file=None, state_dir=folder, **values)  # type: ignore[arg-type,call-arg]


def _bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


async def test_what_is_too_old_goes_though_nobody_comes(tmp_path: Path) -> None:
    clock, settings = Clock(), _settings(tmp_path)
    conversations = resume.SqliteResumeStore(tmp_path / resume.FILE_NAME, window_s=settings.resume_window, clock=clock)
    assert conversations.save(MAC, clock.now, SECRET)
    conversations.close()
    await tidy(settings, clock=clock)
    assert SECRET.encode() in _bytes_in(tmp_path), "a child may still come back to it"
    clock.now += settings.resume_window
    await tidy(settings, clock=clock)
    assert SECRET.encode() not in _bytes_in(tmp_path), "deleted words are overwritten"

    briefings = cache.open_cache(settings, clock=clock)
    await briefings.put(MAC, Part.CHILD, SECRET)
    await briefings.aclose()
    clock.now += settings.api_cache_max_age + 1
    await tidy(settings, clock=clock)
    assert SECRET.encode() not in _bytes_in(tmp_path)


async def test_a_window_that_was_closed_leaves_no_conversation(tmp_path: Path) -> None:
    clock = Clock()
    conversations = resume.SqliteResumeStore(tmp_path / resume.FILE_NAME, window_s=HOUR, clock=clock)
    assert conversations.save(MAC, clock.now, SECRET)
    conversations.close()
    await tidy(_settings(tmp_path, resume_window=0), clock=clock)
    assert SECRET.encode() not in _bytes_in(tmp_path)


@pytest.mark.parametrize(
    ("name", "age"),
    [
        (cache.FILE_NAME, 30 * DAY),
        (resume.FILE_NAME, 300.0),
        (home.FILE_NAME, 7 * DAY),
        (home.FILE_NAME + "-wal", 7 * DAY),
        (cost_path(_settings(Path())).name, 400 * DAY),
    ],
)
async def test_a_damaged_file_is_kept_no_longer_than_what_was_in_it(tmp_path: Path, name: str, age: float) -> None:
    clock = Clock()
    damaged, whole = tmp_path / f"{name}.damaged", tmp_path / f"other-{name}.damaged"
    for path in (damaged, whole):
        path.write_text(SECRET)
        os.utime(path, (clock.now, clock.now))
    clock.now += age
    await tidy(_settings(tmp_path), clock=clock)
    assert damaged.exists()
    clock.now += 1
    await tidy(_settings(tmp_path), clock=clock)
    assert not damaged.exists()
    assert whole.exists(), "not ours"


async def test_where_nothing_is_kept_no_file_is_made_and_a_disk_in_trouble_is_told(tmp_path: Path) -> None:
    await tidy(_settings(tmp_path / "none"))
    assert _bytes_in(tmp_path) == b""
    assert not await asyncio.to_thread((tmp_path / "none").exists)
    (tmp_path / resume.FILE_NAME).mkdir()
    (tmp_path / f"{home.FILE_NAME}.damaged").write_text(SECRET)
    os.utime(tmp_path / f"{home.FILE_NAME}.damaged", (0, 0))
    with capture_logs() as logs:
        await tidy(_settings(tmp_path))
    assert [line["event"] for line in logs] == ["what is too old cannot be deleted now"]
    assert not (tmp_path / f"{home.FILE_NAME}.damaged").exists(), "one trouble keeps nothing else"

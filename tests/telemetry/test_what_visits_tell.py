"""What a visit counts and times: the child's first word, and its memories."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from livekit.agents.utils import EventEmitter
from livekit.agents.voice import UserInputTranscribedEvent
from telemetry_support import Samples, scrape, total

from agent.briefing.memory import Memory, Recollection
from agent.errors import Unavailable
from agent.settings import Settings
from agent.telemetry.hub import MetricsHub
from agent.telemetry.meter import Meter
from agent.telemetry.timeline import Timeline
from agent.telemetry.visit_record import VisitRecord
from agent.values import DeviceMac


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[MetricsHub]:
    async with MetricsHub(tmp_path) as hub:
        yield hub


async def test_the_first_word_is_one_that_was_understood_and_no_noise(hub: MetricsHub) -> None:
    now = 100.0
    timeline = Timeline(clock=lambda: now)
    timeline.mark("job_received")
    meter = Meter()
    meter.use(hub.take)
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    record = VisitRecord(settings, job_id="job", mac=DeviceMac("02:00:00:00:00:01"), timeline=timeline, to=meter)
    record.begin({})
    session: EventEmitter[Any] = EventEmitter()
    record.watch(cast("Any", session))
    for at, heard in ((102.0, ""), (103.0, " "), (105.0, "hello"), (107.0, "hello again")):
        now = at
        timeline.mark("first_speech")
        session.emit("user_input_transcribed", UserInputTranscribedEvent(transcript=heard, is_final=True))
    record.end()
    samples = await scrape(hub)
    assert total(samples, "toy_first_word_seconds_count") == 1
    assert total(samples, "toy_first_word_seconds_sum") == pytest.approx(5.0)
    assert (timeline.get("first_speech"), timeline.get("first_word")) == (2000.0, 5000.0)


class Told(Memory):
    """A memory that answers when it is let, with these."""

    def __init__(self, *found: str, error: Exception | None = None) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self._found = found
        self._error = error

    async def recall(self, query: str, *, user_id: str, limit: int = 12) -> list[str]:
        self.asked.set()
        await self.go.wait()
        if self._error is not None:
            raise self._error
        return list(self._found)


async def _recalled(memory: Told, *, late: bool = False) -> dict[str, Any]:
    came = asyncio.Event()
    recollection = Recollection(memory, "device", deadline_ms=0 if late else 60_000, on_late=lambda _: came.set())
    if late:
        assert await recollection.in_time() is None
        memory.go.set()
        await asyncio.wait_for(came.wait(), 10)
    else:
        memory.go.set()
        await recollection.in_time()
    return recollection.report()


def _outcomes(samples: Samples) -> dict[str, float]:
    outcomes = ("in_time", "late", "empty", "failed", "cancelled")
    return {name: total(samples, "toy_memories_total", outcome=name) for name in outcomes}


async def test_memories_are_counted_by_what_became_of_them(hub: MetricsHub) -> None:
    assert set(_outcomes(await scrape(hub)).values()) == {0.0}
    assert (await _recalled(Told("a dog")))["outcome"] == "in_time"
    assert (await _recalled(Told("a dog"), late=True))["outcome"] == "late"
    assert (await _recalled(Told()))["took_ms"] >= 0
    assert (await _recalled(Told(error=Unavailable("down"))))["outcome"] == "failed"
    memory = Told("a dog")
    given_up = Recollection(memory, "device", deadline_ms=60_000)
    await memory.asked.wait()
    await given_up.aclose()
    samples = await scrape(hub)
    assert set(_outcomes(samples).values()) == {1.0}
    assert total(samples, "toy_memory_seconds_count") == 3

"""How many may come, and how often one may."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import JobRequest
from livekit.protocol.agent import Job
from livekit.protocol.models import Room

from agent.admission import RateLimit
from agent.health import MB_PER_ROOM, WorkerState
from agent.settings import Settings
from agent.worker import DEVICE_BURST, build_server


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_then_the_rate() -> None:
    clock = Clock()
    limit = RateLimit(per_minute=60, burst=3, clock=clock)
    assert [limit.take("a") for _ in range(4)] == [True, True, True, False]
    clock.now += 1.0
    assert [limit.take("a") for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [limit.take("a") for _ in range(4)] == [True, True, True, False], "rest does not pile up"


def test_one_does_not_use_up_what_is_anothers() -> None:
    limit = RateLimit(per_minute=1, burst=1, clock=Clock())
    assert limit.take("a")
    assert not limit.take("a")
    assert limit.take("b")


def test_a_million_names_are_not_remembered() -> None:
    limit = RateLimit(per_minute=1, burst=1, clock=Clock())
    for number in range(50_000):
        limit.take(str(number))
    assert len(limit._buckets) <= 20_000
    assert not limit.take("49999"), "the latest are"


@dataclass
class Door:
    """A worker's admission asked as the framework asks it; accepted jobs wait until `launched` is set."""

    state: WorkerState
    ask_server: Any
    launched: asyncio.Event = field(default_factory=asyncio.Event)
    failing: bool = False
    accepted: list[str] = field(default_factory=list)
    rejected: dict[str, bool] = field(default_factory=dict)
    answers: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    _number: int = 0

    async def ask(self, mac: str | None = None) -> None:
        self._number += 1
        job = Job(id=f"job {self._number}", room=Room(name=f"{self._number}_{mac or f'{self._number:012x}'}"))

        async def reject(terminate: bool) -> None:
            self.rejected[job.id] = terminate
            self.answers.put_nowait(job.id)

        async def accept(_arguments: Any) -> None:
            self.accepted.append(job.id)
            self.answers.put_nowait(job.id)
            await self.launched.wait()
            if self.failing:
                raise TimeoutError("no assignment")

        await self.ask_server(JobRequest(job=job, on_reject=reject, on_accept=accept))


def door(tmp_path: Path, *, free_mb: int = 10**6, **values: object) -> Door:
    settings = Settings(_env_file=None, state_dir=tmp_path, **values)  # type: ignore[arg-type,call-arg]
    state = WorkerState(settings, free_mb=lambda: free_mb)
    return Door(state, build_server(settings, state)._request_fnc)


async def asked(door: Door, number: int) -> list[asyncio.Task[None]]:
    """Devices that all come before any process is free; each has its answer when this returns."""
    tasks = [asyncio.create_task(door.ask()) for _ in range(number)]
    async with asyncio.timeout(20):
        for _ in range(number):
            await door.answers.get()
    return tasks


async def test_no_more_are_taken_at_once_than_fit(tmp_path: Path) -> None:
    at_once = door(tmp_path, max_rooms=8)
    tasks = await asked(at_once, 30)
    assert len(at_once.accepted) == 8
    assert list(at_once.rejected.values()) == [False] * 22, "another worker may take them"
    assert at_once.state.refused == {"full": 22}
    assert at_once.state.load() == 1.0
    assert len(at_once.state.rooms()) == 8
    at_once.launched.set()
    await asyncio.gather(*tasks)
    assert at_once.state.taken == 0


async def test_a_job_that_is_given_to_no_process_takes_no_place_for_ever(tmp_path: Path) -> None:
    unlucky = door(tmp_path, max_rooms=1)
    unlucky.failing = True
    (task,) = await asked(unlucky, 1)
    assert unlucky.state.taken == 1
    unlucky.launched.set()
    with pytest.raises(TimeoutError):
        await task
    assert unlucky.state.taken == 0
    unlucky.failing = False
    await unlucky.ask()
    assert len(unlucky.accepted) == 2


async def test_rooms_go_elsewhere_where_memory_is_short(tmp_path: Path) -> None:
    tight = door(tmp_path, max_rooms=8, free_mb=2 * MB_PER_ROOM)
    tasks = await asked(tight, 3)
    assert len(tight.accepted) == 2
    assert tight.state.refused == {"memory": 1}
    assert list(tight.rejected.values()) == [False]
    assert not tight.state.can_rescue()
    tight.launched.set()
    await asyncio.gather(*tasks)


async def test_too_many_rooms_a_minute_go_elsewhere(tmp_path: Path) -> None:
    rushed = door(tmp_path, max_rooms=100, joins_per_minute=10)
    rushed.launched.set()
    for _ in range(7):
        await rushed.ask()
    assert len(rushed.accepted) == 5, "half a minute's at once"
    assert rushed.state.refused == {"rate": 2}
    assert list(rushed.rejected.values()) == [False, False]


async def test_a_device_in_a_loop_is_refused_by_all_and_another_is_not(tmp_path: Path) -> None:
    looping = door(tmp_path, max_rooms=100)
    looping.launched.set()
    for _ in range(DEVICE_BURST + 1):
        await looping.ask("68:25:dd:bb:f3:a0".replace(":", ""))
    assert len(looping.accepted) == DEVICE_BURST
    assert looping.state.refused == {"device_rate": 1}
    assert list(looping.rejected.values()) == [True]
    await looping.ask()
    assert len(looping.accepted) == DEVICE_BURST + 1


async def test_a_device_in_a_loop_takes_nothing_of_the_others_rate(tmp_path: Path) -> None:
    looping = door(tmp_path, max_rooms=100, joins_per_minute=2 * (DEVICE_BURST + 1))
    looping.launched.set()
    for _ in range(20 * DEVICE_BURST):
        await looping.ask("6825ddbbf3a0")
    await looping.ask()
    assert len(looping.accepted) == DEVICE_BURST + 1

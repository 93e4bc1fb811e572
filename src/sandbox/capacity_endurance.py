"""What is left of a worker after many rooms, after storms, and over time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sandbox.bench_report import print_table, ratios, summary
from sandbox.capacity_stage import Stage, Tested
from sandbox.crowd import Crowd, Member, Stay
from sandbox.footprint import footprint

SEED = 8
_BOUT = 120.0
_NORMAL = 15
_KINDS = ("private_mb", "fds", "threads", "processes", "state_files", "server_rooms")


@dataclass(frozen=True)
class Sample:
    """The worker at one moment: minutes since the start and its figures, by the names of `_KINDS`."""

    minute: float
    figures: dict[str, float]


async def rooms_in_a_row(number: int, executor: str) -> dict[str, Any]:
    """`number` visits one after the other, each greeted; the worker at rest before, on the way and after."""
    step = max(1, number // 10)
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(Stage())
        worker = await stage.worker("row", env={"JOB_EXECUTOR": executor}, stack=stack)
        begun = time.monotonic()
        samples = [await _at_rest(stage, worker, begun)]
        greetings: list[float] = []
        failures: list[str] = []
        for done in range(0, number, step):
            visits = [Stay()] * min(step, number - done)
            async with Crowd(stage.server, [Member(visits)], worker.agent_name, patience=30) as crowd:
                crowd.go()
                await crowd.finish(timeout=120 + 10 * step)
                greetings += [mark.ms for mark in crowd.marks("greeted")]
                failures += [mark.error for mark in crowd.marks("failed")]
            samples.append(await _at_rest(stage, worker, begun))
        # The first rooms fill caches that stay: what is a leak shows from then on.
        return _told(f"{number} rooms in a row", samples, skip=1) | {
            "rooms": number,
            "greeting": summary(greetings),
            "failures": failures,
        }


async def storm(devices: int, executor: str) -> dict[str, Any]:
    """Devices that come and leave at once or at random moments, some without closing their room; then all as before."""
    chance = random.Random(SEED)

    def stay() -> Stay:
        after = 0.0 if chance.random() < 0.4 else chance.uniform(0.0, 2.0)
        return Stay(turns=-1, leave_after=after, pause=chance.uniform(0.0, 0.3), abandon=chance.random() < 0.5)

    members = [Member([stay() for _ in range(5)], start=chance.uniform(0.0, 3.0)) for _ in range(devices)]
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(Stage())
        worker = await stage.worker("storm", env={"JOB_EXECUTOR": executor}, stack=stack)
        begun = time.monotonic()
        normal = await _greetings(stage, worker)
        before = await _at_rest(stage, worker, begun)
        async with Crowd(stage.server, members, worker.agent_name) as crowd:
            crowd.go()
            await crowd.finish(timeout=300)
            failures = [mark.error for mark in crowd.marks("failed")]
            joins = len(crowd.marks("joined"))
        ended = time.monotonic()
        after = await _at_rest(stage, worker, begun)
        rested = time.monotonic() - ended
        again = await _greetings(stage, worker)
        agents = [room for room in await stage.server.rooms() if await stage.server.participants(room)]
    rows = {"before": normal, "after the storm": again}
    print_table(f"Greetings around a storm of {joins} joins of {devices} devices", rows, "before")
    print(f"before {before.figures}\nafter  {after.figures}, at rest after {rested:.1f} s; rooms with people {agents}")
    return {
        "devices": devices,
        "joins": joins,
        "failures": failures,
        "before": before.figures,
        "after": after.figures,
        "at_rest_after_s": round(rested, 1),
        "leaked_rooms": agents,
        "greeting": {name: summary(values) for name, values in rows.items()},
        "ratio": ratios(again, normal),
        "errors_logged": _errors(worker),
    }


async def soak(minutes: float, devices: int, executor: str) -> dict[str, Any]:
    """Visits of all lengths for so long, from a fixed seed, on a few devices.

    They come in bouts. The worker is looked at while it talks, and at rest between the bouts: what grows there is kept
    by nobody's visit.
    """
    chance = random.Random(SEED)
    busy: list[Sample] = []
    greetings: list[float] = []
    turns: list[float] = []
    failures: list[str] = []
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(Stage())
        worker = await stage.worker("soak", env={"JOB_EXECUTOR": executor}, stack=stack)
        begun = time.monotonic()
        rest = [await _at_rest(stage, worker, begun)]
        while time.monotonic() < begun + minutes * 60:
            members = [
                Member(
                    [Stay(turns=chance.choice([0, 1, 1, 2, 3]), pause=chance.uniform(0.5, 4.0)) for _ in range(40)],
                    start=number * 2.0,
                )
                for number in range(devices)
            ]
            ended = time.monotonic() + _BOUT
            async with Crowd(stage.server, members, worker.agent_name) as crowd:
                crowd.go()
                while time.monotonic() < ended:
                    await asyncio.sleep(_BOUT / 12)
                    busy.append(await _sample(stage, worker, begun))
                greetings += [mark.ms for mark in crowd.marks("greeted")]
                turns += [mark.ms for mark in crowd.marks("turn")]
                failures += [mark.error for mark in crowd.marks("failed")]
                await crowd.leave()
            rest.append(await _at_rest(stage, worker, begun))
    print(f"{len(greetings)} visits, {len(turns)} turns, {len(failures)} failures {failures[:2]}")
    third = len(greetings) // 3
    rows = {"first third": greetings[:third], "last third": greetings[-third:]}
    print_table("Greetings over the soak", rows, "first third")
    talking = _told(f"A soak of {minutes:g} minutes, while it talks", busy, skip=len(busy) // 10)
    # The first bout fills caches that stay: what is a leak shows from then on.
    return _told(f"A soak of {minutes:g} minutes, at rest between bouts", rest, skip=1) | {
        "visits": len(greetings),
        "turns": summary(turns) if turns else None,
        "greeting": {name: summary(values) for name, values in rows.items() if values},
        "failures": failures,
        "talking": talking,
        "errors_logged": _errors(worker),
    }


async def _greetings(stage: Stage, worker: Tested) -> list[float]:
    await worker.settle()
    visits = [Stay(pause=1.5)] * _NORMAL
    async with Crowd(stage.server, [Member(visits)], worker.agent_name, patience=30) as crowd:
        crowd.go()
        await crowd.finish(timeout=200)
        return [mark.ms for mark in crowd.marks("greeted")]


async def _at_rest(stage: Stage, worker: Tested, begun: float) -> Sample:
    await worker.settle(timeout=150)
    return await _sample(stage, worker, begun)


async def _sample(stage: Stage, worker: Tested, begun: float) -> Sample:
    taken = await asyncio.to_thread(footprint, worker.worker.pid)
    files = await asyncio.to_thread(lambda: sum(path.is_file() for path in worker.state.rglob("*")))
    rooms = [room for room in await stage.server.rooms() if await stage.server.participants(room)]
    figures = {**taken.figures(), "state_files": files, "server_rooms": len(rooms)}
    return Sample(round((time.monotonic() - begun) / 60, 3), figures)


def _errors(worker: Tested) -> list[str]:
    """Messages of the worker's error lines, each once."""
    lines = worker.worker.lines
    return sorted({line.event for line in lines if str(line.fields.get("level", "")).lower() == "error"})


def _told(title: str, samples: Sequence[Sample], *, skip: int) -> dict[str, Any]:
    """Slope an hour by a straight line, and the last third's mean against the first's; the first `skip` left out."""
    kept = list(samples[skip:])
    third = max(1, len(kept) // 3)
    minutes = np.array([sample.minute for sample in kept])
    table = Table(title=title)
    for column in ("", "first third", "last third", "slope an hour", "least", "most"):
        table.add_column(column, justify="right")
    report: dict[str, Any] = {}
    for kind in _KINDS:
        values = np.array([sample.figures[kind] for sample in kept], float)
        slope = float(np.polyfit(minutes / 60, values, 1)[0]) if len(kept) > 2 else 0.0
        report[kind] = {
            "first_third": round(float(values[:third].mean()), 2),
            "last_third": round(float(values[-third:].mean()), 2),
            "slope_per_hour": round(slope, 2),
            "least": float(values.min()),
            "most": float(values.max()),
        }
        table.add_row(kind, *(f"{value:g}" for value in report[kind].values()))
    Console(width=110).print(table)
    return {"flatness": report, "samples": [{"minute": sample.minute, **sample.figures} for sample in samples]}

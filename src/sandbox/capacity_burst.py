"""Many joins at once on a small pool: ours and the floor's under the same burst, alternating."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from sandbox.bench_report import print_table, ratios, summary
from sandbox.capacity_stage import Stage, Tested
from sandbox.crowd import Crowd, Member, Stay

_SAMPLES = 30
_FEWEST_ROUNDS = 3
OURS, FLOOR = "this worker", "floor"


async def measure(sizes: Sequence[int], rounds: int | None) -> dict[str, Any]:
    """Bursts of each size, at least 30 samples and 3 rounds of each unless `rounds` says otherwise."""
    report: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(Stage())
        ours = await stage.worker(OURS, stack=stack)
        floor = await stage.worker(FLOOR, module="floor", stack=stack)
        for size in sizes:
            greeted: dict[str, list[float]] = {OURS: [], FLOOR: []}
            failures: dict[str, list[str]] = {OURS: [], FLOOR: []}
            times = rounds or max(_FEWEST_ROUNDS, -(-_SAMPLES // size))
            for number in range(times):
                for tested in (ours, floor) if number % 2 == 0 else (floor, ours):
                    heard, failed = await _burst(stage, tested, size)
                    greeted[tested.name] += heard
                    failures[tested.name] += failed
            print_table(f"Bursts of {size} on 3 warm processes: join to first sound", greeted, FLOOR)
            for name, failed in failures.items():
                if failed:
                    print(f"{name}: {len(failed)} of {size * times} not greeted: {failed[0]}", file=sys.stderr)
            report[str(size)] = {
                "rounds": times,
                **{name: {**summary(values), "samples": values} for name, values in greeted.items() if values},
                "ratio": ratios(greeted[OURS], greeted[FLOOR]) if all(greeted.values()) else None,
                "not_greeted": {name: len(failed) for name, failed in failures.items()},
            }
    return report


async def _burst(stage: Stage, tested: Tested, size: int) -> tuple[list[float], list[str]]:
    """Every device's milliseconds to its first sound, and what the others died of. All stay until all are greeted."""
    await tested.settle()
    async with Crowd(stage.server, [Member([Stay(hold=True)])] * size, tested.agent_name, patience=45) as crowd:
        crowd.go()
        with suppress(TimeoutError):  # who says nothing for so long was not greeted
            await crowd.wait_for("greeted", size, timeout=90)
        marks = crowd.marks()
        await crowd.leave()
    greeted = {mark.member: mark.ms for mark in marks if mark.name == "greeted"}
    told = {mark.member: mark.error for mark in marks if mark.name == "failed"}
    return list(greeted.values()), [told.get(m, "no word of it") for m in range(size) if m not in greeted]

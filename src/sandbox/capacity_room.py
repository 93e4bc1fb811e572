"""What one talking room costs, here and with a stock `AgentSession` on the same providers, both in the same minutes.

Both children speak equally often: else a quicker answer is charged for the sentences that it leaves time for.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

from sandbox.bench_report import print_table, ratios, summary
from sandbox.capacity_stage import Stage, Tested
from sandbox.crowd import Crowd, Member, Stay
from sandbox.footprint import busy_private_mb, cpu_by_process, cpu_seconds

OURS, STOCK = "this worker", "stock AgentSession"
_SLICE = 8.0
"""Seconds, a turn in each."""


async def measure(visits: int, slices: int) -> dict[str, Any]:
    """`visits` of each, in each `slices` times 8 seconds of talk; CPU of the room's process in each slice."""
    cpu: dict[str, list[float]] = {OURS: [], STOCK: []}
    whole: dict[str, list[float]] = {OURS: [], STOCK: []}
    memory: dict[str, list[float]] = {OURS: [], STOCK: []}
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(Stage())
        ours = await stage.worker(OURS, stack=stack)
        stock = await stage.worker(STOCK, module="talking", stack=stack)
        for number in range(visits):
            both = (ours, stock) if number % 2 == 0 else (stock, ours)
            for tested in both:
                await tested.settle()
            found = await asyncio.gather(*(_visit(stage, tested, slices, memory[tested.name]) for tested in both))
            for tested, (rooms, total) in zip(both, found, strict=True):
                cpu[tested.name] += rooms
                whole[tested.name].append(total)
    print_table("CPU of the talking room's process", cpu, STOCK, unit="s/min")
    print_table("CPU of the whole worker meanwhile", whole, STOCK, unit="s/min")
    print_table("Private memory of the talking room's process", memory, STOCK, unit="MB")
    return {
        "cpu_s_per_minute": {name: {**summary(values), "samples": values} for name, values in cpu.items()},
        "cpu_ratio": ratios(cpu[OURS], cpu[STOCK]),
        "worker_cpu_s_per_minute": {name: summary(values) for name, values in whole.items()},
        "private_mb": {name: {**summary(values), "samples": values} for name, values in memory.items()},
    }


async def _visit(stage: Stage, tested: Tested, slices: int, memory: list[float]) -> tuple[list[float], float]:
    """CPU seconds a minute of the room's process in each slice, and of the whole worker."""
    pid = tested.worker.pid
    shares: list[float] = []
    async with Crowd(
        stage.server, [Member([Stay(turns=-1, greeted=tested.ours, every=_SLICE)])], tested.agent_name
    ) as crowd:
        crowd.go()
        await crowd.wait_for("turn", 1, timeout=60)
        begun, first = time.monotonic(), cpu_seconds(pid)
        at, before = begun, cpu_by_process(pid)
        beginning = before
        for _ in range(slices):
            await asyncio.sleep(_SLICE)
            now, after = time.monotonic(), cpu_by_process(pid)
            busiest = max(value - before[key] for key, value in after.items() if key in before)
            shares.append(busiest / (now - at) * 60)
            at, before = now, after
        took = time.monotonic() - begun
        memory += busy_private_mb(pid, beginning, took)[:1]
        total = (cpu_seconds(pid) - first) / took * 60
        await crowd.leave()
    return shares, total

"""How many talking rooms a worker carries: greeting, turn, CPU and memory against their number."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from sandbox.bench_report import summary
from sandbox.capacity_stage import Stage, Tested, machine_busy_seconds
from sandbox.crowd import Crowd, Member, Stay
from sandbox.footprint import busy_private_mb, cpu_by_process, footprint

GREETING_LIMIT_MS = 1000.0
TURN_LIMIT = 2.0
"""A turn's p95 as a multiple of that with one room."""
HEADROOM = 0.7
"""The share of a core that rooms may fill: the rest is for joins, and for moments when many talk at once."""
_APART = 0.7
_PROBE_PAUSE = 2.5


async def measure(executor: str, numbers: Sequence[int], seconds: float) -> dict[str, Any]:
    """Each number of rooms in turn, until a limit is passed; returns the steps and what follows from them."""
    steps: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(Stage())
        worker = await stage.worker(f"{executor} executor", env={"JOB_EXECUTOR": executor}, stack=stack)
        for number in numbers:
            step = await _step(stage, worker, executor, number, seconds * max(1.0, 3 / number))
            steps.append(step)
            print_steps(executor, steps[-1:])
            step["passed"] = _passed(step, steps[0])
            if step["passed"]:
                break
            await worker.settle()
    print_steps(executor, steps)
    return {"steps": steps, "derived": derive(steps)}


async def _step(stage: Stage, tested: Tested, executor: str, rooms: int, seconds: float) -> dict[str, Any]:
    """`rooms` devices talk without end; one more comes, is greeted and goes, again and again."""
    pid = tested.worker.pid
    idle_mb = footprint(pid).private_mb
    staying = [Member([Stay(turns=-1)], start=number * _APART) for number in range(rooms)]
    probe = [Member([Stay(pause=_PROBE_PAUSE)], endless=True)]
    async with (
        Crowd(stage.server, staying, tested.agent_name) as residents,
        Crowd(stage.server, probe, tested.agent_name) as visitor,
    ):
        residents.go()
        await residents.wait_for("turn", rooms, timeout=60 + rooms * (_APART + 10))
        visitor.go()
        crowds = (residents, visitor)
        begun = time.monotonic()
        before = _cpu(stage, tested, crowds)
        each = cpu_by_process(pid)
        await asyncio.sleep(seconds)
        took = time.monotonic() - begun
        used = {name: after - before[name] for name, after in _cpu(stage, tested, crowds).items()}
        talking = sum(after - each[number] for number, after in cpu_by_process(pid).items() if number in each)
        used["other programs"] = max(0.0, used.pop("machine") - sum(used.values()))
        now_mb = footprint(pid).private_mb
        per_room = busy_private_mb(pid, each, took) if executor == "process" else [(now_mb - idle_mb) / rooms]
        marks = [*residents.marks(after=begun), *visitor.marks(after=begun)]
        failures = [mark.error for mark in marks if mark.name == "failed"]
        await asyncio.gather(residents.leave(), visitor.leave())
    for failure in failures[:3]:
        print(f"{rooms} rooms: {failure}", file=sys.stderr)
    greetings = [mark.ms for mark in marks if mark.name == "greeted"]
    turns = [mark.ms for mark in marks if mark.name == "turn"]
    return {
        "rooms": rooms,
        "seconds": round(took, 1),
        "greeting": summary(greetings) if greetings else None,
        "turn": summary(turns) if turns else None,
        "failures": len(failures),
        "cpu_cores": {name: round(value / took, 3) for name, value in used.items()},
        # Without the processes of the one that comes and goes; under the thread executor, there is no telling.
        "cpu_s_per_room_minute": round(talking / (rooms * took / 60), 2),
        "private_mb_per_room": round(float(np.median(per_room)), 1) if per_room else None,
        "private_mb": now_mb,
    }


def _cpu(stage: Stage, tested: Tested, crowds: Sequence[Crowd]) -> dict[str, float]:
    return {
        "worker": tested.cpu_seconds(),
        "devices": sum(crowd.cpu_seconds() for crowd in crowds),
        "LiveKit server": stage.server_cpu_seconds(),
        "stand-ins": stage.providers_cpu_seconds(),
        "this benchmark": sum(psutil.Process().cpu_times()[:2]),
        "machine": machine_busy_seconds(),
    }


def _passed(step: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """The limits that this step is beyond."""
    if not step["greeting"] or not step["turn"]:
        return ["nothing was heard"]
    passed = []
    if step["greeting"]["p95"] > GREETING_LIMIT_MS:
        passed.append("greeting")
    if step["turn"]["p95"] > TURN_LIMIT * first["turn"]["p95"]:
        passed.append("turn")
    return passed


def derive(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rooms per core and per GB.

    `by_cpu`: what the worker's own CPU time leaves room for, with HEADROOM. `by_limits`: the most rooms within the
    limits, as if the CPU that devices, server and stand-ins took had been the worker's; with it that of others too.
    """
    good = [step for step in steps if not step["passed"]]
    if not good:
        return {"rooms_within_limits": 0}
    best = good[-1]
    cpu = best["cpu_cores"]
    by_cpu = HEADROOM * 60 / best["cpu_s_per_room_minute"]
    by_limits = best["rooms"] * sum(cpu.values()) / cpu["worker"] / (psutil.cpu_count() or 1)
    per_room = [step["private_mb_per_room"] for step in good if step["private_mb_per_room"]]
    return {
        "rooms_within_limits": best["rooms"],
        "rooms_per_core": {"by_cpu": round(by_cpu, 1), "by_limits": round(by_limits, 1)},
        "mb_per_room": max(per_room) if per_room else None,
        "rooms_per_gb": int(1024 / max(per_room)) if per_room else None,
    }


def print_steps(executor: str, steps: Sequence[Mapping[str, Any]]) -> None:
    """A row for each number of rooms."""
    table = Table(title=f"Talking rooms at once, {executor} executor; all on the same {psutil.cpu_count()} cores")
    for column in ("rooms", "greeting p50/p95 ms", "turn p50/p95 ms", "CPU s/room-min", "MB/room", "failed"):
        table.add_column(column, justify="right")
    table.add_column("cores: worker, devices, server, stand-ins, others")
    for step in steps:
        cpu = step["cpu_cores"]
        rest = cpu["this benchmark"] + cpu["other programs"]
        shares = (cpu["worker"], cpu["devices"], cpu["LiveKit server"], cpu["stand-ins"], rest)
        table.add_row(
            str(step["rooms"]),
            _both(step["greeting"]),
            _both(step["turn"]),
            f"{step['cpu_s_per_room_minute']:.1f}",
            str(step["private_mb_per_room"]),
            str(step["failures"]),
            " ".join(f"{share:.2f}" for share in shares),
        )
    Console(width=130).print(table)


def _both(figures: Mapping[str, float] | None) -> str:
    return f"{figures['p50']:.0f}/{figures['p95']:.0f} (n={figures['n']})" if figures else "–"


def plot(path: Path, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Four pictures, a line an executor, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    kinds = (("greeting", "Join to greeting, ms"), ("turn", "End of speech to answer, ms"))
    for row, (key, title) in zip(axes[0], kinds, strict=True):
        for executor, steps in curves.items():
            told = [step for step in steps if step[key]]
            for part, style in (("p50", "-"), ("p95", "--")):
                row.plot(
                    [s["rooms"] for s in told],
                    [s[key][part] for s in told],
                    style,
                    marker="o",
                    label=f"{executor} {part}",
                )
        row.set_title(title)
    axes[0][0].axhline(GREETING_LIMIT_MS, color="grey", linewidth=0.8)
    kinds = (("cpu_s_per_room_minute", "CPU seconds a room-minute"), ("private_mb_per_room", "Private MB a room"))
    for row, (key, title) in zip(axes[1], kinds, strict=True):
        for executor, steps in curves.items():
            told = [step for step in steps if step[key] is not None]
            row.plot([s["rooms"] for s in told], [s[key] for s in told], marker="o", label=executor)
        row.set_title(title)
    for row in axes.flat:
        row.set_xlabel("talking rooms at once")
        row.set_ylim(bottom=0)
        row.grid(alpha=0.3)
        row.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    Console().print(f"wrote {path}")

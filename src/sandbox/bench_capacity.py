"""`scripts/bench capacity`: how much a worker carries, and what is left of it after storms and hours.

Without a part named: the curve of talking rooms, for both executors. Each run adds its part to the report.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from sandbox import capacity_burst, capacity_curve, capacity_endurance, capacity_room
from sandbox.bench_report import write_json

_SLICES = 10


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if not numbers or min(numbers) < 1:
        raise ValueError(text)
    return numbers


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for."""
    found: dict[str, Any] = {}
    first = args.executor[0]
    if args.burst:
        found["burst"] = await capacity_burst.measure(args.burst, args.rounds)
    if args.rooms:
        found[f"rooms {first}"] = await capacity_endurance.rooms_in_a_row(args.rooms, first)
    if args.storm:
        found[f"storm {first}"] = await capacity_endurance.storm(args.storm, first)
    if args.room:
        found["room"] = await capacity_room.measure(args.room, _SLICES)
    if args.soak:
        found[f"soak {first}"] = await capacity_endurance.soak(args.soak, args.devices, first)
    if found:
        return found
    for executor in args.executor:
        found[f"curve {executor}"] = await capacity_curve.measure(executor, args.n, args.seconds)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench capacity", description=__doc__)
    parser.add_argument("--executor", nargs="+", choices=("process", "thread"), default=["process", "thread"])
    parser.add_argument("--n", type=_numbers, default=[1, 2, 3, 5, 8, 10, 15, 25, 50], help="talking rooms, 1,2,3,…")
    parser.add_argument("--seconds", type=float, default=50.0, help="how long each number of rooms is watched")
    parser.add_argument("--burst", type=_numbers, nargs="?", const=[3, 10, 30], help="joins at once, against the floor")
    parser.add_argument("--rounds", type=int, help="bursts of each size; else as many as give 30 samples")
    parser.add_argument("--rooms", type=int, nargs="?", const=300, help="so many rooms in a row: what stays")
    parser.add_argument("--storm", type=int, nargs="?", const=24, help="so many devices that come and go at random")
    parser.add_argument("--room", type=int, nargs="?", const=3, help="so many visits: CPU and memory against the stock")
    parser.add_argument("--soak", type=float, nargs="?", const=30.0, metavar="MINUTES", help="visits from a fixed seed")
    parser.add_argument("--devices", type=int, default=3, help="devices of the soak")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    started = time.time()
    path = args.out / "bench-capacity.json"
    found = asyncio.run(run(args))
    took = round(time.time() - started)
    earlier = json.loads(path.read_text()) if path.exists() else {}
    report = {**earlier, **{name: {**part, "run_seconds": took} for name, part in found.items()}}
    curves = {key.split()[1]: value["steps"] for key, value in report.items() if key.startswith("curve ")}
    if curves:
        capacity_curve.plot(args.out / "bench-capacity.png", curves)
    write_json(path, report)


if __name__ == "__main__":
    main()

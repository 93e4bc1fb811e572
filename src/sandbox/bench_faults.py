"""`scripts/bench faults`: what a child hears, what is lost and how long recovery takes when something breaks.

Each round of each fault is a visit before it, one that meets it, and visits after it until one is right again. The
worker reaches every service through a proxy that is made slow, lossy of its connections, or a black hole; processes are
killed, a disk is filled, a clock jumps.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import logging
import os
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from sandbox.audio import Pcm, speak
from sandbox.bench_report import write_json
from sandbox.bench_turn import cut_to_loud
from sandbox.device import MIC_RATE
from sandbox.fault_house import SENTENCE, Account, House, Owed
from sandbox.fault_list import FAULTS, Fault
from sandbox.fault_visit import Toy, Visit, ordinary, struck
from sandbox.processes import RUN_MARKER, ProcessFailed, marked_processes
from sandbox.toxiproxy import ToxiproxyRefused

ROUNDS = 2
RECOVERY_TRIES = 6


@dataclass
class Result:
    """What one fault did, over its rounds."""

    fault: str
    before: list[Visit] = field(default_factory=list)
    during: list[Visit] = field(default_factory=list)
    after: list[Visit] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    unrecovered: int = 0
    stuck: int = 0
    owed: list[Owed] = field(default_factory=list)
    account: Account | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def next_greeting(self) -> float | None:
        """The next right visit's greeting, as a multiple of an ordinary one's; medians."""
        before = [v.greeting_ms for v in self.before if v.greeting_ms is not None]
        after = [v.greeting_ms for v in self.after if v.right and v.greeting_ms is not None]
        return statistics.median(after) / statistics.median(before) if before and after else None

    @property
    def longest_wait_s(self) -> float:
        """For the first sound after the child's words, of all that came."""
        return max((wait for visit in self.during for wait in visit.waits_s), default=0.0)

    @property
    def child_hears(self) -> str:
        """Each round's sounds in order; rounds alike are told once."""
        told = [", ".join(visit.heard) + (f" ({visit.problem})" if visit.problem else "") for visit in self.during]
        return " | ".join(dict.fromkeys(told))

    def as_json(self) -> dict[str, Any]:
        """Everything, visits included."""
        return {
            **asdict(self),
            "child_hears": self.child_hears,
            "longest_wait_s": self.longest_wait_s,
            "next_greeting_ratio": self.next_greeting,
        }


async def one_round(house: House, fault: Fault, speech: Pcm, number: int, result: Result) -> None:
    """A visit before, one that meets the fault, and visits after it until one is right."""

    async def strike(toy: Toy) -> None:
        await fault.strike(house, toy)

    async def heal(toy: Toy) -> None:
        await fault.heal(house, toy)

    await house.settle()
    result.before.append(await ordinary(house, speech, **fault.options))
    await house.settle()
    inside = fault.inside if fault.inside is not None else number % 2 == 1
    during, ended = await struck(
        house,
        speech,
        strike=strike,
        heal=heal,
        inside=inside,
        agent_dies=fault.agent_dies,
        leaves=fault.leaves,
        **fault.options,
    )
    result.during.append(during)
    ok_at = during.ok_at
    for _ in range(RECOVERY_TRIES):
        await house.settle()
        begun = time.monotonic()
        visit = await ordinary(house, speech, **fault.options)
        result.after.append(visit)
        if visit.right:
            result.recovery_s.append(round(max(0.0, (ok_at or begun) - ended), 1))
            break
    else:
        result.unrecovered += 1
    result.stuck += await house.orphans()


async def try_fault(house: House, fault: Fault, speech: Pcm, rounds: int) -> Result:
    """All rounds of one fault."""
    result = Result(fault.name)
    first = len(house.owed)
    for number in range(rounds):
        try:
            await one_round(house, fault, speech, number, result)
        except (ProcessFailed, ToxiproxyRefused, TimeoutError, OSError, aiohttp.ClientError) as error:
            result.problems.append(f"{type(error).__name__}: {str(error)[-1500:]}")
            await house.toxiproxy.heal()
            await house.start_worker_if_gone()
    result.owed = copy.copy(house.owed[first:])
    return result


def new_house(kind: str) -> House:
    """What faults of this kind are tried in."""
    return House(with_redis=kind == "redis", clock=kind == "clock", disk_mb=32 if kind == "disk" else 0)


async def run(
    faults: Sequence[Fault], rounds: int, patience: float, begin_within_s: float, logs: Path | None = None
) -> dict[str, Any]:
    """Every fault that is begun within so many seconds, house by house; returns the report."""
    last_begin = time.monotonic() + begin_within_s
    os.environ.setdefault(RUN_MARKER, uuid.uuid4().hex)
    speech = cut_to_loud(await asyncio.to_thread(speak, SENTENCE, "en", MIC_RATE))
    results: list[Result] = []
    report: dict[str, Any] = {"rounds": rounds, "houses": {}}
    skipped: dict[str, str] = {}
    for kind in dict.fromkeys(fault.house for fault in faults):
        possible = []
        for fault in (fault for fault in faults if fault.house == kind):
            reason = fault.impossible()
            if reason is None:
                possible.append(fault)
            else:
                skipped[fault.name] = reason
                print(f"{fault.name}: skipped, {reason}", file=sys.stderr)
        if possible:
            report["houses"][kind] = await _in_house(
                kind, possible, speech, rounds, patience, last_begin, results, logs
            )
    left = [process.pid for process in marked_processes(os.environ[RUN_MARKER])]
    print_results(results)
    for kind, end in report["houses"].items():
        print(f"at the end of the house “{kind}”: {end}")
    print(f"processes left behind: {len(left)}")
    return {
        **report,
        "skipped": skipped,
        "processes_left": len(left),
        "faults": {result.fault: result.as_json() for result in results},
    }


async def _in_house(
    kind: str,
    faults: Sequence[Fault],
    speech: Pcm,
    rounds: int,
    patience: float,
    last_begin: float,
    results: list[Result],
    logs: Path | None,
) -> dict[str, Any]:
    mine: list[Result] = []
    async with new_house(kind) as house:
        await house.settle()
        await ordinary(house, speech)  # the first of all is nobody's figure
        for fault in faults:
            begun = time.monotonic()
            if begun > last_begin:
                print(f"{fault.name}: not begun, the time is up", file=sys.stderr)
                continue
            result = await try_fault(house, fault, speech, rounds)
            mine.append(result)
            results.append(result)
            print(
                f"{fault.name}: {result.child_hears}; recovery {result.recovery_s} s; "
                f"{time.monotonic() - begun:.0f} s {' '.join(result.problems)}",
                file=sys.stderr,
                flush=True,
            )
        rooms = await house.leaked_rooms()
        stuck = await house.surplus()
        everything = await house.all_arrived(house.owed, timeout=patience)
        for result in mine:
            result.account = house.account(result.owed)
        if logs is not None:
            house.write_logs(logs / f"bench-faults-{kind}.log")
    return {"leaked_rooms": len(rooms), "stuck_processes": stuck, **asdict(everything)}


def print_results(results: Sequence[Result]) -> None:
    """A row a fault."""
    table = Table(title="Faults: what the child hears, what is lost, how long it takes")
    table.add_column("fault")
    table.add_column("the child hears", ratio=1)
    for column in ("longest wait s", "alone s", "recovery s", "next greeting", "lost", "repeated", "doubled", "stuck"):
        table.add_column(column, justify="right")
    for result in results:
        account = result.account or Account(0, 0, 0, 0)
        ratio = result.next_greeting
        alone = max((visit.alone_s for visit in [*result.during, *result.after]), default=0.0)
        recovery = f"{statistics.median(result.recovery_s):.1f}" if result.recovery_s else "—"
        table.add_row(
            result.fault,
            result.child_hears + (f" [{len(result.problems)} failed rounds]" if result.problems else ""),
            f"{result.longest_wait_s:.1f}",
            f"{alone:.1f}",
            recovery + (f" ({result.unrecovered} never)" if result.unrecovered else ""),
            f"{ratio:.2f} ×" if ratio is not None else "—",
            f"{account.lost_lines}+{account.lost_memories}",
            str(account.repeated),
            str(account.doubled),
            str(result.stuck),
        )
    Console(width=150).print(table)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench faults", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="faults by name; * stands for anything")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each fault")
    parser.add_argument(
        "--patience", type=float, default=360.0, help="seconds that chat lines and memories have to arrive, at the end"
    )
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no fault after so many")
    parser.add_argument("--logs", action="store_true", help="keep the workers' logs beside the report")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    chosen = [f for f in FAULTS if not args.only or any(fnmatchcase(f.name, name) for name in args.only)]
    if not chosen:
        parser.error(f"no fault has such a name; there are: {', '.join(fault.name for fault in FAULTS)}")
    if args.list:
        print("\n".join(fault.name for fault in chosen))
        return
    logging.getLogger("livekit").setLevel(logging.ERROR)
    started = time.time()
    report = asyncio.run(run(chosen, args.rounds, args.patience, args.minutes * 60, args.out if args.logs else None))
    report["seconds"] = round(time.time() - started)
    write_json(args.out / "bench-faults.json", report)


if __name__ == "__main__":
    main()

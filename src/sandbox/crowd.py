"""Many simulated devices at once, in several processes: each joins, is greeted, talks, leaves, and reports its marks.

`python -m sandbox.crowd PLAN.json` is one of the processes; `Crowd` starts and reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from sandbox.audio import Pcm, speak
from sandbox.bench_turn import MIC_RATE, SENTENCE, cut_to_loud
from sandbox.device import Device
from sandbox.footprint import cpu_seconds
from sandbox.livekit_server import LiveKitServer
from sandbox.processes import Line, ManagedProcess, plain_environment
from sandbox.staged import Staged

DEVICES_A_PROCESS = 4
"""More rooms starve the SDK of one process: every event of each is queued for all."""
_QUIET = 1.0
_JOIN_DEADLINE = 45.0


@dataclass(frozen=True)
class Stay:
    """One visit: `turns` turns after the greeting (-1: until told to stop), then it leaves.

    `hold`: afterwards it listens until told to stop. `leave_after` seconds from having joined it leaves, whatever it
    was at. `pause` seconds go by before the next visit. A room is closed when its device has left, unless `abandon`.
    Not `greeted`: the agent does not speak first. Turns begin no more often than `every` seconds.
    """

    turns: int = 0
    hold: bool = False
    leave_after: float | None = None
    pause: float = 0.0
    abandon: bool = False
    greeted: bool = True
    every: float = 0.0


@dataclass(frozen=True)
class Member:
    """One device: `start` seconds after the word it begins its visits, one after the other; `endless`: over again."""

    visits: Sequence[Stay]
    start: float = 0.0
    endless: bool = False


@dataclass(frozen=True)
class Mark:
    """What a device reported: `joined`, `left`, `greeted` and `turn` with `ms`, `failed` with `error`."""

    member: int
    visit: int
    name: str
    at: float
    ms: float = 0.0
    error: str = ""


@dataclass
class Crowd(Staged):
    """Devices spread over processes, as an async context manager: inside the block they are ready for `go()`.

    `patience` is how long, in seconds, a device waits for its greeting and for each answer.
    """

    server: LiveKitServer
    members: Sequence[Member]
    agent_name: str
    patience: float = 60.0
    _processes: list[ManagedProcess] = field(default_factory=list)
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def _start(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="toy-crowd-")))
        for first in range(0, len(self.members), DEVICES_A_PROCESS):
            part = self.members[first : first + DEVICES_A_PROCESS]
            plan = {
                "port": self.server.port,
                "agent_name": self.agent_name,
                "patience": self.patience,
                "first": first,
                "members": [asdict(member) for member in part],
            }
            path = folder / f"{first}.json"
            path.write_text(json.dumps(plan))
            command = [sys.executable, "-m", "sandbox.crowd", str(path)]
            process = ManagedProcess(f"devices from {first}", command, env=plain_environment())
            self._processes.append(await self._stack.enter_async_context(process))
        for process in self._processes:
            await process.wait_for_line(lambda line: line.text == "ready", timeout=60, what="readiness")

    def go(self) -> None:
        """The word: every device begins."""
        for process in self._processes:
            process.send_signal(signal.SIGUSR1)

    async def wait_for(self, name: str, number: int, *, timeout: float) -> None:
        """Wait until at least `number` marks of this name, or failures, have come. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while True:
                if sum(mark.name in (name, "failed") for mark in self.marks()) >= number:
                    return
                await asyncio.sleep(0.1)

    async def finish(self, *, timeout: float) -> None:
        """Wait until every device has made its visits. Raises ProcessFailed."""
        for process in self._processes:
            await process.wait(timeout=timeout)

    async def leave(self) -> None:
        """Every device says goodbye and leaves; whoever still waits for something gives up unreported."""
        await asyncio.gather(*(process.stop(grace=15) for process in self._processes))

    def marks(self, name: str | None = None, *, after: float = 0.0) -> list[Mark]:
        """What they have reported, of this name alone where one is given, since the monotonic time `after`."""
        found = (_mark(line) for process in self._processes for line in process.lines)
        return [mark for mark in found if mark and mark.at >= after and name in (None, mark.name)]

    def cpu_seconds(self) -> float:
        """CPU time of the processes so far, while they live."""
        return sum(cpu_seconds(process.pid) for process in self._processes)


def _mark(line: Line) -> Mark | None:
    return Mark(**line.fields) if "member" in line.fields else None


class _Visitor:
    """One device's visits, in the process of the devices."""

    def __init__(self, number: int, plan: dict[str, Any], server: LiveKitServer, speech: Pcm) -> None:
        self._number = number
        self._agent_name = str(plan["agent_name"])
        self._patience = float(plan["patience"])
        self._server = server
        self._speech = speech
        self._visit = 0

    async def run(self, member: Member) -> None:
        await asyncio.sleep(member.start)
        while True:
            for stay in member.visits:
                await self._one(stay)
                await asyncio.sleep(stay.pause)
                self._visit += 1
            if not member.endless:
                return

    async def _one(self, stay: Stay) -> None:
        device = Device(self._server, agent_name=self._agent_name, frame_ms=20)
        try:
            await device.join(timeout=_JOIN_DEADLINE)
            self._tell("joined")
            await self._talk_for(device, stay)
        except (TimeoutError, RuntimeError) as error:  # rtc.ConnectError is a RuntimeError of the SDK's
            self._tell("failed", error=f"{type(error).__name__}: {error}"[:300])
        finally:
            await device.leave()
            if not stay.abandon:
                await self._server.delete_room(device.room_name)
        self._tell("left")

    async def _talk_for(self, device: Device, stay: Stay) -> None:
        talking = asyncio.create_task(self._talk(device, stay))
        try:
            await asyncio.wait({talking}, timeout=stay.leave_after)
        finally:
            # Once is not enough: a wait_for that ends in the same moment swallows it (Python 3.11).
            while not talking.done():
                talking.cancel()
                await asyncio.wait({talking}, timeout=0.1)
        if not talking.cancelled():
            talking.result()

    async def _talk(self, device: Device, stay: Stay) -> None:
        try:
            if stay.greeted:
                await device.wait_for_sound(timeout=self._patience)
                self._tell("greeted", ms=device.since_joined_ms("first_sound") or 0.0)
            else:
                await device.wait_for_mark("track_subscribed", timeout=self._patience)
            if stay.turns:
                await device.wait_for_silence(_QUIET)
            for turn in count():
                if turn == stay.turns:
                    break
                next_turn = time.monotonic() + stay.every
                await device.say(self._speech)
                ended = time.monotonic()
                heard = await device.wait_for_sound(after=ended, timeout=self._patience)
                self._tell("turn", ms=(heard - ended) * 1000)
                await device.wait_for_silence(_QUIET)
                await asyncio.sleep(next_turn - time.monotonic())
            if stay.hold:
                await asyncio.Event().wait()
        except TimeoutError as error:
            self._tell("failed", error=str(error)[:300])

    def _tell(self, name: str, *, ms: float = 0.0, error: str = "") -> None:
        mark = Mark(self._number, self._visit, name, time.monotonic(), round(ms, 1), error)
        print(json.dumps(asdict(mark)), flush=True)


async def _devices(plan: dict[str, Any]) -> None:
    server = LiveKitServer()
    server.port = int(plan["port"])
    speech = cut_to_loud(await asyncio.to_thread(speak, SENTENCE, "en", MIC_RATE))
    go, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, go.set)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    stopping = asyncio.create_task(stop.wait())
    going = asyncio.create_task(go.wait())
    await asyncio.wait([going, stopping], return_when=asyncio.FIRST_COMPLETED)
    members = [
        Member([Stay(**stay) for stay in item["visits"]], item["start"], item["endless"]) for item in plan["members"]
    ]
    visits = [
        _Visitor(plan["first"] + number, plan, server, speech).run(member) for number, member in enumerate(members)
    ]
    everything = asyncio.create_task(_all(visits))
    await asyncio.wait([everything, stopping], return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        everything.cancel()
        await asyncio.wait([everything])
    else:
        everything.result()
    for task in (going, stopping):
        task.cancel()


async def _all(visits: Sequence[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for visit in visits:
            group.create_task(visit)


def main() -> None:
    """`python -m sandbox.crowd PLAN.json`."""
    asyncio.run(_devices(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()

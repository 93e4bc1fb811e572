"""`scripts/bench turn`: from the end of the child's speech to the first sample of the answer at the device.

This worker and a stock `AgentSession` on one LiveKit server, with the same stand-ins and delays, visits alternating.
With `--memories` this worker twice instead, its memories taking 0.3 s and 5 s: what a slow Mem0 costs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from rich.progress import Progress

from sandbox.audio import Pcm, speak
from sandbox.bench_report import plot_distributions, print_table, ratios, summary, write_json
from sandbox.device import Device, DeviceTimeout
from sandbox.livekit_server import LiveKitServer
from sandbox.processes import REPO, ManagedProcess, WorkerProcess, plain_environment

OURS, STOCK = "this worker", "stock AgentSession"
QUICK, SLOW = "memories take 0.3 s", "memories take 5 s"
IDLE = 2
SENTENCE = "tell me a story about a dragon"
REPLY = "Well, once there was a little dragon. It loved to sing in the rain."
MIC_RATE = 16_000
LOUD = 300


@dataclass(frozen=True)
class Delays:
    """What the providers take, in seconds: a transcript, the first token, the next tokens, the first sound."""

    transcript: float = 0.3
    first_token: float = 0.3
    token: float = 0.02
    first_sound: float = 0.2

    @property
    def share_ms(self) -> float:
        """What no worker can save: one after the other, each has to begin."""
        return (self.transcript + self.first_token + self.first_sound) * 1000


@dataclass
class Variant:
    """One worker under test. `turns[i]` are the samples of each visit's turn i, in milliseconds; `joins` from join to
    first sound. `prepare` is awaited before each visit."""

    name: str
    worker: WorkerProcess
    agent_name: str
    prepare: Callable[[], Awaitable[None]] | None = None
    turns: dict[int, list[float]] = field(default_factory=dict)
    joins: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def samples(self) -> list[float]:
        """All turns."""
        return [ms for turn in self.turns.values() for ms in turn]

    async def settle(self) -> None:
        """Wait until the pool is warm again."""
        await self.worker.wait_until_ready(warm=IDLE + len(self.worker.events("received job request")))

    async def visit(self, server: LiveKitServer, speech: Pcm, turns: int) -> None:
        """One device that talks `turns` times, each time after a second of silence."""
        if self.prepare is not None:
            await self.prepare()
        device = Device(server, agent_name=self.agent_name)
        try:
            async with device:
                await device.wait_for_mark("track_subscribed")
                await device.wait_for_silence(1.0)
                if (joined := device.since_joined_ms("first_sound")) is not None:
                    self.joins.append(joined)
                for turn in range(1, turns + 1):
                    await device.say(speech)
                    ended = time.monotonic()
                    heard = await device.wait_for_sound(after=ended, timeout=15)
                    self.turns.setdefault(turn, []).append((heard - ended) * 1000)
                    await device.wait_for_silence(1.0)
        except DeviceTimeout as error:
            self.failures += 1
            print(f"{self.name}: {error}", file=sys.stderr)
        finally:
            await server.delete_room(device.room_name)


async def providers(stack: AsyncExitStack, delays: Delays) -> str:
    """The stand-ins in a process of their own; returns their base URL."""
    command = [sys.executable, "-m", "sandbox.providers", "--answer", SENTENCE]
    process = ManagedProcess("providers", command, env=plain_environment({"PYTHONUNBUFFERED": "1"}), cwd=REPO)
    await stack.enter_async_context(process)
    line = await process.wait_for_line(lambda line: "providers on http" in line.text, timeout=30, what="the address")
    url = line.text.split()[-1]
    settings: dict[str, dict[str, Any]] = {
        "transcription": {"first": delays.transcript},
        "chat": {"first": delays.first_token, "gap": delays.token},
        "speech": {"first": delays.first_sound},
    }
    async with aiohttp.ClientSession(url, raise_for_status=True) as http:
        await http.put("/_control/script", json={"otherwise": REPLY})
        for service, values in settings.items():
            await http.post(f"/_control/{service}", json=values)
    return f"{url}/v1"


def cut_to_loud(speech: Pcm) -> Pcm:
    """Without the quiet end, so that the end of what is sent is the end of what is heard."""
    return speech[: int(np.flatnonzero(np.abs(speech.astype(np.int32)) > LOUD)[-1]) + 1]


async def memories_take(url: str, seconds: float) -> None:
    """Set the stand-in's latency of a search for memories."""
    async with aiohttp.ClientSession(url, raise_for_status=True) as http:
        await http.post("/_control/mem0-search", json={"first": seconds})


async def run(visits: int, turns: int, delays: Delays, out: Path, *, memories: bool = False) -> dict[str, Any]:
    """Every visit of both variants; returns the report."""
    speech = cut_to_loud(await asyncio.to_thread(speak, SENTENCE, "en", MIC_RATE))
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = await stack.enter_async_context(LiveKitServer())
        base = await providers(stack, delays)

        def variant(name: str, env: Mapping[str, str], *module: str) -> Variant:
            agent_name = f"turn-{name.replace(' ', '-')}"
            state = folder / agent_name
            state.mkdir()
            full = {
                **server.environment,
                "AGENT_NAME": agent_name,
                "NUM_IDLE_PROCESSES": str(IDLE),
                "STATE_DIR": str(state),
                "GREETINGS_DIR": str(REPO / "greetings"),
                "LLM_BASE_URL": base,
                "STT_BASE_URL": base,
                "TTS_BASE_URL": base,
                **env,
            }
            command = [sys.executable, "-m", "sandbox.bench_workers", *module] if module else None
            return Variant(name, WorkerProcess(full, cwd=state, command=command, name=name), agent_name)

        if memories:
            root = base.removesuffix("/v1")
            remembers = {"MEM0_ENABLED": "true", "MEM0_HOST": root, "MEM0_API_KEY": "sandbox"}
            variants = [variant(SLOW, remembers), variant(QUICK, remembers)]
            for each, seconds in zip(variants, (5.0, 0.3), strict=True):
                each.prepare = partial(memories_take, root, seconds)
        else:
            variants = [variant(OURS, {}), variant(STOCK, {}, "talking")]
        for each in variants:
            await stack.enter_async_context(each.worker)
        with Progress() as progress:
            task = progress.add_task("visits", total=visits * len(variants))
            for number in range(visits):
                for each in variants if number % 2 == 0 else reversed(variants):
                    await each.settle()
                    await asyncio.sleep(0.5)  # let the last visit's processes end: they are nobody's figure
                    await each.visit(server, speech, turns)
                    progress.advance(task)
    return report_memories(variants) if memories else report(variants, delays, out)


def report_memories(variants: list[Variant]) -> dict[str, Any]:
    """What slow memories cost the greeting and the first turn, in milliseconds of the medians."""
    slow, quick = variants
    found: dict[str, Any] = {"failures": {v.name: v.failures for v in variants}}
    for title, rows in (
        ("Join to first sound", {v.name: v.joins for v in variants}),
        ("First turn", {v.name: v.turns.get(1, []) for v in variants}),
    ):
        print_table(title, rows, quick.name)
        later = float(np.median(rows[slow.name]) - np.median(rows[quick.name]))
        print(f"{title}: {later:+.0f} ms with slow memories (medians)")
        found[title] = {"later_ms": round(later, 1), **{name: summary(values) for name, values in rows.items()}}
    return found


def report(variants: list[Variant], delays: Delays, out: Path) -> dict[str, Any]:
    """Print, plot and return the figures. Raises ValueError when a variant never answered."""
    silent = [each.name for each in variants if not each.samples]
    if silent:
        raise ValueError(f"no answer at all from: {', '.join(silent)}")
    ours, stock = variants
    left = {each.name: [ms - delays.share_ms for ms in each.samples] for each in variants}
    print(f"the providers' own share: {delays.share_ms:.0f} ms")
    print_table("End of speech to first sample of the answer", {v.name: v.samples for v in variants}, stock.name)
    print_table("What is left above the providers' share", left, stock.name)
    places = {f"turn {number}": samples for number, samples in sorted(ours.turns.items())}
    if "turn 3" in places:
        print_table("This worker, by turn", places, "turn 3")
    plot_distributions(out / "bench-turn.png", "Turn", {v.name: v.samples for v in variants}, "ms from end of speech")
    return {
        "providers_share_ms": delays.share_ms,
        "total": {v.name: {**summary(v.samples), "samples": v.samples} for v in variants},
        "left": {name: summary(values) for name, values in left.items()},
        "left_ratio": ratios(left[ours.name], left[stock.name]),
        "by_turn": {name: summary(samples) for name, samples in places.items()},
        "first_to_third": ratios(places["turn 1"], places["turn 3"]) if "turn 3" in places else None,
        "failures": {v.name: v.failures for v in variants},
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench turn", description=__doc__)
    parser.add_argument("--visits", type=int, default=10, help="visits of each variant")
    parser.add_argument("--turns", type=int, default=4, help="turns a visit")
    parser.add_argument("--memories", action="store_true", help="compare quick and slow memories instead")
    parser.add_argument("--out", type=Path, default=Path("out"))
    for name, seconds in vars(Delays()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=seconds, help="seconds")
    args = parser.parse_args()
    delays = Delays(**{name: getattr(args, name) for name in vars(Delays())})
    started = time.time()
    figures = asyncio.run(run(args.visits, args.turns, delays, args.out, memories=args.memories))
    figures["seconds"] = round(time.time() - started)
    write_json(args.out / ("bench-turn-memories.json" if args.memories else "bench-turn.json"), figures)


if __name__ == "__main__":
    main()

"""`scripts/bench telemetry`: what measuring costs, and whether it counts right.

Cost: one worker with metrics, traces and a scrape a second, one with none of it, on one LiveKit server, visits
alternating. Truth: many visits in short-lived processes, and the metrics against what the devices counted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sandbox.audio import Pcm, speak
from sandbox.bench_report import plot_distributions, print_table, ratios, summary, write_json
from sandbox.bench_turn import IDLE, MIC_RATE, SENTENCE, Delays, cut_to_loud, providers
from sandbox.device import Device, DeviceTimeout
from sandbox.livekit_server import LiveKitServer
from sandbox.manager_api import ManagerApi
from sandbox.processes import REPO, WorkerProcess
from sandbox.world import World

ON, OFF = "everything on", "nothing on"


class Variant:
    """One worker; what its visits took from join to first sound and from the end of speech to the answer."""

    def __init__(self, name: str, server: LiveKitServer, folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.server = server
        self.agent_name = f"telemetry-{name.split()[0]}"
        self.joins: list[float] = []
        self.turns: list[float] = []
        self.failures = 0
        state = folder / self.agent_name
        state.mkdir()
        full = {
            **server.environment,
            "AGENT_NAME": self.agent_name,
            "NUM_IDLE_PROCESSES": str(IDLE),
            "STATE_DIR": str(state),
            "GREETINGS_DIR": str(REPO / "greetings"),
            **env,
        }
        self.worker = WorkerProcess(full, cwd=state, name=name)

    async def visit(self, speech: Pcm, turns: int) -> None:
        """One device that is greeted and talks."""
        await self.worker.wait_until_ready(warm=IDLE + len(self.worker.events("received job request")))
        await asyncio.sleep(0.5)  # let the last visit's processes end: they are nobody's figure
        device = Device(self.server, agent_name=self.agent_name)
        try:
            async with device:
                await device.wait_for_sound(timeout=10)
                joined = device.since_joined_ms("first_sound")
                assert joined is not None
                self.joins.append(joined)
                await device.wait_for_silence(1.0)
                for _ in range(turns):
                    await device.say(speech)
                    ended = time.monotonic()
                    self.turns.append((await device.wait_for_sound(after=ended, timeout=15) - ended) * 1000)
                    await device.wait_for_silence(1.0)
        except DeviceTimeout as error:
            self.failures += 1
            print(f"{self.name}: {error}", file=sys.stderr)
        finally:
            await self.server.delete_room(device.room_name)


async def collector(stack: AsyncExitStack) -> str:
    """A place that takes traces; returns its address."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


async def scrape_for_ever(port: int) -> None:
    """As Prometheus does, only more often."""
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                await answer.read()
            await asyncio.sleep(1)


async def cost(visits: int, turns: int, out: Path) -> dict[str, Any]:
    """Both workers, their visits in turn and in changing order."""
    speech = cut_to_loud(await asyncio.to_thread(speak, SENTENCE, "en", MIC_RATE))
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = await stack.enter_async_context(LiveKitServer())
        manager = await stack.enter_async_context(ManagerApi())
        base = await providers(stack, Delays(0.1, 0.1, 0.01, 0.1))
        common = {
            "MANAGER_API_URL": manager.url,
            "MANAGER_API_SECRET": manager.secret or "",
            "LLM_BASE_URL": base,
            "STT_BASE_URL": base,
            "TTS_BASE_URL": base,
        }
        on = {"OTEL_EXPORTER_OTLP_ENDPOINT": await collector(stack), "BUDGET_PER_DAY": "1000"}
        variants = [
            Variant(ON, server, folder, {**common, **on}),
            Variant(OFF, server, folder, {**common, "METRICS": "false"}),
        ]
        for variant in variants:
            await stack.enter_async_context(variant.worker)
            await variant.worker.wait_until_ready(warm=IDLE)
        scraping = asyncio.create_task(scrape_for_ever(variants[0].worker.http_port))
        stack.callback(scraping.cancel)
        with Progress() as progress:
            task = progress.add_task("visits", total=visits * len(variants))
            for _ in range(visits):
                for variant in random.sample(variants, len(variants)):
                    await variant.visit(speech, turns)
                    progress.advance(task)
    report: dict[str, Any] = {"failures": {variant.name: variant.failures for variant in variants}}
    for title, rows in (
        ("Join to first sound", {variant.name: variant.joins for variant in variants}),
        ("End of speech to answer", {variant.name: variant.turns for variant in variants}),
    ):
        print_table(title, rows, OFF)
        report[title] = {name: {**summary(values), "samples": values} for name, values in rows.items() if values}
        if rows[ON] and rows[OFF]:
            low, high = ratio_interval(rows[ON], rows[OFF])
            report[title]["ratio"] = {**ratios(rows[ON], rows[OFF]), "p50_95%": [low, high]}
            print(f"ratio of medians: between {low:.3f} and {high:.3f} with 95 % confidence")
        plot_distributions(out / f"bench-telemetry-{title.split()[0].lower()}.png", title, rows, "milliseconds")
    return report


def ratio_interval(values: Sequence[float], base: Sequence[float], *, draws: int = 5000) -> tuple[float, float]:
    """Between what the ratio of the medians lies with 95 % confidence, by bootstrap: no shape is assumed."""
    rng = np.random.default_rng(1)
    mine, other = (rng.choice(np.asarray(each), (draws, len(each))) for each in (values, base))
    found = np.median(mine, axis=1) / np.median(other, axis=1)
    low, high = np.percentile(found, [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)


async def truth(count: int, at_once: int) -> dict[str, Any]:
    """`count` visits, some of them at once; what devices counted, what metrics say, and files that stayed.

    A device that no agent came to is nobody's visit: LiveKit had found no worker for it.
    """
    heard = met = 0
    async with World(warm=IDLE + 1, env={"MAX_ROOMS": str(at_once * 10)}) as world:
        waiting = asyncio.Semaphore(at_once)
        with Progress() as progress:
            task = progress.add_task("visits", total=count)

            async def visit() -> None:
                nonlocal heard, met
                async with waiting:
                    device = world.device(microphone=False)
                    await device.join()
                    try:
                        await device.wait_for_sound(timeout=30)
                        heard += 1
                    except DeviceTimeout as error:
                        print(error, file=sys.stderr)
                    await device.leave()
                    met += "agent_there" in device.marks
                    progress.advance(task)

            await asyncio.gather(*(visit() for _ in range(count)))
        found = await _settled(world, met)
        files = sorted(str(path.relative_to(world.folder)) for path in world.folder.rglob("metrics*"))
    counted = {
        "visits begun": (met, found["toy_visits_started_total"]),
        "visits over": (met, found["toy_visits_finished_total"]),
        "greetings heard": (heard, found["toy_greeting_seconds_count"]),
        "visits with a flag's variant": (met, found["toy_rollout_seconds_count"]),
        "warm parts found": (met, found["toy_service_cache_total"]),
    }
    table = Table(title=f"{count} visits, {at_once} at once")
    for heading in ("what", "devices", "metrics"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for what, (devices, metrics) in counted.items():
        table.add_row(what, str(devices), f"{metrics:.0f}")
    table.add_row("metrics files that stayed", "1 socket", ", ".join(files) or "none")
    Console().print(table)
    exact = all(devices == metrics for devices, metrics in counted.values()) and len(files) == 1
    return {"devices": count, "counted": counted, "files": files, "exact": exact}


async def _settled(world: World, visits: int) -> dict[str, float]:
    """Sums of the metrics once all visits are over; per visit where a metric has several series a visit."""
    deadline = time.monotonic() + 60
    while True:
        _, text = await world.worker.health("/metrics")
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                # One flag and one service stand for all: each visit counts once in each.
                if sample.labels.get("flag", "mem0_enabled") != "mem0_enabled":
                    continue
                if sample.labels.get("service", "vad") != "vad":
                    continue
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        if sums.get("toy_visits_finished_total", 0) >= visits or time.monotonic() > deadline:
            return sums
        await asyncio.sleep(0.5)


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Both parts, as asked."""
    report: dict[str, Any] = {}
    if args.visits:
        report["cost"] = await cost(args.visits, args.turns, args.out)
    if args.count:
        report["truth"] = await truth(args.count, args.at_once)
    return report


def main() -> int:
    """The command; 1 when the metrics do not add up."""
    parser = argparse.ArgumentParser(prog="scripts/bench telemetry", description=__doc__)
    parser.add_argument("--visits", type=int, default=40, help="visits of each variant; 0: no comparison")
    parser.add_argument("--turns", type=int, default=1, help="turns a visit")
    parser.add_argument("--count", type=int, default=500, help="visits to be counted; 0: none")
    parser.add_argument("--at-once", type=int, default=3, help="how many of them at once")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    started = time.time()
    report = asyncio.run(run(args))
    report["seconds"] = round(time.time() - started)
    write_json(args.out / "bench-telemetry.json", report)
    return 0 if report.get("truth", {"exact": True})["exact"] else 1


if __name__ == "__main__":
    sys.exit(main())

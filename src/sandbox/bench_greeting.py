"""`scripts/bench greeting`: from the device's own join to the first loud sample it hears.

One LiveKit server, one run, every variant's worker up at once, joins alternating between them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
from rich.progress import Progress

from sandbox.bench_report import plot_distributions, print_table, ratios, summary, write_json
from sandbox.device import Device
from sandbox.livekit_server import LiveKitServer
from sandbox.manager_api import Call, ManagerApi
from sandbox.processes import REPO, WorkerProcess
from sandbox.providers import ProviderServer

IDLE = 2
FLOOR, STOCK, SLOW, HANGING, EVERYTHING, PLAIN = (
    "a floor",
    "b stock session.say",
    "c this worker, Manager 200/500/500 ms",
    "d this worker, Manager hangs",
    "f this worker, providers, library and memory on",
    "e this worker, all flags off",
)
FLAGS_OFF = {
    "ENABLE_PARALLEL_API": "false",
    "ENABLE_PRESYNTH_GREETING": "false",
    "ENABLE_API_CACHE": "false",
    "ENABLE_CONNECTION_POOL": "false",
}


class Variant:
    """One worker under test, reached by explicit dispatch to its own agent name."""

    def __init__(
        self, name: str, server: LiveKitServer, folder: Path, env: Mapping[str, str], module: str = ""
    ) -> None:
        self.name = name
        self.server = server
        self.agent_name = name.split()[0] + "-bench"
        self.samples: list[float] = []
        self.failures = 0
        state = folder / self.agent_name
        state.mkdir()
        command = [sys.executable, "-m", "sandbox.bench_workers", module] if module else None
        full = {
            **server.environment,
            "AGENT_NAME": self.agent_name,
            "NUM_IDLE_PROCESSES": str(IDLE),
            "STATE_DIR": str(state),
            "GREETINGS_DIR": str(REPO / "greetings"),
            "API_CACHE_TTL": "0",
            **env,
        }
        self.worker = WorkerProcess(full, cwd=state, command=command, name=name)

    async def settle(self) -> None:
        """Wait until the pool is warm again, so that every join meets the same worker."""
        await self.worker.wait_until_ready(warm=IDLE + len(self.worker.events("received job request")))

    async def join(self, *, agent_first: bool = False) -> float | None:
        """One visit; milliseconds from the device's join to its first loud sample, None when none came."""
        device = Device(self.server, agent_name=None if agent_first else self.agent_name)
        try:
            if agent_first:
                await self.server.create_room(device.room_name, agent_name=self.agent_name)
                await self.server.wait_for_agent(device.room_name)
                await asyncio.sleep(0.5)  # the agent has long been there when the device comes
            async with device:
                await device.wait_for_sound(timeout=10)
                return device.since_joined_ms("first_sound")
        except TimeoutError:
            self.failures += 1
            return None
        finally:
            await self.server.delete_room(device.room_name)


def everything(providers: ProviderServer, folder: Path) -> dict[str, str]:
    """Every part of a visit on: speech-to-text, model, voice, memories at 300 ms, and the library where it is there."""
    models = REPO / ".state" / "models"
    found = {"MODEL_DIR": str(models)} if models.is_dir() else {}
    return {
        "STT_BASE_URL": providers.v1,
        "LLM_BASE_URL": providers.v1,
        "TTS_BASE_URL": providers.v1,
        "MEM0_ENABLED": "true",
        "MEM0_HOST": providers.url,
        "MEM0_API_KEY": "sandbox",
        "CATALOGUE_DIR": str(folder),
        **found,
    }


def idle_processes(worker: WorkerProcess) -> list[psutil.Process]:
    """The worker's job processes that are warm and wait for a room."""
    children = psutil.Process(worker.pid).children(recursive=True)
    return [child for child in children if len(child.children()) == 0 and child.num_threads() > 1]


async def run(joins: int, starts: int, out: Path) -> dict[str, object]:
    """Everything, in the order of the issue's list; returns the report."""
    report: dict[str, object] = await compare(joins, out) if joins else {}
    if starts:
        report["first_room"] = await first_against_tenth(starts)
    return report


async def compare(joins: int, out: Path) -> dict[str, object]:
    """The variants against the floor; an agent that was there first; what an idle process costs."""
    report: dict[str, object] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = await stack.enter_async_context(LiveKitServer())
        slow = await stack.enter_async_context(ManagerApi())
        slow.delay(0.2, Call.AGENT_ID)
        slow.delay(0.5, Call.AGENT_PROMPT, Call.AGENT_MODELS, Call.CHILD_PROFILE)
        hanging = await stack.enter_async_context(ManagerApi())
        hanging.fail("hang")

        providers = await stack.enter_async_context(ProviderServer(answers=["hello"]))
        providers.mem0.search_behaviour.first = 0.3

        def manager(api: ManagerApi) -> dict[str, str]:
            return {"MANAGER_API_URL": api.url, "MANAGER_API_SECRET": api.secret or ""}

        variants = [
            Variant(FLOOR, server, folder, {}, module="floor"),
            Variant(STOCK, server, folder, {}, module="stock"),
            Variant(SLOW, server, folder, manager(slow)),
            Variant(HANGING, server, folder, manager(hanging)),
            Variant(EVERYTHING, server, folder, {**manager(slow), **everything(providers, folder)}),
            Variant(PLAIN, server, folder, {**manager(slow), **everything(providers, folder), **FLAGS_OFF}),
        ]
        for variant in variants:
            await stack.enter_async_context(variant.worker)
        for variant in variants:
            await variant.settle()
        ours = variants[2]
        report["idle"] = measure_idle(ours.worker)
        with Progress() as progress:
            task = progress.add_task("joins", total=joins * len(variants))
            for _ in range(joins):
                for variant in variants:
                    await variant.settle()
                    await asyncio.sleep(0.3)  # let the last visit's processes end: they are nobody's figure
                    if (ms := await variant.join()) is not None:
                        variant.samples.append(ms)
                    progress.advance(task)
            first_task = progress.add_task("dispatched before the device", total=joins)
            before: list[float] = []
            for _ in range(joins):
                await ours.settle()
                await asyncio.sleep(0.3)
                if (ms := await ours.join(agent_first=True)) is not None:
                    before.append(ms)
                progress.advance(first_task)
        rows = {variant.name: variant.samples for variant in variants}
        rows["agent there before the device"] = before
        print_table("Join to first sound at the device", rows, FLOOR)
        report["joins"] = {
            name: {**summary(values), "ratio": ratios(values, rows[FLOOR]), "samples": values}
            for name, values in rows.items()
            if values
        }
        report["failures"] = {variant.name: variant.failures for variant in variants}
        plot_distributions(out / "bench-greeting.png", "Join to first sound", rows, "milliseconds from the join")
    return report


def measure_idle(worker: WorkerProcess) -> dict[str, object]:
    """Private memory and CPU time since the fork of each idle process."""
    processes = idle_processes(worker)
    memory = [round(process.memory_full_info().uss / 2**20, 1) for process in processes]
    cpu = [round((times.user + times.system) * 1000) for times in (process.cpu_times() for process in processes)]
    prewarm = [line.fields.get("cpu_ms") for line in worker.events("process prewarmed")]
    print(f"idle processes: private memory {memory} MB; CPU since the fork {cpu} ms, of it prewarm {prewarm} ms")
    return {"private_mb": memory, "cpu_ms_since_fork": cpu, "prewarm_cpu_ms": prewarm}


async def first_against_tenth(starts: int) -> dict[str, object]:
    """The first room after a start against the tenth, over many starts."""
    first: list[float] = []
    tenth: list[float] = []
    async with LiveKitServer() as server:
        with Progress() as progress:
            task = progress.add_task("starts", total=starts)
            for _ in range(starts):
                with tempfile.TemporaryDirectory() as folder:
                    variant = Variant("r restarted", server, Path(folder), {})
                    async with variant.worker:
                        for room in range(1, 11):
                            await variant.settle()
                            await asyncio.sleep(0.3)
                            ms = await variant.join()
                            if ms is not None and room in (1, 10):
                                (first if room == 1 else tenth).append(ms)
                progress.advance(task)
    rows = {"tenth room": tenth, "first room": first}
    print_table("First room after a start against the tenth", rows, "tenth room")
    return {name: {**summary(values), "samples": values} for name, values in rows.items()} | {
        "ratio": ratios(first, tenth)
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench greeting", description=__doc__)
    parser.add_argument("--joins", type=int, default=40, help="joins of each variant; 0: none")
    parser.add_argument("--starts", type=int, default=30, help="starts for the first room against the tenth; 0: none")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    started = time.time()
    report = asyncio.run(run(args.joins, args.starts, args.out))
    report["seconds"] = round(time.time() - started)
    write_json(args.out / "bench-greeting.json", report)


if __name__ == "__main__":
    main()

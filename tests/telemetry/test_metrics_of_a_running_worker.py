"""A real worker's metrics agree with what real devices counted, and a real Prometheus can read them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import aiohttp
import psutil
import pytest
from telemetry_support import Samples, files, parse, prometheus, total

from agent.telemetry.instruments import exposed_names
from sandbox.processes import ManagedProcess, free_port
from sandbox.world import World
from world_support import StartWorld

pytestmark = pytest.mark.timeout(180)
VISITS = 10
ROOMS = 4


async def metrics(world: World) -> Samples:
    status, text = await world.worker.health("/metrics")
    assert status == 200
    return parse(text)


async def visit(world: World, **options: object) -> None:
    async with world.device(**options) as device:
        await device.wait_for_sound(timeout=20)
        await device.wait_for_state("speaking", timeout=20)


async def until_metrics(world: World, name: str, count: int) -> Samples:
    async with asyncio.timeout(60):
        while True:
            samples = await metrics(world)
            if total(samples, name) >= count:
                return samples


async def finished(world: World, count: int) -> Samples:
    return await until_metrics(world, "toy_visits_finished_total", count)


async def test_metrics_add_up_to_what_the_devices_counted_also_for_a_killed_process(start_world: StartWorld) -> None:
    world = await start_world(warm=2, env={"MAX_ROOMS": "6", "ENABLE_API_CACHE": "50%"})
    before = await metrics(world)
    assert total(before, "toy_warm_processes") == 2
    assert total(before, "toy_visits_capacity") == 6
    assert total(before, "toy_ready") == 1
    languages = ["en", "en", "hi", "en"]
    for number in range(VISITS):
        await visit(world, language=languages[number % len(languages)])
    async with world.device() as device:
        await device.wait_for_sound(timeout=20)
        assert total(await metrics(world), "toy_visits_active") >= 1
        processes = [
            launched.fields["pid"]
            for launched in world.worker.events("process initialized")
            if psutil.pid_exists(launched.fields["pid"])
        ]
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        samples = await finished(world, VISITS + 1)
    assert total(samples, "toy_visits_started_total") == VISITS + 1
    assert total(samples, "toy_visits_finished_total", outcome="ended") == VISITS
    assert total(samples, "toy_visits_finished_total", outcome="lost") == 1
    assert total(samples, "toy_visit_seconds_count") == VISITS
    assert total(samples, "toy_greeting_seconds_count", source="recorded") == VISITS + 1
    assert total(samples, "toy_greeting_seconds_count", room="first") == 1
    assert total(samples, "toy_greeting_seconds_count", language="hi") == 2
    for flag in ("enable_api_cache", "enable_presynth_greeting"):
        assert total(samples, "toy_rollout_seconds_count", measure="greeting", flag=flag) == VISITS + 1
    assert total(samples, "toy_service_cache_total", service="vad", result="hit") == VISITS + 1
    assert total(samples, "toy_api_calls_total", call="prompt") >= VISITS
    assert total(samples, "toy_metric_records_total", result="refused") == 0
    status, text = await world.worker.health("/stats")
    stats = json.loads(text)
    assert status == 200
    assert stats["max_concurrent_calls"] == 6
    assert stats["utilization_percent"] == pytest.approx(stats["active_calls"] / 6 * 100, abs=0.1)
    assert stats["greeting"]["count"] == VISITS + 1
    assert 0 < stats["greeting"]["p50_ms"] <= stats["greeting"]["p95_ms"] <= stats["greeting"]["p99_ms"]
    run = files(world.folder / "state" / "run")
    (name,) = [name for name in run if name.startswith("metrics")]
    assert name.startswith(f"metrics-{world.worker.pid}-")
    await world.worker.stop()
    assert not [name for name in files(world.folder / "state" / "run") if name.startswith("metrics")]


async def test_refusals_are_counted_and_every_room_that_fits_is_served(start_world: StartWorld) -> None:
    world = await start_world(env={"MAX_ROOMS": str(ROOMS)})
    stranger = world.device(room="a-room-without-a-device")
    await stranger.join()
    await world.worker.wait_for_line(lambda line: line.event == "room refused", timeout=20)
    assert total(await metrics(world), "toy_refused_total", reason="identity") == 1
    # Every room that fits is served, one after the other up to the last: the server sends none to a loaded worker.
    for number in range(1, ROOMS - 1):
        device = world.device()
        await device.join()
        await device.wait_for_sound(timeout=20)
        samples = await metrics(world)
        assert total(samples, "toy_visits_active") == number
        assert total(samples, "toy_utilisation_ratio") == number / ROOMS
    # Five come at once where two fit: none is taken on the strength of a place that is already promised.
    burst = [world.device(microphone=False) for _ in range(5)]
    await asyncio.gather(*(device.join() for device in burst))
    await world.worker.wait_for_line(lambda line: line.fields.get("reason") == "the worker is full", timeout=20)
    samples = await until_metrics(world, "toy_visits_started_total", ROOMS)
    assert total(samples, "toy_visits_active") == ROOMS
    assert total(samples, "toy_refused_total", reason="full") >= 1


async def test_a_worker_tells_what_it_lacks_and_is_not_ready_while_livekit_is_gone(start_world: StartWorld) -> None:
    async def until_ready(wanted: bool) -> set[str]:
        async with asyncio.timeout(60):
            while True:
                status, text = await world.worker.health("/ready")
                report = json.loads(text)
                if (status == 200, report["registered"]) == (wanted, wanted):
                    return set(report["problems"])

    world = await start_world(manager=False)
    lacks = await until_ready(True)
    assert lacks == {"speech-to-text", "language model", "voice"}
    assert {line.fields["part"] for line in world.worker.events("rooms are served without a part")} == lacks
    await world.server.stop()
    await until_ready(False)
    assert total(await metrics(world), "toy_registered") == 0
    await world.server.restart()
    await until_ready(True)


async def test_a_real_prometheus_scrapes_a_running_worker(start_world: StartWorld, tmp_path: Path) -> None:
    program = prometheus("prometheus")
    world = await start_world()
    await visit(world)
    await finished(world, 1)
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        f"  - {{job_name: toy, static_configs: [{{targets: ['127.0.0.1:{world.worker.http_port}']}}]}}\n"
    )
    command = [
        program,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    async with ManagedProcess("prometheus", command, cwd=tmp_path) as server, aiohttp.ClientSession() as http:

        async def ask(query: str) -> list[dict[str, object]]:
            url = f"http://127.0.0.1:{port}/api/v1/query"
            try:
                async with http.get(url, params={"query": query}) as answer:
                    found: list[dict[str, object]] = (await answer.json())["data"]["result"]
                    return found
            except (aiohttp.ClientConnectorError, aiohttp.ContentTypeError):  # not up, or up and not ready
                assert server.returncode is None, server.tail()
                return []

        async with asyncio.timeout(60):
            while not (up := await ask("up == 1")):
                pass
        assert up[0]["metric"]["job"] == "toy"  # type: ignore[index]
        (started,) = await ask("toy_visits_started_total")
        assert started["value"][1] == "1"  # type: ignore[index]
        (quantile,) = await ask("histogram_quantile(0.95, sum by (le) (toy_greeting_seconds_bucket))")
        assert 0 < float(quantile["value"][1]) < 30  # type: ignore[index]
        names = {str(item["metric"]["__name__"]) for item in await ask('{__name__=~"toy_.+"}')}  # type: ignore[index]
        assert {name for name in names if not name.endswith("_created")} <= exposed_names()

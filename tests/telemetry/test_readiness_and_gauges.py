"""Readiness, the slots of processes, loop lag and the outbox's gauges, each from what it reads."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from telemetry_support import scrape, total, until

from agent.errors import OutboxError
from agent.health import LOAD_TARGET, WARM_GRACE_S, WorkerState
from agent.outbox.items import OutboxStats
from agent.process import lacks
from agent.settings import Settings
from agent.telemetry.hub import MetricsHub
from agent.telemetry.lag import LagProbe
from agent.telemetry.processes import ProcessGauges, read_memory
from agent.telemetry.worker_telemetry import outbox_source


@dataclass
class Clock:
    """A clock that tests set."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Pool:
    """The framework's pool as far as the worker's state reads it; the real one is in the tests with a worker."""

    def __init__(self) -> None:
        self._warmed_proc_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.processes: list[Any] = []


class Server:
    """The framework's server as far as the worker's state reads it."""

    def __init__(self) -> None:
        self._proc_pool = Pool()
        self.active_jobs: list[Any] = []
        self._connecting = False

    def on(self, _event: str, _handler: Any) -> None:
        """Events are not played."""


def _state(tmp_path: Path, clock: Clock, **values: object) -> tuple[WorkerState, Server]:
    settings = Settings(_env_file=None, state_dir=tmp_path, max_rooms=4, **values)  # type: ignore[arg-type,call-arg]
    state, server = WorkerState(settings, clock=clock), Server()
    state.attach(server)  # type: ignore[arg-type]
    state.registered = True
    return state, server


def running(rooms: int) -> list[Any]:
    """So many jobs as the framework tells of them."""
    return [SimpleNamespace(job=SimpleNamespace(id=f"job {number}")) for number in range(rooms)]


async def test_ready_needs_a_warm_process_and_forgives_a_burst(tmp_path: Path) -> None:
    clock = Clock()
    state, server = _state(tmp_path, clock)
    assert state.readiness()[0] is False
    server._proc_pool._warmed_proc_queue.put_nowait("process")
    assert state.readiness()[0] is True
    server._proc_pool._warmed_proc_queue.get_nowait()
    clock.now += WARM_GRACE_S - 1
    ready, report = state.readiness()
    assert (ready, report["warm_processes"]) == (True, 0)
    clock.now += 2
    assert state.readiness()[0] is False
    server._proc_pool._warmed_proc_queue.put_nowait("process")
    state.load()
    assert state.readiness()[0] is True
    state.draining = True
    assert state.readiness()[0] is False


async def test_a_worker_that_lost_livekit_is_not_ready_and_rescues_nobody_until_it_is_back(tmp_path: Path) -> None:
    state, server = _state(tmp_path, Clock(), num_idle_processes=0)
    for lost in (False, True, False):
        server._connecting = lost
        ready, report = state.readiness()
        assert (ready, report["registered"], state.can_rescue()) == (not lost, not lost, not lost)


async def test_what_rooms_are_served_without_is_told_and_keeps_no_room_away(tmp_path: Path) -> None:
    state, _ = _state(tmp_path, Clock(), num_idle_processes=0, catalogue_dir=tmp_path)
    state.lacks = lacks(state.settings)
    ready, report = state.readiness()
    assert ready
    assert set(report["problems"]) == {"speech-to-text", "language model", "voice", "embedding model"}
    assert "STT_BASE_URL" in report["problems"]["speech-to-text"]
    assert "download-files" in report["problems"]["embedding model"]
    async with MetricsHub(tmp_path / "run") as hub:
        hub.sources.append(state.show)
        assert total(await scrape(hub), "toy_degraded") == 4


def test_nothing_is_missed_where_it_is_there_or_not_used(tmp_path: Path, model_dir: Path) -> None:
    def found(**values: object) -> set[str]:
        return set(lacks(Settings(_env_file=None, state_dir=tmp_path, **values)))  # type: ignore[arg-type,call-arg]

    assert found(openai_api_key="sk-1") == set()
    assert found(openai_api_key="sk-1", catalogue_dir=tmp_path, model_dir=model_dir) == set()
    assert found(stt_base_url="http://a", llm_base_url="http://a") == {"voice"}
    assert found(conversation_mode="realtime") == {"realtime"}


async def test_a_worker_without_a_pool_of_warm_processes_is_ready_without_one(tmp_path: Path) -> None:
    state, _ = _state(tmp_path, Clock(), num_idle_processes=0)
    assert state.readiness()[0] is True


@pytest.mark.parametrize(("rooms", "load"), [(0, 0.0), (3, None), (4, 1.0), (5, 1.0)])
async def test_a_worker_with_room_stays_below_the_load_at_which_the_server_sends_none(
    tmp_path: Path, rooms: int, load: float | None
) -> None:
    state, server = _state(tmp_path, Clock())
    server.active_jobs = running(rooms)
    assert state.load() == load or (load is None and 0 < state.load() < LOAD_TARGET)
    state.draining = True
    assert state.load() == 1.0


async def test_a_room_counts_once_while_it_passes_from_waiting_to_its_process(tmp_path: Path) -> None:
    state, server = _state(tmp_path, Clock())
    with state.accepting("job 0", "room"):
        assert (state.active, state.taken) == (0, 1)
        server.active_jobs = running(1)
        assert (state.active, state.taken) == (1, 1)
    assert state.taken == 1


async def test_the_workers_gauges_are_those_of_its_state(tmp_path: Path) -> None:
    state, server = _state(tmp_path, Clock())
    server.active_jobs = running(3)
    state.refuse("full")
    async with MetricsHub(tmp_path / "run") as hub:
        hub.sources.append(state.show)
        samples = await scrape(hub)
        assert total(samples, "toy_visits_active") == 3
        assert total(samples, "toy_utilisation_ratio") == 0.75
        assert total(samples, "toy_refused_total", reason="full") == 1
        assert total(samples, "toy_refused_total", reason="identity") == 0
        assert total(samples, "toy_ready") == 0
        assert total(samples, "toy_warm_processes_wanted") == 3


async def test_slots_are_given_again_when_processes_are_gone(tmp_path: Path) -> None:
    clock = Clock()
    processes = [
        await asyncio.create_subprocess_exec("sleep", "60", stdout=asyncio.subprocess.DEVNULL) for _ in range(3)
    ]
    try:
        async with MetricsHub(tmp_path) as hub:
            hub.sources.append(
                ProcessGauges(lambda: {processes[0].pid: "visit", processes[1].pid: "warm"}, clock=clock)
            )
            samples = await scrape(hub)
            assert total(samples, "toy_processes", role="visit") == 1
            assert total(samples, "toy_processes", role="warm") == 1
            assert total(samples, "toy_processes", role="other") >= 1
            assert total(samples, "toy_process_memory_bytes", role="worker") > 2**20
            slots = _slots(samples)
            processes[0].kill()
            await processes[0].wait()
            processes.append(await asyncio.create_subprocess_exec("sleep", "60"))
            assert _slots(await scrape(hub)) == slots  # it is read at most every ten seconds
            clock.now += 11
            after = await scrape(hub)
            assert total(after, "toy_processes", role="visit") == 0
            assert _slots(after) == slots
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _slots(samples: dict[Any, float]) -> list[str]:
    return sorted(dict(labels)["slot"] for name, labels in samples if name == "toy_process_memory_bytes")


def test_memory_of_a_process_that_has_ended_is_left_out() -> None:
    found = read_memory({})
    assert all(role in {"worker", "other"} for role, _ in found.values())


async def test_a_blocked_loop_is_seen(tmp_path: Path) -> None:
    async with MetricsHub(tmp_path) as hub:
        probe = LagProbe("room", interval=0.01)
        probe.start()
        asyncio.get_running_loop().call_soon(threading.Event().wait, 0.3)  # the block that is measured
        samples = await until(hub, lambda found: total(found, "toy_loop_lag_seconds_sum") > 0.25)
        assert total(samples, "toy_loop_lag_seconds_bucket", process="room", le="0.1") < total(
            samples, "toy_loop_lag_seconds_count", process="room"
        )
        probe.stop()
        probe.stop()


async def test_the_outboxs_state_is_shown_as_it_stands_in_its_file(tmp_path: Path) -> None:
    found = {"chat": OutboxStats(depth=2, oldest_age_s=400.5, delivered=7, retried=1)}

    async def stats() -> dict[str, OutboxStats]:
        return dict(found)

    async def away() -> dict[str, OutboxStats]:
        raise OutboxError("Redis does not answer")

    async with MetricsHub(tmp_path) as hub:
        hub.sources.append(outbox_source({"file": stats, "redis": away}))
        samples = await scrape(hub)
        assert total(samples, "toy_outbox_items", kind="chat") == 2
        assert total(samples, "toy_outbox_items", home="redis") == 0
        assert total(samples, "toy_outbox_oldest_age_seconds") == 400.5
        assert total(samples, "toy_outbox_results_total", result="delivered") == 7
        del found["chat"]
        assert total(await scrape(hub), "toy_outbox_items") == 0


@pytest.mark.parametrize("trouble", ["raises", "hangs"])
async def test_a_source_in_trouble_hides_nothing_else(tmp_path: Path, trouble: str) -> None:
    async def bad(_: MetricsHub) -> None:
        if trouble == "hangs":
            await asyncio.Event().wait()
        raise OSError("the disk is gone")

    async with MetricsHub(tmp_path) as hub:
        hub.sources.append(bad)
        hub.take(["v", "job-1"])
        assert total(await scrape(hub), "toy_visits_started_total") == 1

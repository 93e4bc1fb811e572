"""Processes that do not start, hang, are too large or lose their worker: told, put off, ended, and none is silent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from agent.pool import FAILURES, HANGING_S, PoolWatch
from sandbox.device import Device
from sandbox.processes import WorkerProcess, group_members
from sandbox.world import World
from world_support import StartWorld, greeted

pytestmark = pytest.mark.timeout(240)

FAILED = "a process could not be started"


class Clock:
    """A clock that tests set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Pool:
    """The framework's pool as far as it is watched; the real one is in the tests with a worker."""

    def __init__(self) -> None:
        self.told: dict[str, Callable[[Any], None]] = {}
        self.targets: list[int] = []

    def on(self, event: str, callback: Callable[[Any], None]) -> None:
        self.told[event] = callback

    def set_target_idle_processes(self, num_idle_processes: int) -> None:
        self.targets.append(num_idle_processes)


@dataclass(eq=False)
class Process:
    """One of its processes."""

    exitcode: int | None = None


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watched(wanted: int, clock: Clock) -> tuple[PoolWatch, Pool]:
    watch, pool = PoolWatch(wanted, clock=clock), Pool()
    watch.follow(pool)
    return watch, pool


def fail(pool: Pool, times: int = 1, *, after: str = "process_created") -> None:
    for _ in range(times):
        process = Process(exitcode=-9)
        pool.told["process_created"](process)
        if after == "process_ready":
            pool.told["process_ready"](process)
        pool.told["process_closed"](process)


async def test_without_idle_processes_a_room_is_the_next_try(clock: Clock) -> None:
    watch, pool = watched(0, clock)
    fail(pool, FAILURES - 1)
    assert watch.able
    fail(pool)
    assert not watch.able
    assert "SIGKILL" in watch.problem
    clock.now += 2.1
    assert watch.able
    assert watch.problem, "it is still told"
    process = Process()
    pool.told["process_created"](process)
    clock.now += HANGING_S
    assert not watch.able, "that one hangs"
    pool.told["process_ready"](process)
    pool.told["process_job_launched"](process)
    assert watch.able
    assert not watch.problem
    watch.close()


async def test_a_process_that_ends_before_it_had_a_room_has_failed(clock: Clock) -> None:
    watch, pool = watched(3, clock)
    fail(pool, FAILURES, after="process_ready")
    assert (watch.failed, watch.able) == (FAILURES, False)
    assert pool.targets[-1] == 0
    process = Process()
    pool.told["process_created"](process)
    pool.told["process_ready"](process)
    assert watch.able
    assert pool.targets[-1] == 3
    pool.told["process_job_launched"](process)
    process.exitcode = -9
    pool.told["process_closed"](process)
    assert (watch.failed, watch.problem) == (FAILURES, ""), "a visit that ends is no failure of the pool"
    watch.close()


async def test_processes_that_end_with_the_worker_have_not_failed(clock: Clock) -> None:
    watch, pool = watched(1, clock)
    process = Process()
    pool.told["process_created"](process)
    watch.close()
    pool.told["process_closed"](process)
    assert watch.failed == 0


def forkserver(world: World) -> int:
    """The process from which those of rooms are forked."""
    children = psutil.Process(world.worker.pid).children(recursive=True)
    return next(child.pid for child in children if "multiprocessing.forkserver" in " ".join(child.cmdline()))


def room_processes(world: World) -> set[int]:
    """Warm ones and those with a visit."""
    return {child.pid for child in psutil.Process(forkserver(world)).children()}


def visit_process(world: World) -> int:
    return int(world.worker.events("greeting finished")[-1].fields["pid"])


async def back_again(device: Device, before: int) -> None:
    back = await device.wait_for_message("speech_created", after=before, timeout=90)
    assert back.data["text"] == "I'm back! Let's go on."


async def ended(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of them that still live after half a minute."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 30)
    return list(alive)


async def readiness(world: World, wanted: Callable[[int, dict[str, Any]], bool]) -> dict[str, Any]:
    """What `/ready` says once it is as wanted."""
    device = world.device(microphone=False)
    for _ in range(300):
        status, text = await world.worker.health("/ready")
        report: dict[str, Any] = json.loads(text)
        if wanted(status, report):
            return report
        await device.wait_for_silence(0.2)
    raise AssertionError(f"not as wanted: {status} {report}")


async def arrived(device: Device) -> None:
    await device.join()
    await greeted(device)


async def test_processes_that_hang_or_fail_are_told_put_off_and_begun_again(start_world: StartWorld) -> None:
    world = await start_world()
    stopped = forkserver(world)
    os.kill(stopped, signal.SIGSTOP)
    first, second, third = world.device(), world.device(), world.device()
    await arrived(first)  # by the warm process
    report = await readiness(world, lambda status, report: "processes" in report["problems"])
    assert "has been starting for" in report["problems"]["processes"]
    await second.join()
    refused = await world.worker.wait_for_line(lambda line: line.event == "room refused", timeout=30)
    assert "has been starting for" in refused.fields["reason"]
    os.kill(stopped, signal.SIGCONT)
    await second.wait_for_state("speaking", timeout=60)
    await readiness(world, lambda status, _: status == 200)

    # The next forkserver reads wrong settings: every process refuses to start.
    (world.folder / ".env").write_text("MAX_ROOMS=many\n")
    os.kill(forkserver(world), signal.SIGKILL)
    report = await readiness(world, lambda status, report: "in a row failed" in report["problems"].get("processes", ""))
    assert "MAX_ROOMS" in report["problems"]["processes"]
    assert len(world.worker.events("room refused")) >= 1
    await third.join()
    await world.worker.wait_until(lambda: len(world.worker.events(FAILED)) >= 4, timeout=60, what="four tries")
    waits = [line.fields["retry_in_s"] for line in world.worker.events(FAILED)]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    _, metrics = await world.worker.health("/metrics")
    assert any(
        line.startswith("toy_process_failures_total") and float(line.split()[-1]) >= 4 for line in metrics.splitlines()
    )
    (world.folder / ".env").unlink()
    await third.wait_for_state("speaking", timeout=90)
    await readiness(world, lambda status, _: status == 200)
    for device in (first, second, third):
        await device.leave()


async def test_processes_that_are_stuck_or_lose_their_worker_end_and_the_visit_goes_on(start_world: StartWorld) -> None:
    world = await start_world(warm=2, env={"JOB_STUCK_TIMEOUT": "5"})
    device = world.device()
    await arrived(device)
    await world.worker.wait_for_line(lambda line: line.event == "greeting finished", timeout=20)
    visit = visit_process(world)
    (warm, *_) = room_processes(world) - {visit}
    stuck = [psutil.Process(pid) for pid in (visit, warm)]
    before = len(device.messages)
    for process in stuck:
        process.suspend()
    await back_again(device, before)
    assert not await ended(stuck)

    before = len(device.messages)
    members = group_members(world.worker.pid)
    assert len(members) >= 4  # the worker, the forkserver, the visit, a warm one
    world.worker.send_signal(signal.SIGKILL)
    assert not await ended(members)
    async with WorkerProcess(world._environment(), cwd=world.folder):
        await back_again(device, before)
        await device.leave()


async def test_processes_over_their_limit_are_ended_and_not_begun_again_for_ever(start_world: StartWorld) -> None:
    world = await start_world(env={"JOB_MEMORY_LIMIT_MB": "5"}, warm=1)
    await world.worker.wait_until(lambda: len(world.worker.events(FAILED)) >= 4, timeout=90, what="four tries")
    waits = [line.fields["retry_in_s"] for line in world.worker.events(FAILED)]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert any("process exceeded memory limit" in line.event for line in world.worker.lines)
    report = await readiness(world, lambda status, report: status == 503 and "processes" in report["problems"])
    assert "SIG" in report["problems"]["processes"]

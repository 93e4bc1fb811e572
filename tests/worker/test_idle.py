"""Warm processes follow what comes: unit tests of the number, and the framework's real pool obeying it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import get_context

import pytest
from livekit.agents import JobContext, JobExecutorType, JobProcess
from livekit.agents.ipc.proc_pool import ProcPool

from agent.health import WorkerState, most_idle
from agent.idle import REFILL_S, REMEMBERED_S, IdleProcesses
from agent.pool import PoolWatch
from agent.settings import Settings
from sandbox.crowd import Crowd, Member, Stay
from world_support import StartWorld


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _come(idle: IdleProcesses, clock: Clock, number: int, apart: float) -> None:
    for _ in range(number):
        clock.now += apart
        idle.arrived()


@pytest.mark.parametrize(("number", "apart", "wanted"), [(0, 1, 3), (2, 0, 3), (5, 0, 5), (30, 0, 8), (20, 60, 3)])
def test_as_many_are_wanted_as_came_at_once_within_the_bounds(number: int, apart: float, wanted: int) -> None:
    clock = Clock()
    idle = IdleProcesses(PoolWatch(1), least=3, most=8, clock=clock)
    _come(idle, clock, number, apart)
    assert idle.wanted == wanted


def test_a_steady_stream_wants_what_comes_while_the_pool_is_filled() -> None:
    clock = Clock()
    idle = IdleProcesses(PoolWatch(1), least=1, most=50, clock=clock)
    _come(idle, clock, 100, 1.0)
    assert idle.wanted == REFILL_S + 1


def test_a_burst_is_forgotten() -> None:
    clock = Clock()
    idle = IdleProcesses(PoolWatch(1), least=1, most=8, clock=clock)
    _come(idle, clock, 6, 0.1)
    clock.now += REMEMBERED_S - 10
    assert idle.wanted == 6
    clock.now += 20
    assert idle.wanted == 1


@pytest.mark.parametrize(("least", "most", "bound"), [(3, 8, 8), (12, 8, 12), (0, 8, 0), (2, 0, 2)])
def test_the_upper_bound_is_never_below_the_lower_and_nothing_is_kept_where_none_is_wanted(
    least: int, most: int, bound: int
) -> None:
    settings = Settings(_env_file=None, num_idle_processes=least, max_idle_processes=most)  # type: ignore[call-arg]
    assert most_idle(settings) == bound
    state = WorkerState(settings, clock=Clock())
    for number in range(40):
        with state.accepting(f"job {number}", f"room {number}"):
            pass
    assert state.idle.wanted == bound


async def _nothing(_ctx: JobContext) -> None:
    """No job comes."""


def _made(_process: JobProcess) -> None:
    """Nothing to warm."""


@asynccontextmanager
async def _pool(idle: int, watch: PoolWatch) -> AsyncIterator[ProcPool]:
    pool = ProcPool(
        initialize_process_fnc=_made,
        job_entrypoint_fnc=_nothing,
        session_end_fnc=None,
        simulation_end_fnc=None,
        num_idle_processes=idle,
        initialize_timeout=30,
        close_timeout=30,
        session_end_timeout=30,
        inference_executor=None,
        job_executor_type=JobExecutorType.THREAD,
        mp_ctx=get_context("forkserver"),
        memory_warn_mb=0,
        memory_limit_mb=0,
        http_proxy=None,
        loop=asyncio.get_running_loop(),
    )
    watch.follow(pool)
    await pool.start()
    try:
        yield pool
    finally:
        watch.close()
        await pool.aclose()


def _heard(pool: ProcPool, event: str) -> asyncio.Queue[object]:
    seen: asyncio.Queue[object] = asyncio.Queue()
    pool.on(event, seen.put_nowait)  # type: ignore[arg-type]
    return seen


async def _times(events: asyncio.Queue[object], number: int) -> None:
    async with asyncio.timeout(60):
        for _ in range(number):
            await events.get()


async def test_the_frameworks_pool_grows_beyond_what_it_was_made_with_and_shrinks_again() -> None:
    clock = Clock()
    watch = PoolWatch(2)
    idle = IdleProcesses(watch, least=2, most=5, clock=clock)
    async with _pool(2, watch) as pool:
        assert pool._warmed_proc_queue.qsize() == 2
        ready, closed = _heard(pool, "process_ready"), _heard(pool, "process_closed")
        _come(idle, clock, 9, 0.0)
        await _times(ready, 3)
        assert pool._warmed_proc_queue.qsize() == 5
        await idle.adjust()
        assert pool._warmed_proc_queue.qsize() == 5, "nothing is closed while it is wanted"
        clock.now += REMEMBERED_S + 1
        await idle.adjust()
        await _times(closed, 3)
        assert pool._warmed_proc_queue.qsize() == 2
        assert len(pool.processes) == 2
        assert watch.failed == 0, "a process that is not wanted any more is no failure"


async def test_after_a_burst_the_worker_is_prepared_for_another(start_world: StartWorld) -> None:
    world = await start_world(warm=1, env={"NUM_IDLE_PROCESSES": "1", "MAX_IDLE_PROCESSES": "3"})
    async with Crowd(world.server, [Member([Stay(hold=True)])] * 3, "", patience=40) as crowd:
        crowd.go()
        await crowd.wait_for("greeted", 3, timeout=60)
        assert crowd.marks("failed") == []
        assert len(crowd.marks("greeted")) == 3
    # One was there, three were taken, three are to wait.
    await world.worker.wait_until(lambda: world.worker.warmed >= 6, timeout=60, what="three more warm processes")

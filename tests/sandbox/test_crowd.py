"""Devices by the dozen, and what programs take: the ground that capacity figures stand on."""

from __future__ import annotations

import asyncio
import sys

from sandbox.capacity_curve import HEADROOM, derive
from sandbox.crowd import DEVICES_A_PROCESS, Crowd, Member, Stay
from sandbox.footprint import cpu_seconds, footprint
from sandbox.livekit_server import LiveKitServer

_BUSY = "import time\nwhile time.process_time() < 0.4: pass"


async def test_every_device_reports_who_was_not_greeted_and_closes_its_room(livekit_server: LiveKitServer) -> None:
    waiting = [Member([Stay()])] * DEVICES_A_PROCESS
    passing = [Member([Stay(leave_after=0.0)] * 2)]
    async with Crowd(livekit_server, [*waiting, *passing], "nobody", patience=5) as crowd:
        assert crowd.marks() == []
        crowd.go()
        await crowd.wait_for("failed", DEVICES_A_PROCESS, timeout=110)
        await crowd.finish(timeout=110)
        failed = crowd.marks("failed")
        assert sorted(mark.member for mark in failed) == list(range(DEVICES_A_PROCESS))
        assert all("no sound" in mark.error for mark in failed)
        assert [mark.visit for mark in crowd.marks("left") if mark.member == DEVICES_A_PROCESS] == [0, 1]
        assert crowd.marks("greeted") == []


async def test_devices_leave_when_they_are_told_to(livekit_server: LiveKitServer) -> None:
    async with Crowd(livekit_server, [Member([Stay(hold=True)], endless=True)] * 2, "nobody") as crowd:
        crowd.go()
        await crowd.wait_for("joined", 2, timeout=60)
        assert crowd.cpu_seconds() > 0
        await crowd.leave()
        assert crowd.marks("failed") == []


async def test_cpu_time_of_children_that_have_ended_is_not_lost() -> None:
    # The child has ended and been waited for when its line comes; its parent goes on.
    parent = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        '"$0" -c "$1"; echo done; read -r line',
        sys.executable,
        _BUSY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await parent.stdout.readline() == b"done\n"
        taken = footprint(parent.pid)
        assert cpu_seconds(parent.pid) >= 0.3
        assert (taken.processes, taken.threads) == (1, 1)
        assert taken.private_mb > 0
    finally:
        await parent.communicate(b"\n")
    assert footprint(parent.pid).processes == 0


def test_rooms_per_core_and_gigabyte_follow_from_the_last_step_within_the_limits() -> None:
    cpu = {"worker": 1.0, "devices": 0.5, "LiveKit server": 0.3, "stand-ins": 0.1, "other programs": 0.1}
    step = {"cpu_cores": cpu, "cpu_s_per_room_minute": 10.0, "private_mb_per_room": 64.0}
    steps = [
        {**step, "rooms": 1, "passed": []},
        {**step, "rooms": 6, "passed": []},
        {**step, "rooms": 8, "passed": ["turn"]},
    ]
    found = derive(steps)
    assert found["rooms_within_limits"] == 6
    assert found["rooms_per_core"]["by_cpu"] == round(HEADROOM * 6, 1)
    assert found["rooms_per_gb"] == 16
    assert derive([{**step, "rooms": 1, "passed": ["greeting"]}]) == {"rooms_within_limits": 0}

"""Nothing that the sandbox starts outlives the one who started it, however that one ends."""

from __future__ import annotations

import asyncio
import sys

import psutil

# The child is a shell with a child of its own, so that its group has two processes.
_STARTER = """
import sys
from sandbox.processes import ManagedProcess
process = ManagedProcess("child", ["/bin/sh", "-c", "sleep 600 & wait"])
process.start()
print(process.pid, flush=True)
sys.stdin.read()
"""


async def test_a_group_dies_with_a_starter_that_is_killed() -> None:
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _STARTER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert starter.stdout is not None
    try:
        async with asyncio.timeout(60):
            child = psutil.Process(int(await starter.stdout.readline()))
    finally:
        starter.kill()
        await starter.wait()
    await asyncio.to_thread(child.wait, 60)
    assert not child.is_running()

"""The demo leaves no process behind when it is interrupted and when a step of it fails."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from sandbox.processes import RUN_MARKER, ManagedProcess, marked_processes, plain_environment

pytestmark = pytest.mark.timeout(180)


def demo(out: Path, run: str, **more: str) -> ManagedProcess:
    """`scripts/demo`, whose processes carry `run`."""
    kept = {name: os.environ[name] for name in ("LIVEKIT_SERVER_BIN",) if name in os.environ}
    env = plain_environment({**kept, RUN_MARKER: run, "PYTHONUNBUFFERED": "1", **more})
    return ManagedProcess("demo", [sys.executable, "-m", "sandbox.demo", "--out", str(out)], env=env, cwd=out)


async def left_of(run: str) -> list[psutil.Process]:
    """What still lives of it: a process that has been told to end has a moment for it."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, marked_processes(run), 20)
    return list(alive)


@pytest.mark.world
@pytest.mark.usefixtures("model_dir")
async def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    run = uuid.uuid4().hex
    async with demo(tmp_path, run) as process:
        await process.wait_for_line(lambda line: "worker" in line.text, timeout=90, what="the worker")
        assert len(marked_processes(run)) > 2, "server, worker and its processes"
        process.send_signal(signal.SIGINT)
        assert await process.wait(timeout=60) == 130, process.tail()
        assert "Interrupted" in process.tail()
        assert await left_of(run) == []


@pytest.mark.usefixtures("model_dir")
async def test_a_demo_whose_server_does_not_start_names_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = uuid.uuid4().hex
    broken = tmp_path / "livekit-server"
    broken.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    broken.chmod(0o755)
    async with demo(tmp_path, run, LIVEKIT_SERVER_BIN=str(broken)) as process:
        assert await process.wait(timeout=90) == 1, process.tail()
        assert "The demo failed" in process.tail()
        assert "no such luck" in process.tail()
        assert await left_of(run) == []

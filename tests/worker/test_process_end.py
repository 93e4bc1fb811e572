"""A process whose worker is lost at any moment ends."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket

from livekit.agents.ipc.log_queue import LogQueueHandler
from livekit.agents.utils.aio.duplex_unix import _Duplex

from agent.process import end_with_errors


def _loses_its_worker(logs: socket.socket) -> None:
    logging.getLogger().addHandler(LogQueueHandler(_Duplex.open(logs)))
    end_with_errors()
    logging.getLogger().warning("about to fail")
    raise BrokenPipeError


async def test_a_process_that_fails_ends_though_its_log_thread_still_runs() -> None:
    worker, room = socket.socketpair()
    worker.settimeout(10)
    with worker, room:
        process = multiprocessing.get_context("spawn").Process(target=_loses_its_worker, args=(room,))
        await asyncio.to_thread(process.start)
        try:
            await asyncio.to_thread(process.join, 60)
            assert process.exitcode == 1, "it still lives"
            assert b"about to fail" in worker.recv(65_536)
        finally:
            process.kill()
            process.join()

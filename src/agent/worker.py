"""The composition root: one worker, its admission, its health, and the order in which all of it starts and stops."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from contextlib import AsyncExitStack

import structlog
from livekit.agents import AgentServer, JobExecutorType, JobRequest

from agent import process, room
from agent.device.identity import identify_room
from agent.errors import IdentityError
from agent.health import HealthServer, WorkerState
from agent.livekit_server import supports_single_peer_connection
from agent.settings import Settings

log = structlog.get_logger(__name__)


def build_server(settings: Settings, state: WorkerState) -> AgentServer:
    """The framework's server with our processes, rooms and admission; not running yet."""
    # The framework's loop monitor wakes every process a hundred times a second, idle ones too.
    os.environ.setdefault("LIVEKIT_AGENTS_LOOP_BLOCK_WARN_MS", "0")
    server = AgentServer(
        ws_url=settings.livekit_url,
        api_key=settings.livekit_api_key,
        api_secret=settings.livekit_api_secret.get_secret_value(),
        host="127.0.0.1",
        port=0,
        num_idle_processes=settings.num_idle_processes,
        job_executor_type=JobExecutorType(settings.job_executor),
        setup_fnc=process.prewarm,
        preload_modules=["agent.forkserver"],
        # Admission is decided in on_request; the framework's own estimate refuses bursts.
        load_fnc=state.load,
        load_threshold=math.inf,
        drain_timeout=math.ceil(settings.drain_timeout),
        initialize_process_timeout=20.0,
        log_level=settings.log_level,
    )
    state.attach(server)

    async def on_request(request: JobRequest) -> None:
        try:
            identify_room(request.room.name)
        except IdentityError as error:
            state.refuse("identity")
            log.warning("room refused", reason=str(error), job_id=request.id)
            await request.reject(terminate=True)
            return
        if not state.has_room():
            state.refuse("full")
            log.warning("room refused", reason="the worker is full", job_id=request.id)
            await request.reject(terminate=False)
            return
        await request.accept()

    server.rtc_session(
        room.entrypoint,
        agent_name=settings.agent_name,
        on_request=on_request,
        on_session_end=room.on_session_end,
    )
    return server


async def serve(settings: Settings, *, devmode: bool = False) -> int:
    """Run until SIGTERM or SIGINT; a second signal ends at once. Returns the exit code.

    The first signal drains: no new rooms, and visits have `DRAIN_TIMEOUT` seconds to end by themselves.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        stop.set()
        if signals > 1:
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if settings.single_peer_connection == "auto":
        supported = await supports_single_peer_connection(settings.livekit_url)
        if supported is not None:
            # Job processes read it with the other settings.
            os.environ["SINGLE_PEER_CONNECTION"] = str(supported).lower()
    state = WorkerState(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(HealthServer(settings, state))
        server = build_server(settings, state)
        running = asyncio.create_task(server.run(devmode=devmode), name="agent server")
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if running.done():
            running.result()
            return 0
        state.draining = True
        if not devmode:
            try:
                await server.drain()
            except TimeoutError:
                log.warning("drain timed out, remaining visits are ended")
        await server.aclose()
        await running
    return 0

"""The composition root: one worker, its admission, its health, and the order in which all of it starts and stops."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog
from livekit import api
from livekit.agents import AgentServer, JobExecutorType, JobRequest
from livekit.agents.utils.aio import cancel_and_wait

from agent import process, room
from agent.admission import RateLimit
from agent.briefing.manager_api import ManagerApiClient
from agent.briefing.mem0_process import Mem0Process, open_memory, self_hosted
from agent.conversation.history import chat_deliverer, memory_deliverer
from agent.conversation.turn_taking import noise_cancellation
from agent.device.identity import identify_room
from agent.errors import IdentityError, SettingsError
from agent.health import HealthServer, WorkerState
from agent.library.watcher import CatalogueWatcher
from agent.livekit_server import supports_single_peer_connection
from agent.outbox.home import open_couriers
from agent.outbox.items import Deliverer
from agent.pool import PooledServer
from agent.rescue import watch_rooms
from agent.settings import Settings
from agent.state import private_dir
from agent.tasks import run_beside
from agent.telemetry.hub import MetricsHub
from agent.telemetry.worker_telemetry import open_hub, outbox_source
from agent.tidying import keep_tidy

log = structlog.get_logger(__name__)

DEVICE_BURST: Final = 6
"""Visits of one device that may follow each other at once: a toy on bad Wi-Fi, not one in a loop."""


def build_server(settings: Settings, state: WorkerState) -> AgentServer:
    """The framework's server with our processes, rooms and admission; not running yet."""
    # The framework's loop monitor wakes every process a hundred times a second, idle ones too.
    os.environ.setdefault("LIVEKIT_AGENTS_LOOP_BLOCK_WARN_MS", "0")
    server = PooledServer(
        state.pool,
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
        job_memory_warn_mb=settings.job_memory_warn_mb,
        job_memory_limit_mb=settings.job_memory_limit_mb,
        log_level=settings.log_level.replace("WARNING", "WARN"),  # its own spelling
    )
    state.attach(server)
    visits = RateLimit(per_minute=settings.device_joins_per_minute, burst=DEVICE_BURST)
    joins = RateLimit(per_minute=settings.joins_per_minute, burst=max(1, round(settings.joins_per_minute / 2)))

    async def on_request(request: JobRequest) -> None:
        try:
            device = identify_room(request.room.name)
        except IdentityError as error:
            state.refuse("identity")
            log.warning("room refused", reason=str(error), job_id=request.id)
            await request.reject(terminate=True)
            return
        if (obstacle := state.obstacle()) is not None:
            await elsewhere(request, *obstacle)
        elif not visits.take(device.mac):  # first: one device in a loop takes nothing of the others' rate
            # Another worker's pool is not to be eaten either. Whoever stays gets an agent after a while.
            state.refuse("device_rate")
            log.warning("room refused", reason="its device comes too often", job_id=request.id)
            await request.reject(terminate=True)
        elif not joins.take("worker"):
            await elsewhere(request, "rate", "too many rooms a minute")
        else:
            # Returns when a process has the job; raises when LiveKit assigns it to none in time, or none can be had.
            with state.accepting(request.id, request.room.name):
                await request.accept()

    async def elsewhere(request: JobRequest, why: str, reason: str) -> None:
        state.refuse(why)
        log.warning("room refused", reason=reason, job_id=request.id)
        await request.reject(terminate=False)

    server.rtc_session(
        room.entrypoint,
        agent_name=settings.agent_name,
        on_request=on_request,
        on_session_end=room.on_session_end,
    )
    return server


async def start_background(settings: Settings, stack: AsyncExitStack, hub: MetricsHub | None = None) -> None:
    """What the worker does for all rooms: deliver the outbox, tidy up, keep the library's copy true, run a Mem0."""
    remembers = settings.mem0_enabled.percent > 0
    if remembers and self_hosted(settings):
        mem0 = Mem0Process([sys.executable, "-m", "agent", "mem0"])
        stack.push_async_callback(mem0.aclose)
        mem0.start()
    deliverers: dict[str, Deliverer] = {}
    if settings.manager_api_url is not None:
        manager = ManagerApiClient(
            settings.manager_api_url, settings.manager_api_secret, deadline=settings.manager_api_deadline_ms / 1000
        )
        stack.push_async_callback(manager.aclose)
        deliverers["chat"] = chat_deliverer(manager.report_chat)
    if remembers:
        memory = open_memory(settings)
        stack.push_async_callback(memory.aclose)
        deliverers["memory"] = memory_deliverer(memory)
    couriers = open_couriers(settings, deliverers)
    for courier in couriers.values():
        stack.push_async_callback(courier.aclose)
        courier.start()
    if hub is not None:
        hub.sources.append(outbox_source({home: courier.stats for home, courier in couriers.items()}))
    run_beside(stack, keep_tidy(settings), "tidying")
    watcher = CatalogueWatcher(settings)
    run_beside(stack, watcher.run(), "catalogue watcher")
    stack.push_async_callback(watcher.aclose)


def require_state_dir(settings: Settings) -> None:
    """Make STATE_DIR. Raises SettingsError where it cannot be."""
    try:
        private_dir(settings.state_dir)
    except OSError as error:
        raise SettingsError(
            f"STATE_DIR: {settings.state_dir} cannot be made or owned: {error.strerror}. Example: STATE_DIR=.state"
        ) from None


async def serve(settings: Settings, *, devmode: bool = False) -> int:
    """Run until SIGTERM or SIGINT; a second signal ends at once. Returns the exit code.

    The first signal drains: no new rooms, and visits have `DRAIN_TIMEOUT` seconds to end by themselves. Raises
    SettingsError for a setting whose package is absent.
    """
    noise_cancellation(settings)  # its package is missed now rather than by the first child
    require_state_dir(settings)
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
    state.lacks = await asyncio.to_thread(process.lacks, settings)
    for part, remedy in state.lacks.items():
        log.error("rooms are served without a part", part=part, problem=remedy)
    async with AsyncExitStack() as stack:
        hub = await open_hub(stack, settings, roles=state.roles, show=state.show)
        await stack.enter_async_context(HealthServer(settings, state, hub))
        await start_background(settings, stack, hub)
        server = build_server(settings, state)
        running = asyncio.create_task(server.run(devmode=devmode), name="agent server")
        keeping = run_beside(stack, state.idle.run(), "idle processes")
        if settings.rescue_rooms:
            rescuer = await watch_rooms(
                stack, settings, serving=state.rooms, agents=state.agents, able=state.can_rescue
            )
            server.on("worker_registered", lambda *_: rescuer.wake())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if running.done():
            running.result()
            return 0
        state.draining = True
        if not devmode and settings.drain_timeout > 0:  # the framework takes 0 for no limit
            try:
                await server.drain()
            except TimeoutError:
                log.warning("drain timed out, remaining visits are ended")
        await cancel_and_wait(keeping)
        await server.aclose()
        await running
    return 0


async def serve_room(settings: Settings, name: str, identity: str | None) -> int:
    """Serve one room now, making it where it is not there, until its visit ends or a signal comes."""
    require_state_dir(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    single = settings.model_copy(update={"num_idle_processes": 1})
    async with AsyncExitStack() as stack:
        await start_background(single, stack)
        server = build_server(single, WorkerState(single))
        started = asyncio.Event()
        server.on("worker_started", started.set)
        running = asyncio.create_task(server.run(unregistered=True), name="agent server")
        try:
            await asyncio.wait_for(started.wait(), 60)
            keys = (settings.livekit_url, settings.livekit_api_key, settings.livekit_api_secret.get_secret_value())
            async with api.LiveKitAPI(*keys) as livekit:
                room_info = await livekit.room.create_room(api.CreateRoomRequest(name=name))
            await server.simulate_job(name, room_info=room_info, agent_identity=identity or f"agent-{name[:8]}")
            while server.active_jobs and not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.5)
        finally:
            await server.aclose()
            await running
    return 0

"""What tests of several parts share: LiveKit server, whole worlds, devices, and a look for what was left behind."""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import IO, Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from agent.library import model_files
from agent.redis_client import connect
from agent.settings import Settings
from sandbox.device import Device
from sandbox.livekit_server import LiveKitServer
from sandbox.processes import REPO, RUN_MARKER, marked_processes
from sandbox.redis_server import HOW_TO_GET as HOW_TO_GET_REDIS
from sandbox.redis_server import RedisServer, find_redis_server
from sandbox.world import World
from world_support import StartWorld

# How quick a machine is, is nobody's property.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Outside the tests' temporary folders, so that the 84 MB are fetched once; TEST_MODEL_DIR names another place.
MODELS = Path(os.environ.get("TEST_MODEL_DIR") or REPO / ".state" / "models")

# Worlds take a core each while they start: more at once than cores let each other's waits run out.
WORLDS_AT_ONCE = 2
PLACE_PATIENCE = 600.0


def _has_world(item: pytest.Item) -> bool:
    return "start_world" in getattr(item, "fixturenames", ()) or item.get_closest_marker("world") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a world of their own come evenly spread among the others, so that no process has only such left."""
    groups = [item for item in items if _has_world(item)], [item for item in items if not _has_world(item)]
    placed = [((number + 0.5) / len(group), item) for group in groups for number, item in enumerate(group)]
    items[:] = [item for _, item in sorted(placed, key=lambda one: one[0])]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test with a world of its own begins, and its time limit with it, when one of WORLDS_AT_ONCE places is free."""
    if not _has_world(item):
        return (yield)
    with ExitStack() as stack:
        places = [Path(tempfile.gettempdir()) / f"toy-tests-{os.getuid()}-{place}" for place in range(WORLDS_AT_ONCE)]
        files = [stack.enter_context(place.open("w")) for place in places]
        deadline = time.monotonic() + PLACE_PATIENCE
        # Nothing waits for either of two locks. Who holds one loses it at its time limit, or with its process.
        while not any(map(_taken, files)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return (yield)


def _taken(place: IO[str]) -> bool:
    try:
        fcntl.lockf(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[str]:
    """Every process that tests start is gone after the last of them. The value is this run's RUN_MARKER."""
    run = os.environ[RUN_MARKER] = uuid.uuid4().hex
    yield run
    left = [f"{process.pid}: {' '.join(process.cmdline())}" for process in marked_processes(run)]
    # Python's own, which ends with the process that asked for it: this one.
    left = [line for line in left if "multiprocessing.resource_tracker" not in line]
    assert not left, f"tests left processes behind: {left}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def livekit_server() -> AsyncIterator[LiveKitServer]:
    """A LiveKit server for all tests; each uses rooms of its own. Workers that take every room get their own world."""
    async with LiveKitServer() as server:
        yield server


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """MODEL_DIR with the real embedding model in it, fetched and built once and kept between runs."""
    model_files.ensure(Settings(_env_file=None, model_dir=MODELS))  # type: ignore[call-arg]
    return MODELS


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server for the session. Skips where none is installed."""
    if find_redis_server() is None:
        pytest.skip(HOW_TO_GET_REDIS)
    server = RedisServer()
    asyncio.run(server.start())
    yield server
    asyncio.run(server.aclose())


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """The session's Redis server, with nothing in it."""
    client = connect(redis_server.url, timeout=10)
    client.flushall()
    client.close()
    return redis_server


@pytest.fixture
async def start_world() -> AsyncIterator[StartWorld]:
    """Start worlds: a LiveKit server, a Manager API and a worker that nothing else uses."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> World:
            return await stack.enter_async_context(World(**options))

        yield start


@pytest.fixture
async def device_factory(livekit_server: LiveKitServer) -> AsyncIterator[Callable[..., Device]]:
    """Make devices on the shared LiveKit server; they leave after the test."""
    async with AsyncExitStack() as stack:

        def make(**options: Any) -> Device:
            device = Device(livekit_server, **options)
            stack.push_async_callback(device.leave)
            return device

        yield make

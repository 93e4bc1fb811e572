"""A worker that is told to end: its visits go on until they end, new rooms go elsewhere, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from livekit import api

from sandbox.device import Device
from sandbox.livekit_server import LiveKitServer
from sandbox.manager_api import DEMO_MAC, ManagerApi
from sandbox.manager_api import Device as Registered
from sandbox.processes import REPO, WorkerProcess
from sandbox.providers import ProviderServer
from sandbox.world import World
from world_support import AGAIN, ANSWERS, HELLO, StartWorld, greeted, small_talk
from world_support import talk as speak_and_hear

pytestmark = pytest.mark.timeout(280)

GOODBYE = "Goodbye! See you soon."


@pytest.fixture
async def providers() -> AsyncIterator[ProviderServer]:
    async with small_talk() as server:
        yield server


def settings(providers: ProviderServer) -> dict[str, str]:
    return {"STT_BASE_URL": providers.v1, "LLM_BASE_URL": providers.v1, "TTS_BASE_URL": providers.v1}


async def arrived(device: Device) -> None:
    await device.join()
    await greeted(device)


async def at_once(talks: Iterable[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*talks)


async def rooms(world: World) -> list[api.Room]:
    async with world.server.client() as livekit:
        return list((await livekit.room.list_rooms(api.ListRoomsRequest())).rooms)


class Fleet:
    """Workers on one LiveKit server and one Manager API, each with a disk of its own."""

    def __init__(self, server: LiveKitServer, manager: ManagerApi, folder: Path, env: dict[str, str]) -> None:
        self.server, self.manager, self.folder, self.env = server, manager, folder, env
        self._stack = AsyncExitStack()

    async def start(self, name: str) -> WorkerProcess:
        """A worker that is ready, on the disk of this name."""
        state = self.folder / name
        state.mkdir(exist_ok=True)
        env: dict[str, str | None] = {
            **self.server.environment,
            **self.env,
            "STATE_DIR": str(state),
            "GREETINGS_DIR": str(REPO / "greetings"),
            "NUM_IDLE_PROCESSES": "2",
            "MANAGER_API_URL": self.manager.url,
            "MANAGER_API_SECRET": self.manager.secret,
        }
        worker = WorkerProcess(env, cwd=state, name=f"worker {name}")
        await self._stack.enter_async_context(worker)
        await worker.wait_until_ready(warm=2)
        return worker

    async def of(self, worker: WorkerProcess, devices: Sequence[Device]) -> list[Device]:
        """The devices whose visit is this worker's, by the jobs it was given."""
        mine = {str(line.fields["job_id"]) for line in worker.events("received job request")}
        found = []
        for device in devices:
            people = await self.server.participants(device.room_name)
            if any(person.identity.removeprefix("agent-") in mine for person in people):
                found.append(device)
        return found

    async def aclose(self) -> None:
        await self._stack.aclose()


@pytest.mark.world
async def test_a_rolling_restart_loses_no_visit_and_no_line(tmp_path: Path, providers: ProviderServer) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(LiveKitServer())
        devices = [Device(server) for _ in range(6)]
        manager = await stack.enter_async_context(ManagerApi(devices={device.mac: Registered() for device in devices}))
        fleet = Fleet(server, manager, tmp_path, settings(providers))
        stack.push_async_callback(fleet.aclose)
        for device in devices:
            stack.push_async_callback(device.leave)
        said: dict[str, list[str]] = {device.mac: [] for device in devices}

        async def talk(device: Device, words: str) -> None:
            said[device.mac].append(words)
            await speak_and_hear(device, words)

        workers = {name: await fleet.start(name) for name in ("a", "b")}
        there = devices[:4]
        await at_once(arrived(device) for device in there)
        await at_once(talk(device, HELLO) for device in there)
        for name, late in (("a", devices[4]), ("b", devices[5])):
            worker = workers[name]
            mine = await fleet.of(worker, there)
            worker.send_signal(signal.SIGTERM)
            await worker.wait_for_line(lambda line: line.event == "draining worker", timeout=30)
            assert (await worker.health("/ready"))[0] == 503
            await arrived(late)
            assert not await fleet.of(worker, [late]), "a new room goes to the other worker"
            there = [*there, late]
            await at_once(talk(device, AGAIN) for device in there)
            assert mine == await fleet.of(worker, there), "its visits have gone on"
            for device in mine:
                await device.leave()
            there = [device for device in there if device not in mine]
            assert await worker.wait(timeout=60) == 0
            workers[name] = await fleet.start(name)
        for device in there:
            await device.leave()
        expected = sum(1 + 2 * len(words) for words in said.values())
        await workers["b"].wait_until(lambda: len(manager.reports) >= expected, timeout=60, what="every chat line")
        for device in devices:
            lines = [line["content"] for line in manager.reports if line["macAddress"] == device.mac]
            assert lines[1:] == [text for words in said[device.mac] for text in (words, ANSWERS[words])]
            assert device.audio_tracks == 1
        assert set(Counter(line["idempotencyKey"] for line in manager.reports).values()) == {1}


@pytest.mark.parametrize("drain", [1, 0], ids=["after_its_time", "no_drain"])
async def test_a_visit_that_outlasts_the_drain_hears_goodbye_and_is_kept(
    start_world: StartWorld, providers: ProviderServer, drain: int
) -> None:
    world = await start_world(env={**settings(providers), "DRAIN_TIMEOUT": str(drain)})
    device = world.device(mac=DEMO_MAC)
    await arrived(device)
    await speak_and_hear(device, HELLO)
    before = len(device.messages)
    world.worker.send_signal(signal.SIGTERM)
    goodbye = await device.wait_for_message("speech_created", after=before, timeout=60)
    assert goodbye.data["text"] == GOODBYE
    await device.wait_for_state("speaking", after=before, timeout=30)
    assert await world.worker.wait(timeout=60) == 0
    assert bool(world.worker.events("drain timed out, remaining visits are ended")) == bool(drain)
    assert world.worker.events("visit ended")
    assert device.room_name not in [room.name for room in await rooms(world)], "the device hangs up with its room"
    assert world.manager is not None
    reports = world.manager.reports
    async with WorkerProcess(world._environment(), cwd=world.folder) as second:
        await second.wait_until(lambda: len(reports) >= 4, timeout=60, what="every chat line")
    assert [line["content"] for line in reports][1:] == [HELLO, ANSWERS[HELLO], GOODBYE]

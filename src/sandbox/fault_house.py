"""Everything a worker talks to, each behind a proxy of its own, and the worker itself, which may be killed."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp
import psutil

from agent.briefing.memory import user_id
from agent.library import catalogue
from agent.settings import Settings
from agent.values import DeviceMac
from sandbox.livekit_server import LiveKitServer
from sandbox.manager_api import MODELS, EveryDevice, ManagerApi
from sandbox.manager_api import Device as KnownDevice
from sandbox.media_server import MediaServer
from sandbox.processes import REPO, ManagedProcess, WorkerProcess, group_members
from sandbox.providers import ProviderServer
from sandbox.qdrant_server import QdrantServer
from sandbox.redis_server import RedisServer
from sandbox.replies import Rules
from sandbox.staged import Staged
from sandbox.toxiproxy import Proxy, Toxiproxy

T = TypeVar("T")

IDLE = 2
SAMPLE = REPO / "sample"
SENTENCE = "hello there little friend"
REPLY = "Hello my friend, how nice."
SHIFTED_CLOCK = Path(__file__).with_name("shifted_clock")
CHILD_LINE, AGENT_LINE = 1, 2
ORPHANS_S = 40.0


@dataclass
class Owed:
    """What one visit has said: it must arrive at the Manager API and, the child's words, in the memory."""

    room: str
    mac: str
    child: int = 0
    agent: int = 0


@dataclass(frozen=True)
class Account:
    """Owed and not arrived; arrived more than once under one key (which a receiver recognises); more than was said."""

    lost_lines: int
    lost_memories: int
    repeated: int
    doubled: int


@dataclass
class House(Staged):
    """As an async context manager; the worker is ready when the block begins.

    `proxies` by service: manager, llm, stt, tts, elevenlabs, mem0, media, qdrant, redis (only with
    `with_redis`), livekit (the worker's own way) and signalling (the devices'). `clock` lets
    the worker's wall clock be set; `disk_mb` puts STATE_DIR on a file system of its own of that size.
    """

    with_redis: bool = False
    clock: bool = False
    disk_mb: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    owed: list[Owed] = field(default_factory=list)
    baseline: int = 0
    killed: list[ManagedProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stack = AsyncExitStack()
        self.server = LiveKitServer()
        self.manager = ManagerApi()
        self.manager.devices = EveryDevice(self.manager.devices)
        self.providers = ProviderServer(script=Rules(otherwise=REPLY), answers=[SENTENCE])
        self.providers.mem0.key_field = "outbox_key"
        self.media = MediaServer(SAMPLE)
        self.qdrant = QdrantServer()
        self.redis: RedisServer
        self.toxiproxy = Toxiproxy()
        self._workers: list[WorkerProcess] = []
        self.worker: WorkerProcess
        self.folder: Path

    async def _start(self) -> None:
        enter = self._stack.enter_async_context
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="toy-faults-")))
        self.state = self.folder / "state"
        self.state.mkdir()
        await enter(self.server)
        for stand_in in (self.manager, self.providers, self.media, self.toxiproxy):
            await enter(stand_in)
        self._stack.enter_context(self.qdrant.serving())
        self._stack.callback(self.qdrant.close)
        upstreams = {
            "manager": self.manager.url,
            **dict.fromkeys(("llm", "stt", "tts", "elevenlabs", "mem0"), self.providers.url),
            "media": self.media.url,
            "qdrant": self.qdrant.url,
            "livekit": self.server.url,
            "signalling": self.server.url,
        }
        if self.with_redis:
            self.redis = await enter(RedisServer())
            upstreams["redis"] = self.redis.url
        for name, url in upstreams.items():
            self.proxies[name] = await self.toxiproxy.proxy(name, url)
        self.set_clock(0)
        await asyncio.to_thread(self._load_catalogue)
        self._stack.push_async_callback(self._stop_workers)
        await self.start_worker()
        self.baseline = len(self._descendants())

    def _load_catalogue(self) -> None:
        settings = Settings(_env_file=None, state_dir=self.folder / "loading", qdrant_url=self.qdrant.url)  # type: ignore[call-arg]
        models = REPO / ".state" / "models"
        if models.is_dir():
            settings = settings.model_copy(update={"model_dir": models})
        if catalogue.run(["load", str(SAMPLE)], settings):
            raise RuntimeError("the sample catalogue could not be loaded")

    # The worker

    async def start_worker(self) -> None:
        """Start a worker, in place of one that was killed, and wait until it is ready."""
        env = self._environment()
        command = None
        if self.disk_mb:
            # In a mount namespace of its own, for which nobody needs to be root, and of which nothing stays.
            mount = f'mount -t tmpfs -o size={self.disk_mb}m tmpfs "$STATE_DIR" && exec "$0" -m agent start'
            command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, sys.executable]
        if self.clock:
            env |= {"PYTHONPATH": str(SHIFTED_CLOCK), "SHIFTED_CLOCK": str(self.folder / "clock")}
        self.worker = WorkerProcess(env, cwd=self.folder, command=command)
        self._workers.append(self.worker)
        self.worker.start()
        await self.worker.wait_until_ready(warm=IDLE, timeout=90)

    def _environment(self) -> dict[str, str]:
        def through(name: str, url: str) -> str:
            return self.proxies[name].instead_of(url)

        models = REPO / ".state" / "models"
        env = {
            **self.server.environment,
            "LIVEKIT_URL": through("livekit", self.server.url),
            "STATE_DIR": str(self.state),
            "GREETINGS_DIR": str(REPO / "greetings"),
            "NUM_IDLE_PROCESSES": str(IDLE),
            "CATALOGUE_DIR": str(SAMPLE),
            "MANAGER_API_URL": through("manager", self.manager.url),
            "MANAGER_API_SECRET": self.manager.secret or "",
            "LLM_BASE_URL": through("llm", self.providers.v1),
            "STT_BASE_URL": through("stt", self.providers.v1),
            "TTS_BASE_URL": through("tts", self.providers.v1),
            "ELEVENLABS_BASE_URL": through("elevenlabs", self.providers.v1),
            "ELEVENLABS_API_KEY": "sandbox",
            "MEM0_ENABLED": "true",
            "MEM0_HOST": through("mem0", self.providers.url),
            "MEM0_API_KEY": "sandbox",
            "MEDIA_BASE_URL": through("media", self.media.url),
            "QDRANT_URL": through("qdrant", self.qdrant.url),
            **({"MODEL_DIR": str(models)} if models.is_dir() else {}),
            **self.env,
        }
        if self.with_redis:
            env["REDIS_URL"] = through("redis", self.redis.url)
        return env

    async def start_worker_if_gone(self) -> None:
        """After a round that failed: the next one finds a worker."""
        if self.worker.returncode is not None:
            self.killed.append(self.worker)
            await self.start_worker()

    def write_logs(self, path: Path) -> None:
        """What the workers have written, the killed ones' too."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.text for worker in self._workers for line in worker.lines))

    async def settle(self, *, timeout: float = 90.0) -> None:
        """Wait until the worker is ready and its pool warm. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while True:
                try:
                    status, text = await self.worker.health("/ready")
                    if status == 200 and json.loads(text)["warm_processes"] >= IDLE:
                        return
                except (aiohttp.ClientError, TimeoutError):
                    pass  # it is only just starting, or does not answer: that is what is waited for
                await asyncio.sleep(0.1)

    async def kill_visit(self, since: float) -> None:
        """SIGKILL to the job process of the visit that has begun since this monotonic time."""
        line = await self.worker.wait_for_line(
            lambda line: line.event == "greeting finished" and line.at > since, timeout=30, what="the visit's process"
        )
        os.kill(int(line.fields["pid"]), signal.SIGKILL)

    async def visit_ended(self, since: float) -> None:
        """Wait until the visit that has begun since this monotonic time has closed everything. Raises ProcessFailed."""
        await self.worker.wait_for_line(
            lambda line: line.event == "visit ended" and line.at > since, timeout=60, what="the visit's end"
        )

    async def kill_worker(self) -> None:
        """SIGKILL to the worker's main process alone; its children are left to find out."""
        self.worker.send_signal(signal.SIGKILL)
        await self.worker.wait(timeout=10)
        self.killed.append(self.worker)

    async def restart_server(self) -> None:
        """SIGKILL to LiveKit's server, and a new one on its ports. Returns once the worker has registered there."""
        registrations = len(self.worker.events("registered worker"))
        await self.server.restart()
        await self.worker.wait_until(
            lambda: len(self.worker.events("registered worker")) > registrations, timeout=90, what="registration"
        )

    def worker_up(self) -> bool:
        """Whether a worker lives, has registered, and LiveKit can be reached from it."""
        cut_off = any(toxic.kind in ("timeout", "reset_peer") for toxic in self.proxies["livekit"].toxics.values())
        return self.worker.returncode is None and bool(self.worker.events("registered worker")) and not cut_off

    async def orphans(self) -> int:
        """How many processes of killed workers still live ORPHANS_S after; they are ended then."""
        left = await _until_none(lambda: [p for old in self.killed for p in group_members(old.pid)], ORPHANS_S)
        for old in self.killed:
            await old.stop()
        self.killed.clear()
        return len(left)

    async def surplus(self) -> int:
        """How many processes more than at the start the idle worker has, at the best of twenty seconds."""
        more = await _until_none(lambda: self._descendants()[self.baseline :], 20.0)
        return len(more)

    def _descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.worker.pid).children(recursive=True)

    async def _stop_workers(self) -> None:
        for worker in self._workers:
            await worker.stop()

    # What is done to it

    def set_clock(self, seconds: int) -> None:
        """The worker's wall clock from now on, relative to everybody else's; only with `clock`."""
        draft = self.folder / "clock.draft"
        draft.write_text(f"{seconds:+d}\n")
        draft.replace(self.folder / "clock")

    def fill_disk(self) -> None:
        """Until nothing more fits; blocking."""
        path = self._inside("ballast")
        with path.open("wb", buffering=0) as ballast:
            for size in (2**20, 2**12, 2**9, 1):
                try:
                    while True:
                        ballast.write(bytes(size))
                except OSError:
                    continue

    def free_disk(self) -> None:
        """Room again; blocking."""
        self._inside("ballast").unlink(missing_ok=True)

    def _inside(self, name: str) -> Path:
        return Path(f"/proc/{self.worker.pid}/root{self.state}") / name

    def remote_server(self) -> LiveKitServer:
        """The server as devices reach it through `signalling`."""
        server = copy.copy(self.server)
        server.port = self.proxies["signalling"].port
        return server

    def speak_with_elevenlabs(self, mac: str) -> None:
        """Give this device a voice of ElevenLabs'."""
        voice = {"type": "elevenlabs", "voice_id": "voice1"}
        models = {**MODELS, "selected_module": {"TTS": "TTS_eleven"}, "TTS": {"TTS_eleven": voice}}
        self.manager.devices[DeviceMac(mac)] = KnownDevice(models=models)

    # What must have arrived

    def account(self, visits: list[Owed]) -> Account:
        """What has become of what these visits said, as of now."""
        lost_lines = lost_memories = repeated = doubled = 0
        for visit in visits:
            lines = [line for line in self.manager.reports if line["sessionId"] == visit.room]
            keys = {line["idempotencyKey"]: line["chatType"] for line in lines}
            repeated += len(lines) - len(keys)
            for kind, said in ((CHILD_LINE, visit.child), (AGENT_LINE, visit.agent)):
                arrived = sum(each == kind for each in keys.values())
                lost_lines += max(0, said - arrived)
                doubled += max(0, arrived - said) if kind == CHILD_LINE else 0
            user = user_id(DeviceMac(visit.mac))
            remembered = sum(m.user_id == user and m.memory == SENTENCE for m in self.providers.mem0.memories)
            lost_memories += max(0, visit.child - remembered)
        return Account(lost_lines, lost_memories, repeated, doubled)

    async def all_arrived(self, visits: list[Owed], *, timeout: float) -> Account:
        """The account once nothing is lost, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            account = self.account(visits)
            if not (account.lost_lines or account.lost_memories) or time.monotonic() > deadline:
                return account
            await asyncio.sleep(0.5)

    async def leaked_rooms(self, *, timeout: float = 60.0) -> list[str]:
        """Rooms that are still there `timeout` seconds after the last device has left."""
        deadline = time.monotonic() + timeout
        while True:
            rooms = await self.server.rooms()
            if not rooms or time.monotonic() > deadline:
                return rooms
            await asyncio.sleep(0.5)


async def _until_none(look: Callable[[], list[T]], timeout: float) -> list[T]:
    """What is still found after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.3)

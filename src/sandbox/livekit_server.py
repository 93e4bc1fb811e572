"""The LiveKit server, on loopback: found or installed, started, asked, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from livekit import api

from sandbox.go_programs import TOOLS, GoProgram, find_or_install, find_program, print_path, tell
from sandbox.processes import ManagedProcess, ProcessFailed, free_port, plain_environment

PROGRAM = GoProgram(
    "livekit-server",
    title="LiveKit server",
    module="github.com/livekit/livekit-server/cmd/server@v1.8.4",
    variable="LIVEKIT_SERVER_BIN",
    how_to_get="Install LiveKit's server from https://docs.livekit.io/home/self-hosting/local/ so that "
    "`livekit-server` is on PATH, or name it with LIVEKIT_SERVER_BIN.",
)


def find_livekit_server(tools: Path = TOOLS, environ: Mapping[str, str] = os.environ) -> Path | None:
    """As `find_program` says."""
    return find_program(PROGRAM, tools, environ)


def find_or_install_livekit_server(
    tools: Path = TOOLS, environ: Mapping[str, str] = os.environ, say: Callable[[str], None] = tell
) -> Path:
    """As `find_or_install` says."""
    return find_or_install(PROGRAM, tools, environ, say)


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
                    await self.process.wait(timeout=1)
                    raise ProcessFailed(f"The LiveKit server ended at once:\n{self.process.tail()}")
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with http.get(f"http://127.0.0.1:{self.port}/") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.02)
        raise ProcessFailed(f"The LiveKit server does not answer after {timeout:g} s:\n{self.process.tail()}")

    async def restart(self, *, timeout: float = 20.0) -> None:
        """End it as a crash does, and start it again on the same ports, remembering nothing. Raises ProcessFailed."""
        if self.process is None:
            raise ProcessFailed("the LiveKit server has not been started")
        await self.process.stop(grace=0)
        self.process.start()
        await self._wait_until_it_answers(timeout)

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


if __name__ == "__main__":
    sys.exit(print_path(PROGRAM))

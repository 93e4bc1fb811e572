"""A bad network between the worker and a service: Shopify's toxiproxy, found or built, started, told what to do."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
from yarl import URL

from sandbox.go_programs import GoProgram, find_or_install, print_path
from sandbox.processes import ManagedProcess, ProcessFailed, free_port, plain_environment

PROGRAM = GoProgram(
    "toxiproxy-server",
    title="toxiproxy server",
    module="github.com/Shopify/toxiproxy/v2/cmd/server@v2.12.0",
    variable="TOXIPROXY_SERVER_BIN",
    how_to_get="Install it from https://github.com/Shopify/toxiproxy/releases so that `toxiproxy-server` is on PATH, "
    "or name it with TOXIPROXY_SERVER_BIN.",
)
HOST = "127.0.0.1"

Kind = Literal["latency", "bandwidth", "slow_close", "timeout", "reset_peer", "slicer", "limit_data"]


class ToxiproxyRefused(RuntimeError):
    """Toxiproxy did not do what it was asked; the message is its own."""


@dataclass(frozen=True)
class Toxic:
    """One harm. `attributes` are toxiproxy's: milliseconds, kilobytes a second, bytes.

    `upstream` False: it strikes what the service answers; True: what the service is sent. New connections and those
    that are open suffer alike.
    """

    kind: Kind
    attributes: Mapping[str, int] = field(default_factory=dict)
    upstream: bool = False


class Proxy:
    """One port in front of one service."""

    def __init__(self, server: Toxiproxy, name: str, port: int, upstream: str) -> None:
        self._server = server
        self.name = name
        self.port = port
        self.upstream = upstream
        self.toxics: dict[str, Toxic] = {}

    @property
    def address(self) -> str:
        """Host and port that stand for the service's own."""
        return f"{HOST}:{self.port}"

    def instead_of(self, url: str) -> str:
        """The service's URL with this proxy as its host and port."""
        return str(URL(url).with_host(HOST).with_port(self.port)).rstrip("/")

    async def strike(self, *toxics: Toxic) -> None:
        """Add these to what it suffers already. Raises ToxiproxyRefused."""
        for toxic in toxics:
            name = f"{toxic.kind}-{'up' if toxic.upstream else 'down'}-{len(self.toxics)}"
            body = {
                "name": name,
                "type": toxic.kind,
                "stream": "upstream" if toxic.upstream else "downstream",
                "toxicity": 1.0,
                "attributes": dict(toxic.attributes),
            }
            await self._server.ask("POST", f"/proxies/{self.name}/toxics", body)
            self.toxics[name] = toxic

    async def enable(self, enabled: bool) -> None:
        """False: cut what is open and refuse connections until True. Raises ToxiproxyRefused."""
        await self._server.ask("POST", f"/proxies/{self.name}", {"enabled": enabled})

    async def heal(self) -> None:
        """Remove every toxic and accept connections; those that a toxic held are cut. Raises ToxiproxyRefused."""
        for name in list(self.toxics):
            await self._server.ask("DELETE", f"/proxies/{self.name}/toxics/{name}")
            del self.toxics[name]
        await self.enable(True)


class Toxiproxy:
    """The server on a free port of 127.0.0.1, as an async context manager; its proxies end with it."""

    def __init__(self, binary: Path | None = None) -> None:
        self.binary = binary
        self.port = 0
        self.proxies: dict[str, Proxy] = {}
        self._process: ManagedProcess | None = None
        self._http: aiohttp.ClientSession | None = None

    async def proxy(self, name: str, upstream: str) -> Proxy:
        """A port that leads to `upstream`: a URL, or host and port. Raises ToxiproxyRefused, as for a name in use."""
        target = URL(upstream) if "://" in upstream else URL(f"tcp://{upstream}")
        if target.host is None or target.port is None:
            raise ValueError(f"{upstream} names no host and port")
        body = {"name": name, "listen": f"{HOST}:0", "upstream": f"{target.host}:{target.port}", "enabled": True}
        answer = await self.ask("POST", "/proxies", body)
        port = int(str(answer["listen"]).rpartition(":")[2])
        proxy = self.proxies[name] = Proxy(self, name, port, str(answer["upstream"]))
        return proxy

    async def heal(self) -> None:
        """End every harm. Raises ToxiproxyRefused."""
        for proxy in self.proxies.values():
            await proxy.heal()

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call of toxiproxy's HTTP API. Raises ToxiproxyRefused, and aiohttp's errors where it is gone."""
        if self._http is None:
            raise ToxiproxyRefused("toxiproxy has not been started")
        async with self._http.request(method, path, json=body) as answer:
            found = await answer.json(content_type=None) if answer.status != 204 else {}
            if answer.status >= 400:
                raise ToxiproxyRefused(str((found or {}).get("error") or f"HTTP {answer.status}"))
            return found if isinstance(found, dict) else {}

    async def __aenter__(self) -> Self:
        binary = self.binary or await asyncio.to_thread(find_or_install, PROGRAM)
        for attempt in range(3):
            self.port = free_port()
            command = [str(binary), "-host", HOST, "-port", str(self.port)]
            self._process = ManagedProcess("toxiproxy", command, env=plain_environment({"LOG_LEVEL": "warn"}))
            self._process.start()
            self._http = aiohttp.ClientSession(f"http://{HOST}:{self.port}", timeout=aiohttp.ClientTimeout(total=10))
            try:
                await self._until_it_answers(20.0)
            except BaseException as error:  # a cancelled start must not leave the server behind either
                await self._close()
                # Another program may have taken the port between the look and the start.
                if isinstance(error, ProcessFailed) and "address already in use" in str(error) and attempt < 2:
                    continue
                raise
            break
        return self

    async def _until_it_answers(self, timeout: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.returncode is not None:
                raise ProcessFailed(f"toxiproxy ended at once:\n{self._process.tail()}")
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await self.ask("GET", "/version")
                return
            await asyncio.sleep(0.02)
        raise ProcessFailed(f"toxiproxy does not answer after {timeout:g} s:\n{self._process.tail()}")

    async def _close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None
        if self._process is not None:
            await self._process.stop()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()
        self.proxies.clear()


if __name__ == "__main__":
    sys.exit(print_path(PROGRAM))

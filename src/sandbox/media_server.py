"""A media server as far away and as bad as wished. Alone: `python -m sandbox.media_server DIR --port N`."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import mimetypes
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from aiohttp import web

from sandbox.faults import Behaviour, Cut, Fate, swallow_cut

HOST = "127.0.0.1"
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: the decoded path, the `Range` header, the status answered."""

    path: str
    range: str | None
    status: int


class MediaServer:
    """Files by path, from `files` or below `root`, on a port of 127.0.0.1.

    `latency` is the round trip in seconds: a new connection costs one, each request another. `bandwidth` in bit/s is
    shared by all connections. Faults of single requests are `behaviour`'s; the others:
    `ignore_range` answers 200 with the whole file; `cut_at` closes the connection ahead of that byte of the file,
    `cuts` times; `redirects` sends a path elsewhere; `endless` paths repeat their bytes for ever without a length;
    `unsized` answers without a length; `redirect_to_self` never stops redirecting.
    """

    def __init__(self, root: Path | None = None, *, latency: float = 0.0, bandwidth: float | None = None) -> None:
        self.root = root
        self.files: dict[str, bytes] = {}
        self.latency = latency
        self.bandwidth = bandwidth
        self.behaviour = Behaviour()
        self.ignore_range = False
        self.unsized = False
        self.cut_at: int | None = None
        self.cuts = 0
        self.redirects: dict[str, str] = {}
        self.endless: set[str] = set()
        self.asked: list[Asked] = []
        self.sent = 0
        self.port = 0
        self._known: set[object] = set()
        self._link_free = 0.0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        server = self._runner.server if self._runner is not None else None
        return sum(1 for connection in server.connections if connection.transport) if server is not None else 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int | None = None) -> None:
        """Listen; after `stop`, on the same port again."""
        app = web.Application(middlewares=[swallow_cut])
        app.router.add_get("/{path:.*}", self._get)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port if port is None else port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        server = runner.server
        for connection in list(server.connections) if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = unquote(request.raw_path.split("?")[0])
        fate = self.behaviour.take()
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        new = peer not in self._known
        self._known.add(peer)
        await asyncio.sleep(self.latency * (2 if new else 1))
        await fate.before_answer(request)
        if fate.nonsense:
            return self._answered(path, request, web.Response(text="<html>Please log in to the network</html>"))
        if path in self.redirects:
            return self._answered(path, request, web.Response(status=302, headers={"Location": self.redirects[path]}))
        data = await self._load(path)
        if data is None:
            return self._answered(path, request, web.Response(status=404, text="not found"))
        if path in self.endless:
            return await self._send(request, path, fate, itertools.repeat(data), 0, web.StreamResponse())
        wanted = None if self.ignore_range else request.http_range
        start = (wanted.start or 0) if wanted is not None else 0
        if start < 0:
            start += len(data)
        stop = min(wanted.stop, len(data)) if wanted is not None and wanted.stop is not None else len(data)
        if start >= len(data) > 0:
            headers = {"Content-Range": f"bytes */{len(data)}"}
            return self._answered(path, request, web.Response(status=416, headers=headers))
        partial = wanted is not None and "Range" in request.headers
        response = web.StreamResponse(status=206 if partial else 200)
        response.content_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        if partial:
            total = "*" if self.unsized else str(len(data))
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
        if not self.unsized:
            response.content_length = stop - start
        response.headers["ETag"] = f'"{len(data):x}-{hash(data) & 0xFFFFFFFF:x}"'
        return await self._send(request, path, fate, iter([data[start:stop]]), start, response)

    async def _load(self, path: str) -> bytes | None:
        if path in self.files:
            return self.files[path]
        if self.root is None:
            return None
        root = self.root.resolve()
        file = (root / path.lstrip("/")).resolve()
        if not file.is_relative_to(root) or not file.is_file():
            return None
        return await asyncio.to_thread(file.read_bytes)

    async def _send(
        self,
        request: web.Request,
        path: str,
        fate: Fate,
        parts: Iterator[bytes],
        position: int,
        response: web.StreamResponse,
    ) -> web.StreamResponse:
        self._answered(path, request, response)
        await response.prepare(request)
        for part in parts:
            for at in range(0, len(part), _CHUNK):
                chunk = part[at : at + _CHUNK]
                await fate.before_chunk(lambda: _abort(request), lambda: _close(request))
                if self.cuts and self.cut_at is not None and position <= self.cut_at < position + len(chunk):
                    self.cuts -= 1
                    await response.write(chunk[: self.cut_at - position])
                    _close(request)
                    raise Cut
                await self._pace(len(chunk))
                try:
                    await response.write(chunk)
                except ConnectionError:
                    raise Cut from None  # the client has had enough
                self.sent += len(chunk)
                position += len(chunk)
        await response.write_eof()
        return response

    async def _pace(self, count: int) -> None:
        """Wait until the shared link has carried `count` bytes more."""
        if self.bandwidth is None:
            return
        loop = asyncio.get_running_loop()
        self._link_free = max(self._link_free, loop.time()) + count * 8 / self.bandwidth
        await asyncio.sleep(self._link_free - loop.time())

    def _answered(self, path: str, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        self.asked.append(Asked(path, request.headers.get("Range"), response.status))
        return response


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


async def _serve(options: argparse.Namespace) -> None:
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    server = MediaServer(options.root, latency=options.latency, bandwidth=options.bandwidth)
    await server.start(options.port)
    print(f"media server on {server.url}", flush=True)
    await ended.wait()
    await server.stop()


def main() -> None:
    """Serve a catalogue tree until SIGTERM."""
    parser = argparse.ArgumentParser(description="A media server with latency and limited bandwidth.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="round trip in seconds")
    parser.add_argument("--bandwidth", type=float, default=None, help="bit/s, shared by all")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()

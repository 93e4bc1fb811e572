"""Toxiproxy in front of a real server: every harm is felt by a real client, and ends when it is healed."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from sandbox.go_programs import GoProgram, ServerMissing, find_or_install, find_program
from sandbox.processes import ManagedProcess
from sandbox.toxiproxy import PROGRAM, Proxy, Toxic, Toxiproxy, ToxiproxyRefused

pytestmark = pytest.mark.timeout(280)

BODY = b"x" * 20_000
PATIENCE = aiohttp.ClientTimeout(total=30)
IMPATIENCE = aiohttp.ClientTimeout(total=0.5)


class Service:
    """Answers BODY to everybody."""

    def __init__(self) -> None:
        self.port = 0
        self.requests = 0

    async def answer(self, _request: web.Request) -> web.Response:
        self.requests += 1
        return web.Response(body=BODY)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    app = web.Application()
    app.router.add_get("/{path:.*}", service.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.port = runner.addresses[0][1]
    yield service
    await runner.cleanup()


@pytest.fixture
async def toxiproxy() -> AsyncIterator[Toxiproxy]:
    async with Toxiproxy() as server:
        yield server


@pytest.fixture
async def proxy(toxiproxy: Toxiproxy, service: Service) -> Proxy:
    return await toxiproxy.proxy("service", service.url)


async def read(proxy: Proxy, timeout: aiohttp.ClientTimeout = PATIENCE) -> bytes:
    connector = aiohttp.TCPConnector(force_close=True)
    url = proxy.instead_of("http://service:1/v1/thing")
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http, http.get(url) as answer:
        return await answer.read()


async def test_a_healthy_proxy_carries_everything(proxy: Proxy, service: Service) -> None:
    assert proxy.instead_of(service.url) == f"http://127.0.0.1:{proxy.port}/v1"
    assert await read(proxy) == BODY


async def test_a_black_hole_swallows_the_request_until_it_is_healed(proxy: Proxy, service: Service) -> None:
    await proxy.strike(Toxic("timeout", {"timeout": 0}), Toxic("timeout", {"timeout": 0}, upstream=True))
    with pytest.raises(TimeoutError):
        await read(proxy, IMPATIENCE)
    assert service.requests == 0
    await proxy.heal()
    assert await read(proxy) == BODY


async def test_an_open_connection_suffers_too(proxy: Proxy) -> None:
    async with aiohttp.ClientSession(timeout=PATIENCE) as http:
        url = proxy.instead_of("http://service:1/")
        async with http.get(url) as answer:
            assert await answer.read() == BODY
        await proxy.strike(Toxic("reset_peer", {"timeout": 0}))
        with pytest.raises(aiohttp.ClientError):
            async with http.get(url) as answer:
                await answer.read()
        await proxy.heal()
        async with http.get(url) as answer:
            assert await answer.read() == BODY


async def test_slowness_is_felt(proxy: Proxy) -> None:
    for toxic in (Toxic("latency", {"latency": 5000, "jitter": 500}), Toxic("bandwidth", {"rate": 1})):
        await proxy.strike(toxic)
        with pytest.raises(TimeoutError):
            await read(proxy, IMPATIENCE)
        await proxy.heal()
        assert await read(proxy) == BODY


async def test_a_slow_close_keeps_the_client_waiting_for_the_end(proxy: Proxy) -> None:
    async def to_the_end() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n")
            return await reader.read(-1)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    assert (await to_the_end()).endswith(BODY)
    await proxy.strike(Toxic("slow_close", {"delay": 60_000}))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(to_the_end(), 0.5)


async def test_a_disabled_proxy_refuses_and_all_are_healed_at_once(toxiproxy: Toxiproxy, service: Service) -> None:
    first, second = [await toxiproxy.proxy(name, service.url) for name in ("first", "second")]
    await first.enable(False)
    await second.strike(Toxic("reset_peer", {"timeout": 0}))
    with pytest.raises(aiohttp.ClientConnectorError):
        await read(first)
    with pytest.raises(aiohttp.ClientError):
        await read(second)
    await toxiproxy.heal()
    assert [await read(first), await read(second)] == [BODY, BODY]


async def test_what_it_refuses_is_told(toxiproxy: Toxiproxy, proxy: Proxy, service: Service) -> None:
    with pytest.raises(ToxiproxyRefused, match="already exists"):
        await toxiproxy.proxy(proxy.name, service.url)
    with pytest.raises(ToxiproxyRefused, match="toxic"):
        await proxy.strike(Toxic("earthquake"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no host and port"):
        await toxiproxy.proxy("other", "service-without-port")
    assert not proxy.toxics
    assert await read(proxy) == BODY


async def test_it_ends_with_its_block(service: Service) -> None:
    async with Toxiproxy() as server:
        process = server._process
        assert isinstance(process, ManagedProcess)
        assert process.returncode is None
    assert process.returncode is not None
    with pytest.raises(ToxiproxyRefused, match="not been started"):
        await server.proxy("late", service.url)


async def test_a_program_is_taken_from_the_environment_the_path_or_the_tools(tmp_path: Path) -> None:
    def program_in(folder: Path) -> Path:
        folder.mkdir()
        path = folder / PROGRAM.name
        path.write_text("#!/bin/sh\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    named, on_path, built = (program_in(tmp_path / name) for name in ("named", "path", "tools"))
    everything = {PROGRAM.variable: str(named), "PATH": str(on_path.parent)}
    assert find_program(PROGRAM, built.parent, everything) == named
    assert find_program(PROGRAM, built.parent, {"PATH": str(on_path.parent)}) == on_path
    assert find_program(PROGRAM, built.parent, {"PATH": str(tmp_path)}) == built
    assert find_program(PROGRAM, tmp_path, {"PATH": str(tmp_path)}) is None
    with pytest.raises(ServerMissing, match=PROGRAM.variable):
        find_program(PROGRAM, built.parent, {PROGRAM.variable: str(tmp_path / "none"), "PATH": ""})


async def test_a_program_that_cannot_be_built_says_how_to_get_it(tmp_path: Path) -> None:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 1\n")
    go.chmod(0o755)
    uv = go.with_name("uv")
    uv.write_text("#!/bin/sh\nexit 1\n")
    uv.chmod(0o755)
    program = GoProgram("absent", "absent server", "example.org/cmd/server@v1", "ABSENT_BIN", "Ask for it.")
    said: list[str] = []
    with pytest.raises(ServerMissing, match=r"no such module\..*Ask for it\."):
        find_or_install(program, tmp_path / "tools", {"PATH": str(go.parent)}, said.append)
    assert said[0].startswith("Building the absent server")

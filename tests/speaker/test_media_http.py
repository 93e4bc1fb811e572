from __future__ import annotations

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from media_support import encoded, reading
from yarl import URL

from agent.errors import MediaError
from agent.speaker.media_http import MediaHttp, TemporaryMediaError, is_public, is_remote
from sandbox.media_server import MediaServer


class Names(AbstractResolver):
    """Answers every name with the addresses given, like a name server that is not to be trusted."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
            for address in self._addresses
        ]

    async def close(self) -> None:
        return None


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "::ffff:127.0.0.1",
     "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::", "ff02::1"],
)  # fmt: skip
def test_addresses_of_private_networks_are_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("host", "remote"),
    [("media.example.org", True), ("93.184.216.34", True), ("media.example.org.", True), ("localhost", False),
     ("media", False), ("127.0.0.1", False), ("192.168.1.5", False), ("nas.local", False), ("media.default.svc", False),
     ("media.default.svc.cluster.local", False), ("::1", False), ("toy.localhost", False)],
)  # fmt: skip
def test_a_neighbour_is_told_from_the_internet(host: str, remote: bool) -> None:
    assert is_remote(host) is remote


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("93.184.216.34", "10.0.0.1"), ("169.254.169.254",)])
async def test_a_remote_name_that_leads_inside_is_refused_without_retries(addresses: tuple[str, ...]) -> None:
    async with MediaServer() as server:
        server.files["/x"] = encoded("mp3")
        names = Names(*addresses)
        base = f"http://media.example.org:{server.port}"
        http = MediaHttp(base, resolver=names)
        async with reading(f"{base}/x", http) as reader:
            with pytest.raises(MediaError, match="private network") as refused:
                await reader.all()
            assert refused.value.reason == "network"
        await http.warm()
        await http.aclose()
        assert server.asked == []
        assert len(names.asked) == 2


async def test_an_operator_may_say_that_the_name_is_inside() -> None:
    async with MediaServer() as server:
        server.files["/x"] = encoded("mp3")
        base = f"http://media.example.org:{server.port}"
        http = MediaHttp(base, resolver=Names("127.0.0.1"), private_network=True)
        async with reading(f"{base}/x", http) as reader:
            assert len(await reader.read(4800)) == 4800
        await http.aclose()


@pytest.mark.parametrize(
    "target",
    ["http://evil.example/x", "//evil.example/x", "http://127.0.0.1:1/x", "http://localhost:{port}/x",
     "http://[::1]:{port}/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://user@127.0.0.1:{port}/x",
     "http://127.0.0.1.evil.example:{port}/x", "http://169.254.169.254/latest", "", "http://["],
)  # fmt: skip
async def test_a_redirect_elsewhere_is_refused(target: str) -> None:
    async with MediaServer() as server:
        server.files["/x"] = encoded("mp3")
        server.redirects["/song"] = target.format(port=server.port)
        http = MediaHttp(server.url)
        async with reading(f"{server.url}/song", http) as reader:
            with pytest.raises(MediaError, match="redirects") as refused:
                await reader.all()
            assert refused.value.reason == "network"
        await http.aclose()
        assert len(server.asked) == 1


async def test_a_redirect_on_the_same_server_is_followed_but_not_for_ever() -> None:
    async with MediaServer() as server:
        server.files["/new place.mp3"] = encoded("mp3")
        server.redirects = {"/old": "/new%20place.mp3", "/loop": "/loop"}
        http = MediaHttp(server.url)
        async with reading(f"{server.url}/old", http) as reader:
            assert len(await reader.read(4800)) == 4800
        async with reading(f"{server.url}/loop", http) as reader:
            with pytest.raises(MediaError, match="circles"):
                await reader.all()
        await http.aclose()
        assert [asked.path for asked in server.asked].count("/loop") == 4


async def test_a_server_that_is_not_there_is_a_passing_fault() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    http = MediaHttp(f"http://127.0.0.1:{port}")
    with pytest.raises(TemporaryMediaError):
        async with http.get(URL(f"http://127.0.0.1:{port}/x"), 0, 10):
            pass
    await http.warm()
    await http.aclose()


async def test_titles_share_connections() -> None:
    async with MediaServer() as server:
        server.files = {"/1": encoded("mp3"), "/2": encoded("mp3")}
        http = MediaHttp(server.url)
        await http.warm()
        for path in ("/1", "/2"):
            async with reading(server.url + path, http) as reader:
                await reader.all()
        assert server.connections == 2
        await http.aclose()

"""HTTP for media: one pooled session of a visit that talks to the media server and to nobody else."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from agent.errors import MediaError

_MAX_REDIRECTS: Final = 3
_GONE: Final = frozenset({400, 401, 403, 404, 405, 410, 451})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_SUFFIXES: Final = (".local", ".localhost", ".internal", ".lan", ".home.arpa", ".cluster.local", ".svc")


class BeyondEnd(MediaError):
    """The range begins at or after the file's end."""


class TemporaryMediaError(MediaError):
    """The media server failed in a way that may pass: try again where it stopped."""

    retryable = True


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet, seen through IPv6 wrappings of IPv4 too."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def is_remote(host: str) -> bool:
    """Whether a host's name promises a place on the open internet.

    A bare name (`media`), a private address and the suffixes of private networks do not: whoever configures those
    means a neighbour.
    """
    host = host.lower().rstrip(".")
    try:
        return is_public(host)
    except ValueError:
        return "." in host and not host.endswith(_LOCAL_SUFFIXES)


class PublicResolver(AbstractResolver):
    """Resolves names and refuses private, loopback and link-local addresses."""

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The host's addresses. Raises MediaError when one of them is not public: such an answer is not trusted."""
        found = await self._inner.resolve(host, port, family)
        if not all(is_public(entry["host"]) for entry in found):
            raise MediaError("the media server's name leads into a private network", "network")
        return found

    async def close(self) -> None:
        """Close the resolver beneath."""
        await self._inner.close()


@dataclass(frozen=True, slots=True)
class Part:
    """An answer to a range request: its bytes begin at `start`; `size` is the whole file's, None where not said.

    `whole`: the server sends the file to its end, whatever range was asked for.
    """

    start: int
    whole: bool
    size: int | None
    tag: str | None
    body: aiohttp.StreamReader


class MediaHttp:
    """The media server's client. Make one a visit, inside its event loop; `aclose` ends it.

    `private_network` lets a name with dots lead to private addresses. `resolver` stands in for DNS in tests.
    """

    def __init__(
        self,
        base_url: str,
        *,
        private_network: bool = False,
        resolver: AbstractResolver | None = None,
        connect_timeout: float = 3.0,
        answer_timeout: float = 4.0,
    ) -> None:
        self._base = URL(base_url)
        guarded = not private_network and is_remote(self._base.host or "")
        self._resolver = PublicResolver(resolver) if guarded else (resolver or ThreadedResolver())
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self._session: aiohttp.ClientSession | None = None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver, limit=6, keepalive_timeout=60, ttl_dns_cache=60, happy_eyeballs_delay=0.1
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                # Reading is watched by the reader, who may pause for as long as the child talks.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout),
            )
        return self._session

    async def warm(self) -> None:
        """Open two connections ahead of the first title. Never fails: the first title finds out by itself.

        Two, because a title whose index is at its end is read in two places at once.
        """
        await asyncio.gather(self._touch(), self._touch())

    async def _touch(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout + self._answer_timeout):
                async with self._open_session().head(self._base, allow_redirects=False) as response:
                    await response.read()
        except (aiohttp.ClientError, MediaError, OSError, TimeoutError):
            return

    @asynccontextmanager
    async def get(self, url: URL, start: int, end: int | None, tag: str | None = None) -> AsyncIterator[Part]:
        """Ask for bytes `start` to `end` (exclusive; None: to the end). A server may answer from 0: see `Part.start`.

        `tag` is the entity tag of an earlier part; a file that changed since raises MediaError.
        Raises MediaError (missing, refused, redirected away), BeyondEnd or TemporaryMediaError.
        """
        try:
            async with asyncio.timeout(self._connect_timeout + self._answer_timeout) as deadline:
                response = await self._request(url, start, end)
                deadline.reschedule(None)
            try:
                yield self._part(response, start, tag)
            finally:
                # A body read to its end gives its connection back to the pool; any other is closed with it.
                response.release()
        except MediaError:
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            cause = error.__cause__ or error.__context__
            if isinstance(cause, MediaError):
                raise cause from None
            raise TemporaryMediaError(f"the media server failed: {type(error).__name__}") from error

    async def _request(self, url: URL, start: int, end: int | None) -> aiohttp.ClientResponse:
        headers = {
            "Range": f"bytes={start}-{'' if end is None else end - 1}",
            "Accept-Encoding": "identity",
        }
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._open_session().get(url, headers=headers, allow_redirects=False)
            if response.status not in {301, 302, 303, 307, 308}:
                return response
            target = response.headers.get("Location", "")
            response.release()
            try:
                url = url.join(URL(target))
            except ValueError:
                raise MediaError("the media server redirects to no address", "network") from None
            self._check_host(url, empty=not target)
        raise MediaError("the media server redirects in circles", "network")

    def _check_host(self, url: URL, *, empty: bool) -> None:
        secure_upgrade = self._base.scheme == "http" and url.scheme == "https" and url.port == 443
        same_port = url.port == self._base.port and url.scheme == self._base.scheme
        if empty or url.host != self._base.host or not (same_port or secure_upgrade) or url.user is not None:
            raise MediaError("the media server redirects to another host", "network")

    @staticmethod
    def _part(response: aiohttp.ClientResponse, start: int, tag: str | None) -> Part:
        status = response.status
        if status in _GONE:
            raise MediaError(f"the media server has no such file ({status})", "missing")
        if status == 416:
            raise BeyondEnd("the file is shorter than it was")
        if status not in {200, 206}:
            raise TemporaryMediaError(f"the media server answers {status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise MediaError("the media server compresses sound")
        size: int | None = response.content_length
        found = 0
        if status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start:
                raise MediaError("the media server answers with another part of the file")
            found = start
            size = None if match[3] == "*" else int(match[3])
        current = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if tag is not None and current is not None and current != tag:
            raise MediaError("the file changed while it played")
        return Part(found, status == 200, size, current, response.content)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self._resolver.close()

"""What the LiveKit server we are about to serve can do."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import aiohttp
import structlog

log = structlog.get_logger(__name__)


def http_url(livekit_url: str, path: str = "") -> str:
    """The server's HTTP address for its WebSocket address, with `path` behind its own."""
    parts = urlsplit(livekit_url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + path, "", ""))


async def supports_single_peer_connection(livekit_url: str, *, timeout: float = 2.0) -> bool | None:
    """Whether the server knows the signalling path that carries one peer connection for both directions.

    It saves a handshake where it exists; where it does not, asking for it costs a refused request on every
    connect. None when the server does not answer within `timeout` seconds.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout)) as http,
            http.get(http_url(livekit_url, "/rtc/v1/validate"), allow_redirects=False) as answer,
        ):
            return answer.status != 404
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        log.warning("LiveKit does not answer yet", error=type(error).__name__)
        return None

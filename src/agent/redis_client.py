"""Redis, shared by workers on several machines: how it is reached, and under what names things are kept there.

Importing this imports redis-py (50 ms): import it where REDIS_URL is set alone.
"""

from __future__ import annotations

from typing import Any, Final

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

PREFIX: Final = "{toy}:"
"""Before every name: the braces keep all of them on one node of a cluster, where scripts can reach them together."""
FAILURES: Final = (RedisError, OSError)
"""What a call raises when Redis cannot be used."""


def connect(url: str, *, timeout: float) -> Redis:
    """A client for threads; nothing is connected before its first use. Each call fails after `timeout` seconds.

    Calls are not repeated here: whoever calls knows what to do instead.
    """
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), **_options(timeout))


def connect_async(url: str, *, timeout: float) -> AsyncRedis:
    """The same for one event loop."""
    client: AsyncRedis = AsyncRedis.from_url(url, retry=AsyncRetry(NoBackoff(), 0), **_options(timeout))
    return client


def _options(timeout: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 30,
        "decode_responses": True,
    }

"""What the fuzz tests share: how long they search, JSON of every kind, a server that answers what it is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES") or 80)
"""Examples of each test. The default keeps all of them together below 40 s; `FUZZ_EXAMPLES=5000` looks for longer."""


def fuzz(share: float = 1.0) -> settings:
    """Settings of one test, for `@fuzz()`; `share` makes costly ones shorter."""
    return settings(
        max_examples=max(5, round(EXAMPLES * share)),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        print_blob=True,
    )


TEXT: Final = st.text(max_size=40) | st.sampled_from(
    ["", " ", "\0", "\ud800", "\u202e", "नमस्ते", "😆", "1e999", "-1", "null", "[]", "{}", "../..", "a" * 3000]
)
"""Texts of every script, and those that have harmed others."""

NUMBERS: Final = st.integers() | st.floats() | st.sampled_from([0, -1, 2**63, 10**400, 1e308, 0.5, True])

Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine to its end."""

JSON: Final = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
"""Any JSON value, and the NaN and Infinity that some writers take for it."""


def objects(*keys: str, values: st.SearchStrategy[Any] = JSON) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these keys, some missing, and a stranger now and then."""
    known = st.fixed_dictionaries({}, optional=dict.fromkeys(keys, values))
    return st.builds(lambda strange, wanted: {**strange, **wanted}, st.dictionaries(TEXT, JSON, max_size=1), known)


class Answering:
    """A server on a real socket whose answer to every request is `answer`, byte for byte; an async context manager."""

    def __init__(self) -> None:
        self.answer = b""
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [
                line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
            ]
            if lengths:
                await reader.readexactly(int(lengths[0]))
            writer.write(self.answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever asked has gone
        finally:
            writer.close()


def http(status: int, body: bytes, *headers: str) -> bytes:
    """A well-formed HTTP answer with this body."""
    lines = [f"HTTP/1.1 {status} Whatever", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

"""An HTTP transport whose every exchange is bounded as a whole: in time, however it drips, and in size."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, deadline: float, max_bytes: int) -> None:
        self._inner = inner
        self._deadline = deadline
        self._left = max_bytes

    def __iter__(self) -> Iterator[bytes]:
        for part in self._inner:
            self._left -= len(part)
            if self._left < 0:
                raise httpx.ReadError("the answer is too long")
            if time.monotonic() > self._deadline:
                raise httpx.ReadTimeout("the answer took too long")
            yield part

    def close(self) -> None:
        self._inner.close()


class BoundedTransport(httpx.HTTPTransport):
    """Gives an exchange `timeout` seconds in all (one read more where the other side stops mid-answer)."""

    def __init__(self, timeout: float, max_bytes: int) -> None:
        super().__init__()
        self._timeout = timeout
        self._max_bytes = max_bytes

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + self._timeout
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)
        response = super().handle_request(request)
        assert isinstance(response.stream, httpx.SyncByteStream)
        stream = _BoundedStream(response.stream, deadline, self._max_bytes)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

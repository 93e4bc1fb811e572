"""Client of the Manager API: one deadline per call, retries where they are safe, typed errors, bounded answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import tenacity
from pydantic import SecretStr
from yarl import URL

from agent.briefing.profile import ChatType, Child, Models
from agent.briefing.wire import Envelope
from agent.errors import Malformed, RateLimited, Rejected, ToyError, Unauthorised, Unavailable
from agent.values import DeviceMac

MAX_ANSWER_BYTES: Final = 512 * 1024
"""Longer answers are refused unread: the longest real one is a prompt of some tens of kilobytes."""
CONTENT_MAX: Final = 1000
"""Characters of a chat line the Manager API keeps."""
_ATTEMPTS: Final = 3
_BACKOFF: Final = tenacity.wait_exponential(multiplier=0.05, max=0.5) + tenacity.wait_random(0, 0.1)
_BUSY: Final = frozenset({408, 425})


@dataclass(frozen=True)
class _Call:
    """`name` is for errors. With `enveloped` false the status alone is the answer."""

    name: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    attempts: int = _ATTEMPTS
    enveloped: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)


class ManagerApiClient:
    """`Directory` over HTTP. Belongs to the event loop that first calls it; close it there.

    `deadline` is how long one call may take, in seconds, retries included. With `pooled` false every call opens and
    closes its own session. Reads and the mode change are tried up to three times while time is left; a chat report is
    sent once, because the Manager API keeps every copy. Raises, from every call, the errors of `Directory`.
    """

    def __init__(self, url: str, secret: SecretStr | None, *, deadline: float, pooled: bool = True) -> None:
        self._url = url.rstrip("/")
        self._headers = {"User-Agent": "toy-voice-agent"}
        if secret is not None:
            self._headers["Authorization"] = f"Bearer {secret.get_secret_value().strip()}"
        self._deadline = deadline
        self._pooled = pooled
        self._session: aiohttp.ClientSession | None = None

    async def agent_id(self, mac: DeviceMac) -> str:
        """GET /agent/device/{mac}/agent-id."""
        return (await self._ask(_Call("agent-id", "GET", f"/agent/device/{mac}/agent-id"))).agent_id()

    async def agent_prompt(self, mac: DeviceMac) -> str:
        """POST /config/agent-prompt."""
        return (await self._ask(_Call("agent-prompt", "POST", "/config/agent-prompt", {"macAddress": mac}))).prompt()

    async def agent_models(self, mac: DeviceMac, client_id: str) -> Models:
        """POST /config/agent-models."""
        body = {"macAddress": mac, "clientId": client_id, "selectedModule": {}}
        return (await self._ask(_Call("agent-models", "POST", "/config/agent-models", body))).models()

    async def child_profile(self, mac: DeviceMac) -> Child | None:
        """POST /config/child-profile-by-mac."""
        call = _Call("child-profile", "POST", "/config/child-profile-by-mac", {"macAddress": mac})
        return (await self._ask(call)).child()

    async def update_mode(self, agent_id: str, mode_name: str) -> str:
        """PUT /agent/update-mode; setting the same mode twice changes nothing, so it may be repeated."""
        body = {"agentId": agent_id, "modeName": mode_name}
        return (await self._ask(_Call("update-mode", "PUT", "/agent/update-mode", body))).prompt()

    async def report_chat(
        self,
        mac: DeviceMac,
        *,
        session_id: str,
        chat_type: ChatType,
        content: str,
        report_time: int,
        idempotency_key: str | None = None,
    ) -> bool:
        """POST /agent/chat-history/report, once. `idempotency_key` goes out as the header `Idempotency-Key`."""
        body = {
            "macAddress": mac,
            "sessionId": session_id,
            "chatType": chat_type.wire,
            "content": content[:CONTENT_MAX],
            "audioBase64": None,
            "reportTime": report_time,
        }
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}
        call = _Call("chat-report", "POST", "/agent/chat-history/report", body, attempts=1, headers=headers)
        return (await self._ask(call)).reported()

    async def health(self) -> None:
        """GET /health; any 2xx will do."""
        await self._answer(_Call("health", "GET", "/health", attempts=1, enveloped=False))

    async def aclose(self) -> None:
        """Close the pool, if one was opened."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, call: _Call) -> Envelope:
        return Envelope(call.name, await self._answer(call))

    async def _answer(self, call: _Call) -> bytes:
        """The body of a 2xx answer, or of an error that came in the contract's envelope."""
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(call.attempts) | tenacity.stop_before_delay(self._deadline),
            wait=_patience,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, ToyError) and error.retryable),
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._deadline):
                return await retrying(self._once, call)
        except TimeoutError:
            raise Unavailable(f"{call.name}: no answer within {self._deadline * 1000:.0f} ms") from None

    async def _once(self, call: _Call) -> bytes:
        async with AsyncExitStack() as stack:
            session = self._session
            if session is None or session.closed:
                session = self._new_session()
                if self._pooled:
                    self._session = session
                else:
                    await stack.enter_async_context(session)
            url = URL(self._url + call.path)
            try:
                response = await stack.enter_async_context(
                    session.request(call.method, url, json=call.body, headers=call.headers, allow_redirects=False)
                )
                raw = await _read(call, response)
            except aiohttp.ClientResponseError:
                raise Malformed(f"{call.name}: the answer is not HTTP") from None
            except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: an address no resolver takes
                raise Unavailable(f"{call.name}: {type(error).__name__}") from None
            if response.status // 100 != 2:
                _check_status(call, response, raw)
            return raw

    def _new_session(self) -> aiohttp.ClientSession:
        # Half the deadline for the connection, so that one lost packet leaves time for a second try.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._deadline / 2)
        connector = aiohttp.TCPConnector(limit=8, force_close=not self._pooled)
        return aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar()
        )


async def _read(call: _Call, response: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises Malformed as soon as it is longer than allowed, compressed or not."""
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            raise Malformed(f"{call.name}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(raw)


def _check_status(call: _Call, response: aiohttp.ClientResponse, raw: bytes) -> None:
    """Raise for a status that is not 2xx; return when the body explains it as an envelope with a non-zero code."""
    status = response.status
    if status == 429:
        raise RateLimited(f"{call.name}: HTTP 429", _retry_after(response.headers.get("Retry-After", "")))
    if status >= 500 or status in _BUSY:
        raise Unavailable(f"{call.name}: HTTP {status}")
    if status in (401, 403):
        raise Unauthorised(f"{call.name}: the Manager API refuses MANAGER_API_SECRET (HTTP {status})")
    if status < 400:
        raise Malformed(f"{call.name}: HTTP {status}, and redirects are not followed; is MANAGER_API_URL right?")
    error = Rejected(f"{call.name}: HTTP {status}; is MANAGER_API_URL right?")
    try:
        explained = call.enveloped and Envelope(call.name, raw).code != 0
    except Malformed:
        raise error from None
    if not explained:
        raise error


def _retry_after(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _patience(state: tenacity.RetryCallState) -> float:
    """Backoff in seconds; longer where the service asked for more."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, RateLimited) else None
    return max(_BACKOFF(state), asked or 0.0)

"""What is remembered of a child: Mem0 by its REST contract, asked in time and never waited for longer than allowed."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypedDict

import aiohttp
import structlog
from pydantic import BaseModel, SecretStr, ValidationError

from agent.errors import Malformed, NotFound, RateLimited, Rejected, RemoteError, Unauthorised, Unavailable
from agent.state import check_own
from agent.telemetry.meter import meter
from agent.values import DeviceMac

_log = structlog.get_logger(__name__)

FIRST_WORDS_QUERY: Final = (
    "What should a friend know before greeting this child: "
    "family, pets, likes, fears, plans, the last talk"
    " and what was promised"
)
"""What is asked before the child has said anything."""
RECALL_LIMIT: Final = 12
MAX_ANSWER_BYTES: Final = 1024 * 1024
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Message(TypedDict):
    """One line of a conversation; `role` is `user` or `assistant`."""

    role: str
    content: str


class Memory(Protocol):
    """Long-term memory. Calls raise a `RemoteError`: Unavailable, RateLimited, Unauthorised, Rejected, Malformed."""

    async def recall(self, query: str, *, user_id: str, limit: int = RECALL_LIMIT) -> list[str]:
        """What is remembered of `user_id`, one sentence each, most useful first."""
        ...

    async def remember(
        self, messages: Sequence[Message], *, user_id: str, key: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Have `messages` remembered; `key` makes a repeat harmless."""
        ...

    async def aclose(self) -> None:
        """Close what is open; safe to call twice."""
        ...


def user_id(mac: DeviceMac, profile_id: str | None = None) -> str:
    """Whose memory it is: the child's where its profile has an id, else the device's.

    A child with a profile id keeps its memory on every toy, and a toy passed on to another child forgets the first.
    Without one it is the MAC, as it has always been, so that memories written before are found.
    """
    return f"child:{profile_id}" if profile_id else str(mac)


class _Entry(BaseModel):
    memory: str


class _Answer(BaseModel):
    results: list[_Entry]


class Mem0Client:
    """`Memory` over Mem0's REST API, the hosted one or `mem0_server`'s, which is reached by `socket`.

    The SDK is not used: its import alone takes two seconds and 114 MB, and its constructor blocks. Belongs to the
    event loop that first calls it. `timeout_s` bounds a call; adding to the self-hosted one waits for a language model.
    """

    def __init__(
        self,
        url: str,
        api_key: SecretStr | None = None,
        *,
        socket: Path | None = None,
        timeout_s: float = 10.0,
        add_timeout_s: float = 50.0,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"User-Agent": "toy-voice-agent"}
        if api_key is not None:
            self._headers["Authorization"] = f"Token {api_key.get_secret_value().strip()}"
        self._socket = socket
        self._timeout_s = timeout_s
        self._add_timeout_s = add_timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def recall(self, query: str, *, user_id: str, limit: int = RECALL_LIMIT) -> list[str]:
        body = {"query": query, "filters": {"user_id": user_id}, "top_k": limit}
        raw = await self._post("/v3/memories/search/", body, self._timeout_s)
        try:
            # Older servers answer with the bare list.
            answer = _Answer.model_validate({"results": raw} if isinstance(raw, list) else raw)
        except ValidationError:
            raise Malformed("memory search: the answer has an unexpected shape") from None
        return [entry.memory for entry in answer.results[:limit] if entry.memory.strip()]

    async def remember(
        self, messages: Sequence[Message], *, user_id: str, key: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        body = {"messages": list(messages), "user_id": user_id, "metadata": {**(metadata or {}), "outbox_key": key}}
        await self._post("/v3/memories/add/", body, self._add_timeout_s, {"Idempotency-Key": key})

    async def warm(self) -> None:
        """Open a connection before it is needed; a failure is left for the first call to report."""
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._open().head(self._url + "/", timeout=aiohttp.ClientTimeout(total=self._timeout_s)):
                pass

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            if self._socket is not None:  # what a child says is told to whoever listens there
                check_own(self._socket.parent)
            connector = aiohttp.UnixConnector(str(self._socket)) if self._socket else aiohttp.TCPConnector(limit=8)
            self._session = aiohttp.ClientSession(
                connector=connector, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    async def _post(
        self, path: str, body: dict[str, Any], timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Any:
        """The JSON answer. Raises the typed errors of `Memory`."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._open().post(
                    self._url + path, json=body, headers=headers, allow_redirects=False, timeout=aiohttp.ClientTimeout()
                ) as response,
            ):
                raw = bytearray()
                async for chunk in response.content.iter_any():
                    raw += chunk
                    if len(raw) > MAX_ANSWER_BYTES:
                        raise Malformed(f"{path}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
                status, retry_after = response.status, response.headers.get("Retry-After", "")
        except TimeoutError:
            raise Unavailable(f"{path}: no answer within {timeout_s:.1f} s") from None
        except aiohttp.ClientResponseError:
            raise Malformed(f"{path}: the answer is not HTTP") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{path}: {type(error).__name__}") from None
        _check_status(path, status, retry_after)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise Malformed(f"{path}: the answer is no JSON") from None


def _check_status(path: str, status: int, retry_after: str) -> None:
    if status == 429:
        wait_s = float(retry_after) if _SECONDS.fullmatch(retry_after) else None
        raise RateLimited(f"{path}: HTTP 429", wait_s)
    if status >= 500 or status in (408, 425):
        raise Unavailable(f"{path}: HTTP {status}")
    if status in (401, 403):
        raise Unauthorised(f"{path}: Mem0 refuses MEM0_API_KEY (HTTP {status})")
    if status == 404:
        raise NotFound(f"{path}: HTTP 404; is MEM0_HOST right?")
    if status in (400, 409, 413, 422):
        raise Rejected(f"{path}: HTTP {status}", status)
    if status // 100 != 2:
        raise Malformed(f"{path}: HTTP {status}; is MEM0_HOST right?")


class Recollection:
    """Memories asked for at once, for whoever has time to wait: the briefing until its deadline, a later turn after it.

    Begins when constructed, in the running loop. `outcome` is `waiting`, `in_time`, `late`, `failed` or `cancelled`;
    `took_ms` how long the answer took. `on_late` is called once, in the loop, with memories that missed the deadline.
    """

    def __init__(
        self,
        memory: Memory,
        user_id: str,
        *,
        deadline_ms: float,
        query: str = FIRST_WORDS_QUERY,
        limit: int = RECALL_LIMIT,
        on_late: Callable[[tuple[str, ...]], None] | None = None,
    ) -> None:
        self._memory = memory
        self._query = query
        self._limit = limit
        self._deadline_ms = deadline_ms
        self._on_late = on_late
        self._begin(user_id)

    def _begin(self, user_id: str) -> None:
        self._user_id = user_id
        self._begun = time.monotonic()
        self._deadline = self._begun + self._deadline_ms / 1000
        self._late: tuple[str, ...] | None = None
        self.outcome = "waiting"
        self.took_ms: float | None = None
        self._task = asyncio.create_task(self._ask(user_id), name="recollection")

    async def ask_for(self, user_id: str) -> None:
        """Another one's memories, should it be another: what was found until now is dropped, and time begins anew."""
        if user_id != self._user_id:
            await self.aclose()
            self._begin(user_id)

    async def in_time(self) -> tuple[str, ...] | None:
        """The memories if they come before the deadline, else None; never raises for a failing memory."""
        await asyncio.wait([self._task], timeout=max(0.0, self._deadline - time.monotonic()))
        if not self._task.done():
            # A timer may fire a little early: what comes now is late all the same.
            self._deadline = 0.0
            return None
        if self._task.cancelled():
            return None
        return self._task.result() if self.outcome == "in_time" else None

    def take_late(self) -> tuple[str, ...] | None:
        """Memories that came after the deadline: once, then None. For the beginning of a turn."""
        late, self._late = self._late, None
        return late

    def report(self) -> dict[str, str | float | None]:
        """What became of it until now, for the log."""
        return {"outcome": self.outcome, "took_ms": None if self.took_ms is None else round(self.took_ms, 1)}

    async def aclose(self) -> None:
        """Stop waiting for what has not come."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _ask(self, user_id: str) -> tuple[str, ...] | None:
        try:
            found = tuple(await self._memory.recall(self._query, user_id=user_id, limit=self._limit))
        except RemoteError as error:
            self.outcome = "failed"
            _log.warning("memory_recall_failed", error=str(error))
            return None
        except asyncio.CancelledError:
            self.outcome = "cancelled"
            raise
        except Exception:  # noqa: BLE001 — a bug in a memory must not cost the child its visit; it is logged whole
            self.outcome = "failed"
            _log.exception("memory_recall_broken")
            return None
        finally:
            self.took_ms = (time.monotonic() - self._begun) * 1000
            if self.outcome != "waiting":  # it has ended without an answer
                meter.count("toy_memories", outcome=self.outcome)
        if time.monotonic() <= self._deadline:
            self.outcome = "in_time"
        else:
            self.outcome = "late"
            self._late = found
            _log.info("memory_late", took_ms=round(self.took_ms))
            if self._on_late is not None:
                self._on_late(found)
        meter.count("toy_memories", outcome=self.outcome if found else "empty")
        meter.observe("toy_memory_seconds", self.took_ms / 1000)
        return found

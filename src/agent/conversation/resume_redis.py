"""Interrupted conversations in Redis: a device finds its own on whichever machine it lands. And beside it on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

import structlog

from agent.conversation.resume import Resumed, ResumeStore, decode
from agent.errors import ResumeError
from agent.redis_client import FAILURES, PREFIX, connect
from agent.values import DeviceMac

T = TypeVar("T")

_LOAD_TIMEOUT: Final = 0.25
_SAVE: Final = """
local began_at = redis.call("HGET", KEYS[1], "began_at")
if began_at and tonumber(began_at) > tonumber(ARGV[1]) then return 0 end
redis.call("HSET", KEYS[1], "began_at", ARGV[1], "saved_at", ARGV[2], "body", ARGV[3])
redis.call("EXPIRE", KEYS[1], ARGV[4])
return 1
"""

_log = structlog.get_logger(__name__)


class RedisResumeStore:
    """A `ResumeStore` in Redis, which forgets by itself. Calls fail after 250 ms."""

    def __init__(self, url: str, *, window_s: float, clock: Callable[[], float] = time.time) -> None:
        self._redis = connect(url, timeout=_LOAD_TIMEOUT)
        self._window_s = window_s
        self._clock = clock
        self._save = self._redis.register_script(_SAVE)

    @property
    def enabled(self) -> bool:
        """See ResumeStore."""
        return self._window_s > 0

    def load(self, mac: DeviceMac) -> Resumed | None:
        """See ResumeStore."""
        if not self.enabled:
            return None
        with _translated():
            saved_at, body = self._redis.hmget(_name(mac), ["saved_at", "body"])
        if saved_at is None or body is None:
            return None
        away_s = max(0.0, self._clock() - float(saved_at))
        return decode(str(body), away_s) if away_s <= self._window_s else None

    def save(self, mac: DeviceMac, began_at: float, body: str) -> bool:
        """See ResumeStore."""
        if not self.enabled:
            return False
        with _translated():
            expires = max(1, round(self._window_s))
            return bool(self._save(keys=[_name(mac)], args=[repr(began_at), repr(self._clock()), body, expires]))

    def forget(self, mac: DeviceMac) -> None:
        """See ResumeStore."""
        with _translated():
            self._redis.delete(_name(mac))

    def close(self) -> None:
        """See ResumeStore."""
        with suppress(*FAILURES):
            self._redis.close()


class TieredResumeStore:
    """A `ResumeStore` of two, asked side by side: `near`, this machine's, and the `shared` one.

    The younger conversation is found; either may be away, or hang: that is logged, and only both together are an error.
    `load` takes `load_s` seconds at most, the others `save_s`, and `close` waits for nobody.
    """

    def __init__(self, near: ResumeStore, shared: ResumeStore, *, load_s: float = 0.4, save_s: float = 2.5) -> None:
        self._stores = (near, shared)
        self._load_s = load_s
        self._save_s = save_s
        # One each: who hangs must not take the other's.
        self._threads = tuple(ThreadPoolExecutor(1, thread_name_prefix="resume") for _ in self._stores)

    @property
    def enabled(self) -> bool:
        """See ResumeStore."""
        return all(store.enabled for store in self._stores)

    def load(self, mac: DeviceMac) -> Resumed | None:
        """See ResumeStore."""
        answers = self._both(lambda store: store.load(mac), self._load_s)
        found = [resumed for resumed in answers if resumed is not None]
        return min(found, key=lambda resumed: resumed.away_s, default=None)

    def save(self, mac: DeviceMac, began_at: float, body: str) -> bool:
        """See ResumeStore."""
        return all(self._both(lambda store: store.save(mac, began_at, body), self._save_s))

    def forget(self, mac: DeviceMac) -> None:
        """See ResumeStore."""
        self._both(lambda store: store.forget(mac), self._save_s)

    def close(self) -> None:
        """See ResumeStore."""
        for store, thread in zip(self._stores, self._threads, strict=True):
            with suppress(RuntimeError):  # closed before
                thread.submit(store.close)
            thread.shutdown(wait=False)

    def _both(self, ask: Callable[[ResumeStore], T], deadline: float) -> list[T]:
        outcomes = [thread.submit(ask, store) for store, thread in zip(self._stores, self._threads, strict=True)]
        wait(outcomes, deadline)
        found, problems = [], []
        for outcome in outcomes:
            if not outcome.done():
                outcome.cancel()
                problems.append(ResumeError(f"conversations cannot be kept or found within {deadline:g} s"))
                continue
            try:
                found.append(outcome.result())
            except ResumeError as error:
                problems.append(error)
        if not found:
            raise problems[0]
        for problem in problems:
            _log.warning("resume_half_away", error=str(problem))
        return found


def _name(mac: DeviceMac) -> str:
    return f"{PREFIX}resume:{mac}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise ResumeError(f"conversations in Redis cannot be kept or found: {type(error).__name__}") from error

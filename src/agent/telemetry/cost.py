"""What a visit uses and what that costs, at once and for the day; and the budget that ends it politely.

Each use is told to the worker as soon as it is known, so a killed visit's costs are in the books as well. The worker
alone writes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import structlog
from livekit.agents.metrics import AgentMetrics, LLMMetrics, RealtimeModelMetrics, STTMetrics, TTSMetrics

from agent.prices import Price
from agent.settings import Settings
from agent.state import StateDatabase
from agent.telemetry.hub import MetricsHub
from agent.telemetry.meter import Meter, Record, meter

if TYPE_CHECKING:
    from agent.telemetry.cost_redis import DaySums

log = structlog.get_logger(__name__)

Service = Literal["stt", "llm", "tts", "realtime"]
Scope = Literal["visit", "day"]

_FILE: Final = "cost.db"
KEPT_DAYS: Final = 400
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS cost (
    day TEXT NOT NULL, device TEXT NOT NULL, service TEXT NOT NULL, model TEXT NOT NULL,
    uses INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    speech_s REAL NOT NULL, characters INTEGER NOT NULL, cost REAL NOT NULL,
    PRIMARY KEY (day, device, service, model)
) WITHOUT ROWID
"""
_ADD: Final = """
INSERT INTO cost VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET uses = uses + 1, input_tokens = input_tokens + excluded.input_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens, output_tokens = output_tokens + excluded.output_tokens,
    speech_s = speech_s + excluded.speech_s, characters = characters + excluded.characters, cost = cost + excluded.cost
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """One call of one model. `input_tokens` includes the cached ones; audio tokens are parts of both.

    `speech_s` is sound that was heard or spoken, in seconds.
    """

    service: Service
    model: str
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    audio_input_tokens: int = 0
    cached_audio_tokens: int = 0
    audio_output_tokens: int = 0
    speech_s: float = 0.0
    characters: int = 0


def read_usage(metrics: AgentMetrics) -> Usage | None:
    """What the framework's metrics say was used; None for those that cost nothing."""
    model = (metrics.metadata.model_name if metrics.metadata else None) or "unknown"
    if isinstance(metrics, LLMMetrics):
        return Usage(
            "llm",
            model,
            input_tokens=metrics.prompt_tokens,
            cached_tokens=metrics.prompt_cached_tokens,
            output_tokens=metrics.completion_tokens,
        )
    if isinstance(metrics, STTMetrics):
        return Usage("stt", model, speech_s=metrics.audio_duration)
    if isinstance(metrics, TTSMetrics):
        return Usage("tts", model, speech_s=metrics.audio_duration, characters=metrics.characters_count)
    if isinstance(metrics, RealtimeModelMetrics):
        incoming = metrics.input_token_details
        cached_audio = incoming.cached_tokens_details.audio_tokens if incoming.cached_tokens_details else 0
        return Usage(
            "realtime",
            model,
            input_tokens=metrics.input_tokens,
            cached_tokens=incoming.cached_tokens,
            output_tokens=metrics.output_tokens,
            audio_input_tokens=incoming.audio_tokens,
            cached_audio_tokens=cached_audio,
            audio_output_tokens=metrics.output_token_details.audio_tokens,
        )
    return None


def price_of(usage: Usage, table: Mapping[str, Price]) -> float | None:
    """In the table's currency; None for a model it does not name."""
    price = table.get(usage.model)
    if price is None:
        return None
    fresh_audio = max(0, usage.audio_input_tokens - usage.cached_audio_tokens)
    cached_text = max(0, usage.cached_tokens - usage.cached_audio_tokens)
    fresh_text = max(0, usage.input_tokens - usage.audio_input_tokens - cached_text)
    text_output = max(0, usage.output_tokens - usage.audio_output_tokens)
    return (
        fresh_text * price.input
        + cached_text * price.cached_input
        + text_output * price.output
        + fresh_audio * price.audio_input
        + usage.cached_audio_tokens * price.cached_audio_input
        + usage.audio_output_tokens * price.audio_output
        + usage.characters * price.characters
    ) / 1_000_000 + usage.speech_s / 60 * price.minute


class Budget:
    """What a visit may still cost. `on_exhausted` is called once, with the scope, in the thread that spends."""

    def __init__(self, settings: Settings, *, spent_today: float = 0.0) -> None:
        self._limits: dict[Scope, float] = {"visit": settings.budget_per_visit, "day": settings.budget_per_day}
        self.spent: dict[Scope, float] = {"visit": 0.0, "day": spent_today}
        self.on_exhausted: Callable[[Scope], None] | None = None
        self._told = False

    @property
    def exhausted(self) -> Scope | None:
        """Whose limit is reached; None while the visit may go on."""
        for scope, limit in self._limits.items():
            if limit and self.spent[scope] >= limit:
                return scope
        return None

    def spend(self, amount: float) -> None:
        """Add a cost."""
        for scope in self.spent:
            self.spent[scope] += amount
        self.check()

    def earlier(self, spent_today: float) -> None:
        """Add what earlier visits of the day have cost, as soon as it is known."""
        self.spent["day"] += spent_today
        self.check()

    def check(self) -> None:
        """Tell `on_exhausted` once a limit is reached; call it when it has been set late."""
        scope = self.exhausted
        if scope is not None and not self._told and self.on_exhausted is not None:
            self._told = True
            self.on_exhausted(scope)


def cost_path(settings: Settings) -> Path:
    """Where the books are."""
    return settings.state_dir / _FILE


class UsageMeter:
    """One visit's use: `collect` the framework's metrics of each provider; `report` for the log.

    `device` is the device's pseudonym. Every use goes to the worker and against `budget`.
    """

    def __init__(
        self,
        settings: Settings,
        device: str,
        *,
        budget: Budget | None = None,
        to: Meter = meter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.budget = budget or Budget(settings)
        self._settings = settings
        self._prices = settings.prices
        self._path = cost_path(settings)
        self._device = device
        self._meter = to
        self._wall = wall
        self._totals: dict[str, float] = {}
        self._unpriced: set[str] = set()
        self.cost = 0.0

    async def load_earlier(self) -> None:
        """Count what earlier visits of the day have cost against the budget, on all machines where Redis knows."""
        self.budget.earlier(await asyncio.to_thread(self._spent_earlier, day_of(self._wall())))

    def _spent_earlier(self, day: str) -> float:
        here = spent_on(self._path, day, self._device)
        sums = open_sums(self._settings)
        if sums is None:
            return here
        try:
            # This machine's books may know of more: what Redis has not taken yet.
            return max(here, sums.spent(day, self._device) or 0.0)
        finally:
            sums.close()

    def collect(self, metrics: AgentMetrics) -> None:
        """Count one call's use; for a provider's `metrics_collected` event."""
        usage = read_usage(metrics)
        if usage is not None:
            self.use(usage)

    def use(self, usage: Usage) -> None:
        """Count one use."""
        cost = price_of(usage, self._prices)
        if cost is None:
            if usage.model not in self._unpriced:
                self._unpriced.add(usage.model)
                log.warning("a model has no price: set it in PRICES", model=usage.model, service=usage.service)
            cost = 0.0
        self.cost += cost
        for name, amount in asdict(usage).items():
            if isinstance(amount, int | float) and amount:
                key = f"{usage.service}_{name}"
                self._totals[key] = round(self._totals.get(key, 0) + amount, 3)
        self._meter.send(["u", day_of(self._wall()), self._device, asdict(usage), cost])
        self.budget.spend(cost)

    def report(self) -> dict[str, Any]:
        """Totals and cost, for the visit's log line."""
        found: dict[str, Any] = {**self._totals, "cost": round(self.cost, 6)}
        if self._unpriced:
            found["unpriced"] = sorted(self._unpriced)
        return found


def open_sums(settings: Settings) -> DaySums | None:
    """The sums that all machines share; None without Redis, or without a budget that would need them."""
    if settings.redis_url is None or not settings.budget_per_day:
        return None
    from agent.telemetry.cost_redis import DaySums  # 50 ms for whoever has a Redis

    return DaySums(settings.redis_url)


def day_of(unix_seconds: float) -> str:
    """`YYYY-MM-DD` in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(unix_seconds))


def spent_on(path: Path, day: str, device: str) -> float:
    """What a device has cost on a day; 0 where nothing is known or readable. Blocks for a millisecond."""
    try:
        with contextlib.closing(_open_to_read(path, timeout=1.0)) as db:
            row = db.execute("SELECT SUM(cost) FROM cost WHERE day = ? AND device = ?", (day, device)).fetchone()
    except sqlite3.Error:
        return 0.0
    return float(row[0] or 0.0)


def _open_to_read(path: Path, *, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout)


class CostLedger:
    """The worker's books: sums per day, device, service and model. An async context manager.

    Writes in a thread of its own; a disk that refuses costs the entry, which is logged, and never a visit. `sums` are
    those of all machines, closed with it.
    """

    def __init__(
        self, path: Path, hub: MetricsHub, sums: DaySums | None = None, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._database = StateDatabase(path, _SCHEMA)
        self._hub = hub
        self._sums = sums
        self._wall = wall
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cost-ledger")
        self.failures = 0

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._tidy)
        self._hub.on_usage = self.take
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.on_usage = None
        if self._sums is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._sums.close)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown()

    def take(self, record: Record) -> None:
        """Count one usage record and write it down. Raises ValueError or TypeError for one that is none."""
        _, day, device, found, cost = record
        known = {field.name for field in fields(Usage)}
        usage = Usage(**{name: value for name, value in found.items() if name in known})
        labels = {"service": usage.service, "model": usage.model}
        for kind, tokens in (
            ("input", usage.input_tokens - usage.cached_tokens),
            ("cached_input", usage.cached_tokens),
            ("output", usage.output_tokens),
        ):
            if tokens > 0:
                self._hub.count("toy_usage_tokens", tokens, kind=kind, **labels)
        if usage.speech_s:
            self._hub.count("toy_usage_speech_seconds", usage.speech_s, **labels)
        if usage.characters:
            self._hub.count("toy_usage_characters", usage.characters, model=usage.model)
        self._hub.count("toy_cost", float(cost), **labels)
        row = (
            str(day),
            str(device),
            usage.service,
            usage.model,
            usage.input_tokens,
            usage.cached_tokens,
            usage.output_tokens,
            usage.speech_s,
            usage.characters,
            float(cost),
        )
        self._thread.submit(self._write, row)

    def _write(self, row: tuple[Any, ...]) -> None:
        try:
            self._database.run(lambda db: db.execute(_ADD, row))
        except (sqlite3.Error, OSError) as error:
            self.failures += 1
            log.error("a cost could not be written down", error=str(error), cost=row[-1])
        if self._sums is not None:
            day, device, *_, cost = row
            self._sums.add(day, device, cost)

    def _tidy(self) -> None:
        oldest = day_of(self._wall() - KEPT_DAYS * 86400)
        try:
            self._database.run(lambda db: db.execute("DELETE FROM cost WHERE day < ?", (oldest,)))
        except (sqlite3.Error, OSError) as error:
            log.error("the books of costs cannot be opened", error=str(error))


def read_costs(path: Path, days: int, *, wall: Callable[[], float] = time.time) -> list[dict[str, Any]]:
    """The last days' sums, newest first: day, device, service, model, amounts and cost. Empty where there are none."""
    since = day_of(wall() - (days - 1) * 86400)
    if not path.exists():
        return []
    with contextlib.closing(_open_to_read(path, timeout=2.0)) as db:
        db.row_factory = sqlite3.Row
        rows = db.execute("SELECT * FROM cost WHERE day >= ? ORDER BY day DESC, cost DESC", (since,)).fetchall()
    return [dict(row) for row in rows]

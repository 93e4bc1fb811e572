"""The worker's side of the metrics: takes the records of all processes, holds the one registry, answers scrapes."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agent.state import private_dir
from agent.telemetry.instruments import INSTRUMENTS, Instrument
from agent.telemetry.meter import SOCKET_VARIABLE, USAGE_ONLY_VARIABLE, Record, meter

log = structlog.get_logger(__name__)

MAX_SERIES: Final = 200
"""Label sets of one metric; what comes beyond is counted under `other`."""
_MAX_LINE: Final = 65_536
_MAX_PATH: Final = 100
_BACKLOG: Final = 1024
_RECENT: Final = 2_000
_SOCKETS: Final = "metrics-*.sock"

Source = Callable[["MetricsHub"], Awaitable[None]]
UsageSink = Callable[[Record], None]


class MetricsHub:
    """Metrics of one worker. An async context manager: inside it, processes started afterwards find it.

    `folder` holds its socket. `sources` are asked for gauges at each scrape, `on_usage` hears of each usage record.
    """

    def __init__(self, folder: Path, *, usage_only: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._usage_only = usage_only
        self._clock = clock
        self._lock = threading.RLock()
        self._scrape = asyncio.Lock()
        self._server: asyncio.AbstractServer | None = None
        self._path: Path | None = None
        self._directory: int | None = None
        self._connections: set[_Connection] = set()
        self._visits: dict[str, tuple[float, object]] = {}
        self._first: str | None = None
        self._seen: dict[str, set[tuple[str, ...]]] = {}
        self._totals: dict[str, Mapping[tuple[str, ...], float]] = {}
        self.sources: list[Source] = []
        self.on_usage: UsageSink | None = None
        self.recent: dict[str, deque[float]] = {"greeting": deque(maxlen=_RECENT), "turn": deque(maxlen=_RECENT)}
        """The latest greeting and turn times in seconds."""
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}
        for instrument in INSTRUMENTS.values():
            self._make(instrument)
        self.registry.register(_Totals(self._totals))
        ProcessCollector(registry=self.registry)
        self.set("toy_build_info", 1, version=_own_version())

    def _make(self, instrument: Instrument) -> None:
        about = (instrument.name, instrument.help, instrument.labels)
        if instrument.kind == "counter":
            self._metrics[instrument.name] = Counter(*about, registry=self.registry)
        elif instrument.kind == "gauge":
            self._metrics[instrument.name] = Gauge(*about, registry=self.registry)
        elif instrument.kind == "histogram":
            self._metrics[instrument.name] = Histogram(*about, buckets=instrument.buckets, registry=self.registry)
        for labels in instrument.known:
            self._child(instrument.name, dict(zip(instrument.labels, labels, strict=True)))

    # Its life

    async def __aenter__(self) -> Self:
        private_dir(self._folder)
        # Random: a worker in another container has the same pid.
        name = _SOCKETS.replace("*", f"{os.getpid()}-{secrets.token_hex(4)}")
        path = self._path = self._folder / name
        reach = str(self._folder)
        if len(os.fsencode(path)) > _MAX_PATH:
            # A socket's address has room for 107 bytes; through this descriptor any folder has a short name.
            self._directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            reach = f"/proc/{os.getpid()}/fd/{self._directory}"
        address = f"{reach}/{name}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(self._folder, reach)
            listener.bind(f"{address}.new")
            listener.listen(_BACKLOG)
            path.with_name(f"{name}.new").rename(path)  # found only once it answers
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Connection(self), sock=listener, backlog=_BACKLOG
            )
        except BaseException:  # the descriptor must not stay open, whatever went wrong
            listener.close()
            self._release()
            raise
        os.environ[SOCKET_VARIABLE] = address
        if self._usage_only:
            os.environ[USAGE_ONLY_VARIABLE] = "1"
        meter.use(self.take)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        meter.use(None)
        os.environ.pop(SOCKET_VARIABLE, None)
        os.environ.pop(USAGE_ONLY_VARIABLE, None)
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        self._release()

    def _release(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    # Records

    def take(self, record: Record, origin: object = None) -> None:
        """Fold one record in; a record that is none is counted and dropped. Safe from every thread."""
        try:
            with self._lock:
                self._fold(record, origin)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            self._counted("refused")
        else:
            self._counted("taken")

    def _counted(self, result: str) -> None:
        self._child("toy_metric_records", {"result": result}).inc()

    def _fold(self, record: Record, origin: object) -> None:
        kind, *rest = record
        if kind == "o":
            name, labels, value = rest
            self.observe(name, float(value), **labels)
        elif kind == "c":
            name, labels, amount = rest
            self._child(name, labels).inc(float(amount))
        elif kind == "v":
            (job,) = map(str, rest)
            self._first = self._first or job
            self._visits[job] = (self._clock(), origin)
            self._child("toy_visits_started", {}).inc()
        elif kind == "e":
            (job,) = map(str, rest)
            begun, _ = self._visits.pop(job)
            self._child("toy_visits_finished", {"outcome": "ended"}).inc()
            self.observe("toy_visit_seconds", self._clock() - begun)
        elif kind == "g":
            # A visit's greeting and first word: which room of the worker it was, only the worker knows.
            name, job, labels, value = rest
            room = "first" if str(job) == self._first else "later"
            self.observe(name, float(value), room=room, **labels)
        elif kind == "u":
            if self.on_usage is not None:
                self.on_usage(record)
        else:
            raise ValueError(kind)

    def lost(self, origin: object) -> None:
        """A process is gone: the visits it had not ended are lost."""
        with self._lock:
            for job in [job for job, (_, whose) in self._visits.items() if whose is origin]:
                del self._visits[job]
                self._child("toy_visits_finished", {"outcome": "lost"}).inc()

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add to a histogram. Raises KeyError or ValueError for a metric or labels that do not exist."""
        self._child(name, labels).observe(value)
        if name == "toy_greeting_seconds":
            self.recent["greeting"].append(value)
        elif name == "toy_turn_seconds":
            self.recent["turn"].append(value)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._child(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._child(name, labels).set(value)

    def replace(self, name: str, values: Mapping[tuple[str, ...], float]) -> None:
        """Show exactly these values, by their labels' values in the instrument's order, for a gauge or a total."""
        if INSTRUMENTS[name].kind == "total":
            self._totals[name] = dict(values)
            return
        metric = self._metrics[name]
        with self._lock:
            metric.clear()
            for labels, value in values.items():
                metric.labels(*labels).set(value)  # type: ignore[union-attr]

    def _child(self, name: str, labels: Mapping[str, Any]) -> Any:
        instrument = INSTRUMENTS[name]
        if set(labels) != set(instrument.labels):
            raise ValueError(f"{name} has the labels {instrument.labels}")
        metric = self._metrics[name]
        if not instrument.labels:
            return metric
        key = tuple(str(labels[label])[:64] for label in instrument.labels)
        seen = self._seen.setdefault(name, set())
        if key not in seen:
            if len(seen) >= MAX_SERIES:
                key = ("other",) * len(key)
            seen.add(key)
        return metric.labels(*key)

    # Answers

    async def exposition(self) -> bytes:
        """Prometheus' text format. A source that fails or hangs leaves its old values and a log line."""
        async with self._scrape:
            await asyncio.gather(*(self._ask(source) for source in self.sources))
            return await asyncio.to_thread(generate_latest, self.registry)

    async def _ask(self, source: Source) -> None:
        try:
            async with asyncio.timeout(2):
                await source(self)
        except Exception as error:  # noqa: BLE001 — whatever one source meets, the others must be shown
            log.warning("metrics source failed", error=f"{type(error).__name__}: {error}")

    def percentiles(self) -> dict[str, dict[str, float | None]]:
        """p50, p95 and p99 in milliseconds and the count of the latest greetings and turns."""
        found: dict[str, dict[str, float | None]] = {}
        for measure, values in self.recent.items():
            ordered = sorted(values)
            found[measure] = {
                "count": len(ordered),
                **{f"p{p}_ms": round(percentile(ordered, p) * 1000, 1) if ordered else None for p in (50, 95, 99)},
            }
        return found


def percentile(ordered: list[float], percent: float) -> float:
    """Linear between the two nearest of the sorted, non-empty values."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class _Totals(Collector):
    """Counters that are kept elsewhere, the outbox's file for one, shown as they stand there."""

    def __init__(self, totals: Mapping[str, Mapping[tuple[str, ...], float]]) -> None:
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        for name, values in list(self._totals.items()):
            instrument = INSTRUMENTS[name]
            family = CounterMetricFamily(name, instrument.help, labels=instrument.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


class _Connection(asyncio.Protocol):
    """One process: lines of records until it ends."""

    def __init__(self, hub: MetricsHub) -> None:
        self._hub = hub
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._hub._connections.add(self)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            self._rest = b""
            self._hub._counted("refused")
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            self._hub.take(record if isinstance(record, list) else [], self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 — asyncio calls it by this signature
        self._hub._connections.discard(self)
        self._hub.lost(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _own_version() -> str:
    try:
        return version("toy-voice-agent")
    except PackageNotFoundError:
        return "unknown"


def _remove_stale(folder: Path, reach: str) -> None:
    """Remove the sockets of workers that were killed: nobody listens. `reach` is a short name of `folder`."""
    for path in folder.glob(_SOCKETS):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(f"{reach}/{path.name}")
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)  # another worker is tidying, too
            except OSError:  # it is gone, or too busy to answer
                continue

"""A trace of each visit for an OpenTelemetry collector: the framework's spans, and ours from the visit's marks.

Nothing happens on the way to the greeting: spans wait in memory for a thread that sends them, and those of the visit
are made from its marks when it has ended. What a child says or is called never leaves, nor does an address or a secret.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from livekit.agents import telemetry
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status, StatusCode

from agent.settings import Settings
from agent.telemetry.scrub import Scrubber
from agent.telemetry.timeline import Timeline

log = structlog.get_logger(__name__)

SERVICE: Final = "toy-voice-agent"
EXPORT_TIMEOUT_S: Final = 3.0
_SPANS: Final = (
    ("dispatch", "job_received", "process_given"),
    ("connect", "process_given", "connected"),
    ("publish", "connected", "published"),
    ("wait for listener", "published", "subscribed"),
    ("first frame", "subscribed", "first_frame"),
    ("greeting", "first_frame", "greeting_end"),
    ("briefing", "process_given", "briefing_ready"),
    ("session", "briefing_ready", "session_ready"),
)
_lock = threading.Lock()
_provider: TracerProvider | None = None


def open_tracing(settings: Settings) -> TracerProvider | None:
    """Send spans of this process to the collector that the settings name; None where they name none.

    Once per process, after the fork: it starts a thread. Later calls return the same provider.
    """
    global _provider
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    with _lock:
        if _provider is None:
            provider = TracerProvider(resource=Resource({SERVICE_NAME: SERVICE}), shutdown_on_exit=False)
            # The framework's filter must come before what exports.
            telemetry.set_tracer_provider(provider, allow_pii=settings.log_personal_data)
            endpoint = f"{settings.otel_exporter_otlp_endpoint.rstrip('/')}/v1/traces"
            exporter = CleanExporter(OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT_S), Scrubber(settings))
            provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=2000))
            _provider = provider
        return _provider


def trace_visit(timeline: Timeline, attributes: Mapping[str, Any]) -> None:
    """Make the visit's spans from its marks; where there is no collector this does nothing."""
    provider = _provider
    if provider is None:
        return
    marks = timeline.marks

    def moment(at_ms: float) -> int:
        return int((timeline.t0_wall + at_ms / 1000) * 1_000_000_000)

    def at(name: str) -> int:
        return moment(marks[name])

    begun = min(marks, key=lambda name: marks[name], default=None)
    ended = max(marks, key=lambda name: marks[name], default=None)
    if begun is None or ended is None:
        return
    tracer = provider.get_tracer(__name__)
    plain = {key: value for key, value in attributes.items() if isinstance(value, str | bool | int | float)}
    visit = tracer.start_span("visit", context=trace.set_span_in_context(trace.INVALID_SPAN), start_time=at(begun))
    visit.set_attributes(plain)
    for name in marks:
        visit.add_event(name, timestamp=at(name))
    inside = trace.set_span_in_context(visit)
    for name, first, last in _SPANS:
        if first in marks and last in marks and marks[first] <= marks[last]:
            tracer.start_span(name, context=inside, start_time=at(first)).end(at(last))
    for turn in timeline.turns:
        said, sounded = turn.get("speech_end_at"), turn.get("first_audio_at")
        if said is not None and sounded is not None and marks[begun] <= said <= sounded <= marks[ended]:
            span = tracer.start_span("turn", context=inside, start_time=moment(said))
            for name in ("transcript_at", "end_of_turn_at", "first_token_at"):
                if name in turn:
                    span.add_event(name.removesuffix("_at"), timestamp=moment(turn[name]))
            span.end(moment(sounded))
    visit.end(at(ended))


def flush_traces(timeout: float = EXPORT_TIMEOUT_S) -> None:
    """Send what waits; blocks up to `timeout` seconds, so for a thread."""
    provider = _provider
    if provider is not None and not provider.force_flush(int(timeout * 1000)):
        log.warning("traces could not be sent in time")


class CleanExporter(SpanExporter):
    """Hands spans on with every text scrubbed; runs in the exporting thread."""

    def __init__(self, inner: SpanExporter, scrubber: Scrubber) -> None:
        self._inner = inner
        self._scrubber = scrubber

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._inner.export([self._clean(span) for span in spans])

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)

    def _clean(self, span: ReadableSpan) -> ReadableSpan:
        status = span.status
        if status.status_code is StatusCode.ERROR and status.description:
            status = Status(StatusCode.ERROR, self._scrubber.text(status.description))
        return ReadableSpan(
            name=self._scrubber.text(span.name),
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=self._attributes(span.attributes),
            events=[
                Event(self._scrubber.text(event.name), self._attributes(event.attributes), event.timestamp)
                for event in span.events
            ],
            links=span.links,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _attributes(self, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
        return {key: self._scrubber.value(value) for key, value in (attributes or {}).items()}

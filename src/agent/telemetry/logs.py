"""Logs: structlog over the standard library, one format for every process, no personal data by default.

Job processes hand their records to the worker through the framework's queue; the worker renders all of them, so
fields travel as attributes of the record and are cleaned where they are rendered, whoever wrote them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import structlog

from agent.settings import Settings
from agent.telemetry.literal import mark_literal_texts
from agent.telemetry.scrub import Scrubber

_QUIET = ("aiohttp.access", "asyncio", "httpx", "httpx2", "httpcore", "openai", "mem0", "qdrant_client", "urllib3")

EventDict = MutableMapping[str, Any]
Processor = Callable[[Any, str, EventDict], EventDict]


def _clean(scrubber: Scrubber) -> Processor:
    def processor(_logger: Any, _method: str, event: EventDict) -> EventDict:
        return scrubber.record(event)

    return processor


def _add_origin(_logger: Any, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event["process"] = record.process
        event["at"] = round(record.created, 6)
        event.pop("message", None)  # the text again, as the framework's queue leaves it
        if record.exc_text and not record.exc_info:
            # The queue has put the traceback behind the text.
            event["exception"] = record.exc_text
            event["event"] = str(event["event"]).partition(record.exc_text)[0].rstrip("\n")
    return event


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Send every record of this process (and those the framework forwards from job processes) to `stream` (stdout).

    Secrets never pass; personal data only where `LOG_PERSONAL_DATA` is on (see `scrub`). Call once, in the worker's
    process, before the first log line.
    """
    configure_structlog()
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _add_origin,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _clean(Scrubber(settings)),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=(stream or sys.stdout).isatty())
    )
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def configure_structlog() -> None:
    """Make structlog write through the standard library with its fields as the record's attributes.

    Other libraries' records are marked with what of their text is literal (see `literal`).
    """
    mark_literal_texts()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )

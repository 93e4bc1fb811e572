"""Every metric of the service: its name with its unit, its labels, its meaning. Nothing else may be measured.

Counters and histograms are fed by records from any process; gauges and totals are read by the worker when it is
scraped. Labels take few values: what comes from outside is first reduced to what is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

GREETING_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
CALL_BUCKETS: Final = (0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 60.0)
LAG_BUCKETS: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
VISIT_BUCKETS: Final = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Instrument:
    """A metric. `total` is a counter that is kept elsewhere and only shown here; `buckets` are for histograms.

    `known` are label values, in the order of `labels`, that are shown from the start, as nothing: Prometheus sees an
    increase only in a series that was there before.
    """

    name: str
    kind: Literal["counter", "histogram", "gauge", "total"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()


_ERRORS: Final = ("Unavailable", "RateLimited", "Unauthorised", "Malformed", "Rejected")
_API_CALLS: Final = tuple(
    (call, result, source)
    for call in ("agent_id", "prompt", "models", "child")
    for result, source in (
        ("ok", "live"),
        ("ok", "cached"),
        ("NotFound", "live"),
        ("MustBindFirst", "live"),
        *product(_ERRORS, ("last_known", "default")),
    )
)
_SERVICES: Final = ("greetings", "vad", "engine", "music", "stories", "providers", "prompt")

_ALL: Final = (
    # How fast a child is served
    Instrument(
        "toy_greeting_seconds",
        "histogram",
        "From the job (or, when it came later, the device) to the first frame of the greeting. room: first or later of "
        "this worker. source: recorded or live.",
        ("room", "language", "source"),
        GREETING_BUCKETS,
    ),
    Instrument(
        "toy_first_word_seconds",
        "histogram",
        "From the job (or the device) to the first word of the child that was understood.",
        ("room", "language", "source"),
        VISIT_BUCKETS,
    ),
    Instrument(
        "toy_turn_seconds",
        "histogram",
        "From the end of the child's speech to the first sound of the reply.",
        (),
        GREETING_BUCKETS,
    ),
    Instrument(
        "toy_turn_stage_seconds",
        "histogram",
        "Parts of a turn. stage: transcript, end_of_turn, first_token, first_voice.",
        ("stage",),
        CALL_BUCKETS,
    ),
    Instrument(
        "toy_rollout_seconds",
        "histogram",
        "The same times by flag and variant. measure: greeting, first_word or turn. variant: on or off.",
        ("measure", "flag", "variant"),
        GREETING_BUCKETS,
    ),
    Instrument("toy_visit_seconds", "histogram", "Length of visits that ended in order.", (), VISIT_BUCKETS),
    Instrument("toy_visits_started", "counter", "Visits that began."),
    Instrument(
        "toy_visits_finished",
        "counter",
        "Visits that are over. outcome: ended, or lost with the process.",
        ("outcome",),
        known=(("ended",), ("lost",)),
    ),
    # What a visit asks of others
    Instrument(
        "toy_briefing_fetch_seconds",
        "histogram",
        "The whole briefing. mode: parallel or serial.",
        ("mode",),
        CALL_BUCKETS,
        known=(("parallel",), ("serial",)),
    ),
    Instrument(
        "toy_api_calls",
        "counter",
        "Answers of the Manager API to a briefing's questions. result: ok or the kind of error. source: what was used.",
        ("call", "result", "source"),
        known=_API_CALLS,
    ),
    Instrument("toy_api_call_seconds", "histogram", "Manager API calls, retries included.", ("call",), CALL_BUCKETS),
    Instrument(
        "toy_memories",
        "counter",
        "Times a child's memories were asked for. outcome: in_time, late (they join a later turn), empty, failed, or "
        "cancelled by the visit's end or another child.",
        ("outcome",),
        known=(("in_time",), ("late",), ("empty",), ("failed",), ("cancelled",)),
    ),
    Instrument("toy_memory_seconds", "histogram", "Until memories were answered, late ones too.", (), CALL_BUCKETS),
    Instrument(
        "toy_service_cache",
        "counter",
        "Whether a visit found a service ready in its process. result: hit or miss. service: music and stories where "
        "there is a place to play from.",
        ("service", "result"),
        known=tuple(product(_SERVICES, ("hit", "miss"))),
    ),
    Instrument(
        "toy_provider_errors",
        "counter",
        "Failed calls of speech, model and voice, and lost realtime sockets.",
        ("kind", "provider", "error"),
    ),
    Instrument(
        "toy_provider_fallbacks", "counter", "Answers given by another provider than the first.", ("kind", "provider")
    ),
    # Songs and stories
    Instrument(
        "toy_library_search_seconds", "histogram", "Finding a title. kind: music or story.", ("kind",), CALL_BUCKETS
    ),
    Instrument(
        "toy_library_searches",
        "counter",
        "Requests for titles. outcome: found, random or not_found.",
        ("kind", "outcome"),
    ),
    Instrument("toy_titles_started", "counter", "Songs and stories that began to sound.", ("kind",)),
    Instrument(
        "toy_titles_stopped",
        "counter",
        "And ended. reason: ended, stopped, skipped, broken or closed.",
        ("kind", "reason"),
    ),
    Instrument(
        "toy_media_refused",
        "counter",
        "Titles that could not be played. reason: name (it leads out of its folder), network (an address that is not "
        "allowed), size (too large, too long, or a bomb), missing, away or broken.",
        ("reason",),
        known=(("name",), ("network",), ("size",), ("missing",), ("away",), ("broken",)),
    ),
    Instrument(
        "toy_device_messages",
        "counter",
        "Messages of the data channel. result: sent, received, or why not: ignored_… (what was wrong with it), "
        "flooded, busy, doubled_abort, handler_failed, dropped or send_failed.",
        ("result",),
    ),
    Instrument("toy_control_words", "counter", "Spoken control words that were obeyed.", ("control",)),
    Instrument(
        "toy_tool_calls",
        "counter",
        "Tools the model used. outcome: done, failed or silent (the device).",
        ("tool", "outcome"),
    ),
    # What it costs
    Instrument(
        "toy_usage_tokens",
        "counter",
        "Model tokens. kind: input, cached_input, output.",
        ("service", "model", "kind"),
    ),
    Instrument("toy_usage_speech_seconds", "counter", "Sound heard (stt) and spoken (tts).", ("service", "model")),
    Instrument("toy_usage_characters", "counter", "Characters spoken.", ("model",)),
    Instrument("toy_cost", "counter", "Price of what was used, in the currency of PRICES.", ("service", "model")),
    Instrument(
        "toy_budget_exhausted",
        "counter",
        "Visits whose budget ended. scope: visit or day.",
        ("scope",),
        known=(("visit",), ("day",)),
    ),
    # The house
    Instrument("toy_loop_lag_seconds", "histogram", "How late event loops wake up.", ("process",), LAG_BUCKETS),
    Instrument("toy_visits_active", "gauge", "Rooms with a visit now."),
    Instrument("toy_visits_capacity", "gauge", "Rooms that fit."),
    Instrument("toy_utilisation_ratio", "gauge", "Share of the capacity in use, 0 to 1."),
    Instrument(
        "toy_refused",
        "total",
        "Rooms refused. reason: identity, full, memory, processes, rate or device_rate.",
        ("reason",),
    ),
    Instrument("toy_rooms_rescued", "counter", "Devices that were alone in their room and were given an agent."),
    Instrument("toy_ready", "gauge", "1 when rooms may come."),
    Instrument("toy_registered", "gauge", "1 while registered with LiveKit, 0 while the connection is lost."),
    Instrument("toy_draining", "gauge", "1 while visits are left to end by themselves."),
    Instrument(
        "toy_degraded",
        "gauge",
        "What readiness names: parts that processes or all rooms lack, or that no process can be started.",
    ),
    Instrument("toy_warm_processes", "gauge", "Processes that wait for a room."),
    Instrument(
        "toy_warm_processes_wanted",
        "gauge",
        "Processes to keep warm, from NUM_IDLE_PROCESSES up to MAX_IDLE_PROCESSES.",
    ),
    Instrument("toy_process_failures", "total", "Processes that did not start, or ended before they had a room."),
    Instrument("toy_processes", "gauge", "Processes. role: worker, starting, warm, visit or other.", ("role",)),
    Instrument(
        "toy_process_memory_bytes",
        "gauge",
        "Proportional memory of each process. slot: a number that is used again when its process has gone.",
        ("role", "slot"),
    ),
    Instrument(
        "toy_outbox_items",
        "gauge",
        "Items that wait for delivery. home: file, this machine's alone; redis, the same for all workers.",
        ("kind", "home"),
    ),
    Instrument("toy_outbox_oldest_age_seconds", "gauge", "Age of the oldest of them.", ("kind", "home")),
    Instrument(
        "toy_outbox_results",
        "total",
        "What became of items. result: delivered, retried, dropped or dead.",
        ("kind", "home", "result"),
    ),
    Instrument("toy_metric_records", "counter", "Records from processes. result: taken or refused.", ("result",)),
    Instrument("toy_build_info", "gauge", "Always 1.", ("version",)),
)

INSTRUMENTS: Final = {instrument.name: instrument for instrument in _ALL}
"""By name."""


def exposed_names() -> frozenset[str]:
    """Every series name that `/metrics` can show for these instruments."""
    names: set[str] = set()
    for instrument in _ALL:
        if instrument.kind in ("counter", "total"):
            names.add(f"{instrument.name}_total")
        elif instrument.kind == "histogram":
            names.update(f"{instrument.name}_{suffix}" for suffix in ("bucket", "sum", "count"))
        else:
            names.add(instrument.name)
    return frozenset(names)

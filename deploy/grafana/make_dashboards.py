"""Writes the dashboards beside it: `python deploy/grafana/make_dashboards.py`. Edit here, not in the JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
Panel = dict[str, Any]


def p(percent: float, metric: str, by: str = "", where: str = "") -> str:
    """A percentile of a histogram, by labels."""
    inside = f"{{{where}}}" if where else ""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({percent}, sum by ({labels}) (rate({metric}_bucket{inside}[$__rate_interval])))"


def rate(metric: str, by: str, where: str = "") -> str:
    """Events a second, by labels."""
    inside = f"{{{where}}}" if where else ""
    return f"sum by ({by}) (rate({metric}_total{inside}[$__rate_interval]))"


def lines(title: str, unit: str, queries: dict[str, str], about: str = "", width: int = 12) -> Panel:
    """A panel of lines: legend by query."""
    return _panel("timeseries", title, unit, queries, about, width)


def number(title: str, unit: str, query: str, about: str = "", red_from: float | None = None) -> Panel:
    """One value now, red from a threshold on."""
    panel = _panel("stat", title, unit, {"": query}, about, 4)
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if red_from is not None:
        steps.append({"color": "red", "value": red_from})
    panel["fieldConfig"]["defaults"]["thresholds"] = {"mode": "absolute", "steps": steps}
    panel["gridPos"]["h"] = 4
    return panel


def heat(title: str, metric: str, where: str = "", about: str = "") -> Panel:
    """Distribution over time."""
    inside = f"{{{where}}}" if where else ""
    query = f"sum by (le) (increase({metric}_bucket{inside}[$__rate_interval]))"
    panel = _panel("heatmap", title, "s", {"{{le}}": query}, about, 12)
    panel["targets"][0]["format"] = "heatmap"
    panel["options"] = {"calculate": False, "yAxis": {"unit": "s"}}
    return panel


def _panel(kind: str, title: str, unit: str, queries: dict[str, str], about: str, width: int) -> Panel:
    targets = [
        {"datasource": SOURCE, "expr": query, "legendFormat": legend, "refId": chr(ord("A") + place)}
        for place, (legend, query) in enumerate(queries.items())
    ]
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "gridPos": {"h": 8, "w": width, "x": 0, "y": 0},
    }


def dashboard(uid: str, title: str, about: str, panels: list[Panel]) -> dict[str, Any]:
    """Panels from left to right, row by row."""
    x = y = height = 0
    for place, panel in enumerate(panels):
        grid = panel["gridPos"]
        if x + grid["w"] > 24:
            x, y, height = 0, y + height, 0
        grid["x"], grid["y"] = x, y
        x, height = x + grid["w"], max(height, grid["h"])
        panel["id"] = place + 1
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["toy"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels,
    }


def visits() -> dict[str, Any]:
    """How children are served."""
    return dashboard(
        "toy-visits",
        "Toy: visits",
        "How fast children are greeted and answered, and how a flag changes that.",
        [
            number("Greeting p95", "s", p(0.95, "toy_greeting_seconds"), red_from=3),
            number("Turn p95", "s", p(0.95, "toy_turn_seconds"), red_from=3),
            number("Visits now", "short", "sum(toy_visits_active)"),
            number("Utilisation", "percentunit", "max(toy_utilisation_ratio)", red_from=0.9),
            number("Warm processes", "short", "sum(toy_warm_processes)"),
            number(
                "Lost visits, 1 h", "short", 'sum(increase(toy_visits_finished_total{outcome="lost"}[1h]))', red_from=1
            ),
            lines(
                "Time to greeting, first and later rooms",
                "s",
                {
                    f"{name} {{{{room}}}}": p(share, "toy_greeting_seconds", "room")
                    for name, share in PERCENTILES.items()
                },
                "From the job, or the device where it came later, to the first frame.",
            ),
            heat("Distribution of the time to greeting", "toy_greeting_seconds"),
            lines(
                "Time to greeting by language and source",
                "s",
                {"{{language}} {{source}}": p(0.95, "toy_greeting_seconds", "language, source")},
                "95th percentile.",
            ),
            lines(
                "Time to the child's first word",
                "s",
                {n: p(s, "toy_first_word_seconds") for n, s in PERCENTILES.items()},
            ),
            lines(
                "Turn: end of speech to first sound",
                "s",
                {name: p(share, "toy_turn_seconds") for name, share in PERCENTILES.items()},
            ),
            lines(
                "Parts of a turn", "s", {"{{stage}}": p(0.95, "toy_turn_stage_seconds", "stage")}, "95th percentile."
            ),
            lines(
                "Rollout: greeting by flag and variant",
                "s",
                {"{{flag}} {{variant}}": p(0.95, "toy_rollout_seconds", "flag, variant", 'measure="greeting"')},
                "95th percentile. Compare on and off of a flag that is rolled out in part.",
            ),
            lines(
                "Rollout: turn by flag and variant",
                "s",
                {"{{flag}} {{variant}}": p(0.95, "toy_rollout_seconds", "flag, variant", 'measure="turn"')},
                "95th percentile.",
            ),
            lines(
                "Visits begun and over",
                "short",
                {
                    "begun": "sum(rate(toy_visits_started_total[$__rate_interval])) * 60",
                    "{{outcome}}": f"{rate('toy_visits_finished', 'outcome')} * 60",
                },
                "A minute.",
            ),
            lines(
                "Length of visits", "s", {name: p(share, "toy_visit_seconds") for name, share in PERCENTILES.items()}
            ),
            lines("Songs and stories begun", "reqps", {"{{kind}}": rate("toy_titles_started", "kind")}),
            lines("And ended", "reqps", {"{{kind}} {{reason}}": rate("toy_titles_stopped", "kind, reason")}),
            lines(
                "Requests for titles", "reqps", {"{{kind}} {{outcome}}": rate("toy_library_searches", "kind, outcome")}
            ),
            lines("Finding a title", "s", {"{{kind}} p95": p(0.95, "toy_library_search_seconds", "kind")}),
            lines("Tools the model used", "reqps", {"{{tool}} {{outcome}}": rate("toy_tool_calls", "tool, outcome")}),
            lines(
                "Titles that could not be played",
                "short",
                {"{{reason}}": "sum by (reason) (increase(toy_media_refused_total[$__rate_interval]))"},
                "name, network and size: somebody may be trying what must not be.",
            ),
            lines(
                "Device messages that were not acted on",
                "reqps",
                {"{{result}}": rate("toy_device_messages", "result", 'result!~"sent|received"')},
                "Told at the 1st, 2nd, 4th … of a visit and at its end. flooded: a device that sends without a pause.",
            ),
            lines("Control words", "reqps", {"{{control}}": rate("toy_control_words", "control")}),
        ],
    )


def services() -> dict[str, Any]:
    """What visits lean on."""
    hits = rate("toy_service_cache", "service", 'result="hit"')
    return dashboard(
        "toy-services",
        "Toy: services and load",
        "What visits lean on: Manager API, providers, outbox, processes; and what they cost.",
        [
            lines(
                "Manager API calls by result",
                "reqps",
                {"{{call}} {{result}}": rate("toy_api_calls", "call, result")},
            ),
            lines("Where briefings come from", "reqps", {"{{source}}": rate("toy_api_calls", "source")}),
            lines("Manager API call time", "s", {"{{call}} p95": p(0.95, "toy_api_call_seconds", "call")}),
            lines("Whole briefing", "s", {"{{mode}} p95": p(0.95, "toy_briefing_fetch_seconds", "mode")}),
            lines(
                "Memories",
                "reqps",
                {"{{outcome}}": rate("toy_memories", "outcome")},
                "Late ones join a later turn than the first.",
            ),
            lines(
                "Time to memories", "s", {name: p(share, "toy_memory_seconds") for name, share in PERCENTILES.items()}
            ),
            lines(
                "Service cache hit rate",
                "percentunit",
                {"{{service}}": f"{hits} / {rate('toy_service_cache', 'service')}"},
                "Visits that found each service ready in their process; music and stories are where they have titles.",
            ),
            lines(
                "Provider errors",
                "reqps",
                {"{{kind}} {{provider}} {{error}}": rate("toy_provider_errors", "kind, provider, error")},
            ),
            lines(
                "Answers by a standby",
                "reqps",
                {"{{kind}} {{provider}}": rate("toy_provider_fallbacks", "kind, provider")},
            ),
            lines(
                "Outbox: items",
                "short",
                {
                    "{{kind}}": 'sum by (kind) (toy_outbox_items{home="file"})',
                    "{{kind}} in Redis": 'max by (kind) (toy_outbox_items{home="redis"})',
                },
                "Redis' are the same for every worker.",
            ),
            lines("Outbox: oldest", "s", {"{{kind}}": "max by (kind) (toy_outbox_oldest_age_seconds)"}),
            lines(
                "Outbox: results",
                "reqps",
                {
                    "{{kind}} {{result}}": rate("toy_outbox_results", "kind, result", 'home="file"'),
                    "{{kind}} {{result}} in Redis": rate("toy_outbox_results", "kind, result", 'home="redis"').replace(
                        "sum by", "max by"
                    ),
                },
            ),
            lines("Load", "short", {"visits": "sum(toy_visits_active)", "capacity": "sum(toy_visits_capacity)"}),
            lines("Rooms refused", "reqps", {"{{reason}}": rate("toy_refused", "reason")}),
            lines(
                "Devices found alone",
                "short",
                {"rescued": "sum(increase(toy_rooms_rescued_total[$__rate_interval]))"},
                "Their visit or worker had died, or none was there when they came.",
            ),
            lines(
                "Processes",
                "short",
                {
                    "{{role}}": "sum by (role) (toy_processes)",
                    "failed": "sum(increase(toy_process_failures_total[$__rate_interval]))",
                },
                "Failed: they did not start, or ended before they had a room.",
            ),
            lines(
                "Memory",
                "bytes",
                {
                    "{{role}} together": "sum by (role) (toy_process_memory_bytes)",
                    "{{role}} largest": "max by (role) (toy_process_memory_bytes)",
                },
                "Proportional: what processes share counts once.",
            ),
            lines("Loop lag p99", "s", {"{{process}}": p(0.99, "toy_loop_lag_seconds", "process")}),
            lines(
                "Readiness",
                "short",
                {
                    "ready": "min(toy_ready)",
                    "registered with LiveKit": "min(toy_registered)",
                    "draining": "max(toy_draining)",
                    "degraded parts": "max(toy_degraded)",
                },
            ),
            lines("Cost an hour", "short", {"{{service}} {{model}}": f"{rate('toy_cost', 'service, model')} * 3600"}),
            lines("Tokens", "short", {"{{model}} {{kind}}": rate("toy_usage_tokens", "model, kind")}, "A second."),
            lines(
                "Sound and characters",
                "short",
                {
                    "{{service}} seconds": rate("toy_usage_speech_seconds", "service"),
                    "characters {{model}}": rate("toy_usage_characters", "model"),
                },
                "A second.",
            ),
            lines(
                "Budgets that ended",
                "short",
                {"{{scope}}": "sum by (scope) (increase(toy_budget_exhausted_total[1h]))"},
            ),
        ],
    )


def render() -> dict[str, str]:
    """Every dashboard's JSON by file name."""
    made = (visits(), services())
    return {f"{board['uid']}.json": json.dumps(board, indent=1, ensure_ascii=False) + "\n" for board in made}


if __name__ == "__main__":
    for name, text in render().items():
        (FOLDER / name).write_text(text)

"""Every alert fires on a series that deserves it and stays silent on one that does not, by the real promtool."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from telemetry_support import parse, prometheus, scrape

from agent import errors
from agent.briefing.profile import Part
from agent.telemetry.hub import MetricsHub
from agent.telemetry.instruments import INSTRUMENTS
from sandbox.processes import REPO

RULES = REPO / "deploy" / "prometheus" / "rules.yml"
WHEN = "30m"


def _histogram(name: str, fast: int, slow: int, *, edge: str, labels: str = "") -> dict[str, str]:
    """A histogram of which `fast` observations a minute are below `edge` seconds and `slow` below 30."""
    inside = f"{labels}," if labels else ""
    return {
        f'{name}_bucket{{{inside}le="{edge}"}}': f"0+{fast}x60",
        f'{name}_bucket{{{inside}le="30"}}': f"0+{fast + slow}x60",
        f'{name}_bucket{{{inside}le="+Inf"}}': f"0+{fast + slow}x60",
    }


_CACHE = 'toy_service_cache_total{{service="vad",result="{}"}}'.format
_CALLS = 'toy_api_calls_total{{call="prompt",result="{}",source="{}"}}'.format
_WARM = {"toy_warm_processes_wanted": "3x60", "toy_draining": "0x60"}
_OUTBOX = 'toy_outbox_oldest_age_seconds{instance="a",kind="chat",home="file"}'
_GREETING = 'room="later",language="en",source="recorded"'

CASES: list[tuple[str, str, dict[str, str], bool]] = [
    (
        "ToyGreetingSlow",
        "a tenth is slow",
        _histogram("toy_greeting_seconds", 90, 10, edge="3.0", labels=_GREETING),
        True,
    ),
    ("ToyGreetingSlow", "one in 50 is slow", _histogram("toy_greeting_seconds", 98, 2, edge="3.0"), False),
    ("ToyGreetingSlow", "nobody comes", _histogram("toy_greeting_seconds", 0, 0, edge="3.0"), False),
    ("ToyServiceCacheMisses", "a fifth misses", {_CACHE("hit"): "0+80x60", _CACHE("miss"): "0+20x60"}, True),
    ("ToyServiceCacheMisses", "the first ones", {_CACHE("hit"): "0+1x60", _CACHE("miss"): "0x20 5x40"}, True),
    ("ToyServiceCacheMisses", "one in 20 misses", {_CACHE("hit"): "0+95x60", _CACHE("miss"): "0+5x60"}, False),
    ("ToyApiErrors", "3 % fail", {_CALLS("ok", "live"): "0+97x60", _CALLS("Unavailable", "default"): "0+3x60"}, True),
    (
        "ToyApiErrors",
        "the first ones",
        {_CALLS("ok", "live"): "0+1x60", _CALLS("Unavailable", "last_known"): "0x20 5x40"},
        True,
    ),
    (
        "ToyApiErrors",
        "1 % fails",
        {_CALLS("ok", "live"): "0+99x60", _CALLS("Unavailable", "last_known"): "0+1x60"},
        False,
    ),
    (
        "ToyApiErrors",
        "cached answers do not hide failing calls",
        {_CALLS("ok", "cached"): "0+1000x60", _CALLS("ok", "live"): "0+9x60", _CALLS("Malformed", "default"): "0+1x60"},
        True,
    ),
    ("ToyApiErrors", "unknown devices are no errors", {_CALLS("NotFound", "live"): "0+10x60"}, False),
    (
        "ToyParallelFetchSlow",
        "a tenth is slow",
        _histogram("toy_briefing_fetch_seconds", 90, 10, edge="1.0", labels='mode="parallel"'),
        True,
    ),
    (
        "ToyParallelFetchSlow",
        "one in 50 is slow",
        _histogram("toy_briefing_fetch_seconds", 98, 2, edge="1.0", labels='mode="parallel"'),
        False,
    ),
    (
        "ToyParallelFetchSlow",
        "only serial ones are slow",
        _histogram("toy_briefing_fetch_seconds", 0, 99, edge="1.0", labels='mode="serial"'),
        False,
    ),
    ("ToyOutboxOld", "six minutes", {_OUTBOX: "360x60"}, True),
    ("ToyOutboxOld", "four minutes", {_OUTBOX: "240x60"}, False),
    ("ToyOutboxOld", "empty", {_OUTBOX: "0x60"}, False),
    ("ToyNoWarmProcess", "none", {"toy_warm_processes": "0x60", **_WARM}, True),
    ("ToyNoWarmProcess", "one", {"toy_warm_processes": "1x60", **_WARM}, False),
    ("ToyNoWarmProcess", "none, but they come back", {"toy_warm_processes": "1x29 0 1x30", **_WARM}, False),
    (
        "ToyNoWarmProcess",
        "none is wanted",
        {"toy_warm_processes": "0x60", "toy_warm_processes_wanted": "0x60", "toy_draining": "0x60"},
        False,
    ),
    (
        "ToyNoWarmProcess",
        "the worker drains",
        {"toy_warm_processes": "0x60", "toy_warm_processes_wanted": "3x60", "toy_draining": "1x60"},
        False,
    ),
    ("ToyWorkerGone", "down", {'up{job="toy"}': "0x60", "toy_build_info": "1x60"}, True),
    ("ToyWorkerGone", "no longer scraped", {'up{job="prometheus"}': "1x60"}, True),
    ("ToyWorkerGone", "up", {'up{job="toy"}': "1x60", "toy_build_info": "1x60"}, False),
    ("ToyVisitsLost", "one", {'toy_visits_finished_total{outcome="lost"}': "0x25 1x60"}, True),
    ("ToyVisitsLost", "none", {'toy_visits_finished_total{outcome="lost"}': "4x60"}, False),
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> set[Any]:
    """The series that a worker shows before anything has happened."""
    return set(asyncio.run(scrape(MetricsHub(tmp_path_factory.mktemp("hub")))))


def _as_shown(series: str, values: str, shown: set[Any]) -> str:
    """What Prometheus gets of a counter: a series that a new worker does not show is not there while it is 0."""
    (key,) = parse(f"{series} 0\n")
    return values if key in shown or not key[0].endswith("_total") else re.sub(r"^0x", "_x", values)


@pytest.mark.parametrize(("alert", "case", "series", "fires"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES])
def test_an_alert_fires_or_stays_silent(
    tmp_path: Path, shown: set[Any], alert: str, case: str, series: dict[str, str], fires: bool
) -> None:
    program = prometheus("promtool")
    # Whether it fires is read from Prometheus' own series of alerts, whatever its labels and words.
    expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": name, "values": _as_shown(name, values, shown)} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": WHEN,
                "exp_samples": [{"labels": "{}", "value": 1 if fires else 0}],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([program, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{case}: {done.stdout}{done.stderr}"


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    rules = yaml.safe_load(RULES.read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    for fires in (True, False):
        assert {alert for alert, _, _, expected in CASES if expected is fires} == alerts


@pytest.mark.parametrize("arguments", [("rules", "rules.yml"), ("config", "prometheus.yml")], ids=lambda a: a[0])
def test_promtool_finds_the_files_right(arguments: tuple[str, str]) -> None:
    program = prometheus("promtool")
    file = RULES.with_name(arguments[1])
    done = subprocess.run([program, "check", arguments[0], str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_call_of_a_briefing_is_shown_before_it_first_fails() -> None:
    known = INSTRUMENTS["toy_api_calls"].known
    assert {call for call, _, _ in known} == {part.value for part in Part}
    assert {result for _, result, _ in known if result != "ok"} <= set(vars(errors))

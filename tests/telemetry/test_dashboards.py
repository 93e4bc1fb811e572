"""Dashboards and rules ask only for what exists: every metric, every label, in queries that Prometheus can parse."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from telemetry_support import prometheus

from agent.telemetry.instruments import INSTRUMENTS, exposed_names
from sandbox.processes import REPO

GRAFANA = REPO / "deploy" / "grafana"
RULES = REPO / "deploy" / "prometheus" / "rules.yml"
_METRIC = re.compile(r"\b(toy_[a-z0-9_]+)\b")
_RECORDED = re.compile(r"\b(toy:[a-z0-9_:]+)\b")
_LABELS = re.compile(r"by \(([^)]*)\)|\{([^}]*)\}")


def _queries() -> Iterator[tuple[str, str]]:
    for file in sorted(GRAFANA.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{file.name}: {panel['title']}", target["expr"]
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield f"rules.yml: {rule.get('alert') or rule['record']}", rule["expr"]


QUERIES = list(_queries())


def test_there_are_dashboards_and_rules() -> None:
    assert len({where.split(":")[0] for where, _ in QUERIES}) == 3
    assert len(QUERIES) > 40


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_names_only_metrics_and_labels_that_exist(where: str, query: str) -> None:
    recorded = {
        rule["record"]
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    named = set(_METRIC.findall(query))
    assert named or _RECORDED.findall(query) or query.startswith("up{")
    assert named <= exposed_names()
    assert set(_RECORDED.findall(query)) <= recorded
    known = {"le", "instance", "job"} | {label for name in named for label in _labels_of(name)}
    for by, inside in _LABELS.findall(query):
        used = [label.strip() for label in by.split(",")] if by else re.findall(r"(\w+)\s*[=!]", inside)
        assert set(filter(None, used)) <= known, where


def _labels_of(series: str) -> tuple[str, ...]:
    for suffix in ("", "_total", "_bucket", "_sum", "_count"):
        if series.endswith(suffix) and series.removesuffix(suffix) in INSTRUMENTS:
            return INSTRUMENTS[series.removesuffix(suffix)].labels
    raise AssertionError(series)


def test_every_query_of_the_dashboards_is_promql(tmp_path: Path) -> None:
    rules: list[dict[str, Any]] = [
        {"record": f"dashboard:query:{place}", "expr": query.replace("$__rate_interval", "5m")}
        for place, (_, query) in enumerate(QUERIES)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run(
        [prometheus("promtool"), "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_is_shown_or_asked_somewhere() -> None:
    asked = {name for _, query in QUERIES for name in _METRIC.findall(query)}
    shown = {name for name in INSTRUMENTS if any(found.startswith(name) for found in asked)}
    assert set(INSTRUMENTS) - shown <= {"toy_metric_records", "toy_build_info"}


def test_the_dashboards_are_those_that_the_script_makes() -> None:
    module = _script()
    made: dict[str, str] = module.render()
    assert {path.name for path in GRAFANA.glob("*.json")} == set(made)
    for name, text in made.items():
        assert (GRAFANA / name).read_text() == text, "run: python deploy/grafana/make_dashboards.py"


def test_panels_do_not_overlap() -> None:
    for file in GRAFANA.glob("*.json"):
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(file.read_text())["panels"]:
            grid = panel["gridPos"]
            cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
            assert grid["x"] + grid["w"] <= 24
            assert not cells & taken, panel["title"]
            taken |= cells


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dashboards", GRAFANA / "make_dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""What is shipped to run the worker says what the code says: settings, paths, ports, times to drain."""

from __future__ import annotations

import configparser
from typing import Any

import yaml

from agent.settings import Settings
from agent.telemetry.instruments import INSTRUMENTS
from sandbox.processes import REPO

DEPLOY = REPO / "deploy"
SETTINGS = {name.upper() for name in Settings.model_fields}
DEFAULTS: Settings = Settings(_env_file=None)  # type: ignore[call-arg]


def kubernetes() -> dict[str, dict[str, Any]]:
    text = (DEPLOY / "kubernetes" / "toy-agent.yaml").read_text()
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


def test_compose_mounts_what_is_there_and_sets_what_is_known() -> None:
    folder = DEPLOY / "compose"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    services = compose["services"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.replace("${CATALOGUE:-../../sample}", "../../sample").split(":")[0]
            assert source in compose["volumes"] or (folder / source).exists(), source
    worker = services["worker"]
    assert set(worker["environment"]) <= SETTINGS
    assert (folder / worker["build"] / "Dockerfile").resolve() == (REPO / "Dockerfile").resolve()
    assert worker["read_only"]
    minutes = int(worker["stop_grace_period"].removesuffix("m"))
    assert minutes * 60 > DEFAULTS.drain_timeout
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(port.split(":")[-1] for port in published) == ["3000", "7880", "7881", "7882/udp"]
    targets = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]
    assert targets["targets"] == [f"worker:{DEFAULTS.http_port}"]
    assert list((DEPLOY / "grafana").glob("*.json"))


def test_systemd_gives_time_to_drain_and_tells_the_main_process_alone() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / "toy-agent.service")
    service = unit["Service"]
    assert service["KillMode"] == "mixed"
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) > DEFAULTS.drain_timeout
    assert service["ExecStart"].endswith("-m agent start")
    assert service["Environment"].split("=")[0] in SETTINGS


def test_kubernetes_probes_drains_and_scales_by_what_there_is() -> None:
    found = kubernetes()
    pod = found["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    names = {item["name"]: item["value"] for item in container["env"]}
    assert set(names) <= SETTINGS
    assert pod["terminationGracePeriodSeconds"] > float(names["DRAIN_TIMEOUT"])
    assert container["ports"][0]["containerPort"] == int(names["HTTP_PORT"])
    assert container["livenessProbe"]["httpGet"]["path"] == "/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsNonRoot"]
    metric = found["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert metric in INSTRUMENTS
    for kind in ("Service", "PodDisruptionBudget"):
        selector = found[kind]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == {"app": "toy-agent"}

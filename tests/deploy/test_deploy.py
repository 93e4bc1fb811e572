"""What is shipped to run the worker says what the code says: settings, paths, ports, times to drain."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_schema import SCHEMAS
from packaging.requirements import Requirement

from agent.cli import main
from agent.health import (
    MB_OF_WORKER,
    MB_PER_ROOM,
    MB_PER_WARM_PROCESS,
    ROOMS_PER_CORE,
    HealthServer,
    WorkerState,
    most_idle,
)
from agent.settings import Settings
from agent.telemetry.hub import MetricsHub
from agent.telemetry.instruments import INSTRUMENTS
from sandbox.processes import REPO

DEPLOY = REPO / "deploy"
COMPOSE = DEPLOY / "compose"
SETTINGS = {name.upper() for name in Settings.model_fields}
DEFAULTS: Settings = Settings(_env_file=None)  # type: ignore[call-arg]
# The container's own (see the Dockerfile), known to Python and not to us.
PYTHONS = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}


def kubernetes() -> dict[str, dict[str, Any]]:
    text = (DEPLOY / "kubernetes" / "toy-agent.yaml").read_text()
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


def settings_from(values: dict[str, str]) -> Settings:
    """They are not only known by name: the values are taken."""
    return Settings(_env_file=None, **{name.lower(): value for name, value in values.items()})  # type: ignore[arg-type]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (REPO / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in lines)]


@pytest.fixture
async def paths(tmp_path: Path) -> set[str]:
    """The paths that the health server of a worker answers."""
    settings = settings_from({"STATE_DIR": str(tmp_path), "HTTP_PORT": "0"})
    health = HealthServer(settings, WorkerState(settings), MetricsHub(tmp_path))
    async with health:
        assert health._runner is not None
        return {route.get_info()["path"] for route in health._runner.app.router.resources()}


def test_compose_mounts_what_is_there_and_sets_what_is_known() -> None:
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"livekit", "qdrant", "redis", "worker", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert re.search(r":v?\d+\.\d+", service.get("image", ":1.0")), f"{name}: no version"
        for volume in service.get("volumes", []):
            source = volume.replace("${CATALOGUE:-../../sample}", "../../sample").split(":")[0]
            assert source in compose["volumes"] or (COMPOSE / source).exists(), source
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert set(compose["volumes"]) <= used
    worker = services["worker"]
    assert set(worker["environment"]) <= SETTINGS
    settings = settings_from(worker["environment"])
    for url in (settings.livekit_url, settings.qdrant_url, settings.redis_url):
        assert re.split(r"[:/]+", str(url))[1] in services
    assert set(worker["depends_on"]) <= set(services)
    assert str(settings.state_dir) in {volume.split(":")[1] for volume in worker["volumes"]}
    assert (COMPOSE / worker["build"] / "Dockerfile").resolve() == (REPO / "Dockerfile").resolve()
    assert worker["read_only"]
    assert worker["cap_drop"] == ["ALL"]
    minutes = int(worker["stop_grace_period"].removesuffix("m"))
    assert minutes * 60 > DEFAULTS.drain_timeout
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(port.split(":")[-1] for port in published) == ["3000", "7880", "7881", "7882/udp"]
    livekit = yaml.safe_load(services["livekit"]["environment"]["LIVEKIT_CONFIG"])
    assert (livekit["port"], livekit["rtc"]["tcp_port"], livekit["rtc"]["udp_port"]) == (7880, 7881, 7882)


def test_prometheus_and_grafana_find_each_other_and_the_worker() -> None:
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    port = compose["services"]["worker"]["environment"]["HTTP_PORT"]
    config = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "toy", "the alerts ask for it"
    assert job["static_configs"][0]["targets"] == [f"worker:{port}"]
    mounted = dict(volume.split(":")[:2] for volume in compose["services"]["prometheus"]["volumes"])
    assert mounted["../prometheus/rules.yml"] == f"/etc/prometheus/{config['rule_files'][0]}"
    (source,) = yaml.safe_load((COMPOSE / "grafana-datasource.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((COMPOSE / "grafana-dashboards.yaml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    assert mounted["../grafana"] == provider["options"]["path"]
    assert list((DEPLOY / "grafana").glob("*.json"))


def test_promtool_takes_every_configuration() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    for folder in (COMPOSE, DEPLOY / "prometheus"):
        # The rules lie elsewhere in the container.
        command = ["promtool", "check", "config", "--syntax-only", str(folder / "prometheus.yml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_gives_time_to_drain_and_tells_the_main_process_alone() -> None:
    file = DEPLOY / "systemd" / "toy-agent.service"
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(file)
    service = unit["Service"]
    assert service["KillMode"] == "mixed"
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) > DEFAULTS.drain_timeout
    assert service["ExecStart"].endswith("-m agent start")
    environment = dict(item.split("=", 1) for item in shlex.split(service["Environment"]))
    assert set(environment) <= SETTINGS
    assert environment["STATE_DIR"] == f"/var/lib/{service['StateDirectory']}"
    # Told by the README and the unit's own comment, relative to its folder.
    assert environment["MODEL_DIR"] == f"{service['WorkingDirectory']}/models"
    for told in (file, REPO / "README.md"):
        assert "MODEL_DIR=models .models-venv/bin/python -m agent download-files" in told.read_text()
    assert service["StateDirectoryMode"] == "0700"
    assert service["NoNewPrivileges"] == "true"
    assert service["ProtectSystem"] == "strict"
    assert service["User"] != "root"
    # The health server, the metrics' socket, LiveKit and the network's changes.
    assert set(service["RestrictAddressFamilies"].split()) >= {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"}


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "systemd" / "toy-agent.service").read_text()
    here = re.sub(r"^(ExecStart=)\S+", r"\1/bin/true", text, flags=re.MULTILINE)
    here = re.sub(r"^(User|Group|WorkingDirectory)=.*\n", "", here, flags=re.MULTILINE)
    file = tmp_path / "toy-agent.service"
    file.write_text(here)
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert "toy-agent.service" not in done.stderr, done.stderr


def test_every_kubernetes_object_is_one() -> None:
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "toy-agent.yaml").read_text()))
    assert {item["kind"] for item in objects} == set(SCHEMAS)
    for item in objects:
        jsonschema.Draft202012Validator(SCHEMAS[item["kind"]]).validate(item)
        assert item["metadata"]["name"] == "toy-agent"


def test_the_schemas_refuse_what_the_api_server_refuses() -> None:
    found = kubernetes()
    found["StatefulSet"]["spec"]["template"]["spec"]["terminationGracePeriod"] = 1860
    with pytest.raises(jsonschema.ValidationError, match="terminationGracePeriod"):
        jsonschema.Draft202012Validator(SCHEMAS["StatefulSet"]).validate(found["StatefulSet"])


def test_kubernetes_probes_drains_and_scales_by_what_there_is(paths: set[str]) -> None:
    found = kubernetes()
    pod = found["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    values = found["ConfigMap"]["data"]
    assert set(values) <= SETTINGS
    settings = settings_from(values)
    sources = [next(iter(source.values()))["name"] for source in container["envFrom"]]
    assert sources == ["toy-agent", found["ConfigMap"]["metadata"]["name"]]
    assert pod["terminationGracePeriodSeconds"] > settings.drain_timeout
    (port,) = container["ports"]
    assert port["containerPort"] == settings.http_port
    assert settings.http_host == "0.0.0.0"
    for probe, path in (("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert path in paths
    template = found["StatefulSet"]["spec"]["template"]["metadata"]
    scrape = {name.rpartition("/")[2]: value for name, value in template["annotations"].items()}
    assert scrape == {"scrape": "true", "port": str(settings.http_port), "path": "/metrics"}
    assert scrape["path"] in paths
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in found["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert mounts[str(settings.state_dir.parent)] in claims, "the volume's root is not the worker's to close"
    assert set(mounts.values()) - claims == {volume["name"] for volume in pod["volumes"]}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["kind"] == "StatefulSet"
    assert scaler["minReplicas"] >= 2, "a worker that drains leaves another one"
    (metric,) = scaler["metrics"]
    requested = container["resources"]["requests"]
    assert "cpu" not in container["resources"]["limits"], "so that the capacity cannot be derived from it"
    assert settings.max_rooms == int(requested["cpu"]) * ROOMS_PER_CORE
    needed_mb = MB_OF_WORKER + settings.max_rooms * MB_PER_ROOM + most_idle(settings) * MB_PER_WARM_PROCESS
    assert needed_mb <= int(requested["memory"].removesuffix("Gi")) * 1024
    target = int(metric["pods"]["target"]["averageValue"].removesuffix("m")) / 1000
    assert 1 <= settings.max_rooms * target <= settings.max_rooms - 1, "a new worker comes before the others are full"
    assert metric["pods"]["metric"]["name"] in INSTRUMENTS
    adapter = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())
    assert [rule["name"]["as"] for rule in adapter["rules"]["custom"]] == [metric["pods"]["metric"]["name"]]
    labels = template["labels"]
    for kind in ("Service", "PodDisruptionBudget", "StatefulSet"):
        selector = found[kind]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"] == settings.http_port
    monitor = yaml.safe_load((DEPLOY / "kubernetes" / "pod-monitor.yaml").read_text())["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    assert monitor["podMetricsEndpoints"][0]["port"] == port["name"]
    assert monitor["podMetricsEndpoints"][0]["path"] in paths


def test_the_image_is_locked_and_runs_without_root(paths: set[str]) -> None:
    steps = instructions()
    last = max(place for place, (name, _) in enumerate(steps) if name == "FROM")
    final = steps[last:]
    assert [rest for name, rest in final if name == "USER"] == ["10001"]
    installs = [part for name, rest in steps if name == "RUN" for part in rest.split("&&") if "pip install" in part]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-deps --no-build-isolation" in install, install
    for name, rest in steps:
        if name == "COPY" and "--from=" not in rest:
            *sources, _ = shlex.split(rest)
            assert all((REPO / source).exists() for source in sources), rest
    (environment,) = [rest for name, rest in final if name == "ENV"]
    values = dict(pair.split("=", 1) for pair in shlex.split(environment))
    assert set(values) - PYTHONS <= SETTINGS
    settings = settings_from({name: value for name, value in values.items() if name in SETTINGS})
    assert [rest for name, rest in final if name == "EXPOSE"] == [str(settings.http_port)]
    assert [rest for name, rest in final if name == "VOLUME"] == [str(settings.state_dir)]
    (health,) = [rest for name, rest in final if name == "HEALTHCHECK"]
    asked = re.search(r"http://127\.0\.0\.1:\{os\.environ\[\\\"HTTP_PORT\\\"\]\}(/\w+)", health)
    assert asked is not None, health
    assert asked[1] in paths
    assert values["HTTP_PORT"] == str(settings.http_port)
    (command,) = [rest for name, rest in final if name == "CMD"]
    assert yaml.safe_load(command) == ["python", "-m", "agent", "start"]
    assert [rest for name, rest in final if name == "STOPSIGNAL"] == ["SIGTERM"]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_every_locked_package_has_its_hashes(lock: str) -> None:
    text = re.sub(r"\\\n\s*", " ", (REPO / lock).read_text())
    packages = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(packages) > 50
    for package in packages:
        assert re.match(r"^[a-z0-9][a-z0-9._-]*==\S+ ", package), package[:80]
        assert "--hash=sha256:" in package, package[:80]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_the_package_is_built_with_what_is_locked(lock: str) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    wanted = [Requirement(line) for line in project["build-system"]["requires"]]
    assert project["project"]["optional-dependencies"]["build"] == project["build-system"]["requires"]
    locked = dict(re.findall(r"(?m)^([a-z0-9._-]+)==(\S+)", (REPO / lock).read_text()))
    for requirement in wanted:
        assert requirement.specifier.contains(locked[requirement.name])
    for told in ("README.md", "Dockerfile", "scripts/_setup.sh"):
        builds = [line for line in (REPO / told).read_text().splitlines() if "--no-deps" in line]
        assert builds
        assert all("--no-deps --no-build-isolation" in line for line in builds), told


def test_every_command_that_is_told_exists(capsys: pytest.CaptureFixture[str]) -> None:
    told = "".join(
        path.read_text() for path in (*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml"), *REPO.glob("docs/*.md"))
    )
    commands = set(re.findall(r"python -m agent ([a-z0-9-]+)", told))
    assert commands
    with pytest.raises(SystemExit):
        main(["--help"])
    known = capsys.readouterr().out
    assert [command for command in sorted(commands) if not re.search(rf"^    {command}\b", known, re.MULTILINE)] == []

"""The doctor finds what is wrong, says what to do, never hangs and never tells a secret."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from agent.doctor.checks import Check, Finding, ok, run_checks
from agent.doctor.command import examine
from agent.doctor.livekit import clock_skew
from agent.doctor.machine import check_disk, check_files, check_greetings, check_memory, check_outbox
from agent.errors import Unauthorised
from agent.health import (
    MB_OF_WORKER,
    MB_PER_ROOM,
    MB_PER_WARM_PROCESS,
    ROOMS_PER_CORE,
    HealthServer,
    WorkerState,
    cores,
    default_capacity,
    memory_mb,
    most_idle,
)
from agent.outbox.home import FORWARD, file_store, shared_store
from agent.outbox.items import OutboxItem, OutboxStore
from agent.settings import Settings
from agent.telemetry.hub import MetricsHub
from agent.telemetry.scrub import Scrubber
from sandbox.livekit_server import LiveKitServer
from sandbox.manager_api import ManagerApi
from sandbox.processes import REPO, free_port, plain_environment
from sandbox.providers import ProviderServer
from sandbox.redis_server import RedisServer

SECRETS = {
    "OPENAI_API_KEY": "sk-doctor-5ecret",
    "ELEVENLABS_API_KEY": "eleven-doctor-5ecret",
    "MEM0_API_KEY": "m0-doctor-5ecret",
    "MANAGER_API_SECRET": "manager-doctor-5ecret",
    "DEVICE_SALT": "salt-doctor-5ecret",
}

pytestmark = pytest.mark.timeout(120)


async def doctor(env: dict[str, str | None], folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and what it told."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent",
        "doctor",
        *arguments,
        env=plain_environment({"HTTP_PORT": str(free_port()), **env}),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode is not None
    for secret in (*SECRETS.values(), env.get("LIVEKIT_API_SECRET") or "no secret"):
        assert secret.encode() not in out + errors
    assert b"Traceback" not in errors, errors.decode()
    return process.returncode, out.decode()


async def findings(env: dict[str, str]) -> dict[str, dict[str, Any]]:
    """By name, from within this process: a command would import everything anew each time."""
    values: dict[str, Any] = {"http_port": free_port(), **{name.lower(): value for name, value in env.items()}}
    report = [asdict(finding) for finding in await examine(Settings(_env_file=None, **values))]
    check_report(report)
    return {check["name"]: check for check in report}


def check_report(report: list[dict[str, Any]]) -> None:
    """What holds of every report."""
    for check in report:
        assert check["message"]
        assert check["advice"] or check["status"] in {"ok", "skipped"}
    assert "5ecret" not in json.dumps(report)


@pytest.fixture
async def house(livekit_server: LiveKitServer, tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    """Everything the doctor looks at, all of it well but the library, which is empty."""
    manager = ManagerApi(secret=SECRETS["MANAGER_API_SECRET"])
    async with manager, ProviderServer(answers=["ok"], key=None) as providers:
        yield {
            "manager": manager,
            "providers": providers,
            "env": {
                **livekit_server.environment,
                **SECRETS,
                "STATE_DIR": str(tmp_path / "state"),
                "GREETINGS_DIR": str(REPO / "greetings"),
                "MANAGER_API_URL": manager.url,
                "STT_BASE_URL": providers.v1,
                "LLM_BASE_URL": providers.v1,
                "TTS_BASE_URL": providers.v1,
                "REALTIME_BASE_URL": providers.v1,
                "ELEVENLABS_BASE_URL": providers.v1,
                "MEM0_ENABLED": "true",
                "MEM0_HOST": providers.url,
            },
        }


async def test_what_is_well_is_green_with_the_time_it_took(house: dict[str, Any], tmp_path: Path) -> None:
    code, text = await doctor(house["env"], tmp_path, "--json")
    report = json.loads(text)
    assert (code, report["ok"]) == (1, False)  # for the model's files, which are not there
    check_report(report["checks"])
    found = {check["name"]: check for check in report["checks"]}
    well = {name for name, check in found.items() if check["status"] == "ok"}
    assert well >= {
        "settings",
        "LiveKit",
        "LiveKit media",
        "Manager API",
        "Mem0",
        "speech-to-text",
        "language model",
        "voice",
        "ElevenLabs",
        "greetings",
        "disk",
        "memory",
        "outbox",
    }
    assert found["library"]["status"] == "warning"
    assert found["model files"]["status"] == "failed"
    assert "download-files" in found["model files"]["advice"]
    assert all(check["took_ms"] >= 0 for check in found.values())
    assert found["LiveKit"]["took_ms"] > 0
    providers: ProviderServer = house["providers"]
    assert len(providers.chat.calls) == len(providers.transcription.calls) == len(providers.speech.calls) == 1


async def test_realtime_is_looked_at_where_it_is_the_mode(house: dict[str, Any]) -> None:
    found = await findings({**house["env"], "CONVERSATION_MODE": "realtime"})
    assert found["realtime"]["status"] == "ok"
    assert "language model" not in found


async def test_nothing_configured_is_told_line_by_line(tmp_path: Path) -> None:
    code, text = await doctor({"LIVEKIT_URL": f"ws://127.0.0.1:{free_port()}"}, tmp_path)
    assert code == 1
    assert "LIVEKIT_API_KEY" in text
    assert "MANAGER_API_URL" in text
    assert "OPENAI_API_KEY" in text
    assert "Traceback" not in text


async def test_settings_that_cannot_be_read_are_a_finding_each(tmp_path: Path) -> None:
    code, text = await doctor({"MAX_ROOMS": "many", "LIVEKIT_URL": "nonsense"}, tmp_path, "--json")
    report = json.loads(text)
    assert code == 1
    assert [check["message"].split(":")[0] for check in report["checks"]] == ["LIVEKIT_URL", "MAX_ROOMS"]


def _manager(fault: str) -> Callable[[dict[str, Any]], dict[str, str]]:
    def strike(house: dict[str, Any]) -> dict[str, str]:
        house["manager"].fail(fault)
        return {}

    return strike


def _provider(service: str, fault: str) -> Callable[[dict[str, Any]], dict[str, str]]:
    def strike(house: dict[str, Any]) -> dict[str, str]:
        house["providers"].behaviours[service].update({"fault": fault})
        return {}

    return strike


TROUBLES: list[tuple[str, Callable[[dict[str, Any]], dict[str, str]], str]] = [
    ("LiveKit", lambda _: {"LIVEKIT_API_SECRET": "a-wrong-secret-of-a-fair-length-0123456789"}, "LIVEKIT_API_KEY"),
    ("LiveKit", lambda _: {"LIVEKIT_URL": f"ws://127.0.0.1:{free_port()}"}, "LIVEKIT_URL"),
    ("LiveKit", lambda _: {"LIVEKIT_API_KEY": ""}, "LIVEKIT_API_KEY"),
    ("LiveKit media", lambda _: {"LIVEKIT_API_SECRET": "a-wrong-secret-of-a-fair-length-0123456789"}, "keys"),
    ("Manager API", lambda _: {"MANAGER_API_SECRET": "not-this-one-5ecret"}, "secret"),
    ("Manager API", lambda _: {"MANAGER_API_URL": f"http://127.0.0.1:{free_port()}"}, "MANAGER_API_URL"),
    ("Manager API", _manager("hang"), "MANAGER_API_URL"),
    ("Manager API", _manager("nonsense"), "MANAGER_API_URL"),
    ("Mem0", _provider("mem0-search", "error"), "MEM0_HOST"),
    ("language model", _provider("chat", "unauthorised"), "OPENAI_API_KEY"),
    ("language model", _provider("chat", "rate_limit"), "credit"),
    ("speech-to-text", _provider("transcription", "error"), "status"),
    ("voice", lambda _: {"TTS_BASE_URL": f"http://127.0.0.1:{free_port()}/v1"}, "address"),
    ("ElevenLabs", _provider("elevenlabs", "unauthorised"), "ELEVENLABS_API_KEY"),
    ("greetings", lambda _: {"GREETINGS_DIR": "nowhere"}, "greetings make"),
    ("library", lambda _: {"QDRANT_URL": f"http://127.0.0.1:{free_port()}"}, "QDRANT_URL"),
    ("Redis", lambda _: {"REDIS_URL": f"redis://user:pass-5ecret@127.0.0.1:{free_port()}/0"}, "REDIS_URL"),
    ("media", lambda _: {"MEDIA_BASE_URL": f"http://127.0.0.1:{free_port()}"}, "MEDIA_BASE_URL"),
    ("media", lambda _: {"CATALOGUE_DIR": "nowhere"}, "folder"),
    ("memory", lambda _: {"MAX_ROOMS": "9999"}, "MAX_ROOMS"),
]


@pytest.mark.parametrize(
    ("name", "strike", "advice"), TROUBLES, ids=lambda value: value if isinstance(value, str) else ""
)
async def test_what_is_wrong_is_found_with_what_to_do_and_the_rest_stays_green(
    house: dict[str, Any], name: str, strike: Callable[[dict[str, Any]], dict[str, str]], advice: str
) -> None:
    found = await findings({**house["env"], **strike(house)})
    assert found[name]["status"] == "failed"
    assert advice in found[name]["advice"] + found[name]["message"]
    hurt = {check for check, finding in found.items() if finding["status"] == "failed"} - {"model files", name}
    assert hurt <= ({"LiveKit", "LiveKit media"} if name.startswith("LiveKit") else set())


async def test_a_running_worker_is_named_and_another_program_on_its_port_too(
    house: dict[str, Any], tmp_path: Path
) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await findings({**house["env"], "HTTP_PORT": str(port)})
    assert found["worker"]["status"] == "failed"
    assert "HTTP_PORT" in found["worker"]["advice"]
    settings = Settings(_env_file=None, http_port=0, state_dir=tmp_path)  # type: ignore[call-arg]
    state = WorkerState(settings)
    async with MetricsHub(tmp_path / "run") as hub, HealthServer(settings, state, hub) as health:
        found = await findings({**house["env"], "HTTP_PORT": str(health.port)})
        assert found["worker"]["status"] == "warning"
    settings = settings.model_copy(update={"num_idle_processes": 0})
    async with MetricsHub(tmp_path / "run") as hub:
        state = WorkerState(settings)
        state.registered = True
        async with HealthServer(settings, state, hub) as health:
            found = await findings({**house["env"], "HTTP_PORT": str(health.port)})
    assert found["worker"]["status"] == "ok"


async def test_checks_run_side_by_side_and_a_hanging_or_broken_one_stops_none() -> None:
    meeting = asyncio.Barrier(3)

    async def meet() -> Finding:
        await meeting.wait()
        return ok("met")

    async def hang() -> Finding:
        await asyncio.Event().wait()
        return ok("never")

    async def refuse() -> Finding:
        raise Unauthorised("no")

    async def break_() -> Finding:
        raise RuntimeError("secret-of-mine\nin two lines")

    clean = Scrubber(Settings(_env_file=None, openai_api_key="secret-of-mine")).text  # type: ignore[arg-type,call-arg]
    checks = [Check(f"meet {n}", meet, "") for n in range(3)]
    checks += [Check("hang", hang, "advice", deadline_s=0.05), Check("refuse", refuse, ""), Check("break", break_, "")]
    found = {finding.name: finding for finding in await run_checks(checks, clean)}
    assert [found[f"meet {n}"].status for n in range(3)] == ["ok"] * 3
    assert (found["hang"].status, found["hang"].advice) == ("failed", "advice")
    assert "key" in found["refuse"].advice
    assert found["break"].message == "RuntimeError: <secret> in two lines"


@pytest.mark.parametrize(("ahead", "expected"), [(0, 0), (120, 120), (-120, -120), (30, 30)])
def test_clocks_are_compared_as_near_as_whole_seconds_tell(ahead: int, expected: int) -> None:
    now = time.time()
    skew = clock_skew(formatdate(now + ahead, usegmt=True), now - 0.01, now + 0.01)
    assert skew is not None
    assert abs(skew - expected) <= 1.1


@pytest.mark.parametrize("date", [None, "", "yesterday", "Thu, 99 Foo 2026"])
def test_a_clock_that_is_not_told_is_unknown(date: str | None) -> None:
    assert clock_skew(date, 1.0, 2.0) is None


def _settings(folder: Path, **values: object) -> Settings:
    return Settings(_env_file=None, state_dir=folder / "state", **values)  # type: ignore[arg-type,call-arg]


def test_the_machine_is_looked_at(tmp_path: Path) -> None:
    assert check_disk(_settings(tmp_path)).status in {"ok", "warning"}
    (tmp_path / "file").write_text("")
    blocked = Settings(_env_file=None, state_dir=tmp_path / "file" / "state")  # type: ignore[call-arg]
    assert check_disk(blocked).status == "failed"
    assert check_files(_settings(tmp_path, max_rooms=10_000)).status in {"ok", "warning"}
    assert check_memory(_settings(tmp_path, max_rooms=1)).status in {"ok", "warning"}
    assert "en" in check_greetings(_settings(tmp_path, greetings_dir=REPO / "greetings")).message
    spoken = check_greetings(_settings(tmp_path, greetings_dir=REPO / "greetings", greeting_language="fi"))
    assert (spoken.status, "GREETING_LANGUAGE" in spoken.advice) == ("warning", True)


def test_a_containers_memory_counts_where_it_is_less(tmp_path: Path) -> None:
    assert memory_mb(tmp_path)[0] > 0
    (tmp_path / "memory.max").write_text(f"{512 * 2**20}\n")
    (tmp_path / "memory.current").write_text(f"{500 * 2**20}\n")
    assert memory_mb(tmp_path) == (512, 12)
    (tmp_path / "memory.stat").write_text(f"anon 1\nactive_file {30 * 2**20}\ninactive_file {70 * 2**20}\n")
    assert memory_mb(tmp_path) == (512, 112), "files kept in memory give way"
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_mb(tmp_path)[0] == memory_mb(tmp_path / "none")[0]


@pytest.mark.parametrize("written", ["max 100000\n", "", "nonsense\n", "100000 0\n", "99999900000 100000\n"])
def test_a_container_without_a_limit_has_the_machines_cores(tmp_path: Path, written: str) -> None:
    (tmp_path / "cpu.max").write_text(written)
    assert cores(tmp_path) == len(os.sched_getaffinity(0))


def test_the_default_capacity_is_that_of_the_container(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cores(tmp_path) == 0.5
    assert default_capacity(settings, tmp_path) == ROOMS_PER_CORE // 2
    (tmp_path / "memory.max").write_text("1\n")
    (tmp_path / "memory.current").write_text("0\n")
    assert default_capacity(settings, tmp_path) == 1


def test_as_many_rooms_as_the_default_has_fit_into_the_memory_they_are_made_for(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    total = MB_OF_WORKER + most_idle(settings) * MB_PER_WARM_PROCESS + MB_PER_ROOM + 1
    (tmp_path / "memory.max").write_text(f"{total * 2**20}\n")
    (tmp_path / "memory.current").write_text("0\n")
    assert default_capacity(settings, tmp_path) == 1
    (tmp_path / "memory.max").write_text(f"{(total + MB_PER_ROOM) * 2**20}\n")
    assert default_capacity(settings, tmp_path) == 2


def test_what_waits_too_long_in_the_outbox_is_told(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    assert check_outbox(settings).message == "empty"
    _wait_too_long(settings, file_store, "chat")


def test_what_waits_too_long_in_redis_or_for_it_is_told_too(tmp_path: Path, redis: RedisServer) -> None:
    settings = _settings(tmp_path, redis_url=redis.url)
    _wait_too_long(settings, shared_store, "chat")
    assert check_outbox(settings).message.startswith("1 items wait")
    _wait_too_long(settings, file_store, FORWARD)
    assert check_outbox(settings).message.startswith("2 items wait")


def _wait_too_long(settings: Settings, open_store: Callable[[Settings], OutboxStore | None], kind: str) -> None:
    store = open_store(settings)
    assert store is not None
    try:
        store.add([OutboxItem(kind, "lane", "{}", f"key-{kind}", time.time() - 900)])
    finally:
        store.close()
    found = check_outbox(settings)
    assert found.status == "warning"
    assert "15 minutes" in found.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert check_disk(_settings(tmp_path)).status == "failed"

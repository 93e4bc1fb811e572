"""A whole noisy run is searched for what must never be in a log: name, words, MAC, secrets."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from telemetry_support import SENTENCES, talk, talking_world

from agent.health import WorkerState
from agent.settings import Settings
from agent.telemetry.logs import configure_logs
from agent.values import DeviceMac
from agent.worker import build_server
from sandbox.manager_api import Device as Known
from sandbox.manager_api import ManagerApi

NAME = "Xanthippe"
INTEREST = "velociraptors"
PROMPT = "You are Cheeko the quokka, {{ child_name }}'s friend."
REPLY = "Zebras gallop quietly, dear Xanthippe."
MEMORY = "Xanthippe has a tortoise called Agamemnon"


def spellings(mac: str) -> set[str]:
    """Every way to write a MAC."""
    digits = mac.replace(":", "")
    pairs = [digits[i : i + 2] for i in range(0, 12, 2)]
    dotted = ".".join(digits[i : i + 4] for i in range(0, 12, 4))
    forms = {":".join(pairs), "-".join(pairs), "_".join(pairs), " ".join(pairs), "%3a".join(pairs), digits, dotted}
    return forms | {form.upper() for form in forms}


@pytest.mark.world
@pytest.mark.timeout(150)
@pytest.mark.parametrize("allowed", [False, True], ids=["as it comes", "personal data let in"])
async def test_a_noisy_run_tells_nothing_personal_and_no_secret(allowed: bool) -> None:
    manager = ManagerApi(secret="manager-secret-8d1f")
    async with talking_world(
        reply=REPLY,
        manager=manager,
        LOG_LEVEL="DEBUG",
        LOG_PERSONAL_DATA=str(allowed),
        DEVICE_SALT="salt-secret-77ab",
        OPENAI_API_KEY="sk-secret-5c0ffee",
        LIVEKIT_LOG_LEVEL="debug",
        MEM0_ENABLED="true",
        MEM0_API_KEY="m0-secret-1234abcd",
    ) as world:
        device = world.device()
        manager.devices[DeviceMac(device.mac)] = Known(
            prompt=PROMPT, child={"name": NAME, "age": 7, "ageGroup": "x", "gender": "f", "interests": [INTEREST]}
        )
        await device.join()
        await talk(device)
        await device.send({"type": "unknown", "text": f"{NAME} says {SENTENCES[0]} from {device.mac}"})
        await device.send(b"{broken " + device.mac.encode())
        await device.abort()
        manager.fail("error")
        await device.leave()
        stranger = world.device(room=f"not-a-room-{device.mac}")
        await stranger.join()
        await world.worker.wait_for_line(lambda line: "room refused" in line.text, timeout=20)
        await world.worker.wait_for_line(lambda line: "visit ended" in line.text, timeout=40)
        await world.worker.stop()
        lines = [line.text for line in world.worker.lines]
        personal = {NAME, INTEREST, "quokka", "zebras", "Agamemnon", SENTENCES[0], *spellings(device.mac)}
        secret = {
            "sk-secret-5c0ffee",
            "manager-secret-8d1f",
            "salt-secret-77ab",
            "m0-secret-1234abcd",
            world.server.environment["LIVEKIT_API_SECRET"],
        }
        assert [line for line in world.worker.lines if line.fields.get("level") == "debug"]
        assert _found(secret, lines) == []
        assert [line[:300] for line in lines if re.search(r"eyJ[\w-]{8,}\.[\w-]{8,}", line)] == []
        told = _found(personal, lines)
        if allowed:
            assert {word for word, _ in told} >= {SENTENCES[0], device.mac}
        else:
            assert told == []


def _found(words: set[str], lines: list[str]) -> list[tuple[str, str]]:
    return [(word, line[:400]) for line in lines for word in words if word.lower() in line.lower()]


@pytest.mark.world
async def test_every_line_of_a_visit_carries_its_id_and_the_devices_key() -> None:
    async with talking_world(LOG_LEVEL="DEBUG") as world:
        device = world.device()
        await device.join()
        await talk(device)
        await device.leave()
        ended = await world.worker.wait_for_line(lambda line: line.event == "visit ended", timeout=40)
        assert ended.fields["visit"] == device.visit
        process = ended.fields["process"]
        begun = next(
            line.at for line in world.worker.lines if line.fields.get("visit") and line.fields.get("process") == process
        )
        inside = [
            line
            for line in world.worker.lines
            if line.fields.get("process") == process and begun <= line.at <= ended.at and "logger" in line.fields
        ]
        assert len(inside) > 3
        without = [line.text[:200] for line in inside if line.fields.get("visit") != device.visit]
        assert without == []
        assert {line.fields.get("device") for line in inside} == {ended.fields["device"]}


def _settings(**values: object) -> Settings:
    return Settings(_env_file=None, **values)  # type: ignore[arg-type,call-arg]


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("mac", sorted(spellings("68:25:dd:ba:39:78")))
def test_a_mac_is_hidden_however_it_is_written(out: io.StringIO, mac: str, form: str) -> None:
    configure_logs(_settings(log_format=form), out)
    logging.getLogger("livekit.agents").info(
        "joined %s", mac, extra={"room": f"visit-1_{mac}", "other": [mac, {mac: 1}]}
    )
    structlog.get_logger("agent.test").info("seen", where=f"https://host/device/{mac}/agent-id")
    try:
        raise ValueError(f"device {mac} is wrong")
    except ValueError:
        structlog.get_logger("agent.test").exception("failed")
    text = out.getvalue()
    assert text.count("\n") >= 3
    for spelling in spellings("68:25:dd:ba:39:78"):
        assert spelling not in text


def test_a_strangers_error_keeps_its_kind_and_status(out: io.StringIO) -> None:
    configure_logs(_settings(), out)
    refused = web.HTTPUnauthorized(text="the words of a child")
    logging.getLogger("livekit.agents").warning("failed to connect", extra={"error": refused, "reason": OSError("Mia")})
    line = json.loads(out.getvalue())
    assert (line["error"], line["reason"]) == ("HTTPUnauthorized 401", "OSError")


def test_what_only_looks_like_a_mac_stays(out: io.StringIO) -> None:
    configure_logs(_settings(), out)
    kept = ["68dc9f4e-0001-4a2b-9c3d-001122334455", "123456789012345", "2026-11-21", "12:34:56", "job AJ_abcdef"]
    structlog.get_logger("agent.test").info("seen", values=kept)
    assert json.loads(out.getvalue())["values"] == kept


def test_secrets_tokens_and_passwords_in_any_text_are_replaced(out: io.StringIO) -> None:
    settings = _settings(
        openai_api_key="sk-abcdef123456", livekit_api_secret="devsecret-42", manager_api_secret="manager-7"
    )
    configure_logs(settings, out)
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ0b3kifQ.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"
    logging.getLogger("foreign").warning("url wss://host/rtc?access_token=%s", token)
    structlog.get_logger("agent.test").info(
        "seen", header="Authorization: Bearer sk-abcdef123456", config={"secret": "devsecret-42"}, manager_7="manager-7"
    )
    try:
        raise RuntimeError("redis://user:hunter22@host refused devsecret-42")
    except RuntimeError:
        structlog.get_logger("agent.test").exception("failed")
    text = out.getvalue()
    for secret in (token, "sk-abcdef123456", "devsecret-42", "hunter22"):
        assert secret not in text
    assert "manager-7" not in text.replace("manager_7", "")


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
def test_a_worker_can_be_made_at_every_level(level: str, tmp_path: Path) -> None:
    settings = _settings(log_level=level, state_dir=tmp_path)
    assert build_server(settings, WorkerState(settings)) is not None


@pytest.mark.parametrize("logger", ["agent.visit", "livekit.agents", "some.library"])
def test_personal_fields_need_permission(out: io.StringIO, logger: str) -> None:
    for allowed in (False, True):
        configure_logs(_settings(log_personal_data=allowed), out)
        structlog.get_logger(logger).info("heard", personal_words="open sesame", duration_ms=12)
    closed, opened = map(json.loads, out.getvalue().splitlines())
    assert "open sesame" not in json.dumps(closed)
    assert closed["duration_ms"] == 12
    assert opened["personal_words"] == "open sesame"


def test_a_strangers_record_keeps_numbers_and_known_fields_only(out: io.StringIO) -> None:
    configure_logs(_settings(), out)
    extra = {"user_said": "open sesame", "count": 3, "job_id": "AJ_1", "nested": {"deep": ["sesame", 4]}, "ok": True}
    logging.getLogger("some.library").info("event", extra=extra)
    line = json.loads(out.getvalue())
    assert "sesame" not in out.getvalue()
    assert (line["count"], line["job_id"], line["ok"]) == (3, "AJ_1", True)


def test_a_traceback_keeps_types_and_places_but_not_what_a_child_said(out: io.StringIO) -> None:
    configure_logs(_settings(), out)
    log = structlog.get_logger("agent.test")
    for error in (ValueError("invalid words: 'open\nsesame'"), ConnectionRefusedError("port 9 is closed")):
        try:
            try:
                raise KeyError("sesame")
            except KeyError as cause:
                raise error from cause
        except (ValueError, OSError):
            log.exception("failed")
    first, second = (json.loads(line)["exception"] for line in out.getvalue().splitlines())
    assert "sesame" not in (first + second).replace('raise KeyError("sesame")', "")
    assert "ValueError" in first
    assert "KeyError" in first
    assert "test_logs_of_a_noisy_run.py" in first
    assert "ConnectionRefusedError: port 9 is closed" in second

"""The command line from outside: what a user sees of wrong settings and wrong usage."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.processes import plain_environment

SECRET = "a-secret-nobody-may-read"


def _agent(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env=plain_environment(env),
        check=False,
    )


def test_wrong_settings_are_named_without_a_traceback(tmp_path: Path) -> None:
    done = _agent(
        tmp_path,
        "start",
        NUM_IDLE_PROCESSES="lots",
        LIVEKIT_URL="nowhere",
        ENABLE_API_CACHE="maybe",
        MANAGER_API_SECRET=SECRET,
        API_CACHE_TTL=SECRET,
    )
    assert done.returncode == 2
    for name in ("NUM_IDLE_PROCESSES", "LIVEKIT_URL", "ENABLE_API_CACHE", "API_CACHE_TTL"):
        assert f"{name}:" in done.stderr
        assert f"{name}=" in done.stderr, "an example is shown"
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr + done.stdout


@pytest.mark.parametrize("command", ["start", "dev", "connect"])
def test_serving_needs_livekit_keys(tmp_path: Path, command: str) -> None:
    more = ["--room", "6825ddba3978"] if command == "connect" else []
    done = _agent(tmp_path, command, *more)
    assert done.returncode == 2
    assert "LIVEKIT_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NUM_IDLE_PROCESSES=wrong\n")
    assert "NUM_IDLE_PROCESSES" in _agent(tmp_path, "start").stderr
    done = _agent(tmp_path, "start", NUM_IDLE_PROCESSES="2")
    assert "NUM_IDLE_PROCESSES" not in done.stderr


def test_no_deprecation_warning_and_every_command_has_help(tmp_path: Path) -> None:
    done = _agent(tmp_path, "--help")
    assert done.returncode == 0
    for command in ("start", "dev", "console", "connect", "download-files", "catalogue", "greetings"):
        assert command in done.stdout
        helped = _agent(tmp_path, command, "--help")
        assert helped.returncode == 0
        assert "eprecat" not in helped.stdout + helped.stderr


def test_connect_refuses_a_room_of_nobody(tmp_path: Path) -> None:
    done = _agent(tmp_path, "connect", "--room", "lobby", LIVEKIT_API_KEY="devkey", LIVEKIT_API_SECRET="secret" * 6)
    assert done.returncode == 1
    assert "MAC" in done.stderr


def test_a_port_that_is_taken_and_a_state_folder_that_cannot_be_are_named(tmp_path: Path) -> None:
    keys = {"LIVEKIT_URL": "ws://127.0.0.1:9", "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": SECRET}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _agent(tmp_path, "start", **keys, HTTP_PORT=str(port))
    assert done.returncode == 2
    assert f"HTTP_PORT: {port} cannot be listened on at 127.0.0.1: Address already in use" in done.stderr
    (tmp_path / "file").write_text("")
    folder = _agent(tmp_path, "start", **keys, HTTP_PORT="0", STATE_DIR=str(tmp_path / "file" / "state"))
    assert folder.returncode == 2
    assert "STATE_DIR:" in folder.stderr
    assert "Traceback" not in done.stderr + folder.stderr


def test_a_misspelt_name_in_the_file_is_told(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LLM_BASEURL=http://127.0.0.1:9\nPATH_OF_ANOTHER_PROGRAM=1\n")
    done = _agent(tmp_path, "outbox", "list")
    assert done.returncode == 0
    assert done.stderr == ""
    listed = _agent(tmp_path, "catalogue", "list")
    assert "LLM_BASEURL in .env is no setting and has no effect: did you mean LLM_BASE_URL?" in listed.stderr
    assert "ANOTHER_PROGRAM" not in listed.stderr
    looked = _agent(tmp_path, "doctor", "--json")
    assert "did you mean LLM_BASE_URL?" in looked.stdout


def test_commands_print_what_they_found_and_no_log(tmp_path: Path) -> None:
    searched = _agent(tmp_path, "catalogue", "search", " ")
    assert searched.returncode == 1
    assert searched.stdout.startswith("the request is empty")
    done = _agent(tmp_path, "catalogue", "search", "--json", "twinkle")
    assert "library_prepared" not in done.stdout + done.stderr

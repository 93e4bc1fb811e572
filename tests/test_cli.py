"""The command line from outside: what a user sees of wrong settings and wrong usage."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sandbox.processes import free_port, plain_environment

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
    assert "--prune" in _agent(tmp_path, "catalogue", "load", "--help").stdout
    assert "verify" in _agent(tmp_path, "catalogue", "--help").stdout


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


_A_FILE = {"STATE_DIR": "file"}
_NO_MODELS = {"MODEL_DIR": "/proc/nowhere"}
_INSTALLED = "MODELS/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("arguments", "env", "told"),
    [
        (["catalogue", "list"], _A_FILE, "Not a directory"),
        (["catalogue", "load", "tree"], {**_A_FILE, "MODEL_DIR": "MODELS"}, "file/catalogue: Not a directory"),
        (["catalogue", "load", "x" * 300], {}, "File name too long"),
        (["download-files", "--model-path", _INSTALLED], {"MODEL_DIR": "file"}, "file"),
        (["download-files", "--model-path", _INSTALLED], _NO_MODELS, "/proc/nowhere: No such file or directory"),
        (["report", "visits.log", "--plot", "/proc/nowhere/y.png"], {}, "/proc/nowhere: No such file or directory"),
        (["report", "."], {}, "Is a directory"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_what_cannot_be_read_or_written_is_one_line(
    tmp_path: Path, model_dir: Path, arguments: list[str], env: dict[str, str], told: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tree" / "music").mkdir(parents=True)
    visit = {"event": "visit ended", "visit": "v", "marks": {"job_received": 0.0, "first_frame": 300.0}}
    (tmp_path / "visits.log").write_text(json.dumps(visit))
    (tmp_path / "MODELS").symlink_to(model_dir)
    done = _agent(tmp_path, *arguments, **env)
    said = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1, said
    assert told in said[-1]
    assert "Traceback" not in done.stdout + done.stderr


class _Refusing(BaseHTTPRequestHandler):
    """A LiveKit server that knows no key."""

    def do_POST(self) -> None:
        body = b'{"code":"unauthenticated","msg":"invalid API key: key"}'
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.world
@pytest.mark.parametrize("refused", [False, True], ids=["away", "wrong key"])
def test_connect_says_in_a_line_what_livekit_says(tmp_path: Path, refused: bool) -> None:
    with ExitStack() as stack:
        if refused:
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), _Refusing))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            port = server.server_port
            told = "LiveKit refuses: unauthenticated, invalid API key: key: set LIVEKIT_API_KEY"
        else:
            port, told = free_port(), "Cannot connect to host 127.0.0.1:"
        keys = {"LIVEKIT_URL": f"ws://127.0.0.1:{port}", "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": SECRET * 2}
        room = "2b1f6f0e-6a53-4c3c-9d5c-7a8f5b6d1c11_6825ddbbf3a0"
        done = _agent(tmp_path, "connect", "--room", room, **keys, HTTP_PORT="0", MODEL_DIR="none")
    assert done.returncode == 1, done.stderr
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr


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

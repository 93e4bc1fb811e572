"""`python -m agent outbox`: shows what was refused without a child's word, and has it tried again."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from agent.cli import main
from agent.doctor.machine import check_outbox
from agent.outbox import command
from agent.outbox.home import file_store, shared_store
from agent.outbox.items import OutboxItem, OutboxStore
from agent.settings import Settings
from sandbox.redis_server import RedisServer

MAC = "68:25:dd:bb:f3:a0"


def line() -> OutboxItem:
    return OutboxItem("chat", MAC, '{"content": "my name is Mia"}', "key-1", time.time() - 7200)


def settings_in(folder: Path, redis: RedisServer | None = None) -> Settings:
    return Settings(_env_file=None, state_dir=folder, redis_url=redis and redis.url)  # type: ignore[call-arg]


def refuse(store: OutboxStore, item: OutboxItem) -> None:
    store.add([item])
    (lane,) = store.claim("test", item.kind, 1, 30.0)
    head = store.head(lane, "test", 30.0)
    assert head is not None
    store.bury(lane, head, "400 [bad] request")
    store.release("test")
    store.close()


def said(settings: Settings, *arguments: str) -> str:
    out = io.StringIO()
    assert command.run(arguments, settings, console=Console(file=out, width=200)) == 0
    return out.getvalue()


def test_what_was_refused_is_shown_and_tried_again(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert said(settings, "list") == f"empty: there is no outbox in {tmp_path} (STATE_DIR)\n"
    refuse(file_store(settings), line())
    shown = said(settings, "list")
    assert "file: 1 items were refused" in shown
    assert "2.0 h" in shown
    assert "400 [bad] request" in shown
    assert "Mia" not in shown
    assert MAC not in shown
    assert "outbox retry" in (check_outbox(settings).advice or "")

    assert said(settings, "retry") == "1 items will be tried again.\n"
    shown = said(settings, "list")
    assert "file: 1 items of kind chat wait, the oldest for 120 min" in shown
    assert "file: 0 items were refused" in shown
    assert said(settings, "retry") == "0 items will be tried again.\n"


def test_redis_is_looked_at_too(tmp_path: Path, redis: RedisServer) -> None:
    settings = settings_in(tmp_path, redis)
    store = shared_store(settings)
    assert store is not None
    refuse(store, line())
    assert "redis: 1 items were refused" in said(settings, "list")
    assert said(settings, "retry") == "1 items will be tried again.\n"


def test_wrong_words_and_a_file_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.run(["forget"], settings_in(tmp_path))
    (tmp_path / "outbox.db").mkdir()
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    assert main(["outbox", "list"]) == 1
    assert "outbox cannot be read" in capsys.readouterr().err

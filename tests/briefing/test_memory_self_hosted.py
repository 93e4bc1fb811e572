"""The self-hosted Mem0 end to end and offline: its real code, embedded Qdrant, a stand-in for the language model."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import tenacity
from aiohttp import web

from agent.briefing.mem0_process import Mem0Process, mem0_socket, open_memory
from agent.briefing.mem0_server import AddedKeys, serve
from agent.briefing.memory import Mem0Client, Message
from agent.errors import Rejected, RemoteError, Unavailable
from agent.settings import Settings
from damage_support import damage_table
from sandbox.faults import Fault, swallow_cut
from sandbox.openai_chat import ChatApi
from sandbox.replies import ChatRequest

PROGRAM = str(Path(__file__).with_name("memory_program.py"))
DOG = [Message(role="user", content="I have a dog, he is called Rex"), Message(role="assistant", content="How lovely!")]


def facts(request: ChatRequest) -> str:
    """What a language model would extract from the new messages."""
    new = str(request.body["messages"][-1]["content"])
    found = [{"text": "The child has a dog called Rex"}] if "dog" in new else []
    return json.dumps({"memory": found})


@pytest.fixture
def chat() -> ChatApi:
    return ChatApi(facts)


@pytest.fixture
async def llm_url(chat: ChatApi) -> AsyncIterator[str]:
    app = web.Application(middlewares=[swallow_cut], client_max_size=2**22)
    app.add_routes(chat.routes())
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    chat.behaviour.heal()
    await runner.cleanup()


@pytest.fixture
def settings(tmp_path: Path, llm_url: str) -> Settings:
    return Settings(_env_file=None, state_dir=tmp_path / "state", llm_base_url=llm_url)  # type: ignore[call-arg]


def process_of(settings: Settings, home: Path) -> Mem0Process:
    command = [sys.executable, PROGRAM, str(settings.state_dir), str(settings.llm_base_url)]
    return Mem0Process(command, environment={**os.environ, "HOME": str(home)}, first_pause_s=0.1)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(Unavailable),
    wait=tenacity.wait_fixed(0.1),
    stop=tenacity.stop_after_delay(90),
    reraise=True,
)
async def ready(memory: Mem0Client) -> list[str]:
    return await memory.recall("dog", user_id="child")


async def test_it_remembers_across_its_own_death_and_repeats_add_nothing(
    settings: Settings, chat: ChatApi, tmp_path: Path
) -> None:
    (home := tmp_path / "home").mkdir()
    process = process_of(settings, home)
    process.start()
    memory = open_memory(settings)
    assert await ready(memory) == []

    chat.behaviour.fail(Fault.ERROR, times=1)
    with pytest.raises(Unavailable):
        await memory.remember(DOG, user_id="child", key="k1")
    chat.script = lambda request: "I am no JSON"
    with pytest.raises(Unavailable):
        await memory.remember(DOG, user_id="child", key="k1")
    chat.script = facts
    await memory.remember(DOG, user_id="child", key="k1")
    asked = len(chat.calls)
    await memory.remember(DOG, user_id="child", key="k1")
    assert len(chat.calls) == asked, "a known key costs no model call"
    assert await memory.recall("what is the dog called", user_id="child") == ["The child has a dog called Rex"]
    assert await memory.recall("quantum physics", user_id="child") == ["The child has a dog called Rex"]
    assert await memory.recall("dog", user_id="another") == []
    with pytest.raises(Rejected):
        await memory.remember([], user_id="child", key="k2")
    with pytest.raises(Rejected):
        await memory.recall("", user_id="child")
    await process.aclose()
    with pytest.raises(RemoteError):
        await memory.recall("dog", user_id="child")

    again = process_of(settings, home)
    again.start()
    assert await ready(memory) == ["The child has a dog called Rex"]
    await memory.remember(DOG, user_id="child", key="k1")
    assert len(chat.calls) == asked
    await memory.aclose()
    await again.aclose()
    assert list(home.iterdir()) == [], "nothing is written outside STATE_DIR"
    kept = [path for path in settings.state_dir.rglob("*") if path.is_file() and b"he is called" in path.read_bytes()]
    assert kept == [], "what is remembered is kept, not the words it was told in"
    assert mem0_socket(settings).parent.stat().st_mode & 0o777 == 0o700


def test_added_keys_outlive_a_disk_that_refuses_and_a_damaged_file(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    keys = AddedKeys(blocked / "keys.db")
    assert not keys.known("k1")
    keys.keep("k1")
    assert keys.known("k1")
    assert not keys.known("k2")
    keys.close()

    path = tmp_path / "keys.db"
    keys = AddedKeys(path)
    keys.keep("k1")
    keys.close()
    assert AddedKeys(path).known("k1"), "on disk"
    damage_table(path, "keys")
    keys = AddedKeys(path)
    assert not keys.known("k1")
    keys.keep("k2")
    keys.close()
    assert AddedKeys(path).known("k2")
    assert (tmp_path / "keys.db.damaged").exists()


@pytest.mark.parametrize("made", ["open to all", "a link"])
async def test_a_place_that_somebody_made_first_is_not_used(tmp_path: Path, made: str) -> None:
    state = tmp_path / ("deep" * 50)
    settings = Settings(_env_file=None, state_dir=state)  # type: ignore[call-arg]
    folder = mem0_socket(settings).parent
    assert not folder.is_relative_to(tmp_path)
    if made == "a link":
        (target := tmp_path / "theirs").mkdir()
        target.chmod(0o777)
        folder.symlink_to(target)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1))
        writer.close()

    try:
        async with await asyncio.start_unix_server(listen, folder / "mem0.sock"):
            memory = open_memory(settings)
            with pytest.raises(Unavailable):
                await memory.recall("dog", user_id="child")
            await memory.warm()
            await memory.aclose()
            with pytest.raises(PermissionError):
                await serve(settings, cast(Any, None), asyncio.Event())
        assert heard == []
    finally:
        (folder / "mem0.sock").unlink(missing_ok=True)
        folder.unlink() if folder.is_symlink() else folder.rmdir()


async def test_it_ends_when_the_worker_that_started_it_has_gone(settings: Settings) -> None:
    orphan = await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, str(settings.state_dir), str(settings.llm_base_url), stdin=asyncio.subprocess.PIPE
    )
    memory = open_memory(settings)
    await ready(memory)
    await memory.aclose()
    assert orphan.stdin is not None
    orphan.stdin.close()
    async with asyncio.timeout(30):
        assert await orphan.wait() == 0


async def test_a_process_that_ends_is_started_again_and_stops_on_close(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    script = (
        f"import pathlib; p = pathlib.Path({str(marks)!r}); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    )
    process = Mem0Process([sys.executable, "-c", script], first_pause_s=0.01, longest_pause_s=0.02)
    process.start()

    @tenacity.retry(wait=tenacity.wait_fixed(0.05), stop=tenacity.stop_after_delay(30), reraise=True)
    async def thrice() -> None:
        assert process.starts >= 3

    await thrice()
    await process.aclose()
    starts = process.starts
    await process.aclose()
    assert process.starts == starts
    assert len(marks.read_text()) >= 2


async def test_a_command_that_does_not_exist_does_not_harm() -> None:
    process = Mem0Process(["/does/not/exist"], first_pause_s=0.01)
    process.start()
    await asyncio.gather(*(asyncio.to_thread(lambda: None) for _ in range(3)))
    await process.aclose()

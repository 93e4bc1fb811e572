from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from livekit.agents.llm import ChatContext, FunctionCall, FunctionCallOutput

from agent.conversation.resume import (
    BYTES_MAX,
    ITEMS_MAX,
    Playing,
    Resumed,
    ResumeKeeper,
    ResumeStore,
    Snapshot,
    SqliteResumeStore,
    encode,
)
from agent.conversation.resume_redis import RedisResumeStore, TieredResumeStore
from agent.errors import ResumeError
from agent.values import DeviceMac
from damage_support import damage_table
from sandbox.processes import free_port
from sandbox.redis_server import RedisServer

MAC = DeviceMac("68:25:dd:ba:39:78")
PROGRAM = str(Path(__file__).with_name("resume_process.py"))


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path, clock: Clock) -> SqliteResumeStore:
    return SqliteResumeStore(tmp_path / "resume.db", window_s=300, devices_max=3, clock=clock)


@pytest.fixture(params=["file", "redis", "both"])
def store(request: pytest.FixtureRequest, file: SqliteResumeStore, clock: Clock) -> Iterator[ResumeStore]:
    if request.param == "file":
        yield file
        return
    redis: RedisServer = request.getfixturevalue("redis")
    shared = RedisResumeStore(redis.url, window_s=300, clock=clock)
    found = shared if request.param == "redis" else TieredResumeStore(file, shared)
    yield found
    found.close()


def talk(*lines: str) -> ChatContext:
    chat = ChatContext.empty()
    chat.add_message(role="system", content="rules")
    for number, text in enumerate(lines):
        chat.add_message(role="assistant" if number % 2 else "user", content=text)
    return chat


def texts(resumed: Resumed | None) -> list[str | None]:
    assert resumed is not None
    return [item.text_content for item in resumed.chat.items if item.type == "message"]


def test_a_conversation_is_found_as_it_was(store: ResumeStore, clock: Clock) -> None:
    chat = talk("play baby shark", "here it is")
    chat.items.append(FunctionCall(id="f", call_id="1", name="play", arguments='{"a":1}'))
    chat.items.append(FunctionCallOutput(call_id="1", name="play", output="ok", is_error=False))
    playing = Playing(kind="music", title_id="m-17", position_ms=42_500, queue=("m-1", "m-2"))
    store.save(MAC, clock(), encode(Snapshot(chat, playing, greeted_returning=True)))
    clock.now += 299
    found = store.load(MAC)
    assert found is not None
    assert found.playing == playing
    assert found.greeted_returning
    assert found.away_s == 299
    expected = [item for item in chat.items if not (item.type == "message" and item.role == "system")]
    assert found.chat.is_equivalent(ChatContext(expected)), "instructions are written anew at each visit"
    assert [item.created_at for item in found.chat.items] == [item.created_at for item in expected]
    assert len(chat.items) == 5, "the session's own context is left alone"
    assert "play baby shark" not in repr(found)


def test_what_is_too_old_is_gone(store: ResumeStore, clock: Clock) -> None:
    store.save(MAC, clock(), encode(Snapshot(talk("hi"))))
    clock.now += 301
    assert store.load(MAC) is None


def test_what_is_too_old_does_not_stay_on_disk(file: SqliteResumeStore, clock: Clock, tmp_path: Path) -> None:
    file.save(MAC, clock(), encode(Snapshot(talk("hi"))))
    clock.now += 301
    file.save(DeviceMac("000000000001"), clock(), encode(Snapshot(talk("hi"))))
    assert sqlite3.connect(tmp_path / "resume.db").execute("SELECT COUNT(*) FROM visits").fetchone() == (1,)


def test_unknown_and_forgotten_devices_have_none(store: ResumeStore, clock: Clock) -> None:
    assert store.load(MAC) is None
    store.save(MAC, clock(), encode(Snapshot(talk("hi"))))
    store.forget(MAC)
    assert store.load(MAC) is None


def test_a_window_of_nothing_keeps_nothing(tmp_path: Path) -> None:
    store = SqliteResumeStore(tmp_path / "resume.db", window_s=0)
    assert not store.save(MAC, 1.0, encode(Snapshot(talk("hi"))))
    assert store.load(MAC) is None
    assert not (tmp_path / "resume.db").exists()


def test_the_oldest_devices_go(file: SqliteResumeStore, clock: Clock) -> None:
    macs = [DeviceMac(f"00000000000{n}") for n in range(5)]
    for mac in macs:
        clock.now += 1
        file.save(mac, clock(), encode(Snapshot(talk("hi"))))
    assert [file.load(mac) is not None for mac in macs] == [False, False, True, True, True]


def test_an_old_visit_that_still_closes_does_not_win_over_the_new_one(store: ResumeStore) -> None:
    assert store.save(MAC, 100.0, encode(Snapshot(talk("old"))))
    assert store.save(MAC, 200.0, encode(Snapshot(talk("new"))))
    assert not store.save(MAC, 100.0, encode(Snapshot(talk("old", "older"))))
    assert texts(store.load(MAC)) == ["new"]


def test_size_is_bounded_and_the_last_words_stay(store: ResumeStore, clock: Clock) -> None:
    store.save(MAC, clock(), encode(Snapshot(talk(*(f"line {n}" for n in range(500))))))
    found = texts(store.load(MAC))
    assert len(found) == ITEMS_MAX
    assert found[-1] == "line 499"
    body = encode(Snapshot(talk(*(f"{n} " + "🎈" * 1000 for n in range(200)))))
    assert len(body) <= BYTES_MAX
    store.save(MAC, clock(), body)
    last = texts(store.load(MAC))[-1]
    assert last is not None
    assert last.startswith("199 ")
    assert len(encode(Snapshot(talk("x" * (2 * BYTES_MAX))))) <= BYTES_MAX


@pytest.mark.parametrize(
    "body", ["", "null", "{}", '{"chat":{}}', '{"chat":{"items":[{"type":"from the future"}]}}', '{"chat":{"items":3}}']
)
def test_what_another_version_wrote_is_dropped(store: ResumeStore, clock: Clock, body: str) -> None:
    store.save(MAC, clock(), body)
    assert store.load(MAC) is None


def test_what_cannot_be_read_does_not_stay(file: SqliteResumeStore, clock: Clock, tmp_path: Path) -> None:
    file.save(MAC, clock(), "{}")
    assert file.load(MAC) is None
    assert sqlite3.connect(tmp_path / "resume.db").execute("SELECT COUNT(*) FROM visits").fetchone() == (0,)


def test_another_machines_conversation_is_found_when_it_is_the_younger(
    file: SqliteResumeStore, redis: RedisServer, clock: Clock
) -> None:
    shared = RedisResumeStore(redis.url, window_s=300, clock=clock)
    store = TieredResumeStore(file, shared)
    file.save(MAC, clock(), encode(Snapshot(talk("here, once"))))
    clock.now += 10
    shared.save(MAC, clock(), encode(Snapshot(talk("elsewhere, later"))))
    assert texts(store.load(MAC)) == ["elsewhere, later"]
    clock.now += 10
    file.save(MAC, clock(), encode(Snapshot(talk("here again"))))
    assert texts(store.load(MAC)) == ["here again"]
    store.close()


def test_without_redis_this_machines_own_are_found(file: SqliteResumeStore, clock: Clock) -> None:
    away = RedisResumeStore(f"redis://127.0.0.1:{free_port()}/0", window_s=300, clock=clock)
    with pytest.raises(ResumeError):
        away.load(MAC)
    store = TieredResumeStore(file, away)
    assert store.save(MAC, clock(), encode(Snapshot(talk("hi"))))
    assert texts(store.load(MAC)) == ["hi"]
    store.forget(MAC)
    assert store.load(MAC) is None
    store.close()


class HungStore(SqliteResumeStore):
    """A real store whose disk or server gives no answer until `go`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, window_s=300)
        self.asked = threading.Semaphore(0)
        self.go = threading.Event()

    def load(self, mac: DeviceMac) -> Resumed | None:
        self.go.wait(600)
        return super().load(mac)

    def save(self, mac: DeviceMac, began_at: float, body: str) -> bool:
        self.asked.release()
        self.go.wait(600)
        return super().save(mac, began_at, body)


@pytest.mark.parametrize("hangs", ["near", "shared"])
def test_a_store_that_hangs_does_not_hold_the_other(file: SqliteResumeStore, tmp_path: Path, hangs: str) -> None:
    hung = HungStore(tmp_path / "hung.db")
    stores = (hung, file) if hangs == "near" else (file, hung)
    store = TieredResumeStore(*stores, load_s=1.0, save_s=1.0)
    assert store.save(MAC, 1.0, encode(Snapshot(talk("hi"))))
    for _ in range(2):  # while the first question still hangs
        assert texts(store.load(MAC)) == ["hi"]
    store.close()
    store.close()
    neither = TieredResumeStore(hung, hung, load_s=0.1)
    with pytest.raises(ResumeError):
        neither.load(MAC)
    neither.close()
    hung.go.set()


def test_a_file_damaged_inside_is_begun_anew(file: SqliteResumeStore, tmp_path: Path) -> None:
    file.save(MAC, 1.0, encode(Snapshot(talk("one"))))
    file.close()
    damage_table(tmp_path / "resume.db", "visits")
    assert file.load(MAC) is None
    assert file.save(MAC, 2.0, encode(Snapshot(talk("two"))))
    assert texts(file.load(MAC)) == ["two"]
    assert (tmp_path / "resume.db.damaged").exists()


def test_an_unusable_folder_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = SqliteResumeStore(tmp_path / "file" / "resume.db", window_s=300)
    with pytest.raises(ResumeError):
        store.load(MAC)
    with pytest.raises(ResumeError):
        store.save(MAC, 1.0, "{}")
    store.close()


class WatchedStore(SqliteResumeStore):
    """A real store that tells the loop of each save; refuses while `refusing`."""

    refusing = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, window_s=300)
        self.loop = asyncio.get_running_loop()
        self.saved: asyncio.Queue[bool] = asyncio.Queue()

    def save(self, mac: DeviceMac, began_at: float, body: str) -> bool:
        try:
            if self.refusing:
                raise ResumeError("disk full")
            return super().save(mac, began_at, body)
        finally:
            self.loop.call_soon_threadsafe(self.saved.put_nowait, True)


class Talk:
    def __init__(self) -> None:
        self.chat = talk("hi")
        self.asked = 0

    def snapshot(self) -> Snapshot:
        self.asked += 1
        return Snapshot(self.chat)


async def saved(store: WatchedStore) -> None:
    async with asyncio.timeout(20):
        await store.saved.get()


async def test_changes_are_on_disk_soon_and_many_are_one_save(tmp_path: Path) -> None:
    store, visit = WatchedStore(tmp_path / "resume.db"), Talk()
    keeper = ResumeKeeper(store, MAC, visit.snapshot, debounce_s=0.02, every_s=60)
    keeper.start()
    for _ in range(10):
        keeper.changed()
    await saved(store)
    assert visit.asked == 1
    assert texts(store.load(MAC)) == ["hi"]
    visit.chat.add_message(role="assistant", content="hello")
    keeper.changed()
    await saved(store)
    assert texts(store.load(MAC)) == ["hi", "hello"]
    await keeper.aclose()
    await keeper.aclose()


async def test_the_end_is_kept_without_a_change_and_without_delay(tmp_path: Path) -> None:
    store, visit = WatchedStore(tmp_path / "resume.db"), Talk()
    keeper = ResumeKeeper(store, MAC, visit.snapshot, debounce_s=60, every_s=60)
    keeper.start()
    keeper.changed()
    await asyncio.wait_for(keeper.aclose(), 20)
    assert texts(store.load(MAC)) == ["hi"]


async def test_what_changes_while_a_save_is_under_way_is_kept_at_the_end(tmp_path: Path) -> None:
    store, chat = HungStore(tmp_path / "resume.db"), talk("one")
    keeper = ResumeKeeper(store, MAC, lambda: Snapshot(chat), debounce_s=0.0, every_s=60)
    keeper.start()
    keeper.changed()
    assert await asyncio.to_thread(store.asked.acquire, timeout=20)
    chat.add_message(role="assistant", content="two")
    keeper.changed()
    closing = asyncio.create_task(keeper.aclose(20))
    asyncio.get_running_loop().call_soon(store.go.set)
    await closing
    assert texts(store.load(MAC)) == ["one", "two"]


async def test_a_silent_visit_is_kept_young(tmp_path: Path) -> None:
    store, visit = WatchedStore(tmp_path / "resume.db"), Talk()
    keeper = ResumeKeeper(store, MAC, visit.snapshot, every_s=0.02)
    keeper.start()
    for _ in range(3):
        await saved(store)
    await keeper.aclose()


async def test_failures_are_tried_again_and_never_reach_the_visit(tmp_path: Path) -> None:
    store, visit = WatchedStore(tmp_path / "resume.db"), Talk()
    store.refusing = True
    keeper = ResumeKeeper(store, MAC, visit.snapshot, debounce_s=0.01, every_s=0.05)
    keeper.start()
    keeper.changed()
    await saved(store)
    store.refusing = False
    await saved(store)
    assert texts(store.load(MAC)) == ["hi"]
    await keeper.aclose()


async def test_a_broken_snapshot_does_not_end_the_keeper(tmp_path: Path) -> None:
    store, calls = WatchedStore(tmp_path / "resume.db"), []

    def snapshot() -> Snapshot:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        return Snapshot(talk("hi"))

    keeper = ResumeKeeper(store, MAC, snapshot, every_s=0.02)
    keeper.start()
    await saved(store)
    assert len(calls) >= 2
    await keeper.aclose()


async def test_a_visit_that_is_forgotten_stays_so(tmp_path: Path) -> None:
    store, visit = WatchedStore(tmp_path / "resume.db"), Talk()
    keeper = ResumeKeeper(store, MAC, visit.snapshot, debounce_s=0.01, every_s=60)
    keeper.start()
    keeper.changed()
    await saved(store)
    await keeper.forget()
    await keeper.aclose()
    assert store.load(MAC) is None


async def test_a_killed_visit_is_found_with_all_it_had_saved(tmp_path: Path) -> None:
    path = tmp_path / "resume.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, str(path), MAC, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    last = -1
    async with asyncio.timeout(60):
        while last < 70:
            last = int(await process.stdout.readline())
        process.kill()
        rest, _ = await process.communicate()
    last = int(rest.split()[-1]) if rest.endswith(b"\n") else last
    found = texts(SqliteResumeStore(path, window_s=300).load(MAC))
    assert int(found[-1] or "") >= last
    assert len(found) == ITEMS_MAX

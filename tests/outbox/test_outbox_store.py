"""What every store of the outbox promises, and what a file alone has to."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from outbox_support import line

from agent.errors import OutboxError
from agent.outbox.items import DELIVERED_KEPT_S, MAX_BODY_BYTES, Lane, OutboxItem, OutboxStats
from agent.outbox.redis import RedisOutbox
from agent.outbox.reserve import RESERVE_BYTES, DiskReserve
from agent.outbox.sqlite import SqliteOutbox
from damage_support import damage_table
from sandbox.redis_server import RedisServer

Store = SqliteOutbox | RedisOutbox


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path, clock: Clock) -> SqliteOutbox:
    return SqliteOutbox(tmp_path / "outbox.db", max_age_s=1000, max_items=10, clock=clock)


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Store]:
    if request.param == "file":
        yield request.getfixturevalue("file")
        return
    redis: RedisServer = request.getfixturevalue("redis")
    outbox = RedisOutbox(redis.url, max_age_s=1000, max_items=10, clock=clock)
    yield outbox
    outbox.close()


AA = Lane("chat", "aa")


def at(item: OutboxItem, created_at: float) -> OutboxItem:
    return OutboxItem(item.kind, item.lane, item.body, item.key, created_at)


def drain(store: Store, lane: Lane, owner: str = "me") -> list[str]:
    texts = []
    while (item := store.head(lane, owner, 10)) is not None:
        texts.append(item.payload["text"])
        store.delivered(lane, item)
    return texts


def test_lanes_keep_their_order_and_end_when_empty(store: Store) -> None:
    store.add([line("aa", 1), line("bb", 1), line("aa", 2)])
    store.add([line("aa", 3), line("aa", 1, "memory")])
    assert store.claim("me", "chat", 5, 10) == [AA, Lane("chat", "bb")]
    assert drain(store, AA) == ["1", "2", "3"]
    assert drain(store, Lane("chat", "bb")) == ["1"]
    assert store.claim("me", "chat", 5, 10) == []
    assert store.claim("me", "memory", 5, 10) == [Lane("memory", "aa")]
    assert store.stats(["chat"]) == {"chat": OutboxStats(delivered=4)}


def test_a_key_is_taken_once_waiting_delivered_or_dead(store: Store, clock: Clock) -> None:
    assert store.add([line("aa", 1), line("aa", 1)]) == 1
    store.claim("me", "chat", 5, 10)
    drain(store, AA)
    assert store.add([line("aa", 1)]) == 0
    store.add([line("aa", 2)])
    store.claim("me", "chat", 5, 10)
    store.bury(AA, line("aa", 2), "no")
    assert store.add([line("aa", 2)]) == 0
    clock.now += DELIVERED_KEPT_S + 1
    store.prune()
    assert store.add([line("aa", 1)]) == 1


def test_a_lane_has_one_owner_until_its_lease_ends(store: Store, clock: Clock) -> None:
    store.add([line("aa", 1), line("aa", 2)])
    assert store.claim("first", "chat", 5, 10) == [AA]
    assert store.claim("second", "chat", 5, 10) == []
    clock.now += 8
    store.renew("first", [AA], 10)
    clock.now += 8
    assert store.claim("second", "chat", 5, 10) == []
    clock.now += 3
    assert store.claim("second", "chat", 5, 10) == [AA]
    assert store.head(AA, "first", 10) is None, "who lost the lease delivers nothing more"
    assert drain(store, AA, "second") == ["1", "2"]


def test_only_the_lanes_that_are_worked_on_are_kept(store: Store, clock: Clock) -> None:
    store.add([line("aa", 1), line("bb", 1)])
    assert store.claim("first", "chat", 5, 10) == [AA, Lane("chat", "bb")]
    clock.now += 8
    store.renew("first", [AA], 10)
    store.renew("second", [Lane("chat", "bb")], 10)
    clock.now += 3
    assert store.claim("second", "chat", 5, 10) == [Lane("chat", "bb")]


def held(text: str, hold_s: float, key: str = "growing") -> OutboxItem:
    return OutboxItem.of("chat", "aa", {"text": text}, key=key, hold_s=hold_s)


def test_an_item_on_hold_grows_and_is_delivered_when_it_is_let_go(store: Store) -> None:
    assert store.add([held("a", 100)]) == 1
    assert store.add([held("ab", 100)]) == 1
    assert store.claim("me", "chat", 5, 10) == []
    store.add([held("abc", 0), line("aa", 2)])
    assert store.claim("me", "chat", 5, 10) == [AA]
    assert drain(store, AA) == ["abc", "2"]
    assert store.add([held("abcd", 0)]) == 0, "what was delivered does not grow any more"


def test_a_body_is_known_from_its_older_states(store: Store, clock: Clock) -> None:
    assert not store.knows(held("a", 0))
    store.add([held("a", 100)])
    store.add([held("ab", 0), line("aa", 2)])
    assert [store.knows(held(text, 0)) for text in ("a", "ab", "abc")] == [False, True, False]
    store.claim("me", "chat", 5, 10)
    assert drain(store, AA) == ["ab", "2"]
    assert [store.knows(held(text, 0)) for text in ("a", "ab", "abc")] == [False, True, False]
    store.bury(AA, line("aa", 3), "no")
    assert store.knows(line("aa", 3))
    clock.now += DELIVERED_KEPT_S + 1
    store.prune()
    assert not store.knows(held("ab", 0))


def test_an_item_whose_writer_died_is_delivered_when_its_hold_ends(store: Store, clock: Clock) -> None:
    store.add([line("aa", 1), held("a", 100)])
    assert store.claim("me", "chat", 5, 10) == [AA]
    assert drain(store, AA) == ["1"]
    clock.now += 99
    assert store.claim("me", "chat", 5, 10) == []
    clock.now += 1
    assert store.claim("me", "chat", 5, 10) == [AA]
    assert drain(store, AA) == ["a"]


def test_a_new_item_does_not_shorten_the_wait_after_a_failure(store: Store, clock: Clock) -> None:
    store.add([line("aa", 1)])
    store.claim("me", "chat", 5, 10)
    item = store.head(AA, "me", 10)
    assert item is not None
    store.postpone(AA, "me", item, 30)
    store.add([line("aa", 2), held("a", 0)])
    assert store.claim("me", "chat", 5, 10) == []


def test_released_lanes_are_free_at_once(store: Store) -> None:
    store.add([line("aa", 1)])
    store.claim("first", "chat", 5, 10)
    store.release("first")
    assert store.claim("second", "chat", 5, 10) == [AA]


def test_a_postponed_lane_waits_and_counts(store: Store, clock: Clock) -> None:
    store.add([line("aa", 1)])
    store.claim("me", "chat", 5, 10)
    item = store.head(AA, "me", 10)
    assert item is not None
    assert item.attempts == 0
    store.postpone(AA, "me", item, 30)
    assert store.claim("me", "chat", 5, 10) == []
    clock.now += 30
    assert store.claim("me", "chat", 5, 10) == [AA]
    item = store.head(AA, "me", 10)
    assert item is not None
    assert item.attempts == 1
    assert store.stats(["chat"])["chat"].retried == 1


def test_a_clock_that_was_set_back_does_not_hold_lanes_for_ever(store: Store, clock: Clock) -> None:
    store.add([line("aa", 1), line("bb", 1)])
    store.claim("me", "chat", 1, 10)
    clock.now -= 30 * 86400
    assert set(store.claim("other", "chat", 5, 10)) == {AA, Lane("chat", "bb")}


def test_the_oldest_are_dropped_and_counted_by_number(store: Store) -> None:
    store.add([line("aa", number) for number in range(1, 15)])
    assert store.stats(["chat"])["chat"].depth == 10
    assert store.stats(["chat"])["chat"].dropped == 4
    store.claim("me", "chat", 5, 10)
    assert drain(store, AA) == [str(number) for number in range(5, 15)]


def test_the_oldest_are_dropped_and_counted_by_age(store: Store, clock: Clock) -> None:
    store.add([at(line("aa", 1), clock.now - 1001), at(line("aa", 2), clock.now - 900)])
    assert store.prune() == 1
    state = store.stats(["chat"])["chat"]
    assert (state.depth, state.dropped, state.oldest_age_s) == (1, 1, 900)


def test_dead_items_keep_their_reason(store: Store) -> None:
    item = line("aa", 1)
    store.add([item, line("aa", 2)])
    store.claim("me", "chat", 5, 10)
    store.bury(AA, item, "validation")
    [(dead, reason)] = store.dead_items()
    assert (dead.key, dead.body, reason) == (item.key, item.body, "validation")
    assert drain(store, AA) == ["2"]
    assert store.stats(["chat"])["chat"].dead == 1


def test_what_was_set_aside_can_be_sent_again(store: Store, clock: Clock) -> None:
    first, second = at(line("aa", 1), clock.now), at(line("aa", 2), clock.now + 1)
    store.add([first, second])
    store.claim("me", "chat", 5, 10)
    store.bury(AA, second, "no")
    store.bury(AA, first, "no")
    assert store.head(AA, "me", 10) is None
    assert store.revive() == 2
    assert store.dead_items() == []
    assert store.claim("me", "chat", 5, 10) == [AA]
    assert drain(store, AA) == ["1", "2"]


def test_a_store_that_was_deleted_under_us_is_begun_again(file: SqliteOutbox, tmp_path: Path) -> None:
    file.add([line("aa", 1)])
    for part in tmp_path.iterdir():
        part.unlink()
    file.add([line("aa", 2)])
    other = SqliteOutbox(tmp_path / "outbox.db")
    other.claim("me", "chat", 5, 10)
    assert drain(other, AA) == ["2"]


def test_a_damaged_file_is_moved_aside(tmp_path: Path, file: SqliteOutbox) -> None:
    (tmp_path / "outbox.db").write_bytes(b"no database at all, but long enough to be read as one" * 100)
    assert file.add([line("aa", 1)]) == 1
    assert (tmp_path / "outbox.db.damaged").exists()


@pytest.mark.parametrize("table", ["items", "lanes", "delivered", "counters", "items_age"])
def test_a_file_damaged_inside_is_moved_aside_with_what_waited(tmp_path: Path, table: str) -> None:
    path = tmp_path / "outbox.db"
    before = SqliteOutbox(path)
    before.add([line("aa", number) for number in range(20)])
    before.close()
    damage_table(path, table)
    writer, courier = SqliteOutbox(path), SqliteOutbox(path)
    for _ in range(2):  # whoever meets it first is told so
        with contextlib.suppress(OutboxError):
            courier.prune()
            courier.stats(["chat"])
    assert writer.add([line("bb", 1)]) == 1
    assert courier.claim("me", "chat", 5, 10) == [Lane("chat", "bb")]
    assert drain(courier, Lane("chat", "bb")) == ["1"]
    assert (tmp_path / "outbox.db.damaged").exists()
    writer.close()
    courier.close()


def test_what_is_put_into_a_file_damaged_inside_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    before = SqliteOutbox(path)
    before.add([line("aa", 1)])
    before.close()
    damage_table(path, "items")
    assert SqliteOutbox(path).add([line("aa", 2)]) == 1
    assert (tmp_path / "outbox.db.damaged").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutboxError):
        SqliteOutbox(tmp_path / "sub" / "outbox.db").add([line("aa", 1)])


def test_a_path_that_is_no_folder_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxError):
        SqliteOutbox(tmp_path / "file" / "outbox.db").add([line("aa", 1)])


def test_a_full_disk_is_a_typed_error_and_leaves_the_rest_whole(file: SqliteOutbox, tmp_path: Path) -> None:
    file.add([line("aa", 1)])
    full = SqliteOutbox(tmp_path / "outbox.db")
    full._database.connection().execute("PRAGMA max_page_count=1")
    with pytest.raises(OutboxError, match="full"):
        full.add([OutboxItem.of("chat", "aa", {"text": "x" * 100_000})])
    assert file.stats(["chat"])["chat"].depth == 1
    assert full.add([line("aa", 2)]) == 1, "the connection is opened anew, without the limit"


def test_a_locked_file_is_a_typed_error(tmp_path: Path) -> None:
    store = SqliteOutbox(tmp_path / "outbox.db", lock_timeout_s=0.01)
    store.add([line("aa", 1)])
    other = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OutboxError, match="locked"):
        store.add([line("aa", 2)])
    other.execute("ROLLBACK")
    other.close()
    assert store.add([line("aa", 2)]) == 1


def test_threads_may_write_at_once(file: SqliteOutbox, tmp_path: Path) -> None:
    other = SqliteOutbox(tmp_path / "outbox.db", lock_timeout_s=20)
    big = SqliteOutbox(tmp_path / "outbox.db", lock_timeout_s=20)
    threads = [
        threading.Thread(target=lambda s=s, lane=lane: [s.add([line(lane, n)]) for n in range(50)])  # type: ignore[misc]
        for s, lane in ((other, "aa"), (other, "bb"), (big, "cc"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.stats(["chat"])["chat"].depth == 150


@pytest.mark.parametrize("payload", [{"x": object()}, {"x": float("nan")}, {"x": "y" * MAX_BODY_BYTES}])
def test_what_is_no_item_is_refused(payload: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        OutboxItem.of("chat", "aa", payload)


def test_any_text_survives(store: Store) -> None:
    text = "नमस्ते 🎈 \ud800 \x00 'quoted'"
    store.add([OutboxItem.of("chat", "aa", {"text": text})])
    store.claim("me", "chat", 5, 10)
    assert drain(store, AA) == [text]


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_room_is_kept_on_the_disk_for_what_comes_when_it_is_full(file: SqliteOutbox, tmp_path: Path) -> None:
    reserve = tmp_path / "outbox.db.reserve"
    file.prune()
    assert blocks(reserve) >= RESERVE_BYTES
    full = SqliteOutbox(tmp_path / "outbox.db")
    full._database.connection().execute("PRAGMA max_page_count=1")
    assert full.add([OutboxItem.of("chat", "aa", {"text": "x" * 100_000})]) == 1
    assert not reserve.exists()
    file.prune()
    assert reserve.exists()
    full.close()


def test_no_room_is_kept_where_there_is_little(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path / "reserve", size=2**60)
    assert not reserve.keep()
    assert not reserve.release()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    assert not DiskReserve(tmp_path / "file" / "reserve").keep()

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from outbox_support import line

from agent.errors import OutboxError
from agent.outbox.items import Lane, OutboxItem
from agent.outbox.sqlite import SqliteOutbox
from agent.outbox.writer import OutboxWriter


class RefusingOutbox(SqliteOutbox):
    """A real store whose disk refuses while `refusing` is set; with `held` a write waits until it is let go."""

    refusing = False
    error: Exception = OutboxError("disk full")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.refused = threading.Semaphore(0)
        self.held: threading.Event | None = None

    def add(self, items: Sequence[OutboxItem]) -> int:
        if self.held is not None:
            assert self.held.wait(20)
        if self.refusing:
            self.refused.release()
            raise self.error
        return super().add(items)


@pytest.fixture
def store(tmp_path: Path) -> RefusingOutbox:
    return RefusingOutbox(tmp_path / "outbox.db")


def texts(store: SqliteOutbox) -> list[str]:
    lane = Lane("chat", "aa")
    store.claim("me", "chat", 5, 10)
    found = []
    while (item := store.head(lane, "me", 10)) is not None:
        found.append(item.payload["text"])
        store.delivered(lane, item)
    return found


async def test_what_was_put_is_on_disk_after_flush_in_order(store: RefusingOutbox, tmp_path: Path) -> None:
    writer = OutboxWriter(store)
    for number in range(450):
        writer.put(line("aa", number))
    await writer.flush()
    assert writer.unwritten == 0
    assert texts(SqliteOutbox(tmp_path / "outbox.db")) == [str(number) for number in range(450)]
    assert await writer.aclose() == 0


async def test_put_does_not_wait_for_the_disk(store: RefusingOutbox) -> None:
    store.held = threading.Event()
    writer = OutboxWriter(store)
    writer.put(line("aa", 1), line("aa", 2))
    with pytest.raises(OutboxError, match="2 outbox items"):
        await writer.flush(0.01)
    store.held.set()
    await writer.flush()
    assert await writer.aclose() == 0


@pytest.mark.parametrize("error", [OutboxError("disk full"), RuntimeError("a bug")])
async def test_a_refusing_disk_is_tried_until_it_takes_all_in_order(store: RefusingOutbox, error: Exception) -> None:
    store.refusing, store.error = True, error
    writer = OutboxWriter(store, longest_pause_s=0.05)
    writer.put(line("aa", 1))
    for _ in range(3):
        assert await asyncio.to_thread(store.refused.acquire, timeout=10)
    writer.put(line("aa", 2), line("aa", 3))
    assert writer.failures >= 3
    store.refusing = False
    await writer.flush(10)
    assert texts(store) == ["1", "2", "3"]
    assert await writer.aclose() == 0


async def test_closing_with_a_refusing_disk_ends_and_counts_what_is_lost(store: RefusingOutbox) -> None:
    store.refusing = True
    writer = OutboxWriter(store, longest_pause_s=0.05)
    writer.put(line("aa", 1), line("aa", 2))
    assert await writer.aclose(0.2) == 2
    assert writer.dropped == 2
    writer.put(line("aa", 3))
    assert writer.dropped == 3


async def test_memory_is_bounded_and_the_oldest_go(store: RefusingOutbox) -> None:
    store.refusing = True
    writer = OutboxWriter(store, longest_pause_s=0.05, max_unwritten=3)
    writer.put(line("aa", 1))
    assert await asyncio.to_thread(store.refused.acquire, timeout=10)
    # A put during an attempt drops nothing, so there must be one after it.
    store.held = threading.Event()
    for number in range(2, 7):
        writer.put(line("aa", number))
    store.held.set()
    assert await asyncio.to_thread(store.refused.acquire, timeout=10)
    store.refusing = False
    await writer.flush(10)
    kept = texts(store)
    assert kept == [str(number) for number in range(7 - len(kept), 7)]
    assert len(kept) + writer.dropped == 6
    await writer.aclose()


async def test_an_unused_writer_closes(store: RefusingOutbox) -> None:
    writer = OutboxWriter(store)
    await writer.flush()
    assert await writer.aclose() == 0

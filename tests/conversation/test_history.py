from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from livekit.agents.llm import ChatMessage, FunctionCall

from agent.briefing.memory import Message
from agent.briefing.profile import ChatType
from agent.conversation.history import (
    CONTENT_MAX,
    MEMORY_HOLD_S,
    MESSAGES_MAX,
    ChatHistory,
    chat_deliverer,
    memory_deliverer,
)
from agent.errors import (
    Malformed,
    MustBindFirst,
    NotFound,
    OutboxError,
    Rejected,
    RemoteError,
    Unavailable,
    Undeliverable,
)
from agent.outbox.items import Lane, OutboxItem
from agent.outbox.sqlite import SqliteOutbox
from agent.outbox.writer import OutboxWriter
from agent.values import DeviceMac

MAC = DeviceMac("68:25:dd:ba:39:78")
ROOM = "7d1c_6825ddba3978"


class Clock:
    now = 1_758_701_973.0

    def __call__(self) -> float:
        return self.now


class Visit:
    """A history on a real outbox, and what a courier would find in it now."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path
        self.writer = OutboxWriter(SqliteOutbox(path, clock=self.clock))
        self.history = ChatHistory(self.writer, MAC, ROOM, clock=self.clock)

    async def found(self, kind: str) -> list[OutboxItem]:
        await self.writer.flush()
        store = SqliteOutbox(self.path, clock=self.clock)
        items = []
        for lane in store.claim("test", kind, 5, 10):
            while (item := store.head(lane, "test", 10)) is not None:
                items.append(item)
                store.delivered(lane, item)
        store.close()
        return items

    async def lines(self) -> list[tuple[str, str]]:
        return [(item.payload["who"], item.payload["content"]) for item in await self.found("chat")]

    async def batches(self) -> list[list[str]]:
        return [[message["content"] for message in item.payload["messages"]] for item in await self.found("memory")]

    def turn(self, number: int) -> None:
        self.history.say(ChatType.USER, f"u{number}")
        self.history.say(ChatType.AGENT, f"a{number}")


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path / "outbox.db")


async def test_lines_leave_in_order_with_their_time_and_speaker(visit: Visit) -> None:
    visit.history.decide(chat_history=1, memory_user=None)
    visit.history.add(ChatMessage(role="user", content=["hello"], created_at=1758701973.9))
    visit.history.add(ChatMessage(role="system", content=["rules"]))
    visit.history.add(FunctionCall(call_id="1", name="play", arguments="{}"))
    visit.history.add(ChatMessage(role="assistant", content=["Hi", "there"], created_at=1758701975.1))
    visit.history.add(ChatMessage(role="assistant", content=[" \n"]))
    items = await visit.found("chat")
    assert [item.payload for item in items] == [
        {"session_id": ROOM, "who": "user", "content": "hello", "at": 1758701973},
        {"session_id": ROOM, "who": "agent", "content": "Hi\nthere", "at": 1758701975},
    ]
    assert {item.lane for item in items} == {str(MAC)}
    assert MAC.hex12 not in items[0].key


async def test_an_item_reported_twice_is_one_line_also_across_restarts_of_the_session(visit: Visit) -> None:
    message = ChatMessage(role="user", content=["hello"])
    again = ChatHistory(visit.writer, MAC, ROOM)
    for history in (visit.history, visit.history, again):
        history.decide(chat_history=1, memory_user=None)
        history.add(message)
    assert await visit.lines() == [("user", "hello")]


async def test_content_is_cut(visit: Visit) -> None:
    visit.history.decide(chat_history=2, memory_user=None)
    visit.history.say(ChatType.USER, "ä" * 5000)
    assert await visit.lines() == [("user", "ä" * CONTENT_MAX)]


@pytest.mark.parametrize(("conf", "kept"), [(0, []), (1, [("user", "hi")]), (2, [("user", "hi")])])
async def test_what_the_parents_chose_is_honoured_also_for_earlier_lines(
    visit: Visit, conf: int, kept: list[tuple[str, str]]
) -> None:
    visit.history.say(ChatType.USER, "hi")
    assert await visit.lines() == [], "undecided lines wait"
    visit.history.decide(chat_history=conf, memory_user="child:1")
    visit.history.decide(chat_history=1, memory_user=None)
    assert await visit.lines() == kept
    assert await visit.history.aclose()
    assert await visit.batches() == [["hi"]], "memories do not depend on it"


async def test_a_visit_that_ends_undecided_reports_and_remembers_nothing(visit: Visit) -> None:
    visit.turn(1)
    assert await visit.history.aclose()
    assert await visit.lines() == [("user", "u1"), ("agent", "a1")]
    assert await visit.batches() == []


async def test_turns_are_remembered_in_batches_and_the_rest_at_the_end(visit: Visit) -> None:
    visit.history.decide(chat_history=0, memory_user="child:1")
    visit.history.say(ChatType.AGENT, "hello you")
    for number in range(1, 6):
        visit.turn(number)
    assert await visit.batches() == [["hello you", "u1", "a1", "u2", "a2", "u3", "a3", "u4", "a4"]]
    await visit.history.aclose()
    [item] = await visit.found("memory")
    assert item.payload["messages"] == [{"role": "user", "content": "u5"}, {"role": "assistant", "content": "a5"}]
    assert item.payload["user_id"] == "child:1"


async def test_what_only_the_agent_said_is_not_remembered(visit: Visit) -> None:
    visit.history.decide(chat_history=0, memory_user="child:1")
    for number in range(MESSAGES_MAX + 5):
        visit.history.say(ChatType.AGENT, f"a{number}")
    await visit.history.aclose()
    assert await visit.batches() == []


async def test_no_batch_outgrows_an_item(visit: Visit) -> None:
    visit.history.decide(chat_history=0, memory_user="child:1")
    visit.history.say(ChatType.USER, "tell me stories")
    for number in range(3 * MESSAGES_MAX):
        visit.history.say(ChatType.AGENT, f"{number} " + "🎈" * 5000)
    visit.history.say(ChatType.USER, "thanks")
    await visit.history.aclose()
    batches = await visit.batches()
    assert [len(batch) for batch in batches] == [MESSAGES_MAX, MESSAGES_MAX]
    assert batches[0][0] == "tell me stories"
    assert batches[1][-1] == "thanks"


async def test_a_killed_visit_loses_no_turn_of_its_memory(visit: Visit) -> None:
    visit.history.decide(chat_history=0, memory_user="child:1")
    visit.turn(1)
    assert await visit.batches() == [], "still growing"
    visit.clock.now += MEMORY_HOLD_S
    assert await visit.batches() == [["u1", "a1"]]


async def test_words_after_a_long_silence_do_not_go_into_a_batch_that_is_gone(visit: Visit) -> None:
    visit.history.decide(chat_history=0, memory_user="child:1")
    visit.turn(1)
    await visit.writer.flush()
    visit.clock.now += MEMORY_HOLD_S + 1
    assert await visit.batches() == [["u1", "a1"]]
    visit.turn(2)
    await visit.history.aclose()
    assert await visit.batches() == [["u2", "a2"]]


class FullOutbox:
    def __init__(self) -> None:
        self.items: list[OutboxItem] = []

    def put(self, *items: OutboxItem) -> None:
        self.items.extend(items)

    async def flush(self, timeout_s: float = 5.0) -> None:
        raise OutboxError("disk full")


async def test_a_full_disk_is_told_at_the_end_and_raises_nothing() -> None:
    outbox = FullOutbox()
    history = ChatHistory(outbox, MAC, ROOM)
    history.say(ChatType.USER, "hi")
    assert not await history.aclose()
    assert len(outbox.items) == 1


class Manager:
    """Answers `report_chat` with `answer`."""

    def __init__(self, answer: bool | Exception = True) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    async def report_chat(
        self,
        mac: DeviceMac,
        *,
        session_id: str,
        chat_type: ChatType,
        content: str,
        report_time: int,
        idempotency_key: str | None = None,
    ) -> bool:
        self.calls.append(
            {"mac": mac, "type": chat_type.wire, "content": content, "at": report_time, "key": idempotency_key}
        )
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_lines_reach_the_manager_with_their_key(visit: Visit) -> None:
    visit.history.decide(chat_history=1, memory_user=None)
    visit.history.say(ChatType.AGENT, "hi", at=5.7)
    [item] = await visit.found("chat")
    manager = Manager()
    await chat_deliverer(manager.report_chat)(item)
    assert manager.calls == [{"mac": MAC, "type": 2, "content": "hi", "at": 5, "key": item.key}]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (False, Undeliverable),
        (Rejected("refused", 10034), Undeliverable),
        (NotFound("no such device"), Undeliverable),
        (MustBindFirst("bind", "123456"), Undeliverable),
        (Rejected("generic", 500), Unavailable),
        (Rejected("other", 777), Rejected),
        (Malformed("nonsense"), Malformed),
        (Unavailable("down"), Unavailable),
    ],
)
async def test_the_managers_answers_decide_what_becomes_of_a_line(answer: bool | Exception, error: type) -> None:
    item = OutboxItem.of("chat", MAC, {"session_id": ROOM, "who": "user", "content": "hi", "at": 5})
    with pytest.raises(error):
        await chat_deliverer(Manager(answer).report_chat)(item)


class Remembering:
    def __init__(self, error: RemoteError | None = None) -> None:
        self.error = error
        self.calls: list[tuple[list[Message], str, str]] = []

    async def recall(self, query: str, *, user_id: str, limit: int = 5) -> list[str]:
        raise AssertionError("not asked for")

    async def remember(
        self, messages: Sequence[Message], *, user_id: str, key: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.calls.append((list(messages), user_id, key))
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None: ...


async def test_batches_reach_the_memory_with_their_key(visit: Visit) -> None:
    visit.history.decide(chat_history=0, memory_user="child:1")
    visit.turn(1)
    await visit.history.aclose()
    [item] = await visit.found("memory")
    memory = Remembering()
    await memory_deliverer(memory)(item)
    messages = [Message(role="user", content="u1"), Message(role="assistant", content="a1")]
    assert memory.calls == [(messages, "child:1", item.key)]
    with pytest.raises(Undeliverable):
        await memory_deliverer(Remembering(Rejected("too long", 413)))(item)
    with pytest.raises(Unavailable):
        await memory_deliverer(Remembering(Unavailable("down")))(item)


async def test_a_line_never_waits_for_the_disk(tmp_path: Path) -> None:
    """The event loop turns while another process holds the file."""
    store = SqliteOutbox(tmp_path / "outbox.db", lock_timeout_s=20)
    holder = SqliteOutbox(tmp_path / "outbox.db")
    writer = OutboxWriter(store)
    history = ChatHistory(writer, MAC, ROOM)
    history.decide(chat_history=1, memory_user=None)
    with holder._transaction():
        history.say(ChatType.USER, "hi")
        assert not await history.aclose(0.05)
    assert await asyncio.wait_for(history.aclose(20), 20)
    assert store.claim("me", "chat", 1, 1) == [Lane("chat", str(MAC))]
    await writer.aclose()

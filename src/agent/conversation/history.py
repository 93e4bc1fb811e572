"""What was said, on its way out: chat lines for the Manager API and messages for the memory, through the outbox."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable
from typing import Final, Protocol

import structlog
from livekit.agents.llm import ChatItem

from agent.briefing.memory import Memory, Message
from agent.briefing.profile import DEFAULT_CHAT_HISTORY, ChatType
from agent.errors import MustBindFirst, NotFound, OutboxError, Rejected, Unavailable, Undeliverable
from agent.outbox.items import Deliverer, OutboxItem
from agent.outbox.writer import Outbox
from agent.values import DeviceMac, whole_text

_log = structlog.get_logger(__name__)

CONTENT_MAX: Final = 1000
"""Characters of a chat line."""
MESSAGE_MAX: Final = 1000
"""Characters of a message for the memory."""
MESSAGES_MAX: Final = 20
"""Messages of one batch, so that none can be larger than an outbox item may be."""
TURNS_PER_MEMORY: Final = 4
"""How many of the child's turns are remembered together: enough for sense, few enough to be there at the next visit."""
MEMORY_HOLD_S: Final = 300.0
"""After how many seconds without a word an unfinished batch is delivered as it is, should its process have died."""

_VALIDATION: Final = 10034
_GENERIC: Final = 500


class ChatHistory:
    """Collects one visit's lines in the order they were said and puts them into the outbox; nothing here ever waits.

    Until `decide` has told what may be kept, lines wait in memory; a visit that ends undecided reports its lines and
    remembers nothing. Memories grow on disk line by line, so that a kill loses no turn; a batch is let go when it has
    `turns_per_memory` turns of the child, and at the end. `session_id` is the room's name.
    """

    def __init__(
        self,
        outbox: Outbox,
        mac: DeviceMac,
        session_id: str,
        *,
        turns_per_memory: int = TURNS_PER_MEMORY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbox = outbox
        self._mac = mac
        self._session_id = session_id
        self._turns_per_memory = turns_per_memory
        self._clock = clock
        self._waiting: list[tuple[ChatType, str, float, str]] | None = []
        self._report = True
        self._memory_user: str | None = None
        self._batch = _Batch()
        self._seen: set[str] = set()

    def decide(self, *, chat_history: int, memory_user: str | None) -> None:
        """Say what may be kept: `chat_history` is the contract's (0 nothing, 1 text, 2 text and sound, which counts as
        1 here), `memory_user` whose memory it is, None for nobody's. What was said before follows at once; the first
        decision holds."""
        if self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        self._report = chat_history > 0
        self._memory_user = memory_user
        for who, text, at, key in waiting:
            self._keep(who, text, at, key)

    def add(self, item: ChatItem) -> None:
        """Take an item of the session's conversation; whatever is no word of child or agent is ignored."""
        if item.type != "message" or item.role not in ("user", "assistant"):
            return
        who = ChatType.USER if item.role == "user" else ChatType.AGENT
        self.say(who, item.text_content or "", at=item.created_at, item_id=item.id)

    def say(self, who: ChatType, text: str, *, at: float | None = None, item_id: str | None = None) -> None:
        """Take one line, said `at` Unix seconds (None: now). The same `item_id` twice is one line."""
        text = whole_text(text).strip()
        item_id = item_id or uuid.uuid4().hex
        if not text or item_id in self._seen:
            return
        self._seen.add(item_id)
        moment = self._clock() if at is None else at
        # The room's name carries the MAC; a key travels in headers and logs of others.
        key = hashlib.blake2b(f"{self._session_id}\0{item_id}".encode(), digest_size=16).hexdigest()
        if self._waiting is not None:
            self._waiting.append((who, text, moment, key))
        else:
            self._keep(who, text, moment, key)

    async def aclose(self, timeout_s: float = 3.0) -> bool:
        """Let go what is left and wait for the disk; False when it is not there after `timeout_s`, which is logged."""
        self.decide(chat_history=DEFAULT_CHAT_HISTORY, memory_user=None)
        self._let_go()
        try:
            await self._outbox.flush(timeout_s)
        except OutboxError as error:
            _log.error("history_not_on_disk", error=str(error))
            return False
        return True

    def _keep(self, who: ChatType, text: str, at: float, key: str) -> None:
        if self._report:
            line = {"session_id": self._session_id, "who": who.value, "content": text[:CONTENT_MAX], "at": int(at)}
            self._outbox.put(OutboxItem.of("chat", self._mac, line, key=f"chat-{key}"))
        if self._memory_user is not None:
            self._remember(who, text[:MESSAGE_MAX])

    def _remember(self, who: ChatType, text: str) -> None:
        now = self._clock()
        if who is ChatType.USER and self._batch.turns >= self._turns_per_memory:
            self._let_go()
        elif self._batch.messages and now - self._batch.changed_at > MEMORY_HOLD_S / 2:
            # Its hold may end at any moment: what is said now must not go into something that is gone.
            self._let_go()
        elif len(self._batch.messages) >= MESSAGES_MAX:
            self._let_go()
            # Nothing went where only the agent has spoken: its oldest words go instead.
            del self._batch.messages[: 1 - MESSAGES_MAX]
        self._batch.messages.append(Message(role="user" if who is ChatType.USER else "assistant", content=text))
        self._batch.turns += who is ChatType.USER
        self._batch.changed_at = now
        self._put_batch(MEMORY_HOLD_S)

    def _let_go(self) -> None:
        batch = self._batch
        self._put_batch(0.0)
        self._batch = _Batch() if batch.turns else batch

    def _put_batch(self, hold_s: float) -> None:
        # What the agent alone has said tells nothing about the child.
        if self._memory_user is None or not self._batch.turns:
            return
        body = {"user_id": self._memory_user, "messages": self._batch.messages, "session_id": self._session_id}
        self._outbox.put(OutboxItem.of("memory", self._mac, body, key=self._batch.key, hold_s=hold_s))


class _Batch:
    """Messages that will be remembered together."""

    def __init__(self) -> None:
        self.key = f"memory-{uuid.uuid4().hex}"
        self.messages: list[Message] = []
        self.turns = 0
        self.changed_at = 0.0


class ReportChat(Protocol):
    """`report_chat` of the Manager API's client; `idempotency_key` goes out as the header `Idempotency-Key`."""

    async def __call__(
        self,
        mac: DeviceMac,
        *,
        session_id: str,
        chat_type: ChatType,
        content: str,
        report_time: int,
        idempotency_key: str | None = None,
    ) -> bool: ...


def chat_deliverer(report_chat: ReportChat) -> Deliverer:
    """The courier's way for `chat` items."""

    async def deliver(item: OutboxItem) -> None:
        line = item.payload
        try:
            kept = await report_chat(
                DeviceMac(item.lane),
                session_id=line["session_id"],
                chat_type=ChatType(line["who"]),
                content=line["content"],
                report_time=line["at"],
                idempotency_key=item.key,
            )
        except (NotFound, MustBindFirst) as error:
            raise Undeliverable(str(error)) from error
        except Rejected as error:
            if error.code == _VALIDATION:
                raise Undeliverable(str(error)) from error
            if error.code == _GENERIC:
                # The Manager API's word for every failure of its own, such as a database that is away.
                raise Unavailable(str(error)) from error
            raise
        if not kept:
            raise Undeliverable("the device has no agent")

    return deliver


def memory_deliverer(memory: Memory) -> Deliverer:
    """The courier's way for `memory` items."""

    async def deliver(item: OutboxItem) -> None:
        body = item.payload
        try:
            await memory.remember(
                body["messages"],
                user_id=body["user_id"],
                key=item.key,
                metadata={"session_id": body["session_id"]},
            )
        except Rejected as error:
            raise Undeliverable(str(error)) from error

    return deliver

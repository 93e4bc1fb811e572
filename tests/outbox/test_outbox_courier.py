from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from outbox_support import HttpDeliverer, Receiver, line

from agent.errors import Malformed, OutboxError, RateLimited, Unauthorised, Unavailable, Undeliverable
from agent.outbox.courier import LONGEST_DELAY_S, CourierTiming, OutboxCourier
from agent.outbox.items import Lane, OutboxItem
from agent.outbox.sqlite import SqliteOutbox

QUICK = CourierTiming(poll_s=0.02, first_delay_s=0.01, longest_delay_s=0.05)


class Script:
    """Answers each item with the next of `outcomes` for its text, then takes it."""

    def __init__(self, outcomes: dict[str, list[BaseException]] | None = None) -> None:
        self.outcomes = outcomes or {}
        self.taken: list[str] = []
        self.tried: list[str] = []
        self.changed = asyncio.Condition()

    async def __call__(self, item: OutboxItem) -> None:
        text = f"{item.lane}{item.payload['text']}"
        self.tried.append(text)
        error = self.outcomes[text].pop(0) if self.outcomes.get(text) else None
        if error is None:
            self.taken.append(text)
        async with self.changed:
            self.changed.notify_all()
        if error is not None:
            raise error

    async def until_taken(self, *texts: str) -> None:
        await self.until(lambda: set(texts) <= set(self.taken))

    async def until(self, condition) -> None:  # type: ignore[no-untyped-def]
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(condition)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
async def couriers() -> AsyncIterator[list[OutboxCourier]]:
    running: list[OutboxCourier] = []
    yield running
    for courier in running:
        await courier.aclose()


async def test_items_put_later_by_another_connection_are_found(path: Path, couriers: list[OutboxCourier]) -> None:
    script = Script()
    couriers.append(OutboxCourier(SqliteOutbox(path), {"chat": script}, timing=QUICK))
    couriers[0].start()
    for number in range(3):
        SqliteOutbox(path).add([line("aa", number)])
        await script.until_taken(f"aa{number}")
    assert script.tried == ["aa0", "aa1", "aa2"]


async def test_a_failing_item_holds_its_own_lane_only(path: Path, couriers: list[OutboxCourier]) -> None:
    script = Script({"aa1": [Unavailable("down")] * 1000})
    memories = Script()
    SqliteOutbox(path).add([line("aa", 1), line("aa", 2), line("bb", 1), line("aa", 9, "memory")])
    couriers.append(OutboxCourier(SqliteOutbox(path), {"chat": script, "memory": memories}, timing=QUICK))
    couriers[0].start()
    await script.until_taken("bb1")
    await memories.until_taken("aa9")
    await script.until(lambda: script.tried.count("aa1") >= 3)
    assert "aa2" not in script.tried
    script.outcomes.clear()
    await script.until_taken("aa1", "aa2")
    state = (await couriers[0].stats())["chat"]
    assert state.retried >= 3
    assert state.dead == 0


@pytest.mark.parametrize(
    "errors",
    [
        [Unavailable("down")] * 15,
        [Unauthorised("wrong secret")] * 15,
        [TimeoutError()] * 15,
        [Malformed("nonsense")] * 2,
        [ZeroDivisionError("a bug")] * 2,
        [RateLimited("patience", 0.01), RateLimited("patience")],
    ],
)
async def test_what_may_pass_is_repeated(
    path: Path, couriers: list[OutboxCourier], errors: list[BaseException]
) -> None:
    script = Script({"aa1": list(errors)})
    SqliteOutbox(path).add([line("aa", 1), line("aa", 2)])
    couriers.append(OutboxCourier(SqliteOutbox(path), {"chat": script}, timing=QUICK, doubtful_attempts=4))
    couriers[0].start()
    await script.until_taken("aa1", "aa2")
    assert script.tried == ["aa1"] * (len(errors) + 1) + ["aa2"]


@pytest.mark.parametrize(
    ("error", "attempts", "reason"),
    [
        (Undeliverable("validation"), 1, "validation"),
        (Malformed("nonsense"), 4, "Malformed: nonsense"),
        (ZeroDivisionError("a bug"), 4, "ZeroDivisionError: a bug"),
    ],
)
async def test_what_will_not_pass_is_set_aside_with_its_reason(
    path: Path, couriers: list[OutboxCourier], error: Exception, attempts: int, reason: str
) -> None:
    script = Script({"aa1": [error] * 1000})
    SqliteOutbox(path).add([line("aa", 1), line("aa", 2)])
    couriers.append(OutboxCourier(SqliteOutbox(path), {"chat": script}, timing=QUICK, doubtful_attempts=4))
    couriers[0].start()
    await script.until_taken("aa2")
    assert script.tried.count("aa1") == attempts
    assert [(item.key, why) for item, why in SqliteOutbox(path).dead_items()] == [("chat-aa-1", reason)]
    assert (await couriers[0].stats())["chat"].dead == 1


async def test_a_receiver_that_hangs_is_given_up(path: Path, couriers: list[OutboxCourier]) -> None:
    begun: list[str] = []

    async def hang_once(item: OutboxItem) -> None:
        begun.append(item.key)
        if len(begun) == 1:
            await asyncio.Event().wait()
        taken.set()

    taken = asyncio.Event()
    SqliteOutbox(path).add([line("aa", 1)])
    timing = CourierTiming(poll_s=0.02, first_delay_s=0.01, deliver_timeout_s=0.05)
    couriers.append(OutboxCourier(SqliteOutbox(path), {"chat": hang_once}, timing=timing))
    couriers[0].start()
    async with asyncio.timeout(20):
        await taken.wait()
    assert begun == ["chat-aa-1"] * 2


def test_delays_double_and_spread() -> None:
    timing = CourierTiming(first_delay_s=1, longest_delay_s=60)
    assert [timing.delay_s(attempts, 1.0) for attempts in (1, 2, 3, 7, 1000)] == [1, 2, 4, 60, 60]
    assert timing.delay_s(3, 0.0) == 2


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("asked", "wait"), [(30.0, 30.0), (0.0, 0.01), (1e9, LONGEST_DELAY_S)])
async def test_retry_after_is_honoured_within_reason(
    path: Path, couriers: list[OutboxCourier], asked: float, wait: float
) -> None:
    clock = Clock()
    script = Script({"aa1": [RateLimited("patience", asked)]})
    store = SqliteOutbox(path, clock=clock)
    store.add([line("aa", 1)])
    courier = OutboxCourier(store, {"chat": script}, timing=QUICK, random_source=lambda: 1.0)
    courier.start()
    await script.until(lambda: script.tried == ["aa1"])
    await courier.aclose()
    probe = SqliteOutbox(path, clock=clock)
    clock.now += wait - 0.005
    assert probe.claim("probe", "chat", 1, 1) == []
    clock.now += 0.01
    assert probe.claim("probe", "chat", 1, 1) == [Lane("chat", "aa")]


async def test_two_couriers_on_one_file_never_hold_the_same_lane(path: Path, couriers: list[OutboxCourier]) -> None:
    busy: set[str] = set()
    overlaps: list[str] = []
    order: dict[str, list[int]] = {}
    finished = asyncio.Event()

    async def deliver(item: OutboxItem) -> None:
        if item.lane in busy:
            overlaps.append(item.key)
        busy.add(item.lane)
        for _ in range(5):
            await asyncio.to_thread(lambda: None)
        busy.discard(item.lane)
        order.setdefault(item.lane, []).append(int(item.payload["text"]))
        if sum(map(len, order.values())) == 60:
            finished.set()

    SqliteOutbox(path).add([line(lane, number) for number in range(15) for lane in ("aa", "bb", "cc", "dd")])
    for _ in range(2):
        couriers.append(OutboxCourier(SqliteOutbox(path), {"chat": deliver}, timing=QUICK, lanes_at_once=2))
        couriers[-1].start()
    async with asyncio.timeout(30):
        await finished.wait()
    assert overlaps == []
    assert all(numbers == list(range(15)) for numbers in order.values())


async def test_closing_lets_the_delivery_under_way_end(path: Path) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def deliver(item: OutboxItem) -> None:
        begun.set()
        await go.wait()

    SqliteOutbox(path).add([line("aa", 1), line("aa", 2)])
    courier = OutboxCourier(SqliteOutbox(path), {"chat": deliver}, timing=QUICK)
    courier.start()
    await begun.wait()
    closing = asyncio.create_task(courier.aclose())
    go.set()
    await closing
    await courier.aclose()
    store = SqliteOutbox(path)
    assert store.stats(["chat"])["chat"].depth == 1
    assert store.claim("next", "chat", 1, 1) == [Lane("chat", "aa")], "the lane was given back at once"


async def test_closing_does_not_wait_for_a_hanging_delivery(path: Path) -> None:
    begun = asyncio.Event()

    async def deliver(item: OutboxItem) -> None:
        begun.set()
        await asyncio.Event().wait()

    SqliteOutbox(path).add([line("aa", 1)])
    courier = OutboxCourier(SqliteOutbox(path), {"chat": deliver}, timing=QUICK)
    courier.start()
    await begun.wait()
    await courier.aclose(0.01)
    assert SqliteOutbox(path).claim("next", "chat", 1, 1) == [Lane("chat", "aa")]


class MarkFails(SqliteOutbox):
    """A real store that cannot note a delivery for a while."""

    failures = 3

    def delivered(self, lane: Lane, item: OutboxItem) -> None:
        if self.failures:
            self.failures -= 1
            raise OutboxError("disk full")
        super().delivered(lane, item)


async def test_a_mark_that_cannot_be_written_does_not_repeat_the_delivery(
    path: Path, couriers: list[OutboxCourier]
) -> None:
    script = Script()
    SqliteOutbox(path).add([line("aa", 1), line("aa", 2)])
    couriers.append(OutboxCourier(MarkFails(path), {"chat": script}, timing=QUICK))
    couriers[0].start()
    await script.until_taken("aa2")
    assert script.tried == ["aa1", "aa2"]


async def test_an_unusable_store_is_tried_until_it_works(tmp_path: Path, couriers: list[OutboxCourier]) -> None:
    script = Script()
    blocked = tmp_path / "state"
    blocked.write_text("in the way")
    store = SqliteOutbox(blocked / "outbox.db")
    couriers.append(OutboxCourier(store, {"chat": script}, timing=QUICK))
    couriers[0].start()
    with pytest.raises(OutboxError):
        await couriers[0].stats()
    blocked.unlink()
    SqliteOutbox(blocked / "outbox.db").add([line("aa", 1)])
    await script.until_taken("aa1")


class HeadFails(SqliteOutbox):
    """A real store that cannot be asked for the first item of one lane, once."""

    failed = False

    def head(self, lane: Lane, owner: str, lease_s: float) -> OutboxItem | None:
        if lane.device == "aa" and not self.failed:
            self.failed = True
            raise OutboxError("locked")
        return super().head(lane, owner, lease_s)


async def test_a_lane_given_up_early_is_taken_again_while_others_are_worked_on(
    path: Path, couriers: list[OutboxCourier]
) -> None:
    delivered = asyncio.Event()

    async def deliver(item: OutboxItem) -> None:
        if item.lane == "aa":
            delivered.set()
        await delivered.wait()

    SqliteOutbox(path).add([line("aa", 1), line("bb", 1)])
    store = HeadFails(path)
    couriers.append(OutboxCourier(store, {"chat": deliver}, timing=CourierTiming(poll_s=0.02, lease_s=0.3)))
    couriers[0].start()
    async with asyncio.timeout(20):
        await delivered.wait()
    assert store.failed


async def test_http_faults_end_in_every_line_once_and_in_order(path: Path, couriers: list[OutboxCourier]) -> None:
    faults = ["500", "reset", "lost", "429", "hang"]
    async with (
        Receiver(faults=lambda lane, attempt: faults[attempt - 1] if attempt <= len(faults) else "ok") as receiver,
        aiohttp.ClientSession() as session,
    ):
        SqliteOutbox(path).add([line(lane, number) for number in range(5) for lane in ("aa", "bb")])
        couriers.append(OutboxCourier(SqliteOutbox(path), {"chat": HttpDeliverer(session, receiver.url)}, timing=QUICK))
        couriers[0].start()
        await receiver.until(lambda: receiver.total == 10)
        assert receiver.kept == {"aa": list("01234"), "bb": list("01234")}
        assert receiver.repeats == 1


async def tried_again(script: Script) -> None:
    before = len(script.tried)
    await script.until(lambda: len(script.tried) > before or "aa2" in script.taken)


async def test_an_item_that_alone_is_refused_for_hours_holds_its_lane_no_longer(
    path: Path, couriers: list[OutboxCourier]
) -> None:
    script = Script({"aa1": [Unavailable("its text cannot be stored")] * 1000})
    store = SqliteOutbox(path)
    store.add([line("aa", 1), line("aa", 2)])
    couriers.append(OutboxCourier(SqliteOutbox(path), {"chat": script}, timing=QUICK, stubborn_attempts=4))
    couriers[0].start()
    await script.until(lambda: script.tried.count("aa1") >= 8)
    assert (await couriers[0].stats())["chat"].dead == 0, "nothing gets through: its receiver may be away"
    number = 0
    while "aa2" not in script.taken:
        number += 1
        store.add([line("bb", number)])
        await script.until_taken(f"bb{number}")
        await tried_again(script)
    assert [item.key for item, _ in SqliteOutbox(path).dead_items()] == ["chat-aa-1"]

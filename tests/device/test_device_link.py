"""The link between a visit and its device, on a room in memory and on a real LiveKit server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from livekit import rtc

from agent.device import link as link_module
from agent.device import messages as m
from agent.device.calls import Answered, NoAnswer
from agent.device.link import BURST, MAX_QUEUED, MAX_RUNNING, DeviceLink
from agent.telemetry.meter import meter
from sandbox.device import Device
from sandbox.livekit_server import LiveKitServer

ME = "68:25:dd:bb:f3:a0"
ABORT = {"type": "abort_playback", "session_id": "u"}


@dataclass
class Participant:
    identity: str


@dataclass
class Packet:
    data: bytes
    participant: Participant | None
    topic: str | None = None


@dataclass
class MemoryRoom:
    """The two things of a room that a link uses; `gate` holds back publishing while it is not set."""

    published: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    listeners: dict[str, list[Callable[[Any], None]]] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def local_participant(self) -> MemoryRoom:
        return self

    def on(self, event: Any, callback: Any = None) -> Any:
        self.listeners.setdefault(event, []).append(callback)
        return callback

    def off(self, event: Any, callback: Any) -> None:
        self.listeners[event].remove(callback)

    async def publish_data(
        self,
        payload: bytes | str,
        *,
        reliable: bool = False,
        destination_identities: list[str] | None = None,
        topic: str = "",
    ) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        sent = {"json": json.loads(payload), "reliable": reliable, "to": destination_identities, "topic": topic}
        self.published.put_nowait(sent)

    def receive(self, message: Any, sender: str | None = ME) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        for listener in list(self.listeners.get("data_received", ())):
            listener(Packet(data, None if sender is None else Participant(sender)))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def room() -> MemoryRoom:
    return MemoryRoom()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def link(room: MemoryRoom, clock: Clock) -> AsyncIterator[DeviceLink]:
    link = DeviceLink(room, ME, clock=clock)
    link.start()
    yield link
    await link.aclose()


def states(count: int) -> list[m.Outgoing]:
    return [m.user_input_transcribed(str(number), is_final=True, language=None) for number in range(count)]


async def test_messages_go_out_reliably_to_the_device_alone_and_in_order(room: MemoryRoom, link: DeviceLink) -> None:
    link.send(m.agent_state_changed("listening", "speaking"))
    link.send(m.music_playback_stopped())
    await link.publish(m.emotion("😆", "laughing"))
    sent = [room.published.get_nowait() for _ in range(3)]
    assert [(item["topic"], item["json"]["type"]) for item in sent] == [
        ("", "agent_state_changed"),
        ("music_control", "music_playback_stopped"),
        ("emotion", "llm"),
    ]
    assert all(item["reliable"] and item["to"] == [ME] for item in sent)
    assert link.counts == {"sent": 3}


async def test_what_is_sent_before_the_start_goes_out_after_it(room: MemoryRoom) -> None:
    link = DeviceLink(room, ME)
    for message in states(3):
        link.send(message)
    assert room.published.empty()
    link.start()
    assert [(await room.published.get())["json"]["data"]["transcript"] for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(RuntimeError):
        link.start()
    await link.aclose()


async def test_a_full_queue_drops_the_oldest_and_tells_who_waits(room: MemoryRoom) -> None:
    link = DeviceLink(room, ME)
    waiting = asyncio.create_task(link.publish(m.music_playback_stopped()))
    await asyncio.wait([waiting], timeout=0)
    for message in states(MAX_QUEUED):
        link.send(message)
    with pytest.raises(ConnectionError):
        await waiting
    assert link.counts == {"dropped": 1}
    link.start()
    assert (await room.published.get())["json"]["data"]["transcript"] == "0"
    await link.aclose()
    assert link.counts["sent"] == MAX_QUEUED


async def test_a_message_that_cannot_be_sent_does_not_stop_the_next(room: MemoryRoom, link: DeviceLink) -> None:
    room.error = rtc.participant.PublishDataError("engine is closed")
    with pytest.raises(ConnectionError):
        await link.publish(m.music_playback_stopped())
    assert await link.calls.call("self_mute") == NoAnswer("not_sent")
    room.error = None
    await link.publish(m.music_playback_stopped())
    assert link.counts == {"send_failed": 2, "sent": 1}


async def test_whoever_waits_no_more_is_not_sent(room: MemoryRoom, link: DeviceLink) -> None:
    room.gate.clear()
    link.send(m.music_playback_stopped())
    waiting = asyncio.create_task(link.publish(m.emotion("😆", "laughing")))
    await asyncio.wait([waiting], timeout=0)
    waiting.cancel()
    await asyncio.wait([waiting])
    link.send(m.agent_false_interruption(resumed=False))
    room.gate.set()
    kinds = [(await room.published.get())["json"]["type"] for _ in range(2)]
    assert kinds == ["music_playback_stopped", "agent_false_interruption"]


async def test_closing_sends_what_waits_and_then_nothing(room: MemoryRoom, link: DeviceLink) -> None:
    for message in states(5):
        link.send(message)
    await link.aclose()
    assert room.published.qsize() == 5
    link.send(m.music_playback_stopped())
    with pytest.raises(ConnectionError):
        await link.publish(m.music_playback_stopped())
    await link.aclose()
    assert room.published.qsize() == 5
    assert room.listeners["data_received"] == []


async def test_closing_gives_up_on_a_room_that_takes_nothing(room: MemoryRoom, link: DeviceLink) -> None:
    room.gate.clear()
    call = asyncio.create_task(link.calls.call("self_mute", deadline=60))
    waiting = [asyncio.create_task(link.publish(message)) for message in states(2)]
    await asyncio.wait([call, *waiting], timeout=0)
    await link.aclose()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionError, ConnectionError]
    assert isinstance(await call, NoAnswer)


async def test_each_message_reaches_its_handlers(room: MemoryRoom, link: DeviceLink) -> None:
    got: list[m.Incoming] = []
    take_back = link.on(m.EndPrompt, got.append)
    link.on(m.CleanupRequest, got.append)
    link.on(m.PlayMusic, got.append)
    room.receive({"type": "end_prompt", "prompt": "bye"})
    room.receive({"type": "cleanup_request"})
    room.receive({"type": "device_info"})
    room.receive({"type": "function_call", "function_call": {"name": "play_music", "arguments": {"song_name": "A"}}})
    take_back()
    take_back()
    room.receive({"type": "end_prompt"})
    assert got == [m.EndPrompt(prompt="bye"), m.CleanupRequest(), m.PlayMusic("A")]
    assert link.counts == {"received": 5}


async def test_one_press_of_the_button_is_one_abort(room: MemoryRoom, link: DeviceLink, clock: Clock) -> None:
    got: list[m.AbortPlayback] = []
    link.on(m.AbortPlayback, got.append)
    room.receive(ABORT)
    clock.now += 0.001
    room.receive(ABORT)
    assert len(got) == 1
    clock.now += 0.2
    room.receive(ABORT)
    assert len(got) == 2
    assert link.counts["doubled_abort"] == 1


async def test_an_abort_after_a_new_wish_counts_however_soon(room: MemoryRoom, link: DeviceLink, clock: Clock) -> None:
    got: list[m.Incoming] = []
    link.on(m.AbortPlayback, got.append)
    link.on(m.PlayStory, got.append)
    room.receive(ABORT)
    clock.now += 0.1
    room.receive({"type": "function_call", "function_call": {"name": "play_story"}})
    clock.now += 0.01
    room.receive(ABORT)
    assert got == [m.AbortPlayback("u"), m.PlayStory(), m.AbortPlayback("u")]


async def test_a_handler_that_fails_harms_nobody(room: MemoryRoom, link: DeviceLink) -> None:
    done = asyncio.Event()

    def broken(_: m.CleanupRequest) -> None:
        raise ZeroDivisionError

    async def broken_later(_: m.CleanupRequest) -> None:
        raise ZeroDivisionError

    async def good(_: m.CleanupRequest) -> None:
        done.set()

    for handler in (broken, broken_later, good):
        link.on(m.CleanupRequest, handler)
    room.receive({"type": "cleanup_request"})
    await asyncio.wait_for(done.wait(), 5)
    assert link.counts == {"received": 1, "handler_failed": 2}


async def test_a_handler_may_close_the_link_and_the_others_are_ended(room: MemoryRoom, link: DeviceLink) -> None:
    ended, closed = asyncio.Event(), asyncio.Event()

    async def slow(_: m.CleanupRequest) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def leave(_: m.CleanupRequest) -> None:
        await link.aclose()
        closed.set()

    link.on(m.CleanupRequest, slow)
    link.on(m.CleanupRequest, leave)
    room.receive({"type": "cleanup_request"})
    await asyncio.wait_for(closed.wait(), 5)
    assert ended.is_set()


async def test_an_answer_reaches_the_call_that_waits(room: MemoryRoom, link: DeviceLink) -> None:
    call = asyncio.create_task(link.calls.call("self_get_volume"))
    sent = (await room.published.get())["json"]
    room.receive({"type": "function_response", "request_id": sent["request_id"], "success": True, "result": 65})
    assert await call == Answered(65)


async def test_what_is_ignored_is_counted_by_reason(room: MemoryRoom, link: DeviceLink) -> None:
    got: list[m.Incoming] = []
    link.on(m.AbortPlayback, got.append)
    room.receive(ABORT, sender="parent")
    room.receive(ABORT, sender=None)
    room.receive(b"\xff")
    room.receive({"type": "format_disk"})
    room.receive({"type": "function_call", "function_call": {"name": "rm"}})
    room.receive(b" " * 20_000)
    assert got == []
    assert link.counts == {
        "ignored_alien_sender": 2,
        "ignored_broken_json": 1,
        "ignored_unknown_type": 1,
        "ignored_unknown_function": 1,
        "ignored_too_large": 1,
    }


async def test_messages_are_counted_for_the_operator_as_seldom_as_told(room: MemoryRoom, clock: Clock) -> None:
    records: list[Any] = []
    meter.use(records.append)
    try:
        link = DeviceLink(room, ME, clock=clock)
        link.start()
        for _ in range(1000):
            room.receive({"type": "agent_ready"})
        room.receive(b"\xff", sender="parent")
        link.send(m.user_input_transcribed("hello", is_final=True, language=None))
        before_end = len(records)
        await link.aclose()
        await link.aclose()
    finally:
        meter.use(None)
    told: Counter[str] = Counter()
    for kind, name, labels, amount in records:
        assert (kind, name) == ("c", "toy_device_messages")
        told[labels["result"]] += amount
    assert told == link.counts
    assert told["flooded"] > 800
    assert told["ignored_alien_sender"] == told["sent"] == 1
    assert before_end <= 12


async def test_a_flood_is_cut_off_but_the_button_still_works(room: MemoryRoom, link: DeviceLink, clock: Clock) -> None:
    got: list[m.Incoming] = []
    for kind in (m.AgentReady, m.AbortPlayback):
        link.on(kind, got.append)
    for _ in range(1000):
        room.receive({"type": "agent_ready"})
    assert len(got) == BURST
    assert link.counts["flooded"] == 1000 - BURST
    room.receive(ABORT)
    assert got[-1] == m.AbortPlayback("u")
    clock.now += 1
    room.receive({"type": "agent_ready"})
    assert got[-1] == m.AgentReady()


async def test_a_flood_from_somebody_else_takes_nothing_from_the_device(room: MemoryRoom, link: DeviceLink) -> None:
    got: list[m.Incoming] = []
    link.on(m.AgentReady, got.append)
    for _ in range(1000):
        room.receive({"type": "agent_ready"}, sender="stranger")
    room.receive({"type": "agent_ready"})
    assert len(got) == 1


async def test_handlers_that_never_end_are_bounded_and_the_button_still_works(
    room: MemoryRoom, link: DeviceLink
) -> None:
    started: list[m.Incoming] = []

    async def endless(message: m.Incoming) -> None:
        started.append(message)
        await asyncio.Event().wait()

    aborted = asyncio.Event()

    async def abort(_: m.AbortPlayback) -> None:
        aborted.set()

    link.on(m.PlayMusic, endless)
    link.on(m.AbortPlayback, abort)
    for _ in range(MAX_RUNNING + 5):
        room.receive({"type": "function_call", "function_call": {"name": "play_music"}})
    room.receive(ABORT)
    await asyncio.wait_for(aborted.wait(), 5)
    assert len(started) == MAX_RUNNING
    assert link.counts["busy"] == 5


async def test_both_ways_through_a_real_server() -> None:
    async with LiveKitServer() as server, Device(server) as device:
        room = rtc.Room()
        aborted: list[m.AbortPlayback] = []
        told, stranger_heard = asyncio.Event(), []
        link = DeviceLink(room, device.mac, clock=lambda: 0.0)  # a busy machine must not part the two presses
        link.on(m.AbortPlayback, aborted.append)
        link.on(m.AgentReady, lambda _: told.set())
        stranger = Device(server, mac="02:00:00:00:00:01", room=device.room_name, microphone=False)
        await room.connect(server.url, server.token("agent-test", device.room_name))
        try:
            async with stranger:
                link.start()
                await device.wait_for_mark("agent_there")
                await stranger.wait_for_mark("agent_there")
                await link.publish(m.speech_created("say", user_initiated=False, created_at=1.0, text="नमस्ते"))
                spoken = await device.wait_for_message("speech_created", topic="")
                assert (spoken.sender, spoken.data["text"]) == ("agent-test", "नमस्ते")

                call = asyncio.create_task(link.calls.call("self_get_battery_status", deadline=10))
                asked = await device.wait_for_message("function_call", topic="mcp_function_call")
                assert asked.json is not None
                number = int(asked.json["request_id"].removeprefix("req_"))
                text = '{"percentage":40,"voltage_mv":3608,"state":"normal","charging":false}'
                payload = {"id": number, "result": {"content": [{"type": "text", "text": text}]}}
                await device.send({"type": "mcp", "payload": payload, "request_id": asked.json["request_id"]})
                assert await call == Answered(json.loads(text))

                await stranger.send(ABORT)
                await device.send(b"\xff\x00")
                await device.abort()
                await device.send({"type": "agent_ready"})
                await asyncio.wait_for(told.wait(), 10)
                stranger_heard = list(stranger.messages)
        finally:
            await link.aclose()
            await room.disconnect()
        assert len(aborted) == 1
        assert link.counts["doubled_abort"] == 1
        assert link.counts["ignored_broken_json"] == 1
        assert link.counts["sent"] == 2
        assert [message for message in stranger_heard if message.sender == "agent-test"] == []


def test_the_limits_are_what_the_device_needs() -> None:
    # Two aborts, a wish and the answers of a second must always fit.
    assert link_module.RATE >= 20
    assert link_module.BURST >= 2 * link_module.RATE

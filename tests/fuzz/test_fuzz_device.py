"""Whatever a device or a stranger sends over the data channel: the handler never raises and nothing piles up."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from fuzz_support import JSON, TEXT, fuzz, objects
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent.device.calls import Battery as BatteryOf
from agent.device.calls import DeviceCalls, Failed, NoAnswer, read_volume
from agent.device.identity import identify_room
from agent.device.link import MAX_ABORTS, MAX_QUEUED, MAX_RUNNING, DeviceLink
from agent.device.messages import DeviceAnswer, Incoming, Outgoing, parse
from agent.errors import IdentityError, InvalidCall

ME = "68:25:dd:bb:f3:a0"
DEADLINE = 20.0
KINDS = ("device_info", "agent_ready", "abort_playback", "end_prompt", "cleanup_request", "function_call", "mcp")
KINDS += ("device_control_response", "function_response")
WISHES = st.fixed_dictionaries(
    {"name": st.sampled_from(["play_music", "play_story", "self_mute"]) | TEXT},
    optional={"arguments": objects("song_name", "story_name", "language", "category") | JSON},
)
ANSWERS = objects("id", "error") | st.fixed_dictionaries(
    {"result": st.fixed_dictionaries({"content": st.lists(objects("type", "text"), max_size=2) | JSON})}
)
MESSAGES = st.builds(
    lambda fields, extra: {**fields, **extra},
    objects("session_id", "prompt", "request_id", "timestamp", "source", "success", "error", "result", "action"),
    st.fixed_dictionaries(
        {"type": st.sampled_from(KINDS)},
        optional={"function_call": WISHES | JSON, "payload": ANSWERS | JSON, "function_name": TEXT, "command": TEXT},
    ),
)


def encoded(message: Any) -> bytes:
    return json.dumps(message).encode()


DATA = (
    MESSAGES.map(encoded)
    | JSON.map(encoded)
    | st.binary(max_size=200)
    | st.builds(lambda data, cut: data[:cut], MESSAGES.map(encoded), st.integers(0, 60))
    | st.sampled_from([b"[" * 16_000, b'{"type":"mcp","x":"' + b"a" * 20_000 + b'"}', b"\xff" * 500])
)


@dataclass
class Person:
    identity: str


@dataclass
class Packet:
    data: bytes
    participant: Person | None
    topic: str | None


@dataclass
class Room:
    """A room in memory that takes nothing while `open` is not set; `asked` once something was to be published."""

    heard: list[Any] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def local_participant(self) -> Room:
        return self

    def on(self, event: Any, callback: Any = None) -> Any:
        self.heard.append(callback)

    def off(self, event: Any, callback: Any) -> None:
        self.heard.remove(callback)

    async def publish_data(self, payload: bytes | str, **_: Any) -> None:
        self.asked.set()
        await self.open.wait()


PACKETS = st.builds(
    Packet,
    data=DATA,
    participant=st.sampled_from([ME, ME, ME, ME.upper(), "", "parent"]).map(Person) | st.none(),
    topic=st.none() | TEXT,
)
ABORT = Packet(b'{"type":"abort_playback"}', Person(ME), "x")
WISH = Packet(b'{"type":"function_call","function_call":{"name":"play_music"}}', Person(ME), None)


@fuzz()
@given(
    packets=st.lists(PACKETS, max_size=12), repeat=st.sampled_from([1, 1, 40]), step=st.sampled_from([0.0, 0.02, 1.0])
)
@example(packets=[ABORT], repeat=500, step=0.2)
@example(packets=[ABORT, WISH], repeat=300, step=0.02)
def test_any_traffic_is_survived_and_nothing_piles_up(packets: list[Packet], repeat: int, step: float) -> None:
    async def play() -> None:
        now = 100.0
        room = Room()
        link = DeviceLink(room, ME, clock=lambda: now)
        link.start()

        async def endless(_: Any) -> None:
            await asyncio.Event().wait()

        def broken(_: Any) -> None:
            raise RuntimeError("a handler's bug")

        for number, kind in enumerate(Incoming.__args__):
            link.on(kind, endless)
            if number % 2:
                link.on(kind, broken)
        waiting = asyncio.create_task(link.calls.call("self_get_volume", deadline=60))
        loop_errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
        for packet in packets * repeat:
            for listener in list(room.heard):
                listener(packet)
            now += step
        await asyncio.wait_for(room.asked.wait(), DEADLINE)
        assert len(link._running) <= MAX_RUNNING + MAX_ABORTS
        assert len(link._queue) <= MAX_QUEUED
        assert len(link.counts) <= 24
        assert len(link.calls._over) <= 256
        assert len(link.calls._pending) <= 1
        room.open.set()
        await asyncio.wait_for(link.aclose(), DEADLINE)
        await asyncio.wait_for(waiting, DEADLINE)
        assert not link._running
        assert not loop_errors

    with capture_logs() as lines:
        asyncio.run(play())
    assert len(lines) <= 12 * 12, "a flood of messages is a flood of lines"


@fuzz()
@given(MESSAGES, st.sampled_from(["self_get_battery_status", "self_get_volume", "self_mute"]))
def test_any_answer_ends_a_call_with_a_result(message: dict[str, Any], name: str) -> None:
    async def ask() -> None:
        asked = asyncio.Event()

        async def send(_: Outgoing) -> None:
            asked.set()

        calls = DeviceCalls(send, now=lambda: 1.0)
        call = asyncio.create_task(calls.call(name, deadline=60))
        await asyncio.wait_for(asked.wait(), DEADLINE)
        (request_id,) = calls._pending
        read = parse(encoded({**message, "request_id": request_id}), ME, ME)
        if isinstance(read, DeviceAnswer):
            calls.on_message(read)
        calls.close()
        result = await asyncio.wait_for(call, DEADLINE)
        if not isinstance(result, Failed | NoAnswer):
            BatteryOf.read(result.value)
            read_volume(result.value)
            # What a model is told of it is JSON again.
            json.dumps(result.value)

    asyncio.run(ask())


@fuzz()
@given(TEXT, objects("volume", "step", "red", "green", "blue", "mode", "speed_ms"))
def test_any_arguments_are_checked_before_they_are_sent(name: str, arguments: dict[str, Any]) -> None:
    async def ask(function: str) -> None:
        sent: list[Outgoing] = []

        async def send(message: Outgoing) -> None:
            sent.append(message)
            raise ConnectionError

        try:
            assert await DeviceCalls(send).call(function, arguments) == NoAnswer("not_sent")
        except InvalidCall:
            assert not sent
        else:
            assert json.loads(sent[0].payload)["function_call"]["name"] == function

    for function in (name, "self_set_volume", "self_set_light_color", "self_set_light_mode", "self_volume_up"):
        asyncio.run(ask(function))


SEPARATORS = st.sampled_from(["_", "-", ":", "_mac_", "__", "/", "\n", " "])
PIECES = st.sampled_from(
    ["device", "mac", ME, "6825ddbbf3a0", "6825DDBBF3A0", "music", "story", "conversation", "..", "ff"]
)


@fuzz()
@given(room=st.lists(PIECES | SEPARATORS | TEXT, max_size=8).map("".join))
def test_a_room_is_for_the_device_its_name_says_or_for_none(room: str) -> None:
    try:
        found = identify_room(room)
    except IdentityError:
        return
    assert found.mac.hex12 in room.lower().replace(":", "").replace("-", "")
    assert found.uuid is None or found.uuid.replace("-", "").isalnum()

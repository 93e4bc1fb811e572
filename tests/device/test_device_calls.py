"""Calls of the device: arguments, ids, the three shapes of an answer, and silence."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.calls import (
    FUNCTIONS,
    MAX_PENDING,
    Answered,
    Battery,
    DeviceCalls,
    Failed,
    NoAnswer,
    RequestIds,
    check_arguments,
    read_volume,
)
from agent.device.messages import DeviceAnswer, JsonValue, Outgoing, parse
from agent.errors import InvalidCall

ME = "68:25:dd:bb:f3:a0"
NOW = 1_735_689_600.25


class Wire:
    """Keeps what was sent, and hands each call to whoever plays the device."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.topics: list[str | None] = []

    async def send(self, message: Outgoing) -> None:
        self.topics.append(message.topic)
        self.sent.put_nowait(json.loads(message.payload))


def answer(message: dict[str, Any]) -> DeviceAnswer:
    read = parse(json.dumps(message).encode(), ME, ME)
    assert isinstance(read, DeviceAnswer)
    return read


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def calls(wire: Wire) -> DeviceCalls:
    return DeviceCalls(wire.send, now=lambda: NOW)


async def test_what_a_call_sends(wire: Wire, calls: DeviceCalls) -> None:
    call = asyncio.create_task(calls.call("self_set_volume", {"volume": 140}))
    assert await wire.sent.get() == {
        "type": "function_call",
        "function_call": {"name": "self_set_volume", "arguments": {"volume": 100}},
        "timestamp": "2025-01-01T00:00:00.250+00:00",
        "request_id": "req_1735689600250",
    }
    assert wire.topics == ["mcp_function_call"]
    assert calls.on_message(DeviceAnswer(ok=True, request_id="req_1735689600250", value=100))
    assert await call == Answered(100)


BATTERY = {"percentage": 40, "voltage_mv": 3608, "state": "normal", "charging": False}


@pytest.mark.parametrize(
    "reply",
    [
        {"type": "mcp", "payload": {"result": {"content": [{"type": "text", "text": json.dumps(BATTERY)}]}}},
        {"type": "function_response", "function_name": "self_get_battery_status", "success": True, "result": BATTERY},
        {
            "type": "device_control_response",
            "action": "get_battery_status",
            "success": True,
            "current_value": json.dumps(BATTERY),
        },
    ],
)
async def test_all_three_shapes_of_an_answer(wire: Wire, calls: DeviceCalls, reply: dict[str, Any]) -> None:
    call = asyncio.create_task(calls.call("self_get_battery_status"))
    request_id = (await wire.sent.get())["request_id"]
    if reply["type"] != "device_control_response":
        reply = {**reply, "request_id": request_id}
    assert calls.on_message(answer(reply))
    result = await call
    assert result == Answered(BATTERY)
    assert Battery.read(BATTERY) == Battery(40, False, "normal", 3608)
    assert calls.counts == {"answered": 1}


async def test_an_answer_without_a_request_id_is_matched_by_the_number_in_it(wire: Wire, calls: DeviceCalls) -> None:
    call = asyncio.create_task(calls.call("self_mute"))
    digits = (await wire.sent.get())["request_id"].removeprefix("req_")
    calls.on_message(answer({"type": "mcp", "payload": {"id": int(digits), "result": {"content": []}}}))
    assert await call == Answered({"content": []})


async def test_an_error_of_the_device_is_told(wire: Wire, calls: DeviceCalls) -> None:
    call = asyncio.create_task(calls.call("self_mute"))
    request_id = (await wire.sent.get())["request_id"]
    calls.on_message(answer({"type": "mcp", "request_id": request_id, "payload": {"error": {"message": "no speaker"}}}))
    assert await call == Failed("no speaker")


async def test_silence_is_silence_and_a_late_answer_is_counted(wire: Wire, calls: DeviceCalls) -> None:
    assert await calls.call("self_get_volume", deadline=0.01) == NoAnswer("silence")
    request_id = (await wire.sent.get())["request_id"]
    assert not calls.on_message(DeviceAnswer(ok=True, request_id=request_id, value=5))
    assert not calls.on_message(DeviceAnswer(ok=True, name="self_get_volume", value=5))
    assert calls.counts == {"silence": 1, "late": 2}


async def test_alien_answers_leave_the_waiting_call_alone(wire: Wire, calls: DeviceCalls) -> None:
    call = asyncio.create_task(calls.call("self_get_battery_status"))
    request_id = (await wire.sent.get())["request_id"]
    for alien in (
        DeviceAnswer(ok=True, request_id="req_1", value=1),
        DeviceAnswer(ok=True, value=2),
        DeviceAnswer(ok=True, name="self_set_volume", value=3),
        DeviceAnswer(ok=True, request_id=request_id, name="self_set_volume", value=4),
    ):
        assert not calls.on_message(alien)
    assert not call.done()
    calls.on_message(DeviceAnswer(ok=True, request_id=request_id, value={"percentage": 7}))
    assert await call == Answered({"percentage": 7})
    assert not calls.on_message(DeviceAnswer(ok=True, request_id=request_id, value={"percentage": 9}))
    assert calls.counts == {"alien": 4, "answered": 1, "late": 1}


async def test_answers_find_their_calls_in_any_order(wire: Wire, calls: DeviceCalls) -> None:
    names = ["self_get_volume", "self_get_battery_status", "self_get_volume"]
    running = [asyncio.create_task(calls.call(name)) for name in names]
    ids = [(await wire.sent.get())["request_id"] for _ in names]
    assert len(set(ids)) == 3, "three calls within one millisecond"
    for number in (2, 0, 1):
        calls.on_message(DeviceAnswer(ok=True, request_id=ids[number], value=number))
    assert await asyncio.gather(*running) == [Answered(0), Answered(1), Answered(2)]


async def test_an_older_device_answers_the_call_that_waited_longest(wire: Wire, calls: DeviceCalls) -> None:
    first, second = (asyncio.create_task(calls.call("self_volume_up")) for _ in range(2))
    await wire.sent.get()
    await wire.sent.get()
    for value in (60, 70):
        calls.on_message(DeviceAnswer(ok=True, name="self_volume_up", value=value))
    assert (await first, await second) == (Answered(60), Answered(70))


async def test_a_call_that_cannot_be_sent_or_is_not_taken_is_no_answer() -> None:
    async def refuse(_: Outgoing) -> None:
        raise ConnectionError

    async def hang(_: Outgoing) -> None:
        await asyncio.Event().wait()

    assert await DeviceCalls(refuse).call("self_mute") == NoAnswer("not_sent")
    assert await DeviceCalls(hang).call("self_mute", deadline=0.01) == NoAnswer("not_sent")


async def test_too_many_waiting_calls_are_refused_and_closing_ends_the_others(wire: Wire, calls: DeviceCalls) -> None:
    running = [asyncio.create_task(calls.call("self_mute")) for _ in range(MAX_PENDING)]
    for _ in running:
        await wire.sent.get()
    assert await calls.call("self_mute") == NoAnswer("busy")
    calls.close()
    assert await asyncio.gather(*running) == [NoAnswer("closed")] * MAX_PENDING
    assert await calls.call("self_mute") == NoAnswer("closed")


async def test_a_cancelled_call_leaves_nothing_behind(wire: Wire, calls: DeviceCalls) -> None:
    call = asyncio.create_task(calls.call("self_mute"))
    request_id = (await wire.sent.get())["request_id"]
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not calls.on_message(DeviceAnswer(ok=True, request_id=request_id))
    assert calls.counts == {"late": 1}


@pytest.mark.parametrize(
    ("name", "given_", "sent"),
    [
        ("self_set_volume", {"volume": 55.6}, {"volume": 56}),
        ("self_set_volume", {"volume": -3}, {"volume": 0}),
        ("self_set_volume", {"volume": float("inf")}, {"volume": 100}),
        ("self_set_volume", {"volume": 10**400}, {"volume": 100}),
        ("self_volume_up", {}, {"step": 10}),
        ("self_volume_up", {"step": 0}, {"step": 1}),
        ("self_volume_down", {"step": None}, {"step": 10}),
        ("self_volume_down", {"step": 25}, {"step": 25}),
        ("self_get_volume", {}, {}),
        ("self_mute", {}, {}),
        ("self_unmute", {}, {}),
        ("self_set_light_color", {"red": 300, "green": -1, "blue": 7}, {"red": 255, "green": 0, "blue": 7}),
        ("self_set_light_mode", {"mode": " Rainbow "}, {"mode": "rainbow"}),
        ("self_set_rainbow_speed", {"speed_ms": 5}, {"speed_ms": 50}),
        ("self_set_rainbow_speed", {"speed_ms": 500}, {"speed_ms": 500}),
        ("self_get_battery_status", {}, {}),
    ],
)
def test_arguments_as_the_device_gets_them(name: str, given_: dict[str, Any], sent: dict[str, Any]) -> None:
    assert check_arguments(name, given_) == sent


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("self_format_disk", {}),
        ("", {}),
        ("self_set_volume", {}),
        ("self_set_volume", {"volume": "loud"}),
        ("self_set_volume", {"volume": True}),
        ("self_set_volume", {"volume": float("nan")}),
        ("self_set_volume", {"volume": 5, "now": True}),
        ("self_set_light_color", {"red": 1, "green": 2}),
        ("self_set_light_mode", {"mode": ""}),
        ("self_set_light_mode", {"mode": "../x"}),
        ("self_set_light_mode", {"mode": "x" * 99}),
        ("self_set_light_mode", {"mode": 4}),
        ("self_mute", {"really": 1}),
    ],
)
async def test_arguments_that_make_no_sense_are_refused_before_sending(
    wire: Wire, calls: DeviceCalls, name: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidCall):
        await calls.call(name, arguments)
    assert wire.sent.empty()


def test_every_function_of_the_contract_is_known() -> None:
    assert set(FUNCTIONS) == {
        *("self_set_volume", "self_volume_up", "self_volume_down", "self_get_volume", "self_mute", "self_unmute"),
        *("self_set_light_color", "self_set_light_mode", "self_set_rainbow_speed", "self_get_battery_status"),
    }


def test_ids_stay_unique_when_the_clock_stands_still_or_goes_back() -> None:
    times = iter([5.0, 5.0, 5.0, 4.0, 9.0])
    ids = RequestIds(lambda: next(times))
    assert [ids() for _ in range(5)] == ["req_5000", "req_5001", "req_5002", "req_5003", "req_9000"]


@pytest.mark.parametrize(
    ("value", "percentage"),
    [
        (40, 40),
        ("40%", 40),
        ({"level": 12.4}, 12),
        ({"percentage": 101}, None),
        ({"percentage": -1}, None),
        ({"percentage": True}, None),
        ({}, None),
        (None, None),
        ("full", None),
        ([40], None),
        (float("inf"), None),
    ],
)
def test_a_battery_is_read_or_unknown(value: JsonValue, percentage: int | None) -> None:
    battery = Battery.read(value)
    assert (battery.percentage if battery else None) == percentage


@pytest.mark.parametrize(
    ("value", "volume"),
    [
        (65, 65),
        ({"current_volume": 65}, 65),
        ({"new_volume": 0}, 0),
        ({"audio_speaker": {"volume": 70}, "screen": {}}, 70),
        ({"audio_speaker": {}}, None),
        (101, None),
        ("loud", None),
        (None, None),
    ],
)
def test_a_volume_is_read_or_unknown(value: JsonValue, volume: int | None) -> None:
    assert read_volume(value) == volume


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_value_breaks_the_readers(value: Any) -> None:
    for shape in (value, {"percentage": value, "state": value, "charging": value, "volume": value}):
        battery, volume = Battery.read(shape), read_volume(shape)
        assert battery is None or 0 <= battery.percentage <= 100
        assert volume is None or 0 <= volume <= 100

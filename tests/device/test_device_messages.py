"""The device contract, message by message: what is sent to the byte, what is read, what bad input does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.device import messages as m
from agent.device.messages import Ignored, Outgoing, Why, parse

ME = "68:25:dd:bb:f3:a0"


@pytest.mark.parametrize(
    ("message", "topic", "payload"),
    [
        (
            m.agent_state_changed("speaking", "listening"),
            None,
            '{"type":"agent_state_changed","data":{"old_state":"speaking","new_state":"listening"}}',
        ),
        (
            m.user_input_transcribed("मुझे कहानी सुनाओ", is_final=True, language="hi"),
            None,
            '{"type":"user_input_transcribed","data":{"transcript":"मुझे कहानी सुनाओ","is_final":true,"language":"hi"}}',
        ),
        (
            m.user_input_transcribed("hm", is_final=False, language=None),
            None,
            '{"type":"user_input_transcribed","data":{"transcript":"hm","is_final":false,"language":null}}',
        ),
        (
            m.speech_created("say", user_initiated=True, created_at=1735689600.5, text="Hello!"),
            None,
            '{"type":"speech_created","data":{"source":"say","user_initiated":true,"created_at":1735689600.5,'
            '"text":"Hello!"}}',
        ),
        (
            m.speech_created("generate_reply", user_initiated=False, created_at=1.0),
            None,
            '{"type":"speech_created","data":{"source":"generate_reply","user_initiated":false,"created_at":1.0}}',
        ),
        (
            m.agent_false_interruption(resumed=True),
            None,
            '{"type":"agent_false_interruption","data":{"resumed":true}}',
        ),
        (
            m.music_playback_started("Twinkle", language="English", message="Now playing Twinkle"),
            "music_control",
            '{"type":"music_playback_started","title":"Twinkle","language":"English","message":"Now playing Twinkle"}',
        ),
        (m.music_playback_stopped(), "music_control", '{"type":"music_playback_stopped"}'),
        (m.emotion("😆", "laughing"), "emotion", '{"type":"llm","text":"😆","emotion":"laughing"}'),
        (
            m.function_call("self_set_volume", {"volume": 60}, request_id="req_1735689600000", timestamp="T"),
            "mcp_function_call",
            '{"type":"function_call","function_call":{"name":"self_set_volume","arguments":{"volume":60}},'
            '"timestamp":"T","request_id":"req_1735689600000"}',
        ),
    ],
)
def test_what_is_sent(message: Outgoing, topic: str | None, payload: str) -> None:
    assert message.topic == topic
    assert message.payload.decode() == payload


@given(st.text(max_size=6000))
@example("\ud800" * 10)
@example("😆" * 20_000)
@example('"\\' * 5000)
def test_no_text_makes_an_outgoing_message_invalid_or_too_large(text: str) -> None:
    for message in (
        m.user_input_transcribed(text, is_final=True, language=None),
        m.speech_created("say", user_initiated=False, created_at=0.0, text=text),
        m.music_playback_started(text, language=None, message=text),
    ):
        assert isinstance(json.loads(message.payload), dict)
        assert len(message.payload) <= m.MAX_MESSAGE_BYTES


def test_an_outgoing_message_does_not_print_its_content() -> None:
    assert "secret" not in repr(m.user_input_transcribed("secret", is_final=True, language=None))


BATTERY = '{"percentage":40,"voltage_mv":3608,"state":"normal","charging":false}'


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"type": "device_info", "device_mac": ME, "device_uuid": "u", "timestamp": 17, "source": "mqtt_gateway"},
            m.DeviceInfo(ME, "u", 17.0, "mqtt_gateway"),
        ),
        (
            {"type": "agent_ready", "message": "ready", "timestamp": "2025-01-01T00:00:00Z", "source": "g"},
            m.AgentReady("ready", "2025-01-01T00:00:00Z", "g"),
        ),
        ({"type": "abort_playback", "session_id": "u"}, m.AbortPlayback("u")),
        ({"type": "end_prompt", "session_id": "u", "prompt": "Say\nbye"}, m.EndPrompt("u", "Say bye")),
        ({"type": "cleanup_request", "session_id": "u"}, m.CleanupRequest("u")),
        (
            {
                "type": "function_call",
                "function_call": {"name": "play_music", "arguments": {"song_name": "Twinkle", "language": "English"}},
                "source": "mobile_app",
                "request_id": "mobile_req_1",
            },
            m.PlayMusic("Twinkle", "English", "mobile_app", "mobile_req_1"),
        ),
        (
            {
                "type": "function_call",
                "function_call": {"name": "play_story", "arguments": {"story_name": "The Fox", "category": "Fables"}},
                "source": "mobile_app",
                "request_id": "r",
            },
            m.PlayStory("The Fox", "Fables", "mobile_app", "r"),
        ),
        (
            {
                "type": "mcp",
                "payload": {"id": 17, "result": {"content": [{"type": "text", "text": BATTERY}]}},
                "session_id": "u",
                "request_id": "req_17",
            },
            m.DeviceAnswer(ok=True, request_id="req_17", value=json.loads(BATTERY)),
        ),
        (
            {"type": "mcp", "payload": {"id": 17, "result": {"content": [{"type": "text", "text": "done"}]}}},
            m.DeviceAnswer(ok=True, request_id="req_17", value="done"),
        ),
        (
            {"type": "mcp", "payload": {"id": 17, "error": {"code": -32601, "message": "no such tool"}}},
            m.DeviceAnswer(ok=False, request_id="req_17", error="no such tool"),
        ),
        (
            {
                "type": "mcp",
                "payload": {"result": {"content": [{"type": "text", "text": "broken"}], "isError": True}},
                "request_id": "req_1",
            },
            m.DeviceAnswer(ok=False, request_id="req_1", error="broken"),
        ),
        (
            {"type": "device_control_response", "action": "set_volume", "success": True, "current_value": 60},
            m.DeviceAnswer(ok=True, name="self_set_volume", value=60),
        ),
        (
            {"type": "device_control_response", "command": "mute", "success": False, "error": "stuck"},
            m.DeviceAnswer(ok=False, name="self_mute", error="stuck"),
        ),
        (
            {
                "type": "function_response",
                "request_id": "req_1",
                "function_name": "self_get_volume",
                "success": True,
                "result": {"current_volume": 65},
                "error": None,
            },
            m.DeviceAnswer(ok=True, request_id="req_1", name="self_get_volume", value={"current_volume": 65}),
        ),
    ],
)
def test_what_is_read(message: dict[str, Any], expected: m.Incoming) -> None:
    assert parse(json.dumps(message).encode(), ME, ME) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("device_info", m.DeviceInfo()),
        ("agent_ready", m.AgentReady()),
        ("abort_playback", m.AbortPlayback()),
        ("end_prompt", m.EndPrompt()),
        ("cleanup_request", m.CleanupRequest()),
        ("mcp", m.DeviceAnswer(ok=True)),
        ("device_control_response", m.DeviceAnswer(ok=False, error="the device reports an error")),
        ("function_response", m.DeviceAnswer(ok=False, error="the device reports an error")),
    ],
)
def test_every_field_may_be_missing_or_of_a_wrong_kind(kind: str, expected: m.Incoming) -> None:
    assert parse(json.dumps({"type": kind}).encode(), ME, ME) == expected
    for wrong in ([], {}, 10**400, True, None, ""):
        fields = dict.fromkeys(("device_mac", "device_uuid", "session_id", "prompt", "message", "source"), wrong)
        fields |= {"timestamp": wrong if wrong != "" else [], "payload": wrong, "error": wrong}
        assert parse(json.dumps({"type": kind, **fields}).encode(), ME, ME) == expected


@pytest.mark.parametrize("call", [None, 1, {}, {"name": "play_music"}, {"name": "play_music", "arguments": [1]}])
def test_a_wish_without_arguments_is_any_song_and_one_without_a_name_is_none(call: object) -> None:
    read = parse(json.dumps({"type": "function_call", "function_call": call}).encode(), ME, ME)
    named = isinstance(call, dict) and "name" in call
    assert read == (m.PlayMusic() if named else Ignored(Why.UNKNOWN_FUNCTION))


def test_joiners_survive_and_long_fields_are_cut() -> None:
    name = "क्\u200dष म\u200c"
    wish = {"type": "function_call", "function_call": {"name": "play_music", "arguments": {"song_name": name}}}
    assert parse(json.dumps(wish).encode(), ME, ME) == m.PlayMusic(song_name=name)
    read = parse(json.dumps({"type": "end_prompt", "prompt": "x" * 9000}).encode(), ME, ME)
    assert isinstance(read, m.EndPrompt)
    assert len(read.prompt or "") == 2000


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", Why.BROKEN),
        (b"{", Why.BROKEN),
        (b"[]", Why.BROKEN),
        (b'"abort_playback"', Why.BROKEN),
        (b'{"type":"abort_playback"', Why.BROKEN),
        (b"\xff\xfe\x00", Why.BROKEN),
        (b'{"type":"abort_playback","session_id":"\xff"}', Why.BROKEN),
        (b'{"type":"device_info","timestamp":NaN}', Why.BROKEN),
        (b'{"type":"device_info","timestamp":' + b"9" * 9000 + b"}", Why.BROKEN),
        (b"[" * 16_000, Why.BROKEN),
        (b'{"a":' * 2500 + b"1" + b"}" * 2500, Why.BROKEN),
        (b"{}", Why.UNKNOWN_TYPE),
        (b'{"type":"format_disk"}', Why.UNKNOWN_TYPE),
        (b'{"type":["abort_playback"]}', Why.UNKNOWN_TYPE),
        (b'{"type":"function_call","function_call":{"name":"rm"}}', Why.UNKNOWN_FUNCTION),
        (b'{"type":"abort_playback","x":"' + b"a" * 16_384 + b'"}', Why.TOO_LARGE),
    ],
)
def test_bad_input_is_ignored_with_its_reason(data: bytes, why: Why) -> None:
    assert parse(data, ME, ME) == Ignored(why)


def test_a_number_beyond_all_floats_is_no_timestamp() -> None:
    assert parse(b'{"type":"device_info","timestamp":1e999}', ME, ME) == m.DeviceInfo()


def test_a_message_of_exactly_the_limit_is_read() -> None:
    frame = b'{"type":"abort_playback","x":""}'
    data = frame[:-2] + b"a" * (m.MAX_MESSAGE_BYTES - len(frame)) + frame[-2:]
    assert len(data) == m.MAX_MESSAGE_BYTES
    assert parse(data, ME, ME) == m.AbortPlayback()


@pytest.mark.parametrize("sender", [None, "", "agent-x", "68:25:DD:BB:F3:A0", "parent"])
def test_only_the_device_itself_is_listened_to(sender: str | None) -> None:
    assert parse(b'{"type":"abort_playback"}', sender, ME) == Ignored(Why.ALIEN)


def test_nested_json_in_an_answer_that_is_too_deep_stays_text() -> None:
    text = "[" * 7000
    message = {"type": "mcp", "payload": {"result": {"content": [{"text": text}]}}, "request_id": "req_1"}
    assert parse(json.dumps(message).encode(), ME, ME) == m.DeviceAnswer(ok=True, request_id="req_1", value=text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
KINDS = ["device_info", "agent_ready", "abort_playback", "end_prompt", "cleanup_request", "function_call", "mcp"]
KINDS += ["device_control_response", "function_response"]
FIELDS = ["session_id", "prompt", "payload", "request_id", "action", "success", "current_value", "error", "result"]
FIELDS += ["function_call", "function_name", "timestamp", "device_mac", "source", "message"]


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_ignored(data: bytes) -> None:
    assert isinstance(parse(data, ME, ME), Ignored | m.Incoming)


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8))
def test_any_fields_are_read_or_ignored(kind: str, fields: dict[str, Any]) -> None:
    read = parse(json.dumps({**fields, "type": kind}).encode(), ME, ME)
    assert isinstance(read, m.Incoming) or read in {Ignored(Why.UNKNOWN_FUNCTION), Ignored(Why.TOO_LARGE)}

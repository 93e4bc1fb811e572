"""Hostile answers: whatever the bytes, a value of the right type or an error of the tree."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from agent.briefing.profile import Child, Models
from agent.briefing.wire import Envelope, bind_code
from agent.errors import RemoteError

READERS: dict[str, tuple[Callable[[Envelope], Any], Any]] = {
    "agent_id": (Envelope.agent_id, str),
    "prompt": (Envelope.prompt, str),
    "models": (Envelope.models, Models),
    "child": (Envelope.child, Child | None),
    "reported": (Envelope.reported, bool),
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
# Objects with the contract's own keys, so that the search gets past the first check.
KEYS = st.sampled_from(
    [
        *("name", "age", "ageGroup", "gender", "interests", "selected_module", "TTS", "type", "voice"),
        *("language", "chat_history_conf", "id"),
    ]
)
NEAR = st.recursive(
    JSON | st.sampled_from(["TTS", "id", "7", "[1", '["a"]', "1e9", "\ud800", "\x00"]),
    lambda inner: st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=12,
)


def read(raw: bytes) -> None:
    for reader, kind in READERS.values():
        try:
            value = reader(Envelope("call", raw))
        except RemoteError:
            continue
        TypeAdapter(kind).validate_python(value, strict=True)
        TypeAdapter(kind).dump_json(value)


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    read(raw)


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    read(text.encode("utf-8", "surrogatepass"))


@given(JSON)
def test_any_json(value: Any) -> None:
    read(json.dumps(value).encode())


@given(code=st.sampled_from([0, 0, 0, 401, 500, 10041, 10042]) | JSON, msg=st.text() | JSON, data=NEAR)
def test_any_envelope(code: Any, msg: Any, data: Any) -> None:
    read(json.dumps({"code": code, "msg": msg, "data": data}).encode())


@pytest.mark.parametrize(
    "raw",
    [
        b'{"code":0,"data":' + b"[" * 200_000,
        b'{"code":0,"data":' + b'{"a":' * 100_000,
        b'{"code":0,"data":' + b"[" * 150 + b"]" * 150 + b"}",
        b'{"code":' + b"9" * 5000 + b"}",
        b'{"code":0,"data":' + b"9" * 5000 + b"}",
        b'{"code":0,"data":{"name":"x","age":' + b"9" * 4000 + b"}}",
        b'{"code":0,"data":"' + b"x" * 400_000 + b'"}',
        b'{"code":0,"data":NaN}',
        b'{"code":true,"data":"x"}',
        b'{"code":"0","data":"x"}',
        b"\xef\xbb\xbf{}",
        b"null",
        b"",
    ],
)
def test_known_tricks(raw: bytes) -> None:
    read(raw)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("482913", "482913"),
        ("Please bind the device with the code 482913.", "482913"),
        ("设备需要绑定，验证码：482913", "482913"),
        ("device 68:25:dd:ba:39:78 must be bound, code 1234", "1234"),
        ("device 6825ddba3978 must be bound first", ""),
        ("error 10042: code 482913", "482913"),
        ("A1B2C3", "A1B2C3"),
        ("bind", ""),
        ("", ""),
        ("１２３４５６", ""),
    ],
)
def test_the_bind_code_in_a_message(message: str, code: str) -> None:
    assert bind_code(message) == code

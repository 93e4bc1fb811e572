"""A device's address is hidden wherever it stands and however it is written; what is none stays."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.settings import Settings
from agent.telemetry.scrub import Scrubber
from agent.values import device_key

HEX = "0123456789abcdefABCDEF"
JOINTS = [":", "-", "_", " ", ".", "%3A", "%3a", "%253A", "%25253a", "%2D", "%5F", "%20", "%2E"]
WORDS = ["device", "toy", "decade", "AJ_", "room-", "%2F", "%252F", "/", "(", "é", "x:", "1:", ""]
UUID = "2b1f6f0e-6a53-4c3c-9d5c-7a8f5b6d1c11"
ADDRESSES = st.lists(st.text(HEX, min_size=2, max_size=2), min_size=6, max_size=6).filter(
    lambda pairs: not "".join(pairs).isdigit()
)
CLEAN = Scrubber(Settings(_env_file=None, device_salt="salt")).text  # type: ignore[arg-type,call-arg]


def _spellings(pairs: list[str]) -> list[str]:
    digits = "".join(pairs)
    dotted = ".".join(digits[i : i + 4] for i in range(0, 12, 4))
    return [joint.join(pairs) for joint in JOINTS] + [digits, dotted]


@given(ADDRESSES, st.sampled_from(WORDS), st.sampled_from(["", *WORDS]))
@example(["68", "25", "dd", "bb", "f3", "a0"], "device", "")
@example(["68", "25", "dd", "bb", "f3", "a0"], f"{UUID}_", "")
def test_an_address_is_hidden_whatever_it_is_glued_to(pairs: list[str], before: str, after: str) -> None:
    for spelling in _spellings(pairs):
        text = before + spelling + after
        cleaned = CLEAN(text)
        assert spelling not in cleaned, text
        assert "device:" in cleaned, text
        assert CLEAN(f"[{spelling}]") == f"[device:{device_key(':'.join(pairs).lower(), 'salt')}]", text


@given(ADDRESSES)
def test_a_room_keeps_its_id_and_tells_the_device_by_its_key(pairs: list[str]) -> None:
    key = device_key(":".join(pairs).lower(), "salt")
    for between in ("_", "-", ""):
        assert CLEAN(f"{UUID}{between}{''.join(pairs)}") == f"{UUID}{between}device:{key}"


@given(st.uuids().map(str), st.integers(10**12, 10**19), st.binary(min_size=16, max_size=16).map(bytes.hex))
def test_ids_numbers_and_hashes_stay(uuid: str, number: int, trace: str) -> None:
    text = f"room {uuid}, at {number}, trace={trace} span={trace[:16]} commit {trace}{trace[:8]} sha {trace * 2}"
    assert CLEAN(text) == text


@given(ADDRESSES, st.sampled_from(WORDS))
def test_cleaning_again_changes_nothing(pairs: list[str], before: str) -> None:
    for spelling in _spellings(pairs):
        once = CLEAN(f"{before}{spelling} ")
        assert CLEAN(once) == once


@pytest.mark.parametrize("text", ["100 20 30 40 50 60", "2026-11-21T12:34:56.123456", "10.0.0.11:7880", "fe80::1:2:3"])
def test_numbers_that_belong_to_something_else_stay(text: str) -> None:
    assert CLEAN(text) == text

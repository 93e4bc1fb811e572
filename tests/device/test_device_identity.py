"""Every form of room name the device contract accepts, and what it must refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.identity import MAX_NAME_LENGTH, identify_room
from agent.errors import IdentityError
from agent.values import DeviceMac

UUID = "3f2b8c1e-5a6d-4e7f-9b0a-1c2d3e4f5a6b"
MAC = DeviceMac("68:25:dd:bb:f3:a0")


@pytest.mark.parametrize(
    ("name", "uuid", "mode"),
    [
        (f"{UUID}_6825ddbbf3a0", UUID, "conversation"),
        (f"{UUID}_mac_6825ddbbf3a0", UUID, "conversation"),
        ("device_6825ddbbf3a0", None, "conversation"),
        ("6825ddbbf3a0", None, "conversation"),
        ("68:25:dd:bb:f3:a0", None, "conversation"),
        ("68-25-DD-BB-F3-A0", None, "conversation"),
        ("6825DDBBF3A0", None, "conversation"),
        (f"{UUID}_6825ddbbf3a0_conversation", UUID, "conversation"),
        (f"{UUID}_6825ddbbf3a0_music", UUID, "music"),
        (f"{UUID}_6825ddbbf3a0_story", UUID, "story"),
        (f"{UUID}_mac_6825ddbbf3a0_story", UUID, "story"),
        ("device_6825ddbbf3a0_music", None, "music"),
        ("6825ddbbf3a0_music", None, "music"),
        (f"{UUID.replace('-', '')}_6825ddbbf3a0", UUID.replace("-", ""), "conversation"),
    ],
)
def test_every_form_of_the_contract(name: str, uuid: str | None, mode: str) -> None:
    found = identify_room(name)
    assert (found.mac, found.uuid, found.mode) == (MAC, uuid, mode)
    assert found.participant_identity == "68:25:dd:bb:f3:a0"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "lobby",
        UUID,
        f"{UUID}_",
        f"{UUID}_6825ddbbf3a",
        f"{UUID}_6825ddbbf3a00",
        f"{UUID}_6825ddbbf3ag",
        f"{UUID}_6825ddbbf3a0_party",
        f"{UUID}_6825ddbbf3a0_",
        f"{UUID}_6825ddbbf3a0\n",
        f" {UUID}_6825ddbbf3a0",
        f"../{UUID}_6825ddbbf3a0",
        "../../etc/passwd_6825ddbbf3a0",
        f"{UUID}_6825ddbbf3a0/../x",
        f"{UUID}_6825ddbbf3a0\0",
        "🧸_6825ddbbf3a0",
        f"{UUID}_６８２５ddbbf3a0",
        "68:25:dd:bb:f3",
        "a" * 10_240,
        "_" * 10_240,
        "6825ddbbf3a0_" * 800,
        "-" * MAX_NAME_LENGTH,
    ],
)
def test_a_hostile_or_foreign_name_is_refused_without_repeating_it(name: str) -> None:
    with pytest.raises(IdentityError) as refused:
        identify_room(name)
    reason = str(refused.value)
    assert len(reason) < 100
    assert len(name) < 4 or name not in reason
    assert reason.isprintable()


@given(st.text(max_size=400))
def test_any_text_is_identified_or_refused(name: str) -> None:
    try:
        found = identify_room(name)
    except IdentityError:
        pass
    else:
        assert found.mac.hex12 in name.lower().replace(":", "").replace("-", "")


@given(
    uuid=st.uuids(),
    mac=st.text(alphabet="0123456789abcdef", min_size=12, max_size=12),
    tail=st.sampled_from(["", "_conversation", "_music", "_story"]),
    infix=st.sampled_from(["_", "_mac_"]),
)
def test_what_the_gateway_builds_is_read_back(uuid: object, mac: str, tail: str, infix: str) -> None:
    found = identify_room(f"{uuid}{infix}{mac}{tail}")
    assert found.mac.hex12 == mac
    assert found.uuid == str(uuid)
    assert found.mode == (tail[1:] or "conversation")

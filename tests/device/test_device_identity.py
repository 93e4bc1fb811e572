"""Every form of room name the device contract accepts, and what it must refuse."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.identity import MAX_NAME_LENGTH, identify, identify_room
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


def test_the_room_name_rules_over_the_participant() -> None:
    found = identify(f"{UUID}_6825ddbbf3a0", "00:11:22:33:44:55", {"device_mac": "00:11:22:33:44:66"})
    assert (found.mac, found.uuid) == (MAC, UUID)


def test_the_participant_identity_is_the_second_source_and_its_attributes_the_third() -> None:
    attributes = {"device_mac": "00:11:22:33:44:55", "device_uuid": UUID, "room_type": "device_session"}
    assert identify("lobby", str(MAC), attributes).mac == MAC
    found = identify("lobby", "someone", attributes)
    assert (found.mac, found.uuid, found.mode) == ("00:11:22:33:44:55", UUID, "conversation")
    assert identify("lobby", str(MAC)).uuid is None


def test_a_missing_visit_id_is_filled_in_from_the_attributes() -> None:
    found = identify("device_6825ddbbf3a0_story", attributes={"device_uuid": UUID})
    assert (found.uuid, found.mode) == (UUID, "story")


@pytest.mark.parametrize("hostile", ["../x", "a" * 5000, "", "\0", "🧸"])
def test_hostile_attributes_are_passed_over(hostile: str) -> None:
    assert identify("6825ddbbf3a0", hostile, {"device_uuid": hostile, "device_mac": hostile}).uuid is None
    with pytest.raises(IdentityError):
        identify("lobby", hostile, {"device_mac": hostile})


@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["device_mac", "device_uuid"]), st.text(max_size=60)))
def test_any_participant_is_identified_or_refused(identity: str, attributes: dict[str, str]) -> None:
    try:
        found = identify("lobby", identity, attributes)
    except IdentityError:
        return
    assert set(found.mac) <= set(string.hexdigits + ":")

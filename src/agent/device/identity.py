"""Which device a room is for: from the room's name, else from the participant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from agent.errors import IdentityError
from agent.values import DeviceMac

Mode = Literal["conversation", "music", "story"]

MAX_NAME_LENGTH: Final = 200
"""Longer room names are refused unread; the longest form of the contract has 69 characters."""

# Every part has a fixed or bounded length and `_` occurs in no part, so matching is linear.
_MAC: Final = r"[0-9A-Fa-f]{12}|[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}"
_VISIT: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_ROOM: Final = re.compile(
    rf"(?:(?P<visit>{_VISIT.pattern})_)?(?:mac_)?(?P<mac>{_MAC})(?:_(?P<mode>conversation|music|story))?"
)
_BARE_MAC: Final = re.compile(_MAC)


@dataclass(frozen=True, slots=True)
class RoomIdentity:
    """Who a visit is with.

    `uuid` is the visit's own id (new each time, None where the name carries none); only `mac` tells who it is.
    """

    mac: DeviceMac
    uuid: str | None = None
    mode: Mode = "conversation"

    @property
    def participant_identity(self) -> str:
        """The identity the device joins with, and the only one whose messages count."""
        return str(self.mac)


def identify_room(name: str) -> RoomIdentity:
    """Read a room's name.

    Accepted: `<uuid>_<mac12hex>`, `<uuid>_mac_<mac12hex>`, `device_<mac12hex>`, a bare MAC with or without
    separators; each of them may end in `_conversation`, `_music` or `_story`. Raises IdentityError with a short
    reason that never repeats the name. Takes linear time and refuses names over MAX_NAME_LENGTH unread.
    """
    if not name:
        raise IdentityError("the room has no name")
    if len(name) > MAX_NAME_LENGTH:
        raise IdentityError(f"the room name is longer than {MAX_NAME_LENGTH} characters")
    match = _ROOM.fullmatch(name)
    if match is None:
        raise IdentityError(_reason(name))
    visit = match["visit"]
    return RoomIdentity(
        mac=DeviceMac(match["mac"]),
        uuid=None if visit is None or visit.lower() in {"device", "mac"} else visit,
        mode=cast("Mode", match["mode"] or "conversation"),
    )


def identify(
    room_name: str,
    participant_identity: str | None = None,
    attributes: Mapping[str, str] | None = None,
) -> RoomIdentity:
    """Read the room's name, and where it names no device, the participant.

    The room's name and the participant's identity are granted by a token, attributes may be set by the client:
    so the name rules, then the identity, then the attribute `device_mac`. `device_uuid` fills in a missing
    visit id. Raises IdentityError, with the reason that concerns the room's name, where none of them helps.
    """
    attributes = attributes or {}
    try:
        found = identify_room(room_name)
    except IdentityError:
        mac = _as_mac(participant_identity) or _as_mac(attributes.get("device_mac"))
        if mac is None:
            raise
        found = RoomIdentity(mac=mac)
    if found.uuid is None:
        visit = attributes.get("device_uuid")
        if isinstance(visit, str) and _VISIT.fullmatch(visit):
            return RoomIdentity(mac=found.mac, uuid=visit, mode=found.mode)
    return found


def _as_mac(text: object) -> DeviceMac | None:
    # Participants' fields come from outside: whatever is not exactly a MAC is nobody.
    return DeviceMac(text) if isinstance(text, str) and _BARE_MAC.fullmatch(text) else None


def _reason(name: str) -> str:
    if "\0" in name or not name.isprintable():
        return "the room name holds control characters"
    if any(sign in name for sign in "/\\"):
        return "the room name holds path characters"
    if not name.isascii():
        return "the room name holds characters other than ASCII"
    return "the room name holds no MAC address where the contract puts one"

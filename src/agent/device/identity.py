"""Which device a room is for: the room's name alone tells, as the token grants it. What clients say of themselves
counts for nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, cast

from agent.errors import IdentityError
from agent.values import DeviceMac

Mode = Literal["conversation", "music", "story"]

MAX_NAME_LENGTH: Final = 200
"""Longer room names are refused unread; the longest form of the contract has 69 characters."""

# Every part has a fixed or bounded length and `_` occurs in no part, so matching is linear.
_MAC: Final = r"[0-9A-Fa-f]{12}|[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}"
_VISIT: Final = r"[0-9A-Za-z][0-9A-Za-z-]{0,63}"
_ROOM: Final = re.compile(rf"(?:(?P<visit>{_VISIT})_)?(?:mac_)?(?P<mac>{_MAC})(?:_(?P<mode>conversation|music|story))?")


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


def _reason(name: str) -> str:
    if "\0" in name or not name.isprintable():
        return "the room name holds control characters"
    if any(sign in name for sign in "/\\"):
        return "the room name holds path characters"
    if not name.isascii():
        return "the room name holds characters other than ASCII"
    return "the room name holds no MAC address where the contract puts one"

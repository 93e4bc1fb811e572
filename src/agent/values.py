"""Small immutable values that every room of the house shares."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from agent.errors import IdentityError

_HEX12: Final = re.compile(r"[0-9a-f]{12}")


class DeviceMac(str):
    """A device's MAC address: lower case, colons, always valid.

    `repr` and `format` are those of a string; log `device_key(mac)` instead, never the MAC itself.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> DeviceMac:
        digits = re.sub(r"[:\-.]", "", text).lower()
        if not _HEX12.fullmatch(digits):
            raise IdentityError("not a MAC address: twelve hexadecimal digits are needed")
        return super().__new__(cls, ":".join(digits[i : i + 2] for i in range(0, 12, 2)))

    @property
    def hex12(self) -> str:
        """The twelve digits without colons."""
        return self.replace(":", "")


def device_key(mac: str, salt: str) -> str:
    """A stable pseudonym for logs and metrics: 16 hex digits of a keyed hash; `salt` is the key."""
    return hashlib.blake2b(mac.encode(), key=salt.encode()[:64], digest_size=8).hexdigest()


def rollout_bucket(mac: str, flag: str) -> int:
    """0–99, stable for ever for one device and flag: it is on when below the flag's percentage."""
    return int.from_bytes(hashlib.sha256(f"{flag}:{mac}".encode()).digest()[:8]) % 100


_HALF: Final = re.compile("[\ud800-\udfff]")


def whole_text(text: str) -> str:
    """`text` without lone halves of UTF-16 pairs, which no encoder takes; halves that belong together are joined."""
    if not _HALF.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")


RESCUE: Final = "rescue"
"""Metadata of a job that was made for a device which had no agent any more."""

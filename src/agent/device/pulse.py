"""Signs of life of a device: whether sound of its microphone still arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from livekit import rtc

log = structlog.get_logger(__name__)

BEAT = 0.5
"""Seconds between two looks."""


class Pulse:
    """Watches the microphone of `identity`: LiveKit tells of a device that has vanished only many seconds later.

    `run` is a task of the room's loop. While `wanted` says so it looks every BEAT seconds, and calls `on_beat` when
    packets have arrived since the last look. A device without a microphone has no pulse.
    """

    def __init__(
        self, room: rtc.Room, identity: str, *, wanted: Callable[[], bool], on_beat: Callable[[], None]
    ) -> None:
        self._room = room
        self._identity = identity
        self._wanted = wanted
        self._on_beat = on_beat

    async def run(self) -> None:
        """Watch until cancelled."""
        before: int | None = None
        while True:
            await asyncio.sleep(BEAT)
            now = await self._packets() if self._wanted() else None
            if now is not None and before is not None and now > before:
                self._on_beat()
            before = now

    async def _packets(self) -> int | None:
        """Packets received of the microphone so far, None where there is none."""
        device = self._room.remote_participants.get(self._identity)
        publications = device.track_publications.values() if device is not None else ()
        track = next((one.track for one in publications if isinstance(one.track, rtc.RemoteAudioTrack)), None)
        if track is None:
            return None
        try:
            async with asyncio.timeout(BEAT):
                stats = await track.get_stats()
        except Exception as error:  # noqa: BLE001 — the SDK raises bare Exceptions for a track that is just going away
            log.debug("the microphone cannot be asked", error=type(error).__name__)
            return None
        return sum(one.inbound_rtp.received.packets_received for one in stats if one.HasField("inbound_rtp"))

"""Whether the device is in its room: how long to wait for it, and what to do when it leaves, drops or comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from livekit import rtc

SUBSCRIBES_S: Final = 0.5
"""A device that has come hears the track by then."""
_JOB_IDENTITY: Final = "agent-AJ_"  # what the framework calls the agent of a job
_LEFT_FOR_GOOD: Final = frozenset(
    {
        rtc.DisconnectReason.CLIENT_INITIATED,
        rtc.DisconnectReason.ROOM_DELETED,
        rtc.DisconnectReason.USER_REJECTED,
        rtc.DisconnectReason.PARTICIPANT_REMOVED,
    }
)


class Attendance:
    """Follows one device through a room's events, from `follow` to `close`.

    `leave` ends the visit for a reason; `on_dropped` hears that the device has lost its connection (True) or is back,
    `on_came` that it has come, `on_room_lost` that this side has no connection any more. A device that dropped is
    waited for `grace` seconds.
    """

    def __init__(
        self,
        room: rtc.Room,
        identity: str,
        *,
        grace: float,
        leave: Callable[[str], None],
        on_dropped: Callable[[bool], None],
        on_came: Callable[[], None],
        on_room_lost: Callable[[], None],
    ) -> None:
        self._room = room
        self._identity = identity
        self._grace = grace
        self._leave = leave
        self._on_dropped = on_dropped
        self._on_came = on_came
        self._on_room_lost = on_room_lost
        self._waiting: asyncio.TimerHandle | None = None
        self._arrived = asyncio.Event()
        self._events: list[tuple[Any, Callable[..., None]]] = [
            ("participant_disconnected", self._left),
            ("participant_connected", self._came),
            ("connection_quality_changed", self._quality),
            ("disconnected", self._disconnected),
        ]

    def follow(self) -> None:
        """Begin; before or after the room is connected."""
        for event, handler in self._events:
            self._room.on(event, handler)

    def close(self) -> None:
        """End, and wait for nobody."""
        self.expect(None)
        for event, handler in self._events:
            self._room.off(event, handler)

    @property
    def here(self) -> bool:
        """Whether the device is in the room."""
        return self._identity in self._room.remote_participants

    @property
    def second(self) -> bool:
        """Whether another job's agent is here: a rescue and a late first job may meet, and a room has one track."""
        return any(
            other.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT and other.identity.startswith(_JOB_IDENTITY)
            for other in self._room.remote_participants.values()
        )

    async def wait_for_device(self) -> None:
        """Once the track has a listener: return as soon as that can be the device.

        LiveKit tells of a track's first listener alone, and not who it is; and it may tell later of one who has come.
        So a listener is the device where nobody else is here; one who was here before the device takes no greeting.
        """
        agent = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        others = (other.kind != agent for other in self._room.remote_participants.values())
        if not self.here and any(others):
            await self._arrived.wait()
            await asyncio.sleep(SUBSCRIBES_S)

    def expect(self, seconds: float | None, otherwise: str = "") -> None:
        """Leave, `otherwise` being the reason, unless the device comes in time; None: wait no more."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if seconds is not None:
            self._waiting = asyncio.get_running_loop().call_later(seconds, partial(self._leave, otherwise))

    def _left(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity != self._identity:
            return
        if participant.disconnect_reason in _LEFT_FOR_GOOD:
            self._leave("the device left")
        else:
            self._on_dropped(True)
            self.expect(self._grace, "the device did not come back")

    def _came(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity == self._identity:
            self.expect(None)
            self._arrived.set()
            self._on_came()
            self._on_dropped(False)

    def _quality(self, participant: rtc.Participant, quality: int) -> None:
        if participant.identity == self._identity:
            self._on_dropped(quality == rtc.ConnectionQuality.QUALITY_LOST)

    def _disconnected(self, *_: object) -> None:
        self._on_room_lost()

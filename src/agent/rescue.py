"""No child left alone: rooms that hold a device and no agent are found and given one.

LiveKit dispatches a room's job once. It does not do so again when the job's process or worker has died, and a room made
while no worker was registered never gets one. Every worker looks from time to time, and as soon as it has registered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Protocol

import structlog
from livekit import api
from livekit.protocol.models import ParticipantInfo

from agent.device.identity import identify_room
from agent.errors import IdentityError
from agent.serving import take_dead
from agent.settings import Settings
from agent.tasks import run_beside
from agent.telemetry.meter import meter
from agent.values import RESCUE

log = structlog.get_logger(__name__)

EVERY: Final = 3.0
"""Seconds between two looks, give or take a third, so that workers do not look at the same moment."""
PATIENCE: Final = 3.0
"""Seconds a device may be alone: its own dispatch is under way."""
CLAIM_TTL: Final = 15.0
"""Seconds for which nobody else tries to rescue a room."""
SHOWN_DEAD: Final = 60.0
"""Seconds for which the end of one of this machine's agents is remembered: LiveKit shows it for some twenty."""
COUNTED_AFTER: Final = 15.0
"""Seconds after which LiveKit's count of a new room's participants is believed: it lags behind."""
ALIVE: Final = "toy.alive"
"""The attribute of an agent that lives although other workers cannot hear so through Redis."""
_CLAIM: Final = "rescued_by"
_SETTLE: Final = 0.3
_AT_ONCE: Final = 4
_DEADLINE: Final = 10.0
_ROOM_DEADLINE: Final = 4.0
_SIGN_DEADLINE: Final = 2.0


class Claims(Protocol):
    """Agrees among workers who rescues a room."""

    async def claim(self, room: api.Room) -> bool:
        """Whether it is us; True for at most one worker within CLAIM_TTL seconds."""

    async def aclose(self) -> None:
        """Let go of what it holds open."""


class MetadataClaims:
    """Through the room's metadata: the last to write wins, and finds its own name there a moment later."""

    def __init__(self, livekit: api.LiveKitAPI, name: str, *, clock: Callable[[], float] = time.time) -> None:
        self._livekit = livekit
        self._name = name
        self._clock = clock

    async def claim(self, room: api.Room) -> bool:
        """As the protocol says. Metadata that is no JSON object belongs to somebody and is left alone: no agreement,
        and a second agent leaves a room where it finds a first."""
        found = _object(room.metadata)
        if found is None:
            return True
        earlier = found.get(_CLAIM)
        if isinstance(earlier, list) and len(earlier) == 2 and _recent(earlier[1], self._clock()):
            return False
        mine = [self._name, round(self._clock(), 3)]
        metadata = json.dumps({**found, _CLAIM: mine})
        await self._livekit.room.update_room_metadata(api.UpdateRoomMetadataRequest(room=room.name, metadata=metadata))
        await asyncio.sleep(_SETTLE)
        rooms = (await self._livekit.room.list_rooms(api.ListRoomsRequest(names=[room.name]))).rooms
        return any((_object(now.metadata) or {}).get(_CLAIM) == mine for now in rooms)

    async def aclose(self) -> None:
        """Nothing is held open."""


class Heartbeats(Protocol):
    """Knows which agents of other machines have died before LiveKit does."""

    async def dead(self, agents: Collection[str]) -> frozenset[str]:
        """Those of these identities that gave signs of life and give none any more."""


class NoHeartbeats:
    """Nobody tells."""

    async def dead(self, agents: Collection[str]) -> frozenset[str]:  # noqa: ARG002 — the protocol's
        """None is known to be."""
        return frozenset()


class LifeSigns:
    """Says in LiveKit itself that this worker's agents live, while other workers cannot hear of them otherwise.

    `agents` are their rooms by their identities.
    """

    def __init__(self, livekit: api.LiveKitAPI, agents: Callable[[], Mapping[str, str]]) -> None:
        self._livekit = livekit
        self._agents = agents
        self._shown: set[str] = set()

    async def show(self, needed: bool) -> None:
        """Give every agent the sign, or take it from those that have it, within _SIGN_DEADLINE seconds for all.

        What fails is logged, and tried by the next call.
        """
        try:
            async with asyncio.timeout(_SIGN_DEADLINE):
                await self._show(self._agents(), needed)
        except Exception as error:  # noqa: BLE001 — a proxy may answer anything at all; the next heartbeat must come
            log.warning("LiveKit cannot be told that agents live", error=type(error).__name__)

    async def _show(self, agents: Mapping[str, str], needed: bool) -> None:
        self._shown &= set(agents)
        for identity in set(agents) - self._shown if needed else set(self._shown):
            await self._livekit.room.update_participant(
                api.UpdateParticipantRequest(
                    room=agents[identity], identity=identity, attributes={ALIVE: "1" if needed else ""}
                )
            )
            self._shown ^= {identity}


class Rescuer:
    """Looks for forsaken rooms until it is cancelled.

    `serving` are the names of the rooms this worker has a visit in; `able` tells whether it could take one more.
    `wake` makes it look at once.
    """

    def __init__(
        self,
        settings: Settings,
        livekit: api.LiveKitAPI,
        claims: Claims,
        heartbeats: Heartbeats,
        *,
        serving: Callable[[], frozenset[str]],
        able: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._livekit = livekit
        self._claims = claims
        self._heartbeats = heartbeats
        self._serving = serving
        self._able = able
        self._clock = clock
        self._wake = asyncio.Event()
        self._dead: dict[str, float] = {}
        self._sending: set[asyncio.Task[bool]] = set()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    async def run(self) -> None:
        """Look, for ever; what goes wrong is logged and tried again."""
        failures = 0
        try:
            while True:
                try:
                    async with asyncio.timeout(_DEADLINE):
                        await self.look()
                    failures = 0
                except Exception as error:  # noqa: BLE001 — a proxy may answer anything at all; children wait for the next look
                    failures += 1
                    if failures & (failures - 1) == 0:  # 1, 2, 4, 8 …: an outage is not a flood of lines
                        log.warning("forsaken rooms cannot be looked for", error=type(error).__name__, times=failures)
                pause = EVERY * random.uniform(2 / 3, 4 / 3)
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
        finally:
            if self._sending:  # each has its deadline
                await asyncio.wait(self._sending)

    async def look(self) -> int:
        """Look once; the number of rooms that were given an agent.

        Raises, after all rooms, what the first that failed met: LiveKit's error, aiohttp's, or any of an odd answer.
        """
        serving = self._serving()
        now = self._clock()
        for dead in await asyncio.to_thread(take_dead, self._settings):
            self._dead[dead.agent] = now
        self._dead = {agent: at for agent, at in self._dead.items() if now - at < SHOWN_DEAD}
        if not self._able():
            return 0
        rooms = (await self._livekit.room.list_rooms(api.ListRoomsRequest())).rooms
        gate = asyncio.Semaphore(_AT_ONCE)

        async def check(room: api.Room) -> bool:
            async with gate, asyncio.timeout(_ROOM_DEADLINE):
                return await self._check(room)

        foreign = [
            room for room in rooms if room.name not in serving and _is_ours(room.name) and not self._left_behind(room)
        ]
        # What one look has no time for is not last in the next one as well.
        random.shuffle(foreign)
        outcomes = await asyncio.gather(*(check(room) for room in foreign), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes.count(True)

    def _left_behind(self, room: api.Room) -> bool:
        return room.num_participants == 0 and self._clock() - room.creation_time > COUNTED_AFTER

    async def _check(self, room: api.Room) -> bool:
        try:
            found = await self._livekit.room.list_participants(api.ListParticipantsRequest(room=room.name))
        except api.TwirpError as error:
            if _gone(error):
                return False
            raise
        people = found.participants
        identity = identify_room(room.name).participant_identity
        device = next((person for person in people if person.identity == identity), None)
        agents = [person for person in people if person.kind == ParticipantInfo.Kind.AGENT]
        if device is None or self._clock() - device.joined_at < PATIENCE:
            return False
        lively = [agent.identity for agent in agents if agent.identity not in self._dead]
        signed = any(agent.attributes.get(ALIVE) for agent in agents if agent.identity in lively)
        if signed or not await self._heartbeats.dead(lively) >= set(lively):
            return False
        # Who has claimed a room keeps others from it: it must come to the dispatch even when the look runs out of time.
        sending = asyncio.create_task(self._send(room, agents), name="rescue")
        self._sending.add(sending)
        sending.add_done_callback(self._sent)
        return await asyncio.shield(sending)

    async def _send(self, room: api.Room, agents: Collection[ParticipantInfo]) -> bool:
        async with asyncio.timeout(_ROOM_DEADLINE):
            if not await self._claims.claim(room):
                return False
            for agent in agents:
                try:
                    await self._livekit.room.remove_participant(
                        api.RoomParticipantIdentity(room=room.name, identity=agent.identity)
                    )
                except api.TwirpError as error:
                    if not _gone(error):
                        raise
            await self._livekit.agent_dispatch.create_dispatch(
                api.CreateAgentDispatchRequest(agent_name=self._settings.agent_name, room=room.name, metadata=RESCUE)
            )
        meter.count("toy_rooms_rescued")
        log.warning("a device was alone in its room, an agent is sent")
        return True

    def _sent(self, sending: asyncio.Task[bool]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled() and (error := sending.exception()) is not None:
            log.warning("a device alone in its room cannot be sent an agent", error=type(error).__name__)


def _gone(error: api.TwirpError) -> bool:
    return bool(error.code == api.TwirpErrorCode.NOT_FOUND)


def _is_ours(name: str) -> bool:
    try:
        identify_room(name)
    except IdentityError:
        return False
    return True


def _object(metadata: str) -> dict[str, Any] | None:
    if not metadata:
        return {}
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _recent(at: object, now: float) -> bool:
    return isinstance(at, int | float) and abs(now - at) < CLAIM_TTL


async def watch_rooms(
    stack: AsyncExitStack,
    settings: Settings,
    *,
    serving: Callable[[], frozenset[str]],
    agents: Callable[[], Mapping[str, str]],
    able: Callable[[], bool],
) -> Rescuer:
    """Begin to look; ends with `stack`. `agents` are this worker's, see LifeSigns; for the rest see Rescuer."""
    livekit = api.LiveKitAPI(
        settings.livekit_url, settings.livekit_api_key, settings.livekit_api_secret.get_secret_value()
    )
    stack.push_async_callback(livekit.aclose)
    name = secrets.token_hex(8)
    claims: Claims = MetadataClaims(livekit, name)
    heartbeats: Heartbeats = NoHeartbeats()
    if settings.redis_url is not None:
        from agent.rescue_redis import RedisClaims, RedisHeartbeats

        claims = RedisClaims(settings.redis_url, name, ttl=CLAIM_TTL)
        heartbeats = beating = RedisHeartbeats(settings.redis_url, agents, unheard=LifeSigns(livekit, agents).show)
        stack.push_async_callback(beating.aclose)
        run_beside(stack, beating.run(), "heartbeats")
    stack.push_async_callback(claims.aclose)
    rescuer = Rescuer(settings, livekit, claims, heartbeats, serving=serving, able=able)
    run_beside(stack, rescuer.run(), "rescuer")
    return rescuer

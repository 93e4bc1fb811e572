"""A visit while something is broken: what the child hears, for how long it is alone, and what must not be lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from livekit import rtc
from livekit.agents.utils.aio import cancel_and_wait

from sandbox.audio import Pcm
from sandbox.device import Device, DeviceTimeout, Message, Recording, RoomForm
from sandbox.fault_house import House, Owed

Heard = Literal["greeting", "answer", "apology", "back", "title", "silence"]

GREETING_S = 10.0
"""A child that has heard nothing for so long has been left in silence."""
ANSWER_S = 25.0
BACK_S = 45.0
RIGHT_MS = 3000.0
"""A greeting within so many milliseconds is one."""
_BACK = "I'm back"
_LOOK_S = 0.05


@dataclass
class Visit:
    """One device's visit: `heard` in order, `greeting_ms` from its join to the first sample (None: none came)."""

    mac: str
    room: str
    heard: list[Heard] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    """How long each answer, or what came in its place, let the child wait."""
    greeting_ms: float | None = None
    alone_s: float = 0.0
    """The longest it was in its room without an agent while a worker was up."""
    ok_at: float | None = None
    """When it began what went right first after the fault's end (monotonic)."""
    problem: str = ""

    @property
    def right(self) -> bool:
        """An ordinary visit as it should be."""
        greeted = self.greeting_ms is not None and self.greeting_ms <= RIGHT_MS
        return greeted and self.heard[1:] in (["answer"], ["title"])


class Toy:
    """A device in a room of `house`, and what becomes of its visit. Use as an async context manager."""

    def __init__(
        self, house: House, speech: Pcm, *, form: RoomForm = "plain", remote: bool = False, eleven: bool = False
    ) -> None:
        self.house = house
        self._speech = speech
        self._form = form
        self.device = Device(house.remote_server() if remote else house.server, form=form)
        if eleven:
            house.speak_with_elevenlabs(self.device.mac)
        self.visit = Visit(self.device.mac, self.device.room_name)
        self.owed = Owed(self.device.room_name, self.device.mac)
        house.owed.append(self.owed)
        self.began = 0.0
        self._told = 0
        self._dead: set[str] = set()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Toy:
        self.began = time.monotonic()
        await self.device.join(timeout=40)
        self._watching = asyncio.create_task(self._watch_agents(), name="who is in the room")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            await cancel_and_wait(self._watching)
        self._count()
        await self.device.leave()

    # What the child does and hears

    async def greeting(self) -> Heard:
        """Wait for the first sound; until it is over."""
        heard: Heard = "silence"
        with suppress(DeviceTimeout):
            await self.device.wait_for_sound(timeout=GREETING_S)
            self.visit.greeting_ms = self.device.since_joined_ms("first_sound")
            heard = "greeting"
            await self._quiet()
        self.visit.heard.append(heard)
        return heard

    async def title(self) -> Heard:
        """Wait for a song or story that is heard; one that has begun must go on sounding."""
        heard: Heard = "silence"
        with suppress(DeviceTimeout):
            begun = any(message.type == "music_playback_started" for message in self.device.messages)
            started = await self.device.wait_for_message("music_playback_started", timeout=ANSWER_S)
            await self._sound_since(time.monotonic() + 1.0 if begun else started.at + 3.0, timeout=20.0)
            heard = "title"
        told = sum(bool(m.type == "speech_created" and m.data.get("text")) for m in self.device.messages)
        if heard == "silence" and told > 1:
            heard = "apology"
        self.visit.heard.append(heard)
        return heard

    async def ask(self) -> Heard:
        """Say the sentence and wait for what comes of it; until it is over."""
        before = len(self.device.messages)
        heard: Heard = "silence"
        await self.device.say(self._speech)
        ended = time.monotonic()
        with suppress(DeviceTimeout):
            spoken = await self.device.wait_for_message("speech_created", after=before, timeout=ANSWER_S)
            await self._sound_since(max(ended, spoken.at - 0.5), timeout=10.0)
            heard = self._kind(spoken)
            self.visit.waits_s.append(round(time.monotonic() - ended, 1))
            await self._quiet()
        if heard == "answer":
            self.owed.agent += 1
        self.visit.heard.append(heard)
        return heard

    async def back(self) -> Heard:
        """After its agent has died: wait for another's first words."""
        before = len(self.device.messages)
        heard: Heard = "silence"
        with suppress(DeviceTimeout):
            spoken = await self.device.wait_for_message("speech_created", after=before, timeout=BACK_S)
            await self._sound_since(spoken.at - 0.5, timeout=10.0)
            heard = self._kind(spoken)
            await self._quiet()
        self.visit.heard.append(heard)
        return heard

    async def main_part(self) -> Heard:
        """What the room is for."""
        return await (self.title() if self._form in ("story", "music") else self.ask())

    def agents_die(self) -> None:
        """Whoever is an agent in the room now is dead, whatever LiveKit shows."""
        self._dead |= {person.identity for person in self._agents()}

    def _kind(self, spoken: Message) -> Heard:
        """What a `speech_created` announces: the model's words have no text, and the first recorded ones greet."""
        text = str(spoken.data.get("text") or "")
        if not text:
            return "answer"
        if _BACK in text:
            return "back"
        return "apology" if "greeting" in self.visit.heard else "greeting"

    # Watching

    def _agents(self) -> list[rtc.RemoteParticipant]:
        people = self.device.room.remote_participants.values()
        return [person for person in people if "agent" in person.identity]

    async def _watch_agents(self) -> None:
        since: float | None = None
        while True:
            alive = any(person.identity not in self._dead for person in self._agents())
            here = self.device.room.connection_state == rtc.ConnectionState.CONN_CONNECTED
            now = time.monotonic()
            if alive or not here or not self.house.worker_up():
                since = None
            else:
                since = since or now
                self.visit.alone_s = max(self.visit.alone_s, now - since)
            self._count()
            await asyncio.sleep(_LOOK_S)

    def _count(self) -> None:
        for message in self.device.messages[self._told :]:
            self.owed.child += message.type == "user_input_transcribed"
            self.owed.agent += message.type == "speech_created" and bool(message.data.get("text"))
        self._told = len(self.device.messages)

    async def _sound_since(self, at: float, *, timeout: float) -> None:
        """Wait for a loud sample after a monotonic time, on any of the tracks there have been."""

        def loud(recording: Recording) -> bool:
            return recording.last_loud_at is not None and recording.last_loud_at > at

        await self.device.wait_until(
            lambda: any(map(loud, self.device.recordings)) or None, timeout=timeout, what="sound"
        )

    async def _quiet(self, seconds: float = 0.8, *, timeout: float = 12.0) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            last = max((r.last_loud_at or 0.0 for r in self.device.recordings), default=0.0)
            left = last + seconds - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)


async def ordinary(house: House, speech: Pcm, **options: bool | RoomForm) -> Visit:
    """A whole visit with nothing done to it: greeted, then what the room is for."""
    return await _visit(house, speech, options, lambda toy: toy.main_part())


async def _visit(
    house: House, speech: Pcm, options: dict[str, bool | RoomForm], then: Callable[[Toy], Awaitable[object]]
) -> Visit:
    toy = Toy(house, speech, **options)  # type: ignore[arg-type]
    try:
        async with toy:
            await toy.greeting()
            await then(toy)
    except (DeviceTimeout, rtc.ConnectError) as error:
        toy.visit.problem = str(error)[:120]
    return toy.visit


async def struck(
    house: House,
    speech: Pcm,
    *,
    strike: Callable[[Toy], Awaitable[None]],
    heal: Callable[[Toy], Awaitable[None]],
    inside: bool,
    agent_dies: bool,
    leaves: bool,
    **options: bool | RoomForm,
) -> tuple[Visit, float]:
    """A visit that meets a fault, and when the fault ended (monotonic).

    `inside`: it is in the middle of a conversation then; else it comes to what is already broken. `agent_dies`: the
    fault is a kill, over at once, after which another agent should come. `leaves`: it goes before the fault is over.
    """
    toy = Toy(house, speech, **options)  # type: ignore[arg-type]
    ended = 0.0
    healed = False
    try:
        if not inside:
            await strike(toy)
        async with toy:
            await toy.greeting()
            if inside:
                await toy.main_part()
                if agent_dies:
                    toy.agents_die()
                await strike(toy)
            if agent_dies:
                ended = time.monotonic()
                await toy.back()
            else:
                await toy.main_part()
            if not leaves:
                if not agent_dies:
                    await heal(toy)
                    healed, ended = True, time.monotonic()
                begun = time.monotonic()
                if await toy.main_part() in ("answer", "title"):
                    toy.visit.ok_at = begun
    except (DeviceTimeout, rtc.ConnectError) as error:
        toy.visit.problem = str(error)[:120]
    if leaves:
        await house.visit_ended(toy.began)
    if not healed:
        await heal(toy)
        ended = ended or time.monotonic()
    return toy.visit, ended

"""A simulated toy: a real LiveKit client that speaks the device contract and keeps everything it hears and is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
from livekit import rtc
from livekit.rtc.participant import PublishTrackError

from sandbox.audio import Pcm, speak
from sandbox.livekit_server import LiveKitServer

RoomForm = Literal["plain", "mac", "device", "bare", "colons", "conversation", "music", "story"]

T = TypeVar("T")

MIC_RATE = 16_000
LOUD = 328
"""Absolute int16 value from which a sample counts as sound: one per cent of full scale, -40 dBFS. Above the noise Opus
makes of silence (a few units), far below speech."""
_MIC_FRAME = MIC_RATE // 25  # 40 ms
# Every room of a process is told of every frame of every other: silence goes out in fewer.
_MIC_SILENCE = 4 * _MIC_FRAME


class DeviceTimeout(TimeoutError):
    """Something the device waited for did not come in time; the message says what it was and what came instead."""


def random_mac() -> str:
    """A MAC no device has: locally administered, lower case, with colons."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))


def room_name(mac: str, visit: str, form: RoomForm = "plain") -> str:
    """The room's name in one of the forms of the device contract; `visit` is the visit's uuid."""
    hex12 = mac.replace(":", "")
    match form:
        case "plain":
            return f"{visit}_{hex12}"
        case "mac":
            return f"{visit}_mac_{hex12}"
        case "device":
            return f"device_{hex12}"
        case "bare":
            return hex12
        case "colons":
            return mac
    return f"{visit}_{hex12}_{form}"


@dataclass(frozen=True)
class Message:
    """A data message as it came: `json` is None where it is no JSON object; `at` is monotonic, `wall` epoch seconds."""

    topic: str
    raw: bytes
    json: Mapping[str, Any] | None
    sender: str
    at: float
    wall: float

    @property
    def type(self) -> str:
        """The JSON's `type`, or the empty string."""
        return str((self.json or {}).get("type", ""))

    @property
    def data(self) -> Mapping[str, Any]:
        """The JSON's `data` object, or an empty one."""
        data = (self.json or {}).get("data")
        return data if isinstance(data, Mapping) else {}


@dataclass
class Recording:
    """What was heard on one track, sample by sample: mono int16 at `sample_rate`."""

    track_sid: str
    sample_rate: int
    chunks: list[Pcm] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    """When each chunk had arrived whole (monotonic)."""
    first_loud: int | None = None
    """Index of the first loud sample."""
    length: int = 0
    """Samples so far."""
    last_loud_at: float | None = None
    """When the last chunk with a loud sample arrived (monotonic)."""

    def add(self, samples: Pcm, at: float) -> bool:
        """Append a chunk that arrived at `at`; whether it holds a loud sample."""
        self.chunks.append(samples)
        self.arrivals.append(at)
        # Not abs(): that of the lowest int16 is itself.
        loud = bool(samples.size) and (int(samples.max()) >= LOUD or int(samples.min()) <= -LOUD)
        if loud:
            if self.first_loud is None:
                self.first_loud = self.length + int(np.argmax((samples >= LOUD) | (samples <= -LOUD)))
            self.last_loud_at = at
        self.length += samples.size
        return loud

    @property
    def samples(self) -> Pcm:
        """All of it in one array."""
        return np.concatenate(self.chunks) if self.chunks else np.zeros(0, np.int16)

    def arrival_of(self, sample: int) -> float:
        """When the chunk that holds this sample had arrived (monotonic). Raises IndexError beyond the end."""
        end = 0
        for chunk, at in zip(self.chunks, self.arrivals, strict=True):
            end += chunk.size
            if sample < end:
                return at
        raise IndexError(f"sample {sample} of {self.length}")


class Device:
    """One visit of one device.

    `marks` holds monotonic seconds of `connect_started`, `joined` (connect returned), `agent_there`,
    `track_subscribed` (the agent's track), `first_sound` (its first sample of at least LOUD had arrived),
    `agent_left`, `left`; `t0_wall` is the epoch time of `joined`. `messages` holds every data message from anybody,
    `recordings` one entry per audio track of an agent, in the order of subscription.

    The microphone carries silence until `say`. `rate` is that of what is heard, `frame_ms` how finely its arrival is
    timed. With `agent_name` the token asks for explicit dispatch. Use as an async context manager, or `join`/`leave`.
    """

    def __init__(
        self,
        server: LiveKitServer,
        *,
        mac: str | None = None,
        visit: str | None = None,
        room: str | None = None,
        form: RoomForm = "plain",
        language: str | None = None,
        attributes: Mapping[str, str] | None = None,
        agent_name: str | None = None,
        rate: Literal[24_000, 48_000] = 24_000,
        frame_ms: int = 10,
        microphone: bool = True,
    ) -> None:
        self.server = server
        self.mac = mac or random_mac()
        self.visit = visit or str(uuid.uuid4())
        self.room_name = room if room is not None else room_name(self.mac, self.visit, form)
        self.attributes = {"device_mac": self.mac, "device_uuid": self.visit, "room_type": "device_session"}
        if language:
            self.attributes["language"] = language
        self.attributes.update(attributes or {})
        self.agent_name = agent_name
        self.rate = rate
        self.frame_ms = frame_ms
        self.marks: dict[str, float] = {}
        self.t0_wall = 0.0
        self.messages: list[Message] = []
        self.recordings: list[Recording] = []
        self.agent_tracks: dict[str, str] = {}
        self.errors: list[BaseException] = []
        self._with_microphone = microphone
        self._published: set[str] = set()
        self._room: rtc.Room | None = None
        self._source: rtc.AudioSource | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: list[rtc.AudioStream] = []
        self._speech = np.zeros(0, np.int16)
        self._changed = asyncio.Event()

    @property
    def room(self) -> rtc.Room:
        """The SDK's room. Raises RuntimeError before `join`."""
        if self._room is None:
            raise RuntimeError("the device has not joined")
        return self._room

    @property
    def heard(self) -> Recording:
        """What it heard of the agent's first track; empty where there was none."""
        return self.recordings[0] if self.recordings else Recording("", self.rate)

    @property
    def audio_tracks(self) -> int:
        """How many audio tracks agents have ever published in this room since the device joined."""
        return len(self._published)

    def since_joined_ms(self, mark: str) -> float | None:
        """Milliseconds from `joined` to a mark; None where it was not reached."""
        at = self.marks.get(mark)
        return None if at is None else (at - self.marks["joined"]) * 1000

    # joining and leaving

    async def join(self, *, timeout: float = 40.0) -> None:
        """Connect and publish the microphone. Raises DeviceTimeout, rtc.ConnectError."""
        token = self.server.token(self.mac, self.room_name, attributes=self.attributes, agent_name=self.agent_name)
        room = self._room = rtc.Room()
        room.on("participant_connected", self._on_participant)
        room.on("participant_disconnected", self._on_participant_left)
        room.on("track_published", self._on_published)
        room.on("track_subscribed", self._on_subscribed)
        room.on("data_received", self._on_data)
        room.on("disconnected", self._on_disconnected)
        self._mark("connect_started")
        try:
            async with asyncio.timeout(timeout):
                await room.connect(self.server.url, token, rtc.RoomOptions(auto_subscribe=True))
                self._mark("joined")
                self.t0_wall = time.time()
                for participant in room.remote_participants.values():
                    self._on_participant(participant)
                    for publication in participant.track_publications.values():
                        self._on_published(publication, participant)
                if self._with_microphone:
                    await self._open_microphone(room)
        except TimeoutError:
            await self.leave()
            raise DeviceTimeout(f"the device could not join within {timeout:g} s") from None

    async def _open_microphone(self, room: rtc.Room) -> None:
        # The queue is longer than what is ever in it: a full one makes the SDK wait, which is costly with many devices.
        self._source = rtc.AudioSource(MIC_RATE, 1, queue_size_ms=400)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        while True:
            try:
                await room.local_participant.publish_track(track, options)
                break
            except PublishTrackError:  # no answer within the SDK's ten seconds; `join` has the deadline
                if not room.isconnected():
                    raise
        self._spawn(self._pump_microphone(self._source), "microphone")

    async def leave(self) -> None:
        """Say goodbye and disconnect; safe to call twice."""
        await self._close_microphone()
        if self._room is not None:
            await self._room.disconnect()
        for stream in self._streams:
            await stream.aclose()
        self._streams.clear()
        await self._end_tasks()
        if "joined" in self.marks:
            self.marks.setdefault("left", time.monotonic())
        self._notify()

    async def _close_microphone(self) -> None:
        for task in list(self._tasks):
            if task.get_name() == "microphone":
                task.cancel()
                await asyncio.wait([task])
        if self._source is not None:
            await self._source.aclose()
            self._source = None

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=2)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)

    async def __aenter__(self) -> Self:
        await self.join()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()
        if kind is None and self.errors:
            raise self.errors[0]

    # talking

    async def say(self, speech: Pcm | str, language: str = "en") -> None:
        """Speak into the microphone: int16 mono at 16 kHz, or a text. Returns when the last of it has been sent."""
        if isinstance(speech, str):
            speech = await asyncio.to_thread(speak, speech, language, MIC_RATE)
        self._speech = np.concatenate([self._speech, speech])
        await self._wait(lambda: self._speech.size == 0, speech.size / MIC_RATE + 5, "the microphone to drain")

    async def send(self, message: Mapping[str, Any] | bytes, *, topic: str = "", reliable: bool = True) -> None:
        """Send a data message: a mapping as JSON, bytes as they are."""
        payload = message if isinstance(message, bytes) else json.dumps(message, ensure_ascii=False).encode()
        await self.room.local_participant.publish_data(payload, reliable=reliable, topic=topic)

    async def abort(self) -> None:
        """Press the button as the gateway relays it: `abort_playback`, twice, a millisecond apart."""
        message = {"type": "abort_playback", "session_id": self.room_name}
        await self.send(message)
        await self.send(message)

    async def _pump_microphone(self, source: rtc.AudioSource) -> None:
        silence = np.zeros(_MIC_SILENCE, np.int16)
        due = time.monotonic()
        while True:
            samples = silence
            if self._speech.size:
                part, rest = self._speech[:_MIC_FRAME], self._speech[_MIC_FRAME:]
                samples = np.concatenate([part, silence[: _MIC_FRAME - part.size]])
                self._speech = rest
                if not rest.size:
                    self._notify()
            await source.capture_frame(rtc.AudioFrame(samples.tobytes(), MIC_RATE, 1, samples.size))
            due += samples.size / MIC_RATE
            behind = time.monotonic() - due
            if behind > 0.2:  # a stalled loop must not be followed by a burst the queue cannot take
                due += behind
            await asyncio.sleep(max(0.0, -behind))

    # waiting

    async def wait_for_sound(self, *, after: float | None = None, timeout: float = 10.0) -> float:
        """When a loud sample arrived: the first, or one after the monotonic time `after`. Raises DeviceTimeout."""

        def heard() -> float | None:
            if after is None:
                return self.marks.get("first_sound")
            last = self.heard.last_loud_at
            return last if last is not None and last > after else None

        return await self._wait(heard, timeout, "sound")

    async def wait_for_silence(self, seconds: float, *, timeout: float = 30.0) -> float:
        """Wait until nothing loud has come for `seconds`; returns when the last loud sample came, or the call did.

        Raises DeviceTimeout.
        """
        asked = time.monotonic()
        deadline = asked + timeout
        while True:
            last = max(asked, self.heard.last_loud_at or asked)
            left = last + seconds - time.monotonic()
            if left <= 0:
                return last
            if time.monotonic() + left > deadline:
                raise DeviceTimeout(f"no {seconds:g} s of silence within {timeout:g} s; {self._situation()}")
            await asyncio.sleep(left)

    async def wait_for_message(
        self,
        type: str | None = None,
        *,
        topic: str | None = None,
        where: Callable[[Message], bool] | None = None,
        after: int = 0,
        timeout: float = 10.0,
    ) -> Message:
        """The first message, past or future, of this `type` and `topic` for which `where` holds.

        Messages before index `after` of `messages` do not count. Raises DeviceTimeout.
        """

        def found() -> Message | None:
            for message in self.messages[after:]:
                if type is not None and message.type != type:
                    continue
                if topic is not None and message.topic != topic:
                    continue
                if where is None or where(message):
                    return message
            return None

        return await self._wait(found, timeout, f"message {type or ''} {topic or ''}".rstrip())

    async def wait_for_state(self, state: str, *, after: int = 0, timeout: float = 10.0) -> Message:
        """The first `agent_state_changed` to this state. Raises DeviceTimeout."""
        return await self.wait_for_message(
            "agent_state_changed", where=lambda m: m.data.get("new_state") == state, after=after, timeout=timeout
        )

    async def wait_for_mark(self, mark: str, *, timeout: float = 10.0) -> float:
        """When a mark was reached (monotonic). Raises DeviceTimeout."""
        return await self._wait(lambda: self.marks.get(mark), timeout, mark)

    async def wait_until(self, condition: Callable[[], T | None], *, timeout: float = 10.0, what: str = "it") -> T:
        """The first true value of a condition on this device. Raises DeviceTimeout."""
        return await self._wait(condition, timeout, what)

    async def _wait(self, condition: Callable[[], T | None], timeout: float, what: str) -> T:
        deadline = time.monotonic() + timeout
        while True:
            changed = self._changed
            value = condition()
            if value:
                return value
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeviceTimeout(f"no {what} within {timeout:g} s; {self._situation()}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left)

    def _situation(self) -> str:
        marks = {name: round(self.since_joined_ms(name) or 0) for name in self.marks} if "joined" in self.marks else {}
        kinds = [f"{message.topic}/{message.type}" for message in self.messages[-12:]]
        return f"marks in ms: {marks}; heard {self.heard.length / self.rate:.2f} s; last messages: {kinds}"

    # what the room tells

    def _mark(self, name: str) -> None:
        self.marks.setdefault(name, time.monotonic())
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _spawn(self, work: Any, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)
            self._notify()

    def _on_participant(self, participant: rtc.RemoteParticipant) -> None:
        if _is_agent(participant):
            self._mark("agent_there")

    def _on_participant_left(self, participant: rtc.RemoteParticipant) -> None:
        if _is_agent(participant):
            self._mark("agent_left")

    def _on_published(self, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant) -> None:
        if _is_agent(participant) and publication.kind == rtc.TrackKind.KIND_AUDIO:
            self._published.add(publication.sid)
            self.agent_tracks[publication.sid] = publication.name
            self._notify()

    def _on_subscribed(
        self, track: rtc.Track, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        if not _is_agent(participant) or track.kind != rtc.TrackKind.KIND_AUDIO:
            return
        stream = rtc.AudioStream(track, sample_rate=self.rate, num_channels=1, frame_size_ms=self.frame_ms)
        recording = Recording(publication.sid, self.rate)
        self._on_published(publication, participant)
        self._streams.append(stream)
        self.recordings.append(recording)
        self._mark("track_subscribed")
        self._spawn(self._record(stream, recording), f"record {publication.sid}")

    async def _record(self, stream: rtc.AudioStream, recording: Recording) -> None:
        async for event in stream:
            at = time.monotonic()
            samples = np.frombuffer(event.frame.data, np.int16).copy()
            if recording.add(samples, at):
                self.marks.setdefault("first_sound", at)
                self._notify()

    def _on_data(self, packet: rtc.DataPacket) -> None:
        sender = packet.participant.identity if packet.participant else ""
        raw = bytes(packet.data)
        self.messages.append(Message(packet.topic or "", raw, _json_object(raw), sender, time.monotonic(), time.time()))
        self._notify()

    def _on_disconnected(self, _reason: Any) -> None:
        self._mark("left")


def _is_agent(participant: rtc.RemoteParticipant) -> bool:
    # As the gateway tells them apart, not by the participant's kind.
    return "agent" in participant.identity


def _json_object(raw: bytes) -> Mapping[str, Any] | None:
    try:
        parsed = json.loads(raw)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None

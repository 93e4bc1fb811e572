"""The one audio track of a room: everything a child hears leaves through it.

Speech comes from the session (this is its `io.AudioOutput`) and from the greeting bank, media and ambience are
pulled. One pump mixes them, 20 ms at a time, into one `rtc.AudioSource` that holds at most `QUEUE_MS` ahead: a
busy event loop makes no gap, a stop empties it at once, and what had not sounded yet is given back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import structlog
from livekit import rtc
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT
from livekit.agents.utils.aio import cancel_and_wait
from livekit.agents.voice import io
from numpy.typing import NDArray

from agent.speaker.heard import USERDATA_TRANSCRIPT, Transcript
from agent.tasks import Tasks

SAMPLE_RATE = 24_000
CHUNK = SAMPLE_RATE // 50
QUEUE_MS = 300
_WAIT_AFTER_EMPTY = 2.0

log = structlog.get_logger(__name__)

Pcm = NDArray[np.int16]


class Media(Protocol):
    """Sound that is pulled while it plays; see `agent.speaker.player.Player`."""

    def pull(self, samples: int) -> Pcm | None:
        """Exactly `samples` of 24 kHz mono, or None when nothing sounds. Never blocks."""

    def give_back(self, samples: int) -> None:
        """The last `samples` pulled were discarded before they sounded."""

    def duck(self, on: bool) -> None:
        """Speech begins or has ended over it."""


@dataclass(slots=True)
class _Segment:
    """One utterance: from its first frame to its last sample at the child's ear."""

    chunks: deque[Pcm] = field(default_factory=deque)
    buffered: int = 0
    sounded: int = 0
    flushed: bool = False
    started: bool = False
    ending: asyncio.TimerHandle | None = None
    on_end: Callable[[int, bool], None] | None = None
    said: Transcript | None = None
    """What it says; None where the sound is ready-made and not the session's."""


@dataclass(slots=True)
class _Sent:
    """What one pumped chunk was made of, so that it can be given back."""

    segment: _Segment | None
    speech: Pcm | None
    media: int


class Speaker(io.AudioOutput):
    """The track, its mixer, and the session's audio output.

    Construct it inside the room's event loop; `publish` once; `aclose` last. Positions and lengths are in samples
    of 24 kHz mono unless a name says otherwise. Every utterance, the greeting included, ends in exactly one
    `on_end(played_samples, interrupted)` or, for the session's own, one `playback_finished`, whose transcript is what
    was heard of the text that its frames carry (`Transcript.add`) or name (USERDATA_TRANSCRIPT).
    """

    def __init__(self, *, track_name: str = "agent") -> None:
        super().__init__(
            label="Speaker",
            capabilities=io.AudioOutputCapabilities(pause=True),
            next_in_chain=None,
            sample_rate=SAMPLE_RATE,
        )
        self._source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=QUEUE_MS)
        self._track = rtc.LocalAudioTrack.create_audio_track(track_name, self._source)
        self._publication: rtc.LocalTrackPublication | None = None
        self._subscribed = asyncio.Event()
        self._segments: deque[_Segment] = deque()
        self._session_segment: _Segment | None = None
        self._discarding = False
        self._paused = False
        self._sent: deque[_Sent] = deque(maxlen=QUEUE_MS // 20 + 4)
        self._wake = asyncio.Event()
        self._tasks = Tasks(log, failed="the room is silent from now on")
        self._pump: asyncio.Task[None] | None = None
        self._media: Media | None = None
        self._ambience: Media | None = None
        self._audible = False
        self._quiet = 0
        self._ahead = asyncio.Event()
        self.on_audible: Callable[[bool], None] | None = None
        """Called with True when sound begins to leave and with False when the last of it has been heard."""

    # The track

    async def publish(self, room: rtc.Room) -> None:
        """Publish the track; returns when LiveKit has it, not when somebody listens."""
        self._publication = await room.local_participant.publish_track(
            self._track, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        )

    async def wait_for_listener(self) -> None:
        """Return once somebody has subscribed: what is pushed earlier is lost. Starts the pump."""
        if self._publication is None:
            raise RuntimeError("publish the track first")
        await self._publication.wait_for_subscription()
        self._subscribed.set()
        if self._pump is None:
            self._pump = self._tasks.spawn(self._run(), "speaker")

    async def aclose(self) -> None:
        """End every utterance as interrupted, stop the pump, and give the track up."""
        self.stop_speech()
        await self._tasks.aclose()
        await self._source.aclose()

    # What sounds

    def attach_media(self, media: Media | None) -> None:
        """Mix this in from now on, under speech."""
        self._media = media
        self.wake()

    def attach_ambience(self, ambience: Media | None) -> None:
        """Mix this in from now on, under everything."""
        self._ambience = ambience
        self.wake()

    def wake(self) -> None:
        """Something that is pulled has sound again."""
        self._wake.set()

    def play(self, pcm: Pcm, on_end: Callable[[int, bool], None] | None = None) -> None:
        """Say ready-made sound (24 kHz mono) after what is already being said."""
        segment = _Segment(flushed=True, on_end=on_end)
        segment.chunks.append(pcm)
        segment.buffered = len(pcm)
        self._segments.append(segment)
        self._ahead.clear()
        self.wake()

    async def wait_until_ahead(self) -> None:
        """Return once the queue is full, or all there is has been queued: whoever blocks the loop now makes no gap."""
        await self._ahead.wait()

    @property
    def speaking(self) -> bool:
        """Whether an utterance is sounding or waiting to."""
        return bool(self._segments)

    @property
    def unsaid(self) -> float:
        """Seconds of what is being said, as far as it has come, that have not been mixed yet."""
        return sum(segment.buffered for segment in self._segments) / SAMPLE_RATE

    def stop_speech(self) -> None:
        """Silence every utterance at once, the greeting included; media is its player's to stop."""
        self._recall()
        for segment in list(self._segments):
            self._finish(segment, interrupted=True)
        if self._session_segment is not None:
            self._session_segment, self._discarding = None, True
        self.wake()

    def stop_recorded(self) -> None:
        """Silence what `play` was given, and nothing else."""
        recorded = [item for item in self._segments if item.said is None]
        if recorded:
            self._recall()
            for segment in recorded:
                self._finish(segment, interrupted=True)
            self.wake()

    def drop_queue(self) -> None:
        """Silence what has been mixed but not sounded; it is given back to whom it came from."""
        self._recall()
        self.wake()

    # io.AudioOutput, for the session

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Take speech of the current utterance; faster than it sounds is fine."""
        await self._subscribed.wait()
        await super().capture_frame(frame)
        if self._discarding:
            return
        if self._session_segment is None:
            self._session_segment = _Segment(said=frame.userdata.get(USERDATA_TRANSCRIPT) or Transcript(SAMPLE_RATE))
            if not self._segments and self._media is not None and self._audible:
                self._recall()  # speech begins over media now, not behind what is queued of it
            self._segments.append(self._session_segment)
        segment = self._session_segment
        if segment.said is not None:
            for text in frame.userdata.get(USERDATA_TIMED_TRANSCRIPT) or ():
                segment.said.add(text, segment.sounded + segment.buffered)
        pcm = np.frombuffer(frame.data, dtype=np.int16)
        segment.chunks.append(pcm)
        segment.buffered += len(pcm)
        self.wake()

    def flush(self) -> None:
        """The current utterance is complete."""
        super().flush()
        self._discarding = False
        if self._session_segment is not None:
            segment, self._session_segment = self._session_segment, None
            segment.flushed = True
            self._end_when_heard(segment)
            self.wake()

    def clear_buffer(self) -> None:
        """The session was interrupted: its utterances end now. The greeting is one of them."""
        self.stop_speech()

    def pause(self) -> None:
        """Hold speech where it is; nothing of it is lost."""
        super().pause()
        self._paused = True
        self._recall()

    def resume(self) -> None:
        """Go on at the sample where `pause` stopped."""
        super().resume()
        self._paused = False
        self.wake()

    # Mixing

    async def _run(self) -> None:
        while True:
            chunk = self._mix()
            if chunk is None:
                self._ahead.set()
                self._wake.clear()
                if self._audible:
                    await self._drain()
                elif not self._wake.is_set():
                    await self._wake.wait()
                continue
            self._notice(self._sent[-1])
            await self._source.capture_frame(rtc.AudioFrame(chunk.tobytes(), SAMPLE_RATE, 1, len(chunk)))
            if self._source.queued_duration * 1000 > QUEUE_MS * 0.6:
                self._ahead.set()
            if (segment := self._sent[-1].segment if self._sent else None) is not None:
                self._end_when_heard(segment)

    def _notice(self, sent: _Sent) -> None:
        """Speech and media are heard; an ambience that goes on by itself is not, once the last of them has sounded."""
        if sent.speech is not None or sent.media:
            self._quiet = 0
            if not self._audible:
                self._set_audible(True)
        elif self._audible:
            self._quiet += 1
            if self._quiet * CHUNK * 1000 > QUEUE_MS * SAMPLE_RATE:
                self._set_audible(False)

    def _end_when_heard(self, segment: _Segment) -> None:
        """Finish the utterance once its last sample has sounded; `_recall` may put some of it back before that."""
        if not segment.flushed or segment.buffered or segment.ending is not None:
            return
        loop = asyncio.get_running_loop()
        segment.ending = loop.call_later(self._source.queued_duration, self._end_heard, segment)

    def _end_heard(self, segment: _Segment) -> None:
        segment.ending = None
        if not segment.buffered and segment in self._segments:
            self._finish(segment, interrupted=False)
            self.wake()

    async def _drain(self) -> None:
        """Nothing left to mix: wait until the queue has sounded, unless something new comes first."""
        woken = asyncio.create_task(self._wake.wait())
        try:
            left = self._source.queued_duration
            await asyncio.wait({woken}, timeout=min(left, _WAIT_AFTER_EMPTY))
        finally:
            await cancel_and_wait(woken)
        if self._source.queued_duration <= 0:
            self._sent.clear()
            if not self._wake.is_set():
                self._set_audible(False)

    def _mix(self) -> Pcm | None:
        segment, speech = self._next_speech()
        for under in (self._media, self._ambience):
            if under is not None:
                under.duck(bool(self._segments) and not self._paused)
        media = self._media.pull(CHUNK) if self._media is not None else None
        ambience = self._ambience.pull(CHUNK) if self._ambience is not None else None
        parts = [part for part in (speech, media, ambience) if part is not None]
        if not parts:
            return None
        self._sent.append(_Sent(segment, speech, 0 if media is None else len(media)))
        if len(parts) == 1 and len(parts[0]) == CHUNK:
            return parts[0]
        mixed = np.zeros(CHUNK, dtype=np.int32)
        for part in parts:
            mixed[: len(part)] += part
        return np.clip(mixed, -32768, 32767).astype(np.int16)

    def _next_speech(self) -> tuple[_Segment | None, Pcm | None]:
        if self._paused:
            return None, None
        for segment in self._segments:
            if segment.buffered == 0:
                if segment.flushed:
                    continue
                return None, None
            if segment.buffered < CHUNK and not segment.flushed:
                return None, None
            if not segment.started:
                segment.started = True
                if segment.said is not None:
                    self.on_playback_started(created_at=time.time())
            pcm = _take(segment, CHUNK)
            segment.sounded += len(pcm)
            return segment, pcm
        return None, None

    def _recall(self) -> None:
        """Empty the source's queue and put what had not sounded back where it came from."""
        unheard = int(self._source.queued_duration * SAMPLE_RATE)
        self._source.clear_queue()
        media = 0
        while self._sent and unheard >= CHUNK // 2:
            sent = self._sent.pop()
            unheard -= CHUNK
            media += sent.media
            if sent.segment is not None and sent.speech is not None:
                if sent.segment.ending is not None:
                    sent.segment.ending.cancel()
                    sent.segment.ending = None
                sent.segment.chunks.appendleft(sent.speech)
                sent.segment.buffered += len(sent.speech)
                sent.segment.sounded -= len(sent.speech)
        self._sent.clear()
        if media and self._media is not None:
            self._media.give_back(media)

    def _finish(self, segment: _Segment, *, interrupted: bool) -> None:
        self._segments.remove(segment)
        received = segment.sounded + segment.buffered
        segment.chunks.clear()
        segment.buffered = 0
        if segment.ending is not None:
            segment.ending.cancel()
            segment.ending = None
        if segment.on_end is not None:
            segment.on_end(segment.sounded, interrupted)
        if segment.said is not None:
            self.on_playback_finished(
                playback_position=segment.sounded / SAMPLE_RATE,
                interrupted=interrupted,
                # Without it the session would remember all that was written as said.
                synchronized_transcript=segment.said.heard(segment.sounded, received),
            )

    def _set_audible(self, audible: bool) -> None:
        self._audible = audible
        if self.on_audible is not None:
            self.on_audible(audible)


def _take(segment: _Segment, samples: int) -> Pcm:
    first = segment.chunks.popleft()
    if len(first) > samples:
        segment.chunks.appendleft(first[samples:])
        taken = first[:samples]
    elif len(first) == samples:
        taken = first
    else:
        parts, length = [first], len(first)
        while length < samples and segment.chunks:
            part = segment.chunks.popleft()
            if length + len(part) > samples:
                segment.chunks.appendleft(part[samples - length :])
                part = part[: samples - length]
            parts.append(part)
            length += len(part)
        taken = np.concatenate(parts)
    segment.buffered -= len(taken)
    return taken

"""Speech to text that does not wait for the end of the silence: a pause is transcribed while it may still be one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, stt, utils, vad
from livekit.agents.stt import SpeechData, SpeechEvent, SpeechEventType
from livekit.agents.types import NOT_GIVEN, NotGivenOr
from livekit.agents.utils.aio import cancel_and_wait
from livekit.agents.vad import VADEvent, VADEventType

from agent.conversation.standby import Lineup
from agent.errors import AllProvidersFailed

GUESS_AFTER = 0.06
"""Seconds of silence after which what was said so far is transcribed."""
QUIET = 0.35
"""Probability of speech below which the detector's latest window, that it has not counted yet, is silence too."""
GUESSES_PER_SEGMENT = 4
RESUMED_AFTER = 0.06
"""Seconds of speech after a guess that make it stale; shorter is a click."""
PATIENCE = 1.5
DEADLINE = 8.0

ONCE = APIConnectOptions(max_retry=0, timeout=DEADLINE)

log = structlog.get_logger(__name__)


class Transcriber(stt.STT[Any]):
    """A streaming recogniser made of recognisers that take whole utterances.

    When the child falls silent its words are sent off at once, as a guess. If the silence lasts, the guess is the
    transcript and the time for it has already passed; if the child goes on, it is thrown away and counted in
    `stale_guesses`. A guess known before the silence counts as an end is announced as a preflight transcript, so that
    the reply may be prepared. `on_failed` hears of an utterance that nobody could transcribe, `on_speech` of each
    beginning of speech.
    """

    def __init__(
        self,
        lineup: Lineup[stt.STT[Any]],
        detector: vad.VAD,
        *,
        on_failed: Callable[[AllProvidersFailed], None],
        on_speech: Callable[[], None] = lambda: None,
        patience: float = PATIENCE,
        deadline: float = DEADLINE,
    ) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=True))
        self.lineup = lineup
        self.detector = detector
        self.on_failed = on_failed
        self.on_speech = on_speech
        self._patience = patience
        self._deadline = deadline
        self.guesses = 0
        self.stale_guesses = 0

    @property
    def model(self) -> str:
        """The model that is asked next."""
        first = self.lineup.first
        return first.model if first else "none"

    @property
    def provider(self) -> str:
        """The provider that is asked next."""
        first = self.lineup.first
        return first.provider if first else "none"

    async def hear(self, sound: utils.AudioBuffer) -> SpeechData | None:
        """The words in `sound`; None for no words. Raises AllProvidersFailed."""

        async def begin(client: stt.STT[Any]) -> SpeechEvent:
            event = await client.recognize(sound, conn_options=ONCE)
            if not all(isinstance(found.text, str) for found in event.alternatives):
                raise APIConnectionError("the answer holds no text")  # some servers tell of an error by status 200
            return event

        _, event = await self.lineup.race(begin, patience=self._patience, deadline=self._deadline)
        found = event.alternatives[0] if event.alternatives else None
        return found if found is not None and found.text.strip() else None

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = ONCE,
    ) -> SpeechEvent:
        del language, conn_options  # settled when the recognisers and this were made
        found = await self.hear(buffer)
        return SpeechEvent(SpeechEventType.FINAL_TRANSCRIPT, alternatives=[found] if found else [])

    def stream(
        self, *, language: NotGivenOr[str] = NOT_GIVEN, conn_options: APIConnectOptions = ONCE
    ) -> stt.RecognizeStream:
        """One conversation's ear; language and deadlines were settled when this was made."""
        del language, conn_options
        return _Listening(self)


@dataclass
class _Segment:
    """What is being said, from its beginning to the silence that ends it."""

    frames: list[rtc.AudioFrame]
    guess: asyncio.Task[SpeechData | None] | None = None
    guesses: int = 0
    ended: bool = False


class _Listening(stt.RecognizeStream):
    def __init__(self, transcriber: Transcriber) -> None:
        super().__init__(stt=transcriber, conn_options=ONCE)
        self._transcriber = transcriber
        self._segment: _Segment | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended: asyncio.Queue[tuple[asyncio.Task[SpeechData | None], float] | None] = asyncio.Queue()

    async def _metrics_monitor_task(self, event_aiter: AsyncIterable[SpeechEvent]) -> None:
        async for _ in event_aiter:
            pass  # the recognisers report for themselves

    async def _run(self) -> None:
        detector = self._transcriber.detector.stream()

        async def feed() -> None:
            async for data in self._input_ch:
                detector.flush() if isinstance(data, self._FlushSentinel) else detector.push_frame(data)
            detector.end_input()

        async def watch() -> None:
            async for event in detector:
                self._on_vad(event)
            self._ended.put_nowait(None)

        work = [asyncio.create_task(w) for w in (feed(), watch(), self._publish())]
        try:
            await asyncio.gather(*work)
        finally:
            await cancel_and_wait(*work, *self._tasks)
            await detector.aclose()

    def _on_vad(self, event: VADEvent) -> None:
        if event.type == VADEventType.START_OF_SPEECH:
            self._segment = _Segment(list(event.frames))
            self._transcriber.on_speech()
            self._event_ch.send_nowait(SpeechEvent(SpeechEventType.START_OF_SPEECH))
        elif event.type == VADEventType.INFERENCE_DONE:
            if self._segment is not None:
                self._segment.frames += event.frames
                self._consider(self._segment, event)
        elif self._segment is not None:
            self._end(self._segment, event)
            self._segment = None

    def _consider(self, segment: _Segment, event: VADEvent) -> None:
        if segment.guess is not None and event.raw_accumulated_speech >= RESUMED_AFTER:
            self._transcriber.stale_guesses += 1
            segment.guess.cancel()
            segment.guess = None
        silence = event.raw_accumulated_silence + (
            sum(f.duration for f in event.frames) if event.probability < QUIET else 0
        )
        if segment.guess is None and silence >= GUESS_AFTER and segment.guesses < GUESSES_PER_SEGMENT:
            segment.guesses += 1
            self._transcriber.guesses += 1
            segment.guess = self._call(list(segment.frames))
            segment.guess.add_done_callback(lambda task: self._guessed(segment, task))

    def _guessed(self, segment: _Segment, task: asyncio.Task[SpeechData | None]) -> None:
        if segment.guess is not task or segment.ended or task.cancelled():
            return
        if task.exception() is not None:
            segment.guess = None  # at the end of the segment it is tried again
        elif (found := task.result()) is not None:
            self._event_ch.send_nowait(SpeechEvent(SpeechEventType.PREFLIGHT_TRANSCRIPT, alternatives=[found]))

    def _end(self, segment: _Segment, event: VADEvent) -> None:
        ended_at = time.time() - event.silence_duration - event.inference_duration
        segment.ended = True
        self._event_ch.send_nowait(SpeechEvent(SpeechEventType.END_OF_SPEECH, speech_end_time=ended_at))
        self._ended.put_nowait((segment.guess or self._call(list(event.frames)), ended_at))

    def _call(self, frames: list[rtc.AudioFrame]) -> asyncio.Task[SpeechData | None]:
        task = asyncio.create_task(self._transcriber.hear(utils.merge_frames(frames)), name="transcribe")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _publish(self) -> None:
        while (item := await self._ended.get()) is not None:
            task, ended_at = item
            try:
                found = await task
            except AllProvidersFailed as error:
                log.error("nobody could transcribe", error=str(error))
                self._transcriber.on_failed(error)
                continue
            except Exception as error:  # a bug costs this sentence: without this loop nothing would be heard any more
                log.exception("a sentence could not be transcribed")
                self._transcriber.on_failed(AllProvidersFailed(self._transcriber.lineup.kind, type(error).__name__))
                continue
            if found is not None:
                self._event_ch.send_nowait(
                    SpeechEvent(SpeechEventType.FINAL_TRANSCRIPT, alternatives=[found], speech_end_time=ended_at)
                )

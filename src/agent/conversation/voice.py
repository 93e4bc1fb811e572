"""A voice that begins with the first clause and finishes its sentence: when a provider fails, the next one goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, tts, utils
from livekit.agents.tts import AudioEmitter, ChunkedStream, SynthesizedAudio, SynthesizeStream
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT, TimedString
from livekit.agents.utils.aio import cancel_and_wait

from agent.conversation.phrases import PhraseSplitter, speakable
from agent.conversation.standby import Candidate, Lineup
from agent.errors import AllProvidersFailed
from agent.speaker.heard import USUAL_RATE, units, whole_words

SAMPLE_RATE: Final = 24_000
FIRST_SOUND_PATIENCE: Final = 2.0
FIRST_SOUND_DEADLINE: Final = 10.0
SOUND_GAP: Final = 1.5
AHEAD: Final = 2
"""How many phrases are asked for at once: the next is ready when the one before has been sent."""
BREAKS_PER_PHRASE: Final = 3
ONCE: Final = APIConnectOptions(max_retry=0, timeout=FIRST_SOUND_DEADLINE)

Sound = ChunkedStream | SynthesizeStream

log = structlog.get_logger(__name__)


class SteadyTTS(tts.TTS[Any]):
    """Speaks with the first voice of the lineup that works, phrase by phrase, the first phrase as early as a clause.

    A voice that has not begun after `patience` seconds gets company; one that falls silent for `sound_gap` seconds in
    mid-phrase is replaced, and the next goes on with the words that are left. When nobody is left, `on_failed` hears
    of it and the synthesis ends with an error. All voices of the lineup have 24 kHz and one channel.
    """

    def __init__(
        self,
        lineup: Lineup[tts.TTS[Any]],
        *,
        on_failed: Callable[[AllProvidersFailed], None],
        patience: float = FIRST_SOUND_PATIENCE,
        deadline: float = FIRST_SOUND_DEADLINE,
        sound_gap: float = SOUND_GAP,
    ) -> None:
        super().__init__(capabilities=tts.TTSCapabilities(streaming=True), sample_rate=SAMPLE_RATE, num_channels=1)
        self.lineup = lineup
        self.on_failed = on_failed
        self.patience = patience
        self.deadline = deadline
        self.sound_gap = sound_gap
        self._rates: dict[str, float] = {}

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

    def synthesize(self, text: str, *, conn_options: APIConnectOptions = ONCE) -> ChunkedStream:
        """Speak a whole text."""
        del conn_options
        return _Whole(self, text)

    def stream(self, *, conn_options: APIConnectOptions = ONCE) -> SynthesizeStream:
        """Speak a text while it is written."""
        del conn_options
        return _Stream(self)

    async def speak(self, phrase: str) -> AsyncIterator[rtc.AudioFrame]:
        """The sound of one phrase. Raises AllProvidersFailed, after what could be said has been given out."""
        rest = phrase
        for _ in range(BREAKS_PER_PHRASE + 1):
            candidate, (sound, first) = await self.lineup.race(
                lambda voice, rest=rest: self._begin(voice, rest),  # type: ignore[misc]
                patience=self.patience,
                deadline=self.deadline,
                discard=lambda begun: begun[0].aclose(),
            )
            seconds, aligned = 0.0, ""
            audio: SynthesizedAudio | None = first
            try:
                while audio is not None:
                    seconds += audio.frame.duration
                    aligned += "".join(audio.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, ()))
                    yield audio.frame
                    audio = await asyncio.wait_for(anext(sound, None), self.sound_gap)
            except (APIError, TimeoutError) as error:
                self.lineup.failed(candidate, error)
                rest = rest[self._spoken(candidate, rest, seconds, aligned) :].lstrip()
                log.warning("speech broke off", provider=candidate.name, seconds=round(seconds, 2), left=len(rest))
                if not speakable(rest):
                    return
            else:
                self._learn(candidate, rest, seconds)
                return
            finally:
                await sound.aclose()
        raise AllProvidersFailed(self.lineup.kind, "the speech broke off too often")

    async def _begin(self, voice: tts.TTS[Any], text: str) -> tuple[Sound, SynthesizedAudio]:
        sound: Sound
        if voice.capabilities.streaming:
            sound = voice.stream(conn_options=ONCE)
            sound.push_text(text)
            sound.end_input()
        else:
            sound = voice.synthesize(text, conn_options=ONCE)
        try:
            async for audio in sound:
                return sound, audio
            raise APIConnectionError("the voice said nothing")
        except BaseException:  # also when cancelled: whoever gives up the sound closes it
            await sound.aclose()
            raise

    def _spoken(self, candidate: Candidate[tts.TTS[Any]], text: str, seconds: float, aligned: str) -> int:
        """How many characters of `text` have been heard: by the provider's alignment, else by its usual speed."""
        if aligned.strip():
            spoken: float = units(text[: len(aligned)])
        else:
            spoken = seconds * self._rates.get(candidate.name, USUAL_RATE)
        # A word that may be half said is said again: better twice than not at all.
        return whole_words(text, spoken)

    def _learn(self, candidate: Candidate[tts.TTS[Any]], text: str, seconds: float) -> None:
        if seconds > 0.5:
            rate = units(text) / seconds
            self._rates[candidate.name] = 0.5 * self._rates.get(candidate.name, rate) + 0.5 * rate


class _Whole(ChunkedStream):
    def __init__(self, voice: SteadyTTS, text: str) -> None:
        super().__init__(tts=voice, input_text=text, conn_options=ONCE)
        self._voice = voice

    async def _run(self, output_emitter: AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid(), sample_rate=SAMPLE_RATE, num_channels=1, mime_type="audio/pcm"
        )
        splitter = PhraseSplitter()
        try:
            for phrase in [*splitter.push(self._input_text), *splitter.flush()]:
                if speakable(phrase):
                    async for frame in self._voice.speak(phrase.strip()):
                        output_emitter.push_frame(frame)
        except AllProvidersFailed as error:
            self._voice.on_failed(error)
            raise APIConnectionError(str(error), retryable=False) from error
        output_emitter.flush()


class _Stream(SynthesizeStream):
    def __init__(self, voice: SteadyTTS) -> None:
        super().__init__(tts=voice, conn_options=ONCE)
        self._voice = voice

    async def _run(self, output_emitter: AudioEmitter) -> None:
        request_id = utils.shortuuid()
        output_emitter.initialize(
            request_id=request_id, sample_rate=SAMPLE_RATE, num_channels=1, mime_type="audio/pcm", stream=True
        )
        output_emitter.start_segment(segment_id=request_id)
        phrases: asyncio.Queue[_Phrase | None] = asyncio.Queue()
        speaking: set[asyncio.Task[None]] = set()
        work = [
            asyncio.create_task(self._split(phrases, speaking), name="phrases"),
            asyncio.create_task(self._send(phrases, output_emitter), name="sound"),
        ]
        try:
            await asyncio.gather(*work)
        except AllProvidersFailed as error:
            log.error("no voice speaks", error=str(error))
            self._voice.on_failed(error)
            raise APIConnectionError(str(error), retryable=False) from error
        finally:
            await cancel_and_wait(*work, *speaking)

    async def _split(self, phrases: asyncio.Queue[_Phrase | None], speaking: set[asyncio.Task[None]]) -> None:
        ahead = asyncio.Semaphore(AHEAD)
        splitter = PhraseSplitter()

        def add(found: list[str]) -> None:
            for text in found:
                if not speakable(text):
                    continue
                self._mark_started()
                phrase = _Phrase(text)
                task = asyncio.create_task(self._make(phrase, ahead), name="phrase")
                speaking.add(task)
                task.add_done_callback(speaking.discard)
                phrases.put_nowait(phrase)

        async for data in self._input_ch:
            add(splitter.flush() if isinstance(data, self._FlushSentinel) else splitter.push(data))
        add(splitter.flush())
        phrases.put_nowait(None)

    async def _make(self, phrase: _Phrase, ahead: asyncio.Semaphore) -> None:
        async with ahead:
            try:
                async for frame in self._voice.speak(phrase.text.strip()):
                    phrase.sound.put_nowait(frame)
                phrase.sound.put_nowait(None)
            except Exception as error:  # noqa: BLE001 — carried to the task that sends, which raises it in its turn
                phrase.sound.put_nowait(error)

    async def _send(self, phrases: asyncio.Queue[_Phrase | None], output_emitter: AudioEmitter) -> None:
        sent = False
        while (phrase := await phrases.get()) is not None:
            # Whoever plays the sound learns from it what has been said when it is stopped (see `Transcript.add`).
            output_emitter.push_timed_transcript(TimedString(phrase.text))
            while (frame := await phrase.sound.get()) is not None:
                if isinstance(frame, Exception):
                    raise frame
                output_emitter.push_frame(frame)
                sent = True
            output_emitter.push_timed_transcript(TimedString(""))
            output_emitter.flush()
        if not sent:  # nothing in it was speakable, which is no failure
            output_emitter.push(bytes(SAMPLE_RATE // 50 * 2))


@dataclass(eq=False)
class _Phrase:
    """A part of a reply, and its sound as it comes: frames, then None or what went wrong."""

    text: str
    sound: asyncio.Queue[rtc.AudioFrame | Exception | None] = field(default_factory=asyncio.Queue)

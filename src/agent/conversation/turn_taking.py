"""When a child has finished, and when it interrupts: the session's options by age, all of it on this machine."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from livekit.agents import APIConnectOptions, TurnHandlingOptions, inference
from livekit.agents.vad import VAD, VADCapabilities, VADEvent, VADEventType, VADStream
from livekit.agents.voice.agent_session import SessionConnectOptions

from agent.errors import SettingsError
from agent.settings import Settings

MIN_SPEECH: Final = 0.05
MIN_SILENCE: Final = 0.2
FALSE_INTERRUPTION_TIMEOUT: Final = 1.0
MIN_INTERRUPTION: Final = 0.4
NEVER_CLOSE: Final = 1_000_000
"""The session closes itself after this many errors in a row: a visit ends when the device leaves, not before."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long a child may be silent before it is answered, in seconds since its last word.

    `likely_over` counts where the turn detector believes the sentence is complete, `likely_more` where it does not.
    """

    likely_over: float
    likely_more: float


_BY_AGE: Final = (
    (5, Pauses(0.5, 1.6)),
    (8, Pauses(0.4, 1.3)),
    (13, Pauses(0.3, 1.0)),
)
GROWN: Final = Pauses(0.3, 0.9)
UNKNOWN: Final = Pauses(0.4, 1.3)


def pauses_for(age: int | None) -> Pauses:
    """The younger, the longer they search for the next word; None is a child of unknown age."""
    if age is None:
        return UNKNOWN
    return next((pauses for below, pauses in _BY_AGE if age < below), GROWN)


def load_vad(engine: Literal["native", "onnxruntime"] = "native") -> VAD:
    """Silero's detector: for the forkserver or prewarm.

    `native` is the framework's own build; `onnxruntime` the plugin's, which takes four times its CPU (a sixth of all
    that a talking room takes) and 100 ms to load.
    """
    if engine == "native":
        return PromptVAD(inference.VAD(min_speech_duration=MIN_SPEECH, min_silence_duration=MIN_SILENCE))
    from livekit.plugins import silero

    return PromptVAD(silero.VAD.load(min_speech_duration=MIN_SPEECH, min_silence_duration=MIN_SILENCE))


class PromptVAD(VAD):
    """A detector that ends speech after less silence than the turn detector is used to.

    The framework asks the turn detector when a window reports 200 ms of silence, and windows report what was counted
    before them: with an end of speech at 200 ms it would never be asked, and refuses such a detector. This one reports
    the silence that ends the speech just ahead of the end.
    """

    def __init__(self, detector: VAD) -> None:
        super().__init__(capabilities=VADCapabilities(update_interval=detector.capabilities.update_interval))
        self._detector = detector

    @property
    def model(self) -> str:
        """The wrapped detector's."""
        return self._detector.model

    @property
    def provider(self) -> str:
        """The wrapped detector's."""
        return self._detector.provider

    def stream(self) -> VADStream:
        """A stream of events for one microphone."""
        return _PromptStream(self, self._detector.stream())


class _PromptStream(VADStream):
    def __init__(self, vad: PromptVAD, inner: VADStream) -> None:
        self._inner = inner
        super().__init__(vad)

    async def _main_task(self) -> None:
        async for event in self._inner:
            if event.type is VADEventType.END_OF_SPEECH:
                self._event_ch.send_nowait(_silence(event))
            self._event_ch.send_nowait(event)

    async def _metrics_monitor_task(self, event_aiter: AsyncIterable[VADEvent]) -> None:
        # A session keeps every figure it is told until its end: one a second would be 18 MB an hour.
        async for _ in event_aiter:
            pass

    def push_frame(self, frame: Any) -> None:
        """Hand sound in."""
        self._inner.push_frame(frame)

    def flush(self) -> None:
        """Forget what was heard."""
        self._inner.flush()

    def end_input(self) -> None:
        """No more sound comes."""
        self._inner.end_input()

    async def aclose(self) -> None:
        """Stop."""
        await self._inner.aclose()
        await super().aclose()


def _silence(end: VADEvent) -> VADEvent:
    return VADEvent(
        type=VADEventType.INFERENCE_DONE,
        samples_index=end.samples_index,
        timestamp=end.timestamp,
        speech_duration=end.speech_duration,
        silence_duration=end.silence_duration,
        frames=[],
        probability=end.probability,
        inference_duration=end.inference_duration,
        speaking=True,
        raw_accumulated_silence=end.silence_duration,
        raw_accumulated_speech=0.0,
    )


def turn_handling(age: int | None) -> TurnHandlingOptions:
    """How turns are taken: the bundled turn detector, offline; replies and their sound are prepared ahead.

    A word from the child pauses the reply; when nothing follows, the reply goes on where it was.
    """
    pauses = pauses_for(age)
    return TurnHandlingOptions(
        turn_detection=inference.TurnDetector(version="v1-mini"),
        endpointing={"mode": "fixed", "min_delay": pauses.likely_over, "max_delay": pauses.likely_more},
        interruption={
            "enabled": True,
            "mode": "vad",
            "min_duration": MIN_INTERRUPTION,
            "resume_false_interruption": True,
            "false_interruption_timeout": FALSE_INTERRUPTION_TIMEOUT,
        },
        preemptive_generation={
            "enabled": True,
            "preemptive_tts": True,
            "max_speech_duration": 15.0,
            "max_retries": 4,
        },
    )


def session_options(settings: Settings, *, age: int | None, realtime: bool = False) -> dict[str, Any]:
    """Keyword arguments for `AgentSession`, beside stt, llm, tts and vad.

    In realtime mode the provider takes the turns, so that only what is not about turns is set.
    """
    options: dict[str, Any] = {
        "aec_warmup_duration": settings.aec_warmup or None,
        "conn_options": SessionConnectOptions(
            stt_conn_options=APIConnectOptions(max_retry=0),
            llm_conn_options=APIConnectOptions(max_retry=0),
            tts_conn_options=APIConnectOptions(max_retry=0),
            max_unrecoverable_errors=NEVER_CLOSE,
        ),
        "use_tts_aligned_transcript": False,
        # The companion's own filter reads the emotion first, and keeps every script.
        "tts_text_transforms": None,
        "user_away_timeout": None,
        # A child whose device has left has no more words on the way that could be answered.
        "session_close_transcript_timeout": 0.5,
    }
    if realtime:
        options["turn_handling"] = TurnHandlingOptions(turn_detection="realtime_llm", interruption={"mode": "vad"})
        options["vad"] = None
    else:
        options["turn_handling"] = turn_handling(age)
    return options


def noise_cancellation(settings: Settings) -> Any | None:
    """LiveKit Cloud's filter for the microphone; None unless `NOISE_CANCELLATION` is on.

    Raises SettingsError when it is on and its package is absent.
    """
    if not settings.noise_cancellation:
        return None
    try:
        package = importlib.import_module("livekit.plugins.noise_cancellation")
    except ImportError:
        raise SettingsError(
            "NOISE_CANCELLATION: is on, but its package is absent: install livekit-plugins-noise-cancellation "
            "(it needs LiveKit Cloud), or set NOISE_CANCELLATION=false"
        ) from None
    return package.BVC()

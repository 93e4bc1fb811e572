"""What one visit tells of itself: moments become metrics and log fields; nothing here waits or raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from livekit.agents import AgentSession
from livekit.agents.llm import ChatMessage
from livekit.agents.voice import ConversationItemAddedEvent, SpeechCreatedEvent, UserInputTranscribedEvent

from agent.settings import Rollout, Settings
from agent.telemetry.lag import LagProbe
from agent.telemetry.meter import Meter, meter
from agent.telemetry.timeline import Timeline
from agent.values import DeviceMac

_STAGES: Final = {
    "transcription_delay": "transcript",
    "end_of_turn_delay": "end_of_turn",
    "llm_node_ttft": "first_token",
    "tts_node_ttfb": "first_voice",
}
_PREPARED_KEPT: Final = 8


def variants(settings: Settings, mac: DeviceMac) -> dict[str, str]:
    """`on` or `off` for each flag, as the device's hash decides."""
    return {name: "on" if value.on_for(mac, name) else "off" for name, value in settings if isinstance(value, Rollout)}


class VisitRecord:
    """One visit's metrics. `begin` first, `end` last; a visit whose process dies between them counts as lost.

    `variants` says which flags this device has; log lines of the visit carry it, so that reports can compare.
    """

    def __init__(
        self, settings: Settings, *, job_id: str, mac: DeviceMac, timeline: Timeline, to: Meter = meter
    ) -> None:
        self.variants = variants(settings, mac)
        self.timeline = timeline
        self._job = job_id
        self._meter = to
        self._lag = LagProbe("room", to=to)
        self._how = {"language": "none", "source": "live"}
        self._sounded = False
        self._understood = False
        self._session: AgentSession[Any] | None = None
        self._prepared: dict[str, float] = {}
        self._turn: dict[str, float] = {}

    def begin(self, warm: Mapping[str, bool]) -> None:
        """The job has begun; `warm` says of each service whether the process had it ready."""
        self._meter.send(["v", self._job])
        for service, hit in warm.items():
            self._meter.count("toy_service_cache", service=service, result="hit" if hit else "miss")
        self._lag.start()

    def greeting(self, *, language: str, recorded: bool) -> None:
        """Which greeting will sound; `language` is one of the bank's, not one a stranger named."""
        self._how = {
            "language": language.split("-")[0].lower() or "none",
            "source": "recorded" if recorded else "live",
        }

    def audible(self) -> None:
        """The first frame of a sound went out; later calls change nothing."""
        if not self._sounded:
            self._sounded = True
            self._first("greeting", "toy_greeting_seconds", "first_frame")

    def word(self) -> None:
        """The child's words were understood; only the first time counts."""
        if not self._understood:
            self._understood = True
            self._first("first_word", "toy_first_word_seconds", "first_word")

    def briefed(
        self,
        *,
        sources: Mapping[str, str],
        timings_ms: Mapping[str, float],
        problems: Mapping[str, str],
        asked: bool,
    ) -> None:
        """Where each part of the briefing came from. `asked`: there is a Manager API, so parts were calls."""
        total = timings_ms.get("total")
        if total is not None:
            mode = "parallel" if self.variants["enable_parallel_api"] == "on" else "serial"
            begun = self.timeline.now() - total
            for part, took in timings_ms.items():
                if part in sources:
                    self.timeline.mark_at(f"briefing_{part}", begun + took)
                    begun += took if mode == "serial" else 0.0
            self._meter.observe("toy_briefing_fetch_seconds", total / 1000, mode=mode)
        for part, source in sources.items() if asked else ():
            result = problems.get(part, "ok")
            self._meter.count("toy_api_calls", call=part, result=result, source=source)
            if part in timings_ms:
                self._meter.observe("toy_api_call_seconds", timings_ms[part] / 1000, call=part)

    def watch(self, session: AgentSession[Any]) -> None:
        """Follow a session's words and turns until it closes."""
        self._session = session
        session.on("speech_created", self._on_speech)
        session.on("user_input_transcribed", self._on_words)
        session.on("conversation_item_added", self._on_item)

    def end(self) -> None:
        """The visit is over, in order."""
        self._lag.stop()
        self._meter.send(["e", self._job])

    def _first(self, measure: str, name: str, mark: str) -> None:
        at = self.timeline.mark(mark)
        begun = self.timeline.get("job_received") or 0.0
        came = self.timeline.get("device_came")
        if came is not None and came < at:
            begun = max(begun, came)
        seconds = max(0.0, at - begun) / 1000
        self._meter.send(["g", name, self._job, self._how, seconds])
        self._by_variant(measure, seconds)

    def _by_variant(self, measure: str, seconds: float) -> None:
        for flag, variant in self.variants.items():
            self._meter.observe("toy_rollout_seconds", seconds, measure=measure, flag=flag, variant=variant)

    def _on_words(self, event: UserInputTranscribedEvent) -> None:
        if event.transcript.strip():
            self.word()

    def _on_speech(self, event: SpeechCreatedEvent) -> None:
        # Replies are prepared that are never said: only the latest can still be.
        self._prepared[event.speech_handle.id] = self.timeline.now()
        while len(self._prepared) > _PREPARED_KEPT:
            del self._prepared[next(iter(self._prepared))]

    def _on_item(self, event: ConversationItemAddedEvent) -> None:
        if not isinstance(event.item, ChatMessage):
            return
        report: Mapping[str, Any] = event.item.metrics
        found = {stage: report[name] for name, stage in _STAGES.items() if _usable(report.get(name))}
        for stage, seconds in found.items():
            self._meter.observe("toy_turn_stage_seconds", seconds, stage=stage)
        total = report.get("e2e_latency")
        if total is not None and _usable(total):
            found["total"] = total
            self._meter.observe("toy_turn_seconds", total)
            self._by_variant("turn", total)
        moments = self._moments(event.item.role, report, found)
        moments.update({f"{stage}_ms": round(seconds * 1000, 1) for stage, seconds in found.items()})
        if not moments:
            return
        if event.item.role == "user" or "first_audio_at" in self._turn or not self._turn:
            self._turn = {}
            self.timeline.turn(self._turn)
        self._turn.update(moments)

    def _moments(self, role: str, report: Mapping[str, Any], found: Mapping[str, float]) -> dict[str, float]:
        """When the parts of a turn were, on the visit's clock."""
        moments: dict[str, float] = {}
        if role == "user":
            stopped = report.get("stopped_speaking_at")
            if stopped:
                said = moments["speech_end_at"] = self.timeline.at_wall(stopped)
                for stage in ("transcript", "end_of_turn"):
                    if stage in found:
                        moments[f"{stage}_at"] = round(said + found[stage] * 1000, 2)
            return moments
        speech = self._session.current_speech if self._session is not None else None
        asked = self._prepared.get(speech.id) if speech is not None else None
        if asked is not None and "first_token" in found:
            moments["first_token_at"] = round(asked + found["first_token"] * 1000, 2)
        if sounded := report.get("started_speaking_at"):
            moments["first_audio_at"] = self.timeline.at_wall(sounded)
        return moments


def _usable(seconds: Any) -> bool:
    # The framework reports 0 or less where it does not know.
    return isinstance(seconds, int | float) and 0 < seconds < 3600

from __future__ import annotations

import asyncio
import sys

import pytest
from livekit.agents import Agent, AgentSession, inference
from livekit.agents.vad import VAD, VADEvent, VADEventType
from provider_speech import frames, quiet, spoken

from agent.conversation.turn_taking import (
    load_vad,
    noise_cancellation,
    pauses_for,
    session_options,
    turn_handling,
)
from agent.errors import SettingsError
from agent.settings import Settings


def settings(**changes: object) -> Settings:
    return Settings(_env_file=None, **changes)  # type: ignore[call-arg]


def test_the_younger_the_more_patient() -> None:
    likely_over = [pauses_for(age).likely_over for age in (3, 6, 10, 15)]
    likely_more = [pauses_for(age).likely_more for age in (3, 6, 10, 15)]
    assert likely_over == sorted(likely_over, reverse=True)
    assert likely_more == sorted(likely_more, reverse=True)
    assert likely_more[0] > likely_more[-1]
    assert pauses_for(None).likely_more >= pauses_for(10).likely_more


def test_nothing_needs_the_cloud() -> None:
    options = turn_handling(7)
    detector = options["turn_detection"]
    assert isinstance(detector, inference.TurnDetector)
    assert detector.model == "turn-detector-v1-mini"
    assert options["interruption"]["mode"] == "vad"
    assert options["interruption"]["resume_false_interruption"] is True
    assert options["preemptive_generation"]["enabled"] is True


async def test_the_session_takes_the_options_with_the_detector() -> None:
    session: AgentSession[None] = AgentSession(vad=load_vad(), **session_options(settings(), age=4))
    await session.start(Agent(instructions=""), record=False)
    assert session.options.endpointing["min_delay"] == pauses_for(4).likely_over
    assert session.options.endpointing["max_delay"] == pauses_for(4).likely_more
    await session.aclose()


@pytest.mark.parametrize(("seconds", "expected"), [(0, None), (2.5, 2.5)])
def test_aec_warmup_is_off_unless_set(seconds: float, expected: float | None) -> None:
    assert session_options(settings(aec_warmup=seconds), age=None)["aec_warmup_duration"] == expected


async def vad_events(*sounds: object, detector: VAD | None = None) -> list[VADEvent]:
    stream = (detector or load_vad()).stream()
    for frame in frames(*sounds):  # type: ignore[arg-type]
        stream.push_frame(frame)
    stream.end_input()
    events: list[VADEvent] = []

    async def listen() -> None:
        async for event in stream:
            events.append(event)

    await asyncio.wait_for(listen(), 20)
    await stream.aclose()
    return events


async def test_a_quiet_hour_adds_nothing_to_what_a_session_keeps() -> None:
    detector, told = load_vad(), list[object]()
    detector.on("metrics_collected", told.append)
    events = await vad_events(quiet(3.0), detector=detector)
    assert len(events) > 60
    assert told == []


async def test_the_silence_that_ends_speech_is_reported_ahead_of_the_end() -> None:
    events = await vad_events(quiet(0.3), spoken("hello who are you"), quiet(0.6))
    kinds = [event.type for event in events]
    end = kinds.index(VADEventType.END_OF_SPEECH)
    assert kinds.count(VADEventType.START_OF_SPEECH) == kinds.count(VADEventType.END_OF_SPEECH) == 1
    assert events[end - 1].type is VADEventType.INFERENCE_DONE
    assert events[end - 1].raw_accumulated_silence >= 0.2
    assert events[end].silence_duration < 0.25


def test_noise_cancellation_only_with_its_flag_and_a_clear_error_without_its_package() -> None:
    assert noise_cancellation(settings()) is None
    assert "livekit.plugins.noise_cancellation" not in sys.modules
    with pytest.raises(SettingsError, match="livekit-plugins-noise-cancellation"):
        noise_cancellation(settings(noise_cancellation=True))


def test_realtime_leaves_the_turns_to_the_provider() -> None:
    options = session_options(settings(), age=7, realtime=True)
    assert options["turn_handling"]["turn_detection"] == "realtime_llm"
    assert options["vad"] is None


def test_the_detector_is_the_native_one_that_takes_a_quarter_of_the_cpu() -> None:
    assert load_vad().provider == "livekit-local-inference"
    assert load_vad("onnxruntime").provider == "ONNX"
